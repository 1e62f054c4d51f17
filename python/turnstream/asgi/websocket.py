"""A session over a WebSocket: its events out; input, cancel and cursor in.

Owns the socket's life and the frames that come in. Events go out as the NDJSON stream has them, one frame an event.

Invariants: 1. whatever a client sends is answered, or closes the socket with a code and a reason; 2. the auth hook is
asked for the handshake, and again for each cursor, input and cancel; 3. a page of another origin opens no socket: a
browser would let it, and send the user's cookies along; 4. a client that does not take a frame in time is cut.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import urlencode, urlsplit

from turnstream._native import FrameReader, Session
from turnstream.asgi.cut import reset
from turnstream.asgi.http import ASGIApp, HTTPError, Receive, Request, Scope, Send, header, parse_object
from turnstream.asgi.route import Route
from turnstream.asgi.sessions import cancel_turn
from turnstream.asgi.stream import StreamQuery, expired
from turnstream.errors import CursorExpired, TurnstreamError

if TYPE_CHECKING:
    from turnstream.asgi.app import App

CLOSE_S = 1.0
"""How long a farewell may take."""

PACE = 16
"""After so many frames the other tasks have their turn: while there is room, a server's `send` suspends nobody, nor
does its `receive` while frames are there. 100,000 events in a row held all others up for seconds."""

ENDED, GOING_AWAY, NOT_TEXT, REFUSED, TOO_BIG = 1000, 1001, 1003, 1008, 1009
"""Close codes (RFC 6455, section 7.4.1)."""

_CLOSING = '{"type":"closing","reason":"shutting_down"}'
_STREAM_OPEN = b'{"type":"stream_open"'
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

log: logging.Logger = logging.getLogger("turnstream")


class Farewell(NamedTuple):
    """Why the server closes a socket."""

    code: int
    reason: str


class EventSocket:
    """One client's socket, from its handshake to its close. Belongs to the task that serves it."""

    def __init__(self, app: "App", session: Session, scope: Scope, query: StreamQuery) -> None:
        self._app = app
        self._session = session
        self._scope = scope
        self._query = query
        self._reader = self._open(query)
        self._next: FrameReader | None = None
        self._closing = False
        self._sending = asyncio.Lock()
        self._stuck = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send, self._now = send, asyncio.get_running_loop().time
        farewell: Farewell | None = None
        try:
            await receive()
            opened = self._app.streams.opened(self, self._session, drains=True, on_stuck=self._stuck.set)
            with opened as self._stream, suppress(OSError):  # OSError: the client has left (ASGI 2.4)
                await send({"type": "websocket.accept"})
                farewell = await first_of(self._write(), self._listen(receive), until_stuck(self._stuck))
        finally:
            self.close()
        if farewell is not None:
            await part(farewell, scope, send)

    def close(self) -> None:
        """Ends the stream, and with it the socket. A second call does nothing."""
        self._closing = True
        self._reader.close()
        if self._next is not None:
            self._next.close()

    # out

    async def _write(self) -> Farewell:
        while True:
            async for lines in self._reader:
                await self._say_each(lines)
                del lines  # up to 64 KiB, which would stay until the next event
            if self._closing:
                await self._say_the_rest()
                return Farewell(GOING_AWAY, "shutting_down")
            if self._next is None:
                return Farewell(ENDED, "ended")
            self._reader, self._next = self._next, None

    async def _say_the_rest(self) -> None:
        """What was logged before the close: the completion of a turn that the server's stop has cancelled."""
        query = self._query._replace(after=self._reader.cursor, follow="none")
        with suppress(TurnstreamError):
            async for lines in self._open(query):
                for line in lines.split(b"\n")[:-1]:
                    if not line.startswith(_STREAM_OPEN):
                        await self._say(line.decode())
            await self._say(_CLOSING)

    async def _say_each(self, lines: bytes) -> None:
        for number, line in enumerate(lines.split(b"\n")[:-1]):
            await self._say(line.decode())
            if number % PACE == PACE - 1:
                await asyncio.sleep(0)

    async def _say(self, text: str) -> None:
        async with self._sending:
            self._stream.sending = self._now()
            try:
                await self._send({"type": "websocket.send", "text": text})
            finally:
                self._stream.sending = 0.0

    # in

    async def _listen(self, receive: Receive) -> Farewell | None:
        while isinstance(text := await next_text(receive, self._app.max_body_bytes), str):
            reply, farewell = await self._answer(text)
            await self._say(json.dumps(reply, separators=(",", ":")))  # ASCII: an `id` may hold half a character
            if farewell is not None:
                return farewell
            await asyncio.sleep(0)
        return text

    async def _answer(self, text: str) -> tuple[dict[str, Any], Farewell | None]:
        reply: dict[str, Any] = {"type": "reply", "to": None}
        try:
            frame = parse_object(text.encode())
            if frame.get("type") == "ping":
                return {"type": "pong"}, None
            handle = self._HANDLERS.get(str(frame.get("type")))
            if isinstance(frame.get("id"), str | int):
                reply["id"] = frame["id"]
            if handle is None:
                raise HTTPError(422, "bad_frame", f"type is one of {', '.join(self._HANDLERS)}, ping", parameter="type")
            reply["to"] = frame["type"]
            await self._app.authorize(self._scope)
            return reply | await handle(self, frame), None
        except HTTPError as error:
            refusal = error
        except TurnstreamError as error:
            refusal = HTTPError.of(error)
        except Exception:
            log.exception("a frame of session %s", self._session.id)
            refusal = HTTPError(500, "internal", "the server failed; its log says how")
        farewell = Farewell(REFUSED, refusal.code) if refusal.status in (401, 403) else None
        return reply | {"error": refusal.body}, farewell

    async def _input(self, frame: dict[str, Any]) -> dict[str, Any]:
        if frame.get("input") is None:
            raise HTTPError(422, "bad_frame", "a turn has an input", parameter="input")
        return await self._app.start(self._session, frame)

    async def _cancel(self, frame: dict[str, Any]) -> dict[str, Any]:
        return await cancel_turn(self._session, frame)

    async def _cursor(self, frame: dict[str, Any]) -> dict[str, Any]:
        query = _query(frame, self._query)
        reader = self._open(query)
        if self._next is not None:
            self._next.close()
        self._query, self._next = query, reader
        self._reader.close()  # the writer goes on with the next one, whose first frame is its stream_open
        return {"status": reader.status}

    _HANDLERS: ClassVar[dict[str, Callable[[Any, dict[str, Any]], Awaitable[dict[str, Any]]]]] = {
        "input": _input,
        "cancel": _cancel,
        "cursor": _cursor,
    }

    def _open(self, query: StreamQuery) -> FrameReader:
        session = self._session
        try:
            return session.frames(
                query.after,
                query.follow,
                format="ndjson",
                deltas=query.deltas,
                on_trim=query.on_trim,
                heartbeat_s=self._app.heartbeat_s,
                limit=query.limit,
            )
        except CursorExpired as error:
            raise expired(error, session) from error


async def next_text(receive: Receive, longest: int) -> str | Farewell | None:
    """What the client says next; a farewell where that is none, None where it has left."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    if text is None:
        return Farewell(NOT_TEXT, "a frame is JSON text")
    return text if len(text) <= longest else Farewell(TOO_BIG, f"a frame is at most {longest} long")


async def until_stuck(stuck: asyncio.Event) -> Farewell:
    await stuck.wait()
    return Farewell(REFUSED, "write_deadline")


async def part(farewell: Farewell, scope: Scope, send: Send) -> None:
    """Closes a socket; one whose client does not take even that is reset, or its connection would stay for ever."""
    with suppress(OSError):
        try:
            async with asyncio.timeout(CLOSE_S):
                await send({"type": "websocket.close", "code": farewell.code, "reason": farewell.reason})
        except TimeoutError:
            reset(scope)


async def first_of(*works: Awaitable[Farewell | None]) -> Farewell | None:
    """What the first to end gives; the others are cancelled, and done before this returns."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()


def _query(frame: dict[str, Any], before: StreamQuery) -> StreamQuery:
    """What a cursor frame asks: what it leaves out, but the cursor, stays as it was."""
    known = {name: value for name, value in before._asdict().items() if name != "after"}
    asked = {name: frame.get(name, known.get(name)) for name in StreamQuery._fields}
    said = {name: value for name, value in asked.items() if value is not None}
    text = urlencode(said, errors="replace")
    return StreamQuery.of({"query_string": text.encode(), "headers": []})  # one place checks


def check_origin(scope: Scope, origins: frozenset[str] | None) -> None:
    """HTTPError 403 for a page that may not. A client that sends no Origin is no browser."""
    origin = header(scope, b"origin")
    if not origin or (origins is not None and ("*" in origins or origin in origins)):
        return
    try:
        scheme, host = urlsplit(origin)[:2]
    except ValueError:
        scheme = host = ""  # of nobody
    port = _DEFAULT_PORTS.get(scheme, "")
    own = header(scope, b"host").lower().removesuffix(port)
    if origins is not None or not own or host.lower().removesuffix(port) != own:
        raise HTTPError(403, "origin_refused", "pages of this origin may not open a socket")


async def socket(app: "App", request: Request) -> ASGIApp:
    """The session's socket. It follows the session unless the query says otherwise; see EventSocket."""
    check_origin(request.scope, app.origins)
    session = await app.find(request)
    app.streams.require_room(session.id)
    return EventSocket(app, session, request.scope, StreamQuery.of(request.scope, follow="session"))


ROUTES = (Route("WS", "/sessions/{session_id}/ws", socket, "Events out; input, cancel and cursor in"),)
