"""Several worker processes over one file: a run on one, its viewers on any, and neither a deploy nor a crash loses it.

    uvicorn --app-dir examples/multi-worker workers:app --workers 4

    curl -s localhost:8000/sessions -d '{"input": "Hi", "session_id": "s-42"}' -H 'content-type: application/json'
    curl -N localhost:8000/sessions/s-42/events     # whichever worker answers: `x-worker` says which

Kill the worker that runs it (`kill -9`), and the viewers are told: `completion`, failed, producer_lost.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

import turnstream as ts
import turnstream.fastapi

# lease_s: how long a worker may be silent before another one ends its turns.
hub = ts.Hub(os.environ.get("STORE", "sqlite:///runs.db?lease_s=5"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0.1"))


async def agent(turn: ts.Turn) -> None:
    """Counts aloud; a real one would `turn.relay` a model's answer."""
    for number in range(1, 51):
        turn.emit("text_delta", text=f"{number} ")
        await asyncio.sleep(PAUSE_S)


app = FastAPI(title="turnstream, several workers")
app.include_router(turnstream.fastapi.router(hub, agent=agent))


@app.middleware("http")
async def name_the_worker(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Says which process answers."""
    response = await call_next(request)
    response.headers["x-worker"] = str(os.getpid())
    return response
