"""Waking: how soon a parked task hears, how long a producer is held up by telling it, what each of many readers costs.

A thread puts one item at a time, a task waits for each. The item is the time at which it was put.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import culsans
import janus

import turnstream as ts
from benches.harness import Cost, Group, Line, Scale, Side, timed

ITEMS = 1000
PAUSE_S = 0.0003
"""Between two items: long enough for the task to park again."""
SLICE_S = 0.001
STALLS = 20_000
READERS = 1000
EVENTS = 30

Put = Callable[[int], object]
Wait = Callable[[], Awaitable[int]]
Make = Callable[[], tuple[Put, Wait]]


def percentiles(nanoseconds: list[int]) -> Cost:
    cuts = statistics.quantiles(nanoseconds, n=100)
    return {"p50": cuts[49] / 1e3, "p99": cuts[98] / 1e3}


def event_queue() -> tuple[Put, Wait]:
    queue: ts.EventQueue[int] = ts.EventQueue(STALLS)
    iterator = aiter(queue)

    async def wait() -> int:
        return await anext(iterator)

    return queue.put, wait


def session() -> tuple[Put, Wait]:
    log = ts.Hub().session()
    emit, reader = log.emitter(), log.read(follow="session")

    async def wait() -> int:
        event = await anext(reader)
        assert isinstance(event, ts.Custom)
        return int(event.data)

    return lambda at: emit("custom", name="at", data=at), wait


def call_soon() -> tuple[Put, Wait]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    event_loop = asyncio.get_running_loop()
    return lambda at: event_loop.call_soon_threadsafe(queue.put_nowait, at), queue.get


def with_culsans() -> tuple[Put, Wait]:
    queue: culsans.Queue[int] = culsans.Queue(STALLS)
    return queue.sync_q.put, queue.async_q.get


def with_janus() -> tuple[Put, Wait]:
    queue: janus.Queue[int] = janus.Queue(STALLS)
    return queue.sync_q.put, queue.async_q.get


SIDES: dict[str, tuple[str, Make]] = {
    "EventQueue": ("put, async for", event_queue),
    "emitter → reader": ("emit, async for: checked, folded, logged", session),
    "call_soon_threadsafe": ("asyncio.Queue.put_nowait, await get(); no bound", call_soon),
    "culsans": ("sync_q.put, await async_q.get()", with_culsans),
    "janus": ("sync_q.put, await async_q.get()", with_janus),
}


async def heard(make: Make, items: int, busy: bool) -> list[int]:
    """Nanoseconds from each put to the line after its `await`."""
    put, wait = make()

    def produce() -> None:
        for _ in range(items):
            time.sleep(PAUSE_S)
            put(time.perf_counter_ns())

    async def work() -> None:
        while True:
            until = time.perf_counter() + SLICE_S
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    working = asyncio.create_task(work()) if busy else None
    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    delays = []
    for _ in range(items):
        at = await wait()
        delays.append(time.perf_counter_ns() - at)
    if working is not None:
        working.cancel()
    thread.join(10)
    return delays


async def held_up(make: Make, items: int) -> list[int]:
    """Nanoseconds that each put took, while a task takes."""
    put, wait = make()
    stalls: list[int] = []

    def produce() -> None:
        clock = time.perf_counter_ns
        for number in range(items):
            before = clock()
            put(number)
            stalls.append(clock() - before)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    for _ in range(items):
        await wait()
    thread.join(10)
    return stalls


def compared(title: str, what: str, loop: asyncio.Runner, rounds: int, run: Callable[[Make], Any]) -> Group:
    def side(name: str, does: str, make: Make) -> Side:
        return Side(name, does, lambda: percentiles(loop.run(run(make))))

    lines = [
        Line(f"{what}, p50, against `call_soon_threadsafe`", "call_soon_threadsafe", "EventQueue"),
        Line("… p99", "call_soon_threadsafe", "EventQueue", column="p99"),
        Line("… emitter → reader, p50", "call_soon_threadsafe", "emitter → reader"),
        Line("… emitter → reader, p99", "call_soon_threadsafe", "emitter → reader", column="p99"),
    ]
    sides = [side(name, does, make) for name, (does, make) in SIDES.items()]
    return Group(title, {"p50": "µs at p50", "p99": "µs at p99"}, sides, lines, rounds)


@contextmanager
def latency(scale: Scale) -> Iterator[Group]:
    items = scale.items(ITEMS)
    with asyncio.Runner() as loop:
        title = f"from put to woken, {items} items, the loop idle"
        yield compared(title, "Park and wake, idle loop", loop, scale.rounds(5), lambda make: heard(make, items, False))


@contextmanager
def latency_busy(scale: Scale) -> Iterator[Group]:
    items = scale.items(ITEMS // 2)
    with asyncio.Runner() as loop:
        title = f"from put to woken, {items} items, the loop busy in slices of 1 ms"
        yield compared(title, "Park and wake, busy loop", loop, scale.rounds(5), lambda make: heard(make, items, True))


@contextmanager
def stall(scale: Scale) -> Iterator[Group]:
    items = scale.items(STALLS)
    with asyncio.Runner() as loop:
        title = f"what one put takes the thread that puts, {items} items, a task taking"
        yield compared(title, "Producer stall", loop, scale.rounds(5), lambda make: held_up(make, items))


# --- many readers -----------------------------------------------------------------------------------------------------


@contextmanager
def fan_out(scale: Scale) -> Iterator[Group]:
    readers, events = scale.items(READERS), EVENTS

    async def many(
        consume: Callable[[Callable[[int], None]], list[Awaitable[None]]], emit: Callable[[int], object]
    ) -> None:
        seen = 0

        def count(some: int) -> None:
            nonlocal seen
            seen += some

        tasks = [asyncio.ensure_future(one) for one in consume(count)]
        await asyncio.sleep(0)
        for number in range(events):
            emit(number)
            while seen < (number + 1) * readers:  # noqa: ASYNC110 -- an event would be one more to wake
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ours(batches: bool) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            log = ts.Hub().session()
            emit = log.emitter()

            async def each(reader: ts.Reader, count: Callable[[int], None]) -> None:
                async for _ in reader:
                    count(1)

            async def in_batches(reader: ts.Reader, count: Callable[[int], None]) -> None:
                async for batch in reader.batches(64):
                    count(len(batch))

            read = in_batches if batches else each
            await many(
                lambda count: [read(log.read(follow="session"), count) for _ in range(readers)],
                lambda number: emit("custom", name="n", data=number),
            )

        return run

    async def queues() -> None:
        all_queues: list[asyncio.Queue[int]] = [asyncio.Queue() for _ in range(readers)]

        async def each(queue: asyncio.Queue[int], count: Callable[[int], None]) -> None:
            while True:
                await queue.get()
                count(1)

        def put(number: int) -> None:
            for queue in all_queues:
                queue.put_nowait(number)

        await many(lambda count: [each(queue, count) for queue in all_queues], put)

    with asyncio.Runner() as loop:

        def side(name: str, does: str, run: Callable[[], Any]) -> Side:
            return Side(name, does, lambda: timed(lambda: loop.run(run()), readers * events))

        yield Group(
            f"{events} events, one by one, to {readers} tasks that wait",
            {"cpu": "µs CPU per reader and event"},
            [
                side("readers", "of one session: woken, then take; each makes its event object", ours(False)),
                side("readers.batches(64)", "the same in lists", ours(True)),
                side("asyncio.Queue each", "put_nowait into every queue; one object for all", queues),
            ],
            [
                Line("One event to 1,000 waiting readers, against a queue for each", "asyncio.Queue each", "readers"),
                Line("… microseconds per reader and event", "readers"),
            ],
            scale.rounds(5),
        )


GROUPS = {"latency": latency, "latency-busy": latency_busy, "stall": stall, "fan-out": fan_out}
