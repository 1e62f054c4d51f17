"""Does anything stay? Sessions are born, read in every way, ended in every way, and expire.

`python -m benches.soak` runs 10 million events through one hub, then a million items through one queue, from eight
threads to four loops. It prints a line for each step, and exits 1 on a leak, a loss or a double. A short run is a test.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import turnstream as ts
from benches import streams

DELTAS = 400
EMITS = 100
AT_ONCE = 8
"""Sessions that run at a time."""
GROWTH = 1.0
"""MiB of resident memory for a million events, at most."""

PIECES = streams.pieces(streams.openai_chat(DELTAS), 1024)


@dataclass(frozen=True)
class Step:
    events: int
    resident_mib: float
    descriptors: int
    tasks: int
    threads: int

    @classmethod
    def now(cls, events: int) -> Step:
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        descriptors = len(os.listdir("/proc/self/fd"))
        return cls(events, resident / 2**20, descriptors, len(asyncio.all_tasks()), threading.active_count())


def growth(steps: list[Step]) -> float:
    """MiB for a million events: the slope of the least squares."""
    events = [step.events / 1e6 for step in steps]
    middle = sum(events) / len(events)
    mean = sum(step.resident_mib for step in steps) / len(steps)
    above = sum((at - middle) * (step.resident_mib - mean) for at, step in zip(events, steps, strict=True))
    return above / sum((at - middle) ** 2 for at in events)


# --- one session ------------------------------------------------------------------------------------------------------


def span(event: ts.Event) -> int:
    """How many seqs an event stands for: a session that is read too late for its age says what is missing."""
    match event:
        case ts.Gap(first=first, last=last):
            return int(last - first + 1)
        case _:
            return 0 if event.seq is None else 1


async def each(reader: Any) -> int:
    return sum([span(event) async for event in reader])


async def in_batches(reader: Any) -> int:
    return sum([span(event) async for batch in reader.batches(64) for event in batch])


async def encoded(frames: Any) -> None:
    last = b""
    async for chunk in frames:
        last = chunk
    if b"event: completion" not in last:
        raise AssertionError("frames ended without a completion")


def blocking(reader: Any) -> int:
    return sum(span(event) for event in reader)


async def source(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def give_up(reader: Any) -> None:
    """Waits, in vain, and is gone while it is parked."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            async for _ in reader:
                pass


async def speak(turn: ts.Turn, pool: ThreadPoolExecutor) -> None:
    """A model's answer, and what a thread has to say meanwhile; held back by whoever paces."""
    emit = turn.session.emitter()

    def work() -> None:
        for number in range(EMITS // 2):
            emit("custom", name="thread", data=number, turn=turn.number)
            emit("progress", {"stage": "work", "current": number, "total": EMITS}, turn=turn.number)

    working = asyncio.get_running_loop().run_in_executor(pool, work)
    await turn.relay(source(PIECES), provider="openai-chat")
    await turn.ready()
    await working


async def queued(pool: ThreadPoolExecutor) -> None:
    queue: ts.EventQueue[bytes] = ts.EventQueue(16)

    def produce() -> None:
        for _ in range(50):
            queue.put(b"item")
        queue.close()

    producing = asyncio.get_running_loop().run_in_executor(pool, produce)
    if sum([len(batch) async for batch in queue.batches(8)]) != 50:
        raise AssertionError("a queue lost items")
    await producing


async def life(hub: ts.Hub, pool: ThreadPoolExecutor, number: int) -> int:
    """One session; how many events it logged."""
    loop = asyncio.get_running_loop()
    session = hub.session()
    reading: list[asyncio.Future[int]] = [
        asyncio.ensure_future(each(session.read())),
        asyncio.ensure_future(in_batches(session.read(pace=True))),
        loop.run_in_executor(pool, blocking, session.read()),
    ]
    writing = asyncio.ensure_future(encoded(session.frames(deltas="exact")))
    await give_up(session.read())
    turn = session.turn({"question": number})
    await give_up(session.read(after=session.cursor, pace=True))
    match number % 5:
        case 0:
            await speak(turn, pool)
            await session.cancel()
        case 1:
            with contextlib.suppress(RuntimeError), turn:
                await speak(turn, pool)
                raise RuntimeError("the agent broke")
        case 2:
            await speak(turn, pool)
            del turn  # forgotten: ended as abandoned
        case _:
            with turn:
                await speak(turn, pool)
                await queued(pool)
    counts = [*await asyncio.gather(*reading), await each(session.read(follow="none"))]
    await writing
    if any(count != session.head for count in counts):
        raise AssertionError(f"readers got {counts} of {session.head} events")
    return session.head


# --- many -------------------------------------------------------------------------------------------------------------


async def soak(total: int, steps: int, max_age_s: float, say: Callable[[Step], None]) -> list[Step]:
    hub = ts.Hub(limits=ts.Limits(max_age_s=max_age_s))
    numbers, events, seen = itertools.count(), 0, []
    with ThreadPoolExecutor(2 * AT_ONCE + 2) as pool:

        async def live(until: int) -> None:
            nonlocal events
            while events < until:
                logged = await life(hub, pool, next(numbers))  # not `events += await`: that adds to what was before
                events += logged

        for step in range(1, steps + 1):
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(live(total * step // steps))
            await expired(hub)
            seen.append(Step.now(events))
            say(seen[-1])
    return seen


async def expired(hub: ts.Hub) -> None:
    """Until the hub has forgotten all sessions but one: it looks at them once a second, when it is asked for one."""
    async with asyncio.timeout(30):
        while len(hub.sessions()) > 1:
            await asyncio.sleep(0.2)
            hub.session("keeper")


def crossing(items: int, producers: int = 8, consumers: int = 4, loop_factory: Any = None) -> float:
    """From threads to loops: each item exactly once, in order for each producer. Seconds that it took."""
    queue: ts.EventQueue[tuple[int, int]] = ts.EventQueue(1000)
    each = items // producers

    def produce(who: int) -> None:
        for number in range(each):
            queue.put((who, number))

    async def take() -> list[bytearray]:
        seen, last = [bytearray(each) for _ in range(producers)], [-1] * producers
        async for who, number in queue:
            if number <= last[who]:
                raise AssertionError(f"{number} of producer {who} after {last[who]}")
            last[who] = number
            seen[who][number] = 1
        return seen

    def consume() -> list[bytearray]:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(take())

    start = time.perf_counter()
    with ThreadPoolExecutor(producers + consumers) as pool:
        consuming = [pool.submit(consume) for _ in range(consumers)]
        for producing in [pool.submit(produce, who) for who in range(producers)]:
            producing.result()
        queue.close()
        taken = [done.result() for done in consuming]
    for who in range(producers):
        counts = bytes(map(sum, zip(*(seen[who] for seen in taken), strict=True)))
        if counts.count(1) != each:
            raise AssertionError(
                f"of producer {who} {counts.count(0)} items are lost, some came twice: {max(counts) > 1}"
            )
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="benches.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=10, help="how often it is looked; the first fifth is the warm-up")
    parser.add_argument("--items", type=int, default=1_000_000, help="through one queue, from 8 threads to 4 loops")
    parser.add_argument("--slack", type=float, default=0.0, metavar="MIB", help="for a run too short to tell")
    parser.add_argument("--max-age-s", type=float, default=2.0, help="how long the hub keeps a session that is over")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    loop_factory = None
    if options.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop

    def say(step: Step) -> None:
        print(
            f"{step.events:>10,} events  {step.resident_mib:7.2f} MiB  {step.descriptors} descriptors"
            f"  {step.tasks} tasks  {step.threads} threads",
            flush=True,
        )

    start = time.perf_counter()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        seen = runner.run(soak(options.events, options.steps, options.max_age_s, say))
    warm = seen[max(1, options.steps // 5) - 1 :]
    slope, spent = growth(warm), time.perf_counter() - start
    grown = slope * (warm[-1].events - warm[0].events) / 1e6
    flat = all((step.descriptors, step.tasks) == (warm[0].descriptors, warm[0].tasks) for step in warm)
    print(f"{slope:.3f} MiB per million events (at most {GROWTH}), {grown:.2f} in all; {spent:.0f} s")
    if options.items:
        took = crossing(options.items, loop_factory=loop_factory)
        print(f"{options.items:,} items, 8 threads to 4 loops: each once, in order; {took:.1f} s")
    leaks = slope > GROWTH and grown > options.slack
    if leaks or not flat:
        print("resident memory grows" if leaks else "descriptors or tasks are not flat")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
