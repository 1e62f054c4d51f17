"""No framework: the application as it is, and one stream in an ASGI application of one's own before it.

uvicorn examples.asgi_app:app

curl -s localhost:8000/sessions -d '{"input": 5, "session_id": "s-42"}'
curl -N localhost:8000/runs/s-42
"""

import asyncio
from collections.abc import AsyncIterator

import turnstream as ts
from turnstream.asgi.http import Receive, Scope, Send

hub = ts.Hub()


async def agent(turn: ts.Turn) -> AsyncIterator[str]:
    """Counts aloud; a real one would `turn.relay` a model's answer."""
    for number in range(int(turn.input)):
        yield f"{number} "
        await asyncio.sleep(0.05)


api = ts.asgi.app(hub, agent=agent)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Runs under an address of their own; everything else, the server's start and stop included, is the API's."""
    name = scope.get("path", "").removeprefix("/runs/")
    if scope["type"] == "http" and any(session.id == name for session in hub.sessions()):
        await ts.asgi.EventStream(hub.find(name))(scope, receive, send)
    else:
        await api(scope, receive, send)
