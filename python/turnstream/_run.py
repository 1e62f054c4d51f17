"""Runs agents: one task per turn.

Owns the tasks of running turns. Knows nothing of HTTP.

Invariants: 1. a turn that was started here ends with exactly one completion, whatever the agent does, and also when its
task is cancelled before its first step; 2. an agent's exception never leaves its task: it is logged here and stands in
the session as `error` and `completion{failed}`; 3. a request that is repeated starts nothing.
"""

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import aclosing, closing
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from turnstream._native import Event, Session, Turn
from turnstream.errors import PayloadError, SessionClosed, TurnEnded

Agent: TypeAlias = Callable[[Turn], Any]
"""`async def agent(turn)`; a plain function, which runs in a thread of its own; or a (sync or async) generator function
whose items are events, dicts with a `type`, or pieces of text. What it returns, a text or something with a `text`, is
the turn's message if no other was seen."""

GRACE_S = 1.0
"""How long `close` waits for cancelled agents to clean up."""

_HEADER = frozenset({"type", "seq", "session", "turn", "round", "time"})

log = logging.getLogger("turnstream")


class Started(NamedTuple):
    """A turn that runs or ran: its number, and the cursor after which its events come."""

    turn: int
    cursor: str


class Runner:
    """Starts the agent for each turn and holds its task until it ends. Belongs to one event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._running: dict[asyncio.Task[None], Turn] = {}

    async def start(
        self, session: Session, input: Any, *, client_id: str | None = None, metadata: Any = None, principal: Any = None
    ) -> Started:
        """Starts a turn and its agent.

        The same `client_id` and input again: the first answer, and nothing is started; another input: Conflict.
        TurnActive while a turn runs, SessionClosed after the session's end.
        """
        loop = asyncio.get_running_loop()
        turn = await session.aturn(input, client_id=client_id, metadata=metadata, principal=principal)
        if not turn.started:
            return Started(turn.number, turn.cursor)
        task = loop.create_task(self._run(turn), name=f"turnstream {session.id} {turn.number}")
        self._running[task] = turn
        task.add_done_callback(self._ended)
        turn.bind_task(partial(_cancel_from_any_thread, loop, task))
        return Started(turn.number, turn.cursor)

    async def _run(self, turn: Turn) -> None:
        try:
            with turn:
                turn.complete(_text(await self._call(turn)))
        except (TurnEnded, SessionClosed):
            log.debug("session %s turn %d: the agent went on after its turn was ended", turn.session.id, turn.number)
        except (Exception, SystemExit):  # SystemExit: one agent must not take the server and all others with it
            log.exception("session %s turn %d: the agent failed", turn.session.id, turn.number)

    async def _call(self, turn: Turn) -> Any:
        if _is_async(self._agent):
            result = self._agent(turn)
        else:
            result = await call_in_thread(_call_and_drain, self._agent, turn)
        if isinstance(result, AsyncGenerator):
            async with aclosing(result):
                async for item in result:
                    _emit(turn, item)
            return None
        return await result if isinstance(result, Awaitable) else result

    def _ended(self, task: asyncio.Task[None]) -> None:
        turn = self._running.pop(task)
        if not turn.ended:  # cancelled before its first step, or by an exception that no agent should raise
            turn.complete(status="cancelled", reason="the task was cancelled")

    async def close(self, reason: str = "shutdown") -> None:
        """Cancels all running turns and waits up to GRACE_S for their agents. What an agent does after that is lost."""
        running = dict(self._running)
        stored: list[Coroutine[Any, Any, bool]] = []
        for task, turn in running.items():
            if turn.ended:
                task.cancel(reason)
            else:  # cancels the task too, and a second time would cut its cleaning up short
                stored.append(turn.session.cancel(reason))
        await asyncio.gather(*stored)  # one wait for a store that does not answer, not one for each
        if running:
            await asyncio.wait(running, timeout=GRACE_S)


def _cancel_from_any_thread(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        loop.call_soon_threadsafe(task.cancel)
    except RuntimeError:  # the loop is closed, and its tasks with it
        log.debug("the loop of a cancelled turn is closed")


def _is_async(agent: Agent) -> bool:
    for function in (agent, getattr(agent, "__call__", None)):  # noqa: B004, the type of an object with `async def __call__`
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            return True
    return False


def _call_and_drain(agent: Agent, turn: Turn) -> Any:
    result = agent(turn)
    if not isinstance(result, Generator):
        return result
    with closing(result):
        while True:
            try:
                item = next(result)
            except StopIteration as stop:
                return stop.value
            _emit(turn, item)


async def call_in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Calls in a daemon thread of its own: agents take minutes; the loop's executor has few threads and joins them."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(outcome: tuple[Any, BaseException | None]) -> None:
        if not done.done():  # cancelled: the thread goes on until its next emit is refused
            done.set_result(outcome)

    def run() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = context.run(function, *args), None
        except BaseException as error:  # raised again on the loop
            outcome = None, error
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            log.debug("an agent's thread outlived its loop")

    threading.Thread(target=run, name="turnstream-agent", daemon=True).start()
    result, error = await done
    if error is not None:
        raise error
    return result


def _emit(turn: Turn, item: Any) -> None:
    """One item of a generator agent."""
    if isinstance(item, str):
        turn.emit("text_delta", {"text": item})
        return
    fields = item.to_dict() if isinstance(item, Event) else item
    if not isinstance(fields, Mapping) or not isinstance(kind := fields.get("type"), str):
        raise PayloadError(f"an agent yields text, events or dicts with a type, not {type(item).__name__}")
    turn.emit(kind, {name: value for name, value in fields.items() if name not in _HEADER})


def _text(result: Any) -> str | None:
    """The fallback message in what an agent returned."""
    if not isinstance(result, str):
        result = result.get("text") if isinstance(result, Mapping) else getattr(result, "text", None)
    return result if isinstance(result, str) and result else None
