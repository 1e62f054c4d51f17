"""The errors of this package: one tree, each with a stable `code` for programs.

A text says what was seen and where, never the payload's content.
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "Conflict",
    "CursorError",
    "CursorExpired",
    "ForkedProcess",
    "FrameTooLong",
    "HTTPStatusError",
    "HubFull",
    "NotWriter",
    "PayloadError",
    "ProducerLost",
    "ProtocolError",
    "QueueEmpty",
    "QueueFull",
    "ReaderBusy",
    "RemoteUnavailable",
    "SessionClosed",
    "SourceError",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreIO",
    "StoreReadOnly",
    "StoreUnavailable",
    "StreamTimeout",
    "TurnActive",
    "TurnEnded",
    "TurnstreamError",
    "UnknownProvider",
    "UnknownSession",
    "UnknownStore",
    "UnsupportedSource",
    "WouldBlock",
]


class TurnstreamError(Exception):
    """The root of all errors of this package."""

    code = "error"


class PayloadError(TurnstreamError, ValueError):
    """An event's type or fields are not of the vocabulary."""

    code = "bad_payload"


class ProtocolError(TurnstreamError, ValueError):
    """A provider's bytes are not what its format says; the text names provider and byte offset."""

    code = "protocol_error"


class FrameTooLong(ProtocolError):
    """A line or an event is longer than the reader's limit."""

    code = "frame_too_long"


class UnknownProvider(ProtocolError):
    """No provider of that name, or `auto` does not recognise the bytes."""

    code = "unknown_provider"


class SourceError(TurnstreamError):
    """A source failed before its end: the connection or the server, not the format. The client library's own error is
    `__cause__`; `retryable` says whether the same request may succeed later."""

    code = "source_failed"

    def __init__(self, message: str, *, status: int | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made anew from its arguments alone, which lack what stands behind a keyword.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class HTTPStatusError(SourceError):
    """The response's status is 400 or above. `body` is its first 64 KiB, `retry_after` that header as it was sent."""

    code = "http_status"

    def __init__(self, message: str, *, status: int, body: bytes = b"", retry_after: str | None = None) -> None:
        super().__init__(message, status=status, retryable=status in (408, 409, 425, 429) or status >= 500)
        self.body = body
        self.retry_after = retry_after


class UnsupportedSource(TurnstreamError, TypeError):
    """The object is no source, or an async one where there is no loop."""

    code = "unsupported_source"


class CursorError(TurnstreamError, ValueError):
    """The text is not a cursor (`<epoch>.<seq>`)."""

    code = "malformed_cursor"


class CursorExpired(TurnstreamError):
    """The log no longer holds what comes after the cursor, and the reader asked to be refused."""

    code = "cursor_expired"


class SessionClosed(TurnstreamError):
    """The session has ended or was deleted; it takes no more events."""

    code = "session_closed"


class UnknownSession(TurnstreamError, LookupError):
    """No session of that id."""

    code = "unknown_session"


class HubFull(TurnstreamError):
    """The hub holds as many sessions as its limits allow, and all of them are in use."""

    code = "hub_full"


class UnknownStore(TurnstreamError, ValueError):
    """No store of that name, or nothing there that this version can use as one."""

    code = "unknown_store"


class StoreError(TurnstreamError):
    """The store refuses: what was not stored has not happened."""

    code = "store_failed"


class StoreFull(StoreError):
    """The store has no room: the disk's, or its own limit's."""

    code = "store_full"


class StoreIO(StoreError):
    """The store's device fails."""

    code = "store_io"


class StoreReadOnly(StoreError):
    """The store takes no writes."""

    code = "store_read_only"


class StoreCorrupt(StoreError):
    """What is stored is not as it was written."""

    code = "store_corrupt"


class StoreUnavailable(StoreError):
    """The store does not answer, and as much waits for it as may."""

    code = "store_unavailable"


class NotWriter(TurnstreamError):
    """Another process writes the session: read it here, emit there. Its turn's end frees the session for all."""

    code = "not_writer"


class TurnActive(TurnstreamError):
    """A turn is running; a session runs one at a time."""

    code = "turn_active"


class TurnEnded(TurnstreamError):
    """The turn has its completion, or never started; it takes no events."""

    code = "turn_ended"


class Conflict(TurnstreamError):
    """The same client_id came before with another input."""

    code = "conflict"


class ReaderBusy(TurnstreamError):
    """Two tasks or threads wait on one reader; open a second reader instead."""

    code = "reader_busy"


class WouldBlock(TurnstreamError):
    """The call would have to wait, and may not: a `_nowait` form, or a blocking form on the thread of an event loop."""

    code = "would_block"


class QueueFull(WouldBlock):
    """The queue has no room, and was told to refuse or is not to wait. The item was not taken."""

    code = "queue_full"


class QueueEmpty(WouldBlock):
    """The queue holds nothing yet, and the call is not to wait."""

    code = "queue_empty"


class StreamTimeout(TurnstreamError, TimeoutError):
    """Nothing came in time (`kind` "idle"), or the whole took too long ("total")."""

    code = "stream_timeout"
    retryable = True

    def __init__(self, message: str, *, kind: Literal["idle", "total"] = "idle") -> None:
        super().__init__(message)
        self.kind = kind


class ProducerLost(TurnstreamError):
    """A remote producer, or the transport it sends over, died before it had said its end."""

    code = "producer_lost"


class RemoteUnavailable(TurnstreamError, RuntimeError):
    """A run cannot be elsewhere: Ray is not installed, or not started."""

    code = "remote_unavailable"


class ForkedProcess(TurnstreamError):
    """The object was made before a fork and cannot be used in the child."""

    code = "forked_process"
