"""What a live event costs a server per client that it reaches: 200 clients, 100 events a second."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from benches.harness import Absent, Cost, Group, Line, Scale, Side, Worker, at_least

CLIENTS = 200
EVENTS_A_SECOND = 100
ROUND_S = 1.5
JOINING_S = 0.7
"""After the last client has joined, so that no joining is counted."""


async def deliveries(worker: Worker, port: int, path: str) -> Cost:
    count = 0

    async def client() -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())
            while piece := await reader.read(65_536):
                count += piece.count(b"event: custom")
        finally:
            writer.close()

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    await asyncio.sleep(JOINING_S)
    count, cpu = 0, worker.cpu()
    await asyncio.sleep(ROUND_S)
    worked, reached = worker.cpu() - cpu, count
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    if not reached:
        raise AssertionError("nothing was delivered")
    return {"cpu": worked * 1e6 / reached}


def contender(name: str, kind: str) -> Side | Absent:
    """A process a round: what a contender keeps of clients that have left is not to weigh on the next round."""
    command = (sys.executable, "-m", "benches.live_server", kind, str(EVENTS_A_SECOND))
    try:
        worker = Worker(*command)
    except RuntimeError as error:
        return Absent(name, str(error))
    does = worker.hello["does"]
    worker.close()

    def run() -> Cost:
        worker = Worker(*command)
        try:
            return uvloop.run(deliveries(worker, worker.hello["port"], worker.hello["path"]))
        finally:
            worker.close()

    return Side(name, does, run)


@contextmanager
def live(scale: Scale) -> Iterator[Group]:
    yield Group(
        f"{CLIENTS} SSE clients, 100 events a second, through uvicorn (uvloop, httptools)",
        {"cpu": "µs server CPU per delivery"},
        [
            contender("turnstream", "turnstream"),
            contender("bare bytes", "bare"),
            contender("sse-starlette", "sse_starlette"),
            contender("fastapi.sse", "fastapi_sse"),
        ],
        [
            Line("Live delivery, server CPU, against sse-starlette", "sse-starlette", "turnstream", at_least(1.5)),
            Line("… against fastapi.sse", "fastapi.sse", "turnstream", at_least(2)),
            Line("… against bare pre-encoded bytes", "bare bytes", "turnstream", at_least(1 / 1.15)),
        ],
        scale.rounds(5),
    )


GROUPS = {"live": live}
