"""What nobody should send: each is answered with a typed error or an end, and leaves no task or reader behind."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support import finished, parse, seqs, until

import turnstream as ts
from turnstream.asgi import App, Policy, app
from turnstream.asgi import http as http_module

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

FORMATS = ("sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses")


class Service:
    """An application that is watched: after each test nothing of it may be left but its server."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: set[Any] = set()
        self.hub = ts.Hub()
        self.app: App
        self.base = ""

    def open(self, agent: Any = None, *, server: dict[str, Any] | None = None, **options: Any) -> str:
        self.app = app(self.hub, agent, **options)

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                self._loop = asyncio.get_running_loop()
            await self.app(scope, receive, send)

        self.base = self._serve(watched, **(server or {}))
        self._idle = self._tasks()
        return self.base

    def _tasks(self) -> set[Any]:
        assert self._loop is not None
        return asyncio.all_tasks(self._loop)

    async def settled(self) -> None:
        await until(lambda: self.app.statistics()["streams"] == 0 and self._tasks() <= self._idle)
        assert [session.id for session in self.hub.sessions() if session.statistics()["readers"]] == []


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Service]:
    made = Service(serve)
    yield made
    await made.settled()


@asynccontextmanager
async def connection(base: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(base)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect((url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=client)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def upgraded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")


def masked(text: str) -> bytes:
    """One frame from a client; the mask is zeros."""
    length = len(text)
    head = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + struct.pack(">H", length)
    return b"\x81" + head + bytes(4) + text.encode()


FLOOD = 20_000

# --- floods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "sent"), [("/sessions/s/ws", '{"type":"ping"}'), ("/ai-sdk/ws", "[]")])
async def test_a_flood_of_tiny_frames_is_answered_and_holds_nobody_up(
    service: Service, http: httpx.AsyncClient, path: str, sent: str
) -> None:
    """Each frame, in the end; and whoever comes meanwhile before that."""
    service.hub.session("s")
    base = service.open(server={"ws_ping_interval": None})
    await http.get(f"{base}/sessions/s")
    answered, others = 0, 0
    async with connection(base) as (reader, writer):
        await upgraded(reader, writer, path)

        async def hear() -> None:
            nonlocal answered
            rest = b""
            while answered < FLOOD:
                piece = await reader.read(1 << 20)
                assert piece, "the socket was closed"
                *whole, rest = (rest + piece).split(b"}")  # an answer may come in two reads
                answered += sum(b'"type":"pong"' in one or b'"type":"error"' in one for one in whole)

        hearing = asyncio.create_task(hear())
        writer.write(masked(sent) * FLOOD)
        while not hearing.done():
            assert (await http.get(f"{base}/sessions/s")).status_code == 200
            others += answered < FLOOD
        await hearing
    assert (answered, others > 0) == (FLOOD, True)


@pytest.mark.parametrize(("path", "name"), [("/sessions/s/ws", "id"), ("/ai-sdk/ws", "requestId")])
async def test_who_floods_and_reads_nothing_is_cut(service: Service, path: str, name: str) -> None:
    service.hub.session("s")
    base = service.open(policy=Policy(write_timeout_s=0.3), server={"ws_ping_interval": None})
    async with connection(base) as (reader, writer):
        await upgraded(reader, writer, path)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        flood = masked(json.dumps({"type": "x", name: "y" * 4000})) * 100
        while not service.app.statistics()["cut"]:
            if writer.transport.get_write_buffer_size() < len(flood):
                writer.write(flood)
            await asyncio.sleep(0.001)
        await until(writer.transport.is_closing)  # what it still had to write has told it


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/sessions/s/events?after=" + "9" * 30_000,
        "/sessions/s/events?after=e." + "9" * 30_000,
        "/sessions/s/events?" + "&".join(f"a{number}=1" for number in range(200)),
        "/sessions/s/events?limit=" + "1" * 5000,
        "/sessions/s/poll?wait_s=" + "1" * 5000,
        "/sessions/s/poll?wait_s=nan",
        "/v1/responses/" + "resp_" * 5000 + "_e_1",
        "/v1/responses/resp_s_e_1?stream=true&starting_after=-2",
        "/sessions/" + "s" * 30_000,
        "/sessions/..%2f..%2fetc%2fpasswd/events",
        "/sessions/%2e%2e/events",
        "/sessions/..%5c..%5cwindows/events",
        "/sessions/s%00/events",
        "/sessions/s%0d%0aset-cookie:%20a/events",
        "/sessions/%ff%fe/events",
        "/sessions//s/events",
        "/ai-sdk/..%2fs/stream",
    ],
)
async def test_odd_urls_are_refused_and_said_back_nowhere(service: Service, path: str) -> None:
    finished(service.hub)
    base = service.open()
    async with connection(base) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in (400, 404), head
    assert json.loads(body)["error"]["code"]
    assert len(body) < 300
    assert b"cookie" not in head


async def test_a_body_without_a_length_is_read_to_its_limit_and_no_further(service: Service) -> None:
    base = service.open(lambda turn: "x", max_body_bytes=100_000)
    async with connection(base) as (reader, writer):
        writer.write(b"POST /sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk, sent = b"2710\r\n" + b"x" * 10_000 + b"\r\n", 0
        answer = asyncio.create_task(reader.readuntil(b"}}"))
        while not answer.done():
            writer.write(chunk)
            sent += len(chunk)
            await writer.drain()
        head = await answer
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_long"' in head
    assert sent < 10_000_000
    assert service.hub.sessions() == []


async def test_a_body_that_does_not_come_is_waited_for_so_long(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "BODY_S", 0.2)
    base = service.open(lambda turn: "x")
    async with connection(base) as (reader, writer):
        writer.write(b'POST /sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"input": ')
        head = await reader.read()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b'"body_too_slow"' in head
    assert service.hub.sessions() == []


async def test_a_compressed_body_is_refused(service: Service, http: httpx.AsyncClient) -> None:
    """A bomb would be 1,000 times its length."""
    base = service.open(lambda turn: "x")
    for coding in ("gzip", "br", "GZIP", "gzip, gzip"):
        response = await http.post(
            f"{base}/sessions", content=gzip.compress(b'{"input": 1}'), headers={"content-encoding": coding}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")
        assert response.headers["accept-encoding"] == "identity"
    assert service.hub.sessions() == []
    plain = await http.post(f"{base}/sessions", json={"input": 1}, headers={"content-encoding": "identity"})
    assert plain.status_code == 201


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/xml", "", "text/event-stream"])
async def test_the_content_type_does_not_decide_what_is_json(
    service: Service, http: httpx.AsyncClient, kind: str
) -> None:
    """`curl -d` calls everything a form."""
    base = service.open(lambda turn: "x")
    for content, status in ((b'{"input": 1}', 201), (b"--x\r\ncontent-disposition: form-data\r\n\r\n1", 400)):
        response = await http.post(f"{base}/sessions", content=content, headers={"content-type": kind})
        assert response.status_code == status


@pytest.mark.parametrize("origins", [None, ["https://mine.example"], ["*"]])
async def test_a_page_of_another_site_can_make_its_visitors_browser_do_nothing(
    service: Service, http: httpx.AsyncClient, origins: list[str] | None
) -> None:
    """What a browser sends unasked, cookies and all: forms and plain text. For JSON it asks first, and CORS is off."""
    base = service.open(lambda turn: "x", origins=origins)
    allowed = {"https://mine.example"} if origins == ["https://mine.example"] else {"https://mine.example", "null"}
    for origin in ("https://mine.example", "null"):
        for path in ("/sessions", "/ai-sdk", "/ag-ui", "/v1/responses", "/v1/chat/completions", "/sessions/s/cancel"):
            forged = {"origin": origin, "sec-fetch-site": "cross-site", "content-type": "text/plain"}
            response = await http.post(base + path, content=b'{"input": 1}', headers=forged)
            refused = response.status_code == 403 and response.json()["error"]["code"] == "origin_refused"
            assert refused == (origins is None or origin not in allowed), (origin, path)
    for site in ("same-origin", "same-site", "none"):
        own = {"origin": "https://mine.example", "sec-fetch-site": site, "content-type": "text/plain"}
        assert (await http.post(f"{base}/sessions", content=b'{"input": 1}', headers=own)).status_code == 201
    asked = {"origin": "https://mine.example", "sec-fetch-site": "cross-site"}
    assert (await http.post(f"{base}/sessions", json={"input": 1}, headers=asked)).status_code == 201


# --- what goes out ----------------------------------------------------------------------------------------------------

EVIL = "x\n\nid: e.999\nevent: completion\ndata: {}\r\n\r\n: \u2028\0"


@pytest.mark.parametrize("format", FORMATS)
async def test_no_name_or_text_begins_a_frame_of_its_own(
    service: Service, http: httpx.AsyncClient, format: str
) -> None:
    session = service.hub.session("s")
    with session.turn({"messages": [EVIL], "model": EVIL}) as turn:
        emit = turn.emit
        emit("round_start", {"model": EVIL})
        emit("stage_start", {"stage": EVIL, "agent": EVIL})
        emit("progress", {"stage": EVIL, "message": EVIL})
        emit("custom", {"name": EVIL, "data": {EVIL: EVIL}})
        emit("text_delta", {"message_id": EVIL, "text": EVIL})
        emit("tool_call", {"call_id": EVIL, "name": EVIL, "arguments_raw": EVIL})
        emit("tool_output_delta", {"call_id": EVIL, "text": EVIL})
        emit("tool_result", {"call_id": EVIL, "output": EVIL})
        emit("citation", {"url": EVIL, "title": EVIL})
        emit("warning", {"code": EVIL, "message": EVIL})
        emit("provider_event", {"name": EVIL, "data": EVIL})
        emit("error", {"code": EVIL, "message": EVIL})
    response = await http.get(f"{service.open()}/sessions/s/events", params={"format": format, "deltas": "exact"})
    assert "\r" not in response.text
    if format == "ndjson":
        events = [json.loads(line) for line in response.text.split("\n")[:-1]]
        assert [event["seq"] for event in events[1:]] == list(range(1, session.head + 1))
    elif format == "sse":
        seen = parse(response.content)
        assert seqs(seen) == list(range(1, session.head + 1))
        assert [frame.event for frame in seen].count("completion") == 1
    else:
        for frame in response.text.split("\n\n")[:-1]:
            *name, said = frame.split("\n")
            assert all(line.startswith("event: ") for line in name), frame
            assert len(name) <= 1
            data = said.removeprefix("data: ")
            assert data == "[DONE]" or json.loads(data)


async def test_an_id_of_another_session_or_hub_opens_nothing(service: Service, http: httpx.AsyncClient) -> None:
    """A cursor shows nothing of the session that it is of, and a response's id none but its own."""
    hub = service.hub
    mine, other = finished(hub, "mine", ["my secret"]), finished(hub, "other", ["other words"])
    elsewhere = finished(ts.Hub(), "mine", ["elsewhere"])
    base = service.open(lambda turn: "an answer")
    for cursor in (other.cursor, elsewhere.cursor, f"{other.epoch}.1"):
        response = await http.get(f"{base}/sessions/mine/events", headers={"last-event-id": cursor})
        seen = parse(response.content)
        assert seen[0].data["status"] == "other_epoch"
        assert {frame.data["session"] for frame in seen} == {"mine"}
    made = (await http.post(f"{base}/v1/responses", json={"model": "m", "input": "x"})).json()
    session_id, epoch, seq = made["id"].removeprefix("resp_").rsplit("_", 2)
    assert (await http.get(f"{base}/v1/responses/{made['id']}")).status_code == 200
    for forged in (
        f"resp_mine_{epoch}_{seq}",
        f"resp_{session_id}_{mine.epoch}_{seq}",
        f"resp_{session_id}_{epoch}_999",
        f"resp_mine_{elsewhere.epoch}_0",
    ):
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
            response = await http.request(method, f"{base}/v1/responses/{forged}{path}")
            assert (response.status_code, "secret" in response.text) == (404, False), forged
        again = {"model": "m", "input": "x", "previous_response_id": forged}
        assert (await http.post(f"{base}/v1/responses", json=again)).status_code == 404
