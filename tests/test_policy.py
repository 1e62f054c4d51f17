"""What becomes of clients that leave, freeze or come in crowds, of secrets, and of turns that say nothing."""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import AT_ONCE_S, Gate, Seen, finished, frames, frozen, parse, seqs, until
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream._native import write_batch
from turnstream.asgi import Policy, Scope, app

Serve = Callable[..., str]


async def endless(turn: ts.Turn) -> None:
    await asyncio.Event().wait()


async def first(http: httpx.AsyncClient, url: str, **options: Any) -> Seen:
    """The first event of a stream that is left after it."""
    async with http.stream("GET", url, **options) as response:
        async for frame in frames(response):
            if frame.id is not None:
                return frame
    raise AssertionError("the stream ended")


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_leaving_may_cancel(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """Only when the last of them has left, and never a turn that nobody has read."""
    base = serve(app(hub, endless, policy=Policy(on_disconnect="cancel")))
    for name in ("read", "unread"):
        await http.post(f"{base}/sessions", json={"input": 1, "session_id": name})
    url = f"{base}/sessions/read/events"
    async with http.stream("GET", url) as other:
        reading = frames(other)
        await anext(reading)
        await first(http, url)
        session = hub.find("read")
        await until(lambda: session.statistics()["readers"] == 1)
        assert session.status()["state"] == "running"
    await until(lambda: session.status()["state"] == "cancelled")
    assert (session.result() or {})["reason"] == "disconnected"
    assert hub.find("unread").status()["state"] == "running"


@pytest.mark.parametrize("path", ["/sessions/s/ws", "/ai-sdk/ws"])
async def test_leaving_a_socket_may_cancel(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, path: str) -> None:
    base = serve(app(hub, endless, policy=Policy(on_disconnect="cancel")))
    await http.post(f"{base}/sessions", json={"input": 1, "session_id": "s"})
    session = hub.find("s")
    async with connect(f"ws{base[4:]}{path}", proxy=None) as client:
        if path == "/ai-sdk/ws":
            await client.send('{"type":"resume","requestId":"r","id":"s"}')
        await client.recv()
        await until(lambda: session.statistics()["readers"] == 1)
        assert session.status()["state"] == "running"
    await until(lambda: session.status()["state"] == "cancelled")
    assert (session.result() or {})["reason"] == "disconnected"


async def test_who_comes_back_within_the_grace_keeps_the_turn(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    policy = Policy(on_disconnect="cancel", disconnect_grace_s=0.5)
    base = serve(app(hub, endless, policy=policy))
    await http.post(f"{base}/sessions", json={"input": 1, "session_id": "s"})
    session, url = hub.find("s"), f"{base}/sessions/s/events"
    loop = asyncio.get_running_loop()
    before = loop.time()
    seen = await first(http, url)
    left = loop.time()
    async with http.stream("GET", url, headers={"last-event-id": str(seen.id)}) as response:
        await anext(reading := frames(response))
        came_back = loop.time() - before < 0.4  # else a machine this slow has made the point moot
        await asyncio.sleep(0.7)
        assert session.status()["state"] == "running" or not came_back
    await until(lambda: session.status()["state"] == "cancelled")
    assert loop.time() - left > 0.5
    del reading  # a generator that is let go closes its response


# --- crowds -----------------------------------------------------------------------------------------------------------


def by_header(scope: Scope) -> dict[str, str] | None:
    """Claims, as a token's reader gives them: a dict, which is no key."""
    name = dict(scope["headers"]).get(b"x-user", b"").decode()
    return {"sub": name} if name else None


async def test_caps_on_readers(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        hub.session(name)
    policy = Policy(max_readers_per_session=2, max_readers_per_principal=2)
    application = app(hub, auth=by_header, policy=policy)
    base = serve(application)

    def stream(session: str, user: str, **headers: str) -> Any:
        return http.stream("GET", f"{base}/sessions/{session}/events", headers={"x-user": user, **headers})

    async with stream("a", "eve") as one, stream("a", "bob") as two:
        reading = [frames(response) for response in (one, two)]
        for each in reading:
            await anext(each)
        async with stream("a", "mia") as refused:
            await refused.aread()
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_readers")
            assert int(refused.headers["retry-after"]) > 0
        async with stream("b", "eve") as third:
            await anext(reading_too := frames(third))
            assert (await http.get(f"{base}/sessions/b/events", headers={"x-user": "eve"})).status_code == 429
        # An EventSource would give up for good on a 429: it is let in, told, and comes back.
        async with stream("a", "mia", accept="text/event-stream") as source:
            body = await source.aread()
        assert source.status_code == 200
        assert source.headers["content-type"].startswith("text/event-stream")
        assert body.startswith(b"retry: ")
        (told,) = parse(body)
        assert (told.event, told.data["reason"], told.id) == ("stream_close", "too_many_readers", None)
    del reading, reading_too  # a generator that is let go closes its response
    await until(lambda: application.statistics()["streams"] == 0)
    async with stream("a", "mia") as response:
        await anext(frames(response))
    assert application.statistics()["refused"] == 3


async def test_polls_count_among_the_readers(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they wait. Between two polls a client has not left; when none follows, it has."""
    monkeypatch.setattr("turnstream.asgi.poll.LINGER_S", 0.4)
    session = hub.session("s")
    application = app(hub, policy=Policy(max_readers_per_session=1, on_disconnect="cancel"))
    base = serve(application)
    turn = session.turn("go")
    url = f"{base}/sessions/s/poll"
    waiting = asyncio.create_task(http.get(url, params={"after": session.cursor}))
    await until(lambda: application.statistics()["streams"] == 1)
    for path in ("poll", "events"):
        refused = await http.get(f"{base}/sessions/s/{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_readers")
        assert int(refused.headers["retry-after"]) > 0
    turn.emit("custom", name="x")
    cursor = (await waiting).json()["cursor"]
    page = (await http.get(url, params={"after": cursor, "wait_s": 0})).json()
    assert (page["events"], session.status()["state"]) == ([], "running")
    await until(lambda: session.status()["state"] == "cancelled")
    assert (session.result() or {})["reason"] == "disconnected"


async def test_a_cap_refuses_a_run_before_it_starts(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """A client that asks and follows in one request would repeat it, and start another run each time."""
    base = serve(app(hub, endless, auth=by_header, policy=Policy(max_readers_per_principal=1)))
    me = {"x-user": "eve"}
    hub.session("s")
    async with http.stream("GET", f"{base}/sessions/s/events", headers=me) as response:
        await anext(reading := frames(response))
        for path, body in [
            ("/ai-sdk", {"id": "c", "messages": [{"id": "m", "role": "user"}]}),
            ("/ag-ui", {"threadId": "c", "runId": "r", "messages": []}),
            ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/responses", {"model": "m", "input": "x", "stream": True}),
        ]:
            refused = await http.post(base + path, json=body, headers=me)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_readers")
        assert [session.id for session in hub.sessions()] == ["s"]
        background = {"model": "m", "input": "x", "background": True}
        assert (await http.post(f"{base}/v1/responses", json=background, headers=me)).status_code == 200
    del reading


async def test_a_full_hub_refuses_and_says_so(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = ts.Hub(limits=ts.Limits(max_sessions=1))
    base = serve(app(hub, endless))
    await http.post(f"{base}/sessions", json={"input": 1, "session_id": "s"})
    refused = await http.post(f"{base}/sessions", json={"input": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "hub_full")
    assert hub.statistics()["sessions"] == 1


# --- freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_frozen_client_is_cut_and_resumes(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    session = hub.session("s")
    application = app(hub, policy=Policy(write_timeout_s=0.4))
    base = serve(application, loop=loop)
    with session.turn("much") as turn, frozen(base, "/sessions/s/events") as stuck:
        await until(lambda: session.statistics()["readers"] == 1)
        for _ in range(100):
            turn.emit("custom", {"name": "part", "data": "x" * 100_000})
        with caplog.at_level(logging.WARNING, "turnstream"):
            await until(lambda: application.statistics()["cut"] == 1, patience_s=AT_ONCE_S)
            await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)
        with suppress(ConnectionError):
            while piece := stuck.recv(1 << 20):
                assert not piece.endswith(b"0\r\n\r\n"), "the body is whole"
    assert "took nothing for 0.4 s" in caplog.text
    response = await http.get(f"{base}/sessions/s/events", headers={"last-event-id": f"{session.epoch}.50"})
    assert seqs(parse(response.content)) == list(range(51, session.head + 1))


# --- who asks ---------------------------------------------------------------------------------------------------------


async def test_the_agent_knows_who_asked_and_no_event_does(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    asked: list[Any] = []

    def agent(turn: ts.Turn) -> str:
        asked.append(turn.principal)
        return "done"

    base = serve(app(hub, agent, auth=by_header))
    me = {"x-user": "eve-1234"}
    made = (await http.post(f"{base}/sessions", json={"input": 1, "session_id": "s"}, headers=me)).json()
    url = f"{base}/sessions/s/events"
    seen = await http.get(url, params={"after": made["cursor"]}, headers=me)
    assert asked == [{"sub": "eve-1234"}]
    assert b"eve-1234" not in seen.content
    assert "eve-1234" not in json.dumps([hub.find("s").status(), hub.find("s").messages()])
    await http.post(f"{base}/sessions/s/turns", json={"input": 2}, headers={"x-user": "bob"})
    await until(lambda: len(asked) == 2)
    assert asked[1] == {"sub": "bob"}


async def test_auth_is_asked_each_time(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """For the subscription, the resume and each poll: who may no longer look sees nothing more."""
    allowed = True
    session = finished(hub)
    base = serve(app(hub, auth=lambda scope: allowed and scope["path_params"]["session_id"]))
    urls = [f"{base}/sessions/s{path}" for path in ("", "/events", "/messages", "/result")]
    resume = {"last-event-id": f"{session.epoch}.3"}
    assert [(await http.get(url, headers=resume)).status_code for url in urls] == [200] * 4
    allowed = False
    assert [(await http.get(url, headers=resume)).status_code for url in urls] == [401] * 4
    assert "access-control-allow-origin" not in (await http.get(urls[0], headers={"origin": "http://evil"})).headers


async def test_input_has_limits(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, endless))
    url = f"{base}/sessions"
    for body, status in [
        ({"input": 1, "metadata": "x" * 20_000}, 422),
        ({"metadata": ["x" * 20_000]}, 422),
        ({"input": 1, "client_id": "x" * 257}, 422),
        ({"input": json.loads("[" * 40 + "]" * 40), "metadata": {"k": "x" * 1000}}, 201),
        ({"input": '[{"' * 100}, 201),
    ]:
        assert (await http.post(url, json=body)).status_code == status, body
    assert hub.statistics()["sessions"] == 2


# --- secrets ----------------------------------------------------------------------------------------------------------


def without_secrets(event: dict[str, Any]) -> dict[str, Any] | None:
    if event["type"] == "text_delta":
        return None  # a secret may be split over two: the whole message is enough
    if event["type"] == "provider_event":
        raise ValueError("my secret")
    text: dict[str, Any] = json.loads(json.dumps(event).replace("secret", "[removed]"))
    return text


async def test_what_is_redacted_is_stored_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    hub = ts.Hub(redact=without_secrets)
    session = hub.session("s")
    chunk = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
    with suppress(RuntimeError), session.turn({"q": "my secret"}, metadata="secret") as turn:
        message = await turn.relay([chunk % b"my sec", chunk % b"ret", b"data: [DONE]\n\n"], provider="openai-chat")
        assert message.text == "my secret"  # the agent's own copy is whole
        turn.emit("tool_call", call_id="c1", name="f", arguments={"key": "secret"})
        turn.emit("tool_result", call_id="c1", output=["secret"], more="secret")
        turn.emit("provider_event", name="odd", data="secret")
        raise RuntimeError("a secret again")
    session.turn("second").complete("the secret result")
    stored = [event.json() for event in session.read(follow="none")]
    everything = " ".join([*stored, json.dumps([session.status(), session.messages(), session.result()])])
    assert "secret" not in everything
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text
    texts = [event.text for event in session.read(follow="none") if isinstance(event, ts.AssistantMessage)]
    assert texts == ["my [removed]", "the [removed] result"]
    assert [json.loads(event)["data"] for event in stored if "redaction_failed" in event] == [
        {"type": "provider_event"}
    ]
    assert session.statistics()["redaction_failures"] == 1


def test_what_another_process_sends_and_what_a_file_keeps_is_redacted_too(tmp_path: Path) -> None:
    there = ts.Hub().session("there")
    with there.turn() as elsewhere:
        elsewhere.emit("custom", name="n", data="secret")
        blob, _ = write_batch(list(there.read(follow="none"))[1:], "p", 1)
    url = f"sqlite:///{tmp_path}/runs.db"
    hub = ts.Hub(url, redact=without_secrets)
    session = hub.session("s")
    turn = session.turn("my secret")
    _, counts = session.emit_batch(blob)
    assert counts["accepted"] == 1
    turn.complete("the secret result")
    assert hub.flush()
    held = hub.statistics()
    assert (held["sessions"], held["events"]) == (1, session.head)
    again = ts.Hub(url).session("s")
    stored = " ".join(event.json() for event in again.read(follow="none"))
    assert '"custom"' in stored
    assert "secret" not in stored
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    hub.delete("s")
    assert hub.statistics()["events"] == 0


def test_a_full_hub_over_a_file_forgets_what_is_stored_and_finds_it_again(tmp_path: Path) -> None:
    hub = ts.Hub(f"sqlite:///{tmp_path}/runs.db", ts.Limits(max_sessions=2))
    for name in ("a", "b", "c"):
        hub.session(name).turn(name).complete()
        assert hub.flush()
    assert hub.statistics()["sessions"] == 2
    assert hub.find("a").status()["turn"] == 1
    running = [hub.session(name).turn() for name in ("a", "c")]
    with pytest.raises(ts.HubFull):
        hub.session("d")
    assert all(not turn.ended for turn in running)


def test_a_hook_may_look_at_the_session_and_gets_no_header() -> None:
    seen: list[set[str]] = []

    def look(event: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(event))
        assert session.status()["session_id"] == "s"  # no lock is held
        return event

    session = (hub := ts.Hub(redact=look)).session("s")
    with session.turn("x", client_id="c") as turn:
        turn.emit("custom", name="n", data=1, own="field")
    assert seen == [{"type", "input", "client_id"}, {"type", "name", "data", "own"}]
    assert [event.extra for event in session.read() if isinstance(event, ts.Custom)] == [{"own": "field"}]
    assert session.turn("x", client_id="c").started is False
    del hub


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_stall", ["warn", "cancel"])
async def test_a_stall_is_said_and_heartbeats_do_not_feed_it(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, on_stall: Any
) -> None:
    gate = Gate()

    async def agent(turn: ts.Turn) -> str:
        turn.emit("progress", stage="think", current=1, total=2)
        await gate.passed()
        return "done"

    policy = Policy(stall_timeout_s=1, on_stall=on_stall)
    base = serve(app(hub, agent, heartbeat_s=0.05, policy=policy))
    await http.post(f"{base}/sessions", json={"input": 1, "session_id": "s"})
    body = b""
    async with http.stream("GET", f"{base}/sessions/s/events") as response:
        async for piece in response.aiter_raw():
            body += piece
            beats = body.partition(b"event: warning")[2].count(b": heartbeat")
            if beats > 25 and not gate.is_open:  # longer than the timeout: once per stall is once
                gate.open()
    seen = parse(body)
    warnings = [frame.data for frame in seen if frame.event == "warning"]
    assert [warning["code"] for warning in warnings] == ["stalled"]
    assert seen[-1].event == "completion"
    assert (seen[-1].data["status"], seen[-1].data["reason"]) == (
        ("completed", None) if on_stall == "warn" else ("cancelled", "stalled")
    )
    ages = [float(frame.data["comment"].partition("progress_age_s=")[2]) for frame in seen if frame.event == ":"]
    before = ages[: ages.index(max(ages)) + 1]
    assert len(before) > 2
    assert before == sorted(before)
    assert before[-1] >= 0.2


AGE = rb'\n(?:: heartbeat progress_age_s=|{"type":"heartbeat","progress_age_s":)([0-9.]+)}?\n'


@pytest.mark.parametrize("format", ["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"])
async def test_a_heartbeat_says_the_age_in_every_format(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, format: str
) -> None:
    base = serve(app(hub, heartbeat_s=0.05))
    with hub.session("s").turn("go") as turn:
        turn.emit("text_delta", message_id="m", text="one")
        async with http.stream("GET", f"{base}/sessions/s/events", params={"format": format}) as response:
            body, ages = b"", list[bytes]()
            async for piece in response.aiter_raw():
                body += piece
                if len(ages := re.findall(AGE, body)) >= 4:
                    break
    assert [float(age) for age in ages] == sorted(map(float, ages))
    assert float(ages[-1]) > 0


async def test_no_age_between_turns(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    base = serve(app(hub, heartbeat_s=0.05))
    async with http.stream("GET", f"{base}/sessions/s/events?follow=session") as response:
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if body.count(b": heartbeat\n") >= 2:
                break
    assert b"progress_age_s" not in body


def test_a_policy_is_checked() -> None:
    for wrong in ({"on_disconnect": "stop"}, {"write_timeout_s": 0}, {"max_readers_per_session": 0}, {"on_stall": ""}):
        with pytest.raises(ValueError, match="policy"):
            Policy(**wrong)
