"""Handing over what is ready: no thread, no waiting, one loop. The cost of `async for` itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import turnstream as ts
from benches import streams
from benches.harness import Absent, Cost, Group, Line, Scale, Side, at_least, timed

EVENTS = 50_000


@contextmanager
def ready(scale: Scale) -> Iterator[Group]:
    session = ts.Hub().session()
    turn = session.turn()
    for token in streams.tokens(scale.items(EVENTS)):
        turn.emit("text_delta", text=token)
    turn.complete()
    events = list(session.read())
    count = len(events)

    with asyncio.Runner() as loop:

        def side(name: str, does: str, drain: Callable[[Any], Any], source: Callable[[], Any]) -> Side:
            def run() -> Cost:
                ready_source = source()
                seen: list[int] = []
                cost = timed(lambda: seen.append(loop.run(drain(ready_source))), count)
                if seen != [count]:
                    raise AssertionError(f"{name} gave {seen} of {count} items")
                return cost

            return Side(name, does, run)

        async def each(source: Any) -> int:
            seen = 0
            async for _ in source:
                seen += 1
            return seen

        async def in_batches(reader: Any) -> int:
            seen = 0
            async for batch in reader.batches(64):
                seen += len(batch)
                for _ in batch:
                    pass
            return seen

        async def got(queue: asyncio.Queue[Any]) -> int:
            seen = 0
            for _ in range(count):
                await queue.get()
                seen += 1
            return seen

        def filled() -> asyncio.Queue[Any]:
            queue: asyncio.Queue[Any] = asyncio.Queue()
            for event in events:
                queue.put_nowait(event)
            return queue

        def filled_ours() -> Any:
            queue: ts.EventQueue[Any] = ts.EventQueue(maxsize=count)
            for event in events:
                queue.put_nowait(event)
            queue.close()
            return queue

        yield Group(
            f"{count} items that are ready, taken by one task",
            {"cpu": "µs CPU per item"},
            [
                side("reader", "async for over a session's log; makes each event object", each, session.read),
                side("reader.batches(64)", "the same in lists of 64", in_batches, session.read),
                side("EventQueue", "async for; objects that exist", each, filled_ours)
                if hasattr(ts, "EventQueue")
                else Absent("EventQueue", "no EventQueue in this build"),
                side("EventQueue.batches(64)", "the same in lists of 64", in_batches, filled_ours),
                side("asyncio.Queue", "await queue.get(); objects that exist", got, filled),
            ],
            [
                Line(
                    "Ready event through `async for`, against `asyncio.Queue.get`",
                    "asyncio.Queue",
                    "reader",
                    at_least(2),
                ),
                Line("… in batches of 64", "asyncio.Queue", "reader.batches(64)", at_least(2)),
                Line("… EventQueue", "asyncio.Queue", "EventQueue", at_least(2)),
                Line("… EventQueue in batches of 64", "asyncio.Queue", "EventQueue.batches(64)", at_least(15)),
            ],
            scale.rounds(11),
        )


GROUPS = {"ready": ready}
