"""What must stay small: growth with the length of a message, memory of an idle reader, import time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import turnstream as ts
from benches import streams
from benches.harness import Cost, Group, Line, Scale, Side, at_most, timed

READERS = 10_000
UNWANTED = ("fastapi", "starlette", "pydantic", "ray", "redis", "uvicorn", "httpx")


@contextmanager
def growth(scale: Scale) -> Iterator[Group]:
    def side(deltas: int) -> Side:
        pieces = streams.pieces(streams.openai_chat(deltas), 4096)
        hub = ts.Hub(limits=ts.Limits(max_events=1_000_000, max_bytes=1 << 30))

        def run() -> None:
            session = hub.session()
            turn = session.turn()
            feed = turn.normalizer("openai-chat")
            for piece in pieces:
                feed.feed(piece)
            feed.finish()
            turn.complete()
            frames = sum(frames.count(b"\nevent: text_delta\n") for frames in session.frames(deltas="exact"))
            hub.delete(session.id)
            if frames != deltas:
                raise AssertionError(f"{frames} of {deltas} deltas came out")

        return Side(f"{deltas} deltas", "one message: feed → log, folded → SSE frames", lambda: timed(run, 1, unit=1e3))

    small, large = scale.items(10_000), scale.items(100_000)
    yield Group(
        "one message, ten times as long",
        {"cpu": "ms CPU"},
        [side(small), side(large)],
        [
            Line(
                "100,000 deltas in one message, over 10,000",
                f"{large} deltas",
                f"{small} deltas",
                at_most(11),
                floor=True,
            )
        ],
        scale.rounds(7),
    )


def script(code: str) -> list[float]:
    """Numbers that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return [float(word) for word in done.stdout.split()]


PARKED = """
import asyncio, gc, os
import turnstream as ts

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

async def main():
    loop = asyncio.get_running_loop()
    session = ts.Hub().session()
    session.turn()

    def future():
        return loop.create_future()

    def reader():
        return session.read(after=session.cursor, follow="session")

    async def wait(source):
        if KIND is future:
            await source
        async for _ in source:
            pass

    async def park():
        before = resident()
        held = [KIND() for _ in range(COUNT)]
        made = resident()
        tasks = [asyncio.ensure_future(wait(one)) for one in held]
        for _ in range(3):
            await asyncio.sleep(0)
        return (made - before) / COUNT, (resident() - before) / COUNT, held, tasks

    first = await park()    # pays for what is set up once
    idle, parked, *second = await park()
    print(idle, parked, flush=True)
    os._exit(0)             # so many tasks need no farewell

asyncio.run(main())
"""


@contextmanager
def memory(scale: Scale) -> Iterator[Group]:
    def park(kind: str) -> list[float]:
        return script(PARKED.replace("KIND", kind).replace("COUNT", str(scale.items(READERS))))

    def run() -> Cost:
        idle, parked = park("reader")
        _, baseline = park("future")
        return {"idle": idle, "parked": parked - baseline}

    yield Group(
        f"resident memory per idle reader, of {scale.items(READERS)} more on one session",
        {"idle": "bytes each, open", "parked": "bytes each, waiting, less a task that waits on a future"},
        [Side("reader", "session.read(), then `async for` in a task of its own", run)],
        [
            Line("Resident bytes per open reader", "reader", target=at_most(2048)),
            Line("… per waiting reader, without its task", "reader", target=at_most(2048), column="parked"),
        ],
        scale.rounds(5),
    )


IMPORT = f"""
import sys, time
cpu, wall = time.process_time(), time.perf_counter()
import MODULE
print((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3)
unwanted = [name for name in {UNWANTED!r} if name in sys.modules]
assert not unwanted, unwanted
"""


@contextmanager
def importing(scale: Scale) -> Iterator[Group]:
    def side(module: str, does: str) -> Side:
        def run() -> Cost:
            cpu, wall = script(IMPORT.replace("MODULE", module))
            return {"cpu": cpu, "wall": wall}

        return Side(f"import {module}", does, run)

    yield Group(
        "import in a fresh interpreter, files cached",
        {"wall": "ms", "cpu": "ms CPU"},
        [side("turnstream", f"none of {', '.join(UNWANTED)} comes with it"), side("asyncio", "for scale")],
        [Line("`import turnstream`, milliseconds", "import turnstream", target=at_most(60))],
        scale.rounds(11),
    )


GROUPS = {"growth": growth, "memory": memory, "import": importing}
