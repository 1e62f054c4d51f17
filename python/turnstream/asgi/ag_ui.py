"""AG-UI: a thread is a session, a run a turn.

Owns how a `RunAgentInput` becomes a turn. Refuses to know the events of the stream: the core encodes them.

Invariants: 1. the same run again starts nothing and is answered with the same events; 2. what is wrong with the input
is said before the stream; 3. a client that leaves stops nothing.
"""

from typing import TYPE_CHECKING

from turnstream.asgi.http import ASGIApp, HTTPError, Request, text_field
from turnstream.asgi.route import Route
from turnstream.asgi.stream import StreamQuery

if TYPE_CHECKING:
    from turnstream.asgi.app import App


async def ag_ui(app: "App", request: Request) -> ASGIApp:
    """200 with the events of a turn whose input is the whole `RunAgentInput`."""
    body = await request.json()
    thread = await app.named(request, body.get("threadId"), "threadId")
    run = text_field(body, "runId")
    if run is None:
        raise HTTPError(422, "bad_body", "runId is missing", parameter="runId")
    if not isinstance(body.get("messages"), list):
        raise HTTPError(422, "bad_body", "messages is a list", parameter="messages")
    app.streams.require_room(thread)
    turn = {"input": body, "client_id": run, "metadata": {"protocol": "ag-ui"}}
    session, started = await app.begin(thread, turn)
    return app.stream(session, StreamQuery(after=started["cursor"], format="ag-ui"))


ROUTES = (Route("POST", "/ag-ui", ag_ui, "Start a run of AG-UI and follow it"),)
