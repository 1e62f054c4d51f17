"""The ASGI application: routing, the auth hook, errors, and the life of what it serves.

Owns the way of a request to its handler and back. Refuses to know what a handler does.

Invariants: 1. whatever is wrong with a request is said in typed JSON before the first frame; 2. when the process is
told to stop, no stream keeps the server from stopping.
"""

import asyncio
import hashlib
import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

from turnstream._native import Hub, Session
from turnstream._run import Agent, Runner, Started
from turnstream.asgi import ag_ui, ai_sdk, ai_sdk_socket, openai, poll, sessions, websocket
from turnstream.asgi.http import (
    Answer,
    ASGIApp,
    HTTPError,
    Receive,
    Request,
    Scope,
    Send,
    header,
    metadata_field,
    path_below_root,
    text_field,
)
from turnstream.asgi.policy import Policy
from turnstream.asgi.route import SESSION_ID, SESSION_ID_RULE, Route
from turnstream.asgi.shutdown import before_stop_signals
from turnstream.asgi.stream import EventStream, StreamQuery
from turnstream.asgi.streams import PRINCIPAL, Streams, principal_key
from turnstream.errors import Conflict, NotWriter, TurnActive, TurnstreamError, UnknownSession

Auth: TypeAlias = Callable[[Scope], Any]
"""Says who asks, sync or async: None, or anything empty, is a 401, an exception a 403 or what its HTTPError says. The
scope holds the route's parameters as `path_params`. Asked before every answer: each subscription, resume and poll. What
it gives is `turn.principal` for the agent, and stands in no event."""

MAX_BODY_BYTES = 1 << 20
"""The largest request body, unless told."""

ROUTES: tuple[Route, ...] = (*sessions.ROUTES, *poll.ROUTES, *ai_sdk.ROUTES, *ag_ui.ROUTES, *openai.ROUTES)

SOCKETS: tuple[Route, ...] = (*websocket.ROUTES, *ai_sdk_socket.ROUTES)
"""The routes of WebSockets."""

_PATTERNS = [(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path)), route) for route in (*ROUTES, *SOCKETS)]

log: logging.Logger = logging.getLogger("turnstream")


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
        origins: Sequence[str] | None,
        policy: Policy,
    ) -> None:
        self.hub = hub
        self._runner = None if agent is None else Runner(agent)
        self._auth = auth
        self._listing = listing
        self.heartbeat_s = heartbeat_s
        self.retry_ms = retry_ms
        self.max_body_bytes = max_body_bytes
        self.origins: frozenset[str] | None = None if origins is None else frozenset(origins)
        self.policy = policy
        self.streams: Streams = Streams(policy)
        self._watch: asyncio.TimerHandle | None = None

    # the life of the application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        # Nothing of the request's way is kept while its answer, perhaps a stream of hours, is sent.
        if (answer := await self._answer(scope, receive)) is not None:
            await answer(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """What a server runs around the application. At its end, or when the process is told to stop: `shutdown`."""
        self.streams.closing = False
        loop = asyncio.get_running_loop()
        self._watch_stalls(loop)
        stopping: list[asyncio.Task[None]] = []

        def stop() -> asyncio.Task[None]:
            stopping.append(loop.create_task(self.shutdown()))
            return stopping[-1]

        with before_stop_signals(loop, stop):
            try:
                yield
            finally:
                await asyncio.gather(self.shutdown(), *stopping)

    async def shutdown(self) -> None:
        """Cancels the running turns, then ends the streams. Takes GRACE_S at most; may be called again."""
        self.streams.closing = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        # The turns end at once, before anything is awaited: the streams need not wait for the agents' cleaning up.
        runner = [] if self._runner is None else [self._runner.close()]
        await asyncio.gather(*runner, self.streams.close())

    def _watch_stalls(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks at all running turns, four times per timeout: one timer, whatever their number."""
        timeout = self.policy.stall_timeout_s
        if timeout is None or self._watch is not None:
            return

        def look() -> None:
            self._watch = loop.call_later(min(timeout / 4, 1.0), look)
            for session in self.hub.check_stalls(timeout):
                log.warning("session %s: its turn has said nothing for %g s", session.id, timeout)
                if self.policy.on_stall == "cancel":
                    session.cancel("stalled").close()  # it has acted; there is nothing to wait for

        look()

    def statistics(self) -> dict[str, int]:
        """Exact counts: open `streams`, clients that were `cut` for taking nothing, and `refused` beyond a cap."""
        return {"streams": self.streams.open, "cut": self.streams.cut, "refused": self.streams.refused}

    # the way of a request

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp | None:
        # Litestar's mounts end every path in a slash, and the one at the root takes the first.
        path = "/" + path_below_root(scope).removesuffix("/").removeprefix("/")
        method = scope.get("method", "WS")
        allowed: set[str] = set()
        for pattern, route in _PATTERNS:
            if (found := pattern.fullmatch(path)) is None or not self.has(route):
                continue
            if method == route.method or (method == "HEAD" and route.method == "GET"):
                scope["path_params"] = found.groupdict()
                return await self._handled(route, scope, receive)
            if "WS" in (method, route.method):
                continue
            allowed |= {"GET", "HEAD"} if route.method == "GET" else {route.method}
        if not allowed:
            return Answer.error(HTTPError(404, "not_found", "no such path"))
        headers = {"allow": ", ".join(sorted(allowed | {"OPTIONS"}))}
        if method == "OPTIONS":
            return Answer(204, headers=headers)
        return Answer.error(
            HTTPError(405, "method_not_allowed", f"this path knows {headers['allow']}", headers=headers)
        )

    def has(self, route: Route) -> bool:
        """Whether the route is switched on."""
        return self._listing or route.name != "list_sessions"

    async def respond(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request whose route is known and whose `path_params` are in its scope."""
        if (answer := await self._handled(route, scope, receive)) is not None:
            await answer(scope, receive, send)

    async def _handled(self, route: Route, scope: Scope, receive: Receive) -> ASGIApp | None:
        """What the handler gives, or how it refuses; None for a client that has left."""
        self._watch_stalls(asyncio.get_running_loop())  # where no lifespan runs
        try:
            self._refuse_forged(scope)
            route.name_params(scope["path_params"])
            await self.authorize(scope)
            return await route.handler(self, Request(scope, receive, self.max_body_bytes))
        except HTTPError as error:
            return route.refuse(error)
        except TurnstreamError as error:
            return route.refuse(HTTPError.of(error))
        except ConnectionAbortedError:
            return None
        except Exception:
            log.exception("%s %s", route.method, route.path)
            return route.refuse(HTTPError(500, "internal", "the server failed; its log says how"))

    def _refuse_forged(self, scope: Scope) -> None:
        """HTTPError 403 for a request that a page of another site made its visitor's browser send, cookies and all.

        A browser asks before it sends JSON across origins, and CORS is off; a form, plain text, or no body at all it
        sends unasked, but says so.
        """
        if scope.get("method") != "POST" or header(scope, b"sec-fetch-site") != "cross-site":
            return
        asked = header(scope, b"content-type").partition(";")[0].strip().lower() == "application/json"
        known = self.origins is not None and ("*" in self.origins or header(scope, b"origin") in self.origins)
        if not asked and not known:
            raise HTTPError(403, "origin_refused", "pages of this site may send JSON, if CORS lets them, or nothing")

    async def authorize(self, scope: Scope) -> None:
        """Asks the auth hook: HTTPError 401 or 403, or what the hook raises.

        Who asks is known from then on to the task, which has a context of its own, as has each turn that it starts.

        A handler asks again once the body has named the session, as `path_params["session_id"]`.
        """
        principal = await self._authorize(scope)
        if principal is not PRINCIPAL.get():
            PRINCIPAL.set(principal)

    async def _authorize(self, scope: Scope) -> Any:
        if self._auth is None:
            return None
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
        return principal

    async def find(self, request: Request) -> Session:
        session_id = request.scope["path_params"]["session_id"]
        if SESSION_ID.fullmatch(session_id) is None:
            raise HTTPError(404, "unknown_session", "no session has such an id")
        return await self.hub.afind(session_id)

    async def named(self, request: Request, session_id: object, parameter: str) -> str:
        """The session's id that a body says, once the auth hook, which did not know it yet, allows it."""
        if not isinstance(session_id, str) or SESSION_ID.fullmatch(session_id) is None:
            raise HTTPError(422, "bad_session_id", f"{parameter}: {SESSION_ID_RULE}", parameter=parameter)
        request.scope["path_params"] = {**request.scope.get("path_params", {}), "session_id": session_id}
        await self.authorize(request.scope)
        return session_id

    async def knows(self, session_id: str) -> bool:
        try:
            await self.hub.afind(session_id)
        except UnknownSession:
            return False
        return True

    def stream(self, session: Session, query: StreamQuery | None = None) -> EventStream:
        """The session's events as a response; `query` overrides what the request asks for."""
        return EventStream(session, query, heartbeat_s=self.heartbeat_s, retry_ms=self.retry_ms, streams=self.streams)

    def session_id_of(self, key: str) -> str:
        """The id of the session that a request without one makes under an `Idempotency-Key`: the same in every process,
        for whoever asks alone, and as hard to guess as the key."""
        said = f"{principal_key(PRINCIPAL.get())!r}\n{key}"
        return f"k-{hashlib.sha256(said.encode()).hexdigest()[:40]}"

    async def begin(self, session_id: str | None, body: dict[str, Any]) -> tuple[Session, dict[str, Any]]:
        """A turn in the session of that id, made where there is none: `start`, and a new session where that fails is
        not left behind."""
        start = self._starter(body)  # what is wrong with the body is said before there is a session
        new = session_id is None or not await self.knows(session_id)
        session = await self.hub.asession(session_id)
        try:
            started = await self._start(session, start)
            if not started["cursor"].startswith(f"{session.epoch}."):
                session = await self.hub.afind(session.id)
            return session, started
        except (TurnActive, NotWriter, Conflict):
            raise  # another request of that id has begun meanwhile, perhaps in another process: the session is its own
        except BaseException:
            if new and session.head == 0:
                await self.hub.adelete(session.id)
            raise

    async def start(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """`{"turn", "cursor"}` of the turn that the body's `input`, `client_id` and `metadata` start."""
        return await self._start(session, self._starter(body))

    def _starter(self, body: dict[str, Any]) -> Callable[[Session], Awaitable[Started]]:
        if self._runner is None:
            raise HTTPError(501, "no_agent", "this server runs no agent")
        if self.streams.closing:
            raise HTTPError(503, "shutting_down", "the server is shutting down")
        return partial(
            self._runner.start,
            input=body["input"],
            client_id=text_field(body, "client_id"),
            metadata=metadata_field(body),
            principal=PRINCIPAL.get(),
        )

    async def _start(self, session: Session, start: Callable[[Session], Awaitable[Started]]) -> dict[str, Any]:
        try:
            started = await start(session)
        except UnknownSession:  # its store has come back with less, or another life: what there is goes on
            started = await start(await self.hub.afind(session.id))
        return started._asdict()


def app(
    hub: Hub,
    agent: Agent | None = None,
    *,
    auth: Auth | None = None,
    listing: bool = False,
    heartbeat_s: float = 10.0,
    retry_ms: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    origins: Sequence[str] | None = None,
    policy: Policy | None = None,
) -> App:
    """All routes over `hub` as one ASGI application, to be served or mounted.

    `agent` runs for each turn that a client starts; without one the application only shows. `auth` is asked before
    every route. `listing` switches `GET /sessions` on: a session's id is what lets a client read it, so a list of them
    opens all. `origins` are those whose pages may open a WebSocket, or send a POST without JSON, `"*"` all; by default
    the page's own host alone. `policy` says what becomes of clients that leave, freeze or come in crowds, and of turns
    that stall. Mounted in another application, run `lifespan` in that one's, or give the server a limit to its graceful
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
        origins=origins,
        policy=policy or Policy(),
    )
