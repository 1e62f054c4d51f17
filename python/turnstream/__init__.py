"""The event stream between an agent and the people watching it.

    hub = ts.Hub()
    with hub.session("s-42").turn(input="…") as turn:
        message = await turn.relay(response, provider="anthropic")

Everything here is imported without FastAPI, Ray, Redis or a client library; `turnstream.fastapi`, `.asgi`, `.ray` and
their like are loaded when they are first named.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from turnstream import _native
from turnstream._native import (
    AssistantMessage,
    Citation,
    Completion,
    Custom,
    Emitter,
    Error,
    Event,
    EventQueue,
    File,
    Frame,
    FrameReader,
    Gap,
    Hub,
    Limits,
    MessageReset,
    MessageStart,
    Normalizer,
    Progress,
    ProviderEvent,
    Reader,
    ReasoningDelta,
    RefusalDelta,
    RoundEnd,
    RoundStart,
    Session,
    SessionEnd,
    Snapshot,
    SSEDecoder,
    StageEnd,
    StageStart,
    StreamClose,
    StreamOpen,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
    ToolOutputDelta,
    ToolResult,
    Turn,
    TurnFeed,
    TurnStart,
    Usage,
    Warning,
    __version__,
    partial_json,
    providers,
)
from turnstream.errors import (
    Conflict,
    CursorError,
    CursorExpired,
    ForkedProcess,
    FrameTooLong,
    HTTPStatusError,
    HubFull,
    NotWriter,
    PayloadError,
    ProducerLost,
    ProtocolError,
    QueueEmpty,
    QueueFull,
    ReaderBusy,
    RemoteUnavailable,
    SessionClosed,
    SourceError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreIO,
    StoreReadOnly,
    StoreUnavailable,
    StreamTimeout,
    TurnActive,
    TurnEnded,
    TurnstreamError,
    UnknownProvider,
    UnknownSession,
    UnknownStore,
    UnsupportedSource,
    WouldBlock,
)
from turnstream.message import Message, MessageToolCall
from turnstream.normalize import Normalized, fold, normalize

if _TYPE_CHECKING:
    from turnstream import asgi as asgi
    from turnstream import fastapi as fastapi
    from turnstream import ray as ray
    from turnstream import remote as remote
    from turnstream import streams as streams
    from turnstream.subscription import Subscription

__all__ = [
    "AssistantMessage",
    "Citation",
    "Completion",
    "Conflict",
    "CursorError",
    "CursorExpired",
    "Custom",
    "Emitter",
    "Error",
    "Event",
    "EventQueue",
    "File",
    "ForkedProcess",
    "Frame",
    "FrameReader",
    "FrameTooLong",
    "Gap",
    "HTTPStatusError",
    "Hub",
    "HubFull",
    "Limits",
    "Message",
    "MessageReset",
    "MessageStart",
    "MessageToolCall",
    "Normalized",
    "Normalizer",
    "NotWriter",
    "PayloadError",
    "ProducerLost",
    "Progress",
    "ProtocolError",
    "ProviderEvent",
    "QueueEmpty",
    "QueueFull",
    "Reader",
    "ReaderBusy",
    "ReasoningDelta",
    "RefusalDelta",
    "RemoteUnavailable",
    "RoundEnd",
    "RoundStart",
    "SSEDecoder",
    "Session",
    "SessionClosed",
    "SessionEnd",
    "Snapshot",
    "SourceError",
    "StageEnd",
    "StageStart",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreIO",
    "StoreReadOnly",
    "StoreUnavailable",
    "StreamClose",
    "StreamOpen",
    "StreamTimeout",
    "Subscription",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallStart",
    "ToolOutputDelta",
    "ToolResult",
    "Turn",
    "TurnActive",
    "TurnEnded",
    "TurnFeed",
    "TurnStart",
    "TurnstreamError",
    "UnknownProvider",
    "UnknownSession",
    "UnknownStore",
    "UnsupportedSource",
    "Usage",
    "Warning",
    "WouldBlock",
    "__version__",
    "fold",
    "normalize",
    "partial_json",
    "providers",
]

if _native.debug_build:
    import warnings as _warnings

    _warnings.warn(
        "turnstream is a debug build: 10 to 50 times slower than a release build", RuntimeWarning, stacklevel=2
    )

_LAZY = frozenset({"asgi", "demo", "fastapi", "ray", "remote", "streams"})
"""Modules that cost an import of somebody else's package, or of asyncio, loaded when first named. None is in `__all__`:
`import *` and `help` get all that stands there."""


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _import_module(f"turnstream.{name}")
    if name == "Subscription":
        return _import_module("turnstream.subscription").Subscription
    raise AttributeError(f"module 'turnstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "asgi", "remote", "streams"})
