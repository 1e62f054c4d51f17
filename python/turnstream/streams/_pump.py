"""What stands between a source and its consumer: the box of items, the tasks that fill it, who is freed when one goes.

Knows no event and no tool. Used on one loop's thread. Invariants: 1. a box is `full` at its room, and then its pump
reads no more; 2. a pump's tasks end with its last box, and each closes the source that it read; 3. an error comes after
the items that came before it, to every box.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, Generic, Literal, TypeVar

from turnstream._native import EventQueue
from turnstream.errors import ReaderBusy

__all__ = ["Box", "Left", "Pump", "at_least_one", "owned", "passed"]

T = TypeVar("T")


class Box(Generic[T]):
    """What came and has not been taken, with the loop's time at which it came. Used on one loop's thread."""

    def __init__(self, room: int) -> None:
        at_least_one("ahead", room)
        self.items: deque[tuple[T, float]] = deque()
        self.error: BaseException | None = None
        self.over: bool = False  # nothing more comes
        self.closed: bool = False  # nobody takes any more
        self.late: int = 0
        self.left_by: asyncio.Task[Any] | None = None  # its last wait was cancelled
        self.watched: asyncio.Task[Any] | None = None
        self._room = room
        self._news: asyncio.Future[None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def put(self, item: T, came: float) -> None:
        if self.over:
            self.late += 1
            return
        self.items.append((item, came))
        self._ring()

    def take(self) -> tuple[T, float]:
        taken = self.items.popleft()
        if self._waiting and not self.full:
            _wake(self._waiting.popleft())
        return taken

    @property
    def full(self) -> bool:
        return len(self.items) >= self._room and not self.over

    async def room(self) -> None:
        while self.full:
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]

    async def news(self, until: float | None) -> None:
        if self._news is not None:
            raise ReaderBusy("two tasks wait on one stream; tee it, or open a reader for each")
        loop = asyncio.get_running_loop()
        news = self._news = loop.create_future()
        timer = None if until is None else loop.call_at(until, _wake, news)
        try:
            await news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more comes; what is there can still be taken."""
        if not self.over:
            self.over, self.error = True, error
            self._ring()
            while self._waiting:
                _wake(self._waiting.popleft())

    def close(self) -> None:
        self.closed = True
        self.items.clear()
        self.finish()

    def _ring(self) -> None:
        if self._news is not None:
            _wake(self._news)


class Pump(Generic[T]):
    """The tasks that read sources into boxes: one for each source, from the first wait to the last box's close."""

    def __init__(self, sources: Sequence[AsyncIterable[T]], boxes: Sequence[Box[T]]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.total_s: float | None = None
        self.expired: bool = False
        self._sources = sources
        self._boxes = boxes
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._reading = len(sources)
        self._stopped = False
        self._error: BaseException | None = None  # of closing a source

    def start(self) -> None:
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            self._tasks = [self.loop.create_task(self._read(source)) for source in self._sources]
            if not self._tasks:
                self._finish()
            if self.total_s is not None:
                self._timer = self.loop.call_later(self.total_s, self._expire)

    async def _read(self, source: AsyncIterable[T]) -> None:
        loop, boxes = asyncio.get_running_loop(), self._boxes
        try:
            async with owned(source) as items:
                async for item in items:
                    came = loop.time()
                    for box in boxes:
                        box.put(item, came)
                    for box in boxes:
                        if box.full:
                            await box.room()
                        elif box.over:
                            # Only counted: others would not run while a source is always ready.
                            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            self._fail(error)  # the source's own, where it was not us
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._reading -= 1
            if not self._reading:
                self._finish()

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self._finish(error)
            self.stop()
        elif isinstance(error, Exception) and self._error is None:
            self._error = error

    def _finish(self, error: BaseException | None = None) -> None:
        for box in self._boxes:
            box.finish(error)

    def _expire(self) -> None:
        self.expired = any(not box.over for box in self._boxes)
        self._finish()
        self.stop()

    def stop(self) -> None:
        """Ends all reading."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def forget(self, box: Box[T]) -> None:
        """Nobody takes from `box` any more."""
        box.close()
        if not self._stopped and all(box.closed for box in self._boxes):
            self.stop()

    async def leave(self) -> None:
        """Waits until the sources are free, if nobody takes from any box."""
        if not all(box.closed for box in self._boxes):
            return
        if self.loop is None and not self._stopped:
            self._stopped = True
            for source in self._sources:
                await _release(source)
        elif not self._stopped:
            self.stop()
        if running := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(running)
        error, self._error = self._error, None
        if error is not None:
            raise error


class Left:
    """Called when a task has ended; frees the source if the task's last wait was cancelled."""

    def __init__(self, pump: Pump[Any], box: Box[Any]) -> None:
        self._pump, self._box = pump, box

    def __call__(self, task: asyncio.Task[Any]) -> None:
        if self._box.left_by is task:
            self._box.left_by = None
            self._pump.forget(self._box)


@asynccontextmanager
async def owned(source: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """The source's iterator; both are closed afterwards."""
    items = aiter(source)
    try:
        yield items
    finally:
        await _release(items)
        if items is not source:
            await _release(source)


async def _release(thing: Any) -> None:
    if isinstance(thing, EventQueue):
        return thing.close(discard=True)  # its producers are told so
    close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
    if close is not None and isawaitable(closing := close()):
        await closing


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def passed(time: float) -> bool:
    return asyncio.get_running_loop().time() >= time


def at_least_one(name: Literal["ahead", "max_items", "n"], value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1")
