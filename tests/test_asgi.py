"""Sessions over HTTP, by clients on real sockets. `I1` to `I5` are the invariants of turnstream.asgi."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from support import AT_ONCE_S, PATIENCE_S, WORDS, Gate, Seen, finished, frames, parse, seqs, speak, text, until, within

import turnstream as ts
from turnstream.asgi import EventStream, HTTPError, Scope, StreamQuery, app
from turnstream.asgi.shutdown import before_stop_signals
from turnstream.errors import TurnEnded

Serve = Callable[..., str]


async def get_events(http: httpx.AsyncClient, base: str, session: str = "s", **query: Any) -> list[Seen]:
    response = await http.get(f"{base}/sessions/{session}/events", params=query)
    assert response.status_code == 200, response.text
    return parse(response.content)


def whole(seen: list[Seen]) -> None:
    """All of a turn: opened, in order, its text whole, ended once."""
    assert seen[0].event == "stream_open"
    assert seen[1].event == "turn_start"
    assert text(seen) == "".join(WORDS)
    assert [frame.event for frame in seen].count("completion") == 1
    assert seen[-1].event == "completion"


def code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error["message"]
    return str(error["code"])


# --- readers ----------------------------------------------------------------------------------------------------------


async def test_late_client_gets_every_event_and_the_end(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    base = serve(app(hub))
    exact = await get_events(http, base, deltas="exact")
    whole(exact)
    assert seqs(exact) == list(range(1, len(exact)))
    merged = await get_events(http, base)
    whole(merged)
    assert len(merged) < len(exact)
    assert merged[-1].id == exact[-1].id


async def test_early_client_and_two_at_once(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    base = serve(app(hub))
    early = [asyncio.create_task(get_events(http, base, deltas="exact")) for _ in range(2)]
    await until(lambda: session.statistics()["readers"] == 2)
    with session.turn("say it") as turn:
        speak(turn, WORDS[:25])
        middle = asyncio.create_task(get_events(http, base, deltas="exact"))
        await until(lambda: session.statistics()["readers"] == 3)
        speak(turn, WORDS[25:])
    for seen in await asyncio.gather(*early, middle):
        whole(seen)
        assert seqs(seen) == list(range(1, len(seen)))


async def test_reconnect_in_mid_run_goes_on_with_the_next(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    url = f"{serve(app(hub))}/sessions/s/events"
    before: list[Seen] = []
    with session.turn("say it") as turn:
        speak(turn, WORDS[:25])
        async with http.stream("GET", url, params={"deltas": "exact"}) as response:
            async for frame in frames(response):
                before.append(frame)
                if len(before) == 10:
                    break
        speak(turn, WORDS[25:])
    cursor = before[-1].id
    assert cursor is not None
    response = await http.get(url, params={"deltas": "exact"}, headers={"last-event-id": cursor})
    after = parse(response.content)
    assert after[0].data["status"] == "resumed"
    assert seqs(after)[0] == seqs(before)[-1] + 1
    assert text(before) + text(after) == "".join(WORDS)
    by_query = parse((await http.get(url, params={"deltas": "exact", "after": cursor})).content)
    assert [frame.data for frame in by_query[1:]] == [frame.data for frame in after[1:]]


async def test_limit_pages_through_without_a_hole(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = finished(hub)
    url = f"{serve(app(hub))}/sessions/s/events"
    cursor, seen = "0", []
    while (response := await http.get(url, params={"after": cursor, "limit": 7, "deltas": "exact"})).status_code == 200:
        page = parse(response.content)[1:]
        assert 0 < len(page) <= 7
        seen += page
        cursor = str(page[-1].id)
    assert response.status_code == 204
    assert seqs(seen) == list(range(1, session.head + 1))


@pytest.mark.parametrize("follow", ["turn", "none"])
async def test_204_after_the_end(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, follow: str) -> None:
    session = finished(hub)
    url = f"{serve(app(hub))}/sessions/s/events"
    ends = {"last-event-id": session.cursor}
    response = await http.get(url, params={"follow": follow}, headers=ends)
    assert (response.status_code, response.content) == (204, b"")
    # As an EventSource does that was opened with a cursor: the URL's is old, the header's is new.
    response = await http.get(url, params={"follow": follow, "after": f"{session.epoch}.1"}, headers=ends)
    assert response.status_code == 204


async def test_the_cursor_of_a_new_turn_is_never_answered_204(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    base = serve(app(hub, agent=lambda turn: f"answer {turn.number}"))
    made = (await http.post(f"{base}/sessions", json={"input": "one"})).json()
    url = f"{base}/sessions/{made['session_id']}"
    first = parse((await http.get(f"{url}/events", params={"after": made["cursor"]})).content)
    assert first[-1].data["text"] == "answer 1"
    second = (await http.post(f"{url}/turns", json={"input": "two"})).json()
    assert (second["turn"], second["cursor"]) == (2, first[-1].id)
    again = parse((await http.get(f"{url}/events", params={"after": second["cursor"]})).content)
    assert (again[1].event, again[1].data["input"]) == ("turn_start", "two")
    assert again[-1].data["text"] == "answer 2"


async def test_the_later_of_two_cursors_counts() -> None:
    def after(query: str, header: str) -> str | None:
        headers = [(b"last-event-id", header.encode())] if header else []
        return StreamQuery.of({"query_string": query.encode(), "headers": headers}).after

    assert after("", "") is None
    assert after("after=", "") is None
    assert after("after=e.3", "") == "e.3"
    assert after("", "e.3") == "e.3"
    assert after("after=e.3", "e.20") == "e.20"
    assert after("after=e.20", "e.3") == "e.20"
    assert after("after=old.20", "new.3") == "new.3"
    assert after("after=0", "e.3") == "e.3"
    assert after("after=garbage", "e.3") == "garbage"
    assert after("after=e.3", "garbage") == "garbage"


async def test_heartbeats_in_silence_and_none_after_the_end(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    base = serve(app(hub, heartbeat_s=0.05))
    with ExitStack() as running:
        turn = running.enter_context(session.turn("say it"))
        async with http.stream("GET", f"{base}/sessions/s/events") as response:
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if body.count(b"\n:") >= 2 and not turn.ended:
                    speak(turn, ["hello"])
                    running.close()
    seen = parse(body)
    assert seen[0].event == "stream_open"
    assert seen[0].data["heartbeat_s"] == 0.05
    assert [frame.event for frame in seen].count(":") >= 2
    assert seen[-1].event == "completion"


async def test_a_stock_client_reads_it(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    async with aconnect_sse(http, "GET", f"{serve(app(hub))}/sessions/s/events") as source:
        seen = [event async for event in source.aiter_sse()]
    assert seen[0].event == "stream_open"
    assert json.loads(seen[-1].data)["type"] == seen[-1].event == "completion"


async def test_the_wire(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = finished(hub)
    response = await http.get(f"{serve(app(hub, retry_ms=1500))}/sessions/s/events")
    assert response.headers["content-type"] in ("text/event-stream", "text/event-stream; charset=utf-8")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.content.startswith(b"retry: 1500\n")
    assert b"\r" not in response.content
    assert response.content.endswith(b"\n\n")
    for frame in parse(response.content):
        assert frame.event == frame.data["type"]
        durable = frame.event != "stream_open"
        assert frame.id == (f"{session.epoch}.{frame.data['seq']}" if durable else None)


async def test_ndjson(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = finished(hub)
    response = await http.get(f"{serve(app(hub))}/sessions/s/events", params={"format": "ndjson", "deltas": "exact"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[0]["type"] == "stream_open"
    assert [line["seq"] for line in lines[1:]] == list(range(1, session.head + 1))
    assert lines[-1]["type"] == "completion"


async def test_one_session_never_shows_in_another(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    mine, other = finished(hub, "mine"), finished(hub, "other", ["secret"])
    base = serve(app(hub))
    seen = await get_events(http, base, "mine", after=other.cursor)
    assert seen[0].data["status"] == "other_epoch"
    assert {frame.data["session"] for frame in seen} == {"mine"}
    assert seqs(seen)[-1] == mine.head


async def test_a_trimmed_cursor(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = ts.Hub(limits=ts.Limits(max_events=10))
    session = hub.session("s")
    for number in range(5):
        with session.turn(number) as turn:
            for part in range(5):
                turn.emit("custom", {"name": "part", "data": part})
    url = f"{serve(app(hub))}/sessions/s/events"
    old = f"{session.epoch}.1"
    response = await http.get(url, params={"after": old, "on_trim": "fail"})
    assert (response.status_code, code(response)) == (410, "cursor_expired")
    assert response.json()["error"]["earliest"] == session.earliest
    assert response.json()["error"]["cursor"] == session.cursor
    assert session.statistics()["readers"] == 0
    seen = parse((await http.get(url, params={"after": old})).content)
    assert [frame.event for frame in seen[:2]] == ["stream_open", "snapshot"]
    assert seen[0].data["status"] == "trimmed"
    assert [frame.id for frame in seen[:2]] == [None, None]
    assert seen[-1].event == "completion"


# --- one response: sends, disconnects, shutdown -----------------------------------------------------------------------


def scope(path: str, method: str = "GET", query: str = "") -> Scope:
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": []}


async def never() -> dict[str, Any]:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def test_all_that_is_ready_goes_out_in_one_send(hub: ts.Hub) -> None:
    """I1."""
    session = finished(hub)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await EventStream(session)(scope("/", query="deltas=exact"), never, send)
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 2
    whole(parse(sent[1]["body"]))
    assert (sent[2]["body"], sent[2].get("more_body", False)) == (b"", False)


async def test_an_idle_stream_keeps_nothing_of_what_it_has_sent(hub: ts.Hub) -> None:
    """A late client's last chunk may be 64 KiB."""
    session = finished(hub)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body"))

    stream = asyncio.create_task(EventStream(session)(scope("/", query="follow=session"), never, send))
    await until(lambda: len(sent) == 2)
    await asyncio.sleep(0)
    references = sys.getrefcount(sent[1])
    assert references == 2  # the list's, and the call's
    assert b"completion" in sent[1]
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)


async def test_a_response_leaves_nothing_behind(hub: ts.Hub) -> None:
    """I3: ended, left by its client, cancelled, or with a client that can no longer be written to."""
    session = hub.session("s")
    gone = asyncio.Event()

    async def send(message: Any) -> None:
        if gone.is_set():
            raise OSError("the client has left")

    async def disconnect() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    def open_stream(receive: Any) -> asyncio.Task[None]:
        return asyncio.create_task(EventStream(session)(scope("/"), receive, send))

    alone = asyncio.all_tasks()
    for how in ("disconnect", "cancel", "write"):
        gone.clear()
        stream = open_stream(disconnect if how == "disconnect" else never)
        await until(lambda: session.statistics()["readers"] == 1)
        await asyncio.sleep(0)
        if how == "cancel":
            stream.cancel()
        gone.set()
        if how == "write":
            session.emitter()("custom", {"name": "news"})
        await asyncio.wait([stream], timeout=AT_ONCE_S)
        assert stream.done(), how
        assert stream.cancelled() == (how == "cancel")
        assert stream.cancelled() or stream.exception() is None
        assert asyncio.all_tasks() == alone, how
        await until(lambda: session.statistics()["readers"] == 0)
        del stream


async def test_leaving_frees_the_reader_and_stops_nothing(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """I5."""
    gate = Gate()

    async def agent(turn: ts.Turn) -> str:
        await gate.passed()
        return "done"

    base = serve(app(hub, agent=agent))
    made = (await http.post(f"{base}/sessions", json={"input": "go", "session_id": "s"})).json()
    session = hub.find("s")
    async with http.stream("GET", f"{base}/sessions/s/events") as response:
        async for frame in frames(response):
            if frame.event == "turn_start":
                break
        assert session.status()["readers"] == 1
    await until(lambda: session.status()["readers"] == 0, patience_s=AT_ONCE_S)
    assert session.status()["state"] == "running"
    gate.open()
    seen = await get_events(http, base, after=made["cursor"])
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("completed", "done")


async def test_a_client_that_reads_nothing_holds_nobody_up(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    base = serve(app(hub))
    address = httpx.URL(base)
    with socket.create_connection((address.host, address.port)) as stuck:
        stuck.sendall(b"GET /sessions/s/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: session.statistics()["readers"] == 1)
        with session.turn("much") as turn:
            for _ in range(200):
                turn.emit("custom", {"name": "part", "data": "x" * 100_000})
        seen = await get_events(http, base)
        assert len(seen) == 200 + 3
        assert session.statistics()["readers"] == 1
    await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)


SERVER = """
import asyncio, socket, sys, time
import turnstream as ts, uvicorn
from turnstream.asgi import app

hub = ts.Hub()
hub.session("idle")

async def agent(turn):
    while True:
        turn.emit("custom", {"name": "tick"})
        await asyncio.sleep(0.01)

def blocking_agent(turn):
    turn.emit("custom", {"name": "tick"})
    time.sleep(60)

application = app(hub, agent=agent)
if sys.argv[1] == "fastapi":
    import fastapi, turnstream.fastapi
    application = fastapi.FastAPI()
    application.include_router(turnstream.fastapi.router(hub, agent=blocking_agent))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(application, log_level="warning", loop=sys.argv[2])).run(sockets=[listener])
"""


async def kill(server: asyncio.subprocess.Process) -> None:
    if server.returncode is None:
        server.kill()
    await server.wait()


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def stop_signal(request: pytest.FixtureRequest) -> signal.Signals:
    return signal.Signals(request.param)


@pytest.mark.parametrize("face", ["asgi", "fastapi"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_shutdown_with_idle_and_busy_clients(
    http: httpx.AsyncClient, stop_signal: signal.Signals, face: str, loop: str
) -> None:
    """I4: uvicorn as it comes, which waits for open responses for ever."""
    command = [sys.executable, "-c", SERVER, face, loop]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{(await server.stdout.readline()).decode().strip()}"
        made = (await http.post(f"{base}/sessions", json={"input": "go"})).json()
        opened = asyncio.Queue[None]()

        async def follow(session: str, kind: str) -> list[Seen]:
            seen: list[Seen] = []
            async with http.stream("GET", f"{base}/sessions/{session}/events", params={"follow": kind}) as response:
                async for frame in frames(response):
                    if not seen:
                        opened.put_nowait(None)
                    seen.append(frame)
            return seen

        clients = [("idle", "turn"), ("idle", "session"), (made["session_id"], "turn"), (made["session_id"], "session")]
        following = [asyncio.create_task(follow(*client)) for client in clients]
        for _ in following:
            await asyncio.wait_for(opened.get(), PATIENCE_S)
        with within(3):
            server.send_signal(stop_signal)
            status = await asyncio.wait_for(server.wait(), PATIENCE_S)
        assert status in (0, -stop_signal, 128 + stop_signal, 1 if stop_signal == signal.SIGINT else 0)
        idle, idle_session, busy, busy_session = await asyncio.gather(*following)
        for told in (idle, idle_session, busy_session):
            assert (told[-1].event, told[-1].data["reason"]) == ("stream_close", "shutdown")
        assert busy[-1].event == "completion"
        assert (busy[-1].data["status"], busy[-1].data["reason"]) == ("cancelled", "shutdown")
    finally:
        await kill(server)


async def test_shutdown_lets_agents_clean_up_once(hub: ts.Hub) -> None:
    """Also one that has ended its turn and goes on."""
    cleaned: list[Any] = []

    async def agent(turn: ts.Turn) -> None:
        if turn.input == "early":
            turn.complete("done")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(turn.input)

    application = app(hub, agent=agent)
    async with application.lifespan():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            for which in ("early", "late"):
                await http.post("/sessions", json={"input": which, "session_id": which})
            await until(lambda: hub.find("early").result() is not None and hub.find("late").head > 0)
    assert sorted(cleaned) == ["early", "late"]
    ends = {which: hub.find(which).result() or {} for which in ("early", "late")}
    assert (ends["early"]["status"], ends["late"]["status"]) == ("completed", "cancelled")


async def test_a_server_hears_of_a_signal_once_its_clients_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would close sockets at once. A second signal is the server's alone; a stop that hangs holds it up briefly."""
    heard: list[int] = []
    begun: list[float] = []
    ends, never = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(end: asyncio.Event) -> Callable[[], asyncio.Task[None]]:
        async def stopping() -> None:
            begun.append(loop.time())
            await end.wait()

        return lambda: loop.create_task(stopping())

    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        for end in (ends, never):
            heard.clear()
            begun.clear()
            monkeypatch.setattr("turnstream.asgi.shutdown.HAND_ON_S", 0.05 if end is never else 3600)
            with before_stop_signals(loop, stop(end)):
                signal.raise_signal(signal.SIGTERM)
                await until(lambda: len(begun) == 1)
                if end is ends:
                    assert not heard
                    ends.set()
                await until(lambda: heard == [signal.SIGTERM])
                signal.raise_signal(signal.SIGTERM)
                assert heard == [signal.SIGTERM] * 2
            signal.raise_signal(signal.SIGTERM)
            assert (len(heard), len(begun)) == (3, 1)
    finally:
        signal.signal(signal.SIGTERM, before)
        never.set()
        await asyncio.sleep(0)


async def test_who_comes_while_the_server_stops(hub: ts.Hub) -> None:
    """An EventSource is let in and sent away, to come back to the next server; on a 503 it would give up."""
    session = hub.session("s")
    application = app(hub, agent=lambda turn: None)
    await application.shutdown()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x") as http:
        response = await http.get("/sessions/s/events")
        assert response.status_code == 200
        assert (last := parse(response.content)[-1]).event == "stream_close"
        assert (last.data["reason"], last.id) == ("shutdown", None)
        refused = await http.post("/sessions/s/turns", json={"input": 1})
        assert (refused.status_code, code(refused)) == (503, "shutting_down")
        async with application.lifespan():
            assert (await http.post("/sessions/s/turns", json={"input": 1})).status_code == 202
    assert session.statistics()["readers"] == 0


async def test_a_cancelled_server_task_frees_its_readers(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """A server without signals, as in a thread, ends its streams by cancelling them."""
    session = hub.session("s")
    running: list[asyncio.Task[None]] = []
    inner = app(hub)

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        running.append(asyncio.current_task())  # type: ignore[arg-type]
        await inner(scope, receive, send)

    base = serve(application, lifespan="off")

    async def follow() -> None:
        async with http.stream("GET", f"{base}/sessions/s/events") as response:
            async for _ in frames(response):
                running[0].get_loop().call_soon_threadsafe(running[0].cancel)

    with pytest.raises(httpx.HTTPError):
        await follow()
    await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)


# --- agents -----------------------------------------------------------------------------------------------------------


async def run(serve: Serve, http: httpx.AsyncClient, agent: Any) -> list[Seen]:
    base = serve(app(ts.Hub(), agent=agent))
    made = (await http.post(f"{base}/sessions", json={"input": {"q": 1}, "session_id": "s"})).json()
    return await get_events(http, base, after=made["cursor"], deltas="exact")


async def coroutine_agent(turn: ts.Turn) -> dict[str, str]:
    assert turn.input == {"q": 1}
    return {"text": "hello"}


def plain_agent(turn: ts.Turn) -> str:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()  # a plain function may block: it has a thread of its own
    return "hello"


async def generator_agent(turn: ts.Turn) -> AsyncIterator[Any]:
    yield "hel"
    yield {"type": "progress", "stage": "plan", "current": 1}
    yield "lo"


def plain_generator_agent(turn: ts.Turn) -> Iterator[Any]:
    yield ts.TextDelta(text="hel")
    yield {"type": "progress", "stage": "plan", "current": 1}
    yield "lo"


class ObjectAgent:
    async def __call__(self, turn: ts.Turn) -> Any:
        return type("Result", (), {"text": "hello"})()


@pytest.mark.parametrize(
    "agent",
    [coroutine_agent, plain_agent, generator_agent, plain_generator_agent, ObjectAgent(), lambda turn: "hello"],
    ids=["async", "plain", "async-generator", "generator", "object", "lambda"],
)
async def test_what_an_agent_may_be(serve: Serve, http: httpx.AsyncClient, agent: Any) -> None:
    seen = await run(serve, http, agent)
    kinds = [frame.event for frame in seen]
    assert kinds.count("assistant_message") == kinds.count("completion") == 1
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("completed", "hello")
    assert ("progress" in kinds) == ("generator" in getattr(agent, "__name__", ""))


async def test_what_an_agent_returns_is_only_the_fallback(serve: Serve, http: httpx.AsyncClient) -> None:
    async def agent(turn: ts.Turn) -> str:
        speak(turn, ["said"])
        return "returned"

    seen = await run(serve, http, agent)
    assert [frame.data["text"] for frame in seen if frame.event == "assistant_message"] == ["said"]


async def raises(turn: ts.Turn) -> None:
    speak(turn, ["half"])
    raise ValueError("broken")


def raises_in_a_thread(turn: ts.Turn) -> None:
    speak(turn, ["half"])
    raise StopIteration("broken")  # the one exception that no future takes


async def leaves(turn: ts.Turn) -> None:
    speak(turn, ["half"])
    sys.exit("broken")


async def yields_rubbish(turn: ts.Turn) -> AsyncIterator[Any]:
    yield "half"
    yield 7


@pytest.mark.parametrize("agent", [raises, raises_in_a_thread, leaves, yields_rubbish])
async def test_an_agent_that_fails(
    serve: Serve, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, agent: Any
) -> None:
    seen = await run(serve, http, agent)
    assert text(seen) == "half"
    kinds = [frame.event for frame in seen]
    assert kinds.count("error") == kinds.count("completion") == 1
    assert kinds[-1] == "completion"
    assert (seen[-1].data["status"], seen[-1].data["text"]) == ("failed", "half")
    assert "the agent failed" in caplog.text


async def test_cancel(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    stopped = Gate()

    async def agent(turn: ts.Turn) -> None:
        speak(turn, ["half"])
        try:
            await asyncio.sleep(60)
        finally:
            stopped.open()

    base = serve(app(hub, agent=agent))
    url = f"{base}/sessions/s"
    await http.post(f"{base}/sessions", json={"session_id": "s"})
    response = await http.post(f"{url}/cancel")
    assert (response.status_code, code(response)) == (409, "turn_ended")
    await http.post(f"{url}/turns", json={"input": "go"})
    await until(lambda: hub.find("s").head >= 2)
    first, second = await http.post(f"{url}/cancel", json={"reason": "enough"}), await http.post(f"{url}/cancel")
    assert (first.status_code, first.json()) == (202, {"state": "cancelled", "turn": 1})
    assert (second.status_code, second.json()) == (202, {"state": "cancelled", "turn": 1})
    await stopped.passed()
    seen = await get_events(http, base)
    assert [frame.event for frame in seen].count("completion") == 1
    ended = seen[-1].data
    assert (ended["status"], ended["reason"], ended["text"]) == ("cancelled", "enough", "half")
    finished(hub, "over")
    response = await http.post(f"{base}/sessions/over/cancel")
    assert (response.status_code, code(response)) == (409, "turn_ended")


async def test_cancel_reaches_a_plain_agent_at_its_next_emit(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    go, ended = Gate(), Gate()

    def agent(turn: ts.Turn) -> None:
        go.wait()
        try:
            speak(turn, ["late"])
        except TurnEnded:
            ended.open()

    base = serve(app(hub, agent=agent))
    await http.post(f"{base}/sessions", json={"session_id": "s", "input": "go"})
    assert (await http.post(f"{base}/sessions/s/cancel")).status_code == 202
    go.open()
    await ended.passed()
    assert text(await get_events(http, base)) == ""


# --- routes -----------------------------------------------------------------------------------------------------------


async def test_turns_are_idempotent(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    gate, started = Gate(), []

    async def agent(turn: ts.Turn) -> None:
        started.append(turn.number)
        await gate.passed()

    base = serve(app(hub, agent=agent))
    url = f"{base}/sessions/s/turns"
    await http.post(f"{base}/sessions", json={"session_id": "s"})
    body = {"input": {"a": 1, "b": [2]}, "client_id": "c1"}
    first, again = await asyncio.gather(http.post(url, json=body), http.post(url, json=body))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json() == {"turn": 1, "cursor": f"{hub.find('s').epoch}.0"}
    other = await http.post(url, json={"input": "other", "client_id": "c1"})
    assert (other.status_code, code(other)) == (409, "conflict")
    busy = await http.post(url, json={"input": "other", "client_id": "c2"})
    assert (busy.status_code, code(busy)) == (409, "turn_active")
    gate.open()
    await get_events(http, base)
    assert (await http.post(url, json=body)).json() == first.json()
    assert started == [1]


async def test_status_messages_and_result(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    base = serve(app(hub, listing=True))
    url = f"{base}/sessions/s"
    assert (await http.get(f"{url}/result")).status_code == 202
    with session.turn("say it") as turn:
        speak(turn, ["half"])
        running = await http.get(f"{url}/result")
        assert (running.status_code, running.json()) == (202, {"state": "running", "turn": 1})
        said = (await http.get(f"{url}/messages")).json()["messages"]
        assert (said[-1]["text"], said[-1]["done"]) == ("half", False)
        status = (await http.get(url)).json()
        assert (status["session_id"], status["state"], status["cursor"]) == ("s", "running", session.cursor)
    result = await http.get(f"{url}/result")
    assert (result.status_code, result.json()["status"], result.json()["text"]) == (200, "completed", "half")
    listed = (await http.get(f"{base}/sessions")).json()["sessions"]
    assert [entry["session_id"] for entry in listed] == ["s"]


async def test_create(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, agent=lambda turn: None))
    made = await http.post(f"{base}/sessions")
    assert made.status_code == 201
    body = made.json()
    assert body == {"session_id": body["session_id"], "turn": None, "cursor": hub.find(body["session_id"]).cursor}
    assert made.headers["location"] == f"/sessions/{body['session_id']}"
    named = await http.post(f"{base}/sessions", json={"session_id": "a-B_3.x", "input": 0, "metadata": {"k": 1}})
    assert (named.json()["session_id"], named.json()["turn"]) == ("a-B_3.x", 1)
    seen = await get_events(http, base, "a-B_3.x")
    assert (seen[1].data["input"], seen[1].data["metadata"]) == (0, {"k": 1})
    taken = await http.post(f"{base}/sessions", json={"session_id": "a-B_3.x"})
    assert (taken.status_code, code(taken)) == (409, "session_exists")
    kept = (await http.post(f"{base}/sessions", json={"metadata": {"k": 1}})).json()
    assert (await get_events(http, base, kept["session_id"], follow="none"))[1].data["data"] == {"k": 1}


async def test_who_comes_second_leaves_the_session_to_the_first(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests make one session in two processes: who finds the other's turn running takes nothing away."""

    async def start(session: ts.Session, **_: Any) -> None:
        raise ts.TurnActive(f"session {session.id}: turn 1 is running")

    application = app(hub, agent=lambda turn: None)
    monkeypatch.setattr(application._runner, "start", start)
    made = await http.post(f"{serve(application)}/sessions", json={"session_id": "s", "input": "hi"})
    assert (made.status_code, made.json()["error"]["code"]) == (409, "turn_active")
    assert hub.find("s").head == 0


async def test_delete_cancels_and_ends_the_readers(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    stopped = Gate()

    async def agent(turn: ts.Turn) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.open()

    base = serve(app(hub, agent=agent))
    await http.post(f"{base}/sessions", json={"session_id": "s", "input": "go"})
    session = hub.find("s")
    following = asyncio.create_task(get_events(http, base, follow="session"))
    await until(lambda: session.statistics()["readers"] == 1)
    assert (await http.delete(f"{base}/sessions/s")).status_code == 204
    await stopped.passed()
    assert [frame.event for frame in await following][-2:] == ["completion", "session_end"]
    for method, path in [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        gone = await http.request(method, f"{base}/sessions/s{path}")
        assert (gone.status_code, code(gone)) == (404, "unknown_session")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("follow=all", "follow"),
        ("format=xml", "format"),
        ("deltas=some", "deltas"),
        ("on_trim=x", "on_trim"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=²", "limit"),
        ("limit=99999999999999999999", "limit"),
    ],
)
async def test_bad_queries(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, query: str, parameter: str) -> None:
    finished(hub)
    response = await http.get(f"{serve(app(hub))}/sessions/s/events?{query}")
    assert (response.status_code, code(response)) == (400, "bad_query")
    assert response.json()["error"]["parameter"] == parameter


@pytest.mark.parametrize("cursor", ["garbage", "a.b", "a.-1", "1", "e.99999999999999999999999", "é.1", "a.1.2"])
async def test_malformed_cursors(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, cursor: str) -> None:
    """I2."""
    session = finished(hub)
    url = f"{serve(app(hub))}/sessions/s/events"
    by_query = await http.get(url, params={"after": cursor})
    by_header = await http.get(url, headers=[(b"last-event-id", cursor.encode())])
    for response in (by_query, by_header):
        assert (response.status_code, code(response)) == (400, "malformed_cursor")
        assert response.headers["content-type"] == "application/json"
    assert session.statistics()["readers"] == 0


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"{", 400, "bad_json"),
        (b"\xff", 400, "bad_json"),
        (b"[" * 100_000, 400, "bad_json"),
        (b'{"input": NaN}', 400, "bad_json"),
        (b'{"input": ' + b"[" * 100 + b"]" * 100 + b"}", 422, "too_deep"),
        (b'{"input": ' + b'{"a":[' * 50 + b"]}" * 50 + b"}", 422, "too_deep"),
        (b"[]", 422, "bad_body"),
        (b"{}", 422, "bad_body"),
        (b'{"input": null}', 422, "bad_body"),
        (b'{"input": 1, "client_id": 7}', 422, "bad_body"),
        (b'{"input": 1, "client_id": ""}', 422, "bad_body"),
        (b'{"input": 1, "client_id": "\\ud800"}', 422, "bad_body"),  # half a character
        (b'{"input": "' + b"x" * 2000 + b'"}', 413, "body_too_long"),
    ],
)
async def test_bad_bodies(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, *, content: bytes, status: int, word: str
) -> None:
    session = hub.session("s")
    limit = 2000 if status == 413 else 1 << 20
    base = serve(app(hub, agent=lambda turn: None, max_body_bytes=limit))
    response = await http.post(f"{base}/sessions/s/turns", content=content)
    assert (response.status_code, code(response)) == (status, word)
    assert session.head == 0


@pytest.mark.parametrize(
    "value", ['"\\ud800"', "[" * 99 + "]" * 99, "1e400", "1" * 4000, '"\\u0000"', '{"a": 1, "a": 2}']
)
async def test_odd_inputs_stop_nothing(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, value: str) -> None:
    async def agent(turn: ts.Turn) -> str:
        assert turn.input == json.loads(value)
        return "fine"

    base = serve(app(hub, agent=agent))
    body = '{"session_id": "s", "input": ' + value + "}"
    assert (await http.post(f"{base}/sessions", content=body)).status_code == 201
    assert (await get_events(http, base))[-1].data["text"] == "fine"
    assert (await http.get(f"{base}/sessions/s/messages")).status_code == 200


async def test_a_session_that_could_not_start_is_not_left_behind(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    base = serve(app(hub, agent=lambda turn: None))
    assert (await http.post(f"{base}/sessions", json={"input": 1, "client_id": 7})).status_code == 422
    showing = serve(app(hub))
    for path, body in [
        ("/sessions", {"input": 1, "session_id": "s"}),
        ("/ai-sdk", {"id": "s", "messages": [{"id": "m", "role": "user"}]}),
        ("/ag-ui", {"threadId": "s", "runId": "r", "messages": []}),
        ("/v1/responses", {"model": "m", "input": "x"}),
    ]:
        response = await http.post(showing + path, json=body)
        assert (response.status_code, code(response)) == (501, "no_agent")
    for path, body in [("/ai-sdk", {"id": "s", "messages": []}), ("/ag-ui", {"threadId": "s", "messages": []})]:
        assert (await http.post(base + path, json=body)).status_code == 422
    assert hub.sessions() == []


async def test_the_idempotency_key_is_the_client_id_where_the_body_has_none(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    started: list[Any] = []

    def agent(turn: ts.Turn) -> str:
        started.append(turn.input)
        return "done"

    base = serve(app(hub, agent=agent, auth=lambda scope: dict(scope["headers"]).get(b"x-user", b"").decode()))
    key, other = {"idempotency-key": "k-1", "x-user": "ann"}, {"idempotency-key": "k-1", "x-user": "bob"}
    url = f"{base}/sessions"
    first = await http.post(url, json={"input": 1}, headers=key)
    again = await http.post(url, json={"input": 1}, headers=key)
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    changed = await http.post(url, json={"input": 2}, headers=key)
    assert (changed.status_code, code(changed)) == (409, "conflict")
    bobs = await http.post(url, json={"input": 1}, headers=other)
    assert bobs.json()["session_id"] != first.json()["session_id"], "a key is its owner's alone"
    await until(lambda: len(started) == 2)

    turns = f"{url}/{first.json()['session_id']}/turns"
    await until(lambda: hub.find(first.json()["session_id"]).result() is not None)
    key["idempotency-key"] = "k-2"
    second = await http.post(turns, json={"input": 3}, headers=key)
    assert (second.status_code, second.json()["turn"]) == (202, 2)
    await until(lambda: len(started) == 3)
    assert (await http.post(turns, json={"input": 3}, headers=key)).json() == second.json()
    await until(lambda: hub.find(first.json()["session_id"]).status()["state"] == "completed")
    theirs = {"input": 3, "client_id": "mine"}  # the body's own goes first
    assert (await http.post(turns, json=theirs, headers=key)).json()["turn"] == 3

    empty = [(await http.post(url, json={"metadata": 1}, headers={**key, "idempotency-key": "e"})) for _ in range(2)]
    assert empty[0].json() == empty[1].json()
    assert hub.find(empty[0].json()["session_id"]).head == 1
    response = await http.post(url, json={"input": 1}, headers={**key, "idempotency-key": "k" * 257})
    assert (response.status_code, code(response)) == (400, "bad_header")


async def test_the_auth_hook_hears_of_the_session_that_a_body_names(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    def auth(scope: Scope) -> bool:
        return not scope["path_params"].get("session_id", "").startswith("hers")

    base = serve(app(hub, agent=lambda turn: None, auth=auth))
    for path, body in [
        ("/sessions", {"session_id": "hers-1"}),
        ("/ai-sdk", {"id": "hers-1", "messages": [{"id": "m", "role": "user"}]}),
        ("/ag-ui", {"threadId": "hers-1", "runId": "r", "messages": []}),
    ]:
        assert (await http.post(base + path, json=body)).status_code == 401
    assert hub.sessions() == []


@pytest.mark.parametrize("session_id", ["", ".", "..", ".a", "a b", "a/b", "é", "a" * 129, "a:1", "a\n"])
async def test_session_ids_have_a_strict_alphabet(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, session_id: str
) -> None:
    base = serve(app(hub))
    response = await http.post(f"{base}/sessions", json={"session_id": session_id})
    assert response.status_code == 422
    assert hub.sessions() == []
    if session_id not in ("", ".", "..", "a/b", "a\n"):
        hub.session(session_id)
        assert (await http.get(f"{base}/sessions/{session_id}")).status_code == 404


async def test_methods_and_paths(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    base = serve(app(hub))
    for path in ("/", "/session", "/sessions//", "/sessions/s/other", "/x/sessions"):
        response = await http.get(base + path)
        assert (response.status_code, code(response)) == (404, "not_found"), path
    assert (await http.get(f"{base}/sessions/s/")).status_code == 200, "a mount may end every path in a slash"
    response = await http.put(f"{base}/sessions/s")
    assert (response.status_code, code(response)) == (405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    response = await http.get(f"{base}/sessions")
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")  # the list is off
    response = await http.options(f"{base}/sessions/s/events")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"
    response = await http.head(f"{base}/sessions/s")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/json"
    response = await http.head(f"{base}/sessions/s/events")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (await http.head(f"{base}/sessions/s/events", params={"after": "x"})).status_code == 400
    response = await http.post(f"{base}/sessions/s/turns", json={"input": 1})
    assert (response.status_code, code(response)) == (501, "no_agent")


async def test_mounted_below_a_path(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    base = serve(app(hub), root_path="/api")
    assert (await http.get(f"{base}/sessions/s")).status_code == 200


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_the_auth_hook_guards_every_route(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, face: str) -> None:
    finished(hub)
    asked: list[dict[str, str]] = []

    def auth(scope: Scope) -> str | None:
        asked.append(scope["path_params"])
        who = dict(scope["headers"]).get(b"authorization", b"").decode()
        if who == "eve":
            raise PermissionError
        if who == "bug":
            raise ZeroDivisionError
        if who == "late":
            raise HTTPError(401, "expired", "log in again", since=1)
        return who or None

    async def async_auth(scope: Scope) -> str | None:
        await asyncio.sleep(0)
        return auth(scope)

    base = serve(app(hub, agent=lambda turn: None, auth=auth if face == "sync" else async_auth, listing=True))
    routes = [
        ("POST", "/sessions"),
        ("GET", "/sessions"),
        ("GET", "/sessions/s"),
        ("DELETE", "/sessions/s"),
        ("POST", "/sessions/s/turns"),
        ("GET", "/sessions/s/events"),
        ("GET", "/sessions/s/messages"),
        ("GET", "/sessions/s/result"),
        ("POST", "/sessions/s/cancel"),
        ("GET", "/sessions/unknown"),
    ]
    for method, path in routes:
        for who, expected in [("", (401, "unauthorized")), ("eve", (403, "forbidden")), ("late", (401, "expired"))]:
            response = await http.request(method, base + path, headers={"authorization": who} if who else {})
            assert (response.status_code, code(response)) == expected
    assert len(hub.sessions()) == 1
    assert (await http.get(f"{base}/sessions/s", headers={"authorization": "bug"})).status_code == 403
    asked.clear()
    assert (await http.get(f"{base}/sessions/s", headers={"authorization": "ann"})).status_code == 200
    assert asked == [{"session_id": "s"}]


async def test_a_failure_of_ours_is_a_500_in_json(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = app(hub)

    def find(request: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(application, "find", find)
    response = await http.get(f"{serve(application)}/sessions/s")
    assert (response.status_code, code(response)) == (500, "internal")
    assert "secret" not in response.text


# --- another server ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_granian(http: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(
        "import turnstream as ts\n"
        "from turnstream.asgi import app\n"
        "async def agent(turn):\n"
        "    for i in range(50):\n"
        "        yield f'w{i} '\n"
        "application = app(ts.Hub(), agent=agent)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-ws", "--log-level", "warning", "served:application"]
    server = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
    try:
        async with asyncio.timeout(PATIENCE_S):
            listening = False
            while not listening:
                try:
                    listening = (await http.get(f"{base}/sessions/none")).status_code == 404
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)  # the server says nowhere that it listens
        made = (await http.post(f"{base}/sessions", json={"input": "go", "session_id": "s"})).json()
        seen = await get_events(http, base, after=made["cursor"])
        whole(seen)
        ended = await http.get(f"{base}/sessions/s/events", headers={"last-event-id": str(seen[-1].id)})
        assert ended.status_code == 204
        idle = (await http.post(f"{base}/sessions")).json()["session_id"]
        async with http.stream("GET", f"{base}/sessions/{idle}/events") as response:
            async for frame in frames(response):
                assert frame.event == "stream_open"
                break
            with within(3):
                server.terminate()
                await asyncio.wait_for(server.wait(), PATIENCE_S)
    finally:
        await kill(server)
