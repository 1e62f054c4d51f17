"""All routes below a path of a Litestar application, and one stream in a route of its own.

uvicorn examples.litestar_app:app

curl -s localhost:8000/api/sessions -d '{"input": 5, "session_id": "s-42"}'
curl -N localhost:8000/runs/s-42
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import litestar
from litestar.exceptions import NotFoundException

import turnstream as ts

hub = ts.Hub()


async def agent(turn: ts.Turn) -> AsyncIterator[str]:
    """Counts aloud; a real one would `turn.relay` a model's answer."""
    for number in range(int(turn.input)):
        yield f"{number} "
        await asyncio.sleep(0.05)


api = ts.asgi.app(hub, agent=agent)


@litestar.asgi("/api", is_mount=True, copy_scope=True)
async def mounted(scope: Any, receive: Any, send: Any) -> None:
    """Sessions: create, follow, cancel, …"""
    await api(scope, receive, send)


@litestar.asgi("/runs", is_mount=True, copy_scope=True)  # a mount has no parameters, but the rest of the path
async def run(scope: Any, receive: Any, send: Any) -> None:
    """A session's stream, under an address of the application's own."""
    try:
        session = hub.find(scope["path"].strip("/"))
    except ts.UnknownSession:
        raise NotFoundException("no such run") from None
    await ts.asgi.EventStream(session)(scope, receive, send)


app = litestar.Litestar([mounted, run], lifespan=[api.lifespan])
