"""A client that comes late: one GET that brings a finished run of 5,000 events, through uvicorn and a real socket.

Each contender is a FastAPI app in its own uvicorn process (`replay_server.py`), asked in turns by one raw client that
counts the events. CPU is the server process's alone; wall time is what the client waits, from connect to the last byte.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benches.harness import ROUND_S, Absent, Cost, Group, Line, Scale, Side, Worker, at_least

EVENTS = 5000
LAST_CHUNK = b"0\r\n\r\n"


def fetch(port: int, path: str) -> bytes:
    """The whole chunked response, as it came."""
    received: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
        while not received or not received[-1].endswith(LAST_CHUNK):
            data = connection.recv(1 << 20)
            if not data:
                raise ConnectionError(f"{path} ended after {sum(map(len, received))} bytes")
            # The end may come in two reads; only the last bytes are looked at, so they are kept together.
            received[-1:] = (
                [received[-1] + data] if received and len(received[-1]) < len(LAST_CHUNK) else [*received[-1:], data]
            )
    return b"".join(received)


def contender(name: str, does: str, kind: str, events: int, stack: ExitStack) -> Side | Absent:
    try:
        worker = Worker(sys.executable, "-m", "benches.replay_server", kind, str(events))
    except RuntimeError as error:
        return Absent(name, str(error))
    stack.callback(worker.close)
    port, path = worker.hello["port"], worker.hello["path"]

    def run() -> Cost:
        cpu, waited, times = worker.cpu(), 0.0, 0
        while waited < ROUND_S:
            start = time.perf_counter()
            response = fetch(port, path)
            waited += time.perf_counter() - start
            times += 1
            if (sent := response.count(b"\nid: ")) != events:
                raise AssertionError(f"{name} sent {sent} of {events} events: {response[:300]!r}")
        worked = worker.cpu() - cpu
        return {"cpu": worked * 1e6 / (events * times), "wall": waited * 1e6 / (events * times)}

    return Side(name, f"{worker.hello['does']}; {does}", run)


@contextmanager
def replay(scale: Scale) -> Iterator[Group]:
    events = scale.items(EVENTS)
    with ExitStack() as stack:
        yield Group(
            f"{events} events of a finished run to one SSE client through uvicorn (uvloop, httptools)",
            {"cpu": "µs server CPU per event", "wall": "µs wall per event"},
            [
                contender("turnstream", "deltas=exact: one frame an event", "turnstream", events, stack),
                contender("sse-starlette", "the JSON is ready-made", "sse_starlette", events, stack),
                contender("fastapi.sse", "the JSON is ready-made", "fastapi_sse", events, stack),
            ],
            [
                Line(
                    "Replay of 5,000 events, server CPU, against sse-starlette",
                    "sse-starlette",
                    "turnstream",
                    at_least(20),
                ),
                Line("… against fastapi.sse", "fastapi.sse", "turnstream", at_least(40)),
                Line("… wall time, against sse-starlette", "sse-starlette", "turnstream", at_least(20), "wall"),
                Line("… wall time, against fastapi.sse", "fastapi.sse", "turnstream", at_least(40), "wall"),
            ],
            scale.rounds(11),
        )


GROUPS = {"replay": replay}
