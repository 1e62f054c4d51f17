"""`session.subscribe`: a callback that is called with each event of a session.

Owns where and when the callback runs, and what becomes of its failures. Refuses to know what an event means.
Invariants:

1. Calls come in order, one at a time, on the loop that ran at registration, in the context of that moment; without a
   loop, on one in a daemon thread of the subscription's own.
2. A subscription is a cursor: what the callback has not seen stands in the log and nowhere else. No emitter waits.
3. Every boundary event of the log reaches it. Deltas and progress that lag by `backlog` events are skipped, counted in
   `dropped`, and announced by a `gap`, like what has left the log.
4. A callback that raises is counted, said once as a `warning` in the log, and flagged in the turn's completion. The
   emitter, the turn and other subscribers go on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from concurrent import futures
from contextlib import suppress
from contextvars import Context, copy_context
from inspect import isawaitable
from types import TracebackType
from typing import Literal, Self

from turnstream._native import EVENT_TYPES, Event, Gap, Session, Snapshot
from turnstream.errors import TurnstreamError, WouldBlock

__all__ = ["Subscription"]

log: logging.Logger = logging.getLogger("turnstream")

_SKIPPED = frozenset(
    ("text_delta", "reasoning_delta", "refusal_delta", "tool_call_delta", "tool_output_delta", "progress")
)


class Subscription:
    """What `session.subscribe` gives. Made there, closed here; safe from every thread.

    As a context manager: closed at the block's end; by `async with`, after a drain, unless an exception leaves it.
    """

    def __init__(
        self,
        session: Session,
        callback: Callable[[Event], object],
        *,
        types: Collection[str] | str | None,
        follow: Literal["turn", "session", "none"],
        after: str | None,
        backlog: int,
        deltas: Literal["exact", "merged"],
    ) -> None:
        if not callable(callback):
            raise TypeError(f"callback: expected a callable, saw {type(callback).__qualname__}")
        wanted = None if types is None else frozenset((types,) if isinstance(types, str) else types)
        if unknown := (wanted or frozenset()) - EVENT_TYPES.keys():
            raise ValueError(f"types: unknown event type {min(unknown)!r}")
        if backlog < 1:
            raise ValueError("backlog: expected at least 1")
        self._session, self._callback, self._types, self._backlog = session, callback, wanted, backlog
        self._reader = session.read(after, follow, deltas=deltas)
        self._lock = threading.Lock()  # around the three below
        self._position = 0
        self._ended = False
        self._draining: list[tuple[int, futures.Future[None]]] = []
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._delivered = self._failed = self._dropped = 0
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            threading.Thread(
                target=self._run_thread, args=(copy_context(),), name="turnstream-subscription", daemon=True
            ).start()
        else:
            self._task = loop.create_task(self._run())  # a task has a copy of its maker's context

    @property
    def delivered(self) -> int:
        """Calls that returned."""
        return self._delivered

    @property
    def failed(self) -> int:
        """Calls that raised."""
        return self._failed

    @property
    def dropped(self) -> int:
        """Events that it was too slow for."""
        return self._dropped

    @property
    def active(self) -> bool:
        """Whether there may be another call."""
        return not (self._closed or self._ended)

    def close(self) -> None:
        """Ends the calls. One that runs is let to its end. A second close does nothing."""
        self._closed = True
        self._reader.close()

    async def drain(self) -> None:
        """Awaits until the callback is through with all that is in the log now, or the subscription has ended."""
        if self._task is not None and asyncio.current_task() is self._task:
            raise RuntimeError("a callback cannot wait for itself")
        await asyncio.wrap_future(self._drained())

    def wait_drained(self, timeout: float | None = None) -> bool:
        """As `drain`, for a thread: blocks. False where `timeout` seconds were not enough."""
        drained = self._drained()
        if not drained.done():
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                raise WouldBlock("this thread runs an event loop: await drain() instead")
        with suppress(futures.TimeoutError):
            drained.result(timeout)
            return True
        drained.cancel()
        return False

    def _drained(self) -> futures.Future[None]:
        future: futures.Future[None] = futures.Future()
        head = self._session.head
        with self._lock:
            if not self._ended and self._position < head:
                self._draining = [one for one in self._draining if not one[1].cancelled()]
                self._draining.append((head, future))
                return future
        future.set_result(None)
        return future

    def _run_thread(self, context: Context) -> None:
        with suppress(SystemExit):  # a callback's: it leaves the thread, and was said
            context.run(asyncio.run, self._run())

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        skipped: list[int] = []  # the first and the last of a run
        try:
            async for event in self._reader:
                if self._closed:
                    break
                seq, kind = event.seq, event.type
                if isinstance(event, Gap):
                    self._dropped += event.last - event.first + 1
                    seq = event.last
                elif isinstance(event, Snapshot):
                    seq = event.head
                elif self._types is not None and kind not in self._types:
                    pass
                elif kind in _SKIPPED and self._session.head - (seq or 0) >= self._backlog:
                    self._dropped += 1
                    skipped[:] = [skipped[0] if skipped else seq or 0, seq or 0]
                    continue  # the newest event is never skipped: another one follows
                if skipped:
                    gap = Gap(first=skipped[0], last=skipped[1], reason="backlog", session=self._session.id)
                    skipped.clear()
                    await self._call(gap)
                await self._call(event)
                self._seen(seq or 0)
        finally:
            self._reader.close()
            with self._lock:
                self._ended = True
            self._seen(self._position)

    async def _call(self, event: Event) -> None:
        if self._closed or (self._types is not None and event.type not in self._types):
            return
        try:
            result = self._callback(event)
            if isawaitable(result):
                await result
        except asyncio.CancelledError as error:
            if self._task is None or self._task.cancelling():
                raise
            self._fail(event, error)
        except Exception as error:
            self._fail(event, error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._fail(event, error)  # said, for on a thread nobody else would
            raise
        else:
            self._delivered += 1

    def _fail(self, event: Event, error: BaseException) -> None:
        self._failed += 1
        self._session._count_failure()
        if self._failed > 1:
            return
        name = getattr(self._callback, "__qualname__", type(self._callback).__name__)
        text = f"subscriber {name} raised {type(error).__name__} on {event.type}; later failures are counted"
        log.warning("session %s: %s", self._session.id, text, exc_info=error)
        with suppress(TurnstreamError):  # the session may have ended
            self._session.emitter()("warning", code="subscriber_failed", message=text)

    def _seen(self, seq: int) -> None:
        with self._lock:
            self._position = max(self._position, seq)
            if not self._draining:
                return
            done = [one for one in self._draining if self._ended or one[0] <= self._position]
            self._draining = [one for one in self._draining if one not in done]
        for _, future in done:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.drain()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = f"delivered={self._delivered} failed={self._failed} dropped={self._dropped}"
        return f"<Subscription to {self._session.id!r} {counts}{'' if self.active else ' ended'}>"
