"""The routes of `turnstream.asgi` as a FastAPI router: the same handlers, with OpenAPI and FastAPI's dependencies.

Owns no behaviour. Needs `pip install turnstream[fastapi]`; nothing else in the package imports FastAPI.

    app.include_router(turnstream.fastapi.router(hub, agent=agent))
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, get_args

from fastapi import APIRouter, Request, Response, WebSocket, WebSocketDisconnect, params
from starlette.types import ASGIApp, Receive, Scope, Send

from turnstream._native import Hub
from turnstream.asgi import MAX_BODY_BYTES, ROUTES, SOCKETS, Agent, Auth, Policy, Route, StreamQuery, app
from turnstream.asgi.stream import Format

__all__ = ["Respond", "router"]


class Respond(Response):
    """Any ASGI application as a FastAPI or Starlette endpoint's response: `return Respond(EventStream(session))`."""

    def __init__(self, application: ASGIApp) -> None:
        super().__init__()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)
        if self.background is not None:
            await self.background()


def router(
    hub: Hub,
    agent: Agent | None = None,
    *,
    prefix: str = "",
    auth: Auth | params.Depends | None = None,
    dependencies: Sequence[params.Depends] | None = None,
    listing: bool = False,
    heartbeat_s: float = 10.0,
    retry_ms: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    origins: Sequence[str] | None = None,
    policy: Policy | None = None,
) -> APIRouter:
    """An APIRouter with the routes of `turnstream.asgi.app`, whose arguments it takes.

    `auth` may be a dependency, `Depends(user)`: asked once a request, what it gives is the principal, and its own
    exceptions are answered as FastAPI does. `dependencies` are FastAPI's, run before each route; for the WebSocket's
    sake they ask for an `HTTPConnection` where they would ask for a `Request`. The router's lifespan, which including
    it merges into the application's, cancels the running turns and ends the streams at shutdown.
    """
    depends = auth if isinstance(auth, params.Depends) else None
    hook = None if isinstance(auth, params.Depends) else auth
    service = app(
        hub,
        agent,
        auth=_said if depends else hook,
        listing=listing,
        heartbeat_s=heartbeat_s,
        retry_ms=retry_ms,
        max_body_bytes=max_body_bytes,
        origins=origins,
        policy=policy,
    )
    api = APIRouter(prefix=prefix, dependencies=dependencies, lifespan=service.lifespan)
    for route in filter(service.has, ROUTES):
        endpoint = _endpoint(partial(service.respond, route), depends)
        api.add_api_route(
            route.path,
            endpoint,
            methods=[route.method],
            name=route.name,
            summary=route.summary,
            status_code=_SUCCESS.get(route.name, 200),
            response_class=Response,
            responses=_responses(route),
            openapi_extra=_openapi(route),
            tags=["openai" if route.path.startswith("/v1/") else "sessions"],
        )
        if route.method == "GET":
            api.add_api_route(route.path, endpoint, methods=["HEAD"], include_in_schema=False)
    for route in SOCKETS:
        socket = _socket_endpoint(partial(service.respond, route), depends)
        api.add_api_websocket_route(route.path, socket, name=route.name)
    return api


_PRINCIPAL = "turnstream.principal"


def _said(scope: MutableMapping[str, Any]) -> Any:
    """What the dependency gave, as an auth hook."""
    return scope.get(_PRINCIPAL)


def _endpoint(application: ASGIApp, auth: params.Depends | None) -> Callable[..., Awaitable[Response]]:
    async def open_to_all(request: Request) -> Response:
        return Respond(application)

    async def guarded(request: Request, principal: Any = auth) -> Response:
        request.scope[_PRINCIPAL] = principal
        return Respond(application)

    return open_to_all if auth is None else guarded


def _socket_endpoint(application: ASGIApp, auth: params.Depends | None) -> Callable[..., Awaitable[None]]:
    async def open_to_all(websocket: WebSocket) -> None:
        with suppress(WebSocketDisconnect):  # what Starlette makes of an OSError
            await application(websocket.scope, websocket.receive, websocket.send)

    async def guarded(websocket: WebSocket, principal: Any = auth) -> None:
        websocket.scope[_PRINCIPAL] = principal
        await open_to_all(websocket)

    return open_to_all if auth is None else guarded


# --- OpenAPI --------------------------------------------------------------------------------------------------------

_SUCCESS = {"create": 201, "start_turn": 202, "cancel": 202, "delete": 204}
_ANY: dict[str, Any] = {"description": "any JSON, handed to the agent untouched"}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 256}
_CHAT = ["model", "messages"]
_BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "create": ({"input": _ANY, "metadata": _ANY, "session_id": _TEXT, "client_id": _TEXT}, []),
    "start_turn": ({"input": _ANY, "metadata": _ANY, "client_id": _TEXT}, ["input"]),
    "cancel": ({"reason": _TEXT}, []),
    "ai_sdk": (
        {
            "id": _TEXT,
            "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            "trigger": {"enum": ["submit-message", "regenerate-message"]},
            "messageId": _TEXT,
        },
        ["id", "messages"],
    ),
    "ag_ui": (
        {"threadId": _TEXT, "runId": _TEXT, "messages": {"type": "array", "items": {"type": "object"}}},
        ["threadId", "runId", "messages"],
    ),
    "chat_completions": ({"model": _TEXT, "messages": {"type": "array"}, "stream": {"type": "boolean"}}, _CHAT),
    "create_response": ({"model": _TEXT, "input": _ANY, "stream": {"type": "boolean"}}, ["model", "input"]),
}
_REPEATABLE = {"create", "start_turn", "ai_sdk", "chat_completions", "create_response"}
_ERRORS = {
    400: "malformed JSON, query or cursor",
    401: "the auth hook knows nobody",
    403: "the auth hook refuses",
    404: "unknown session",
    408: "the body takes too long",
    409: "conflict with the session's state",
    410: "the cursor was trimmed, and on_trim=fail",
    413: "the body is too long",
    415: "the body is compressed",
    422: "a field is not what it should be",
    429: "too many streams are open",
    503: "too many sessions are in use, or the server stops",
}
_BODY = (400, 408, 413, 415, 422)
_ERRORS_OF = {
    "create": (*_BODY, 409, 503),
    "start_turn": (*_BODY, 404, 409, 503),
    "events": (400, 404, 410, 429),
    "poll": (400, 404, 410, 429),
    "chat_completions": (*_BODY, 409, 429, 503),
    "create_response": (*_BODY, 404, 409, 429, 503),
    "retrieve_response": (400, 404),
    "models": (),
    "cancel": (*_BODY, 404, 409),
    "list_sessions": (),
    "ai_sdk": (*_BODY, 409, 429, 503),
    "ai_sdk_stream": (429,),
    "ag_ui": (*_BODY, 409, 429, 503),
}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_QUERY: dict[str, dict[str, Any]] = {
    "after": {"type": "string", "description": "go on after this cursor; of it and Last-Event-ID the later counts"},
    "follow": {"enum": ["turn", "session", "none"], "description": "end with the turn, the session, or what is there"},
    "format": {"enum": list(get_args(Format))},
    "deltas": {"enum": ["merged", "exact"], "description": "merged: neighbours that are ready together come as one"},
    "on_trim": {"enum": ["snapshot", "fail"], "description": "fail: 410 when events after the cursor are gone"},
    "limit": {"type": "integer", "minimum": 1, "description": "end after so many events"},
    "stream": {"type": "boolean", "default": False, "description": "its events instead"},
    "starting_after": {"type": "integer", "minimum": 0, "description": "go on after the event of this number"},
    "wait_s": {"type": "number", "minimum": 0, "description": "wait so long for the first event, 55 at most"},
}
_QUERIED = {
    "events": ("after", "follow", "format", "deltas", "on_trim", "limit"),
    "retrieve_response": ("stream", "starting_after"),
    "poll": ("after", "follow", "deltas", "on_trim", "limit", "wait_s"),
}


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    codes = (401, 403, *_ERRORS_OF.get(route.name, (404,)))
    content = {"application/json": {"schema": _ERROR_SCHEMA}}
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        found[code] = {"description": _ERRORS[code], "content": content}
    if route.name == "events":
        found[200] = {"description": "the stream", "content": {"text/event-stream": {}, "application/x-ndjson": {}}}
        found[204] = {"description": "nothing can follow the cursor"}
    if route.name in ("ai_sdk", "ai_sdk_stream", "ag_ui"):
        found[200] = {"description": "the stream", "content": {"text/event-stream": {}}}
    if route.name == "ai_sdk_stream":
        found[204] = {"description": "no turn runs"}
    if route.name == "result":
        found[202] = {"description": "no turn has ended yet"}
    return found


def _openapi(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": []}
    for name in re.findall(r"{(\w+)}", route.path):
        found["parameters"].append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    if route.name in _QUERIED:
        defaults = StreamQuery._field_defaults
        for name in _QUERIED[route.name]:
            default = {} if defaults.get(name) is None else {"default": defaults[name]}
            found["parameters"].append({"name": name, "in": "query", "schema": _QUERY[name] | default})
        if "after" in _QUERIED[route.name]:
            found["parameters"].append({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}})
    if route.name in _REPEATABLE:
        key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 256}}
        found["parameters"].append(key | {"description": "a client_id, where the body has none"})
    if route.name in _BODIES:
        properties, required = _BODIES[route.name]
        schema = {"type": "object", "properties": properties} | ({"required": required} if required else {})
        found["requestBody"] = {"required": bool(required), "content": {"application/json": {"schema": schema}}}
    return found
