"""`turnstream.streams`: tools over async iterators. Nothing lost, nothing left behind; on both loops, in debug mode too."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing
from typing import Any

import pytest

import turnstream as ts
from support import until
from turnstream import streams

PATIENCE_S = 10.0


@pytest.fixture(autouse=True, params=[False, True], ids=["", "debug"])
async def nothing_is_left(request: pytest.FixtureRequest) -> AsyncGenerator[None]:
    """After each test only the tasks that were there before it are there."""
    asyncio.get_running_loop().set_debug(request.param)
    before = asyncio.all_tasks()
    yield
    gc.collect()
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


class Script(AsyncIterator[Any]):
    """A source that a test feeds; it says when it is closed, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def give(self, *items: Any) -> "Script":
        for item in items:
            self._items.put_nowait(item)
        return self

    def end(self, error: BaseException | None = None) -> "Script":
        return self.give(error or StopAsyncIteration())

    async def __anext__(self) -> Any:
        self.asked += 1
        item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


def text(piece: str, message_id: str = "m", seq: int = 0) -> ts.TextDelta:
    return ts.TextDelta(message_id=message_id, text=piece, seq=seq)


def tool(call_id: str = "c") -> ts.ToolCallStart:
    return ts.ToolCallStart(call_id=call_id, name="t", kind="client")


def told(events: list[Any]) -> list[str]:
    """Texts of deltas, types of others."""
    return [getattr(event, "text", None) or event.type for event in events]


async def bounded(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [item async for item in stream]
