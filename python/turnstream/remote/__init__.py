"""Agents in other processes: `emit` there is the same callable as here.

    emit = session.remote_emitter()             # picklable: an argument of a Ray task or actor
    ref = agent.run.remote(emit, question)
    await session.pump(emit, producer=ref)      # to the turn's completion, whatever happens to the agent

Owns both ends of the way: the emitter there, the pump here, and the decision whether a run streams at all. Nothing of
this imports Ray before a transport of Ray's is used; what is Ray's is in `turnstream.ray`.
"""

from __future__ import annotations

from typing import Any

from turnstream._native import Session, Turn
from turnstream.errors import RemoteUnavailable
from turnstream.remote.agent import Silent, agent
from turnstream.remote.decision import Decision, decide
from turnstream.remote.emitter import Options, RemoteEmitter
from turnstream.remote.fixture import Fixture
from turnstream.remote.pump import Pumped, pump
from turnstream.remote.sources import HomeEmitter

__all__ = [
    "Decision",
    "Fixture",
    "HomeEmitter",
    "Options",
    "Pumped",
    "RemoteEmitter",
    "Silent",
    "agent",
    "decide",
    "pump",
    "remote_emitter",
]


def remote_emitter(
    session: Session, *, transport: Any = None, turn: int | Turn | None = None, **options: Any
) -> HomeEmitter:
    """What `Session.remote_emitter` does.

    `transport`: a `turnstream.ray.Mailbox` (by default a new one) or a `ray.util.queue.Queue`. `turn`: where emits
    without a turn go; by default the one that runs now. `options`: of `Options`. RemoteUnavailable where Ray is not
    there.
    """
    try:
        from turnstream.ray import transport_of
    except ImportError as error:
        raise RemoteUnavailable("ray is not installed: pip install turnstream[ray]") from error
    number = turn.number if isinstance(turn, Turn) else turn
    chosen = Options(**options)
    opened = transport_of(transport, capacity=chosen.maxsize)
    return HomeEmitter(session, opened, session.running if number is None else number, chosen)
