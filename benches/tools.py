"""Stream tools over a source that is ready: what one task for each source costs, against one task for each item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import turnstream as ts
from benches.harness import Cost, Group, Line, Scale, Side, at_least, timed

ITEMS = 20_000


async def source(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def task_for_each(count: int) -> AsyncIterator[int]:
    """The usual timeout that loses nothing: the task of an item that is late is kept for the next turn of the loop."""
    items = source(count)
    while True:
        pending = asyncio.ensure_future(anext(items, None))
        while not (await asyncio.wait({pending}, timeout=5))[0]:
            pass
        if (item := pending.result()) is None:
            return
        yield item


@contextmanager
def tools(scale: Scale) -> Iterator[Group]:
    count = scale.items(ITEMS)

    with asyncio.Runner() as loop:

        async def drained(stream: AsyncIterator[Any]) -> int:
            seen = 0
            async for _ in stream:
                seen += 1
            return seen

        def side(name: str, does: str, stream: Callable[[], AsyncIterator[Any]]) -> Side:
            def run() -> Cost:
                seen: list[int] = []
                cost = timed(lambda: seen.append(loop.run(drained(stream()))), count)
                if seen != [count]:
                    raise AssertionError(f"{name} gave {seen} of {count} items")
                return cost

            return Side(name, does, run)

        yield Group(
            f"{count} items that are ready, through a tool",
            {"cpu": "µs CPU per item"},
            [
                side("timeout", "streams.timeout", lambda: ts.streams.timeout(source(count), idle_s=5)),
                side("throttle", "streams.throttle; nothing to join", lambda: ts.streams.throttle(source(count))),
                side("a task an item", "ensure_future(anext(…)) and asyncio.wait", lambda: task_for_each(count)),
            ],
            [Line("Timeout without loss, against a task for each item", "a task an item", "timeout", at_least(5))],
            scale.rounds(7),
        )


GROUPS = {"tools": tools}
