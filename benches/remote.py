"""From a Ray actor to an SSE client: the actor emits, the session logs, a raw client on a real socket counts frames.

All sides share one server, one actor and one client; they differ in how an event gets from the actor's process into the
session. Wall time is from the call of the actor to the completion at the client. The first event carries the time when
it was emitted: the clock of one machine is one clock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

import turnstream as ts
import turnstream.fastapi
from benches.harness import Cost, Group, Line, Scale, Side, at_least, at_most

EVENTS = 10_000
SLOW_EVENTS = 300
HAND_BATCH = 64
STAMP = re.compile(rb'"data":(\d{9,})')


def events(count: int) -> Iterator[dict[str, Any]]:
    """The first says when it was made; the others are words."""
    yield {"name": "word", "data": time.monotonic_ns()}
    for _ in range(count - 1):
        yield {"name": "word", "data": " word"}


class Worker:
    """What runs in the actor."""

    def emit(self, emit: Any, count: int) -> None:
        for event in events(count):
            emit("custom", event)

    def stream(self, count: int) -> Iterator[bytes]:
        from turnstream.ray import stream

        yield from stream(self.emit, count)

    def singly(self, queue: Any, count: int) -> None:
        for event in events(count):
            queue.put(("custom", event, None))
        queue.put(None)

    def by_hand(self, queue: Any, count: int) -> None:
        batch = []
        for event in events(count):
            batch.append(("custom", event, None))
            if len(batch) == HAND_BATCH:
                queue.put(batch)
                batch = []
        queue.put([*batch, None])

    def plain(self, count: int) -> Iterator[Any]:
        for event in events(count):
            yield ("custom", event, None)

    def put(self, box: Any) -> None:
        for event in events(1):
            box.put(("custom", event, None))
        box.put(None)


async def read(port: int, path: str) -> tuple[int, float, float]:
    """How many events came, how late the first was in ms, and when the last had come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    seen, tail, late = 0, b"", 0.0
    while True:
        data = await reader.read(1 << 18)
        if not data:
            raise ConnectionError(f"{path} ended early")
        if not late and (stamp := STAMP.search(tail + data)):
            late = (time.monotonic_ns() - int(stamp[1])) / 1e6
        seen += (tail[-15:] + data).count(b"\nevent: custom\n") - tail[-15:].count(b"\nevent: custom\n")
        tail = (tail + data)[-4096:]
        if b"\nevent: completion\n" in tail:
            writer.close()
            return seen, late, time.perf_counter()


class Bench:
    """The server, the actor, and a loop for all of it."""

    def __init__(self, worker: Any) -> None:
        self.hub = ts.Hub()
        self.worker = worker
        self.runner = asyncio.Runner()
        app = FastAPI()
        app.include_router(turnstream.fastapi.router(self.hub))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
        self.serving: asyncio.Task[None] | None = None
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.serving = asyncio.ensure_future(self.server.serve())
        while not self.server.started:  # noqa: ASYNC110, uvicorn rings no bell
            await asyncio.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self.server.should_exit = True
        assert self.serving is not None
        await self.serving

    def close(self) -> None:
        self.runner.run(self._stop())
        self.runner.close()

    async def once(self, count: int, send: Callable[[ts.Session], Awaitable[object]]) -> Cost:
        session = self.hub.session()
        turn = session.turn()
        client = asyncio.ensure_future(read(self.port, f"/sessions/{session.id}/events?deltas=exact"))
        while not session.status()["readers"]:  # noqa: ASYNC110, a count rings no bell
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        await send(session)
        turn.complete()
        seen, late, done = await client
        self.hub.delete(session.id)
        if seen != count:
            raise AssertionError(f"{seen} of {count} events came")
        return {"wall": (done - began) * 1e6 / count, "first": late}


def taking(session: ts.Session, queue: Any) -> Coroutine[Any, Any, None]:
    """What backends do today: a thread takes one thing after the other."""
    emit = session.emitter()

    def loop() -> None:
        while True:
            item = queue.get()
            for part in item if isinstance(item, list) else [item]:
                if part is None:
                    return
                emit(part[0], part[1])

    return asyncio.to_thread(loop)


async def iterating(session: ts.Session, generator: Any) -> None:
    emit = session.emitter()
    async for ref in generator:
        part = await ref
        emit(part[0], part[1])


@contextmanager
def remote(scale: Scale) -> Iterator[Group]:
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # off, Ray listens on 127.0.0.1 alone; read on import
    import ray
    from ray.util.queue import Queue

    from turnstream.ray import Mailbox

    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    bench = Bench(ray.remote(num_cpus=0)(Worker).remote())
    worker, many, few = bench.worker, scale.items(EVENTS), scale.items(SLOW_EVENTS)
    shared = Queue(1000, actor_options={"num_cpus": 0})

    async def mailbox(session: ts.Session) -> None:
        emit = session.remote_emitter()
        await session.pump(emit, producer=worker.emit.remote(emit, many))

    async def queued(session: ts.Session) -> None:
        emit = session.remote_emitter(transport=shared)
        await session.pump(emit, producer=worker.emit.remote(emit, many))

    async def generator(session: ts.Session) -> None:
        await session.pump(worker.stream.options(num_returns="streaming").remote(many))

    async def singly(session: ts.Session) -> None:
        worker.singly.remote(shared, few)
        await taking(session, shared)

    async def by_hand(session: ts.Session) -> None:
        worker.by_hand.remote(shared, many)
        await taking(session, shared)

    async def plain(session: ts.Session) -> None:
        await iterating(session, worker.plain.options(num_returns="streaming").remote(few * 10))

    async def first_emitted(session: ts.Session) -> None:
        emit = session.remote_emitter()
        await session.pump(emit, producer=worker.emit.remote(emit, 1))

    async def first_put(session: ts.Session) -> None:
        box = Mailbox()
        worker.put.remote(box)
        await session.pump(box)

    def side(name: str, does: str, count: int, send: Callable[[ts.Session], Awaitable[object]]) -> Side:
        return Side(name, does, lambda: bench.runner.run(bench.once(count, send)))

    def added() -> Cost:
        async def latency(send: Callable[[ts.Session], Awaitable[object]]) -> float:
            return statistics.median([(await bench.once(1, send))["first"] for _ in range(scale.items(30))])

        async def difference() -> float:
            return await latency(first_emitted) - await latency(first_put)

        return {"wall": 0.0, "first": bench.runner.run(difference())}

    try:
        yield Group(
            f"{many} events from a Ray actor to one SSE client",
            {"wall": "µs wall per event", "first": "ms to the first event"},
            [
                side("mailbox", "the default: emit → batches → actor mailbox → pump", many, mailbox),
                side("queue", "emit → batches → ray.util.queue → pump", many, queued),
                side("generator", "stream(work) → batches → streaming generator → pump", many, generator),
                side("singly", f"ray.util.queue, put and get one by one; {few} events", few, singly),
                side("by hand", f"ray.util.queue, lists of {HAND_BATCH}, get in a thread", many, by_hand),
                side("plain generator", f"one yield per event, one await per ref; {few * 10} events", few * 10, plain),
                Side("added", "median of 30 first events: emit's, less a bare put's", added),
            ],
            [
                Line(
                    "Ray actor → SSE client, mailbox, against ray.util.queue singly", "singly", "mailbox", at_least(30)
                ),
                Line("… through ray.util.queue", "singly", "queue", at_least(30)),
                Line("… through a streaming generator", "singly", "generator", at_least(30)),
                Line("… mailbox, against lists of 64 by hand", "by hand", "mailbox"),
                Line("… generator, against a plain streaming generator", "plain generator", "generator"),
                Line("First event, mailbox, ms", "mailbox", None, None, "first"),
                Line("… ray.util.queue, ms", "queue", None, None, "first"),
                Line("… streaming generator, ms", "generator", None, None, "first"),
                Line("First-event delay that batching adds, p50, ms", "added", None, at_most(2), "first"),
            ],
            scale.rounds(7),
        )
    finally:
        bench.close()
        ray.shutdown()


GROUPS = {"ray": remote}
