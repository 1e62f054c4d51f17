"""What may be pumped: each kind of source, by what it is, as the pump's `Source`.

Knows the shapes; of Ray it knows the names of three classes, and imports it where one of them is met.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from contextlib import suppress
from typing import Any

from turnstream._native import Emitter, Session
from turnstream.errors import ProducerLost, UnsupportedSource
from turnstream.remote.emitter import Options, RemoteEmitter, Sink
from turnstream.remote.pump import Source

__all__ = ["HomeEmitter", "Producers", "source_of"]


class HomeEmitter:
    """A remote emitter where its session is: sent away it becomes a `RemoteEmitter`, called here it appends at once."""

    def __init__(self, session: Session, transport: Any, turn: int | None, options: Options) -> None:
        self._emit: Emitter = session.emitter()
        self._turn = turn
        self._options = options
        self._sink: Sink = transport.sink()
        self.transport = transport
        """What to pump, where the emitter itself is not at hand."""
        self.copies: int = 0
        """How often it was sent away: so many producers are to end before the pump does."""

    def __call__(self, type: str, payload: Any = None, *, turn: int | None = None, **fields: Any) -> int:
        return self._emit(type, payload, turn=self._turn if turn is None else turn, **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        self.copies += 1
        return RemoteEmitter, (self._sink, self._turn, self._options)

    def __repr__(self) -> str:
        return f"<HomeEmitter over {self.transport!r}, sent {self.copies} times>"


class _Iterated:
    """A local iterable."""

    def __init__(self, items: AsyncIterator[Any], loose: bool) -> None:
        self.loose = loose
        self._items = items
        self._next: asyncio.Task[Any] | None = None

    async def take(self, wait_s: float) -> list[Any]:
        if self._next is None:
            self._next = asyncio.ensure_future(_ending(self._items))
        await asyncio.wait({self._next}, timeout=wait_s)
        if not self._next.done():
            return []
        done, self._next = self._next, None
        if done.cancelled():  # by the source itself: raised here, it would pass for a cancel of this task's
            raise ProducerLost("the source was cancelled")
        ended, item = done.result()
        if ended:
            raise StopAsyncIteration
        return [item]

    async def close(self, reason: str) -> list[Any]:
        if self._next is not None:
            self._next.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._next
        rest = []
        if reason != "cancelled" and not self.loose:
            rest = [item async for item in self._items]
        close: Any = getattr(self._items, "aclose", None)
        if close is not None:
            await close()
        return rest

    def expected(self) -> int:
        return 0


async def _ending(items: AsyncIterator[Any]) -> tuple[bool, Any]:
    """A task cannot raise StopAsyncIteration."""
    try:
        return False, await anext(items)
    except StopAsyncIteration:
        return True, None


async def _awaited(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def source_of(source: Any) -> Source:
    """The source that `source` is. UnsupportedSource where it is none."""
    if isinstance(source, HomeEmitter):
        opened: Source = source.transport.source(lambda: source.copies)
        return opened
    name = f"{type(source).__module__}.{type(source).__qualname__}"
    if name in ("ray.util.queue.Queue", "turnstream.ray.Mailbox") or name.endswith(".ObjectRefGenerator"):
        from turnstream.ray import transport_of

        opened = transport_of(source).source(lambda: 0)
        return opened
    if isinstance(source, AsyncIterable):
        return _Iterated(aiter(source), loose=True)
    if isinstance(source, list | tuple):
        return _Iterated(aiter(_awaited(source)), loose=False)
    raise UnsupportedSource(f"{type(source).__name__} is nothing that can be pumped")


class Producers:
    """Who is watched while a source is pumped: tasks of this loop, Ray's tasks and actors."""

    def __init__(self, given: Any) -> None:
        several = isinstance(given, list | tuple | set | frozenset)
        everybody = list(given) if several else [] if given is None else [given]
        self._near = [one for one in everybody if isinstance(one, asyncio.Future)]
        self._far = [one for one in everybody if not isinstance(one, asyncio.Future)]

    def watch(self) -> list[Awaitable[Any]]:
        """For each, what is done when it is."""
        watches: list[Awaitable[Any]] = [asyncio.shield(one) for one in self._near]
        if self._far:
            from turnstream.ray import watch

            watches += map(watch, self._far)
        return watches

    def stop(self) -> None:
        """Cancels them all."""
        for one in self._near:
            one.cancel()
        if self._far:
            from turnstream.ray import stop_all

            stop_all(self._far)
