"""The routes of sessions: make, start, follow, look, cancel, delete.

Invariants: 1. a handler gives an ASGI application and sends nothing itself; 2. what is wrong with a request is an
HTTPError before anything starts.
"""

from typing import TYPE_CHECKING, Any

from turnstream._native import Session
from turnstream.asgi.http import (
    Answer,
    ASGIApp,
    HTTPError,
    Request,
    idempotency_key,
    metadata_field,
    text_field,
    with_idempotency_key,
)
from turnstream.asgi.route import Route
from turnstream.asgi.stream import SentAway, StreamQuery, is_event_source
from turnstream.errors import StoreError

if TYPE_CHECKING:
    from turnstream.asgi.app import App

LISTED = 100
"""How many sessions the list holds, the latest first."""


async def create(app: "App", request: Request) -> ASGIApp:
    """201 `{"session_id", "turn", "cursor"}`; `turn` is null when there was no input."""
    body = with_idempotency_key(request.scope, await request.json())
    metadata = metadata_field(body)
    if (session_id := body.get("session_id")) is not None:
        await app.named(request, session_id, "session_id")
        if await app.knows(session_id):
            raise HTTPError(409, "session_exists", "a session of that id exists", session_id=session_id)
    elif key := idempotency_key(request.scope):
        session_id = app.session_id_of(key)
    if body.get("input") is not None:
        session, started = await app.begin(session_id, body)
    else:
        new = session_id is None or not await app.knows(session_id)
        session = await app.hub.asession(session_id)
        started = {"turn": None, "cursor": f"{session.epoch}.0"}
        if metadata is not None and new:
            session.emitter()("custom", {"name": "session_metadata", "data": metadata})
    return Answer(201, {"session_id": session.id, **started}, {"location": _url(request, session)})


def _url(request: Request, session: Session) -> str:
    # As it was sent: a mount may have taken its own part off the other one, and decoded it is no header.
    raw: bytes | None = request.scope.get("raw_path")
    path: str = request.scope["path"] if raw is None else raw.decode("latin-1")
    return f"{path.removesuffix('/')}/{session.id}" if path.isascii() and path.isprintable() else session.id


async def list_sessions(app: "App", request: Request) -> ASGIApp:
    """200 `{"sessions": [status, …]}`, the latest first."""
    return Answer(200, {"sessions": [session.status() for session in app.hub.sessions()[:LISTED]]})


async def status(app: "App", request: Request) -> ASGIApp:
    """200 with the session's status."""
    return Answer(200, (await app.find(request)).status())


async def delete(app: "App", request: Request) -> ASGIApp:
    """204; a running turn is cancelled."""
    await app.hub.adelete((await app.find(request)).id)
    return Answer(204)


async def start_turn(app: "App", request: Request) -> ASGIApp:
    """202 `{"turn", "cursor"}`: the turn's events come after the cursor."""
    session = await app.find(request)
    body = await request.json()
    if body.get("input") is None:
        raise HTTPError(422, "bad_body", "a turn has an input", parameter="input")
    return Answer(202, await app.start(session, with_idempotency_key(request.scope, body)))


async def events(app: "App", request: Request) -> ASGIApp:
    """200 with the stream, 204 when nothing can follow the cursor; see EventStream."""
    try:
        return app.stream(await app.find(request))
    except StoreError as error:  # it may be back in a moment
        if not is_event_source(request.scope, StreamQuery.of(request.scope).format):
            raise
        return SentAway(error.code)


async def messages(app: "App", request: Request) -> ASGIApp:
    """200 `{"messages": […], "cursor"}`: events that follow the cursor are those that the messages do not hold yet."""
    return Answer(200, (await app.find(request)).snapshot())


async def result(app: "App", request: Request) -> ASGIApp:
    """200 with the last turn's completion; 202 `{"state", "turn"}` while there is none."""
    session = await app.find(request)
    if (result := session.result()) is not None:
        return Answer(200, result)
    status = session.status()
    return Answer(202, {"state": status["state"], "turn": status["turn"]})


async def cancel(app: "App", request: Request) -> ASGIApp:
    """202 `{"state", "turn"}`, also for a turn that was cancelled before; 409 when it has ended otherwise."""
    session = await app.find(request)
    return Answer(202, await cancel_turn(session, await request.json()))


async def cancel_turn(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    """Stops the running turn, for the `reason` in the body. HTTPError 409 where it had ended otherwise."""
    told = await session.cancel(text_field(body, "reason") or "cancelled")
    status = session.status()
    if status["state"] != "cancelled" and not told:  # told: another process, which will
        raise HTTPError(409, "turn_ended", "no turn is running", state=status["state"], turn=status["turn"])
    return {"state": status["state"], "turn": status["turn"]}


ROUTES = (
    Route("POST", "/sessions", create, "Make a session; with an input, start its first turn"),
    Route("GET", "/sessions", list_sessions, "The latest sessions' status"),
    Route("GET", "/sessions/{session_id}", status, "Where a session stands"),
    Route("DELETE", "/sessions/{session_id}", delete, "End a session and forget it"),
    Route("POST", "/sessions/{session_id}/turns", start_turn, "Start a turn"),
    Route("GET", "/sessions/{session_id}/events", events, "Follow the events, as server-sent events or NDJSON"),
    Route("GET", "/sessions/{session_id}/messages", messages, "What was said so far, partial text included"),
    Route("GET", "/sessions/{session_id}/result", result, "The last turn's completion"),
    Route("POST", "/sessions/{session_id}/cancel", cancel, "Stop the running turn"),
)
