"""OpenAI-compatible routes: Chat Completions and Responses over the agent, so that OpenAI's SDKs can be its clients.

Owns the requests, the responses' ids and OpenAI's shape of an error. Refuses to know events: the core encodes them.

Invariants: 1. the request's body is the turn's input, untouched; 2. a response's id says where its turn begins, and
cannot be guessed: it holds the log's epoch; 3. the auth hook is asked with the session's id whenever a response of it
is named; 4. a client that leaves stops nothing but its stream.
"""

import asyncio
import json
import re
from collections.abc import MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qs

from turnstream._native import FrameReader, Session
from turnstream.asgi.http import Answer, ASGIApp, HTTPError, Receive, Request, Scope, Send, idempotency_key
from turnstream.asgi.route import SESSION_ID, Route
from turnstream.asgi.stream import EventStream, StreamQuery
from turnstream.errors import TurnstreamError, UnknownSession

if TYPE_CHECKING:
    from turnstream.asgi.app import App

Format = Literal["openai-chat", "openai-responses"]

_RESPONSE_ID = re.compile(r"resp_(?P<session_id>.+)_(?P<cursor>(?P<epoch>[a-z0-9]+)_[0-9]{1,19})")

MAX_CHOICES = 128
"""The most answers that one request may ask for, as at OpenAI. How many there are is the agent's to say."""

_NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's SDKs, which repeat a 500, that the run is over: each repetition would be another one."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class _Run(NamedTuple):
    """A turn that a request has started, or names: its session, and the cursor after which it begins."""

    session: Session
    cursor: str


class _Whole:
    """The answer to a request that does not stream: sent when the turn has ended."""

    def __init__(self, app: "App", run: _Run, format: Format) -> None:
        self._app = app
        self._run = run
        self._format = format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = self._run.session.frames(self._run.cursor, format=self._format, heartbeat_s=0)
        left = asyncio.create_task(_close_on_disconnect(receive, reader))
        try:
            with self._app.streams.opened(reader, self._run.session):
                async for _ in reader:  # the encoder knows where the turn ends
                    pass
            if not left.done():
                await _answer(self._run, self._format)(scope, receive, send)
        finally:
            reader.close()
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)


class _Tail:
    """An event stream without its first `skipped` frames."""

    def __init__(self, stream: EventStream, skipped: int) -> None:
        self._stream = stream
        self._skipped = skipped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._skipped

        async def send_tail(message: MutableMapping[str, Any]) -> None:
            nonlocal left
            if left and message.get("body"):
                *skipped, rest = message["body"].split(b"\n\n", left)  # frames are whole in each body
                left -= len(skipped)
                if not rest:
                    return
                message = {**message, "body": rest}
            await send(message)

        await self._stream(scope, receive, send_tail)


async def _close_on_disconnect(receive: Receive, reader: FrameReader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()


def _refuse(error: HTTPError) -> Answer:
    """An error as OpenAI's SDKs read it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    body = {"message": str(error), "type": kind, "param": error.extra.get("parameter"), "code": error.code}
    # An SDK repeats a 409: this one stays.
    headers = error.headers | (_NO_RETRY if error.code == "conflict" else {})
    return Answer(error.status, {"error": body}, headers)


def _answer(run: _Run, format: Format) -> Answer:
    text = run.session.answer(run.cursor, format)
    if text is None:
        why = "the server no longer holds all of this answer"
        return _refuse(HTTPError(500, "history_trimmed", why, headers=_NO_RETRY))
    if text.startswith('{"error":'):
        return Answer.of_json(500, text, _NO_RETRY)
    return Answer.of_json(200, text)


def _stream(app: "App", run: _Run, format: Format) -> EventStream:
    return app.stream(run.session, StreamQuery(after=run.cursor, format=format))


async def _start(app: "App", request: Request, session_id: str | None, body: dict[str, Any]) -> _Run:
    """A repeated request of the same `Idempotency-Key` is answered with the run that the first one started."""
    key = idempotency_key(request.scope)
    if session_id is None and key is not None:
        session_id = app.session_id_of(key)
    if not body.get("background"):
        app.streams.require_room(session_id)
    session, started = await app.begin(session_id, {"input": body, "client_id": key})
    return _Run(session, started["cursor"])


async def _read(request: Request, content: str, kinds: type | tuple[type, ...]) -> dict[str, Any]:
    body = await request.json()
    checks: dict[str, tuple[Any, bool]] = {
        "model": (str, True),
        content: (kinds, True),
        "stream": (bool, False),
        "background": (bool, False),
        "previous_response_id": (str, False),
        "tools": (list, False),
        "stream_options": (dict, False),
        "n": (int, False),
    }
    for name, (kind, required) in checks.items():
        value = body.get(name)
        if not (isinstance(value, kind) if value is not None else not required) or (required and not value):
            raise HTTPError(400, "invalid_value", f"{name} is missing or not of its type", parameter=name)
    if body.get("n") is not None and not 1 <= body["n"] <= MAX_CHOICES:
        raise HTTPError(400, "invalid_value", f"n is from 1 to {MAX_CHOICES}", parameter="n")
    return body


async def chat_completions(app: "App", request: Request) -> ASGIApp:
    """200 with the agent's answer: `chat.completion.chunk` frames, or one `chat.completion`."""
    body = await _read(request, "messages", list)
    run = await _start(app, request, None, body)
    return _stream(app, run, "openai-chat") if body.get("stream") else _Whole(app, run, "openai-chat")


async def create_response(app: "App", request: Request) -> ASGIApp:
    """200 with the agent's answer: `response.*` events, or one `response`; with `background`, at once."""
    body = await _read(request, "input", (str, list))
    session_id = None
    if previous := body.get("previous_response_id"):
        session_id = (await _continued(app, request.scope, previous)).id
    if body.get("conversation") is not None:
        raise HTTPError(400, "unsupported", "go on with previous_response_id", parameter="conversation")
    run = await _start(app, request, session_id, body)
    if body.get("stream"):
        return _stream(app, run, "openai-responses")
    return _answer(run, "openai-responses") if body.get("background") else _Whole(app, run, "openai-responses")


async def _continued(app: "App", scope: Scope, previous: str) -> Session:
    """The session of an earlier response. The hook has been asked for none yet, and is asked for this one."""
    params = {"response_id": previous}
    _name_session(params)
    await app.authorize({**scope, "path_params": params})
    return (await _find(app, params)).session


def _name_session(params: dict[str, str]) -> None:
    """Adds the id of the session that a response belongs to: what an auth hook decides by."""
    if found := _RESPONSE_ID.fullmatch(params["response_id"]):
        params["session_id"] = found["session_id"]


async def _find(app: "App", params: dict[str, str]) -> _Run:
    found = _RESPONSE_ID.fullmatch(params["response_id"])
    if found is not None and SESSION_ID.fullmatch(found["session_id"]):
        with suppress(UnknownSession):
            run = _Run(await app.hub.afind(found["session_id"]), found["cursor"].replace("_", "."))
            with suppress(TurnstreamError):
                known = (
                    run.session.answer(run.cursor, "openai-responses") if found["epoch"] == run.session.epoch else None
                )
                if known is not None:
                    return run
    raise HTTPError(404, "not_found", "no response has this id", parameter="response_id")


async def retrieve_response(app: "App", request: Request) -> ASGIApp:
    """200 with the response as it stands; with `stream=true`, its events after number `starting_after`."""
    run = await _find(app, request.scope["path_params"])
    query = parse_qs(request.scope["query_string"].decode("latin-1"))
    if query.get("stream", ["false"])[-1] != "true":
        return _answer(run, "openai-responses")
    after = query.get("starting_after", ["-1"])[-1]
    if after != "-1" and not (after.isascii() and after.isdigit() and len(after) < 16):
        raise HTTPError(400, "invalid_value", "starting_after is a whole number", parameter="starting_after")
    return _Tail(_stream(app, run, "openai-responses"), int(after) + 1)


async def cancel_response(app: "App", request: Request) -> ASGIApp:
    """200 with the response; cancelled, if it was running."""
    run = await _find(app, request.scope["path_params"])
    text = run.session.answer(run.cursor, "openai-responses") or "{}"
    if json.loads(text).get("status") == "in_progress":
        await run.session.cancel()
    return _answer(run, "openai-responses")


async def models(app: "App", request: Request) -> ASGIApp:
    """200 with one model, the agent: clients that offer a choice ask for the list."""
    model = {"id": "turnstream", "object": "model", "created": 0, "owned_by": "turnstream"}
    return Answer(200, {"object": "list", "data": [model]})


_RESPONSE = "/v1/responses/{response_id}"

ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions, "OpenAI Chat Completions", _refuse),
    Route("POST", "/v1/responses", create_response, "OpenAI Responses", _refuse),
    Route("GET", _RESPONSE, retrieve_response, "A response as it stands, or its events", _refuse, _name_session),
    Route("POST", f"{_RESPONSE}/cancel", cancel_response, "Stop a running response", _refuse, _name_session),
    Route("GET", "/v1/models", models, "OpenAI's list of models", _refuse),
)
