"""What a crowd of SSE clients waits for, and what it costs to keep: over real sockets, from a uvicorn process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from benches.harness import Absent, Cost, Group, Line, Scale, Side, Worker

CLIENTS = 1000
EVENTS_A_SECOND = 5
"""To 1,000 clients: a load under which each contender still keeps up, fastapi.sse aside."""

LISTENING_S = 1.6
"""Eight events, 8,000 deliveries a round; the percentiles are each round's own, and the median round counts."""

SETTLING_S = 0.5

RETURNING = 5000
MISSED = 20
"""The most events that a client has missed when it comes back."""

HISTORY = 1000
KINDS = {"turnstream": "turnstream", "bare bytes": "bare", "sse-starlette": "sse_starlette"}


class Crowd(Worker):
    def __init__(self) -> None:
        super().__init__(sys.executable, "-m", "benches.crowd")

    def do(self, what: str, **order: Any) -> dict[str, Any]:
        return self.ask(json.dumps({"do": what, **order}))


def contender(
    name: str, events_a_second: float, history: int, measured: Callable[[Worker, Crowd], Cost]
) -> Side | Absent:
    """A server and a crowd a round: neither is to weigh on the next one."""
    command = (sys.executable, "-m", "benches.live_server", KINDS[name], str(events_a_second), str(history))
    try:
        worker = Worker(*command)
    except RuntimeError as error:
        return Absent(name, str(error))
    does = worker.hello["does"]
    worker.close()

    def run() -> Cost:
        with ThreadPoolExecutor(2) as pool, ExitStack() as closing:
            serving, calling = pool.submit(Worker, *command), pool.submit(Crowd)
            for starting in (serving, calling):  # the crowd is closed first
                closing.callback(starting.result().close)
            return measured(serving.result(), calling.result())

    return Side(name, does, run)


def where(worker: Worker) -> dict[str, Any]:
    return {"port": worker.hello["port"], "path": worker.hello["path"]}


@contextmanager
def latency(scale: Scale) -> Iterator[Group]:
    clients = scale.items(CLIENTS)

    def measured(worker: Worker, crowd: Crowd) -> Cost:
        crowd.do("join", clients=clients, **where(worker))
        crowd.do("listen", seconds=SETTLING_S)
        p50, p99, p999 = crowd.do("listen", seconds=LISTENING_S)["late"]
        return {"p99": p99 * 1e3, "p50": p50 * 1e3, "p999": p999 * 1e3}

    yield Group(
        f"from emit to the client's bytes: {clients} SSE clients, {EVENTS_A_SECOND} events a second",
        {"p99": "ms p99", "p50": "ms p50", "p999": "ms p99.9"},
        [contender(name, EVENTS_A_SECOND, 0, measured) for name in KINDS],
        [
            Line("Emit to client, 1,000 clients, p50", "turnstream", column="p50"),
            Line("… p99", "turnstream"),
            Line("… p99.9", "turnstream", column="p999"),
            Line("… p99, against sse-starlette", "sse-starlette", "turnstream"),
            Line("… p99, against bare pre-encoded bytes", "turnstream", "bare bytes", floor=True),
        ],
        scale.rounds(5),
        warm_up=False,
    )


@contextmanager
def memory(scale: Scale) -> Iterator[Group]:
    clients = scale.items(CLIENTS)

    def measured(worker: Worker, crowd: Crowd) -> Cost:
        # Pays for what is set up once, and leaves.
        crowd.do("join", clients=20, **where(worker))
        worker.ask(20)
        crowd.do("leave")
        before = worker.resident("VmRSS")
        crowd.do("join", clients=clients, **where(worker))
        idle = worker.resident("VmRSS")
        for _ in range(20):
            worker.ask(1)
            crowd.do("listen", seconds=0.1)
        return {"used": (worker.resident("VmRSS") - before) / clients, "idle": (idle - before) / clients}

    yield Group(
        f"resident memory of the server for each of {clients} SSE clients",
        {"used": "KiB each, after 20 events", "idle": "KiB each, before the first"},
        [contender(name, 0, 0, measured) for name in KINDS],
        [
            Line("Resident KiB of the server per SSE connection", "turnstream"),
            Line("… against sse-starlette", "sse-starlette", "turnstream"),
            Line("… against bare pre-encoded bytes", "turnstream", "bare bytes", floor=True),
        ],
        scale.rounds(3),
        warm_up=False,
    )


@contextmanager
def reconnect(scale: Scale) -> Iterator[Group]:
    clients = scale.items(RETURNING)

    def measured(worker: Worker, crowd: Crowd) -> Cost:
        epoch, head = worker.hello["epoch"], worker.hello["head"]
        cpu = worker.cpu()
        crowd.do("join", clients=clients, epoch=epoch, after=[head - MISSED, head], **where(worker))
        worker.ask(1)
        live = crowd.do("hear")
        return {"live": live["seconds"], "cpu": worker.cpu() - cpu, "peak": worker.resident("VmHWM") / 1024}

    yield Group(
        f"{clients} SSE clients come back at once, their Last-Event-ID at most {MISSED} events old; then one new event",
        {"live": "s until each has a new event", "cpu": "s server CPU until then", "peak": "MiB peak resident"},
        [contender(name, 0, HISTORY, measured) for name in KINDS],
        [
            Line("5,000 clients reconnect at once: seconds until all are live", "turnstream"),
            Line("… peak resident MiB of the server", "turnstream", column="peak"),
            Line("… server CPU, against sse-starlette", "sse-starlette", "turnstream", column="cpu"),
            Line("… server CPU, against bare pre-encoded bytes", "turnstream", "bare bytes", column="cpu", floor=True),
            Line("… peak memory, against sse-starlette", "sse-starlette", "turnstream", column="peak"),
        ],
        scale.rounds(3),
        warm_up=False,
    )


GROUPS = {"latency-clients": latency, "memory-clients": memory, "reconnect": reconnect}
