"""Between Rust threads, Python threads and event loops: what must not go wrong there, each by its name.

Exit, fork and dead locks are tried in processes of their own, 40 times where chance has a part, and half of that in
debug mode.
"""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import turnstream as ts

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
SOURCES = ["EventQueue", "Reader"]


class Source:
    """A queue or a session's reader: what both are to one who waits."""

    def __init__(self, kind: str) -> None:
        self.queue: ts.EventQueue[Any] = ts.EventQueue(100_000)
        self.session = ts.Hub().session()
        self.turn = self.session.turn()
        self.is_queue = kind == "EventQueue"
        self.reader = self.session.read(after=self.session.cursor, follow="session")

    def put(self) -> None:
        if self.is_queue:
            self.queue.put(1)
        else:
            self.turn.emit("progress", stage="s")

    def end(self) -> None:
        if self.is_queue:
            self.queue.close()
        else:
            self.session.close()

    def iterate(self) -> Any:
        return aiter(self.queue) if self.is_queue else self.reader


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    return Source(request.param)


@pytest.fixture
async def debug(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The running loop, and those that are made from now on, are in debug mode, or are not."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1" if request.param else "")
    asyncio.get_running_loop().set_debug(request.param)
    return bool(request.param)


in_debug_mode_too = pytest.mark.parametrize("debug", [False, True], ids=["", "debug"], indirect=True)


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


# --- one loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True], ids=["", "traced"])
@in_debug_mode_too
def test_tuple_payloads(traced: bool, debug: bool, loop_factory: LoopFactory) -> None:
    """What `StopIteration` would unpack or raise comes through whole; a tracing interpreter passes the slots by."""
    cancelled = asyncio.CancelledError()
    payloads = [(), (1,), (1, 2), ((),), StopIteration(1), StopAsyncIteration(), cancelled, KeyError, {}, 0]

    async def through() -> list[Any]:
        queue: ts.EventQueue[Any] = ts.EventQueue()
        got: list[Any] = []
        for one in payloads:
            parked = asyncio.ensure_future(queue.aget())
            await settled()
            for _ in range(3):
                queue.put(one)
            got += [await parked, await anext(aiter(queue)), await queue.aget()]
        for one in payloads:
            queue.put(one)
        queue.close()
        return got + [item async for item in queue]

    steps: list[str] = []

    def trace(_frame: FrameType, event: str, _: Any) -> None:
        steps.append(event)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.get_loop().get_debug() == debug
        if traced:
            sys.settrace(trace)
        try:
            got = runner.run(through())
        finally:
            sys.settrace(None)
    expected = [one for one in payloads for _ in range(3)] + payloads
    assert [id(one) for one in got] == [id(one) for one in expected]
    assert bool(steps) == traced


@in_debug_mode_too
async def test_a_thousand_timeouts_lose_nothing(source: Source, debug: bool) -> None:
    """Waits that time out, at any moment, while a thread puts: what comes is all of it, in order."""
    iterator, times, count = source.iterate(), (1e-6, 1e-5, 1e-4), 2000
    for at in range(1000):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(iterator), times[at % 2])

    def produce() -> None:
        for _ in range(count):
            source.put()
        source.end()

    thread = threading.Thread(target=produce)
    thread.start()
    taken: list[Any] = []
    while True:
        try:
            taken.append(await asyncio.wait_for(anext(iterator), times[len(taken) % 3]))
        except TimeoutError:
            continue
        except StopAsyncIteration:
            break
    thread.join()
    if source.is_queue:
        assert taken == [1] * count
    else:
        assert [event.seq for event in taken] == list(range(2, count + 4))


@in_debug_mode_too
async def test_starvation(source: Source, debug: bool) -> None:
    """A source that is always ready lets other tasks run, once in 128 items."""
    assert asyncio.get_running_loop().get_debug() == debug
    for _ in range(5000):
        source.put()
    ticks, taken = 0, 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async for _ in source.iterate():
        taken += 1
        if taken == 5000:
            break
    ticker.cancel()
    assert ticks >= 5000 // 128


@in_debug_mode_too
async def test_cancel_while_parked(source: Source, debug: bool) -> None:
    """A cancelled wait took nothing: the next one gets what came meanwhile."""
    iterator = source.iterate()
    for _ in range(100):
        task = asyncio.ensure_future(anext(iterator))
        await settled()
        source.put()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(anext(iterator), 30)


@in_debug_mode_too
async def test_two_waiters(source: Source, debug: bool) -> None:
    """The second waiter on one iterator is told; the first still gets the item."""
    iterator = source.iterate()
    first = asyncio.ensure_future(anext(iterator))
    await settled()
    with pytest.raises(ts.ReaderBusy):
        await anext(iterator)
    source.put()
    assert await asyncio.wait_for(first, 30)


@in_debug_mode_too
async def test_a_wait_that_is_left_leaves_no_future_behind(source: Source, debug: bool) -> None:
    """The loop's doorbell keeps nothing of a reader that is gone."""
    futures = []
    for _ in range(10):
        iterator = aiter(source.queue) if source.is_queue else source.session.read(after=source.session.cursor)
        task = asyncio.ensure_future(anext(iterator))
        await settled()
        futures.append(weakref.ref(task._fut_waiter))  # type: ignore[attr-defined]
        task.cancel()
        await asyncio.wait([task])
        del task, iterator
    gc.collect()
    assert [future() for future in futures] == [None] * 10


# --- several loops ----------------------------------------------------------------------------------------------------


@in_debug_mode_too
def test_loop_identity(source: Source, debug: bool, loop_factory: LoopFactory) -> None:
    """One reader, used under one loop after the other, parks on the loop that runs."""
    iterator = source.iterate()

    async def wait() -> None:
        task = asyncio.ensure_future(anext(iterator))
        await settled()
        threading.Thread(target=source.put).start()
        await asyncio.wait_for(task, 30)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(iterator), 0.001)

    for step in (wait, give_up, wait, give_up):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(step())


@in_debug_mode_too
def test_closed_loop(source: Source, debug: bool, loop_factory: LoopFactory) -> None:
    """News for a task whose loop was closed under it disturbs nobody, and is not lost."""
    iterator = source.iterate()
    loop = loop_factory()

    async def park() -> None:
        anext(iterator).send(None) if source.is_queue else next(anext(iterator))

    loop.run_until_complete(park())
    loop.close()
    source.put()

    async def read() -> None:
        await asyncio.wait_for(anext(source.iterate() if source.is_queue else iterator), 30)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if source.is_queue:
            runner.run(read())
        else:
            with pytest.raises(ts.ReaderBusy):  # the reader still waits there; a second one does not
                runner.run(read())


@in_debug_mode_too
def test_gc_cycles(source: Source, debug: bool, loop_factory: LoopFactory) -> None:
    """A task parked on a source and everything it holds go when the loop goes."""

    class Held:
        pass

    async def hold() -> weakref.ref[Held]:
        held = Held()

        async def park(held: Held, iterator: Any) -> None:
            async for _ in iterator:
                pass

        task = asyncio.create_task(park(held, source.iterate()))
        await settled()
        task.cancel()
        await asyncio.wait([task])
        return weakref.ref(held)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        held = runner.run(hold())
        gc.collect()
        assert held() is None


class Unwatching(asyncio.SelectorEventLoop):
    """A loop that watches no descriptors, as some have it."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


@in_debug_mode_too
def test_a_loop_without_add_reader(source: Source, debug: bool) -> None:
    """It is called, with `call_soon_threadsafe`; once closed, it is not, and nobody minds."""
    taken = 0

    async def read() -> None:
        nonlocal taken
        async for _ in source.iterate():
            taken += 1
            (here if taken % 2 else there).release()

    def produce() -> None:
        for number in range(200):
            source.put()
            (here, there)[number % 2].acquire()
        source.end()

    here, there = threading.Semaphore(0), threading.Semaphore(0)
    thread = threading.Thread(target=produce)
    with asyncio.Runner(loop_factory=Unwatching) as runner:
        thread.start()
        runner.run(asyncio.wait_for(read(), 20))
    thread.join()
    assert taken >= 200


# --- locks ------------------------------------------------------------------------------------------------------------


def test_lock_held_while_attaching_close(subprocess_python: Callable[..., list[str]]) -> None:
    """A reader is closed by a thread while its task is inside it, in Python code: nobody waits for the other's lock."""
    subprocess_python("""
import asyncio, threading, time
import turnstream as ts

armed, inside, closed = threading.Event(), threading.Event(), threading.Event()

class Slow(asyncio.SelectorEventLoop):
    def create_future(self):
        if armed.is_set() and not inside.is_set():
            inside.set()
            assert closed.wait(30)
        return super().create_future()

session = ts.Hub().session()
session.turn()

def close():
    assert inside.wait(30)
    reader.close()
    closed.set()

async def read():
    if isinstance(reader, ts.FrameReader):
        await anext(reader)  # the frames' own beginning
    thread = threading.Thread(target=close)
    thread.start()
    armed.set()
    async for item in reader:
        raise AssertionError(item)
    armed.clear()
    thread.join()

for make in (session.read, session.frames):
    inside.clear(), closed.clear()
    reader = make(after=session.cursor, follow="session")
    with asyncio.Runner(loop_factory=Slow) as runner:
        runner.run(read())
""")


def test_lock_held_while_attaching_feed(subprocess_python: Callable[..., list[str]]) -> None:
    """Threads that feed one stream into a turn that has ended: each gets its error, none stops another."""
    subprocess_python(
        """
import threading
import turnstream as ts

for _ in range(200):
    turn = ts.Hub().session().turn()
    feed = turn.normalizer("openai-chat")
    turn.complete()
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\\n\\n' * 50
    start = threading.Barrier(4)
    def work(call):
        start.wait()
        for _ in range(20):
            try: call()
            except ts.TurnstreamError: pass
    error = {"message": "m", "code": "c"}
    calls = [lambda: feed.feed(chunk), feed.finish, lambda: feed.provider, lambda: feed.stop(error)]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
""",
        2,
        timeout_s=60,
    )


def test_lock_held_while_dropping(subprocess_python: Callable[..., list[str]]) -> None:
    """Destructors that come back into the queue, from every way in which it lets go of an item."""
    subprocess_python("""
import gc, threading, warnings
import turnstream as ts
warnings.simplefilter("ignore")

class Item:
    def __init__(self, queue): self.queue = queue
    def __del__(self):
        seen.append(self.queue.qsize())
        self.queue.put_nowait(0) if self.queue.qsize() < self.queue.maxsize else self.queue.get_nowait()

for overflow in ("drop_oldest", "drop_newest", "block", "merge"):
    queue, seen = ts.EventQueue(2, overflow), []
    def work():
        for _ in range(500):
            try: queue.put_nowait(Item(queue))
            except ts.QueueFull: pass
            try: queue.get_nowait()
            except ts.QueueEmpty: pass
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    queue.close(discard=True)
    assert seen
""")


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_ctrl_c_ends_every_wait_that_blocks(subprocess_python: Callable[..., list[str]]) -> None:
    """And leaves no waiter, and no item, behind."""
    subprocess_python("""
import os, signal, threading, time
import turnstream as ts

queue, full, session = ts.EventQueue(), ts.EventQueue(1), ts.Hub().session()
full.put(1)
turn, lagging = session.turn(), session.read(pace=True)
for _ in range(300):
    turn.emit("progress", stage="s")
idle = session.read(after=session.cursor)
stuck = session.subscribe(lambda event: threading.Event().wait())

def interrupt(asleep):
    def run():
        while not asleep():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=run, daemon=True).start()

def queued(queue, name):
    return lambda: queue.statistics()[name] == 1

def a_moment():
    time.sleep(0.1)  # nothing tells who waits for a session
    return True

for wait, asleep in [
    (queue.get, queued(queue, "waiting_getters")),
    (lambda: queue.get(30), queued(queue, "waiting_getters")),
    (lambda: next(iter(queue)), queued(queue, "waiting_getters")),
    (lambda: next(iter(queue.batches())), queued(queue, "waiting_getters")),
    (lambda: full.put(2), queued(full, "waiting_putters")),
    (lambda: next(iter(idle)), a_moment),
    (idle.get, a_moment),
    (lambda: next(iter(idle.batches())), a_moment),
    (turn.wait_ready, a_moment),
    (stuck.wait_drained, a_moment),
]:
    interrupt(asleep)
    try:
        raise SystemExit(f"{wait} gave {wait()}")
    except KeyboardInterrupt:
        pass
assert queue.statistics()["waiting_getters"] == full.statistics()["waiting_putters"] == 0
assert full.get() == 1 and full.qsize() == 0
""")


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_fork_after_import(subprocess_python: Callable[..., list[str]]) -> None:
    """The child of a fork, made while the parent streams: what is the parent's is refused, and new things work."""
    out = subprocess_python(
        """
import asyncio, contextlib, gc, os, sys, threading
import turnstream as ts

hub, queue, readers = ts.Hub(), ts.EventQueue(10), []
session = hub.session("a")
turn = session.turn()
emit, reader, frames, feed = session.emitter(), session.read(), session.frames(), turn.normalizer("openai-chat")
waits = [queue.aget(), queue.aput(1), queue.batches(), aiter(queue)]
going = True

def stream():
    while going:
        feed.feed(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\\n\\n' * 500)  # detached

def first(iterator):
    async def take():
        await anext(iterator)
    return lambda: asyncio.run(take())

refused = {
    "hub": lambda: hub.session("b"), "find": lambda: hub.find("a"), "sessions": hub.sessions,
    "delete": lambda: hub.delete("a"), "hub.close": hub.close, "emit": lambda: turn.emit("progress", stage="s"),
    "emitter": lambda: emit("progress", stage="s"),
    "read": session.read, "frames": session.frames, "status": session.status, "messages": session.messages,
    "result": session.result, "statistics": session.statistics, "head": lambda: session.head,
    "cursor": lambda: session.cursor, "earliest": lambda: session.earliest, "cancel": session.cancel,
    "session.close": session.close, "ended": lambda: turn.ended, "cancelled": lambda: turn.cancelled,
    "complete": turn.complete, "feed": lambda: feed.feed(b"x"), "finish": feed.finish,
    "next": lambda: next(iter(reader)), "next batch": lambda: next(iter(reader.batches())),
    "next frame": lambda: next(iter(frames)), "anext": first(reader), "anext frame": first(frames),
    "put": lambda: queue.put(1), "put_nowait": lambda: queue.put_nowait(1),
    "aput": lambda: queue.aput(1), "get": queue.get, "get_nowait": queue.get_nowait, "aget": queue.aget,
    "iter": lambda: iter(queue), "aiter": lambda: aiter(queue), "batches": queue.batches, "queue.close": queue.close,
    "qsize": queue.qsize, "closed": lambda: queue.closed, "queue.statistics": queue.statistics,
    "await get": lambda: waits[0].send(None), "await put": lambda: waits[1].send(None),
    "await batch": lambda: waits[2].send(None), "await item": lambda: waits[3].send(None),
    "turn.ready": turn.ready, "should_wait": lambda: feed.should_wait,
}

def child():
    for name, call in refused.items():
        try:
            call()
        except ts.ForkedProcess:
            continue
        except BaseException as error:
            print(name, repr(error))
        else:
            print(name, "worked")
    repr(session), repr(turn), repr(queue), repr(hub)
    readers.clear()  # the session's lock may be held for ever: nobody asks for it
    gc.collect()

    async def fresh():
        queue = ts.EventQueue(2)
        thread = threading.Thread(target=lambda: [queue.put(number) for number in range(100)] + [queue.close()])
        thread.start()
        assert [number async for number in queue] == list(range(100))
        thread.join()
        session = ts.Hub().session()
        with session.turn() as turn:
            turn.emit("progress", stage="s")
        assert len([event async for event in session.read()]) == 3
    asyncio.run(fresh())

async def main():
    global going
    async def park(source):
        async for _ in source:
            pass
    parked = [asyncio.create_task(park(source)) for source in (ts.EventQueue(), session.read(follow="session"))]
    for pace in (False, True):
        readers.append(session.read(after=session.cursor, follow="session", pace=pace))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(readers[-1]), 0.001)
    thread = threading.Thread(target=stream)
    thread.start()
    await asyncio.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        asyncio._set_running_loop(None)
        threading.Thread(target=child).start()
        return
    _, status = os.waitpid(pid, 0)
    going = False
    thread.join()
    for task in parked:
        task.cancel()
    assert status == 0, status

asyncio.run(main())
""",
        40,
    )
    assert out == [""] * 40


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop", "Unwatching"])
def test_interpreter_exit_while_streaming(subprocess_python: Callable[..., list[str]], loop: str) -> None:
    """The main thread leaves while daemon threads emit, put, feed and wait: exit status 0, whatever they are at."""
    subprocess_python(
        f"""
import asyncio, sys, threading, time
import uvloop
import turnstream as ts

class Late:
    sleep = staticmethod(time.sleep)
    def __del__(self):
        self.sleep(0.15)  # the threads come back to an interpreter that is going

sys.late = Late()
queue, full, empty, session = ts.EventQueue(100), ts.EventQueue(1), ts.EventQueue(), ts.Hub().session()
turn = session.turn()
feed = turn.normalizer("openai-chat")
full.put(1)

def forever(call):
    def run():
        while True:
            call()
    threading.Thread(target=run, daemon=True).start()

forever(lambda: queue.put(2))
forever(lambda: full.put(2))
forever(empty.get)
forever(lambda: turn.emit("text_delta", text="x"))
forever(lambda: feed.feed(b'data: {{"choices":[{{"index":0,"delta":{{"content":"x"}}}}]}}\\n\\n' * 50))
forever(lambda: list(session.read(after=session.cursor, follow="session")))

async def main():
    async for _ in queue:
        if (taken := queue.statistics()["taken"]) >= 300:
            break
    async for event in session.read():
        if (event.seq or 0) > 300:
            break
    asyncio.create_task(anext(aiter(empty))) , asyncio.create_task(empty.aget())
    await asyncio.sleep(0)

class Unwatching(asyncio.SelectorEventLoop):
    def add_reader(self, *_):
        raise NotImplementedError

def elsewhere():
    async def read():
        async for _ in session.read(follow="session"):
            pass
    asyncio.run(asyncio.wait_for(read(), 60)) if {loop!r} != "Unwatching" else Unwatching().run_until_complete(read())

threading.Thread(target=elsewhere, daemon=True).start()
with asyncio.Runner(loop_factory={loop}) as runner:
    runner.run(main())
""",
        40,
    )


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_interpreter_exit_while_code_of_others_runs_in_an_emit(subprocess_python: Callable[..., list[str]]) -> None:
    """A payload's own methods, and a redaction hook: four of five exits were aborts where nothing waited for them."""
    out = subprocess_python(
        """
import atexit, collections, threading
atexit.register(lambda: last_words())  # runs after what turnstream registers
import turnstream as ts

def redact(event):
    for _ in range(100):
        pass
    return event

class Payload(collections.UserDict):
    pass

sessions = [ts.Hub(redact=hook).session() for hook in (redact, None)]
turns = [session.turn() for session in sessions]

def emit(session):
    emit = session.emitter()
    while True:
        emit("custom", Payload(name="x", data=Payload({str(at): object() for at in range(20)})))

def last_words():
    before = sessions[0].head
    turns[0].emit("text_delta", text="bye")  # the thread that ends the interpreter may go on
    last = list(sessions[0].read(after=f"{sessions[0].epoch}.{before}", follow="none"))
    print([event.text for event in last if isinstance(event, ts.TextDelta)])

for session in sessions:
    threading.Thread(target=emit, args=[session], daemon=True).start()
for session in sessions:
    session.read(follow="session").get()
""",
        20,
    )
    assert out == ["['bye']\n"] * 20
