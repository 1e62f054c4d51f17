"""One session's events as an ASGI response.

Owns the reading of a stream's query and headers, and the life of a response. Refuses to know the vocabulary: frames
come encoded from the core.

Invariants: 1. all frames that are ready go out in one send; 2. a response leaves no task and no reader behind, however
it is left; 3. a disconnect ends the stream at once; what it means for the turn is the policy's of `streams`.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args
from urllib.parse import parse_qs

from turnstream._native import FrameReader, Session
from turnstream.asgi.http import Answer, Headers, HTTPError, Receive, Scope, Send, header
from turnstream.asgi.streams import RETRY_MS, Streams, too_many_readers
from turnstream.errors import CursorExpired, TurnstreamError

Follow: TypeAlias = Literal["turn", "session", "none"]
Format: TypeAlias = Literal["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"]
Deltas: TypeAlias = Literal["merged", "exact"]
OnTrim: TypeAlias = Literal["snapshot", "fail"]

_COMMON: Headers = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the frames back
]
_HEADERS: dict[Format, Headers] = {
    "sse": [(b"content-type", b"text/event-stream; charset=utf-8"), *_COMMON],
    "ndjson": [(b"content-type", b"application/x-ndjson"), *_COMMON],
    "ai-sdk": [(b"content-type", b"text/event-stream"), (b"x-vercel-ai-ui-message-stream", b"v1"), *_COMMON],
    "ag-ui": [(b"content-type", b"text/event-stream"), *_COMMON],
    "openai-chat": [(b"content-type", b"text/event-stream; charset=utf-8"), *_COMMON],
    "openai-responses": [(b"content-type", b"text/event-stream; charset=utf-8"), *_COMMON],
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "follow": get_args(Follow),
    "format": get_args(Format),
    "deltas": get_args(Deltas),
    "on_trim": get_args(OnTrim),
}


class StreamQuery(NamedTuple):
    """What a client asks of an event stream, read from the query and the headers in this one place."""

    after: str | None = None
    follow: Follow = "turn"
    format: Format = "sse"
    deltas: Deltas = "merged"
    on_trim: OnTrim = "snapshot"
    limit: int | None = None

    @classmethod
    def of(cls, scope: Scope, *, follow: Follow = "turn") -> Self:
        """Reads a request's scope; `follow` where it says nothing of that.

        HTTPError 400 names the parameter that is wrong; the core checks the cursor.
        """
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        except ValueError as error:
            raise HTTPError(400, "bad_query", str(error)) from None

        defaults = cls._field_defaults | {"follow": follow}

        def word(name: str) -> Any:
            value = query.get(name, [defaults[name]])[-1]
            if value not in _CHOICES[name]:
                raise HTTPError(400, "bad_query", f"{name} is one of {', '.join(_CHOICES[name])}", parameter=name)
            return value

        limit = query.get("limit", [None])[-1]
        if limit is not None and not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 10 and int(limit) > 0):
            raise HTTPError(400, "bad_query", "limit is a whole number from 1", parameter="limit")
        return cls(
            after=_later(query.get("after", [""])[-1], header(scope, b"last-event-id")),
            follow=word("follow"),
            format=word("format"),
            deltas=word("deltas"),
            on_trim=word("on_trim"),
            limit=limit and int(limit),
        )


def expired(error: CursorExpired, session: Session) -> HTTPError:
    """410 to a cursor whose tail has left the log: where the log begins and ends now."""
    return HTTPError.of(error, earliest=session.earliest, head=session.head, cursor=session.cursor)


def _later(query: str, header: str) -> str | None:
    """The cursor to go on from when the URL has one and Last-Event-ID another.

    An EventSource reconnects to the URL it was opened with, `after` and all, and says in the header how far it came.
    The URL's cursor would replay to it what it has, and never come to a 204. Of one epoch the later wins; of two the
    header, which is news.
    """
    if query and header:
        epoch, _, seq = query.rpartition(".")
        header_epoch, _, header_seq = header.rpartition(".")
        if not _is_number(seq):
            return query  # malformed: the core says how
        return query if epoch == header_epoch and _is_number(header_seq) and int(seq) > int(header_seq) else header
    return query or header or None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


class EventStream:
    """A session's events as an ASGI response: server-sent events, or what `?format=` names.

    `query` overrides what the request asks for. A disconnect frees the reader at once and stops nothing else; being
    cancelled frees it too. A malformed or (with `on_trim=fail`) expired cursor is answered 400 or 410; a cursor that
    nothing can follow, 204, on which an EventSource stops. A slow client costs a cursor: frames are pulled from the log
    when it has taken the last.
    """

    __slots__ = ("_heartbeat_s", "_max_bytes", "_query", "_retry_ms", "_session", "_streams")

    def __init__(
        self,
        session: Session,
        query: StreamQuery | None = None,
        *,
        heartbeat_s: float = 10.0,
        retry_ms: int | None = None,
        max_bytes: int = 65536,
        streams: Streams | None = None,
    ) -> None:
        self._session = session
        self._query = query
        self._heartbeat_s = heartbeat_s
        self._retry_ms = retry_ms
        self._max_bytes = max_bytes
        self._streams = streams or Streams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            query = self._query or StreamQuery.of(scope)
            if self._streams.is_full(self._session.id):
                away = too_many_readers()
                refusal = SentAway(away.code) if is_event_source(scope, query.format) else Answer.error(away)
                await refusal(scope, receive, send)
                return
            reader = self._open(query)
        except HTTPError as error:
            await Answer.error(error)(scope, receive, send)
            return
        if query.after is not None and reader.status == "finished":
            reader.close()
            await Answer(204)(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        watcher = asyncio.create_task(_close_on_disconnect(receive, reader))
        try:
            # OSError: the client has left (ASGI 2.4)
            with self._streams.opened(reader, self._session, scope=scope) as stream, suppress(OSError):
                # A list of its own: middleware adds to it.
                await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS[query.format]]})
                if scope["method"] != "HEAD":
                    async for frames in reader:
                        stream.sending = now()
                        await send({"type": "http.response.body", "body": frames, "more_body": True})
                        stream.sending = 0.0
                        del frames  # up to 64 KiB, which would stay until the next event
                if not watcher.done():
                    await send({"type": "http.response.body", "body": b""})
        finally:
            reader.close()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    def _open(self, query: StreamQuery) -> FrameReader:
        session = self._session
        try:
            return session.frames(
                query.after,
                query.follow,
                format=query.format,
                deltas=query.deltas,
                on_trim=query.on_trim,
                heartbeat_s=self._heartbeat_s,
                max_bytes=self._max_bytes,
                limit=query.limit,
                retry_ms=self._retry_ms,
            )
        except CursorExpired as error:
            raise expired(error, session) from error
        except TurnstreamError as error:
            raise HTTPError.of(error) from error


class SentAway:
    """An event stream that says why it ends at once, and when to come back: an EventSource gives up for good on any
    status but 200."""

    __slots__ = ("_frame",)

    def __init__(self, reason: str) -> None:
        close = {"type": "stream_close", "reason": reason, "retry_ms": RETRY_MS}
        data = json.dumps(close, separators=(",", ":"))
        self._frame: bytes = f"retry: {RETRY_MS}\nevent: stream_close\ndata: {data}\n\n".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(OSError):
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS["sse"]]})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self._frame})


def is_event_source(scope: Scope, format: Format) -> bool:
    """Whether who asks takes server-sent events, ours, and so a status but 200 for the end of all."""
    return format == "sse" and "text/event-stream" in header(scope, b"accept")


async def _close_on_disconnect(receive: Receive, reader: FrameReader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()
