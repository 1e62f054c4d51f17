"""One contender of `live.py` and `crowds.py`: an application that says each event to all its clients at once.

`python -m benches.live_server KIND EVENTS_A_SECOND [HISTORY]` answers `{"port", "path", "does", "epoch", "head"}` and
serves until its standard input ends. Before that, each line there is a number of events to be said at once, and is
answered. HISTORY events have been said before anybody came: who comes with a Last-Event-ID is told what follows it.
The others get each event as ready-made JSON, or, `bare`, as the ready-made bytes of its frame: nothing but queue and
server is left. Every event holds the time at which it was made, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import uvicorn
import uvloop

import turnstream as ts

PATH = "/sessions/s/events"
ADDRESSES = ("127.0.0.1", "127.0.0.2")
"""Two, for 5,000 clients that call at once: a listening socket keeps 4,096 waiting (Linux's default) and, in silence,
forgets the others."""

T = TypeVar("T")
Contender = tuple[Any, Callable[[], object], str]


def event_json(seq: int) -> str:
    event = {"type": "custom", "seq": seq, "session": "s", "turn": 1, "round": 0, "time": 1795240361858}
    return json.dumps({**event, "name": "tick", "data": time.monotonic_ns()}, separators=(",", ":"))


class Log(Generic[T]):
    """What the others keep: all events, and a queue for each client."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._said: list[T] = []
        self._queues: set[asyncio.Queue[T]] = set()

    def say(self) -> None:
        event = self._make(len(self._said) + 1)
        self._said.append(event)
        for queue in self._queues:
            queue.put_nowait(event)

    def follow(self, scope: Any) -> tuple[list[T], asyncio.Queue[T]]:
        """What comes after the cursor of a request, or is to come where it has none, and the queue of what follows."""
        cursor = dict(scope["headers"]).get(b"last-event-id", b"")
        queue: asyncio.Queue[T] = asyncio.Queue()
        self._queues.add(queue)
        return self._said[int(cursor.rpartition(b".")[2]) :] if cursor else [], queue


def turnstream(hub: ts.Hub) -> Contender:
    from turnstream.asgi import app

    turn = hub.session("s").turn()
    return app(hub), lambda: turn.emit("custom", {"name": "tick", "data": time.monotonic_ns()}), "turnstream.asgi.app"


def bare(hub: ts.Hub) -> Contender:
    log = Log(lambda seq: f"id: abcdefgh.{seq}\nevent: custom\ndata: {event_json(seq)}\n\n".encode())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        missed, queue = log.follow(scope)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if missed:
            await send({"type": "http.response.body", "body": b"".join(missed), "more_body": True})
        while True:
            await send({"type": "http.response.body", "body": await queue.get(), "more_body": True})

    return application, log.say, "ready-made bytes, one queue a client"


def sse_starlette(hub: ts.Hub) -> Contender:
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.routing import Route

    log = Log(lambda seq: (seq, event_json(seq)))

    async def events(request: Any) -> EventSourceResponse:
        missed, queue = log.follow(request.scope)

        async def follow() -> AsyncIterator[ServerSentEvent]:
            for seq, data in missed:
                yield ServerSentEvent(data, event="custom", id=f"abcdefgh.{seq}", sep="\n")
            while True:
                seq, data = await queue.get()
                yield ServerSentEvent(data, event="custom", id=f"abcdefgh.{seq}", sep="\n")

        return EventSourceResponse(follow(), sep="\n")

    return Starlette(routes=[Route(PATH, events)]), log.say, f"{version('sse-starlette')}"


def fastapi_sse(hub: ts.Hub) -> Contender:
    from fastapi import FastAPI, Request
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    log = Log(lambda seq: (seq, event_json(seq)))
    application = FastAPI()

    async def events(request: Request) -> AsyncIterator[ServerSentEvent]:
        missed, queue = log.follow(request.scope)
        for seq, data in missed:
            yield ServerSentEvent(raw_data=data, event="custom", id=f"abcdefgh.{seq}")
        while True:
            seq, data = await queue.get()
            yield ServerSentEvent(raw_data=data, event="custom", id=f"abcdefgh.{seq}")

    events.__annotations__["request"] = Request  # it reads annotations, and finds only a name of this function
    application.get(PATH, response_class=EventSourceResponse)(events)
    return application, log.say, f"fastapi {version('fastapi')}"


async def main(kind: str, events_a_second: float, history: int) -> None:
    contenders: dict[str, Callable[[ts.Hub], Contender]] = {
        "turnstream": turnstream,
        "bare": bare,
        "sse_starlette": sse_starlette,
        "fastapi_sse": fastapi_sse,
    }
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    hub = ts.Hub()
    application, say, does = contenders[kind](hub)
    for _ in range(history):
        say()
    listeners = [socket.create_server((ADDRESSES[0], 0), backlog=4096)]
    port = listeners[0].getsockname()[1]
    listeners += [socket.create_server((address, port), backlog=4096) for address in ADDRESSES[1:]]
    config = uvicorn.Config(
        application, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=0, backlog=4096
    )
    server = uvicorn.Server(config)

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while events_a_second:
            say()
            due += 1 / events_a_second
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def obey() -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            for _ in range(int(line)):
                say()
            print("{}", flush=True)
        server.should_exit = True

    tasks = [asyncio.create_task(tick()), asyncio.create_task(obey())]
    session = hub.session("s")
    epoch, head = (session.epoch, session.head) if kind == "turnstream" else ("abcdefgh", history)
    hello = {"port": port, "path": PATH, "does": does, "epoch": epoch, "head": head}
    print(json.dumps(hello), flush=True)
    await server.serve(sockets=listeners)
    tasks[0].cancel()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
