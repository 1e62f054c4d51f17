"""`agent`: work on Ray as an agent of this process, whether it may stream, may not, or cannot run there.

Owns the run: decide, record, launch, pump or wait. Refuses to know HTTP and transports. Invariants: 1. the decision is
on the session's status and in its log before the work begins; 2. the turn gets its completion and, if nothing was said,
the work's result as its message, whatever was decided; 3. a run that cannot be elsewhere is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from turnstream._native import Custom, Session, Turn, TurnStart, compose
from turnstream._run import call_in_thread
from turnstream.errors import ProducerLost
from turnstream.remote.decision import Decision, decide

__all__ = ["Silent", "agent"]


class _Plain:
    """What an emitter has beside the call, where there is nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def close(self, error: BaseException | str | None = None) -> bool:
        return True


class Silent(_Plain):
    """The emitter of a run that does not stream: checks what it is given, and keeps nothing."""

    cancelled = False

    def __call__(self, type: str, payload: Any = None, *, turn: int | None = None, **fields: Any) -> int:
        compose(type, payload, turn or 0, fields or None)
        return 0


class _Near(_Plain):
    """The emitter of a run that is here after all."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._emit = turn.session.emitter()

    @property
    def cancelled(self) -> bool:
        return self._turn.ended

    def __call__(self, type: str, payload: Any = None, *, turn: int | None = None, **fields: Any) -> int:
        return self._emit(type, payload, turn=self._turn.number if turn is None else turn, **fields)


def agent(
    work: Any,
    *,
    permission_mode: str | None = None,
    probe: Callable[[], Any] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    emitter: Mapping[str, Any] | None = None,
    pump: Mapping[str, Any] | None = None,
) -> Callable[[Turn], Awaitable[str | None]]:
    """An agent for `router(hub, agent=…)` that runs `work(emit, input)` on Ray; what it returns, a text, is the message
    where no other was seen.

    `work`: a function, plain or async, which runs as a task with `ray_options`; or something with `.remote`: a remote
    function, or an actor's method. `permission_mode` and the turn's metadata decide, see `decide`; the metadata's own
    `permission_mode` counts where none is given. `probe`: whether the cluster can stream at all; asked once per run.
    `emitter`, `pump`: options of `Session.remote_emitter` and `Session.pump`. Where Ray is not there, `work` runs in a
    thread of this process, which something with `.remote` cannot: then RemoteUnavailable is what the turn fails with.
    """

    async def run(turn: Turn) -> str | None:
        session = turn.session
        metadata = await _metadata(session, turn)
        mode = permission_mode
        if mode is None and isinstance(said := metadata.get("permission_mode"), str):
            mode = said
        missing = _missing()
        decision = decide(
            remote=True,
            metadata=metadata,
            permission_mode=mode,
            unavailable=missing,
            probe=None if probe is None or missing is not None else await _probed(probe),
        )
        record(session, turn, decision)
        if decision.used == "unavailable":
            return _text(await _here(work, turn))
        if decision.used == "off":
            from turnstream.ray import watch

            try:
                return _text(await watch(_launch(work, Silent(), turn.input, ray_options)))
            except ProducerLost as lost:
                turn.fail(str(lost), code=lost.code)
                return None
        emit = session.remote_emitter(turn=turn.number, **(emitter or {}))
        ref = _launch(_Closing(work) if not hasattr(work, "remote") else work, emit, turn.input, ray_options)
        await session.pump(emit, turn=turn.number, producer=ref, **(pump or {}))
        return None

    return run


def record(session: Session, turn: Turn, decision: Decision) -> None:
    """Puts the decision on the session's status and into its log."""
    session.note("remote", {**decision.to_dict(), "turn": turn.number})
    turn.emit("custom", name="remote_stream", data=decision.to_dict())


def _missing() -> str | None:
    try:
        from turnstream.ray import unavailable
    except ImportError:
        return "ray is not installed"
    return unavailable()


async def _probed(probe: Callable[[], Any]) -> bool:
    try:
        result = probe()
        return bool(await result if inspect.isawaitable(result) else result)
    except Exception:
        return False


async def _metadata(session: Session, turn: Turn) -> dict[str, Any]:
    """What the session was made with, or its first turn, and, over that, what came beside this turn's input."""
    # On the status page: the log may lose its beginning.
    if (kept := session.status().get("metadata")) is None:
        kept = await _said(session, None)
        session.note("metadata", kept)
    return {**kept, **await _said(session, turn.cursor)}


async def _said(session: Session, after: str | None) -> dict[str, Any]:
    """The metadata in the first event after a cursor. That may have to come from the store."""
    async with session.read(after=after, follow="none") as events:
        async for event in events:
            match event:
                case TurnStart(metadata=Mapping() as said) | Custom(name="session_metadata", data=Mapping() as said):
                    return dict(said)
            break
    return {}


class _Closing:
    """Work that closes its emitter, so that its end and its failure are said before its process can go."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def __call__(self, emit: Any, input: Any) -> Any:
        import asyncio

        with emit:
            result = self._work(emit, input)
            return asyncio.run(result) if inspect.iscoroutine(result) else result


def _launch(work: Any, emit: Any, input: Any, options: Mapping[str, Any] | None) -> Any:
    import ray

    if hasattr(work, "remote"):
        return work.remote(emit, input)
    call = work if isinstance(work, _Closing) else _Closing(work)

    def run(emit: Any, input: Any) -> Any:
        return call(emit, input)

    # A task that died has said half of its events: to run it again would say them twice.
    return ray.remote(run).options(max_retries=0, **(options or {})).remote(emit, input)


async def _here(work: Any, turn: Turn) -> Any:
    if hasattr(work, "remote"):
        from turnstream.errors import RemoteUnavailable

        raise RemoteUnavailable("the agent is an actor's method or a remote function, and Ray is not there")
    if inspect.iscoroutinefunction(work):
        return await work(_Near(turn), turn.input)
    return await call_in_thread(work, _Near(turn), turn.input)


def _text(result: object) -> str | None:
    if not isinstance(result, str):
        result = result.get("text") if isinstance(result, Mapping) else getattr(result, "text", None)
    return result if isinstance(result, str) and result else None
