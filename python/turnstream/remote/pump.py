"""`pump`: what remote producers send, into a session, until the turn's end.

Owns the driver's side: what is taken for an event, the counts, the watch over the producers, the order at the end.
Refuses to know how things arrive: a `Source` gives them. Invariants:

1. Nothing that arrives stops the pump: what is no event is counted, what a handler raises is counted and said.
2. A turn that is pumped gets its completion, last, after what is left was drained and the fallback message: also when
   its producer dies, at the latest `lost_after_s` later.
3. What comes after the end, or for a turn that has ended, is counted as late and never published.
4. A pacing reader holds the pump, and through it the transport and the producer.
5. Pressure and loss are said at most once per interval, with totals, and at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

from turnstream._native import EVENT_TYPES, Event, Session, Turn, read_batch
from turnstream.errors import PayloadError, ProducerLost, SessionClosed, TurnActive, TurnEnded, TurnstreamError
from turnstream.remote.emitter import lives

__all__ = ["Handler", "Pump", "Pumped", "Source", "Watch", "pump"]

Handler: TypeAlias = Callable[[str, Any, int | None], object]
"""`handler(type, payload, turn)`, called on the loop's thread after the event was published."""
Watch: TypeAlias = Awaitable[Any]
"""Done when a producer is: its result, ProducerLost where it died, any other exception where its work failed."""

TICK_S = 0.1
"""How often the pump looks up from an idle source: at a cancel, at the producers."""
LOOK_S = 0.25
"""How often it looks at the producers while the source is busy."""
LINGER_S = 1.0
"""How long the last words of a producer that is done may be on their way."""

_log = logging.getLogger("turnstream")


class Source(Protocol):
    """How things arrive."""

    loose: bool
    """Whether pieces of text and dicts with a type are events too, and None is not the end: what a generator yields."""

    async def take(self, wait_s: float) -> list[Any]:
        """All that is there, after `wait_s` perhaps nothing. StopAsyncIteration at the end; ProducerLost when the
        transport or, where it is the producer, the producer has died."""

    async def close(self, reason: str) -> list[Any]:
        """Tells the other side that nothing more is wanted. Returns what was on its way."""

    def expected(self) -> int:
        """How many producers there are to be, as far as one knows."""


@dataclass(slots=True)
class Pumped:
    """What a pump did; exact counts."""

    status: str = ""
    """The completion's."""
    published: int = 0
    """Events in the log that came from producers, what repair added included."""
    accepted: int = 0
    malformed: int = 0
    """Skipped: no event."""
    late: int = 0
    """After the end, or for a turn that has ended."""
    duplicates: int = 0
    lost: int = 0
    """Missing between two batches of a producer."""
    dropped: int = 0
    """By the policy of a producer's queue."""
    waited: int = 0
    """Emits that had to wait for room."""
    handler_errors: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Producer:
    origin: Mapping[str, Any] | None = None
    heard: float = 0.0
    ended: bool = False


class Pump:
    """One source into one turn. `await Pump(…).run()`; see `pump`."""

    def __init__(
        self,
        session: Session,
        source: Source,
        *,
        turn: int,
        watches: Iterable[Watch] = (),
        stop: Callable[[], None] | None = None,
        result: str | None = None,
        on_event: Handler | None = None,
        complete: bool = True,
        lost_after_s: float = 5.0,
        start_timeout_s: float = 300.0,
        idle_timeout_s: float | None = None,
        pressure_interval_s: float = 10.0,
    ) -> None:
        self.session = session
        self.turn = turn
        self.counts: Pumped = Pumped()
        self._source = source
        self._watches = [asyncio.ensure_future(watch) for watch in watches]
        self._stop = stop
        self._result = result
        self._handler = on_event
        self._complete = complete
        self._lost_after_s = lost_after_s
        self._start_timeout_s = start_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._pressure_interval_s = pressure_interval_s
        self._emit = session.emitter()
        self._producers: dict[str, _Producer] = {}
        self._triples = False
        self._heard = time.monotonic()
        self._done_at: float | None = None
        self._over = False
        self._late = False
        self._failure: tuple[str, str] | None = None
        self._pressure_said = float("-inf")
        self._pressure_told = (0, 0, 0)

    async def run(self) -> Pumped:
        """To the end of the work or of its turn. Cancelled, it cancels the turn, where it is to complete it."""
        try:
            await self._drain()
        except asyncio.CancelledError:
            await self._wind_up("cancelled")
            if self._complete:
                await self.session.cancel("cancelled")
            raise
        await self._wind_up("ended")
        self._finish()
        return self.counts

    # --- draining -----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        looked = time.monotonic()
        while not self._over and self.session.running == self.turn:
            try:
                items = await self._source.take(0.01 if self._all_said() else TICK_S)
            except StopAsyncIteration:
                return
            except ProducerLost as lost:
                self._fail(lost.code, str(lost))
                return
            except Exception as error:  # the work's own, where the source is the work
                self._fail("agent_error", f"{type(error).__name__}: {error}")
                return
            now = time.monotonic()
            if items:
                self._heard = now
            self._take(items)
            self._pressure()
            await self._paced()
            quiet = not items or self._all_said()
            if quiet or now - looked > LOOK_S:
                looked = now
                if self._has_failed() or (quiet and self._is_done()):
                    return

    async def _paced(self) -> None:
        """Waits while a pacing reader lags."""
        began = time.monotonic()
        while self.session.running == self.turn:
            try:
                async with asyncio.timeout(TICK_S):
                    await self.session.ready()
                break
            except TimeoutError:
                continue
        for producer in self._producers.values():  # nobody listened meanwhile
            producer.heard += time.monotonic() - began

    def _all_said(self) -> bool:
        """Whether all producers that have spoken have said their end."""
        return bool(self._producers) and all(one.ended for one in self._producers.values())

    def _has_failed(self) -> bool:
        """Whether a producer has died, or its work has."""
        now = time.monotonic()
        for watch in self._watches:
            if watch.done() and (error := _error(watch)):
                self._fail(*_said(error))
                return True
        if any(not one.ended and self._is_lost(one, now) for one in self._producers.values()):
            self._fail(ProducerLost.code, f"the process of a producer is gone, or silent for {self._lost_after_s:g} s")
            return True
        return False

    def _is_done(self) -> bool:
        """Whether nothing more is to come, though the source has not said so."""
        now, known = time.monotonic(), len(self._producers)
        if self._watches:
            if not all(watch.done() for watch in self._watches):
                return False
            self._done_at = self._done_at or now
            return self._all_said() or now - self._done_at > (LINGER_S if known else TICK_S)
        if known and not self._triples:  # who sends triples says None at the end
            return self._all_said() and known >= self._source.expected()
        patience = self._start_timeout_s if self._source.expected() else self._idle_timeout_s
        if patience is not None and now - self._heard > patience:
            self._fail(ProducerLost.code, f"no producer has said anything for {patience:g} s")
            return True
        return False

    def _is_lost(self, producer: _Producer, now: float) -> bool:
        alive = lives(producer.origin) if producer.origin else None
        # One that lives beside us and is silent has a reason: it may hold its interpreter for long.
        return alive is False or (alive is None and now - producer.heard > self._lost_after_s)

    def _fail(self, code: str, message: str) -> None:
        self._failure = self._failure or (code, message)

    # --- what arrives -------------------------------------------------------------------------------------------------

    def _take(self, items: Iterable[Any]) -> None:
        for item in items:
            if self._over:
                self._late = True
            try:
                self._one(item)
            except Exception:  # an object's own code: a property, a __len__
                self.counts.malformed += 1
                _log.debug("an item could not be read", exc_info=True)

    def _one(self, item: Any) -> None:
        if isinstance(item, (bytes, bytearray, memoryview)):
            self._batch(bytes(item))
        elif item is None and not self._source.loose:
            self._over = True
        elif isinstance(item, tuple) and len(item) == 3:
            self._triples = True
            self._triple(*item)
        elif isinstance(item, list):
            for part in item:
                if part is None:
                    self.counts.malformed += 1
                else:
                    self._one(part)
        elif isinstance(item, Event):
            self._triple(item.type, _fields(item.to_dict()), None)
        elif self._source.loose and isinstance(item, str):
            self._triple("text_delta", {"text": item}, None)
        elif self._source.loose and isinstance(item, Mapping) and isinstance(item.get("type"), str):
            self._triple(item["type"], _fields(item), None)
        else:
            self.counts.malformed += 1

    def _batch(self, blob: bytes) -> None:
        counts = self.counts
        if self._late:
            try:
                counts.late += len(read_batch(blob)[1])
            except PayloadError:
                counts.malformed += 1
            return
        try:
            header, taken = self.session.emit_batch(blob)
        except PayloadError:
            counts.malformed += 1
            return
        except SessionClosed:
            counts.late += 1
            return
        for name in ("published", "accepted", "duplicates", "late", "malformed", "lost", "dropped", "waited"):
            setattr(counts, name, getattr(counts, name) + taken[name])
        producer = self._producers.setdefault(header["producer"], _Producer())
        producer.heard = time.monotonic()
        producer.origin = header["origin"] or producer.origin
        if end := header["end"]:
            producer.ended = True
            if end.get("reason") == "failed":
                self._fail("agent_error", end.get("message", ""))
        if self._handler is not None:
            skipped = set(taken["skipped"])
            for at, event in enumerate(read_batch(blob)[1]):
                if at not in skipped:
                    self._call(event.type, _fields(event.to_dict()), event.turn or self.turn)

    def _triple(self, kind: object, payload: object, turn: object) -> None:
        counts = self.counts
        if not isinstance(kind, str) or isinstance(turn, bool) or not isinstance(turn, int | None):
            counts.malformed += 1
            return
        if self._late:
            counts.late += 1
            return
        before = self.session.head
        try:
            if kind in EVENT_TYPES:
                self._emit(kind, payload, turn=self.turn if turn is None else turn)
            else:  # a word of somebody else's: not lost
                self._emit("custom", {"name": kind, "data": payload}, turn=self.turn if turn is None else turn)
        except (TurnEnded, SessionClosed):
            counts.late += 1
            return
        except (TurnstreamError, OverflowError):
            counts.malformed += 1
            return
        counts.published += self.session.head - before
        counts.accepted += 1
        self._call(kind, payload, turn)

    def _call(self, kind: str, payload: Any, turn: int | None) -> None:
        if self._handler is None:
            return
        try:
            self._handler(kind, payload, turn)
        except Exception as error:
            self.counts.handler_errors += 1
            if self.counts.handler_errors == 1:
                _log.exception("session %s turn %d: a handler failed; the pump goes on", self.session.id, self.turn)
                self._warn("handler_failed", f"a handler failed: {type(error).__name__}", {})

    # --- what is said -------------------------------------------------------------------------------------------------

    def _pressure(self, last: bool = False) -> None:
        counts = self.counts
        now, totals = time.monotonic(), (counts.lost, counts.dropped, counts.waited)
        due = now - self._pressure_said >= self._pressure_interval_s
        if totals == self._pressure_told or not (last or due):
            return
        (*told, _), self._pressure_told = self._pressure_told, totals
        lost, dropped, waited = totals
        self._pressure_said = now
        # The last totals are said whenever they are, but they are a second warning only to who lost something by them.
        _log.log(
            logging.WARNING if due else logging.INFO,
            "session %s turn %d: %d events dropped, %d lost on the way, %d emits waited, in all",
            self.session.id, self.turn, dropped, lost, waited,
        )  # fmt: skip
        if [lost, dropped] != told:
            missing = {"dropped": dropped, "lost": lost}
            self._warn("remote_gap", f"{dropped + lost} events of remote producers are missing, in all", missing)

    def _warn(self, code: str, message: str, raw: dict[str, int]) -> None:
        with suppress(TurnstreamError):
            self._emit("warning", {"code": code, "message": message, "raw": raw}, turn=self.turn)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _wind_up(self, reason: str) -> None:
        """Stops the other side and drains what it had sent."""
        running = self.session.running == self.turn
        self._late = self._late or self._over or not running
        if self._stop is not None and (not running or reason == "cancelled"):
            self._stop()
        for watch in self._watches:
            if watch.done() and not watch.cancelled() and watch.exception() is None:
                self._result = self._result or _text(watch.result())
            else:
                watch.cancel()
        with suppress(Exception):  # a transport that died with its producer, or cannot be reached
            async with asyncio.timeout(self._lost_after_s):
                self._take(await self._source.close(reason))

    def _finish(self) -> None:
        """The order of the end: what was drained is in the log; then pressure, fallback, completion."""
        session, counts = self.session, self.counts
        self._pressure(last=True)
        if self._complete and session.running == self.turn:
            with suppress(TurnEnded, SessionClosed):
                self._end()
        outcome = session.result()
        if outcome is not None and outcome["turn"] == self.turn:
            counts.status = outcome["status"]
            _log.info(
                "session %s turn %d: %s, %d events published, %d of them by remote producers",
                session.id, self.turn, outcome["status"], outcome["events"], counts.published,
            )  # fmt: skip
        record = session.status().get("remote") or {}
        session.note("remote", {**record, **counts.to_dict()})

    def _end(self) -> None:
        if self._failure is None:
            self._emit("completion", {"status": "completed", "text": self._result or ""}, turn=self.turn)
            return
        code, message = self._failure
        self._emit("error", {"code": code, "message": message, "retryable": False, "fatal": True}, turn=self.turn)
        self._emit("completion", {"status": "failed", "reason": code}, turn=self.turn)


def pump(
    session: Session, source: Any, *, turn: int | Turn | None = None, producer: Any = None, **options: Any
) -> Coroutine[Any, Any, Pumped]:
    """Drains `source` into `session`; awaits to `Pumped`. What `Session.pump` does; the options are of `Pump`."""
    from turnstream.remote.sources import Producers, source_of

    return _pump(
        session, source_of(source), turn.number if isinstance(turn, Turn) else turn, Producers(producer), options
    )


class _Watched(Protocol):
    def watch(self) -> list[Watch]: ...
    def stop(self) -> None: ...


async def _pump(
    session: Session, source: Source, turn: int | None, producers: _Watched, options: dict[str, Any]
) -> Pumped:
    held: Turn | None = None  # a turn that is forgotten is failed: it is held to the end
    if turn is None:
        try:
            held = session.turn()
            turn = held.number
        except TurnActive:
            turn = session.running or 0
    record = session.status().get("remote") or {}
    if record.get("turn") != turn:  # nobody had to decide
        record = {"asked": "on", "used": "remote", "reason": "session.pump", "turn": turn}
    session.note("remote", {**record, "queue_active": True})
    watches = producers.watch()
    pumped = await Pump(session, source, turn=turn, watches=watches, stop=producers.stop, **options).run()
    if held is not None:
        held.complete()
    return pumped


def _fields(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in _HEADER}


_HEADER = frozenset({"type", "seq", "session", "turn", "round", "time", "backend"})


def _text(result: object) -> str | None:
    """The fallback message in what a producer returned."""
    if not isinstance(result, str):
        result = result.get("text") if isinstance(result, Mapping) else getattr(result, "text", None)
    return result if isinstance(result, str) and result else None


def _error(watch: asyncio.Future[Any]) -> BaseException | None:
    """How the work failed. A cancel of its own is not ours: it would pass for one of this task's."""
    return ProducerLost("the producer was cancelled") if watch.cancelled() else watch.exception()


def _said(error: BaseException) -> tuple[str, str]:
    if isinstance(error, ProducerLost):
        return error.code, str(error)
    return "agent_error", f"{type(error).__name__}: {error}"
