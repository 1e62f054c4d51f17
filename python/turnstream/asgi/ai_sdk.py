"""The Vercel AI SDK's chat transport: a chat is a session, a request a turn, an answer one UI message.

Owns how a request of `DefaultChatTransport` becomes a turn. Refuses to know the parts of the stream: the core
encodes them.

Invariants: 1. the same request again starts nothing and is answered with the same turn; 2. a resumed stream is told
from its `start`; 3. a client that leaves stops nothing.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from turnstream._native import Session
from turnstream.asgi.http import Answer, ASGIApp, HTTPError, Request, idempotency_key, text_field
from turnstream.asgi.route import SESSION_ID, Route
from turnstream.asgi.stream import StreamQuery
from turnstream.errors import UnknownSession

if TYPE_CHECKING:
    from turnstream.asgi.app import App

REGENERATE = "regenerate-message"
TRIGGERS = ("submit-message", REGENERATE)


async def ai_sdk(app: "App", request: Request) -> ASGIApp:
    """200 with the UI message stream of a turn; its input is the whole body: `id`, `messages`, `trigger` …"""
    session, cursor = await start_chat(app, request, await request.json())
    return app.stream(session, StreamQuery(after=cursor, format="ai-sdk"))


async def start_chat(app: "App", request: Request, body: dict[str, Any]) -> tuple[Session, str]:
    """The session, and the cursor before the turn that the body starts, or started when it came before."""
    chat = await app.named(request, body.get("id"), "id")
    last = _last_message(body)
    trigger = body.get("trigger", TRIGGERS[0])
    if trigger not in TRIGGERS:
        raise HTTPError(422, "bad_body", f"trigger is one of {', '.join(TRIGGERS)}", parameter="trigger")
    # Results of tools that ran in the browser come with the answer that called them: it goes on under its own id.
    goes_on = last["role"] == "assistant" and trigger != REGENERATE
    metadata = {"protocol": "ai-sdk"} | ({"message_id": last["id"]} if goes_on else {})
    client_id = _request_id(body, last, trigger) or idempotency_key(request.scope)
    app.streams.require_room(chat)
    session, started = await app.begin(chat, {"input": body, "client_id": client_id, "metadata": metadata})
    return session, started["cursor"]


def _last_message(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise HTTPError(422, "bad_body", "messages is a list of UI messages, not empty", parameter="messages")
    last = messages[-1]
    if not (isinstance(last, dict) and isinstance(last.get("id"), str) and isinstance(last.get("role"), str)):
        raise HTTPError(422, "bad_body", "a message has an id and a role", parameter="messages")
    return last


def _request_id(body: dict[str, Any], last: dict[str, Any], trigger: str) -> str | None:
    """What tells a request that was sent twice from two requests.

    A message's id alone does not: an edited one keeps it, an answer that waits for its tools comes back with each
    result, and to regenerate sends the question again; where that does not say which answer it replaces, it counts.
    """
    replaces = text_field(body, "messageId")
    if trigger == REGENERATE and replaces is None:
        return None
    said = json.dumps([trigger, replaces, last], sort_keys=True, separators=(",", ":"))
    return f"{last['id'][:64]}:{hashlib.sha256(said.encode()).hexdigest()[:32]}"


async def ai_sdk_stream(app: "App", request: Request) -> ASGIApp:
    """200 with the running turn from its start; 204 when none runs."""
    session = await running_chat(app, request.scope["path_params"]["session_id"])
    return Answer(204) if session is None else app.stream(session, StreamQuery(format="ai-sdk"))


async def running_chat(app: "App", chat: str) -> Session | None:
    """The chat's session, if a turn of it runs."""
    try:
        session = await app.hub.afind(chat) if SESSION_ID.fullmatch(chat) else None
    except UnknownSession:
        return None
    return session if session is not None and session.status()["state"] == "running" else None


ROUTES = (
    Route("POST", "/ai-sdk", ai_sdk, "Chat transport of the Vercel AI SDK: start a turn and follow it"),
    Route("GET", "/ai-sdk/{session_id}/stream", ai_sdk_stream, "Resume a chat's stream, told from its start"),
)
