"""One session's events as an ASGI response, and the streams that are open on a loop.

Owns the reading of a stream's query and headers, and the life of a response. Refuses to know the vocabulary: frames
come encoded from the core.

Invariants: 1. all frames that are ready go out in one send; 2. a response leaves no task and no reader behind, however
it is left; 3. a disconnect stops nothing but the stream.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias, cast, get_args
from urllib.parse import parse_qs

from turnstream._native import FrameReader, Session
from turnstream.asgi.http import Answer, Headers, HTTPError, Receive, Scope, Send, header
from turnstream.errors import CursorExpired, TurnstreamError

Follow: TypeAlias = Literal["turn", "session", "none"]
Format: TypeAlias = Literal["sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"]
Deltas: TypeAlias = Literal["merged", "exact"]
OnTrim: TypeAlias = Literal["snapshot", "fail"]

DRAIN_S = 0.5
"""How long streams may still send what is in the log when the server stops: a turn's completion, for one."""

_HEADERS: dict[Format, Headers] = {
    "sse": [(b"content-type", b"text/event-stream; charset=utf-8")],
    "ndjson": [(b"content-type", b"application/x-ndjson")],
    "ai-sdk": [(b"content-type", b"text/event-stream"), (b"x-vercel-ai-ui-message-stream", b"v1")],
    "ag-ui": [(b"content-type", b"text/event-stream")],
    "openai-chat": [(b"content-type", b"text/event-stream; charset=utf-8")],
    "openai-responses": [(b"content-type", b"text/event-stream; charset=utf-8")],
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

        def word(name: str, words: Any) -> Any:
            choices = get_args(words)
            value = query.get(name, [defaults[name]])[-1]
            if value not in choices:
                raise HTTPError(400, "bad_query", f"{name} is one of {', '.join(choices)}", parameter=name)
            return value

        limit = query.get("limit", [None])[-1]
        if limit is not None and not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 10 and int(limit) > 0):
            raise HTTPError(400, "bad_query", "limit is a whole number from 1", parameter="limit")
        return cls(
            after=_later(query.get("after", [""])[-1], header(scope, b"last-event-id")),
            follow=word("follow", Follow),
            format=word("format", Format),
            deltas=word("deltas", Deltas),
            on_trim=word("on_trim", OnTrim),
            limit=limit and int(limit),
        )


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


class Closable(Protocol):
    """What ends when it is told to: a reader, a socket."""

    def close(self) -> None: ...


class Streams:
    """The event streams that are open on one loop, so that they can be ended when the server is to stop."""

    def __init__(self) -> None:
        self.closing: bool = False
        self._open: dict[asyncio.Task[Any], Closable] = {}
        self._draining: dict[asyncio.Task[Any], Closable] = {}

    @contextmanager
    def opened(self, reader: Closable, *, drains: bool = False) -> Iterator[None]:
        """Keeps the current task and its reader while inside. `drains`: its close sends what is ready."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._open[task] = reader
        if drains:
            self._draining[task] = reader
        if self.closing:  # a client that came back before the port was closed; a 503 would end its EventSource for good
            reader.close()
        try:
            yield
        finally:
            del self._open[task]
            self._draining.pop(task, None)

    async def close(self) -> None:
        """Lets the streams send what is ready for up to DRAIN_S, then ends them."""
        self.closing = True
        for stream in list(self._draining.values()):
            stream.close()
        if self._open:
            await asyncio.wait(list(self._open), timeout=DRAIN_S)
        for reader in self._open.values():
            reader.close()


class EventStream:
    """A session's events as an ASGI response: server-sent events, or what `?format=` names.

    `query` overrides what the request asks for. A disconnect frees the reader at once and stops nothing else; being
    cancelled frees it too. A malformed or (with `on_trim=fail`) expired cursor is answered 400 or 410; a cursor that
    nothing can follow, 204, on which an EventSource stops. A slow client costs a cursor: frames are pulled from the log
    when it has taken the last.
    """

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
            reader = self._open(query)
        except HTTPError as error:
            await Answer.error(error)(scope, receive, send)
            return
        if query.after is not None and reader.status == "finished":
            reader.close()
            await Answer(204)(scope, receive, send)
            return
        headers = [
            *_HEADERS[query.format],
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the frames back
        ]
        watcher = asyncio.create_task(_close_on_disconnect(receive, reader))
        try:
            with self._streams.opened(reader), suppress(OSError):  # OSError: the client has left (ASGI 2.4)
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                if scope["method"] != "HEAD":
                    async for frames in reader:
                        await send({"type": "http.response.body", "body": frames, "more_body": True})
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
            raise HTTPError.of(error, earliest=session.earliest, head=session.head, cursor=session.cursor) from error
        except TurnstreamError as error:
            raise HTTPError.of(error) from error


async def _close_on_disconnect(receive: Receive, reader: FrameReader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()
