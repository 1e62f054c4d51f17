"""Bad lines and dying readers: each event comes once, in order, and a reader that is gone is gone on the server too.

Owns a TCP proxy that spoils connections, a client of each transport that goes on from its cursor, and a raw client that
dies where it is told to. Every wait has a bound.
"""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple, get_args

import httpx
import pytest
import websockets
from httpx_sse import SSEError, aconnect_sse
from support import until
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream.asgi import Policy, app

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

HEARTBEAT_S = 0.05
PATIENCE_S = 0.25
"""How long a client bears silence: five heartbeats."""

WRITE_TIMEOUT_S = 0.4
GONE_S = 2.0
"""Within so long a dead client's reader is freed: the write deadline and its quarter, and a busy machine."""


# --- a bad line -------------------------------------------------------------------------------------------------------

Then = Literal["reset", "end", "half_close", "half_close_up", "stall"]
"""What becomes of a connection: a reset for both; an orderly end for both; an end for the client while the server is
left open; an end for the server while the client waits on; silence."""


class Fault(NamedTuple):
    """One connection's lot. Without `then` it is slow, and lasts."""

    delay_s: float
    """Of each piece, each way."""
    jitter_s: float
    """On top of that, at most."""
    after: int
    """Bytes of the answer that pass before `then`."""
    then: Then | None


def lots(seed: int) -> Iterator[Fault]:
    """Each end twice, in any order, and then only slowness: a run comes to its end."""
    chance = random.Random(seed)
    ends = [*get_args(Then), *get_args(Then)]
    chance.shuffle(ends)
    for then in (*ends, *[None] * 10_000):
        # Within the head of the answer, in its first frames, or later.
        after = chance.choice([chance.randrange(0, 250), chance.randrange(250, 800), chance.randrange(800, 6000)])
        yield Fault(chance.random() * 0.002, chance.random() * 0.002, after, then)


class BadLine:
    """The proxy. `done`: the ends it has brought about."""

    def __init__(self, base: str, seed: int) -> None:
        self._upstream = httpx.URL(base)
        self._lots = lots(seed)
        self._chance = random.Random(seed)
        self._open: set[asyncio.Task[Any] | None] = set()  # a loop's own references to its tasks are weak
        self.done: list[Then] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await until(lambda: not self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(task := asyncio.current_task())
        fault = next(self._lots)
        up_reader, up_writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
        asked = asyncio.create_task(self._ask(reader, up_writer, fault))
        try:
            await self._pass_on(up_reader, writer, fault, fault.after if fault.then else None)
            if fault.then and not up_reader.at_eof():
                self.done.append(fault.then)
            if fault.then == "half_close":
                writer.write_eof()
            if fault.then == "half_close_up":
                up_writer.write_eof()
                await self._pass_on(up_reader, writer, fault, None)
            elif fault.then in ("half_close", "stall"):
                await asyncio.wait([asked], timeout=20)  # until the client has had enough; what is still said is lost
        except OSError:
            pass
        finally:
            asked.cancel()
            if fault.then == "reset":
                for each in (writer, up_writer):
                    reset(each.get_extra_info("socket"))
            for each in (writer, up_writer):
                each.close()
            await asyncio.gather(asked, writer.wait_closed(), up_writer.wait_closed(), return_exceptions=True)
            self._open.discard(task)

    async def _ask(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter, fault: Fault) -> None:
        try:
            await self._pass_on(reader, up_writer, fault, None)
        except OSError:
            up_writer.transport.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fault: Fault, left: int | None
    ) -> None:
        def most() -> int:
            size = self._chance.choice([3, 100, 4096])
            return size if left is None else min(size, left)

        while left != 0 and (piece := await source.read(most())):
            await asyncio.sleep(fault.delay_s + self._chance.random() * fault.jitter_s)
            sink.write(piece)
            await sink.drain()
            left = None if left is None else left - len(piece)
        if left is None and not sink.is_closing():
            sink.write_eof()


def reset(connection: Any) -> None:
    """Its close will be a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- clients that go on from their cursor -----------------------------------------------------------------------------


class Seen:
    """What a client has been shown."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self.seqs: list[int] = []
        self.text = ""
        self.ended = False

    @property
    def cursor(self) -> str:
        return f"{self._epoch}.{self.seqs[-1] if self.seqs else 0}"

    def take(self, event: dict[str, Any]) -> None:
        if "seq" in event:
            self.seqs.append(event["seq"])
            self.text += event["text"] if event["type"] == "text_delta" else ""
            self.ended = event["type"] == "completion"


def http_client() -> httpx.AsyncClient:
    """One connection a request."""
    return httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)


async def sse(base: str, seen: Seen, deltas: str) -> None:
    url, headers = f"{base}/sessions/s/events", {"last-event-id": seen.cursor}
    params = {"deltas": deltas}
    async with http_client() as http, aconnect_sse(http, "GET", url, params=params, headers=headers) as source:
        async for event in source.aiter_sse():
            seen.take(event.json())
            assert event.id in ("", seen.cursor)


async def ndjson(base: str, seen: Seen, deltas: str) -> None:
    params = {"deltas": deltas, "format": "ndjson", "after": seen.cursor}
    async with http_client() as http, http.stream("GET", f"{base}/sessions/s/events", params=params) as response:
        async for line in response.aiter_lines():
            if line:
                seen.take(json.loads(line))


async def websocket(base: str, seen: Seen, deltas: str) -> None:
    url = f"ws{base[4:]}/sessions/s/ws?deltas={deltas}&follow=turn&after={seen.cursor}"
    async with connect(url, proxy=None, open_timeout=PATIENCE_S, close_timeout=0.05, compression=None) as client:
        while True:
            async with asyncio.timeout(PATIENCE_S):
                seen.take(json.loads(await client.recv()))


async def poll(base: str, seen: Seen, deltas: str) -> None:
    params: dict[str, Any] = {"deltas": deltas, "after": seen.cursor, "wait_s": PATIENCE_S / 2, "limit": 15}
    async with http_client() as http:
        answer = (await http.get(f"{base}/sessions/s/poll", params=params)).json()
        for event in answer["events"]:
            seen.take(event)


CLIENTS: dict[str, Callable[[str, Seen, str], Awaitable[None]]] = {
    "sse": sse,
    "ndjson": ndjson,
    "websocket": websocket,
    "poll": poll,
}

BROKEN = (OSError, httpx.TransportError, SSEError, websockets.WebSocketException, TimeoutError)
"""What a client sees of a bad line; whatever else it sees is a defect."""

EVENTS = 120
AHEAD = 12
"""How far the writer is ahead of the reader at most: the line is bad in the replay, and live."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("deltas", ["exact", "merged"])
@pytest.mark.parametrize("transport", CLIENTS)
async def test_over_a_bad_line_each_event_comes_once_in_order(
    serve: Serve, transport: str, deltas: str, seed: int
) -> None:
    hub = ts.Hub()
    session = hub.session("s")
    application = app(hub, heartbeat_s=HEARTBEAT_S, policy=Policy(write_timeout_s=WRITE_TIMEOUT_S))
    base = serve(application, loop="asyncio" if seed % 2 else "uvloop")
    line, seen, chance = BadLine(base, seed), Seen(session.epoch), random.Random(seed)
    turn = session.turn()
    text, boundaries = "", []

    async def write() -> None:
        nonlocal text
        for number in range(EVENTS):
            size = chance.choice([1, 20, 400])
            if number % 3:
                text += (piece := f"{number}{'é' * size} ")
                turn.emit("text_delta", {"message_id": "m", "text": piece})
            else:
                turn.emit("custom", {"name": "part", "data": "x" * size})
                boundaries.append(session.head)
            await until(lambda: session.head - len(seen.seqs and range(seen.seqs[-1])) < AHEAD)
        turn.complete()

    async def read(line: str) -> None:
        while not seen.ended:
            with suppress(*BROKEN):
                await CLIENTS[transport](line, seen, deltas)

    async with asyncio.timeout(20), line.listening() as address:
        await asyncio.gather(write(), read(address))
        await until(lambda: session.statistics()["readers"] == 0, GONE_S)
    assert seen.text == text
    assert seen.seqs == sorted(set(seen.seqs))
    assert set(boundaries) <= set(seen.seqs)
    assert deltas == "merged" or seen.seqs == list(range(1, session.head + 1))
    assert len(set(line.done)) >= 4, "the line was not that bad"
    await until(lambda: application.statistics()["streams"] == 0, GONE_S)


# --- a reader that dies -----------------------------------------------------------------------------------------------

PATHS = {
    "sse": "/sessions/s/events?deltas=exact&follow={follow}",
    "ndjson": "/sessions/s/events?deltas=exact&format=ndjson&follow={follow}",
    "websocket": "/sessions/s/ws?deltas=exact&follow={follow}",
    "poll": "/sessions/s/poll?follow={follow}&after={after}",
}
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
LARGE = "x" * 100_000

STREAM_PHASES = ("request", "headers", "stream_open", "mid_event", "replay", "live", "idle", "completed", "end")
POLL_PHASES = ("request", "waiting", "mid_answer")


class Phase(NamedTuple):
    """Where a reader dies: once it has been sent `sees`, after what `before` and `after` it came was logged."""

    sees: bytes = b""
    before: Callable[[ts.Turn], object] = lambda turn: None
    after: Callable[[ts.Turn], object] = lambda turn: None
    whole_request: bool = True
    follow: str = "turn"


def large(turn: ts.Turn, count: int) -> None:
    for _ in range(count):
        turn.emit("custom", {"name": "large", "data": LARGE})


PHASES: dict[str, Phase] = {
    "request": Phase(whole_request=False),
    "headers": Phase(b"HTTP/1.1 "),
    "stream_open": Phase(b"stream_open"),
    "mid_event": Phase(b"xxx", after=lambda turn: large(turn, 1)),
    "replay": Phase(b"xxx", before=lambda turn: large(turn, 100)),
    "live": Phase(b'"now"', after=lambda turn: turn.emit("custom", {"name": "now"})),
    "idle": Phase(b"heartbeat"),
    # The reader goes on to the session's end.
    "completed": Phase(b'"completion"', before=lambda turn: turn.complete(), follow="session"),
    # The reader is at its end, the body may not be.
    "end": Phase(b'"completion"', after=lambda turn: turn.complete()),
    "waiting": Phase(),
    "mid_answer": Phase(b"xxx", before=lambda turn: large(turn, 100)),
}


def die(client: socket.socket, how: str) -> None:
    """`half_close` says that it will send no more, and reads no more either."""
    if how == "half_close":
        client.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        reset(client)
    client.close()


@pytest.mark.parametrize(
    ("transport", "phase"),
    [(kind, phase) for kind in PATHS for phase in (POLL_PHASES if kind == "poll" else STREAM_PHASES)],
)
async def test_a_reader_that_dies_leaves_nothing_behind(serve: Serve, transport: str, phase: str) -> None:
    hub = ts.Hub()
    session = hub.session("s")
    application = app(hub, heartbeat_s=HEARTBEAT_S, policy=Policy(write_timeout_s=WRITE_TIMEOUT_S))
    url = httpx.URL(serve(application, ws_ping_interval=None))
    loop = asyncio.get_running_loop()
    sees, before, after, whole_request, follow = PHASES[phase]
    for how in ("reset", "end", "half_close"):
        turn = session.turn()
        start = f"{session.epoch}.{session.head}"
        before(turn)
        after_cursor = session.cursor if phase == "waiting" else start
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            async with asyncio.timeout(GONE_S * 2):
                await loop.sock_connect(client, (url.host, url.port))
                path = PATHS[transport].format(follow=follow, after=after_cursor)
                head = f"GET {path} HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {start}\r\n"
                head += UPGRADE if transport == "websocket" else ""
                await loop.sock_sendall(client, f"{head}\r\n".encode()[: None if whole_request else -4])
                if whole_request and phase != "end":
                    await until(lambda: session.statistics()["readers"] == 1)
                if phase in ("mid_event", "live", "end"):
                    await until(lambda: session.statistics()["readers"] == 1)
                    after(turn)
                body = b""
                while sees not in body.partition(b"\r\n\r\n")[2] and not (phase == "headers" and sees in body):
                    body += await loop.sock_recv(client, 64)
            die(client, how)
            # What is sent to it now finds out, where nothing else does.
            await until(
                lambda: session.statistics()["readers"] == 0 and application.statistics()["streams"] == 0, GONE_S
            )
            if not turn.ended:
                turn.emit("custom", {"name": "goes on"})
                turn.complete()
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"{url}/sessions/s/events?deltas=exact&format=ndjson")
    seqs = [event["seq"] for event in map(json.loads, response.text.split("\n")[:-1]) if "seq" in event]
    assert seqs == list(range(1, session.head + 1))
