"""A session over a WebSocket, with the `websockets` client over a real socket, under uvicorn and granian."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import fastapi
import pytest
import websockets
from fastapi.requests import HTTPConnection
from support import PATIENCE_S, WORDS, Gate, finished, is_reset, speak, until, within
from test_asgi import kill
from websockets.asyncio.client import ClientConnection, connect

import turnstream as ts
from turnstream.asgi import HTTPError, Policy, Scope, app
from turnstream.fastapi import router

Serve = Callable[..., str]
Frame = dict[str, Any]


@asynccontextmanager
async def socket(base: str, path: str, **options: Any) -> AsyncGenerator[ClientConnection]:
    async with asyncio.timeout(2 * PATIENCE_S):
        async with connect(base.replace("http", "ws", 1) + path, proxy=None, **options) as client:
            yield client


async def frame(client: ClientConnection) -> Frame:
    async with asyncio.timeout(PATIENCE_S):
        read: Frame = json.loads(await client.recv())
        return read


async def frames_until(client: ClientConnection, last: str) -> list[Frame]:
    seen = [await frame(client)]
    while seen[-1]["type"] != last:
        seen.append(await frame(client))
    return seen


async def rest(client: ClientConnection) -> list[Frame]:
    """All frames up to the close."""
    seen = []
    async with asyncio.timeout(PATIENCE_S):
        with suppress(websockets.ConnectionClosed):
            while True:
                seen.append(json.loads(await client.recv()))
    return seen


async def say(client: ClientConnection, type: str, **fields: Any) -> None:
    await client.send(json.dumps({"type": type} | fields))


async def reply(client: ClientConnection) -> Frame:
    return (await frames_until(client, "reply"))[-1]


def text(seen: list[Frame]) -> str:
    return "".join(frame["text"] for frame in seen if frame["type"] == "text_delta")


def seqs(seen: list[Frame]) -> list[int]:
    return [frame["seq"] for frame in seen if "seq" in frame]


async def agent(turn: ts.Turn) -> None:
    speak(turn, WORDS)


async def test_input_and_events_over_one_socket(serve: Serve, hub: ts.Hub) -> None:
    hub.session("s")
    async with socket(serve(app(hub, agent)), "/sessions/s/ws") as client:
        opened = await frame(client)
        assert (opened["type"], opened["status"], opened["head"]) == ("stream_open", "live", 0)
        await say(client, "input", input={"any": [1]}, client_id="c1", id=7)
        seen = await frames_until(client, "completion")
        assert text(seen) == "".join(WORDS)
        answered = [frame for frame in seen if frame["type"] == "reply"] or [await frame(client)]
        assert answered == [{"type": "reply", "to": "input", "id": 7, "turn": 1, "cursor": f"{opened['epoch']}.0"}]
        events = [frame for frame in seen if frame["type"] != "reply"]
        assert (events[0]["type"], events[0]["input"]) == ("turn_start", {"any": [1]})
        await say(client, "input", input={"any": [1]}, client_id="c1")
        assert (await reply(client))["turn"] == 1
        await say(client, "input", input=2, client_id="c1")
        assert (await reply(client))["error"]["code"] == "conflict"
        await say(client, "input", input=2)
        seen = await frames_until(client, "completion")
        assert seen[-1]["turn"] == 2
        hub.delete("s")
        assert (await rest(client))[-1]["type"] == "session_end"
        assert (client.close_code, client.close_reason) == (1000, "ended")


async def test_the_cursor_is_the_same_as_that_of_sse(serve: Serve, hub: ts.Hub) -> None:
    session = finished(hub)
    base = serve(app(hub))
    for after in range(session.head + 1):
        query = f"after={session.epoch}.{after}&follow=turn&deltas=exact"
        async with socket(base, f"/sessions/s/ws?{query}") as client:
            seen = await rest(client)
            assert seqs(seen) == list(range(after + 1, session.head + 1))
            assert seen[0]["status"] == ("finished" if after == session.head else "resumed")
            assert client.close_code == 1000


async def test_the_cursor_moves_in_mid_run(serve: Serve, hub: ts.Hub) -> None:
    session = hub.session("s")
    turn = session.turn("go")
    speak(turn, WORDS)
    async with socket(serve(app(hub)), "/sessions/s/ws?deltas=exact") as client:
        first = await frames_until(client, "stream_open")
        while (seqs(first) or [0])[-1] < session.head:
            first.append(await frame(client))
        await say(client, "cursor", after=f"{session.epoch}.10", follow="turn", id="back")
        again = await frames_until(client, "reply")
        assert again[-1] == {"type": "reply", "to": "cursor", "id": "back", "status": "resumed"}
        speak(turn, ["more"])
        turn.complete()
        second = [*again, *await rest(client)]
        opened = next(frame for frame in second if frame["type"] == "stream_open")
        assert opened["status"] == "resumed"
        assert seqs(second) == list(range(11, session.head + 1))
        assert client.close_code == 1000


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("not json", "bad_json"),
        ("[]", "bad_body"),
        ("{}", "bad_frame"),
        ('{"type":"__class__"}', "bad_frame"),
        ('{"type":["input"]}', "bad_frame"),
        ('{"type":"input"}', "bad_frame"),
        ('{"type":"input","input":1,"client_id":5}', "bad_body"),
        ('{"type":"input","input":1,"client_id":"\\ud800"}', "bad_body"),
        ('{"type":"none","id":"\\ud800"}', "bad_frame"),  # half a character
        ('{"type":"cursor","after":"\\ud800"}', "malformed_cursor"),
        ('{"type":"cursor","after":"x"}', "malformed_cursor"),
        ('{"type":"cursor","after":{"a":1}}', "malformed_cursor"),
        ('{"type":"cursor","follow":"me"}', "bad_query"),
        ('{"type":"cancel"}', "turn_ended"),
        ("[" * 100_000, "bad_json"),
        ('{"type":"input","input":' + "[" * 100 + "]" * 100 + "}", "too_deep"),
    ],
)
async def test_what_is_wrong_is_said_and_the_socket_lives(serve: Serve, hub: ts.Hub, sent: str, code: str) -> None:
    finished(hub)
    async with socket(serve(app(hub, agent)), "/sessions/s/ws") as client:
        await frames_until(client, "completion")
        await client.send(sent)
        assert (await reply(client))["error"]["code"] == code
        await say(client, "ping")
        assert await frame(client) == {"type": "pong"}


async def test_cancel(serve: Serve, hub: ts.Hub) -> None:
    async def endless(turn: ts.Turn) -> None:
        await asyncio.sleep(60)

    hub.session("s")
    async with socket(serve(app(hub, endless)), "/sessions/s/ws") as client:
        await say(client, "input", input="go")
        await reply(client)
        await say(client, "cancel", reason="enough", id=2)
        seen = await frames_until(client, "completion")
        seen += [] if any(frame["type"] == "reply" for frame in seen) else [await frame(client)]
        said = next(frame for frame in seen if frame["type"] == "reply")
        assert said == {"type": "reply", "to": "cancel", "id": 2, "state": "cancelled", "turn": 1}
        await say(client, "cancel")
        assert (await reply(client))["state"] == "cancelled"
    result = hub.find("s").result()
    assert result is not None
    assert (result["status"], result["reason"]) == ("cancelled", "enough")


async def test_a_socket_that_leaves_stops_nothing(serve: Serve, hub: ts.Hub) -> None:
    gate = Gate()

    async def waiting(turn: ts.Turn) -> None:
        await gate.passed()
        speak(turn, WORDS)

    session = hub.session("s")
    base = serve(app(hub, waiting))
    async with socket(base, "/sessions/s/ws") as client:
        await say(client, "input", input="go")
        cursor = (await reply(client))["cursor"]
    await until(lambda: session.statistics()["readers"] == 0)
    gate.open()
    async with socket(base, f"/sessions/s/ws?after={cursor}&follow=turn") as client:
        assert text(await rest(client)) == "".join(WORDS)


async def refused(base: str, path: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with socket(base, path, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body or b'{"error":{"code":""}}')["error"]["code"]


async def test_a_refused_handshake_says_why(serve: Serve, hub: ts.Hub) -> None:
    finished(hub)
    base = serve(app(hub))
    assert await refused(base, "/sessions/none/ws") == (404, "unknown_session")
    assert await refused(base, "/sessions/s/ws?after=x") == (400, "malformed_cursor")
    assert await refused(base, "/sessions/s/ws?follow=x") == (400, "bad_query")
    assert await refused(base, "/sessions/s/events") == (404, "not_found")
    small = ts.Hub(limits=ts.Limits(max_events=10))
    session = finished(small)
    path = f"/sessions/s/ws?after={session.epoch}.1"
    base = serve(app(small))
    assert await refused(base, f"{path}&on_trim=fail") == (410, "cursor_expired")
    async with socket(base, f"{path}&follow=none") as client:
        assert [frame["type"] for frame in await rest(client)][:2] == ["stream_open", "snapshot"]


async def test_a_page_of_another_origin_opens_no_socket(serve: Serve, hub: ts.Hub) -> None:
    finished(hub)
    base = serve(app(hub))
    same, path = base, "/sessions/s/ws?follow=none"
    evil = f"http://evil.example@{base[7:]}"
    for origin in ("https://evil.example", "null", evil, base + "0", "http://127.0.0.1", "http://[127.0.0.1"):
        assert await refused(base, path, origin=origin) == (403, "origin_refused")
    async with socket(base, path, origin=same) as client:
        assert text(await rest(client)) == "".join(WORDS)
    listed = serve(app(hub, origins=["https://good.example"]))
    assert await refused(listed, path, origin=listed) == (403, "origin_refused")
    async with socket(listed, path, origin="https://good.example") as client:
        await rest(client)
    async with socket(serve(app(hub, origins=["*"])), path, origin="https://evil.example") as client:
        await rest(client)


async def test_the_auth_hook_is_asked_each_time(serve: Serve, hub: ts.Hub) -> None:
    session = finished(hub)
    allowed = {"ann"}

    def auth(scope: Scope) -> str | None:
        assert scope["path_params"] == {"session_id": "s"}
        who = dict(scope["headers"]).get(b"x-user", b"").decode()
        if who and who not in allowed:
            raise HTTPError(403, "gone", "not any more")
        return who or None

    base = serve(app(hub, agent, auth=auth))
    assert await refused(base, "/sessions/s/ws") == (401, "unauthorized")
    assert await refused(base, "/sessions/s/ws", additional_headers={"x-user": "eve"}) == (403, "gone")
    for asked in ({"type": "input", "input": 1}, {"type": "cancel"}, {"type": "cursor", "after": "0"}):
        allowed.add("ann")
        async with socket(base, "/sessions/s/ws", additional_headers={"x-user": "ann"}) as client:
            await frames_until(client, "completion")
            allowed.clear()
            await client.send(json.dumps(asked))
            assert (await rest(client))[-1]["error"]["code"] == "gone"
            assert (client.close_code, client.close_reason) == (1008, "gone")
    assert session.status()["turn"] == 1


async def test_limits_on_what_comes_in(serve: Serve, hub: ts.Hub) -> None:
    finished(hub)
    base = serve(app(hub, max_body_bytes=1000))
    async with socket(base, "/sessions/s/ws") as client:
        await say(client, "input", input="x" * 1000)
        await rest(client)
        assert client.close_code == 1009
    async with socket(base, "/sessions/s/ws") as client:
        await client.send(b"{}")
        await rest(client)
        assert client.close_code == 1003


async def test_silence_is_filled_with_heartbeats(serve: Serve, hub: ts.Hub) -> None:
    hub.session("s")
    async with socket(serve(app(hub, heartbeat_s=0.05)), "/sessions/s/ws") as client:
        assert [await frame(client) for _ in range(3)][1:] == [{"type": "heartbeat"}] * 2
        with hub.session("s").turn("go"):
            ages = list[float]()
            while len(ages) < 4:
                if "progress_age_s" in (said := await frame(client)):
                    assert said["type"] == "heartbeat"
                    ages.append(said["progress_age_s"])
        assert ages == sorted(ages)
        assert ages[-1] > 0


async def test_a_frozen_client_is_cut(serve: Serve, hub: ts.Hub) -> None:
    session = finished(hub, words=["x" * 65536] * 200)
    service = app(hub, policy=Policy(write_timeout_s=0.3))
    base, path = serve(service, ws_ping_interval=None), "/sessions/s/ws?deltas=exact"
    async with socket(base, path, max_queue=1, compression=None) as client:
        await until(lambda: session.statistics()["readers"] == 1)
        await until(lambda: session.statistics()["readers"] == 0)
        assert service.statistics()["cut"] == 1
        await until(lambda: is_reset(client.transport.get_extra_info("socket")))
    async with socket(base, path, max_queue=1, compression=None) as client:
        await until(lambda: session.statistics()["readers"] == 1)
        await until(lambda: session.statistics()["readers"] == 0)
        await rest(client)  # it thaws in time to hear why
        assert (client.close_code, client.close_reason) == (1008, "write_deadline")


async def test_under_fastapi_its_dependencies_guard_the_socket_too(serve: Serve, hub: ts.Hub) -> None:
    finished(hub)

    def key(connection: HTTPConnection) -> None:
        if connection.headers.get("x-key") != "k":
            raise fastapi.WebSocketException(1008)

    application = fastapi.FastAPI()
    application.include_router(router(hub, agent, prefix="/api", dependencies=[fastapi.Depends(key)]))
    base = serve(application)
    assert (await refused(base, "/api/sessions/s/ws"))[0] == 403
    with_key = {"additional_headers": {"x-key": "k"}}
    assert await refused(base, "/api/sessions/none/ws", **with_key) == (404, "unknown_session")
    async with socket(base, "/api/sessions/s/ws?follow=turn", **with_key) as client:
        assert text(await rest(client)) == "".join(WORDS)
        assert client.close_code == 1000
    async with socket(base, "/api/sessions/s/ws", **with_key) as client:
        await say(client, "input", input=1)
        await reply(client)
    await until(lambda: hub.find("s").statistics()["readers"] == 0)


SERVED = """
import asyncio
import turnstream as ts
from turnstream.asgi import app

async def agent(turn):
    if turn.input == "wait":
        await asyncio.sleep(60)
    for i in range(50):
        yield f"w{i} "

application = app(ts.Hub(), agent=agent)
"""

SERVERS = {
    "uvicorn": ["uvicorn", "--log-level", "warning", "--host", "127.0.0.1"],
    "granian": ["granian", "--interface", "asgi", "--log-level", "warning", "--host", "127.0.0.1"],
}


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("server", sorted(SERVERS))
async def test_servers_and_their_stop(tmp_path: Path, server: str, unused_tcp_port: int) -> None:
    import httpx

    (tmp_path / "served.py").write_text(SERVED)
    port = unused_tcp_port
    command = [sys.executable, "-m", *SERVERS[server], "--port", str(port), "served:application"]
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base) as http, asyncio.timeout(3 * PATIENCE_S):
            made = None
            while made is None:
                try:
                    made = await http.post("/sessions", json={"session_id": "s"})
                    await http.post("/sessions", json={"session_id": "idle"})
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)  # the server says nowhere that it listens
            async with socket(base, "/sessions/s/ws") as busy, socket(base, "/sessions/idle/ws") as idle:
                await say(busy, "input", input="go")
                assert text(await frames_until(busy, "completion")) == "".join(WORDS)
                await say(busy, "input", input="wait")
                await frames_until(busy, "turn_start")
                assert (await frame(idle))["type"] == "stream_open"
                with within(3):
                    process.terminate()
                    told, idle_told = await rest(busy), await rest(idle)
                    await process.wait()
                if server == "uvicorn":  # granian drops its sockets on the signal, with whatever was to be sent
                    closing = {"type": "closing", "reason": "shutting_down"}
                    ends = [frame for frame in told if frame["type"] == "completion"]
                    assert [(frame["status"], frame["reason"]) for frame in ends] == [("cancelled", "shutdown")]
                    assert (told[-1], idle_told) == (closing, [closing])
                    assert {busy.close_code, idle.close_code} == {1001}
    finally:
        await kill(process)


async def test_a_socket_counts_among_the_readers(serve: Serve, hub: ts.Hub) -> None:
    session = hub.session("s")
    turn = session.turn()
    base = serve(app(hub, policy=Policy(max_readers_per_session=1, on_disconnect="cancel")))
    async with socket(base, "/sessions/s/ws") as client:
        await frame(client)
        assert await refused(base, "/sessions/s/ws") == (429, "too_many_readers")
        assert session.status()["state"] == "running"
    await until(lambda: session.status()["state"] == "cancelled")
    assert turn.cancelled
    assert (session.result() or {})["reason"] == "disconnected"
