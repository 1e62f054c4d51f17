"""Tools over any async iterator: merge, map, filter, tee, buffer, timeout, throttle, error_boundary.

Owns what each tool gives, and when. Refuses to know how items wait and how sources are read and freed (`_pump`), and
how deltas are joined (the core). A namespace (`ts.streams`), for two of its names are builtins'. Invariants:

1. A tool owns its source: however the tool is left, the source is closed, by the task that read it.
2. What came is handed out before the error, the timeout or the end that came after it; a cancelled wait takes nothing.
3. A tool holds at most `ahead` items of a source, and then reads no more: backpressure goes through any chain.
4. No task and no timer outlives its tool.

`map`, `filter` and `error_boundary` are async generators without a task. The others are `Stream`s: a task reads each
source, so that a consumer may come late, stop waiting and wait again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress
from inspect import isawaitable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from turnstream._native import (
    Error,
    Event,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolOutputDelta,
    join_deltas,
)
from turnstream.errors import StreamTimeout
from turnstream.relay import error_fields
from turnstream.streams._pump import Box, Left, Pump, at_least_one, owned, passed

__all__ = [
    "Stream",
    "Throttle",
    "buffer",
    "error_boundary",
    "filter",
    "join",
    "map",
    "merge",
    "tee",
    "throttle",
    "timeout",
]

T = TypeVar("T")
U = TypeVar("U")

_DELTAS = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallDelta, ToolOutputDelta)
_HELD = 1000  # deltas that wait for one join


# --- without a task ---------------------------------------------------------------------------------------------------


async def map(source: AsyncIterable[T], function: Callable[[T], U | Awaitable[U]]) -> AsyncGenerator[U]:
    """What `function`, plain or async, makes of each item."""
    async with owned(source) as items:
        async for item in items:
            made = function(item)
            yield (await made) if isawaitable(made) else made


async def filter(source: AsyncIterable[T], keep: Callable[[T], object]) -> AsyncGenerator[T]:
    """The items of which `keep`, plain or async, says something true."""
    async with owned(source) as items:
        async for item in items:
            kept = keep(item)
            if (await kept) if isawaitable(kept) else kept:
                yield item


async def error_boundary(source: AsyncIterable[T]) -> AsyncGenerator[T | Error]:
    """The items; an exception of the source becomes a fatal `error` event, and the end. A cancel passes."""
    try:
        async with owned(source) as items:
            async for item in items:
                yield item
    except Exception as error:
        yield Error(**error_fields(error))


def join(events: Sequence[Event], max_bytes: int = 0) -> list[Event]:
    """The events, with neighbouring deltas of one kind and one id joined into pieces of at most `max_bytes` of text (0:
    into one). No piece ends within a character or a grapheme cluster; a cluster that is longer stays whole."""
    return join_deltas(events, max_bytes)


# --- with a task for each source --------------------------------------------------------------------------------------


def merge(*sources: AsyncIterable[T], ahead: int = 64) -> Stream[T]:
    """The items of all sources as they come; ends with the last of them. The first error ends all."""
    return Stream(sources, ahead)


def buffer(
    source: AsyncIterable[T], max_items: int | None = None, max_delay_s: float | None = None, *, ahead: int = 64
) -> Stream[list[T]]:
    """Lists of items, none empty: given when `max_items` are there, when the first of them is `max_delay_s` old, or at
    the end. Without `max_items`, `ahead` is the most."""
    return _Buffer(source, max_items if max_items is not None else ahead, max_delay_s, ahead)


def timeout(
    source: AsyncIterable[T], *, idle_s: float | None = None, total_s: float | None = None, ahead: int = 64
) -> Stream[T]:
    """The items; StreamTimeout where one is waited for longer than `idle_s`, or when `total_s` have passed since the
    first was asked for.

    After an idle timeout the stream goes on where it is asked again, and nothing that came is lost. The total one
    closes the source; what had come is handed out first.
    """
    return _Timeout(source, idle_s, total_s, ahead)


def throttle(
    source: AsyncIterable[T], interval_s: float = 0.1, *, max_bytes: int = 4000, ahead: int = 1000
) -> Throttle[T]:
    """The items, with deltas held back until the first of them is `interval_s` old, and then joined into events of at
    most `max_bytes` of text (0: no bound): see `join`. Anything else is given at once, after what was held."""
    return Throttle(source, interval_s, max_bytes, ahead)


def tee(source: AsyncIterable[T], n: int = 2, *, ahead: int = 64) -> tuple[Stream[T], ...]:
    """`n` streams of the same items. The slowest holds the others back once it lags by `ahead`: close the one that is
    no longer read. Readers of one session need no tee: each has its own cursor."""
    at_least_one("n", n)
    boxes = [Box[T](ahead) for _ in range(n)]
    pump = Pump[T]((source,), boxes)
    return tuple(Stream((), ahead, box, pump) for box in boxes)


class Stream(Generic[T]):
    """What a tool gives: an async iterator, for one task at a time (else ReaderBusy), and an async context manager.

    Cancelling a wait takes nothing: wait again, and the next item is there. The source is closed by `aclose`, by
    leaving `async with`, when a task ends that was cancelled while it waited here, and when nobody holds the stream.
    """

    def __init__(
        self,
        sources: Sequence[AsyncIterable[Any]],
        ahead: int,
        box: Box[Any] | None = None,
        pump: Pump[Any] | None = None,
    ) -> None:
        self._box: Box[Any] = box if box is not None else Box(ahead)
        self._pump: Pump[Any] = pump if pump is not None else Pump(sources, [self._box])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._box.left_by = None
        return await self._next()

    async def _next(self) -> T:
        box = self._box
        while not box.items:
            if box.over:
                await self._end()
            await self._wait()
        return box.take()[0]  # type: ignore[no-any-return]

    async def _wait(self, until: float | None = None) -> None:
        """Waits for news, or for the loop's time `until`."""
        self._pump.start()
        box = self._box
        if box.over:  # there was nothing to start
            return
        try:
            await box.news(until)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # A task that was made for one wait, as `asyncio.wait_for` does before Python 3.12, is not the consumer.
            if task is not None and getattr(task.get_coro(), "cr_code", None) is not Stream.__anext__.__code__:
                box.left_by = task
                if box.watched is not task:
                    box.watched = task
                    task.add_done_callback(Left(self._pump, box))
            raise

    async def _end(self) -> None:
        """Raises the source's error, once, or the end."""
        error = self._box.error
        try:
            await self.aclose()  # a cancel here leaves the error for the next call
        except Exception:
            if error is None:
                raise
        self._box.error = None
        if error is not None:
            raise error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the stream, closes its source and waits until that is free. A second call does nothing."""
        self._box.close()
        await self._pump.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        pump: Pump[Any] | None = getattr(self, "_pump", None)  # none where the arguments were refused
        if pump is None or self._box.closed:
            return
        if (loop := pump.loop) is None:
            pump.forget(self._box)  # nothing has begun that another thread could be in
        elif not loop.is_closed():
            with suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(pump.forget, self._box)


class _Buffer(Stream[list[T]]):
    def __init__(self, source: AsyncIterable[T], max_items: int, max_delay_s: float | None, ahead: int) -> None:
        at_least_one("max_items", max_items)
        super().__init__((source,), max(ahead, max_items))
        self._max_items, self._max_delay_s = max_items, max_delay_s

    async def _next(self) -> list[T]:
        box, delay = self._box, self._max_delay_s
        while True:
            due = box.items[0][1] + delay if box.items and delay is not None else None
            if len(box.items) >= self._max_items or box.over or (due is not None and passed(due)):
                if box.items:
                    return [box.take()[0] for _ in range(min(self._max_items, len(box.items)))]
                await self._end()
            await self._wait(due)


class _Timeout(Stream[T]):
    def __init__(self, source: AsyncIterable[T], idle_s: float | None, total_s: float | None, ahead: int) -> None:
        super().__init__((source,), ahead)
        self._idle_s, self._pump.total_s = idle_s, total_s

    async def _next(self) -> T:
        box, idle = self._box, self._idle_s
        due = None if idle is None else asyncio.get_running_loop().time() + idle
        while not box.items:
            if box.over:
                if self._pump.expired and box.error is None and not box.closed:
                    box.error = StreamTimeout(f"the stream did not end within {self._pump.total_s} s", kind="total")
                await self._end()
            if due is not None and passed(due):
                raise StreamTimeout(f"nothing came for {idle} s", kind="idle")
            await self._wait(due)
        return box.take()[0]  # type: ignore[no-any-return]


class Throttle(Stream[T]):
    """See `throttle`."""

    def __init__(self, source: AsyncIterable[T], interval_s: float, max_bytes: int, ahead: int) -> None:
        super().__init__((source,), ahead)
        self._interval_s, self._max_bytes = interval_s, max_bytes
        self._out: deque[Any] = deque()
        self._held: list[Any] = []
        self._size = 0  # characters held
        self._due = 0.0

    async def _next(self) -> T:
        while not self._out:
            self._gather()
            if self._out:
                break
            if self._box.over:
                self._flush()
                if not self._out:
                    await self._end()
            elif self._held and passed(self._due):
                self._flush()
            else:
                await self._wait(self._due if self._held else None)
        return self._out.popleft()  # type: ignore[no-any-return]

    def _gather(self) -> None:
        """Takes what came, up to what is to be given at once."""
        while self._box.items and not self._out:
            item, came = self._box.take()
            if not isinstance(item, _DELTAS):
                self._flush()
                self._out.append(item)
                return
            if not self._held:
                self._due = came + self._interval_s
            self._hold(item)
            if 0 < self._max_bytes < self._size or len(self._held) >= _HELD:
                # The last piece stays: what comes next may belong to its last character.
                *full, last = join_deltas(self._held, self._max_bytes)
                self._out.extend(full)
                self._held, self._size = [], 0
                self._hold(last)
                if full:
                    self._due = came + self._interval_s

    def _hold(self, delta: Any) -> None:
        self._held.append(delta)
        self._size += len(delta.text)

    def _flush(self) -> None:
        self._out.extend(join_deltas(self._held, self._max_bytes))
        self._held, self._size = [], 0

    def close(self) -> None:
        """What has come is flushed, then comes the end. What the source gives after this is ignored, and counted in
        `late`. To be called on the loop's thread."""
        self._box.finish()

    @property
    def late(self) -> int:
        """Items that came after `close`."""
        return self._box.late

    async def aclose(self) -> None:
        """Ends the stream at once, without what it holds; closes its source."""
        self._out.clear()
        self._held, self._size = [], 0
        await super().aclose()
