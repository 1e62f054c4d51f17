"""Every name and route that others build against, called as an outsider would: these shapes stay.

What each does in all its cases has tests of its own; here stands that it is there, takes what it takes and gives what
it gives.
"""

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import fastapi
import httpx
import pytest
from scripted import OPENAI_CHAT, ScriptedServer
from support import PATIENCE_S, Gate, parse, seqs, until
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream.fastapi import router

Serve = Callable[..., str]
CHAT = b"".join(OPENAI_CHAT)


# --- Python -----------------------------------------------------------------------------------------------------------


def test_providers() -> None:
    assert {"anthropic", "bedrock", "codex", "gemini", "ollama", "openai-chat", "openai-responses"} <= set(
        ts.providers()
    )


def as_bytes() -> Iterator[bytes]:
    yield from OPENAI_CHAT


def as_text() -> Iterator[str]:
    yield from CHAT.decode()


async def as_async() -> AsyncIterator[bytes]:
    for piece in OPENAI_CHAT:
        yield piece


def as_dicts() -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in CHAT.decode().splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("source", [as_bytes, as_text, as_async, as_dicts, lambda: CHAT], ids=lambda one: one.__name__)
@pytest.mark.parametrize("provider", ["openai-chat", "auto"])
async def test_normalize(source: Callable[[], Any], provider: str) -> None:
    events = [event async for event in ts.normalize(source(), provider=provider)]
    assert "".join(event.text for event in events if isinstance(event, ts.TextDelta)) == "Hello €"
    assert "".join(piece.text for piece in ts.normalize(as_bytes()) if isinstance(piece, ts.TextDelta)) == "Hello €"


async def test_normalize_a_response() -> None:
    import aiohttp
    import openai

    with ScriptedServer() as server:
        url = server.script("/v1/chat/completions", list(OPENAI_CHAT))
        async with httpx.AsyncClient() as http, http.stream("GET", url) as response:
            assert (await ts.Hub().session().turn().relay(response, provider="openai-chat")).text == "Hello €"
        async with aiohttp.ClientSession() as web, web.get(url) as answer:
            assert (await ts.Hub().session().turn().relay(answer)).text == "Hello €"
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as api:
            stream = await api.chat.completions.create(model="m", messages=[], stream=True)
            assert (await ts.Hub().session().turn().relay(stream)).text == "Hello €"


def test_sans_io() -> None:
    normalizer = ts.Normalizer("openai-chat")
    events = [event for byte in CHAT for event in normalizer.feed(bytes([byte]))]
    events += normalizer.finish()
    assert [event.type for event in events][-1] in ("assistant_message", "round_end")
    message = ts.fold(CHAT, provider="auto")
    assert isinstance(message, ts.Message)
    assert (message.text, message.reasoning, message.tool_calls, message.usage) == ("Hello €", "", [], None)
    decoder = ts.SSEDecoder()
    (frame,) = decoder.feed(b"id: 7\nretry: 5\nevent: a\ndata: b\n\n")
    assert (frame.event, frame.data, frame.id, frame.retry) == ("a", "b", "7", 5)
    assert (decoder.last_event_id, decoder.retry) == ("7", 5)
    assert decoder.feed(b"data: cut") == decoder.finish() == []
    lenient = ts.SSEDecoder(lenient=True)
    assert [frame.data for frame in lenient.feed(b"data: cut") + lenient.finish()] == ["cut"]


async def test_sessions() -> None:
    hub = ts.Hub(store="memory", limits=ts.Limits(max_events=1000, max_bytes=1_000_000, max_age_s=60))
    session = hub.session("s-42")
    assert hub.session("s-42") == session
    assert len(hub.session().id) >= 22, "nobody guesses it"
    with session.turn(input={"any": ["JSON"]}, backend="api") as turn:
        turn.emit("progress", stage="plan", current=1, total=4)
        message = await turn.relay(as_async(), provider="openai-chat")
    assert message.text == "Hello €"
    assert (turn.input, turn.number, turn.session, turn.cancelled) == ({"any": ["JSON"]}, 1, session, False)
    async with session.turn():
        emit = session.emitter()
        emit("tool_call", {"call_id": "c1", "name": "f", "arguments": {}}, turn=2)
        seq = emit("tool_result", {"call_id": "c1", "output": "…"}, turn=2)
        thread = threading.Thread(target=emit, args=("custom", {"name": "x", "data": 1}))
        thread.start()
        thread.join()
        assert (seq + 1, session.head) == (session.head, session.head)
    first = [event async for event in session.read(after=None, follow="none")]
    assert [event.seq for event in first] == list(range(1, session.head + 1))
    assert [event.type for event in first].count("completion") == 2
    cursor = f"{session.epoch}.3"
    async with session.read(after=cursor, pace=True) as reader:
        batches = [event async for batch in _each(reader.batches(64)) for event in batch]
    assert batches == first[3:]
    assert list(session.read(follow="none")) == first
    told = [session.status(), session.messages(), session.result(), session.statistics()]
    assert [type(value) for value in told] == [dict, list, dict, dict]
    json.dumps(told)
    assert not await session.cancel()
    event = first[0]
    assert (event.type, event.seq, event.turn, event.backend) == ("turn_start", 1, 1, "api")
    assert event.time > 1_700_000_000_000
    assert json.loads(event.json()) == event.to_dict()
    assert "".join(map(shown, first)) == "Hello €"
    for follow in ("turn", "session", "none"):
        session.read(follow=cast("Any", follow)).close()


def shown(event: ts.Event) -> str:
    match event:
        case ts.TextDelta(text=said):
            return said
    return ""


async def _each(batches: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for batch in batches:
        assert 0 < len(batch) <= 64
        yield batch


async def test_queue() -> None:
    for overflow in ("block", "drop_oldest", "drop_newest", "merge", "fail"):
        assert ts.EventQueue(maxsize=1000, overflow=cast("Any", overflow)).overflow == overflow
    queue = ts.EventQueue[Any](maxsize=1000, overflow="block")
    thing = object()
    queue.put(thing)
    queue.put_nowait(2)
    await queue.aput(3)
    assert (queue.get(), queue.get_nowait(), await queue.aget()) == (thing, 2, 3)
    queue.put("x")
    queue.put(None)
    assert [item async for item in queue] == ["x"]
    queue = ts.EventQueue()
    queue.put("y")
    queue.close()
    assert list(queue) == ["y"]


# --- HTTP -------------------------------------------------------------------------------------------------------------


class Served:
    """An application with the router under a prefix, and a client of it."""

    def __init__(self, serve: Serve, http: httpx.AsyncClient) -> None:
        self.hub = ts.Hub()
        self.gate = Gate()
        application = fastapi.FastAPI()
        application.include_router(router(self.hub, agent=self.agent, prefix="/api"))
        self.base = f"{serve(application)}/api"
        self._http = http

    async def agent(self, turn: ts.Turn) -> None:
        turn.emit("text_delta", message_id=f"m{turn.number}", text="Hello")
        if turn.input == "wait":
            await self.gate.passed()
        turn.emit("text_delta", message_id=f"m{turn.number}", text=", world")

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._http.request(method, self.base + path, json=body, headers=named)

    async def started(self, input: Any = "go", session_id: str = "s") -> str:
        made = await self("POST", "/sessions", {"input": input, "session_id": session_id})
        cursor: str = made.json()["cursor"]
        return cursor

    async def finished(self) -> ts.Session:
        await self.started()
        await self("GET", "/sessions/s/events")
        return self.hub.find("s")


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Served]:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        yield Served(serve, http)


def code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert {"code", "message"} <= error.keys()
    return str(error["code"])


async def test_create_and_turns(api: Served) -> None:
    made = await api("POST", "/sessions", {"input": "wait", "metadata": {"k": 1}, "session_id": "mine"})
    assert made.status_code == 201
    assert made.json() == {"session_id": "mine", "turn": 1, "cursor": f"{api.hub.find('mine').epoch}.0"}
    api.gate.open()
    await api("GET", "/sessions/mine/events")
    body = {"input": "go", "client_id": "c"}
    second = await api("POST", "/sessions/mine/turns", body)
    assert (second.status_code, set(second.json())) == (202, {"turn", "cursor"})
    again = await api("POST", "/sessions/mine/turns", body)
    assert (again.status_code, again.json()) == (202, second.json())
    other = await api("POST", "/sessions/mine/turns", {"input": "other", "client_id": "c"})
    assert (other.status_code, code(other)) == (409, "conflict")
    without = await api("POST", "/sessions", {})
    assert (without.status_code, without.json()["turn"]) == (201, None)
    assert len(without.json()["session_id"]) >= 22
    assert (await api("POST", "/sessions/none/turns", {"input": 1})).status_code == 404


async def test_the_sse_frames(api: Served) -> None:
    session = await api.finished()
    response = await api("GET", "/sessions/s/events?deltas=exact")
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n")
    assert lines[0] == "event: stream_open"
    assert lines[1].startswith('data: {"type":"stream_open",')
    assert lines[2] == ""
    assert lines[3:5] == [f"id: {session.epoch}.1", "event: turn_start"]
    assert json.loads(lines[5].removeprefix("data: "))["type"] == "turn_start"
    opened = parse(response.content)[0].data
    assert (opened["status"], opened["epoch"], opened["earliest"], opened["head"], opened["heartbeat_s"]) == (
        *("live", session.epoch, 1, session.head),
        10,
    )
    last = f"{session.epoch}.{session.head}"
    assert (await api("GET", f"/sessions/s/events?after={last}")).status_code == 204
    assert (await api("GET", "/sessions/s/events", last_event_id=last)).status_code == 204
    page = parse((await api("GET", f"/sessions/s/events?after={session.epoch}.1&limit=2&deltas=exact")).content)
    assert seqs(page) == [2, 3]


async def test_every_status_of_stream_open(api: Served) -> None:
    hub = api.hub = ts.Hub(limits=ts.Limits(max_events=6))
    application = fastapi.FastAPI()
    application.include_router(router(hub))
    session = hub.session("s")
    turn = session.turn("x")
    turn.emit("text_delta", message_id="m", text="Hel")
    turn.emit("tool_call_start", call_id="c", name="f")
    turn.emit("progress", stage="plan", current=1, total=2)
    for number in range(8):
        turn.emit("custom", name="n", data=number)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x") as http:

        async def opened(after: str) -> list[Any]:
            seen = parse((await http.get("/sessions/s/events", params={"follow": "none", "after": after})).content)
            assert (seen[0].data["earliest"], seen[0].data["head"]) == (session.earliest, session.head)
            return seen

        epoch, head = session.epoch, session.head
        for after, status, snapshot in [
            (f"{epoch}.{head - 2}", "resumed", False),
            (f"{epoch}.1", "trimmed", True),
            ("other.3", "other_epoch", True),
            (f"{epoch}.{head + 9}", "ahead", True),
        ]:
            seen = await opened(after)
            snapshots = [frame for frame in seen if frame.event == "snapshot"]
            assert (seen[0].data["status"], len(snapshots), after) == (status, snapshot, after)
            assert [frame.id for frame in (seen[0], *snapshots)] == [None] * (1 + snapshot)
        caught_up = await http.get("/sessions/s/poll", params={"after": session.cursor, "wait_s": 0})
        assert caught_up.json()["status"] == "caught_up"
        state = (await opened(f"{epoch}.1"))[1].data["state"]
        assert [message["text"] for message in state["messages"] if message["role"] == "assistant"] == ["Hel"]
        assert [call["call_id"] for call in state["open_calls"]] == ["c"]
        assert state["progress"]["plan"]["current"] == 1
        refused = await http.get("/sessions/s/events", params={"after": f"{epoch}.1", "on_trim": "fail"})
        assert (refused.status_code, code(refused)) == (410, "cursor_expired")
        turn.complete()
        finished = await http.get("/sessions/s/poll", params={"after": session.cursor})
        assert (finished.json()["status"], finished.json()["ended"]) == ("finished", True)
        malformed = await http.get("/sessions/s/events", params={"after": "x"})
        assert (malformed.status_code, code(malformed)) == (400, "malformed_cursor")


@pytest.mark.parametrize("format", ["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"])
async def test_formats(api: Served, format: str) -> None:
    await api.finished()
    response = await api("GET", f"/sessions/s/events?format={format}")
    assert (response.status_code, "Hello" in response.text) == (200, True)
    if format == "ndjson":
        assert json.loads(response.text.split("\n")[0])["type"] == "stream_open"
    else:
        assert response.headers["content-type"].startswith("text/event-stream")


async def test_status_messages_result_cancel_delete(api: Served) -> None:
    await api.started("wait")
    await until(lambda: api.hub.find("s").head >= 3)
    status = (await api("GET", "/sessions/s")).json()
    assert (status["state"], status["turn"], status["readers"]) == ("running", 1, 0)
    assert (status["head"], status["earliest"], status["cursor"]) == (3, 1, f"{status['epoch']}.3")
    assert status["earliest_cursor"] == f"{status['epoch']}.0"
    assert {"progress", "usage", "error"} <= status.keys()
    said = (await api("GET", "/sessions/s/messages")).json()["messages"]
    assert [(message["role"], message.get("text")) for message in said] == [("user", None), ("assistant", "Hello")]
    assert (await api("GET", "/sessions/s/result")).status_code == 202
    for _ in range(2):
        assert (await api("POST", "/sessions/s/cancel")).status_code == 202
    result = await api("GET", "/sessions/s/result")
    assert (result.status_code, result.json()["status"], result.json()["text"]) == (200, "cancelled", "Hello")
    api.gate.open()
    await api.started("go", "t")
    await api("GET", "/sessions/t/events")
    ended = await api("POST", "/sessions/t/cancel")
    assert (ended.status_code, code(ended)) == (409, "turn_ended")
    assert (await api("DELETE", "/sessions/t")).status_code == 204
    for method, path in [("GET", ""), ("GET", "/events"), ("GET", "/messages"), ("GET", "/result"), ("DELETE", "")]:
        gone = await api(method, f"/sessions/t{path}")
        assert (gone.status_code, code(gone)) == (404, "unknown_session")


async def test_websocket_and_a_switch_in_mid_run(api: Served) -> None:
    """One run seen by a socket, then by SSE, then by polling, then by a socket: one cursor, nothing twice."""
    cursor = await api.started("wait")
    epoch = cursor.partition(".")[0]
    url = f"{api.base.replace('http', 'ws')}/sessions/s/ws"
    async with asyncio.timeout(PATIENCE_S):
        async with connect(f"{url}?after={cursor}&deltas=exact") as socket:
            frames = [json.loads(await socket.recv()) for _ in range(3)]
        assert [frame["type"] for frame in frames] == ["stream_open", "turn_start", "message_start"]
        seen = [frame["seq"] for frame in frames[1:]]
        page = parse((await api("GET", f"/sessions/s/events?limit=1&deltas=exact&after={epoch}.{seen[-1]}")).content)
        seen += seqs(page)
        api.gate.open()
        polled = (await api("GET", f"/sessions/s/poll?limit=1&deltas=exact&after={epoch}.{seen[-1]}")).json()
        seen += [event["seq"] for event in polled["events"]]
        async with connect(f"{url}?follow=turn&after={polled['cursor']}&deltas=exact") as socket:
            frames = [json.loads(text) async for text in socket]
        seen += [frame["seq"] for frame in frames if "seq" in frame]
        assert (frames[-1]["type"], seen) == ("completion", list(range(1, len(seen) + 1)))
        async with connect(url) as socket:
            await socket.send(json.dumps({"type": "input", "input": "again"}))
            while (told := json.loads(await socket.recv()))["type"] != "reply":
                pass
            assert told == {"type": "reply", "to": "input", "turn": 2, "cursor": f"{epoch}.{seen[-1]}"}


async def test_routes_of_other_clients(api: Served) -> None:
    question = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    ai_sdk = await api("POST", "/ai-sdk", {"id": "chat", "messages": [question], "trigger": "submit-message"})
    assert ai_sdk.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert ai_sdk.text.endswith("data: [DONE]\n\n")
    assert (await api("GET", "/ai-sdk/chat/stream")).status_code == 204
    ag_ui = await api("POST", "/ag-ui", {"threadId": "t", "runId": "r", "messages": []})
    kinds = [json.loads(line[6:])["type"] for line in ag_ui.text.splitlines() if line.startswith("data: ")]
    assert (kinds[0], kinds[-1]) == ("RUN_STARTED", "RUN_FINISHED")
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    streamed = await api("POST", "/v1/chat/completions", {**chat, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    whole = (await api("POST", "/v1/chat/completions", chat)).json()
    assert whole["choices"][0]["message"]["content"] == "Hello, world"
    response = (await api("POST", "/v1/responses", {"model": "m", "input": "Hi"})).json()
    assert (await api("GET", f"/v1/responses/{response['id']}")).json() == response
    events = await api("GET", f"/v1/responses/{response['id']}?stream=true&starting_after=3")
    assert '"sequence_number":4' in events.text.partition("\n\n")[0]


async def test_auth_errors(serve: Serve) -> None:
    def auth(scope: Any) -> str | None:
        who = dict(scope["headers"]).get(b"authorization", b"").decode()
        if who == "mallory":
            raise PermissionError
        return who or None

    base = serve(ts.asgi.app(ts.Hub(), auth=auth))
    async with httpx.AsyncClient(base_url=base) as http:
        for headers, status, word in [
            ({}, 401, "unauthorized"),
            ({"authorization": "mallory"}, 403, "forbidden"),
            ({"authorization": "ann"}, 404, "unknown_session"),
        ]:
            response = await http.get("/sessions/s/events", headers=headers)
            assert (response.status_code, code(response)) == (status, word)


def test_the_routers_arguments() -> None:
    parameters = inspect.signature(ts.fastapi.router).parameters
    assert list(parameters)[:2] == ["hub", "agent"]
    assert parameters["prefix"].default == ""
