"""Sessions over HTTP as plain ASGI: one event stream as a response, and a whole application.

Owns the routes, their JSON, the reading of queries and headers, and the life of a response. Refuses to know the
vocabulary (frames come encoded from the core), any web framework, and how agents run (`_run`).

Invariants: 1. all frames that are ready go out in one send; 2. whatever is wrong with a request is said in typed JSON
before the first frame, `{"error": {"code", "message", …}}`; 3. a response leaves no task and no reader behind, however
it is left; 4. when the process is told to stop, no stream keeps the server from stopping; 5. a disconnect stops nothing
but the stream.

    app = turnstream.asgi.app(hub, agent=agent)                        # uvicorn module:app
    await turnstream.asgi.EventStream(session)(scope, receive, send)   # one stream, in an application of your own
"""

import asyncio
import inspect
import json
import logging
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal, NamedTuple, Self, TypeAlias, cast, get_args
from urllib.parse import parse_qs

from turnstream._native import FrameReader, Hub, Session
from turnstream._run import Agent, Runner
from turnstream.errors import (
    Conflict,
    CursorError,
    CursorExpired,
    PayloadError,
    SessionClosed,
    TurnActive,
    TurnEnded,
    TurnstreamError,
    UnknownSession,
)

__all__ = ["ROUTES", "Agent", "App", "Auth", "EventStream", "HTTPError", "Route", "StreamQuery", "app"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

Auth: TypeAlias = Callable[[Scope], Any]
"""Says who asks, sync or async: None, or anything empty, is a 401, an exception a 403 or what its HTTPError says. The
scope holds the route's parameters as `path_params`."""

Follow: TypeAlias = Literal["turn", "session", "none"]
Format: TypeAlias = Literal["sse", "ndjson"]
Deltas: TypeAlias = Literal["merged", "exact"]
OnTrim: TypeAlias = Literal["snapshot", "fail"]

MAX_BODY_BYTES = 1 << 20
"""The largest request body, unless told."""

DRAIN_S = 0.5
"""How long streams may still send what is in the log when the server stops: a turn's completion, for one."""

LISTED = 100
"""How many sessions the list holds, the latest first."""

_SESSION_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_CONTENT_TYPE: dict[str, bytes] = {"sse": b"text/event-stream; charset=utf-8", "ndjson": b"application/x-ndjson"}
_STATUS: dict[type[TurnstreamError], int] = {
    CursorError: 400,
    UnknownSession: 404,
    TurnActive: 409,
    TurnEnded: 409,
    Conflict: 409,
    SessionClosed: 409,
    CursorExpired: 410,
    PayloadError: 422,
}

log: logging.Logger = logging.getLogger("turnstream")


# --- errors and answers ---------------------------------------------------------------------------------------------


class HTTPError(Exception):
    """A request to be answered with an error: `{"error": {"code", "message", …extra}}`. An `auth` hook may raise it."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})
        self.extra = extra

    @classmethod
    def of(cls, error: TurnstreamError, **extra: Any) -> Self:
        """What the core refused, as HTTP says it."""
        status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
        return cls(status, error.code, str(error.args[0]) if error.args else error.code, **extra)


class _Answer:
    """A whole response, sent at once."""

    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.body = b"" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self.headers: Headers = [(b"cache-control", b"no-store")]
        self.headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        if body is not None:
            self.headers.append((b"content-type", b"application/json"))
        if status != 204:
            self.headers.append((b"content-length", b"%d" % len(self.body)))

    @classmethod
    def error(cls, error: HTTPError) -> Self:
        return cls(error.status, {"error": {"code": error.code, "message": str(error), **error.extra}}, error.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"" if scope["method"] == "HEAD" else self.body
        with suppress(OSError):  # a client that has left (ASGI 2.4)
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            await send({"type": "http.response.body", "body": body})


# --- one event stream -----------------------------------------------------------------------------------------------


class StreamQuery(NamedTuple):
    """What a client asks of an event stream, read from the query and the headers in this one place."""

    after: str | None = None
    follow: Follow = "turn"
    format: Format = "sse"
    deltas: Deltas = "merged"
    on_trim: OnTrim = "snapshot"
    limit: int | None = None

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Reads a request's scope. HTTPError 400 names the parameter that is wrong; the core checks the cursor."""
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        except ValueError as error:
            raise HTTPError(400, "bad_query", str(error)) from None

        def word(name: str, words: Any) -> Any:
            choices = get_args(words)
            value = query.get(name, [cls._field_defaults[name]])[-1]
            if value not in choices:
                raise HTTPError(400, "bad_query", f"{name} is one of {', '.join(choices)}", parameter=name)
            return value

        limit = query.get("limit", [None])[-1]
        if limit is not None and not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 10 and int(limit) > 0):
            raise HTTPError(400, "bad_query", "limit is a whole number from 1", parameter="limit")
        return cls(
            after=_later(query.get("after", [""])[-1], _header(scope, b"last-event-id")),
            follow=word("follow", Follow),
            format=word("format", Format),
            deltas=word("deltas", Deltas),
            on_trim=word("on_trim", OnTrim),
            limit=limit and int(limit),
        )


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in scope["headers"] if key == name), "")


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


class Streams:
    """The event streams that are open on one loop, so that they can be ended when the server is to stop."""

    def __init__(self) -> None:
        self.closing: bool = False
        self._open: dict[asyncio.Task[Any], FrameReader] = {}

    @contextmanager
    def opened(self, reader: FrameReader) -> Iterator[None]:
        """Keeps the current task and its reader while inside."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._open[task] = reader
        if self.closing:  # a client that came back before the port was closed; a 503 would end its EventSource for good
            reader.close()
        try:
            yield
        finally:
            del self._open[task]

    async def close(self) -> None:
        """Lets the streams send what is ready for up to DRAIN_S, then ends them."""
        self.closing = True
        if self._open:
            await asyncio.wait(list(self._open), timeout=DRAIN_S)
        for reader in self._open.values():
            reader.close()


class EventStream:
    """A session's events as an ASGI response: server-sent events, or NDJSON with `?format=ndjson`.

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
            await _Answer.error(error)(scope, receive, send)
            return
        if query.after is not None and reader.status == "finished":
            reader.close()
            await _Answer(204)(scope, receive, send)
            return
        headers = [
            (b"content-type", _CONTENT_TYPE[query.format]),
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


# --- the application ------------------------------------------------------------------------------------------------


class Route(NamedTuple):
    """One method of one path template, and the method of App that answers it."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: str
    summary: str


ROUTES = (
    Route("POST", "/sessions", "create", "Make a session; with an input, start its first turn"),
    Route("GET", "/sessions", "list_sessions", "The latest sessions' status"),
    Route("GET", "/sessions/{session_id}", "status", "Where a session stands"),
    Route("DELETE", "/sessions/{session_id}", "delete", "End a session and forget it"),
    Route("POST", "/sessions/{session_id}/turns", "start_turn", "Start a turn"),
    Route("GET", "/sessions/{session_id}/events", "events", "Follow the events, as server-sent events or NDJSON"),
    Route("GET", "/sessions/{session_id}/messages", "messages", "What was said so far, partial text included"),
    Route("GET", "/sessions/{session_id}/result", "result", "The last turn's completion"),
    Route("POST", "/sessions/{session_id}/cancel", "cancel", "Stop the running turn"),
)

_PATTERNS = [(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path)), route) for route in ROUTES]


class _Request:
    """What a handler needs of a request."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        self.scope = scope
        self._receive = receive
        self._max_body_bytes = max_body_bytes

    async def json(self) -> dict[str, Any]:
        """The body, a JSON object; none is an empty one."""
        body = await self._body()
        if not body.strip():
            return {}
        try:
            value = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, "bad_json", f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise HTTPError(422, "bad_body", "the body is a JSON object")
        return value

    async def _body(self) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError("the client left before its body was whole")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                raise HTTPError(413, "body_too_long", f"the body is longer than {self._max_body_bytes} bytes")
        return bytes(body)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _text_field(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256):
        raise HTTPError(422, "bad_body", f"{name} is a text of 1 to 256 characters", parameter=name)
    return value


class App:
    """The ASGI application; see `app`. Belongs to the loop that serves it."""

    def __init__(
        self,
        hub: Hub,
        agent: Agent | None,
        *,
        auth: Auth | None,
        listing: bool,
        heartbeat_s: float,
        retry_ms: int | None,
        max_body_bytes: int,
    ) -> None:
        self.hub = hub
        self._runner = None if agent is None else Runner(agent)
        self._auth = auth
        self._listing = listing
        self._heartbeat_s = heartbeat_s
        self._retry_ms = retry_ms
        self._max_body_bytes = max_body_bytes
        self._streams = Streams()

    # the life of the application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._route(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """What a server runs around the application. At its end, or when the process is told to stop: `shutdown`."""
        self._streams.closing = False
        loop = asyncio.get_running_loop()
        stopping: list[asyncio.Task[None]] = []
        with _before_stop_signals(loop, lambda: stopping.append(loop.create_task(self.shutdown()))):
            try:
                yield
            finally:
                await asyncio.gather(self.shutdown(), *stopping)

    async def shutdown(self) -> None:
        """Cancels the running turns, then ends the streams. Takes at most GRACE_S + DRAIN_S; may be called again."""
        self._streams.closing = True
        if self._runner is not None:
            await self._runner.close()
        await self._streams.close()

    # the way of a request

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        allowed: set[str] = set()
        for pattern, route in _PATTERNS:
            if (found := pattern.fullmatch(path)) is None or not self.has(route):
                continue
            if scope["method"] == route.method or (scope["method"] == "HEAD" and route.method == "GET"):
                scope["path_params"] = found.groupdict()
                await self.respond(route, scope, receive, send)
                return
            allowed |= {"GET", "HEAD"} if route.method == "GET" else {route.method}
        answer = _Answer.error(HTTPError(404, "not_found", "no such path"))
        if allowed:
            headers = {"allow": ", ".join(sorted(allowed | {"OPTIONS"}))}
            if scope["method"] == "OPTIONS":
                answer = _Answer(204, headers=headers)
            else:
                error = HTTPError(405, "method_not_allowed", f"this path knows {headers['allow']}", headers=headers)
                answer = _Answer.error(error)
        await answer(scope, receive, send)

    def has(self, route: Route) -> bool:
        """Whether the route is switched on."""
        return self._listing or route.handler != "list_sessions"

    async def respond(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request whose route is known and whose `path_params` are in its scope."""
        answer: ASGIApp
        try:
            await self._authorize(scope)
            answer = await getattr(self, route.handler)(_Request(scope, receive, self._max_body_bytes))
        except HTTPError as error:
            answer = _Answer.error(error)
        except TurnstreamError as error:
            answer = _Answer.error(HTTPError.of(error))
        except ConnectionAbortedError:
            return
        except Exception:
            log.exception("%s %s", scope["method"], route.path)
            answer = _Answer.error(HTTPError(500, "internal", "the server failed; its log says how"))
        await answer(scope, receive, send)

    async def _authorize(self, scope: Scope) -> None:
        if self._auth is None:
            return
        try:
            principal = self._auth(scope)
            if inspect.isawaitable(principal):
                principal = await principal
        except HTTPError:
            raise
        except Exception as error:
            if not isinstance(error, PermissionError):
                log.exception("the auth hook failed; the request is refused")
            raise HTTPError(403, "forbidden", "not allowed") from None
        if not principal:
            raise HTTPError(401, "unauthorized", "say who you are", headers={"www-authenticate": "Bearer"})

    def _session(self, request: _Request) -> Session:
        session_id = request.scope["path_params"]["session_id"]
        if _SESSION_ID.fullmatch(session_id) is None:
            raise HTTPError(404, "unknown_session", "no session has such an id")
        return self.hub.find(session_id)

    def _start(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        if self._runner is None:
            raise HTTPError(501, "no_agent", "this server runs no agent")
        if self._streams.closing:
            raise HTTPError(503, "shutting_down", "the server is shutting down")
        started = self._runner.start(
            session, body["input"], client_id=_text_field(body, "client_id"), metadata=body.get("metadata")
        )
        return started._asdict()

    # the handlers, one a route

    async def create(self, request: _Request) -> ASGIApp:
        """201 `{"session_id", "turn", "cursor"}`; `turn` is null when there was no input."""
        body = await request.json()
        session_id = _text_field(body, "session_id")
        if session_id is not None:
            if _SESSION_ID.fullmatch(session_id) is None:
                raise HTTPError(422, "bad_session_id", "an id is 1 to 128 of A-Z a-z 0-9 _ - and, not first, .")
            with suppress(UnknownSession):
                self.hub.find(session_id)
                raise HTTPError(409, "session_exists", "a session of that id exists", session_id=session_id)
        session = self.hub.session(session_id)
        started: dict[str, Any] = {"turn": None, "cursor": session.cursor}
        if body.get("input") is not None:
            try:
                started = self._start(session, body)
            except BaseException:
                self.hub.delete(session.id)
                raise
        elif body.get("metadata") is not None:
            session.emitter()("custom", {"name": "session_metadata", "data": body["metadata"]})
        return _Answer(201, {"session_id": session.id, **started}, {"location": self._url(request, session)})

    @staticmethod
    def _url(request: _Request, session: Session) -> str:
        path: str = request.scope["path"]
        return f"{path}/{session.id}" if path.isascii() and path.isprintable() else session.id

    async def list_sessions(self, request: _Request) -> ASGIApp:
        """200 `{"sessions": [status, …]}`, the latest first."""
        return _Answer(200, {"sessions": [session.status() for session in self.hub.sessions()[:LISTED]]})

    async def status(self, request: _Request) -> ASGIApp:
        """200 with the session's status."""
        return _Answer(200, self._session(request).status())

    async def delete(self, request: _Request) -> ASGIApp:
        """204; a running turn is cancelled."""
        self.hub.delete(self._session(request).id)
        return _Answer(204)

    async def start_turn(self, request: _Request) -> ASGIApp:
        """202 `{"turn", "cursor"}`: the turn's events come after the cursor."""
        session = self._session(request)
        body = await request.json()
        if body.get("input") is None:
            raise HTTPError(422, "bad_body", "a turn has an input", parameter="input")
        return _Answer(202, self._start(session, body))

    async def events(self, request: _Request) -> ASGIApp:
        """200 with the stream, 204 when nothing can follow the cursor; see EventStream."""
        return EventStream(
            self._session(request), heartbeat_s=self._heartbeat_s, retry_ms=self._retry_ms, streams=self._streams
        )

    async def messages(self, request: _Request) -> ASGIApp:
        """200 `{"messages": […]}`."""
        return _Answer(200, {"messages": self._session(request).messages()})

    async def result(self, request: _Request) -> ASGIApp:
        """200 with the last turn's completion; 202 `{"state", "turn"}` while there is none."""
        session = self._session(request)
        if (result := session.result()) is not None:
            return _Answer(200, result)
        status = session.status()
        return _Answer(202, {"state": status["state"], "turn": status["turn"]})

    async def cancel(self, request: _Request) -> ASGIApp:
        """202 `{"state", "turn"}`, also for a turn that was cancelled before; 409 when it has ended otherwise."""
        session = self._session(request)
        reason = _text_field(await request.json(), "reason")
        await session.cancel(reason or "cancelled")
        status = session.status()
        if status["state"] != "cancelled":
            raise HTTPError(409, "turn_ended", "no turn is running", state=status["state"], turn=status["turn"])
        return _Answer(202, {"state": "cancelled", "turn": status["turn"]})


@contextmanager
def _before_stop_signals(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM call `call` on the loop before they do what they did.

    A server stops by waiting for its open responses, uvicorn without a limit, and tells the application only after
    that: an event stream would wait for events for ever. The signal is the one notice that comes in time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    installed: dict[signal.Signals, tuple[Any, Any]] = {}

    def install(number: signal.Signals) -> None:
        before = signal.getsignal(number)
        if not callable(before):  # the default action ends the process: nothing waits
            return

        def handle(received: int, frame: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(call)
            before(received, frame)

        signal.signal(number, handle)
        installed[number] = (handle, before)

    for number in (signal.SIGINT, signal.SIGTERM):
        install(number)
    try:
        yield
    finally:
        for number, (handle, before) in installed.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, before)


def app(
    hub: Hub,
    agent: Agent | None = None,
    *,
    auth: Auth | None = None,
    listing: bool = False,
    heartbeat_s: float = 10.0,
    retry_ms: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> App:
    """All routes over `hub` as one ASGI application, to be served or mounted.

    `agent` runs for each turn that a client starts; without one the application only shows. `auth` is asked before
    every route. `listing` switches `GET /sessions` on: a session's id is what lets a client read it, so a list of them
    opens all. Mounted in another application, run `lifespan` in that one's, or give the server a limit to its graceful
    shutdown (uvicorn's `timeout_graceful_shutdown`).
    """
    return App(
        hub,
        agent,
        auth=auth,
        listing=listing,
        heartbeat_s=heartbeat_s,
        retry_ms=retry_ms,
        max_body_bytes=max_body_bytes,
    )
