"""What a store costs: appends at each level, a long history opened and replayed."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import turnstream as ts
from benches import streams
from benches.harness import Cost, Group, Line, Scale, Side, at_most

EVENTS = 20_000
HISTORY = 1_000_000
LEVELS: tuple[Literal["memory", "process", "disk"], ...] = ("memory", "process", "disk")


@contextmanager
def appends(scale: Scale) -> Iterator[Group]:
    words = [*streams.tokens(scale.items(EVENTS))]
    with tempfile.TemporaryDirectory() as folder:
        hubs = {"no store": ts.Hub()}
        for level in LEVELS:
            hubs[f"SQLite, {level}"] = ts.Hub(f"sqlite:///{folder}/{level}.db", durability=level)

        def side(name: str, hub: ts.Hub) -> Side:
            def run() -> Cost:
                session = hub.session()
                cpu, wall = time.process_time(), time.perf_counter()
                with session.turn() as turn:
                    for word in words:
                        turn.emit("text_delta", text=word)
                if not hub.flush():
                    raise AssertionError(f"{name}: the store has not caught up")
                scaled = 1e6 / len(words)
                return {
                    "wall": (time.perf_counter() - wall) * scaled,
                    "cpu": (time.process_time() - cpu) * scaled,
                }

            return Side(name, "emit, until all of it is acknowledged", run)

        yield Group(
            f"{len(words)} events appended one by one, all threads' work counted",
            {"wall": "µs per event", "cpu": "µs CPU per event"},
            [side(name, hub) for name, hub in hubs.items()],
            [
                Line(f"Append at level {level}, against no store", f"SQLite, {level}", "no store", floor=True)
                for level in LEVELS
            ],
            scale.rounds(7),
        )


@contextmanager
def history(scale: Scale) -> Iterator[Group]:
    count = scale.items(HISTORY)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/runs.db"
        hub = ts.Hub(url, ts.Limits(max_events=1000))
        session = hub.session("s")
        words = itertools.cycle(streams.tokens(1000))
        while session.head < count:
            with session.turn("go") as turn:
                for _ in range(10_000):
                    turn.emit("text_delta", text=next(words))
        size = session.head

        def side(name: str, does: str, work: Callable[[ts.Session], int], expected: int) -> Side:
            def run() -> Cost:
                start = time.perf_counter()
                seen = work(ts.Hub(url).find("s"))
                if seen < expected:
                    raise AssertionError(f"{name}: {seen} of {expected}")
                return {"s": time.perf_counter() - start}

            return Side(name, does, run)

        def replay(session: ts.Session) -> int:
            return sum(len(batch) for batch in session.read(follow="none").batches(1024))

        yield Group(
            f"a session of {size} events, opened by a new process's hub",
            {"s": "s"},
            [
                side("reopen", "until status and result answer", lambda session: session.head, size),
                side("reopen and replay", "and the 100,000 newest, read as event objects", replay, min(100_000, count)),
            ],
            [
                Line("Reopening 1M events, seconds", "reopen", target=at_most(1)),
                Line("… and replay", "reopen and replay"),
            ],
            scale.rounds(3),
        )


GROUPS = {"stores: appends": appends, "stores: history": history}
