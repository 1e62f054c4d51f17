"""Coroutines that the Rust side returns where a protocol asks for one, and how a turn's block is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from turnstream import Turn

T = TypeVar("T")


async def returns(value: T) -> T:
    """A coroutine that is done at once."""
    return value


async def in_thread(function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    """Calls what may wait for a store; meanwhile the loop runs on."""
    return await asyncio.to_thread(function, *arguments)


class Acted(Coroutine[Any, Any, T]):
    """The answer of a call that has acted already. A coroutine that may be left unawaited, without a warning."""

    def __init__(self, answer: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> None:
        self._answer = partial(answer, *arguments)
        self._begun: Coroutine[Any, Any, T] | None = None

    def _inner(self) -> Coroutine[Any, Any, T]:
        if self._begun is None:
            self._begun = self._answer()
        return self._begun

    def send(self, value: Any) -> Any:
        return self._inner().send(value)

    def throw(self, *error: Any) -> Any:
        return self._inner().throw(*error)

    def close(self) -> None:
        if self._begun is not None:
            self._begun.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield from self._inner().__await__())


async def enter_turn(turn: Turn) -> Turn:
    """`async with session.turn()`."""
    bind_task(turn)
    return turn


def bind_task(turn: Turn) -> None:
    """`session.cancel()` cancels the task that runs the turn's block, for as long as it is in there.

    The task is not kept alive for that: one that is forgotten with its loop takes the turn along, which so has its end.
    """
    task = asyncio.current_task()
    if task is None:
        return
    loop, held, block = task.get_loop(), ref(task), ref(turn)

    def stop() -> None:
        task, turn = held(), block()
        if task is not None and turn is not None and not turn._left:
            task.cancel()

    def cancel() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stop)

    turn.bind_task(cancel)
