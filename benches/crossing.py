"""From a thread to a loop, and back: one side puts, the other takes, and the queue holds at most 1,000 items.

A round is over when the last item has been taken; the clock runs from the start of the thread. Wall time decides, since
two threads work; CPU stands beside it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiologic
import culsans
import janus

import turnstream as ts
from benches import native
from benches.harness import Absent, Cost, Group, Line, Scale, Side, at_least, timed

ITEMS = 10_000
MAXSIZE = 1000
ITEM = {"name": "word", "data": " word"}

Produce = Callable[[], None]
Consume = Callable[[], Awaitable[int]]


def side(name: str, does: str, items: int, loop: asyncio.Runner, make: Callable[[], tuple[Produce, Consume]]) -> Side:
    """A contender from what makes its queue: `produce` runs in a thread, `consume` on the loop."""

    async def cross() -> None:
        produce, consume = make()
        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        taken = await consume()
        thread.join(10)
        if taken < items:  # a session adds its turn's start and completion
            raise AssertionError(f"{name} gave {taken} of {items} items")

    def run() -> Cost:
        return timed(lambda: loop.run(cross()), items)

    return Side(name, does, run)


@contextmanager
def crossing(scale: Scale) -> Iterator[Group]:
    items = scale.items(ITEMS)

    def putting(put: Callable[[Any], object], then: Callable[[], object] | None = None) -> Produce:
        def produce() -> None:
            for _ in range(items):
                put(ITEM)
            if then is not None:
                then()

        return produce

    def taking(get: Callable[[], Awaitable[Any]]) -> Consume:
        async def consume() -> int:
            for _ in range(items):
                await get()
            return items

        return consume

    def iterating(source: Any) -> Consume:
        async def consume() -> int:
            taken = 0
            async for _ in source:
                taken += 1
            return taken

        return consume

    def ours() -> tuple[Produce, Consume]:
        queue: ts.EventQueue[Any] = ts.EventQueue(maxsize=MAXSIZE)
        return putting(queue.put, queue.close), iterating(queue)

    def ours_singly() -> tuple[Produce, Consume]:
        queue: ts.EventQueue[Any] = ts.EventQueue(maxsize=MAXSIZE)
        return putting(queue.put), taking(queue.aget)

    def emitter() -> tuple[Produce, Consume]:
        session = ts.Hub().session()
        turn = session.turn()
        emit = session.emitter()

        def put(item: dict[str, str]) -> None:
            emit("custom", item)

        return putting(put, turn.complete), iterating(session.read())

    def with_culsans() -> tuple[Produce, Consume]:
        queue: culsans.Queue[Any] = culsans.Queue(maxsize=MAXSIZE)
        return putting(queue.sync_q.put), taking(queue.async_q.get)

    def with_janus() -> tuple[Produce, Consume]:
        queue: janus.Queue[Any] = janus.Queue(maxsize=MAXSIZE)
        return putting(queue.sync_q.put), taking(queue.async_q.get)

    def with_aiologic() -> tuple[Produce, Consume]:
        queue: aiologic.Queue[Any] = aiologic.Queue(MAXSIZE)
        return putting(queue.green_put), taking(queue.async_get)

    def call_soon() -> tuple[Produce, Consume]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        event_loop = asyncio.get_running_loop()

        def put(item: object) -> None:
            event_loop.call_soon_threadsafe(queue.put_nowait, item)

        return putting(put), taking(queue.get)

    with asyncio.Runner() as loop:

        def future_into_py() -> Side | Absent:
            try:
                channel = native.extension("future_into_py").Channel
            except (native.NotBuilt, ImportError) as reason:
                return Absent("future_into_py", str(reason))

            def make() -> tuple[Produce, Consume]:
                queue = channel(MAXSIZE)
                return putting(queue.put), taking(queue.recv)

            return side("future_into_py", "tokio mpsc; put, await recv(): one future an item", items, loop, make)

        queues: list[Side | Absent]
        if hasattr(ts, "EventQueue"):
            queues = [
                side("EventQueue", "put, async for", items, loop, ours),
                side("EventQueue.aget", "put, await aget()", items, loop, ours_singly),
            ]
        else:
            queues = [Absent(name, "no EventQueue in this build") for name in ("EventQueue", "EventQueue.aget")]
        yield Group(
            f"thread → loop, {items} items, at most {MAXSIZE} waiting",
            {"wall": "µs per item", "cpu": "µs CPU per item"},
            [
                *queues,
                side(
                    "emitter → reader",
                    "emit, async for: checked, folded, logged; bounded by the log",
                    items,
                    loop,
                    emitter,
                ),
                side("culsans", "sync_q.put, await async_q.get()", items, loop, with_culsans),
                side("janus", "sync_q.put, await async_q.get()", items, loop, with_janus),
                side("aiologic", "green_put, await async_get()", items, loop, with_aiologic),
                side("call_soon_threadsafe", "asyncio.Queue.put_nowait, await get(); no bound", items, loop, call_soon),
                future_into_py(),
            ],
            [
                Line("Thread → loop, EventQueue, against culsans", "culsans", "EventQueue", at_least(5)),
                Line("… against janus", "janus", "EventQueue", at_least(15)),
                Line("… against aiologic", "aiologic", "EventQueue"),
                Line("… against `call_soon_threadsafe`", "call_soon_threadsafe", "EventQueue", at_least(5)),
                Line("… against `future_into_py`", "future_into_py", "EventQueue", at_least(100)),
                Line("… `await aget()`, against culsans", "culsans", "EventQueue.aget"),
                Line("Thread → loop, emitter → log → reader, against culsans", "culsans", "emitter → reader"),
                Line("… against janus", "janus", "emitter → reader"),
                Line("… against `future_into_py`", "future_into_py", "emitter → reader"),
            ],
            scale.rounds(7),
        )


@contextmanager
def returning(scale: Scale) -> Iterator[Group]:
    """Loop → thread: a task puts, a thread takes."""
    items = scale.items(ITEMS)

    def side(name: str, does: str, make: Callable[[], tuple[Callable[[], Awaitable[None]], Callable[[], int]]]) -> Side:
        async def cross() -> None:
            produce, consume = make()
            taken: list[int] = []
            thread = threading.Thread(target=lambda: taken.append(consume()), daemon=True)
            thread.start()
            await produce()
            await asyncio.to_thread(thread.join, 30)
            if taken != [items]:
                raise AssertionError(f"{name} gave {taken} of {items} items")

        return Side(name, does, lambda: timed(lambda: loop.run(cross()), items))

    def putting(
        put: Callable[[Any], Awaitable[Any]], then: Callable[[], object] | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def produce() -> None:
            for _ in range(items):
                await put(ITEM)
            if then is not None:
                then()

        return produce

    def taking(get: Callable[[], Any]) -> Callable[[], int]:
        def consume() -> int:
            for _ in range(items):
                get()
            return items

        return consume

    def ours() -> tuple[Callable[[], Awaitable[None]], Callable[[], int]]:
        queue: ts.EventQueue[Any] = ts.EventQueue(maxsize=MAXSIZE)
        return putting(queue.aput, queue.close), lambda: sum(1 for _ in queue)

    def with_culsans() -> tuple[Callable[[], Awaitable[None]], Callable[[], int]]:
        queue: culsans.Queue[Any] = culsans.Queue(maxsize=MAXSIZE)
        return putting(queue.async_q.put), taking(queue.sync_q.get)

    def with_janus() -> tuple[Callable[[], Awaitable[None]], Callable[[], int]]:
        queue: janus.Queue[Any] = janus.Queue(maxsize=MAXSIZE)
        return putting(queue.async_q.put), taking(queue.sync_q.get)

    def with_aiologic() -> tuple[Callable[[], Awaitable[None]], Callable[[], int]]:
        queue: aiologic.Queue[Any] = aiologic.Queue(MAXSIZE)
        return putting(queue.async_put), taking(queue.green_get)

    with asyncio.Runner() as loop:
        yield Group(
            f"loop → thread, {items} items, at most {MAXSIZE} waiting",
            {"wall": "µs per item", "cpu": "µs CPU per item"},
            [
                side("EventQueue", "await aput, for item in queue", ours),
                side("culsans", "await async_q.put, sync_q.get", with_culsans),
                side("janus", "await async_q.put, sync_q.get", with_janus),
                side("aiologic", "await async_put, green_get", with_aiologic),
            ],
            [
                Line("Loop → thread, EventQueue, against culsans", "culsans", "EventQueue"),
                Line("… against janus", "janus", "EventQueue"),
                Line("… against aiologic", "aiologic", "EventQueue"),
            ],
            scale.rounds(7),
        )


GROUPS = {"crossing": crossing, "returning": returning}
