"""Many clients at once: bounded in time and memory, and each ends with the whole answer."""

import asyncio
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support import frozen, until

import turnstream as ts
from turnstream.asgi import app

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
