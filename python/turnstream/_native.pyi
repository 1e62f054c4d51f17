"""The Rust side of turnstream. Import its names from `turnstream`, never from here."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, final

__version__: str
debug_build: bool

# --- errors ---------------------------------------------------------------------------------------------------------

class TurnstreamError(Exception):
    """The root of all errors of this package. `code` is a stable word for programs."""

    code: str

class PayloadError(TurnstreamError, ValueError):
    """An event's type or fields are not of the vocabulary."""

class ProtocolError(TurnstreamError, ValueError):
    """A provider's bytes are not what its format says; the text names provider and byte offset."""

class UnknownProvider(TurnstreamError, ValueError):
    """No provider of that name, or `auto` does not recognise the bytes."""

class FrameTooLong(ProtocolError):
    """A line or an event is longer than the reader's limit."""

class CursorError(TurnstreamError, ValueError):
    """The text is not a cursor (`<epoch>.<seq>`)."""

class CursorExpired(TurnstreamError):
    """The log no longer holds what comes after the cursor, and the reader asked to be refused."""

class SessionClosed(TurnstreamError):
    """The session has ended or was deleted; it takes no more events."""

class UnknownSession(TurnstreamError, KeyError):
    """No session of that id."""

class TurnActive(TurnstreamError):
    """A turn is running; a session runs one at a time."""

class TurnEnded(TurnstreamError):
    """The turn has its completion; it takes no more events."""

class Conflict(TurnstreamError):
    """The same client_id came before with another input."""

class ReaderBusy(TurnstreamError):
    """Two tasks wait on one reader; open a second reader instead."""

class ForkedProcess(TurnstreamError):
    """The object was made before a fork and cannot be used in the child."""

# --- events ---------------------------------------------------------------------------------------------------------

class Event:
    """One immutable fact. Compared, hashed and pickled by its JSON form."""

    type: str
    seq: int | None
    session: str | None
    turn: int
    round: int
    time: int
    backend: str | None
    extra: dict[str, Any]
    """Fields that the vocabulary does not name."""

    def to_dict(self) -> dict[str, Any]: ...
    def json(self) -> str: ...
    @property
    def cursor(self) -> str | None: ...
    @staticmethod
    def from_json(text: str) -> Event: ...

class TextDelta(Event):
    __match_args__: ClassVar[tuple[str, ...]] = ("message_id", "text")
    message_id: str
    text: str
    def __init__(self, *, message_id: str = "", text: str = "", **fields: Any) -> None: ...

# … one class per type of the vocabulary, named in CamelCase …

# --- frames and providers -------------------------------------------------------------------------------------------

@final
class Frame:
    """One server-sent event: `event` is "message" when not named, `id` the last event id at dispatch."""

    event: str
    data: str
    id: str
    retry: int | None

@final
class SSEDecoder:
    """Server-sent events by the WHATWG standard, from bytes in any split. Does no I/O; one thread at a time.

    `lenient` also gives an event that the end of input leaves without its blank line. A line or an event past its limit
    raises FrameTooLong: the frames before it in the same chunk are returned first, and the next call raises. `comments`
    are the newest, as many as `max_line_bytes` hold.
    """

    def __init__(self, *, lenient: bool = False, max_line_bytes: int = ..., max_event_bytes: int = ...) -> None: ...
    def feed(self, data: bytes | bytearray) -> list[Frame]: ...
    def finish(self) -> list[Frame]: ...
    @property
    def last_event_id(self) -> str: ...
    @property
    def retry(self) -> int | None: ...
    @property
    def comments(self) -> list[str]: ...

def providers() -> list[str]:
    """The names of all wire formats that can be read."""

@final
class Normalizer:
    """One provider stream's bytes to events. Does no I/O; one thread at a time."""

    def __init__(self, provider: str = "auto", *, strict: bool = False) -> None: ...
    def feed(self, data: bytes) -> list[Event]: ...
    def finish(self) -> list[Event]: ...
    provider: str

def fold_json(data: bytes, provider: str = "auto", *, split: int = 0, strict: bool = False) -> str:
    """The fold of a whole stream, as the JSON text that `turnstream fold` prints."""

# --- sessions -------------------------------------------------------------------------------------------------------

@final
class Limits:
    def __init__(self, *, max_events: int = 100_000, max_bytes: int = 64 << 20, max_age_s: float = 3600.0) -> None: ...
    max_events: int
    max_bytes: int
    max_age_s: float

@final
class Hub:
    """The sessions, and the store they live in. Safe from every thread."""

    def __init__(self, store: str = "memory", limits: Limits | None = None) -> None: ...
    def session(self, id: str | None = None) -> Session: ...
    def find(self, id: str) -> Session:
        """The session, or UnknownSession; never makes one."""
    def sessions(self) -> list[Session]: ...
    def delete(self, id: str) -> bool:
        """Ends the session (`session_end`, running turn cancelled) and forgets it. False when there was none."""
    def close(self) -> None: ...

@final
class Session:
    id: str
    epoch: str
    head: int
    """seq of the newest event; 0 when there is none."""
    earliest: int | None
    cursor: str
    """`<epoch>.<head>`."""

    def turn(
        self, input: Any = None, *, backend: str | None = None, client_id: str | None = None, metadata: Any = None
    ) -> Turn:
        """Starts a turn (logs `turn_start`). TurnActive while one runs."""
    def emitter(self) -> Callable[..., int]:
        """A callable `emit(type, payload=None, *, turn=None, **fields) -> seq`, safe from every thread."""
    def read(
        self,
        after: str | None = None,
        follow: Literal["turn", "session", "none"] = "turn",
        *,
        pace: bool = False,
        deltas: Literal["exact", "merged"] = "exact",
        on_trim: Literal["snapshot", "fail"] = "snapshot",
    ) -> Reader: ...
    def frames(
        self,
        after: str | None = None,
        follow: Literal["turn", "session", "none"] = "turn",
        *,
        format: Literal["sse", "ndjson"] = "sse",
        deltas: Literal["exact", "merged"] = "merged",
        on_trim: Literal["snapshot", "fail"] = "snapshot",
        heartbeat_s: float = 10.0,
        max_bytes: int = 65536,
        limit: int | None = None,
        retry_ms: int | None = None,
    ) -> FrameReader:
        """The same log as encoded frames. Yields `bytes`: all frames that are ready, up to about `max_bytes`, the
        `stream_open` first, heartbeats in silence; ends after the completion it follows."""
    def status(self) -> dict[str, Any]:
        """`{"session_id", "state": "idle|running|completed|failed|cancelled|incomplete|ended", "turn", "epoch", "head",
        "earliest", "cursor", "progress": {stage: {…}}, "usage", "error", "readers", "started", "updated"}`."""
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far, user inputs and partial answers included:
        `{"role", "turn", "message_id", "text", "reasoning", "tool_calls": [{"call_id", "name", "arguments", "output", …}], "done"}`."""
    def result(self) -> dict[str, Any] | None:
        """The last turn's `completion` as a dict; None while it runs or before the first."""
    def statistics(self) -> dict[str, Any]: ...
    def cancel(self, reason: str = "cancelled") -> Awaitable[bool]:
        """Stops the running turn: cancels its task, ends it as cancelled. False when none was running."""
    def close(self, reason: str | None = None) -> None: ...

@final
class Turn:
    """One request and its answer. Leaves exactly one `completion` behind, however it is left."""

    session: Session
    number: int
    input: Any
    cancelled: bool
    ended: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def emit(self, type: str, payload: Mapping[str, Any] | None = None, **fields: Any) -> int: ...
    def normalizer(self, provider: str = "auto", *, strict: bool = False) -> TurnFeed:
        """A feed: provider bytes straight into the log, without a Python object per event."""
    def relay(self, source: Any, provider: str = "auto", *, strict: bool = False) -> Awaitable[Message]: ...
    def complete(self, result: Any = None, *, status: str = "completed", reason: str | None = None) -> None:
        """Ends the turn. `result` (a text) is the fallback message when no other was seen. A second call does nothing."""
    def fail(self, error: BaseException | str, *, code: str | None = None) -> None:
        """Logs `error` and ends the turn as failed. A second call does nothing."""
    def bind_task(self, cancel: Callable[[], object]) -> None:
        """What `session.cancel()` calls to stop the work; called on the thread that cancels."""

@final
class TurnFeed:
    def feed(self, data: bytes) -> int:
        """Events appended."""
    def finish(self) -> Message: ...

@final
class Reader:
    """A cursor into a session's log. An async iterator, and (`iter(reader)`) a blocking one."""

    cursor: str
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Event]: ...
    def __iter__(self) -> Iterator[Event]: ...
    def batches(self, max_events: int = 64) -> AsyncIterator[list[Event]]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...

@final
class FrameReader:
    """Encoded frames of a session's log; see Session.frames."""

    status: str
    """How the cursor was taken, as in `stream_open`."""
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[bytes]: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None:
        """Ends the iteration, also of a parked one."""

@final
class Message:
    """What one model call said, whole."""

    message_id: str
    text: str
    reasoning: str
    refusal: str | None
    tool_calls: list[Any]
    """Each with `id`, `name`, `arguments`, `arguments_raw`, `arguments_error`, `kind`."""
    finish_reason: str
    finish_reason_raw: str | None
    model: str | None
    provider: str
    usage: dict[str, Any] | None
    usage_raw: dict[str, Any] | None
    error: dict[str, Any] | None
    warnings: list[dict[str, Any]]
    choices: list[Message]
    events: int
    def to_dict(self) -> dict[str, Any]: ...
