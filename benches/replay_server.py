"""One contender of `replay.py`: a FastAPI app that holds a finished run and sends it to whoever asks.

`python -m benches.replay_server KIND EVENTS` answers `{"port", "path", "does"}` and serves until its standard input
ends. All kinds hold the same run. The others get each event's id, type and JSON ready-made, as a log of strings gives
them.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI

import turnstream as ts
from benches import streams


def finished(hub: ts.Hub, events: int) -> ts.Session:
    """A session with one finished turn of that many events."""

    def run(session: ts.Session, deltas: int) -> ts.Session:
        turn = session.turn()
        feed = turn.normalizer("openai-chat")
        feed.feed(b"".join(streams.openai_chat(deltas)))
        feed.finish()
        turn.complete()
        return session

    around = run(hub.session(), 1).head - 1
    return run(hub.session(), events - around)


def turnstream(app: FastAPI, hub: ts.Hub, session: ts.Session) -> tuple[str, str]:
    import turnstream.fastapi

    app.include_router(turnstream.fastapi.router(hub))
    return f"/sessions/{session.id}/events?deltas=exact", "turnstream.fastapi.router"


def sse_starlette(app: FastAPI, hub: ts.Hub, session: ts.Session) -> tuple[str, str]:
    from sse_starlette import EventSourceResponse, ServerSentEvent

    log = [(f"{session.epoch}.{event.seq}", event.type, event.json()) for event in session.read()]

    async def replay() -> AsyncIterator[ServerSentEvent]:
        for cursor, kind, data in log:
            yield ServerSentEvent(data, event=kind, id=cursor, sep="\n")

    @app.get("/events")
    async def events() -> EventSourceResponse:
        return EventSourceResponse(replay(), sep="\n")

    return "/events", f"{version('sse-starlette')} EventSourceResponse"


def fastapi_sse(app: FastAPI, hub: ts.Hub, session: ts.Session) -> tuple[str, str]:
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    log = [(f"{session.epoch}.{event.seq}", event.type, event.json()) for event in session.read()]

    @app.get("/events", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        for cursor, kind, data in log:
            yield ServerSentEvent(raw_data=data, event=kind, id=cursor)

    return "/events", f"fastapi {version('fastapi')} EventSourceResponse"


def main(kind: str, events: int) -> None:
    app, hub = FastAPI(), ts.Hub()
    contenders: dict[str, Any] = {"turnstream": turnstream, "sse_starlette": sse_starlette, "fastapi_sse": fastapi_sse}
    path, does = contenders[kind](app, hub, finished(hub, events))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    listener = socket.create_server(("127.0.0.1", 0))

    def until_input_ends() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=until_input_ends, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1], "path": path, "does": does}), flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
