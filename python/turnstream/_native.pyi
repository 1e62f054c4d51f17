"""The Rust side of turnstream. Import its names from `turnstream`, never from here."""

from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterator, Mapping, Sequence
from types import GenericAlias, TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar, final

from typing_extensions import disjoint_base

from turnstream.message import Message
from turnstream.remote.pump import Pumped
from turnstream.remote.sources import HomeEmitter
from turnstream.subscription import Subscription

_T = TypeVar("_T")

__version__: str
debug_build: bool
EVENT_TYPES: dict[str, type[Event]]
"""The class of each type, by its name on the wire."""

_FinishReason: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "refusal", "pause", "error", "cancelled", "unknown"
]
_Origin: TypeAlias = Literal["provider", "transcript", "fallback"]
_Kind: TypeAlias = Literal["client", "server", "command", "file_change", "mcp"]
_Status: TypeAlias = Literal["completed", "failed", "cancelled", "incomplete"]

# --- events ---------------------------------------------------------------------------------------------------------

@disjoint_base
class Event:
    """One immutable fact. Equal by content, hashable, picklable; safe to share between threads.

    The classes below are made by streams. Made by hand (`TextDelta(text="Hi")`) they take their fields, and seq,
    session, turn, round, time and backend, as keywords; PayloadError where a field is not of its type.
    """

    @property
    def type(self) -> str:
        """The type's name on the wire."""
    @property
    def seq(self) -> int | None:
        """Its place in the session's log, from 1; None for control frames."""
    @property
    def session(self) -> str | None:
        """The session's id; None for events that belong to none."""
    @property
    def turn(self) -> int:
        """Counts from 1 within the session; 0 outside every turn."""
    @property
    def round(self) -> int:
        """Counts from 1 within the turn; 0 before the first model call."""
    @property
    def time(self) -> int:
        """Unix milliseconds."""
    @property
    def backend(self) -> str | None:
        """Which backend the turn runs on, if somebody said."""
    @property
    def extra(self) -> dict[str, Any]:
        """Fields that the vocabulary does not name."""
    def __new__(cls) -> Self: ...
    def to_dict(self) -> dict[str, Any]:
        """The wire form as a dict, made anew by each call."""
    def json(self) -> str:
        """The wire form: one flat JSON object without a line break."""
    @staticmethod
    def from_json(text: str) -> Event:
        """Reads the wire form. PayloadError where it is not of the vocabulary."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Callable[[str], Event], tuple[str]]: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, _memo: object) -> Self: ...

@final
class TurnStart(Event):
    """`turn_start` (boundary): A turn begins: one user request and, until its `completion`, the answer to it."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def input(self) -> Any: ...
    @property
    def client_id(self) -> str | None: ...
    @property
    def metadata(self) -> Any: ...

@final
class RoundStart(Event):
    """`round_start` (boundary): One model call inside a turn begins."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def model(self) -> str | None: ...
    @property
    def provider(self) -> str | None: ...

@final
class RoundEnd(Event):
    """`round_end` (boundary): The model call has ended, on an error too."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def finish_reason(self) -> _FinishReason | None: ...

@final
class MessageStart(Event):
    """`message_start` (boundary): A message opens. `choice` is its index where the provider answers several times at
    once.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def choice(self) -> int | None: ...

@final
class MessageReset(Event):
    """`message_reset` (boundary): What was shown of the message is withdrawn; what follows replaces it."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def reason(self) -> str | None: ...

@final
class AssistantMessage(Event):
    """`assistant_message` (boundary): The message, whole: closes it, once, whether or not deltas came."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def reasoning(self) -> str: ...
    @property
    def refusal(self) -> str | None: ...
    @property
    def tool_calls(self) -> list[dict[str, Any]]: ...
    @property
    def finish_reason(self) -> _FinishReason: ...
    @property
    def finish_reason_raw(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def streamed(self) -> bool: ...
    @property
    def origin(self) -> _Origin: ...
    @property
    def choice(self) -> int | None: ...

@final
class ToolCallStart(Event):
    """`tool_call_start` (boundary): A tool call opens; its arguments follow as deltas or whole."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def call_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> _Kind: ...
    @property
    def message_id(self) -> str | None: ...

@final
class ToolCall(Event):
    """`tool_call` (boundary): A tool call, whole. Where the arguments are not JSON, `arguments` is null and the error
    says why.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def call_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> Any: ...
    @property
    def arguments_raw(self) -> str: ...
    @property
    def arguments_error(self) -> str | None: ...
    @property
    def kind(self) -> _Kind: ...
    @property
    def message_id(self) -> str | None: ...

@final
class ToolResult(Event):
    """`tool_result` (boundary): What a tool call gave: exactly one per call."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def call_id(self) -> str: ...
    @property
    def output(self) -> Any: ...
    @property
    def is_error(self) -> bool: ...
    @property
    def status(self) -> str: ...
    @property
    def name(self) -> str | None: ...

@final
class StageStart(Event):
    """`stage_start` (boundary): A stage of the agent's work begins."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def stage(self) -> str: ...
    @property
    def agent(self) -> str | None: ...
    @property
    def index(self) -> int | None: ...
    @property
    def total(self) -> int | None: ...
    @property
    def message(self) -> str | None: ...

@final
class StageEnd(Event):
    """`stage_end` (boundary): A stage of the agent's work has ended."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def stage(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def message(self) -> str | None: ...

@final
class Citation(Event):
    """`citation` (boundary): A source the answer refers to. `raw` is the provider's own object."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def title(self) -> str | None: ...
    @property
    def text(self) -> str | None: ...
    @property
    def start(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    @property
    def raw(self) -> Any: ...

@final
class File(Event):
    """`file` (boundary): A file the model made. `data` is base64."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def media_type(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def file_id(self) -> str | None: ...
    @property
    def data(self) -> str | None: ...
    @property
    def message_id(self) -> str | None: ...

@final
class Usage(Event):
    """`usage` (boundary): What one model call consumed: totals that include their cached and reasoning parts. `raw` as
    sent.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def total_tokens(self) -> int | None: ...
    @property
    def cache_read_tokens(self) -> int | None: ...
    @property
    def cache_write_tokens(self) -> int | None: ...
    @property
    def reasoning_tokens(self) -> int | None: ...
    @property
    def audio_input_tokens(self) -> int | None: ...
    @property
    def audio_output_tokens(self) -> int | None: ...
    @property
    def raw(self) -> Any: ...

@final
class Warning(Event):
    """`warning` (boundary): Something was not as it should be, and the stream goes on."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def raw(self) -> Any: ...

@final
class Error(Event):
    """`error` (boundary): Something failed. An error beats a finish, whichever comes first."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def retryable(self) -> bool: ...
    @property
    def fatal(self) -> bool: ...
    @property
    def raw(self) -> Any: ...

@final
class ProviderEvent(Event):
    """`provider_event` (boundary): What a provider sent that the vocabulary has no word for."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def data(self) -> Any: ...

@final
class Custom(Event):
    """`custom` (boundary): A user's own event."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def data(self) -> Any: ...

@final
class Completion(Event):
    """`completion` (boundary): The turn has ended: exactly one per turn."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def status(self) -> _Status: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def usage(self) -> Any: ...
    @property
    def text(self) -> str: ...
    @property
    def error(self) -> Any: ...
    @property
    def events(self) -> int: ...
    @property
    def subscriber_failures(self) -> int | None: ...

@final
class SessionEnd(Event):
    """`session_end` (boundary): The session takes no more events."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def reason(self) -> str | None: ...

@final
class TextDelta(Event):
    """`text_delta` (delta): A piece of a message's text."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def text(self) -> str: ...

@final
class ReasoningDelta(Event):
    """`reasoning_delta` (delta): A piece of a message's reasoning; `part` counts its separate parts."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def part(self) -> int | None: ...

@final
class RefusalDelta(Event):
    """`refusal_delta` (delta): A piece of a message's refusal."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def message_id(self) -> str: ...
    @property
    def text(self) -> str: ...

@final
class ToolCallDelta(Event):
    """`tool_call_delta` (delta): A raw piece of a tool call's arguments."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def call_id(self) -> str: ...
    @property
    def text(self) -> str: ...

@final
class ToolOutputDelta(Event):
    """`tool_output_delta` (delta): A piece of what a running tool prints."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def call_id(self) -> str: ...
    @property
    def text(self) -> str: ...

@final
class Progress(Event):
    """`progress` (state): How far a stage has come; the latest per stage counts."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def stage(self) -> str: ...
    @property
    def current(self) -> float | None: ...
    @property
    def total(self) -> float | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def agent(self) -> str | None: ...
    @property
    def elapsed_s(self) -> float | None: ...
    @property
    def estimate_s(self) -> float | None: ...

@final
class StreamOpen(Event):
    """`stream_open` (control): The first frame of every stream: where the log stands and how the cursor was taken."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def status(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def earliest(self) -> int | None: ...
    @property
    def head(self) -> int: ...
    @property
    def heartbeat_s(self) -> float: ...
    @property
    def requested(self) -> str | None: ...

@final
class Snapshot(Event):
    """`snapshot` (control): The folded state up to and with `head`, where history is missing."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def head(self) -> int: ...
    @property
    def state(self) -> Any: ...

@final
class StreamClose(Event):
    """`stream_close` (control): The last frame of a stream that the server ends early: come back with the last id.
    `retry_ms`: not sooner."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def reason(self) -> str: ...
    @property
    def retry_ms(self) -> int | None: ...

@final
class Gap(Event):
    """`gap` (control): Events `first` to `last` will not come."""

    __match_args__: ClassVar[tuple[str, ...]]
    def __new__(cls, **fields: Any) -> Self: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def reason(self) -> str: ...

# --- frames and providers -------------------------------------------------------------------------------------------

@final
class Frame:
    """One server-sent event: `event` is "message" when not named, `id` the last event id at dispatch."""

    @property
    def event(self) -> str:
        """ "message" where the block named none."""
    @property
    def data(self) -> str:
        """Its `data` lines, joined by LF."""
    @property
    def id(self) -> str:
        """The stream's last event id when this event was whole; "" before the first."""
    @property
    def retry(self) -> int | None:
        """Milliseconds, where this event's own block said so."""

@final
class SSEDecoder:
    """Server-sent events by the WHATWG standard, from bytes in any split. Does no I/O; one thread at a time.

    `lenient` also gives an event that the end of input leaves without its blank line. A line or an event past its limit
    raises FrameTooLong: the frames before it in the same chunk are returned first, and the next call raises. `comments`
    are the newest, as many as `max_line_bytes` hold.
    """

    def __new__(
        cls, *, lenient: bool = False, max_line_bytes: int = 67_108_864, max_event_bytes: int = 67_108_864
    ) -> Self: ...
    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Takes bytes, in any split; gives the events that they complete. FrameTooLong, see above."""
    def finish(self) -> list[Frame]:
        """The bytes have ended. By the standard what is not followed by a blank line is no event; `lenient`: it is."""
    @property
    def last_event_id(self) -> str:
        """What a client that reconnects sends as `Last-Event-ID`; "" before the first."""
    @property
    def retry(self) -> int | None:
        """Milliseconds to wait before reconnecting, as the stream last said."""
    @property
    def comments(self) -> list[str]:
        """The newest comments, without their colon and one blank."""

def providers() -> list[str]:
    """The names of all wire formats that can be read, sorted."""

def partial_json(text: str, /) -> Any:
    """What `text`, the beginning of a JSON text, says so far; None where that is nothing, or no JSON. Never raises.

    For a tool call's arguments while they stream: join the `tool_call_delta` pieces and ask when there is something to
    show. A member whose value has not begun is left out; a string or a number goes as far as it has come; what
    follows a whole value is ignored. Each call costs the text's length.

        ts.partial_json('{"city": "Zür')  # {"city": "Zür"}
    """

def join_deltas(events: Sequence[Event], max_bytes: int = 0) -> list[Event]:
    """See `turnstream.streams.join`."""

def fold_json(
    data: bytes | str, provider: str = "auto", *, split: int = 0, strict: bool = False, text_tools: bool = False
) -> str:
    """The fold of a whole stream, as the JSON text that `turnstream fold` prints.

    `strict` and `text_tools`: see `Normalizer`. `split` feeds so many bytes at a time; the result does not change.
    UnknownProvider where `auto` recognises nothing, ProtocolError where the bytes are no stream.
    """

@final
class Normalizer:
    """One provider stream's bytes to events. Does no I/O; one thread at a time.

    The events belong to no session: seq counts from 1, turn is 1. Lenient, a broken frame is a `warning` with its byte
    offset and the stream goes on; strict, it raises ProtocolError.

    With `text_tools`, tool calls that a model wrote into its text by its chat template (`<tool_call>…</tool_call>`,
    `[TOOL_CALLS]…` and their like) are calls, and the template's end marks (`<|im_end|>`, `</s>`, …) at the text's end
    are dropped: for servers that were not told to do so. What is not a whole call stays text.
    """

    def __new__(cls, provider: str = "auto", *, strict: bool = False, text_tools: bool = False) -> Self: ...
    def feed(self, data: bytes | bytearray | memoryview | str) -> list[Event]:
        """Takes bytes, in any split; gives the events that they complete. UnknownProvider where "auto" recognises
        nothing, ProtocolError where strict."""
    def finish(self) -> list[Event]:
        """The bytes have ended: closes everything that is open. A second call gives nothing. An error is raised once,
        here or by `feed`; the call after that gives the events that came before it."""
    @property
    def provider(self) -> str:
        """The provider's name; "auto" until it is recognised."""

@final
class TurnFeed:
    """A provider's bytes straight into a turn's log, without a Python object per event. See `Turn.normalizer`.

    One thread at a time: a second one gets ReaderBusy.
    """

    def feed(self, data: bytes | bytearray | memoryview | str) -> int:
        """Takes bytes, in any split; returns how many events they added. TurnEnded once the turn has its completion;
        UnknownProvider and, strict, ProtocolError, after the events of all that came before."""
    def finish(self) -> str:
        """The bytes have ended: closes what is open. Returns the fold of this stream, as JSON text."""
    def stop(self, error: Mapping[str, Any]) -> None:
        """No more bytes will come: says why in an `error` event of these fields, and closes what is open. Does nothing
        after an error of `feed` that has said and closed all that."""
    @property
    def should_wait(self) -> bool:
        """Whether a pacing reader lags by its window: `await turn.ready()` before feeding more."""
    @property
    def provider(self) -> str:
        """The provider's name; "auto" until it is recognised."""

# --- between processes ----------------------------------------------------------------------------------------------

def compose(type: str, payload: Any = None, turn: int = 0, fields: dict[str, Any] | None = None) -> Event:
    """An event on its way to a session: checked as an emit there would be, PayloadError and all. `turn` 0: the one that
    runs there."""

def write_batch(
    events: list[Event],
    producer: str,
    first: int,
    *,
    max_bytes: int = 65_536,
    dropped: int = 0,
    waited: int = 0,
    origin: str = "",
    end: str = "",
) -> tuple[bytes, int]:
    """Events of one producer, numbered from `first`, as one blob of about `max_bytes`; and how many it holds."""

def read_batch(blob: bytes) -> tuple[dict[str, Any], list[Event]]:
    """A blob's header and events; PayloadError where it is no batch."""

# --- sessions -------------------------------------------------------------------------------------------------------

@final
class Limits:
    """How much a session keeps, and how much all sessions of a hub keep together.

    What no longer fits a session's log leaves it: deltas of finished messages first, then the oldest. What no longer
    fits the hub leaves in the same order, and then whole sessions, the longest still first; never one with a running
    turn or an open reader. A message is cut at `max_message_bytes`, with a `warning`. `max_state_bytes` bounds what a
    session folds: of finished messages, with their calls, citations and files, the oldest go first, and are counted.
    """

    def __new__(
        cls,
        *,
        max_events: int = 100_000,
        max_bytes: int = 67_108_864,
        max_age_s: float = 3600.0,
        max_message_bytes: int = 16_777_216,
        max_state_bytes: int = 33_554_432,
        max_sessions: int = 100_000,
        hub_max_events: int = 10_000_000,
        hub_max_bytes: int = 1_073_741_824,
    ) -> Self: ...
    @property
    def max_events(self) -> int:
        """Events in a session's log."""
    @property
    def max_bytes(self) -> int:
        """Bytes in a session's log, about."""
    @property
    def max_age_s(self) -> float:
        """Age of an event in seconds; also how long a finished session is kept."""
    @property
    def max_message_bytes(self) -> int:
        """Bytes of one message's text, and of its reasoning and its refusal."""
    @property
    def max_state_bytes(self) -> int:
        """Bytes of a session's folded state, about: its messages, calls, citations and files."""
    @property
    def max_sessions(self) -> int:
        """Sessions in a hub."""
    @property
    def hub_max_events(self) -> int:
        """Events in all logs of a hub."""
    @property
    def hub_max_bytes(self) -> int:
        """Bytes in all logs of a hub, about."""
    def __eq__(self, other: object, /) -> bool: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...

@final
class Hub:
    """The sessions, and the store they live in. Safe from every thread.

    `store`: "memory"; "sqlite:///runs.db", a file that several processes may share; "redis://user:password@host/0", a
    Redis (6.2 or newer) or Valkey server, by TLS as "rediss://…"; UnknownStore for any other, StoreUnavailable for a
    server that does not answer, RuntimeWarning for one that may lose what it has (an eviction policy).
    `durability`, for a store: when readers see an event. "memory": at once. "process": once it outlives this process.
    "disk": once it outlives a power cut. A hub cannot be used in the child of a fork (ForkedProcess).
    `redact` sees each event as a dict (`type` and the event's own fields), on the thread that emits, before it is
    stored: what it returns is stored, None leaves the event out. Where it fails, `custom{name: "redaction_failed"}`
    stands for the event.
    """

    def __new__(
        cls,
        store: str = "memory",
        limits: Limits | None = None,
        *,
        redact: Callable[[dict[str, Any]], Mapping[str, Any] | None] | None = None,
        durability: Literal["memory", "process", "disk"] = "process",
    ) -> Self: ...
    @property
    def store(self) -> str:
        """Where its sessions live: "memory", or the scheme of the store's URL."""
    def session(self, id: str | None = None) -> Session:
        """The session `id`, made if it is new; without an id, a new one under an id nobody can guess. HubFull for a
        new one where `max_sessions` are in use. Where it lives in a store, this waits for it: StoreUnavailable after
        half a second without an answer; on a loop, await `asession`."""
    def find(self, id: str) -> Session:
        """The session `id`, or UnknownSession; never makes one. It waits for a store as `session` does."""
    def asession(self, id: str | None = None) -> Coroutine[Any, Any, Session]:
        """`session`, awaited: a store is read in a thread, and the loop runs on."""
    def afind(self, id: str) -> Coroutine[Any, Any, Session]:
        """`find`, awaited: a store is read in a thread, and the loop runs on."""
    def adelete(self, id: str) -> Coroutine[Any, Any, bool]:
        """`delete`, awaited: a store is told in a thread, and the loop runs on."""
    def sessions(self) -> list[Session]:
        """The sessions that this process has open, newest activity first: all of them in memory, of a store's those it
        has used."""
    def delete(self, id: str) -> bool:
        """Ends the session (its running turn as cancelled, its readers after `session_end`) and forgets it. False when
        there was none. It waits for a store as `session` does."""
    def check_stalls(self, timeout_s: float) -> list[Session]:
        """The sessions whose running turn has now said nothing for `timeout_s`. Each gets a `warning` with the code
        `stalled`, once per stall."""
    def statistics(self) -> dict[str, int]:
        """Exact counts: sessions, events, bytes, forgotten."""
    def flush(self) -> bool:
        """Waits, at most half a second a session, until the store has what was logged: True if it has. At once in
        memory."""
    def close(self) -> None:
        """Ends all sessions and forgets them. In a store they stay: only turns that run in this process are ended."""

@final
class Session:
    """One conversation: one ordered log of events, and the state folded from them. Safe from every thread.

    Nothing waits for a reader, but for one that paces. What writes waits for a store for half a second at most, and
    raises a StoreError then, or NotWriter where another process writes. ForkedProcess in the child of a fork.
    """

    @property
    def id(self) -> str:
        """Its id."""
    @property
    def epoch(self) -> str:
        """The log's life: cursors of another epoch belong to another log."""
    @property
    def head(self) -> int:
        """seq of the newest event; 0 when there is none."""
    @property
    def earliest(self) -> int | None:
        """seq of the oldest event that a reader can have, from memory or the store."""
    @property
    def cursor(self) -> str:
        """`<epoch>.<head>`: a reader from there sees what comes."""
    def turn(
        self,
        input: Any = None,
        *,
        backend: str | None = None,
        client_id: str | None = None,
        metadata: Any = None,
        principal: Any = None,
    ) -> Turn:
        """Starts a turn (logs `turn_start`). TurnActive while one runs; SessionClosed after the session's end.

        With a `client_id` that came before and an equal input, the turn that was started then, running or ended
        (`turn.started` is False); with another input, Conflict. It waits for a store as `Hub.session` does.
        """
    def aturn(
        self,
        input: Any = None,
        *,
        backend: str | None = None,
        client_id: str | None = None,
        metadata: Any = None,
        principal: Any = None,
    ) -> Coroutine[Any, Any, Turn]:
        """`turn`, awaited: a store is asked in a thread, and the loop runs on."""
    def emitter(self) -> Emitter:
        """A callable `emit(type, payload=None, *, turn=None, **fields) -> seq`, safe from every thread."""
    def read(
        self,
        after: str | None = None,
        follow: Literal["turn", "session", "none"] = "turn",
        *,
        pace: bool = False,
        deltas: Literal["exact", "merged"] = "exact",
        on_trim: Literal["snapshot", "fail"] = "snapshot",
    ) -> Reader:
        """A reader: an async iterator of events, and a blocking one.

        `after` is a cursor, None for the beginning; CursorError where malformed. `follow`: "turn" ends after the
        completion of the running turn (or of the last one, or of the first to come), "session" after `session_end`,
        "none" with what is there. `pace`: the producer waits while this reader lags by 256 events. `deltas`: each as
        it was emitted, or those of one message or call that are ready together as one. `on_trim`: what a cursor gets
        whose tail has left the log, a `snapshot` and the tail or CursorExpired.
        """
    def subscribe(
        self,
        callback: Callable[[Event], object],
        *,
        types: Collection[str] | str | None = None,
        follow: Literal["turn", "session", "none"] = "session",
        after: str | None = None,
        backlog: int = 1000,
        deltas: Literal["exact", "merged"] = "exact",
    ) -> Subscription:
        """Calls `callback`, plain or async, with each event after the cursor `after` (None: from the beginning), in
        order, one at a time, on the running loop or, without one, on a daemon thread; in the context of this call.

        `types` are the types that it wants. It never holds up an emitter: deltas and progress that lag by `backlog`
        events are skipped, and a `gap` says so. What it raises is counted, and said once as a `warning` in the log.
        """
    def _count_failure(self) -> None: ...
    def frames(
        self,
        after: str | None = None,
        follow: Literal["turn", "session", "none"] = "turn",
        *,
        format: Literal["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"] = "sse",
        deltas: Literal["exact", "merged"] = "merged",
        on_trim: Literal["snapshot", "fail"] = "snapshot",
        heartbeat_s: float = 10.0,
        max_bytes: int = 65_536,
        limit: int | None = None,
        retry_ms: int | None = None,
    ) -> FrameReader:
        """The same log as encoded frames: each item is all frames that are ready, up to about `max_bytes`.

        `stream_open` comes first, a heartbeat after each `heartbeat_s` of silence (0: none); it ends after what it
        follows, or after `limit` events. `retry_ms`: when a client that loses the stream is to come back. The rest,
        and the errors, as with `read`.
        """
    def status(self) -> dict[str, Any]:
        """The status page: session_id, state, turn, epoch, head, earliest, cursor, earliest_cursor, progress, usage,
        error, readers, subscriber_failures, started, updated. `state` is idle, running, completed, failed, cancelled,
        incomplete or ended; times are Unix milliseconds."""
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far, user inputs and partial answers included: `{"role", "turn", "message_id", "input"}` or
        `{"role", "turn", "message_id", "text", "reasoning", "tool_calls", "done", …}`, each call with call_id, name,
        arguments, and its output once there is one. `citations` and `files`, where there are any, hold the events."""
    def snapshot(self) -> dict[str, Any]:
        """`{"messages", "cursor"}`, read at one moment: a reader from the cursor sees exactly what the messages do not
        hold yet. `dropped` is there where `max_state_bytes` has cost something: `{"messages", "calls", "events",
        "turn"}`, how many, and the newest turn that lacks any. Logs nothing."""
    def result(self) -> dict[str, Any] | None:
        """The last turn's `completion`; None while a turn runs or before the first has ended."""
    def answer(self, after: str, format: Literal["openai-chat", "openai-responses"]) -> str | None:
        """The turn that begins after the cursor `after`, as the format's answer without stream: JSON.

        None where no turn begins there, or its beginning has left the log; for "openai-chat", which knows no partial
        answer, also while the turn runs. CursorError where the cursor is malformed.
        """
    def statistics(self) -> dict[str, int]:
        """Exact counts: appended, duplicates, late, refused, capped, redaction_failures, evicted, retained, bytes,
        readers, subscriber_failures."""
    @property
    def running(self) -> int | None:
        """The number of the running turn; None while none runs."""
    def ready(self) -> Awaitable[None]:
        """Awaits until no pacing reader lags by its window, as `Turn.ready`."""
    def note(self, name: str, value: Any) -> None:
        """Puts `value`, any JSON, on the status page under `name`, in place of what stood there: what is known of a run
        beside its events."""
    def emit_batch(self, blob: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Appends a batch that `write_batch` made. What an earlier batch of its producer brought is skipped, what is
        missing between the two is counted, and a refused event costs itself alone. PayloadError where it is no batch.

        Returns the batch's header, and counts: published (events in the log), accepted, duplicates, late, malformed,
        lost, dropped, waited; and skipped, the places in the batch that were not accepted."""
    def remote_emitter(
        self,
        *,
        transport: Any = None,
        turn: int | Turn | None = None,
        maxsize: int = 1000,
        overflow: Literal["block", "drop_oldest", "drop_newest", "merge", "fail"] = "block",
        max_events: int = 256,
        max_bytes: int = 65_536,
        delay_s: float = 0.002,
        beat_s: float = 1.0,
        form: Literal["batches", "triples"] = "batches",
    ) -> HomeEmitter:
        """An emitter to send to another process, a Ray task or actor: the same callable there, with this turn.

        `transport`: a `turnstream.ray.Mailbox` (by default a new one) or a `ray.util.queue.Queue`. The rest says how it
        queues and batches there, see `turnstream.remote.Options`. RemoteUnavailable where Ray is not there."""
    def pump(
        self,
        source: Any,
        *,
        turn: int | Turn | None = None,
        producer: Any = None,
        result: str | None = None,
        on_event: Callable[[str, Any, int | None], object] | None = None,
        complete: bool = True,
        lost_after_s: float = 5.0,
        start_timeout_s: float = 300.0,
        idle_timeout_s: float | None = None,
        pressure_interval_s: float = 10.0,
    ) -> Coroutine[Any, Any, Pumped]:
        """Drains what remote producers send into the running turn, or a new one, up to its completion.

        `source`: a remote emitter, its transport, or a Ray streaming generator. `producer`: the task's ObjectRef, the
        actor, or several: their end is the end, their death completes the turn as failed, reason `producer_lost`, and a
        cancel of the turn cancels tasks. Without it a dead process is noticed by its silence of `lost_after_s`, and no
        word at all for `start_timeout_s` is its loss. `idle_timeout_s`: the same for a queue that others fill.
        `result`, or what the tasks return: the message where no other was seen. `on_event` is called after each event;
        what it raises is counted. `complete=False` leaves the turn open."""
    def cancel(self, reason: str = "cancelled") -> Coroutine[Any, Any, bool]:
        """Stops the running turn at once, also without being awaited: ends it as cancelled, with its partial text and
        usage, and cancels its task. Awaits to False when none was running, once a store knows of it."""
    def close(self, reason: str | None = None) -> None:
        """Ends the session: the running turn as cancelled, then `session_end`, after which readers end and an emit
        raises SessionClosed. A second call does nothing."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Emitter:
    """Appends events to a session, from any thread. See `Session.emitter`."""

    def __call__(self, type: str, payload: Any = None, *, turn: int | None = None, **fields: Any) -> int:
        """Appends one event; returns its seq. Without `turn`, the running one is meant, or the session itself where
        none runs. What JSON cannot say becomes a typed placeholder. PayloadError where type or fields are not of the
        vocabulary, TurnEnded after the turn's completion, SessionClosed after the session's end."""
    def ready(self) -> Awaitable[None]:
        """Awaits until no pacing reader lags by its window: how a producer on a loop takes part in backpressure."""
    def wait_ready(self, timeout: float | None = None) -> bool:
        """As `ready`, for a thread: blocks. False where `timeout` seconds were not enough; WouldBlock on a loop's
        thread."""

@final
class Turn:
    """One request and its answer. However it is left, it leaves exactly one `completion` behind.

    As a context manager: completed; failed, after an `error`, if an exception leaves the block; cancelled on
    cancellation. Forgotten without an end, it is failed with reason "abandoned".
    """

    @property
    def session(self) -> Session:
        """The session that it is a turn of."""
    @property
    def number(self) -> int:
        """Counts from 1 within the session."""
    @property
    def started(self) -> bool:
        """Whether this call started it; False for one that an earlier request of the same client_id started."""
    @property
    def cursor(self) -> str:
        """The cursor before its `turn_start`: a reader from there sees all of it."""
    @property
    def input(self) -> Any:
        """What the request brought, untouched."""
    @property
    def principal(self) -> Any:
        """Who asked for it, as the auth hook said. In no event."""
    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled: for work that looks from time to time."""
    @property
    def ended(self) -> bool:
        """Whether it has its completion."""
    @property
    def _left(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None: ...
    def __aenter__(self) -> Coroutine[Any, Any, Self]: ...
    def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> Coroutine[Any, Any, None]: ...
    def emit(self, type: str, payload: Any = None, **fields: Any) -> int:
        """Appends one event of this turn, from any thread; returns its seq. What JSON cannot say becomes a typed
        placeholder. PayloadError where type or fields are not of the vocabulary, TurnEnded after the completion."""
    def normalizer(self, provider: str = "auto", *, strict: bool = False, text_tools: bool = False) -> TurnFeed:
        """A feed: a provider's bytes straight into the log. UnknownProvider where there is none of that name.

        `strict` and `text_tools`: see `Normalizer`.
        """
    def relay(
        self, source: Any, provider: str = "auto", *, strict: bool = False, text_tools: bool = False
    ) -> Coroutine[Any, Any, Message]:
        """Reads a provider's answer from `source` into the log until its end, and awaits to the whole Message.

        What the provider reports is the message's `error`. SourceError where the server or the connection failed,
        UnknownProvider and ProtocolError where the bytes are none of its format: each is one `error` event as well, and
        a later model call makes it good. Cancelled, it closes the source and what is open in the log. It waits while a
        pacing reader lags. `strict` and `text_tools`: see `Normalizer`.
        """
    def complete(self, result: str | None = None, *, status: _Status | None = None, reason: str | None = None) -> None:
        """Ends the turn. `result` is the message where no other said anything. A second call does nothing.

        Without a `status`: completed, unless its events say failed or incomplete.
        """
    def fail(self, error: BaseException | str, *, code: str | None = None) -> None:
        """Logs a fatal `error` and ends the turn as failed. A second call does nothing."""
    def bind_task(self, cancel: Callable[[], object]) -> None:
        """What `session.cancel()` calls, once, on the thread that cancels, to stop the work."""
    def ready(self) -> Awaitable[None]:
        """Awaits until no pacing reader lags by its window: how a producer on a loop takes part in backpressure."""
    def wait_ready(self, timeout: float | None = None) -> bool:
        """As `ready`, for a thread: blocks. False where `timeout` seconds were not enough; WouldBlock on a loop's
        thread."""

@final
class Reader:
    """A cursor into a session's log: an async iterator of events, and (`iter(reader)`) a blocking one.

    One task or thread at a time: a second one gets ReaderBusy. Cancelling a wait loses nothing. The blocking iterator
    raises WouldBlock where it would have to wait on the thread of an event loop.
    """

    @property
    def cursor(self) -> str:
        """Where a new reader would go on: `<epoch>.<seq>` of the last event that was handed out."""
    @property
    def status(self) -> str:
        """How the cursor was taken: live, resumed, caught_up, trimmed, other_epoch, ahead, finished."""
    def __await__(self) -> Generator[Any, None, Event]: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Event]: ...
    def __iter__(self) -> Iterator[Event]: ...
    def get(self, timeout: float | None = None) -> Event | None:
        """Takes the next event; blocks while there is none. None at the end; StreamTimeout after `timeout` seconds, and
        then nothing was taken."""
    def batches(self, max_events: int = 64) -> Batches:
        """Lists of up to `max_events` events, all that are ready, at least one."""
    def close(self) -> None:
        """Ends the iteration, also of a task that is parked in it. A second call does nothing."""
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_error: object) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class Batches:
    """The batches of a reader. See `Reader.batches`."""

    def __await__(self) -> Generator[Any, None, list[Event]]: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[list[Event]]: ...
    def __iter__(self) -> Iterator[list[Event]]: ...

@final
class EventQueue(Generic[_T]):
    """A bounded queue of any objects between any mix of threads and event loops: `EventQueue(1000, "drop_oldest")`.

    On full, `overflow` decides: `block` waits; `drop_oldest` and `drop_newest` drop, count, and warn (RuntimeWarning,
    one in `warn_interval_s`, with the total); `merge` joins neighbouring deltas of one id, and waits where there are
    none; `fail` raises QueueFull. On close: what the queue holds is still taken, then comes the end, or the error that
    it was closed with. On cancel: nothing was taken, nothing was put. Waiters are served in the order in which they
    came; each item goes to one of them.

    A blocking form on the thread of an event loop raises QueueFull or QueueEmpty where it would have to wait.
    `None` is no item: to put it is to close the queue, and to get it is the end.

    With `gaps`, what an overflow dropped leaves a `Gap` in its place, which takes no room: `first` and `last` are the
    numbers of the dropped items, counted from 1 as they were put, and `reason` is "overflow".
    """

    def __new__(
        cls,
        maxsize: int = 1000,
        overflow: Literal["block", "drop_oldest", "drop_newest", "merge", "fail"] = "block",
        *,
        gaps: bool = False,
        warn_interval_s: float = 10.0,
    ) -> Self: ...
    @classmethod
    def __class_getitem__(cls, item: Any) -> GenericAlias: ...
    def put(self, item: _T | None, timeout: float | None = None) -> bool:
        """Puts `item`; blocks while the queue is full, if it is to wait. False: the item is not in the queue, for it is
        closed, or the item was dropped. QueueFull after `timeout` seconds."""
    def put_nowait(self, item: _T | None) -> bool:
        """As `put`, but raises QueueFull where that would wait."""
    def aput(self, item: _T | None) -> Coroutine[Any, Any, bool]:
        """Awaits to what `put` returns. Cancelled, it has not put anything; never awaited, neither, with a
        RuntimeWarning."""
    def get(self, timeout: float | None = None) -> _T | None:
        """Takes the oldest item; blocks while there is none. None at the end; QueueEmpty after `timeout` seconds."""
    def get_nowait(self) -> _T | None:
        """As `get`, but raises QueueEmpty where that would wait."""
    def aget(self) -> Coroutine[Any, Any, _T | None]:
        """Awaits to the oldest item, None at the end. Cancelled, it has not taken anything."""
    def __aiter__(self) -> QueueTake[_T]: ...
    def __iter__(self) -> Iterator[_T]: ...
    def batches(self, max_items: int = 64) -> QueueTake[list[_T]]:
        """Lists of up to `max_items` items, all that are ready, at least one: for `async for` and for `for`."""
    def close(self, error: BaseException | None = None, *, discard: bool = False) -> None:
        """Ends the queue, also for those who wait. The first close decides about the error, which every consumer gets
        after the last item. With `discard` the items are thrown away: for a consumer that leaves early."""
    def qsize(self) -> int:
        """How many items it holds."""
    @property
    def maxsize(self) -> int:
        """How many items it holds at most."""
    @property
    def overflow(self) -> str:
        """What happens on full."""
    @property
    def closed(self) -> bool:
        """Whether it has been closed; there may still be items."""
    def statistics(self) -> dict[str, int]:
        """Exact counts, with put = taken + dropped + merged + discarded + size; then refused (QueueFull, or closed),
        peak, gaps (handed out), waiting_putters, waiting_getters."""

@final
class QueueTake(Generic[_T]):
    """An iterator over an EventQueue; each task is to have its own. See `EventQueue.batches`."""

    def __await__(self) -> Generator[Any, None, _T]: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, _T]: ...
    def __iter__(self) -> Iterator[_T]: ...

@final
class FrameReader:
    """Encoded frames of a session's log. See `Session.frames`. One task or thread at a time."""

    @property
    def status(self) -> str:
        """How the cursor was taken, as in `stream_open`."""
    @property
    def session(self) -> Session:
        """The session that it reads."""
    @property
    def cursor(self) -> str:
        """Where a new reader would go on: `<epoch>.<seq>` of the last event that was handed out."""
    def __await__(self) -> Generator[Any, None, bytes]: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[bytes]: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def close(self, reason: str | None = None, *, retry_ms: int | None = None) -> None:
        """Ends the iteration, also of a task that is parked in it: at once, or, with a reason, after a last frame that
        says it. A second call does nothing."""
