"""All routes below a path of a Starlette application, and one stream in a route of its own.

uvicorn examples.starlette_app:app

curl -s localhost:8000/api/sessions -d '{"input": 5, "session_id": "s-42"}'
curl -N localhost:8000/runs/s-42
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import turnstream as ts
from turnstream.fastapi import Respond

hub = ts.Hub()


async def agent(turn: ts.Turn) -> AsyncIterator[str]:
    """Counts aloud; a real one would `turn.relay` a model's answer."""
    for number in range(int(turn.input)):
        yield f"{number} "
        await asyncio.sleep(0.05)


async def run(request: Request) -> Response:
    """A session's stream, under an address of the application's own."""
    try:
        session = hub.find(request.path_params["id"])
    except ts.UnknownSession:
        return JSONResponse({"error": "no such run"}, 404)
    return Respond(ts.asgi.EventStream(session))


api = ts.asgi.app(hub, agent=agent)
app = Starlette(routes=[Route("/runs/{id}", run), Mount("/api", api)], lifespan=api.lifespan)
