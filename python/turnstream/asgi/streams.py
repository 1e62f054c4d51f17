"""The event streams that are open on a loop: how many there may be, how long one may be stuck, what their end means.

Owns the caps, the write deadline, what a disconnect does to a turn, and the ends at shutdown. Refuses to know what is
sent.

Invariants: 1. a stream costs two assignments per send, and all of them one timer; 2. a client that is stuck is cut
within a quarter of its deadline past it, and nothing else of its session changes; 3. at shutdown each client that still
reads is told, and no stream lasts longer than DRAIN_S + LAST_S.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any, Protocol, Self, cast

from turnstream._native import FrameReader, Session
from turnstream.asgi.cut import cut, ends_of
from turnstream.asgi.http import HTTPError, Scope
from turnstream.asgi.policy import Policy

DRAIN_S = 0.5
"""How long streams may still send what is in the log when the server stops: a turn's completion, for one."""

LAST_S = 0.5
"""How long a client may take for the last frame."""

RETRY_MS = 2000
"""When clients that are sent away come back."""

PRINCIPAL: ContextVar[Any] = ContextVar("turnstream_principal", default=None)
"""Who asks, while a request is answered."""

log: logging.Logger = logging.getLogger("turnstream")


class Closable(Protocol):
    """What an open stream can be ended by."""

    def close(self) -> None:
        """Ends it."""


class Open:
    """One open stream. Among its loop's while it is entered: a class, as a generator would stay for as long as it."""

    __slots__ = ("_linger_s", "_of", "drains", "on_stuck", "principal", "reader", "scope", "sending", "session", "task")

    def __init__(
        self,
        of: "Streams",
        reader: Closable,
        session: Session,
        *,
        scope: Scope | None,
        drains: bool,
        linger_s: float,
        on_stuck: Callable[[], None] | None,
    ) -> None:
        self._of = of
        self._linger_s = linger_s
        self.on_stuck: Callable[[], None] | None = on_stuck
        self.reader: Closable = reader
        self.task: asyncio.Task[Any] = cast("asyncio.Task[Any]", asyncio.current_task())
        self.session: Session = session
        self.principal: Hashable | None = principal_key(PRINCIPAL.get())
        self.drains: bool = drains
        self.scope: Scope | None = scope
        self.sending: float = 0.0
        """The loop's time when the send began that has not ended; 0 between two."""

    def __enter__(self) -> Self:
        self._of._enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._of._leave(self, self._linger_s)


class Streams:
    """The event streams that are open on one loop."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.closing: bool = False
        self.cut: int = 0
        """Clients that were stuck."""
        self.refused: int = 0
        """Clients beyond a cap."""
        self._policy = policy or Policy()
        self._open: dict[asyncio.Task[Any], Open] = {}
        self._of_session: Counter[str] = Counter()
        self._of_principal: Counter[Hashable] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    def opened(
        self,
        reader: Closable,
        session: Session,
        *,
        scope: Scope | None = None,
        drains: bool = False,
        linger_s: float = 0.0,
        on_stuck: Callable[[], None] | None = None,
    ) -> Open:
        """Keeps the current task and its reader while inside. `drains`: its close sends what is ready. `linger_s`: its
        end is a client's leaving only after so long, as of a poll, which another one follows. `on_stuck`: cuts the
        client, by other means than its connection's reset."""
        return Open(self, reader, session, scope=scope, drains=drains, linger_s=linger_s, on_stuck=on_stuck)

    def _enter(self, stream: Open) -> None:
        session = stream.session
        self._open[stream.task] = stream
        self._of_session[session.id] += 1
        if leaving := self._leaving.pop(session.id, None):
            leaving.cancel()
        if stream.principal is not None:
            self._of_principal[stream.principal] += 1
        if self._timer is None and self._policy.write_timeout_s is not None:
            self._set_timer(asyncio.get_running_loop())
        if self.closing:  # a client that came back before the port was closed; a 503 would end its EventSource for good
            _end(stream.reader, "shutdown")

    def _leave(self, stream: Open, linger_s: float) -> None:
        del self._open[stream.task]
        stream.reader.close()
        if stream.principal is not None:
            _take(self._of_principal, stream.principal)
        _take(self._of_session, stream.session.id)
        self._left(stream.session, linger_s)

    # crowds

    def is_full(self, session_id: str | None) -> bool:
        """Whether a cap leaves no room for one more reader of the session by who asks; counts it if so."""
        policy = self._policy
        principal = principal_key(PRINCIPAL.get())
        full = (
            policy.max_readers_per_session is not None
            and session_id is not None
            and self._of_session.get(session_id, 0) >= policy.max_readers_per_session
        ) or (
            policy.max_readers_per_principal is not None
            and principal is not None
            and self._of_principal.get(principal, 0) >= policy.max_readers_per_principal
        )
        self.refused += full
        return full

    def require_room(self, session_id: str | None) -> None:
        """HTTPError 429 where a cap leaves no room. `session_id`: None for a session that is about to be made."""
        if self.is_full(session_id):
            raise too_many_readers()

    # leaving

    def _left(self, session: Session, linger_s: float) -> None:
        """A reader has left: where it was the last one of a running turn, the policy says what becomes of that."""
        if self._policy.on_disconnect != "cancel" or self.closing or not _is_alone(session):
            return
        grace_s = max(self._policy.disconnect_grace_s, linger_s)
        if grace_s == 0:
            _cancel(session, "disconnected")
            return
        turn = session.status()["turn"]

        def check() -> None:
            del self._leaving[session.id]
            if _is_alone(session) and session.status()["turn"] == turn:
                _cancel(session, "disconnected")

        if old := self._leaving.get(session.id):
            old.cancel()
        self._leaving[session.id] = asyncio.get_running_loop().call_later(grace_s, check)

    # the write deadline

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline = cast("float", self._policy.write_timeout_s)
        self._timer = loop.call_later(min(deadline / 4, 1.0), self._tick, loop, deadline)

    def _tick(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self._timer = None
        since = loop.time() - deadline
        stuck = [stream for stream in self._open.values() if 0 < stream.sending < since]
        if stuck:
            self._cut(stuck, f"took nothing for {deadline:g} s")
        if self._open:
            self._set_timer(loop)

    def _cut(self, stuck: list[Open], why: str) -> None:
        ends = {stream: ends_of(stream.scope) if stream.scope else None for stream in stuck}
        found = cut({each for each in ends.values() if each is not None})
        for stream in stuck:
            self.count_cut(f"session {stream.session.id}", why)
            stream.sending = 0.0
            if stream.on_stuck is not None:
                stream.on_stuck()
                continue
            stream.reader.close()
            if ends[stream] not in found:  # the server then does with the connection what it can
                stream.task.cancel()

    def count_cut(self, whose: str, why: str) -> None:
        """Counts and logs a client that is cut."""
        self.cut += 1
        log.warning("%s: a client %s and is cut; it may resume by its cursor", whose, why)

    # the end

    async def close(self) -> None:
        """Lets the streams send what is ready for up to DRAIN_S, says that it is over, and cuts who takes nothing."""
        self.closing = True
        for leaving in self._leaving.values():
            leaving.cancel()
        self._leaving.clear()
        for stream in list(self._open.values()):
            if stream.drains:
                stream.reader.close()
        await self._ended(DRAIN_S)
        for stream in list(self._open.values()):
            _end(stream.reader, "shutdown")
        await self._ended(LAST_S)
        if stuck := [stream for stream in self._open.values() if stream.sending]:
            self._cut(stuck, "took nothing at shutdown")
        for stream in self._open.values():
            stream.reader.close()

    async def _ended(self, within_s: float) -> None:
        if self._open:
            await asyncio.wait(list(self._open), timeout=within_s)


def too_many_readers() -> HTTPError:
    headers = {"retry-after": str(RETRY_MS // 1000)}
    return HTTPError(429, "too_many_readers", "too many streams are open", headers=headers)


def _end(reader: Closable, reason: str) -> None:
    if isinstance(reader, FrameReader):
        reader.close(reason, retry_ms=RETRY_MS)
    else:
        reader.close()


def _is_alone(session: Session) -> bool:
    return session.statistics()["readers"] == 0 and session.status()["state"] == "running"


def _cancel(session: Session, reason: str) -> None:
    log.info("session %s: %s, and its turn is cancelled", session.id, reason)
    session.cancel(reason).close()  # it has acted; there is nothing to wait for


def principal_key(principal: Any) -> Hashable | None:
    """The principal as a key; None where nobody said one. Claims are often a dict."""
    if principal is None:
        return None
    try:
        hash(principal)
    except TypeError:
        return repr(principal)
    return cast("Hashable", principal)


def _take(counts: Counter[Any], key: Hashable) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
