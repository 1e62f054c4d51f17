"""Edge cases 35 to 64, each under its number, through a real server where a socket matters.

What they share with the core's own tests of the same number (`edge_35_…` in crates/core) is the rule; here a client
sees it. test_house.py counts the numbers.
"""

import asyncio
import json
import re
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from scripted import CUT, HANG, OPENAI_CHAT, ScriptedServer
from support import AT_ONCE_S, PATIENCE_S, WORDS, Gate, Seen, finished, frames, frozen, parse, seqs, text, until

import turnstream as ts
from turnstream.asgi import Scope, app
from turnstream.asgi.http import MAX_DEPTH, MAX_METADATA_BYTES

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the loops' own differences have their own tests


class Client:
    """A server over a hub of its own, and a client of it."""

    def __init__(self, serve: Serve, http: httpx.AsyncClient) -> None:
        self._serve = serve
        self.http = http
        self.hub = ts.Hub()
        self.base = ""

    def open(
        self,
        agent: Any = None,
        *,
        store: str = "memory",
        limits: ts.Limits | None = None,
        redact: Any = None,
        **options: Any,
    ) -> ts.Session:
        self.hub = ts.Hub(store, limits, redact=redact)
        self.base = self._serve(app(self.hub, agent, **options))
        return self.hub.session("s")

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        response = await self.http.post(f"{self.base}/sessions{path}", json=body)
        return response.status_code, response.json()

    async def get(self, path: str = "/s", **query: Any) -> tuple[int, Any]:
        response = await self.http.get(f"{self.base}/sessions{path}", params=query)
        return response.status_code, response.json() if response.content else None

    async def events(self, session: str = "s", **query: Any) -> list[Seen]:
        query = {"deltas": "exact", **query}
        response = await self.http.get(f"{self.base}/sessions/{session}/events", params=query)
        assert response.status_code == 200, response.text
        return parse(response.content)


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        yield Client(serve, http)


def kinds(seen: list[Seen]) -> list[str]:
    return [frame.event for frame in seen]


def is_whole(seen: list[Seen], session: ts.Session) -> bool:
    return seqs(seen) == list(range(1, session.head + 1)) and seen[-1].event == "completion"


async def endless(turn: ts.Turn) -> None:
    await asyncio.Event().wait()


# --- sessions, ends, ordering -----------------------------------------------------------------------------------------


async def test_edge_35_two_concurrent_emitters_make_one_sequence(client: Client) -> None:
    session = client.open()
    gate = threading.Barrier(3)

    def work(name: str) -> None:
        emit = session.emitter()
        gate.wait()
        for number in range(300):
            emit("custom", {"name": name, "data": number})

    with session.turn():
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        reading = asyncio.create_task(client.events())
        await asyncio.to_thread(gate.wait)
        for thread in threads:
            await asyncio.to_thread(thread.join)
    seen = await reading
    assert is_whole(seen, session)
    for name in "ab":
        assert [frame.data["data"] for frame in seen if frame.data.get("name") == name] == list(range(300))


async def test_edge_36_a_second_end_is_refused(client: Client) -> None:
    session = client.open()
    turn = session.turn()
    turn.complete("first")
    turn.complete("second", status="failed")
    turn.fail("third")
    with pytest.raises(ts.TurnEnded):
        turn.emit("text_delta", text="late")
    with pytest.raises(ts.TurnEnded):
        session.emitter()("completion", {"status": "failed"}, turn=1)
    seen = await client.events()
    assert kinds(seen).count("completion") == 1
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("completed", "first")


async def test_edge_37_each_turn_that_a_crash_ends_fails_once(client: Client) -> None:
    """One after the other in one session, the second asked for before the first has crashed; and side by side."""
    gates = [Gate(), Gate()]

    async def agent(turn: ts.Turn) -> None:
        await gates[turn.input].passed()
        raise SystemExit(1)

    session = client.open(agent)

    async def ask(name: str, number: int) -> list[Seen]:
        body = {"input": number, "client_id": f"c{number}"}
        while (made := await client.post(f"/{name}/turns", body))[0] == 409:  # noqa: ASYNC110, the way of any client
            await asyncio.sleep(0.01)  # its turn comes when the one before has ended
        return await client.events(name, after=made[1]["cursor"])

    client.hub.session("beside")
    first, beside = (asyncio.create_task(ask(name, 0)) for name in ("s", "beside"))
    await until(lambda: session.running == 1)
    assert (await client.post("/s/turns", {"input": 1}))[0] == 409
    second = asyncio.create_task(ask("s", 1))
    for gate in gates:
        gate.open()
    for number, seen in enumerate(await asyncio.gather(first, beside, second)):
        assert kinds(seen).count("error") == kinds(seen).count("completion") == 1, number
        assert (seen[-1].data["status"], seen[-1].data["reason"]) == ("failed", "agent_error")
    assert kinds(await client.events(follow="none")).count("completion") == 2
    again = await client.post("/s/turns", {"input": 1, "client_id": "c1"})
    assert (again[0], again[1]["turn"]) == (202, 2)
    assert session.running is None


WORKER = """
import sys, uvicorn, turnstream as ts
from turnstream.asgi import app
import asyncio, socket

async def agent(turn):
    turn.emit("text_delta", message_id="m", text="half of")
    await asyncio.Event().wait()

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
application = app(ts.Hub(sys.argv[1]), agent)
uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])
"""


async def test_edge_37_38_the_turns_of_a_killed_worker_fail_once_with_what_they_said(
    client: Client, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/runs.db?lease_s=1"
    command = [sys.executable, "-c", WORKER, store]
    worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert worker.stdout is not None
        client.base = f"http://127.0.0.1:{(await worker.stdout.readline()).decode().strip()}"
        for name in ("a", "b"):
            assert (await client.post("", {"input": 1, "session_id": name, "client_id": "c"}))[0] == 201
            async with client.http.stream("GET", f"{client.base}/sessions/{name}/events") as response:
                async for frame in frames(response):
                    if frame.event == "text_delta":
                        break
    finally:
        worker.kill()
        await worker.wait()
    client.open(endless, store=store)  # the worker that takes its place
    for name in ("a", "b"):
        seen = await client.events(name)
        assert kinds(seen).count("error") == kinds(seen).count("completion") == 1
        assert (seen[-1].data["status"], seen[-1].data["reason"]) == ("failed", "producer_lost")
        (whole,) = [frame.data for frame in seen if frame.event == "assistant_message"]
        assert (whole["text"], whole["finish_reason"], seen[-1].data["text"]) == ("half of", "error", "half of")
        turn = {"input": 1, "client_id": "c"}
        assert (await client.post(f"/{name}/turns", turn))[1]["turn"] == 1, "and is not begun again"


@pytest.mark.parametrize("how", ["cut", "timeout", "given up"])
async def test_edge_38_what_was_said_before_a_cut_stays_and_is_marked(client: Client, how: str) -> None:
    """The provider's connection is lost, its silence is too long, or the agent's own time is over. Killed: 37."""
    delta = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"half of"}}]}\n\n'
    with ScriptedServer() as provider:
        url = provider.script("/v1", [delta, CUT if how == "cut" else HANG])

        async def agent(turn: ts.Turn) -> None:
            async with (
                asyncio.timeout(PATIENCE_S) as limit,
                httpx.AsyncClient(
                    timeout=httpx.Timeout(PATIENCE_S, read=2 if how == "timeout" else PATIENCE_S)
                ) as http,
                http.stream("GET", url) as response,
            ):

                def heard(_: ts.Event) -> None:
                    if how == "given up":
                        limit.reschedule(0)

                async with turn.session.subscribe(heard, types="text_delta"):
                    await turn.relay(response, provider="openai-chat")

        client.open(agent)
        await client.post("/s/turns", {"input": 1})
        seen = await client.events()
    (whole,) = [frame.data for frame in seen if frame.event == "assistant_message"]
    assert (whole["text"], whole["finish_reason"]) == ("half of", "error")
    assert kinds(seen).count("completion") == 1
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("failed", "half of")
    assert seen[-1].data["error"]["message"]
    assert (await client.get("/s/messages"))[1]["messages"][-1]["text"] == "half of"


async def test_edge_38_a_stream_that_just_ends_is_incomplete(client: Client) -> None:
    async def agent(turn: ts.Turn) -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"half of"}}]}\n\n'

        await turn.relay(source(), provider="openai-chat")

    client.open(agent)
    await client.post("/s/turns", {"input": 1})
    seen = await client.events()
    (whole,) = [frame.data for frame in seen if frame.event == "assistant_message"]
    assert whole["text"] == "half of"
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("incomplete", "half of")


async def test_edge_39_a_start_while_one_runs_is_a_conflict(client: Client) -> None:
    session = client.open(endless)
    assert (await client.post("/s/turns", {"input": 1}))[0] == 202
    status, body = await client.post("/s/turns", {"input": 2})
    assert (status, body["error"]["code"]) == (409, "turn_active")
    assert (session.status()["turn"], session.status()["state"]) == (1, "running")
    assert [message["input"] for message in session.messages()] == [1]


async def test_edge_40_a_request_that_comes_twice_does_its_work_once(client: Client) -> None:
    session = client.open(endless)
    first = await client.post("/s/turns", {"input": {"a": 1}, "client_id": "c"})
    assert first[0] == 202
    assert await client.post("/s/turns", {"input": {"a": 1}, "client_id": "c"}) == first
    status, body = await client.post("/s/turns", {"input": {"a": 2}, "client_id": "c"})
    assert (status, body["error"]["code"]) == (409, "conflict")
    assert [(await client.post("/s/cancel", {}))[0] for _ in range(2)] == [202, 202]
    assert kinds(await client.events()).count("completion") == 1
    session.turn("of its own").complete("done")
    status, body = await client.post("/s/cancel", {})
    assert (status, body["error"]["code"]) == (409, "turn_ended")


async def test_edge_41_a_cancel_answers_what_is_open_and_what_comes_later_is_ignored(client: Client) -> None:
    """A tool that was slow to hear of the cancel says its result in the turn that goes on."""
    session = client.open()
    turn = session.turn()
    for call in ("c1", "c2", "c3"):
        turn.emit("tool_call", call_id=call, name="f", arguments={})
    assert (await client.post("/s/cancel", {}))[0] == 202
    with pytest.raises(ts.TurnEnded):
        turn.emit("tool_result", call_id="c1", output="late")
    emit = session.emitter()
    with session.turn() as resumed:
        before = session.head
        assert emit("tool_result", {"call_id": "c1", "output": "later"}) == before
        assert emit("tool_output_delta", {"call_id": "c2", "text": "later"}) == before
        resumed.emit("text_delta", text="next")
    seen = await client.events(follow="none")
    results = [frame.data for frame in seen if frame.event == "tool_result"]
    assert [(result["call_id"], result["status"]) for result in results] == [(f"c{n}", "cancelled") for n in (1, 2, 3)]
    assert "late" not in json.dumps([frame.data for frame in seen])
    assert kinds(seen).count("tool_call") == 3
    assert kinds(seen)[-4:] == ["message_start", "text_delta", "assistant_message", "completion"]
    assert session.statistics()["late"] == 2


async def test_edge_42_sessions_see_nothing_of_each_other(client: Client) -> None:
    """Nor of what fails in another one; and a cursor of the other's log is unknown here, whatever reads."""
    gate = Gate()

    async def agent(turn: ts.Turn) -> None:
        turn.emit("text_delta", text=turn.input)
        await gate.passed()
        raise LookupError(turn.input)

    mine = client.open(agent)
    reading = {}
    for name, word in (("s", "mine"), ("other", "secret")):
        client.hub.session(name)
        assert (await client.post(f"/{name}/turns", {"input": word}))[0] == 202
        reading[name] = asyncio.create_task(client.events(name))
    other = client.hub.find("other")
    await until(lambda: min(mine.head, other.head) >= 3)
    gate.open()
    assert "mine" not in json.dumps([frame.data for frame in await reading["other"]])
    replayed = [await reading["s"], await client.events(after=other.cursor)]
    assert replayed[1][0].data["status"] == "other_epoch"
    page = (await client.get("/s/poll", after=other.cursor))[1]
    assert page["status"] == "other_epoch"
    told = [await client.get(f"/s{path}") for path in ("", "/messages", "/result")]
    assert "secret" not in json.dumps([*([frame.data for frame in seen] for seen in replayed), page, told])
    assert {frame.data["session"] for seen in replayed for frame in seen} == {"s"}
    status, body = await client.get("/s/events", after=f"{mine.epoch}.99999999999999999999999")
    assert (status, body["error"]["code"]) == (400, "malformed_cursor")
    assert (await client.get("/nobodys"))[1]["error"] == {"code": "unknown_session", "message": ANY}


async def test_edge_43_what_belongs_to_no_session_is_delivered_and_stored_nowhere(client: Client, serve: Serve) -> None:
    """A provider's stream on one socket, normalised without a session, to a client on another one."""
    client.open()
    with ScriptedServer() as provider:
        url = provider.script("/v1", list(OPENAI_CHAT))

        async def relay(scope: Scope, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async with httpx.AsyncClient() as http, http.stream("GET", url) as response:
                async for event in ts.normalize(response, provider="openai-chat"):
                    line = event.json().encode() + b"\n"
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        response = await client.http.get(serve(relay, lifespan="off"))
    events = [json.loads(line) for line in response.text.splitlines()]
    assert {event.get("session") for event in events} == {None}
    assert "".join(event["text"] for event in events if event["type"] == "text_delta") == "Hello €"
    assert client.hub.statistics()["events"] == client.hub.find("s").head == 0
    status, body = await client.get("/v1")
    assert (status, body["error"]["code"]) == (404, "unknown_session")


async def test_edge_44_a_callback_that_fails_stops_nobody_and_is_said(client: Client) -> None:
    def agent(turn: ts.Turn) -> None:
        subscription = turn.session.subscribe(fails, types={"progress"}, follow="turn")
        for number in range(3):
            turn.emit("progress", stage="plan", current=number)
        seen.wait()
        turn.emit("text_delta", text="goes on")
        del subscription

    seen, calls = Gate(), 0

    def fails(event: ts.Event) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            seen.open()
        raise ZeroDivisionError("in the callback")

    client.open(agent)
    await client.post("/s/turns", {"input": 1})
    told = await client.events()
    assert kinds(told).count("progress") == calls == 3
    assert [frame.data["code"] for frame in told if frame.event == "warning"] == ["subscriber_failed"], "said once"
    end = told[-1].data
    assert (end["status"], end["text"], end["subscriber_failures"]) == ("completed", "goes on", 3)
    assert (await client.get())[1]["subscriber_failures"] == 3
    assert "in the callback" not in json.dumps([frame.data for frame in told])


async def test_edge_44_a_redaction_hook_that_fails_hides_the_event_and_is_said(client: Client) -> None:
    def fails(event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] == "progress":
            raise ZeroDivisionError
        return event

    session = client.open(redact=fails)
    with session.turn() as turn:
        turn.emit("progress", stage="plan")
        turn.emit("text_delta", text="goes on")
    seen = await client.events()
    assert [frame.data["data"]["type"] for frame in seen if frame.event == "custom"] == ["progress"]
    assert session.statistics()["redaction_failures"] == 1
    assert seen[-1].data["text"] == "goes on"


async def test_edge_45_what_json_cannot_say_is_a_placeholder_and_the_stream_goes_on(client: Client) -> None:
    session = client.open()
    cycle: list[Any] = []
    cycle.append(cycle)
    values = {"bytes": b"abc", "set": {1}, "nan": float("nan"), "object": object(), "cycle": cycle}
    with session.turn() as turn:
        turn.emit("custom", name="x", data=values)
        turn.emit("text_delta", text="goes on")
    seen = await client.events()
    (data,) = [frame.data["data"] for frame in seen if frame.event == "custom"]
    data["cycle"] = data["cycle"][0]
    names = {"bytes": "bytes", "set": "set", "nan": "NaN", "object": "object", "cycle": "cycle"}
    assert {key: value["$unserializable"] for key, value in data.items()} == names
    assert seen[-1].data["text"] == "goes on"


async def test_edge_46_the_end_comes_in_order_and_counts_what_was_delivered(client: Client) -> None:
    """Everything is drained and closed, then the fallback message, then the agent's own last words, then the end."""

    async def agent(turn: ts.Turn) -> str:
        turn.emit("round_start")
        turn.emit("stage_start", stage="plan")
        if turn.input == "spoke":
            turn.emit("text_delta", message_id="m", text="half")
        turn.emit("tool_call_delta", call_id="c", text="{}")
        turn.emit("custom", name="reward", data=1)
        turn.emit("custom", name="log", data="https://logs.example/1")
        return "fallback"

    session = client.open(agent)
    closing = ["tool_call", "round_end", "stage_end"]
    for said, last, origin in [
        ("spoke", ["assistant_message", *closing, "completion"], "provider"),
        ("silent", [*closing, "assistant_message", "completion"], "fallback"),
    ]:
        made = (await client.post("/s/turns", {"input": said}))[1]
        seen = await client.events(after=made["cursor"])
        assert [kind for kind in kinds(seen) if kind in last] == last
        assert kinds(seen).index("custom") < kinds(seen).index(last[0])
        (message,) = [frame.data for frame in seen if frame.event == "assistant_message"]
        assert (message["origin"], seen[-1].data["text"]) == (origin, message["text"])
        assert seqs(seen)[-1] == session.head
        assert seen[-1].data["events"] == len(seqs(seen))


async def test_edge_47_a_look_takes_no_seq_and_the_cap_holds_for_the_whole(client: Client) -> None:
    session = client.open(limits=ts.Limits(max_message_bytes=10))
    with session.turn() as turn:
        turn.emit("text_delta", message_id="m", text="0123456")
        head = session.head
        for path in ("/s", "/s/messages", "/s/result"):
            await client.get(path)
        assert session.head == head
        turn.emit("assistant_message", message_id="m", text="0123456789ab")
    seen = await client.events()
    assert text(seen) == "0123456789"
    assert [frame.data["text"] for frame in seen if frame.event == "assistant_message"] == ["0123456789"]
    assert [frame.data["code"] for frame in seen if frame.event == "warning"] == ["message_truncated"]


# --- streams and replay -----------------------------------------------------------------------------------------------


async def test_edge_48_who_comes_late_gets_all_and_the_end(client: Client) -> None:
    client.open()
    session = finished(client.hub)
    seen = await client.events()
    assert is_whole(seen, session)
    assert text(seen) == "".join(WORDS)


async def test_edge_49_a_slow_client_gets_all_52(client: Client) -> None:
    session = client.open()
    with session.turn() as turn, frozen(client.base, "/sessions/s/events?deltas=exact") as slow:
        slow.recv(1)
        for number in range(49):
            turn.emit("custom", {"name": "part", "data": [number, "x" * 50_000]})
        turn.emit("text_delta", message_id="m", text="end")
        turn.complete()
        fast = await client.events()
        body = await asyncio.to_thread(_read_slowly, slow)
    names = re.findall(rb"\nid: \w+\.(\d+)\r?\n", body)
    assert [int(name) for name in names] == seqs(fast) == list(range(1, session.head + 1))
    assert session.head == 54
    assert b"event: gap" not in body


def _read_slowly(client: Any) -> bytes:
    body = b""
    while not body.endswith(b"0\r\n\r\n"):
        piece = client.recv(65_536)
        assert piece, "a plain end"
        body += piece
    return re.sub(rb"\r\n[0-9a-f]+\r\n", b"", body)


async def test_edge_50_a_slow_client_delays_no_other(client: Client) -> None:
    session = client.open()
    with session.turn() as turn, frozen(client.base, "/sessions/s/events") as slow:
        slow.recv(1)
        for _ in range(100):
            turn.emit("custom", {"name": "part", "data": "x" * 100_000})
        turn.complete()
        start = asyncio.get_running_loop().time()
        seen = await client.events()
        assert asyncio.get_running_loop().time() - start < 5
        assert is_whole(seen, session)
        assert session.statistics()["readers"] == 1
        body = await asyncio.to_thread(_read_slowly, slow)
    assert b"event: completion" in body


async def test_edge_51_a_resume_goes_on_with_the_next_and_a_page_skips_nothing(client: Client) -> None:
    client.open()
    session = finished(client.hub)
    for after in (0, 1, 17, session.head - 1):
        seen = await client.events(after=f"{session.epoch}.{after}")
        assert seqs(seen) == list(range(after + 1, session.head + 1))
    pages: list[int] = []
    while len(pages) < session.head:
        pages += seqs(await client.events(after=f"{session.epoch}.{len(pages)}", limit=7))
    assert pages == list(range(1, session.head + 1))


async def test_edge_52_every_cursor_gets_an_honest_answer(client: Client) -> None:
    session = client.open(limits=ts.Limits(max_events=10))
    finished(client.hub, words=["w"] * 30)
    with session.turn() as turn:
        for number in range(20):
            turn.emit("custom", {"name": "part", "data": number})
    status, body = await client.get("/s/events", after=f"{session.epoch}.1", on_trim="fail")
    error = body["error"]
    assert (status, error["code"]) == (410, "cursor_expired")
    assert (error["earliest"], error["head"]) == (session.earliest, session.head)
    seen = await client.events(after=f"{session.epoch}.1")
    assert (seen[0].data["status"], seen[0].data["earliest"]) == ("trimmed", session.earliest)
    assert seqs(seen)[0] == session.earliest
    assert (await client.events(after=f"{session.epoch}.999", follow="none"))[0].data["status"] == "ahead"
    assert (await client.get("/s/events", after="garbage"))[0] == 400
    assert session.statistics()["readers"] == 0
    fresh = client.hub.session("fresh")
    with fresh.turn():
        pass
    assert is_whole(await client.events("fresh", after="0"), fresh)


async def test_edge_53_at_the_limit_all_is_there_and_one_past_it_a_snapshot(client: Client) -> None:
    session = client.open(limits=ts.Limits(max_events=5))
    assert (await client.get())[1]["earliest"] is None
    assert (await client.events(follow="none"))[0].data["earliest"] is None
    turn = session.turn()
    for number in range(4):
        turn.emit("custom", {"name": "part", "data": number})
    seen = await client.events(follow="none", after="0")
    assert (kinds(seen)[:2], seqs(seen)) == (["stream_open", "turn_start"], [1, 2, 3, 4, 5])
    turn.emit("custom", {"name": "part"})
    seen = await client.events(follow="none", after="0")
    assert (kinds(seen)[:2], seqs(seen)) == (["stream_open", "snapshot"], [2, 3, 4, 5, 6])
    turn.complete()


@pytest.mark.parametrize("max_events", [5, 1000], ids=["trimmed", "whole"])
async def test_edge_54_what_comes_between_opening_and_reading_comes_once(
    client: Client, serve: Serve, max_events: int
) -> None:
    """The interleaving is forced: the response is held right after its reader was opened, while more is said."""
    hub = ts.Hub(limits=ts.Limits(max_events=max_events))
    session, opened, go_on = hub.session("s"), Gate(), Gate()
    inner = app(hub)

    async def held(scope: Scope, receive: Any, send: Any) -> None:
        async def slow(message: Any) -> None:
            if message["type"] == "http.response.start":
                opened.open()
                await go_on.passed()
            await send(message)

        await inner(scope, receive, slow)

    client.base = serve(held, lifespan="off")
    turn = session.turn()
    for number in range(8):
        turn.emit("custom", {"name": "part", "data": number})
    reading = asyncio.create_task(client.events(after=f"{session.epoch}.1"))
    await opened.passed()
    turn.emit("custom", {"name": "between"})  # of the small log the oldest that the snapshot left has gone with it
    turn.complete()
    go_on.open()
    seen = await reading
    if max_events == 1000:
        assert seqs(seen) == list(range(2, session.head + 1))
        assert "gap" not in kinds(seen)
        return
    assert kinds(seen)[:2] == ["stream_open", "snapshot"]
    announced = [range(frame.data["first"], frame.data["last"] + 1) for frame in seen if frame.event == "gap"]
    told = [seen[1].data["head"], *(number for gap in announced for number in gap), *seqs(seen)]
    assert told == list(range(told[0], session.head + 1)), "each is in the snapshot, in the gap, or there, once"


async def test_edge_55_finished_deleted_and_restarted(client: Client) -> None:
    client.open()
    session = finished(client.hub)
    assert is_whole(await client.events(), session)
    before = session.cursor
    assert (await client.http.delete(f"{client.base}/sessions/s")).status_code == 204
    status, body = await client.get("/s/events")
    assert (status, body["error"]["code"]) == (404, "unknown_session")
    client.open()  # in memory, a restart is another life
    finished(client.hub)
    seen = await client.events(after=before)
    assert seen[0].data["status"] == "other_epoch"
    assert text(seen) == "".join(WORDS)


async def test_edge_56_only_what_is_logged_moves_the_cursor(client: Client) -> None:
    session = client.open(limits=ts.Limits(max_events=5), heartbeat_s=0.05)
    turn = session.turn()
    for number in range(8):
        turn.emit("custom", {"name": "part", "data": number})
    cursor = f"{session.epoch}.1"
    url = f"{client.base}/sessions/s/events"
    for want in ("stream_open", "snapshot", ":"):
        async with client.http.stream("GET", url, params={"after": cursor}) as response:
            body, seen = b"", list[Seen]()
            async for piece in response.aiter_raw():
                body += piece
                whole = body[: body.rfind(b"\n\n") + 2] if want != ":" else body
                seen = parse(whole) if whole.endswith((b"\n\n", b"\n")) else []
                if want in kinds(seen):
                    break
            first = kinds(seen).index(want)
            assert seen[first].id is None
            assert (want == ":") or all(frame.id is None for frame in seen[: first + 1])
    turn.complete()


async def test_edge_57_silence_has_heartbeats_and_the_end_has_none(client: Client) -> None:
    """That they never feed the stall watchdog: test_policy.py, test_a_stall_is_said_…"""
    session = client.open(heartbeat_s=0.05)
    turn = session.turn()
    async with client.http.stream("GET", f"{client.base}/sessions/s/events") as response:
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if body.count(b": heartbeat progress_age_s=") == 3 and not turn.ended:
                turn.complete()
    assert parse(body)[-1].event == "completion"
    assert body.endswith(b"\n\n")


async def test_edge_58_what_could_not_be_stored_nobody_sees(client: Client, tmp_path: Path) -> None:
    """The file takes no block of that size. The turn's work is stopped, the seq is given to what comes instead, and
    what the work still says is refused with the reason."""
    refusals: list[ts.StoreError] = []
    tried: list[int] = []
    following, stopped = Gate(), Gate()

    async def agent(turn: ts.Turn) -> None:
        turn.emit("text_delta", message_id="m", text="stored")
        await following.passed()
        tried.append(turn.emit("custom", name="lost", data="x" * 4_000_000))
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            try:
                turn.emit("custom", name="lost too")
            except ts.StoreError as refused:
                refusals.append(refused)
            stopped.open()

    session = client.open(agent, store=f"sqlite:///{tmp_path}/runs.db?max_bytes=1000000&lease_s=1")
    await client.post("/s/turns", {"input": 1})
    seen: list[Seen] = []
    async with client.http.stream("GET", f"{client.base}/sessions/s/events") as response:
        async for frame in frames(response):
            seen.append(frame)
            if frame.event == "text_delta":
                following.open()
    await stopped.passed()
    assert [(type(refused), refused.code) for refused in refusals] == [(ts.StoreFull, "store_full")]
    assert tried == [4]
    assert seqs(seen) == list(range(1, session.head + 1))
    instead = next(frame.data for frame in seen if frame.data.get("seq") == tried[0])
    assert (instead["type"], instead["code"]) == ("error", "store_full")
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("failed", "stored")
    everywhere = [await client.get(path) for path in ("/s", "/s/messages", "/s/result", "/s/poll")]
    assert "lost" not in json.dumps([everywhere, [frame.data for frame in await client.events()]])
    again = ts.Hub(f"sqlite:///{tmp_path}/runs.db").find("s")
    assert [event.seq for event in again.read(follow="none")] == seqs(seen)


async def test_edge_58_a_store_that_takes_nothing_is_a_503(client: Client, tmp_path: Path) -> None:
    session = client.open(endless, store=f"sqlite:///{tmp_path}/runs.db?lease_s=1")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as file:
        file.execute("CREATE TRIGGER no BEFORE INSERT ON blocks BEGIN SELECT RAISE(ABORT, 'no'); END")
        file.commit()
        status, body = await client.post("/s/turns", {"input": 1, "client_id": "c"})
        assert (status, body["error"]["code"]) == (503, "store_failed")
        assert (await client.get())[1]["head"] == session.head == 0
        file.execute("DROP TRIGGER no")
        file.commit()
    status, body = await client.post("/s/turns", {"input": 1, "client_id": "c"})
    assert (status, body["turn"]) == (202, 1)
    assert (await client.post("/s/cancel", {}))[0] == 202
    assert seqs(await client.events()) == [1, 2]


async def test_an_event_source_outlives_a_store_that_is_away(client: Client, tmp_path: Path) -> None:
    """Whose sessions are not in memory, as after a restart: a 503 would end it for good."""
    file = tmp_path / "runs.db"
    with ts.Hub(f"sqlite:///{file}").session("kept").turn("x") as turn:
        turn.emit("text_delta", text="kept")
    client.open(store=f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE sessions RENAME TO away")
        other.commit()
        url = f"{client.base}/sessions/kept/events"
        refused = await client.http.get(url)
        assert (refused.status_code, refused.json()["error"]["code"][:5]) == (503, "store")
        sent_away = await client.http.get(url, headers={"accept": "text/event-stream"})
        assert (sent_away.status_code, sent_away.content[:7]) == (200, b"retry: ")
        (close,) = parse(sent_away.content)
        assert (close.event, close.data["reason"]) == ("stream_close", refused.json()["error"]["code"])
        other.execute("ALTER TABLE away RENAME TO sessions")
        other.commit()
    assert text(parse((await client.http.get(url, headers={"accept": "text/event-stream"})).content)) == "kept"


async def test_edge_59_who_leaves_in_silence_is_gone_at_once(client: Client) -> None:
    """The shutdown with idle clients: test_asgi.py, test_shutdown_with_idle_and_busy_clients."""
    session = client.open()
    with frozen(client.base, "/sessions/s/events"):
        await until(lambda: session.statistics()["readers"] == 1)
    await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)


async def test_edge_60_streams_are_read_by_the_standard() -> None:
    text = "\ufeffid: 1\r\nevent: é\rdata: a\ndata:b\r\n: comment\nunknown: x\n\r\ndata: last\n"
    for size in (1, 2, 3, 1000):
        decoder = ts.SSEDecoder(lenient=True)
        data = text.encode()
        read = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
        assert [(frame.event, frame.data, frame.id) for frame in read] == [("é", "a\nb", "1")]
        assert [frame.data for frame in decoder.finish()] == ["last"]
    fold = ts.fold(b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"x"}}]}\n\ndata: {"id"')
    assert fold.text == "x"
    assert [warning["code"] for warning in fold.warnings] or fold.error


async def test_edge_61_at_the_limit_is_read_and_one_past_it_refused(client: Client) -> None:
    line = b"data: 1234"
    for decoder in (ts.SSEDecoder(max_line_bytes=len(line)), ts.SSEDecoder(max_event_bytes=len(line))):
        assert [frame.data for frame in decoder.feed(line + b"\n\n")] == ["1234"]
    with pytest.raises(ts.FrameTooLong) as refused:
        ts.SSEDecoder(max_line_bytes=len(line) - 1).feed(line + b"\n\n")
    assert refused.value.code == "frame_too_long"

    client.open(lambda turn: None, max_body_bytes=40_000)
    sessions = f"{client.base}/sessions"

    async def post(body: bytes, **headers: str) -> tuple[int, str]:
        response = await client.http.post(sessions, content=body, headers=headers)
        return response.status_code, response.json().get("error", {}).get("code", "")

    def of(**fields: Any) -> bytes:
        return json.dumps(fields).encode()

    size = 40_000 - len(of(input=""))
    assert await post(of(input="x" * size)) == (201, "")
    assert await post(of(input="x" * (size + 1))) == (413, "body_too_long")
    size = MAX_METADATA_BYTES - 2
    assert await post(of(input=1, metadata="x" * size)) == (201, "")
    assert await post(of(input=1, metadata="x" * (size + 1))) == (422, "bad_body")
    for field, at_most, code in [("client_id", 256, "bad_body"), ("session_id", 128, "bad_session_id")]:
        assert await post(of(input=1, **{field: "x" * at_most})) == (201, "")
        assert await post(of(input=1, **{field: "x" * (at_most + 1)})) == (422, code)
    assert await post(of(input=1), **{"idempotency-key": "x" * 256}) == (201, "")
    assert await post(of(input=1), **{"idempotency-key": "x" * 257}) == (400, "bad_header")
    nested = [b'{"input": ' + b"[" * depth + b"]" * depth + b"}" for depth in (MAX_DEPTH - 1, MAX_DEPTH)]
    assert [await post(body) for body in nested] == [(201, ""), (422, "too_deep")]


async def test_edge_62_names_on_the_wire_are_the_literal_ones(client: Client) -> None:
    client.open()
    finished(client.hub, words=["w"])
    seen = await client.events()
    assert kinds(seen) == [
        "stream_open",
        "turn_start",
        "message_start",
        "text_delta",
        "assistant_message",
        "completion",
    ]
    assert all(frame.event == frame.data["type"] for frame in seen)


async def test_edge_63_the_finished_answer_for_their_time_and_the_running_stay(client: Client) -> None:
    running = client.open(limits=ts.Limits(hub_max_events=200, max_events=10_000))
    turn = running.turn()
    ended = finished(client.hub, "ended")
    paths = ("/ended", "/ended/result", "/ended/messages")
    assert [(await client.get(path))[0] for path in paths] == [200] * 3
    assert is_whole(await client.events("ended"), ended)
    for number in range(300):
        turn.emit("custom", {"name": "part", "data": number})
    assert [(await client.get(path))[0] for path in paths] == [404] * 3  # room was needed
    assert running.head == 301
    turn.complete()
    client.open(limits=ts.Limits(max_age_s=0.4))
    over, answer = finished(client.hub, "aged").status()["updated"] + 400, 200
    while answer == 200:  # to the millisecond, however long an answer takes
        asked = time.time() * 1000
        answer = (await client.get("/aged"))[0]
        assert asked < over + 1 if answer == 200 else time.time() * 1000 > over, answer
    assert answer == 404


async def test_edge_64_no_follow_ends_and_who_joins_in_the_middle_gets_the_beginning(client: Client) -> None:
    session = client.open(limits=ts.Limits(max_events=5))
    with session.turn() as turn:
        for word in WORDS[:20]:
            turn.emit("text_delta", {"message_id": "m1", "text": word})
        joined = await client.events(follow="none")
        (message,) = joined[1].data["state"]["messages"]
        assert joined[1].event == "snapshot"
        assert (message["message_id"], message["done"]) == ("m1", False)
        assert message["text"] + text(joined) == "".join(WORDS[:20])
        # In another format the segment is opened anew under its own id, told so far, and goes on.
        query = {"format": "ag-ui", "follow": "none", "after": f"{session.epoch}.{session.head - 1}"}
        part = await client.http.get(f"{client.base}/sessions/s/events", params=query)
        turn.emit("text_delta", {"message_id": "m1", "text": "more"})
    said = [json.loads(line[6:]) for line in part.text.splitlines() if line.startswith("data: ")]
    told = [each for each in said if each["type"].startswith("TEXT_MESSAGE")]
    assert {each["messageId"] for each in told} == {"m1"}
    assert [each["type"] for each in told[:2]] == ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT"]
    assert "".join(each.get("delta", "") for each in told) == "".join(WORDS[:20])
    seen = await client.events(follow="none")
    assert (kinds(seen)[1], seen[-1].event) == ("snapshot", "completion")
    whole = finished(client.hub, "whole", words=["a"])
    assert is_whole(await client.events("whole", follow="none"), whole)
