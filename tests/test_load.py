"""Many clients at once, and clients on bad lines: bounded in time, and each ends with the whole answer."""

import asyncio
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import frozen, until

import turnstream as ts
from turnstream.asgi import Policy, app

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

IDS = re.compile(rb"\nid: \w+\.(\d+)\n")


def ids(body: bytes) -> list[int]:
    return [int(name) for name in IDS.findall(b"\n" + body)]


async def raw(base: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream over a bare socket, without chunks: 1,000 HTTP clients would cost more than what they test."""
    url = httpx.URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1 << 22)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    try:
        await reader.readuntil(b"\r\n\r\n")
    except BaseException:
        await gone(writer)
        raise
    return reader, writer


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


# --- crowds -----------------------------------------------------------------------------------------------------------


async def test_1000_readers_join_while_a_writer_runs(serve: Serve) -> None:
    hub = ts.Hub()
    session = hub.session("s")
    base = serve(app(hub), loop="uvloop", backlog=2048)
    chance = random.Random(7)
    turn = session.turn()

    async def write() -> None:
        for number in range(200):
            turn.emit("custom", {"name": "part", "data": number})
            await asyncio.sleep(0.02)
        turn.complete()

    async def read() -> list[int]:
        await asyncio.sleep(chance.random() * 4)
        reader, writer = await raw(base, "/sessions/s/events?deltas=exact")
        body = await reader.read(-1)
        await gone(writer)
        return ids(body)

    async with asyncio.timeout(50):
        reading = [asyncio.create_task(read()) for _ in range(1000)]
        await asyncio.gather(write(), *reading)
    assert {tuple(each.result()) for each in reading} == {tuple(range(1, session.head + 1))}


FROZEN_SERVER = """
import asyncio, socket, sys
import turnstream as ts, uvicorn
from turnstream.asgi import Policy, app

hub = ts.Hub()
big = hub.session("big").turn()
for _ in range(80):
    big.emit("custom", {"name": "part", "data": "x" * 100_000})
ticking = hub.session("ticking")

async def agent(turn):
    import time
    while True:
        turn.emit("custom", {"name": "tick", "data": time.monotonic()})
        await asyncio.sleep(0.02)

application = app(hub, agent, policy=Policy(write_timeout_s=6.0))
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(application, log_level="error", loop="uvloop")).run(sockets=[listener])
"""


def resident_mb(pid: int) -> float:
    (line,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(line) / 1024


def p99_ms(late: list[float]) -> float:
    return sorted(late)[int(len(late) * 0.99)] * 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_500_frozen_clients_cost_memory_that_is_bounded_and_nobody_elses_time() -> None:
    """Each is owed 8 MB: 4 GB, were it kept for them."""
    command = [sys.executable, "-c", FROZEN_SERVER]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{(await server.stdout.readline()).decode().strip()}"
        async with httpx.AsyncClient() as http:
            await http.post(f"{base}/sessions/ticking/turns", json={"input": 1})
            reader, writer = await raw(base, "/sessions/ticking/events")
            late: list[float] = []

            async def watch() -> None:
                while line := await reader.readline():
                    if found := re.search(rb'"name":"tick","data":([\d.]+)', line):
                        late.append(time.monotonic() - float(found[1]))

            watching = asyncio.create_task(watch())
            await until(lambda: len(late) > 100)
            alone, before = p99_ms(late), resident_mb(server.pid)
            clients = []
            for _ in range(500):
                clients.append(frozen(base, "/sessions/big/events"))
                await asyncio.sleep(0.002)
            late.clear()
            await until(lambda: len(late) > 100)
            beside, grown = p99_ms(late), resident_mb(server.pid) - before

            async def readers() -> int:
                count: int = (await http.get(f"{base}/sessions/big")).json()["readers"]
                return count

            async with asyncio.timeout(25):
                while await readers() > 0:  # noqa: ASYNC110, another process rings no bell
                    await asyncio.sleep(0.2)
            late.clear()
            await until(lambda: len(late) > 20)
            watching.cancel()
            await gone(writer)
            for client in clients:
                client.close()
    finally:
        server.kill()
        await server.wait()
    print(f"p99 {alone:.1f} ms alone, {beside:.1f} ms beside 500 frozen; {grown:.0f} MB more")
    assert grown < 250  # half a megabyte each, of 8
    assert beside < max(5 * alone, 50)  # the machine's own unrest aside


# --- bad lines --------------------------------------------------------------------------------------------------------


class BadLine:
    """A proxy that delays, delays unevenly, and cuts connections at random bytes."""

    def __init__(self, base: str, seed: int) -> None:
        self._upstream = httpx.URL(base)
        self._chance = random.Random(seed)

    async def __aenter__(self) -> str:
        self._open = 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await until(lambda: self._open == 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        up_reader, up_writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
        left = self._chance.choice([0, 40, 285, 700, 3000, 10**9])
        try:
            up_writer.write(await reader.readuntil(b"\r\n\r\n"))
            while piece := await up_reader.read(512):
                await asyncio.sleep(self._chance.random() * 0.002)
                writer.write(piece[:left])
                await writer.drain()
                left -= len(piece)
                if left <= 0:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            await gone(up_writer)
            await gone(writer)
            self._open -= 1


@pytest.mark.parametrize("seed", range(10))
async def test_over_a_bad_line_each_event_comes_once_in_order(serve: Serve, seed: int) -> None:
    hub = ts.Hub()
    session = hub.session("s")
    base = serve(app(hub, heartbeat_s=0.05))
    turn = session.turn()

    async def write() -> None:
        for number in range(60):
            turn.emit("custom", {"name": "part", "data": number})
            await asyncio.sleep(0.002)
        turn.complete()

    async def read(line: str) -> list[int]:
        """As an EventSource: what is not ended by its blank line was not received."""
        read: list[int] = []
        while not read or read[-1] < session.head or not turn.ended:
            after = f"?deltas=exact&after={session.epoch}.{read[-1]}" if read else "?deltas=exact"
            try:
                reader, writer = await raw(line, f"/sessions/s/events{after}")
            except (OSError, asyncio.IncompleteReadError):
                continue
            body = b""
            try:
                while piece := await reader.read(4096):
                    body += piece
            except OSError:
                pass
            await gone(writer)
            read += ids(body[: body.rfind(b"\n\n") + 2])
        return read

    async with asyncio.timeout(20), BadLine(base, seed) as line:
        _, read_by = await asyncio.gather(write(), read(line))
    assert read_by == list(range(1, session.head + 1))
    await until(lambda: session.statistics()["readers"] == 0)


@pytest.mark.parametrize("phase", ["request", "headers", "open", "replay", "idle", "end"])
async def test_a_reader_that_dies_leaves_nothing_behind(serve: Serve, phase: str) -> None:
    hub = ts.Hub()
    session = hub.session("s")
    application = app(hub, heartbeat_s=0.05, policy=Policy(write_timeout_s=0.4))
    url = httpx.URL(serve(application))
    turn = session.turn()
    if phase == "replay":
        for _ in range(100):
            turn.emit("custom", {"name": "part", "data": "x" * 100_000})
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /sessions/s/events HTTP/1.1\r\nHost: x\r\n" + (b"" if phase == "request" else b"\r\n"))
    await writer.drain()
    wanted: dict[str, bytes] = {"headers": b"HTTP/1.1", "open": b"stream_open", "idle": b": heartbeat"}
    if phase == "end":
        turn.complete()
        wanted["end"] = b"event: completion"
    body = b""
    while phase in wanted and wanted[phase] not in body:
        body += await reader.read(64)
    if phase == "replay":
        await until(lambda: session.statistics()["readers"] == 1)
    await gone(writer)
    await until(lambda: session.statistics()["readers"] == 0 and application.statistics()["streams"] == 0)
    if not turn.ended:
        turn.emit("custom", {"name": "goes on"})
        turn.complete()
    async with httpx.AsyncClient() as http:
        response: Any = await http.get(f"{url}/sessions/s/events?deltas=exact")
    assert ids(response.content) == list(range(1, session.head + 1))
