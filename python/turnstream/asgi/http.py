"""HTTP over plain ASGI: errors as typed JSON, whole answers, and the reading of a request's body.

Owns what every route shares. Refuses to know sessions and routes.

Invariants: 1. whatever is wrong with a request is said in typed JSON, `{"error": {"code", "message", …}}`; 2. no body
is read beyond its limit, nor waited for longer than BODY_S.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Self, TypeAlias

from turnstream.errors import (
    Conflict,
    CursorError,
    CursorExpired,
    HubFull,
    NotWriter,
    PayloadError,
    SessionClosed,
    StoreError,
    TurnActive,
    TurnEnded,
    TurnstreamError,
    UnknownSession,
)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

BODY_S = 30.0
"""How long a request's body may take to come."""

MAX_METADATA_BYTES = 16 << 10
"""The largest `metadata`, as JSON."""

WAITED_FOR_BYTES = 64 << 10
"""Above this, sending a body waits until most of it is taken: uvicorn waits before a send, never after the last one."""

MAX_DEPTH = 100
"""How deep the JSON of a request may be nested. A log keeps 120 levels, an event's own among them."""

_STATUS: dict[type[TurnstreamError], int] = {
    CursorError: 400,
    UnknownSession: 404,
    TurnActive: 409,
    TurnEnded: 409,
    Conflict: 409,
    SessionClosed: 409,
    NotWriter: 409,
    CursorExpired: 410,
    PayloadError: 422,
    HubFull: 503,
    StoreError: 503,
}


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

    @property
    def body(self) -> dict[str, Any]:
        """What stands under `error` in the answer."""
        return {"code": self.code, "message": str(self), **self.extra}

    @classmethod
    def of(cls, error: TurnstreamError, **extra: Any) -> Self:
        """What the core refused, as HTTP says it."""
        status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
        return cls(status, error.code, str(error.args[0]) if error.args else error.code, **extra)


class Answer:
    """A whole response, sent at once; to a WebSocket its refusal, with the body if the server can."""

    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.body: bytes = b"" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self.headers: Headers = [(b"cache-control", b"no-store")]
        self.headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        if body is not None:
            self.headers.append((b"content-type", b"application/json"))
        if status != 204:
            self.headers.append((b"content-length", b"%d" % len(self.body)))

    @classmethod
    def of_json(cls, status: int, text: str, headers: Mapping[str, str] | None = None) -> Self:
        """An answer whose body has been written already."""
        answer = cls(status, headers=headers)
        answer.body = text.encode()
        answer.headers[-1:] = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer.body)),
        ]
        return answer

    @classmethod
    def error(cls, error: HTTPError) -> Self:
        return cls(error.status, {"error": error.body}, error.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._refuse_socket(scope, send)
            return
        body = b"" if scope["method"] == "HEAD" else self.body
        with suppress(OSError):  # a client that has left (ASGI 2.4)
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            if len(body) > WAITED_FOR_BYTES:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
            await send({"type": "http.response.body", "body": body})

    async def _refuse_socket(self, scope: Scope, send: Send) -> None:
        kind = "websocket.http.response"
        if kind not in scope.get("extensions", {}):  # the handshake is answered with a bare 403
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": f"{kind}.start", "status": self.status, "headers": self.headers})
        await send({"type": f"{kind}.body", "body": self.body})


def header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in scope["headers"] if key == name), "")


def path_below_root(scope: Scope) -> str:
    """The path without its mount. A `root_path` that a proxy has cut off is not in it; `/s` is not above `/ss`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if path.startswith(f"{root}/") else path


class Request:
    """What a handler needs of a request."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        self.scope = scope
        self._receive = receive
        self._max_body_bytes = max_body_bytes

    async def json(self) -> dict[str, Any]:
        """The body, a JSON object; none is an empty one. Its content type is not asked: `curl -d` sends a form's."""
        if header(self.scope, b"content-encoding").lower() not in ("", "identity"):
            headers = {"accept-encoding": "identity"}
            raise HTTPError(415, "unsupported_encoding", "send the body as it is", headers=headers)
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body()
        except TimeoutError:
            why = f"the body took longer than {BODY_S:g} s"
            raise HTTPError(408, "body_too_slow", why, headers={"connection": "close"}) from None
        return parse_object(body) if body.strip() else {}

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


def parse_object(text: bytes) -> dict[str, Any]:
    """Reads a JSON object that a client has sent; HTTPError 400 or 422."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, "bad_json", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise HTTPError(422, "bad_body", "the body is a JSON object")
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise HTTPError(422, "too_deep", f"the body is nested deeper than {MAX_DEPTH} levels")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether containers are nested more than `depth` levels: level by level, as a call each would cost the stack."""
    level = [value]
    while level and depth:
        items = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for item in items for inner in item if isinstance(inner, dict | list)]
        depth -= 1
    return bool(level)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def idempotency_key(scope: Scope) -> str | None:
    """The `Idempotency-Key` header, which stands for a `client_id` where the body has none."""
    key = header(scope, b"idempotency-key")
    if len(key) > 256:
        raise HTTPError(400, "bad_header", "Idempotency-Key is at most 256 characters", parameter="Idempotency-Key")
    return key or None


def with_idempotency_key(scope: Scope, body: dict[str, Any]) -> dict[str, Any]:
    """The body with a `client_id`, if it or the header says one."""
    key = idempotency_key(scope)
    return body if key is None or body.get("client_id") is not None else {**body, "client_id": key}


def text_field(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256 and _is_unicode(value)):
        raise HTTPError(422, "bad_body", f"{name} is a text of 1 to 256 characters", parameter=name)
    return value


def _is_unicode(text: str) -> bool:
    """JSON may escape half of a character, which no UTF-8 can say."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def metadata_field(body: dict[str, Any]) -> Any:
    """Any JSON of at most MAX_METADATA_BYTES."""
    value = body.get("metadata")
    if value is not None and len(json.dumps(value)) > MAX_METADATA_BYTES:
        raise HTTPError(422, "bad_body", f"metadata is longer than {MAX_METADATA_BYTES} bytes", parameter="metadata")
    return value
