"""One contender of `live.py`: an application that says 100 events a second to all its clients.

`python -m benches.live_server KIND` answers `{"port", "path", "does"}` and serves until its standard input ends. The
others get each event as ready-made JSON, or, `bare`, as the ready-made bytes of its frame: nothing but queue and server
is left.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any, TypeVar

import uvicorn
import uvloop

import turnstream as ts

EVENTS_A_SECOND = 100
_EVENT = {"type": "custom", "seq": 1000, "session": "s", "turn": 1, "round": 0, "time": 1795240361858}
JSON = json.dumps({**_EVENT, "name": "tick", "data": "hello hello"}, separators=(",", ":"))
FRAME = f"id: abcdefgh.1000\nevent: custom\ndata: {JSON}\n\n".encode()
PATH = "/sessions/s/events"

T = TypeVar("T")
Contender = tuple[Any, Callable[[], object], str]


def to_all(queues: set[asyncio.Queue[T]], item: T) -> None:
    for queue in queues:
        queue.put_nowait(item)


def turnstream() -> Contender:
    from turnstream.asgi import app

    hub = ts.Hub()
    turn = hub.session("s").turn()
    return app(hub), lambda: turn.emit("custom", {"name": "tick", "data": "hello hello"}), "turnstream.asgi.app"


def bare() -> Contender:
    queues: set[asyncio.Queue[bytes]] = set()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        queues.add(queue)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            await send({"type": "http.response.body", "body": await queue.get(), "more_body": True})

    return application, lambda: to_all(queues, FRAME), "ready-made bytes, one queue a client"


def sse_starlette() -> Contender:
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.routing import Route

    queues: set[asyncio.Queue[str]] = set()

    async def events(request: Any) -> EventSourceResponse:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)

        async def follow() -> AsyncIterator[ServerSentEvent]:
            while True:
                yield ServerSentEvent(await queue.get(), event="custom", id="abcdefgh.1000", sep="\n")

        return EventSourceResponse(follow(), sep="\n")

    application = Starlette(routes=[Route(PATH, events)])
    return application, lambda: to_all(queues, JSON), f"{version('sse-starlette')}"


def fastapi_sse() -> Contender:
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    queues: set[asyncio.Queue[str]] = set()
    application = FastAPI()

    @application.get(PATH, response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)
        while True:
            yield ServerSentEvent(raw_data=await queue.get(), event="custom", id="abcdefgh.1000")

    return application, lambda: to_all(queues, JSON), f"fastapi {version('fastapi')}"


async def main(kind: str) -> None:
    contenders: dict[str, Callable[[], Contender]] = {
        "turnstream": turnstream,
        "bare": bare,
        "sse_starlette": sse_starlette,
        "fastapi_sse": fastapi_sse,
    }
    application, say, does = contenders[kind]()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        application, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            say()
            due += 1 / EVENTS_A_SECOND
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def until_input_ends() -> None:
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True

    tasks = [asyncio.create_task(tick()), asyncio.create_task(until_input_ends())]
    print(json.dumps({"port": listener.getsockname()[1], "path": PATH, "does": does}), flush=True)
    await server.serve(sockets=[listener])
    tasks[0].cancel()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
