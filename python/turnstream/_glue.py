"""Coroutines that the Rust side returns where a protocol asks for one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnstream import Turn

T = TypeVar("T")


async def returns(value: T) -> T:
    """A coroutine that is done at once."""
    return value


async def in_thread(function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    """Calls what may wait for a store; meanwhile the loop runs on."""
    return await asyncio.to_thread(function, *arguments)


async def enter_turn(turn: Turn) -> Turn:
    """`async with session.turn()`: `session.cancel()` cancels the task that runs the block."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:

        def cancel() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        turn.bind_task(cancel)
    return turn
