"""Clients, lines and mounts as they are found: old protocols, small windows, odd text, one page loaded fifty times."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import fastapi
import httpx
import pytest
from httpx_sse import aconnect_sse
from support import PATIENCE_S, WORDS, finished, frozen, parse, seqs, speak, text, until
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream.asgi import app
from turnstream.fastapi import router

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

PATH = "/sessions/s/events"


async def raw(base: str, request: bytes, *, half_close: bool = False) -> tuple[bytes, bytes]:
    """The head and the body of what the server says until it closes the connection."""
    url = httpx.URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(request)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return head, body


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_an_http_1_0_client_reads_to_the_end_of_the_connection(serve: Serve, hub: ts.Hub) -> None:
    """nginx asks so unless told."""
    session = finished(hub)
    base = serve(app(hub), http="h11")
    head, body = await raw(base, f"GET {PATH} HTTP/1.0\r\n\r\n".encode())
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    seen = parse(body)
    assert (text(seen), seen[-1].event) == ("".join(WORDS), "completion")
    head, body = await raw(base, f"GET {PATH} HTTP/1.0\r\nLast-Event-ID: {session.cursor}\r\n\r\n".encode())
    assert (head.split()[1], body) == (b"204", b"")


@pytest.mark.parametrize("path", ["/sessions/s", PATH, f"{PATH}?format=ai-sdk", "/sessions/s/poll"])
async def test_head_is_the_head_alone_and_nobody_stays(serve: Serve, hub: ts.Hub, path: str) -> None:
    turn = (session := hub.session("s")).turn("go")
    base = serve(app(hub))
    for method in ("HEAD", "OPTIONS"):
        head, body = await raw(base, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert head.split()[1] in (b"200", b"202", b"204")
        assert (body, session.statistics()["readers"]) == (b"", 0)
    turn.complete()


async def test_a_head_that_nobody_waits_with_costs_no_run(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, lambda turn: "x"))
    for path in ("/sessions", "/ai-sdk", "/ag-ui", "/v1/responses", "/v1/chat/completions"):
        for method in ("HEAD", "GET", "PUT", "PATCH", "TRACE"):
            response = await http.request(method, base + path)
            assert (response.status_code, "POST" in response.headers["allow"]) == (405, True)
    assert hub.sessions() == []


@pytest.mark.parametrize("garbage", ["undefined", "null", "[object Object]", "🙂", "x" * 5000, "0.0.0", "-1", "e.1e5"])
async def test_a_garbled_last_event_id_is_a_400_and_no_reader(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, garbage: str
) -> None:
    session = finished(hub)
    response = await http.get(serve(app(hub)) + PATH, headers=[(b"last-event-id", garbage.encode())])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_cursor")
    assert garbage not in response.text
    assert session.statistics()["readers"] == 0


async def test_who_has_seen_nothing_is_told_live_and_the_snapshot(serve: Serve, http: httpx.AsyncClient) -> None:
    """It has lost nothing; who asks for all from `0`, or for all or nothing, is told."""
    hub = ts.Hub(limits=ts.Limits(max_events=5))
    session = finished(hub)
    url = serve(app(hub)) + PATH
    seen = parse((await http.get(url)).content)
    assert (seen[0].data["status"], seen[1].event, seen[-1].event) == ("live", "snapshot", "completion")
    assert seen[0].data["earliest"] == session.earliest
    assert parse((await http.get(url, params={"after": "0"})).content)[0].data["status"] == "trimmed"
    refused = await http.get(url, params={"on_trim": "fail"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "cursor_expired")


# --- lines ------------------------------------------------------------------------------------------------------------


async def test_a_half_closed_connection_is_a_client_that_has_left(serve: Serve, hub: ts.Hub) -> None:
    """uvicorn takes it so. What was ready may have come, the end has not, and nobody waits for ever."""
    session = hub.session("s")
    turn = session.turn("go")
    base = serve(app(hub))
    _, body = await raw(base, f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), half_close=True)
    assert b'"completion"' not in body
    await until(lambda: session.statistics()["readers"] == 0)
    assert not turn.ended
    turn.complete()


async def test_a_reader_of_one_byte_at_a_time_gets_all(serve: Serve, hub: ts.Hub) -> None:
    session = hub.session("s")
    base = serve(app(hub))
    with session.turn("go") as turn, frozen(base, PATH) as client:
        client.setblocking(False)
        speak(turn, [f"{number} " + "x" * 200 for number in range(100)])
        turn.complete()
        body, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while not body.endswith(b"0\r\n\r\n"):
                body += await loop.sock_recv(client, 1 if len(body) < 3000 else 997)
    assert body.count(b"\nevent: completion\n") == 1
    assert [int(seq) for seq in re.findall(rb"\nid: \w+\.(\d+)\n", body)][-1] == session.head
    await until(lambda: session.statistics()["readers"] == 0)


class Buffering:
    """A proxy that gives an answer on when it is whole, as some antivirus and corporate ones do."""

    def __init__(self, base: str) -> None:
        self._upstream = httpx.URL(base)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        up, upper = await asyncio.open_connection(self._upstream.host, self._upstream.port)
        upper.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        writer.write(await up.read())
        await writer.drain()
        for each in (writer, upper):
            each.close()


async def test_behind_a_proxy_that_holds_answers_back_a_stream_is_late_and_a_poll_is_not(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    session = hub.session("s")
    base = serve(app(hub))
    async with await asyncio.start_server(Buffering(base), "127.0.0.1", 0) as server:
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with session.turn("go") as turn:
            streaming = asyncio.create_task(http.get(proxy + PATH))
            await until(lambda: session.statistics()["readers"] == 1)
            cursor = f"{session.epoch}.0"
            for number in range(3):
                turn.emit("custom", {"name": "n", "data": number})
                page = (await http.get(f"{proxy}/sessions/s/poll", params={"after": cursor})).json()
                assert page["events"][-1]["data"] == number
                cursor = page["cursor"]
            assert not streaming.done()
        seen = parse((await streaming).content)
        assert (seqs(seen), seen[-1].event) == (list(range(1, session.head + 1)), "completion")


async def test_an_event_of_10_mb_comes_whole_by_every_way(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    large = "x" * (10 << 20)
    with hub.session("s").turn("go") as turn:
        turn.emit("custom", {"name": "large", "data": large})
        turn.emit("custom", {"name": "small"})
    base = serve(app(hub))

    def whole(events: list[dict[str, Any]]) -> None:
        assert [event["type"] for event in events] == ["turn_start", "custom", "custom", "completion"]
        assert events[1]["data"] == large

    whole([frame.data for frame in parse((await http.get(base + PATH)).content)[1:]])
    ndjson = (await http.get(f"{base}{PATH}?format=ndjson")).content
    whole([json.loads(line) for line in ndjson.splitlines()][1:])
    events, cursor, ended = list[dict[str, Any]](), "0", False
    while not ended:
        page = (await http.get(f"{base}/sessions/s/poll", params={"after": cursor})).json()
        events, cursor, ended = events + page["events"], page["cursor"], page["ended"]
    whole(events)
    url = f"ws{base[4:]}/sessions/s/ws?follow=turn"
    async with connect(url, proxy=None, max_size=None, compression=None) as client:
        whole([json.loads(frame) async for frame in client][1:])


ODD = ["a\u2028b\u2029c\u0085d", "g\rh\ni\r\nj", "\x0b\x0c\x1c\x1d\x1e", "\ufeffk", "\u00e9\u2026\u201d", "🙂"]


@pytest.mark.parametrize("format", ["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"])
async def test_a_line_is_a_line_for_whoever_reads_lines(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, format: str
) -> None:
    """httpx's own line reader, and with it many a client of a few lines, ends a line at U+2028 too."""
    with hub.session("s").turn("go\u2028") as turn:
        turn.emit("custom", {"name": "raw", "data": {"\u2028": "\u0085"}})
        speak(turn, ODD)
    url = f"{serve(app(hub))}{PATH}?format={format}"
    async with http.stream("GET", url) as response:
        lines = [line async for line in response.aiter_lines()]
    said = [line.removeprefix("data: ") for line in lines if line and not line.startswith(("id: ", "event: ", ":"))]
    events = [json.loads(line) for line in said if line != "[DONE]"]
    assert "".join(_pieces(events)) == "".join(ODD)
    if format == "sse":
        assert {"\u2028": "\u0085"} in [event.get("data") for event in events]


def _pieces(events: list[dict[str, Any]]) -> list[str]:
    """The pieces of text, whatever the format calls them."""
    found = list[str]()
    for event in events:
        piece = event.get("text") if event.get("type") == "text_delta" else event.get("delta")
        if event.get("choices"):
            piece = event["choices"][0]["delta"].get("content")
        found += [piece] if isinstance(piece, str) else []
    return found


@pytest.mark.parametrize("format", ["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"])
async def test_nothing_on_the_way_keeps_or_holds_a_stream(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, format: str
) -> None:
    """And a client of another protocol is sent no `id` or `retry`: OpenAI's SDK fails on a block that has no data."""
    finished(hub)
    response = await http.get(f"{serve(app(hub, retry_ms=1500))}{PATH}", params={"format": format})
    kind = "application/x-ndjson" if format == "ndjson" else "text/event-stream"
    assert response.headers["content-type"].partition(";")[0] == kind
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert ("\nid: " in response.text, response.text.startswith("retry: ")) == (format == "sse", format == "sse")


async def test_no_cache_keeps_an_answer(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = finished(hub)
    base = serve(app(hub))
    for path, status in [
        ("", 200),
        ("/messages", 200),
        ("/result", 200),
        ("/poll", 200),
        (f"/events?after={session.cursor}", 204),
        ("/events?after=x", 400),
        ("/nothing", 404),
    ]:
        response = await http.get(f"{base}/sessions/s{path}")
        assert (response.status_code, response.headers["cache-control"]) == (status, "no-store"), path


async def test_a_page_that_is_loaded_fifty_times_sees_the_whole_each_time(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    """A reload has no Last-Event-ID: every load begins with what is there, and leaves nothing behind."""
    session = hub.session("s")
    service = app(hub)
    url = serve(service) + PATH
    with session.turn("go") as turn:
        for load in range(50):
            speak(turn, [f"{load} "])
            seen = []
            async with aconnect_sse(http, "GET", url, params={"deltas": "exact"}) as source:
                async for event in source.aiter_sse():
                    seen.append(event.json())
                    if event.event == "text_delta" and event.json()["text"] == f"{load} ":
                        break
            assert [event["seq"] for event in seen[1:]] == list(range(1, session.head + 1))
        await until(lambda: session.statistics()["readers"] == service.statistics()["streams"] == 0)
        assert session.status()["state"] == "running"


# --- mounts -----------------------------------------------------------------------------------------------------------


async def test_two_routers_in_one_application_share_nothing(serve: Serve, http: httpx.AsyncClient) -> None:
    hubs = {"one": ts.Hub(), "two": ts.Hub()}
    application = fastapi.FastAPI()
    for name, hub in hubs.items():

        def agent(turn: ts.Turn, name: str = name) -> str:
            return name

        application.include_router(router(hub, agent=agent, prefix=f"/{name}"))
    paths = application.openapi()["paths"]
    assert len(paths) == 2 * len([path for path in paths if path.startswith("/one/")])
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    base = serve(application)
    for name, hub in hubs.items():
        body = {"input": "go", "session_id": "s"}
        made = (await http.post(f"{base}/{name}/sessions", json=body)).json()
        seen = parse((await http.get(f"{base}/{name}{PATH}", params={"after": made["cursor"]})).content)
        assert (text(seen), seen[-1].event, len(hub.sessions())) == (name, "completion", 1)
        async with connect(f"ws{base[4:]}/{name}/sessions/s/ws?follow=turn&after=0", proxy=None) as client:
            assert json.loads([frame async for frame in client][-1])["text"] == name
    one, two = (hub.session("s") for hub in hubs.values())
    other = parse((await http.get(f"{base}/two{PATH}", headers={"last-event-id": one.cursor})).content)
    assert (other[0].data["status"], text(other), one.epoch != two.epoch) == ("other_epoch", "two", True)


@pytest.mark.parametrize("root", ["/api", "/api/", "/s"])
async def test_a_root_path_may_be_in_the_path_or_not(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, root: str
) -> None:
    """uvicorn puts its own before the path, who cuts it off does not; and `/s` is not above `/sessions`."""
    finished(hub)
    inner = app(hub)

    async def cut_off(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": root}
        await inner(scope, receive, send)

    for base in (serve(cut_off), serve(app(hub), root_path=root.rstrip("/"))):
        seen = parse((await http.get(base + PATH)).content)
        assert (text(seen), seen[-1].event) == ("".join(WORDS), "completion")
