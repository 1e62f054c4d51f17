"""What a store costs: appends at each level, the way to another worker, a long history opened and replayed."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import turnstream as ts
from benches import streams
from benches.harness import Absent, Cost, Group, Line, Scale, Side, at_least, at_most

EVENTS = 20_000
HISTORY = 1_000_000
AT_ONCE = 8
NAIVE = 2000
"""Events of a round of the naive side, at one round trip each."""
HOPS = 300
LEVELS: tuple[Literal["memory", "process", "disk"], ...] = ("memory", "process", "disk")


@contextmanager
def redis_server() -> Iterator[str | None]:
    """The URL of a Redis server without persistence, for as long as it is needed; None where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([program, *options, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}/0"
            for _ in range(200):
                try:
                    ts.Hub(url).close()
                    break
                except ts.StoreUnavailable:
                    time.sleep(0.05)
            yield url
        finally:
            server.kill()
            server.wait()


NO_SERVER = "redis-server is not installed"


def naive_side(url: str) -> Side | Absent:
    """What is written by hand: an XADD for each event, through redis-py."""
    try:
        import redis
    except ImportError:
        return Absent("XADD per event", "redis-py is not installed")
    client = redis.Redis.from_url(url)
    words = [*streams.tokens(NAIVE)]

    def run() -> Cost:
        client.delete("naive")
        start = time.perf_counter()
        for seq, word in enumerate(words):
            client.xadd("naive", {"event": json.dumps({"type": "text_delta", "seq": seq, "text": word})})
        return {"rate": NAIVE / (time.perf_counter() - start)}

    return Side("XADD per event", "json.dumps and XADD, through redis-py, one round trip each", run)


@contextmanager
def redis_appends(scale: Scale) -> Iterator[Group]:
    words = [*streams.tokens(scale.items(EVENTS))]
    chunks = streams.openai_chat(len(words))
    pieces = [b"".join(chunks[at : at + AT_ONCE]) for at in range(0, len(chunks), AT_ONCE)]

    def rated(hub: ts.Hub, emit: Callable[[ts.Turn], None]) -> Callable[[], Cost]:
        def run() -> Cost:
            session = hub.session()
            start = time.perf_counter()
            with session.turn() as turn:
                emit(turn)
            while not hub.flush():
                pass
            rate = len(words) / (time.perf_counter() - start)
            if session.head < len(words):
                raise AssertionError(f"{session.head} of {len(words)} events")
            return {"rate": rate}

        return run

    def one_by_one(turn: ts.Turn) -> None:
        for word in words:
            turn.emit("text_delta", text=word)

    def many(turn: ts.Turn) -> None:
        feed = turn.normalizer("openai-chat")
        for piece in pieces:
            feed.feed(piece)

    with redis_server() as url:
        names = ("Redis, one a call", f"Redis, {AT_ONCE} a call")
        sides: list[Side | Absent]
        if url is None:
            sides = [Absent(name, NO_SERVER) for name in (*names, "XADD per event")]
        else:
            hub = ts.Hub(url)
            sides = [
                Side(names[0], "emit, until the server has acknowledged all", rated(hub, one_by_one)),
                Side(
                    names[1],
                    f"a feed of {AT_ONCE} chunks' bytes, until the server has acknowledged all",
                    rated(hub, many),
                ),
                naive_side(url),
            ]
        yield Group(
            f"{len(words)} events into one session of a Redis server on this machine",
            {"rate": "events/s"},
            sides,
            [
                Line("Events/s into Redis, one a call", names[0], target=at_least(50_000)),
                Line(f"Events/s into Redis, {AT_ONCE} a call", names[1], target=at_least(150_000)),
                Line("… against an XADD per event through redis-py", names[0], "XADD per event", at_least(5)),
            ],
            scale.rounds(7),
        )


WRITER = """
import sys, time, turnstream as ts
session = ts.Hub(sys.argv[1]).session("s")
with session.turn("go") as turn:
    print("ready", flush=True)
    for _ in sys.stdin:
        turn.emit("custom", name="sent", data=time.monotonic_ns())
"""


@contextmanager
def elsewhere(scale: Scale) -> Iterator[Group]:
    """Another process emits when it is told to: what lies between that and the event in our hands, by one clock."""
    count = scale.items(HOPS)

    def side(name: str, url: str, after: ExitStack) -> Side:
        writer = after.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        after.callback(writer.kill)
        if writer.stdin is None or writer.stdout is None or writer.stdout.readline() != "ready\n":
            raise AssertionError(f"{name}: the writer has not started")
        ask, session = writer.stdin, ts.Hub(url).find("s")

        def run() -> Cost:
            waited: list[float] = []
            with session.read(after=session.cursor) as reader:
                events = iter(reader)
                for _ in range(count):
                    time.sleep(0.01)  # as a model's tokens come: one at a time
                    ask.write("\n")
                    ask.flush()
                    event = next(events)
                    waited.append((time.monotonic_ns() - event.to_dict()["data"]) / 1e6)
            return {"p50": statistics.median(waited), "p99": statistics.quantiles(waited, n=100)[98]}

        return Side(name, "emit there, read here", run)

    with ExitStack() as after:
        folder, url = after.enter_context(tempfile.TemporaryDirectory()), after.enter_context(redis_server())
        yield Group(
            f"{count} events, one every 10 ms, from one process to a reader in another",
            {"p50": "ms p50", "p99": "ms p99"},
            [
                side("SQLite", f"sqlite:///{folder}/runs.db", after),
                side("Redis", url, after) if url else Absent("Redis", NO_SERVER),
            ],
            [
                Line(f"To another worker over {name}, {column}, ms", name, column=column)
                for name in ("SQLite", "Redis")
                for column in ("p50", "p99")
            ],
            scale.rounds(5),
        )


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

    def fill(hub: ts.Hub, events: int) -> int:
        session = hub.session("s")
        words = itertools.cycle(streams.tokens(1000))
        while session.head < events:
            with session.turn("go") as turn:
                for _ in range(10_000):
                    turn.emit("text_delta", text=next(words))
        return session.head

    def side(name: str, does: str, work: Callable[[], int], expected: int) -> Side:
        def run() -> Cost:
            start = time.perf_counter()
            seen = work()
            if seen < expected:
                raise AssertionError(f"{name}: {seen} of {expected}")
            return {"s": time.perf_counter() - start}

        return Side(name, does, run)

    def replay(session: ts.Session) -> int:
        return sum(len(batch) for batch in session.read(follow="none").batches(1024))

    def sides(store: str, url: str) -> list[Side | Absent]:
        size = fill(ts.Hub(url, ts.Limits(max_events=1000)), count)
        return [
            side(f"reopen, {store}", "until status and result answer", lambda: ts.Hub(url).find("s").head, size),
            side(
                f"replay, {store}", "opened, and all of it read as objects", lambda: replay(ts.Hub(url).find("s")), size
            ),
        ]

    with tempfile.TemporaryDirectory() as folder, redis_server() as url:
        memory = ts.Hub(limits=ts.Limits(max_events=2 * count, max_bytes=2 << 30))
        fill(memory, count)
        there = sides("Redis", url) if url else [Absent(f"{what}, Redis", NO_SERVER) for what in ("reopen", "replay")]
        yield Group(
            f"a session of {count} events, opened by a new process's hub",
            {"s": "s"},
            [
                side("replay, memory", "all of it read as objects", lambda: replay(memory.find("s")), count),
                *sides("SQLite", f"sqlite:///{folder}/runs.db"),
                *there,
            ],
            [
                Line("Reopening 1M events in SQLite, seconds", "reopen, SQLite", target=at_most(1)),
                Line("Reopening 1M events in Redis, seconds", "reopen, Redis", target=at_most(1)),
                Line("Replay from SQLite, against memory", "replay, SQLite", "replay, memory", floor=True),
                Line("Replay from Redis, against memory", "replay, Redis", "replay, memory", floor=True),
            ],
            scale.rounds(3),
        )


GROUPS = {
    "stores: appends": appends,
    "stores: Redis": redis_appends,
    "stores: another worker": elsewhere,
    "stores: history": history,
}
