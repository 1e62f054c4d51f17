"""`RemoteEmitter`: `emit(type, payload, turn=…)` in another process, as it is in this one.

Owns the producer's side: the bounded queue, its policy, the numbering, the batches, the beats that say it lives.
Refuses to know how a blob travels: a `Sink` takes it. Invariants:

1. An event is checked where it is emitted: what a session would refuse is refused at once, with the same error.
2. The first event after a pause is sent at once; while one batch travels the next one grows.
3. Events that were taken are sent in order, numbered without holes; what the queue's policy drops has no number and is
   counted in the next batch's header.
4. A batch is repeated as it is until the sink has taken it: the reader knows it again by its numbers.
5. `completion` is never dropped: it is kept beside the queue.
6. After a cancel, an end or the loss of the other side, emits raise, and blocked ones wake.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

from turnstream._native import Event, EventQueue, compose, write_batch
from turnstream.errors import QueueEmpty, QueueFull, SessionClosed, TurnEnded

__all__ = ["Options", "RemoteEmitter", "Sink", "SinkClosed", "here", "lives"]

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "merge", "fail"]
Form: TypeAlias = Literal["batches", "triples"]

CLOSE_S = 5.0
"""How long the end of an emitter may take: what is not sent by then is lost, and the other side sees the gap."""
GREETING_S = 0.02
"""How long a producer's first word may wait for its first event."""
_PATIENCE_S = 1.0

Item: TypeAlias = tuple[bytes | list[Any], int]
"""What is sent, and how many events it holds."""

_log = logging.getLogger("turnstream")


class SinkClosed(Exception):
    """The other side takes nothing more; the text says why."""


class Sink(Protocol):
    """How things leave this process. Picklable: it travels with the emitter."""

    def put(self, item: Any, weight: int, timeout_s: float) -> bool:
        """Hands `item` over, which holds `weight` events. False: there is no room yet; the same item comes again.
        SinkClosed: never."""

    def begin(self, item: Any, weight: int) -> None:
        """Starts to hand `item` over and does not wait: the next `put`, of the same item, does. From any thread."""

    def on_close(self, call: Callable[[str], None]) -> None:
        """Has `call(reason)` called, from any thread, when the other side wants nothing more."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a remote emitter queues and batches."""

    maxsize: int = 1000
    """Events that wait in the producing process."""
    overflow: Overflow = "block"
    """What happens when they are that many; as `EventQueue`'s. `block` waits in the calling thread, a loop's too."""
    max_events: int = 256
    """Events of one batch."""
    max_bytes: int = 65_536
    """Bytes of one batch, about. Ray carries up to 100 KiB with the message itself."""
    delay_s: float = 0.002
    """Least time between two batches that are not full."""
    beat_s: float = 1.0
    """Silence after which an empty batch says that the producer lives."""
    form: Form = "batches"
    """triples: `(type, payload, turn)` and a closing None, one by one, for a consumer that knows nothing else."""


# --- one producer -----------------------------------------------------------------------------------------------------


class Outbox:
    """What one producer has emitted and not yet sent. Safe from every thread; `next` belongs to one."""

    def __init__(self, options: Options, turn: int) -> None:
        self.options = options
        self.turn = turn
        self.producer: str = uuid.uuid4().hex
        self.queue: EventQueue[Event] = EventQueue(options.maxsize, options.overflow)
        self.gone: str | None = None
        """Why nothing can be sent any more."""
        self.end: str = ""
        self.sent: int = 0
        self.waited: int = 0
        self._emitted = 0
        self._final: Event | None = None
        self._rest: list[Event] = []
        self._greeted = False
        self._told_end = False
        self._order = threading.Lock()
        self._wake = threading.Event()
        self._full = threading.Event()
        self._room = threading.Condition(threading.Lock())
        self._last = 0.0
        self._sending = threading.Lock()
        self._idle = False
        self._begun: Item | None = None
        self.begin: Callable[[Any, int], None] | None = None
        """Starts to hand an item over, from any thread, where the sink can: its `put` then waits for it."""

    def put(self, event: Event) -> int:
        """Queues one event as the policy says; returns its number among the emits here."""
        with self._order:
            self._check()
            if event.type == "completion":
                self._final = event
                self._close('{"reason":"completed"}')
            elif not self._offer(event) and self.queue.closed:
                self._check()
            self._emitted += 1
            number = self._emitted
        if self._idle and self.begin is not None:
            self._send_now(self.begin)
        if not self._wake.is_set():
            self._wake.set()
        if self.queue.qsize() >= self.options.max_events:
            self._full.set()
        return number

    def _send_now(self, begin: Callable[[Any, int], None]) -> None:
        """The first event after a pause leaves on the thread that emits: in a busy interpreter the sender's would get
        its turn 5 ms later."""
        if time.monotonic() - self._last < self.options.delay_s or not self._sending.acquire(blocking=False):
            return
        try:
            if self._idle and self._begun is None:
                self._idle = False
                self._begun = item = self._item(self._take())
                begin(*item)
        except Exception as error:
            self.lose(f"sending failed: {type(error).__name__}")
        finally:
            self._sending.release()

    def _offer(self, event: Event) -> bool:
        try:
            return self.queue.put_nowait(event)
        except QueueFull:
            if self.options.overflow == "fail":
                raise
        self.waited += 1
        self._full.set()
        # Not EventQueue.put: it refuses to wait on a loop's thread, where waiting is what was asked for. Another thread
        # sends, so this one is sure to be woken.
        with self._room:
            while True:
                try:
                    return self.queue.put_nowait(event)
                except QueueFull:
                    self._wake.set()
                    self._room.wait(_PATIENCE_S)

    def _check(self) -> None:
        if self.gone is not None:
            raise TurnEnded(f"the session takes no more events: {self.gone}")
        if self.queue.closed:
            raise SessionClosed("the emitter is closed")

    def _close(self, end: str) -> None:
        self.end = self.end or end
        self.queue.close()
        self._wake.set()
        self._full.set()

    def close(self, error: BaseException | str | None = None) -> None:
        """Nothing more is emitted here; what is queued is still sent."""
        reason: dict[str, str] = {"reason": "closed"}
        if error is not None:
            text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
            reason = {"reason": "failed", "message": text}
        self._close(json.dumps(reason))

    def lose(self, reason: str) -> None:
        """The other side is gone: what is queued is thrown away, and who waits is woken."""
        self.gone = self.gone or reason
        self.queue.close(discard=True)
        self._wake.set()
        self._full.set()
        with self._room:
            self._room.notify_all()

    def next(self) -> Item | None:
        """Waits for what is to be sent: a blob, or triples, and how many events they hold; None at the end."""
        while self.gone is None and (not self._told_end or self._begun is not None):
            self._idle = not self._rest
            # Who has not been heard of yet is soon: with its first event, or without.
            silent = not self._rest and not self._wake.wait(self.options.beat_s if self._greeted else GREETING_S)
            self._idle = False
            pause = self._last + self.options.delay_s - time.monotonic()
            if pause > 0 and not self._rest and self._begun is None and not self._full.is_set():
                self._full.wait(pause)
            with self._sending:
                self._wake.clear()
                self._full.clear()
                if self._begun is not None:
                    item, self._begun = self._begun, None
                    if self._rest or self.queue.qsize() or self.queue.closed:
                        self._wake.set()
                    return item
                events = self._take()
                if events or silent or not self._greeted or self._over():
                    return self._item(events)  # else the last batch had it already
        return None

    def _item(self, events: list[Event]) -> Item:
        self._last = time.monotonic()
        return (self._triples(events), len(events)) if self.options.form == "triples" else self._blob(events)

    def _take(self) -> list[Event]:
        events, limit = self._rest, self.options.max_events
        try:
            while len(events) < limit:
                event = self.queue.get_nowait()
                if event is None:
                    if self._final is not None:
                        events.append(self._final)
                        self._final = None
                    break
                events.append(event)
        except QueueEmpty:
            pass
        with self._room:
            self._room.notify_all()
        self._rest = []
        return events

    def _over(self) -> bool:
        return self.queue.closed and not self.queue.qsize() and self._final is None and not self._rest

    def _blob(self, events: list[Event]) -> tuple[bytes, int]:
        origin = "" if self._greeted else json.dumps(here())
        self._greeted = True

        def write(end: str) -> tuple[bytes, int]:
            dropped = self.queue.statistics()["dropped"]
            first, size = self.sent + 1, self.options.max_bytes
            waited = self.waited
            return write_batch(
                events, self.producer, first, max_bytes=size, dropped=dropped, waited=waited, origin=origin, end=end
            )

        last = self._over()
        blob, count = write(self.end if last else "")
        if count < len(events):  # longer than a batch may be
            self._rest = events[count:]
            if last:
                last = False
                blob, count = write("")
        self._told_end = last
        if not last and (self._rest or self.queue.qsize() or self.queue.closed):
            self._wake.set()
        self.sent += count
        return blob, count

    def _triples(self, events: list[Event]) -> list[Any]:
        self._greeted = True
        triples: list[Any] = [(event.type, _fields(event), event.turn or self.turn or None) for event in events]
        self.sent += len(events)
        if self._over():
            self._told_end = True
            triples.append(None)
        elif self.queue.qsize() or self.queue.closed:
            self._wake.set()
        return triples


_HEADER = frozenset({"type", "seq", "session", "turn", "round", "time", "backend"})


def _fields(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.to_dict().items() if name not in _HEADER}


class Sender(threading.Thread):
    """Sends what an outbox holds until its end."""

    def __init__(self, outbox: Outbox, sink: Sink) -> None:
        super().__init__(name="turnstream-sender", daemon=True)
        self._outbox = outbox
        self._sink = sink

    def run(self) -> None:
        outbox = self._outbox
        try:
            while (item := outbox.next()) is not None:
                load, weight = item
                for part in load if isinstance(load, list) else [load]:
                    while outbox.gone is None and not self._sink.put(part, weight, _PATIENCE_S):
                        pass
        except SinkClosed as closed:
            outbox.lose(str(closed))
        except Exception as error:
            _log.warning("a remote emitter can send no more: %s", type(error).__name__)
            outbox.lose(f"sending failed: {type(error).__name__}")


# --- the emitter ------------------------------------------------------------------------------------------------------


class RemoteEmitter:
    """`emit(type, payload=None, *, turn=None, **fields)`: appends to a session elsewhere, from any thread or loop.

    Made by `session.remote_emitter()`; where it is unpickled it is a producer of its own. Returns the emit's number
    there. On full: its policy, `Options.overflow`. PayloadError as `Emitter`; TurnEnded after a cancel, the turn's end
    or the loss of the other side; SessionClosed after `close`. `with emit:` closes it, and tells an exception that
    leaves the block as the run's failure; forgotten, it closes itself.
    """

    def __init__(self, sink: Sink, turn: int | None = None, options: Options | None = None) -> None:
        self._sink = sink
        self._turn = turn or 0
        self._options = options or Options()
        self._outbox = outbox = Outbox(self._options, self._turn)
        if self._options.form == "batches":
            outbox.begin = sink.begin
        self._sender = Sender(outbox, sink)
        sink.on_close(outbox.lose)
        self._sender.start()
        # Forgotten, or at the interpreter's end: what was emitted is sent, and then the end.
        self._finalizer = weakref.finalize(self, _finish, outbox, self._sender)

    def __call__(self, type: str, payload: Any = None, *, turn: int | None = None, **fields: Any) -> int:
        number = self._turn if turn is None else turn
        return self._outbox.put(compose(type, payload, number, fields or None))

    @property
    def cancelled(self) -> bool:
        """Whether the other side wants nothing more: the work may stop."""
        return self._outbox.gone is not None

    @property
    def closed(self) -> bool:
        """Whether nothing can be emitted any more."""
        return self._outbox.queue.closed

    def statistics(self) -> dict[str, int]:
        """The queue's counts, and sent, waited."""
        return {**self._outbox.queue.statistics(), "sent": self._outbox.sent, "waited": self._outbox.waited}

    def close(self, error: BaseException | str | None = None, *, timeout_s: float = CLOSE_S) -> bool:
        """Sends what is queued, then the end; waits up to `timeout_s`. False: there was not time enough."""
        self._outbox.close(error)
        if threading.current_thread() is not self._sender:
            self._sender.join(timeout_s)
        return not self._sender.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, TurnEnded) and self.cancelled:
            error = None  # the work stopped because it was told to
        self.close(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteEmitter, (self._sink, self._turn, self._options)

    def __repr__(self) -> str:
        return f"<RemoteEmitter {'cancelled' if self.cancelled else 'closed' if self.closed else 'open'}>"


def _finish(outbox: Outbox, sender: Sender) -> None:
    outbox.close()
    if threading.current_thread() is not sender:
        sender.join(CLOSE_S)


# --- who lives --------------------------------------------------------------------------------------------------------


def here() -> dict[str, Any]:
    """Where this process runs, as `lives` reads it; without a machine's id where there is no /proc."""
    pid = os.getpid()
    try:
        return {"machine": _machine(), "pid": pid, "began": _stat(pid)[1]}
    except OSError:
        return {"pid": pid}


def lives(origin: Mapping[str, Any]) -> bool | None:
    """Whether the process of that origin lives; None where that cannot be seen from here."""
    try:
        if origin.get("machine") != _machine():
            return None
    except OSError:
        return None
    try:
        state, began = _stat(int(origin["pid"]))
    except OSError:
        return False
    return began == origin["began"] and state not in ("Z", "X")


def _machine() -> str:
    """The machine since it was started, and the container: process numbers mean something inside both."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _stat(pid: int) -> tuple[str, str]:
    """A process's state and when it began: the same number may come again, but not at the same time."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return words[0], words[19]
