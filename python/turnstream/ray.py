"""Ray's transports: how a blob gets from a task or actor to the process that has the session.

Owns what is Ray's: the mailbox actor, `ray.util.queue.Queue`, streaming generators, and what the death of a task, an
actor or a node looks like. Refuses to know what is sent. Needs `pip install turnstream[ray]`. Invariants:

1. A mailbox takes what there is room for; who sends more waits. One actor holds the mailboxes of a driver, on its node,
   and ends with it.
2. What was taken is given once, in order; a call that fails is repeated by the emitter, and the session knows repeats.
3. A closed box says so to everybody who still sends. It closes with its pump, or when it is forgotten where it was made
   and nobody else was given it to pump.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, TaskCancelledError
from ray.util.queue import Empty, Full, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from turnstream.errors import ProducerLost, UnsupportedSource
from turnstream.remote.emitter import Options, Outbox, RemoteEmitter, SinkClosed

__all__ = ["Mailbox", "astream", "stop_all", "stream", "transport_of", "unavailable", "watch"]

POLL_S = 5.0
"""How long one call to the mailbox actor waits for news."""
ROOM_S = 1.0
"""How long one call to a queue waits for room; between two, an emitter sees that it was cancelled."""
PING_S = 0.5
"""Pause between two questions whether an actor lives."""
TOMBSTONES = 10_000
"""Closed boxes that the actor remembers, so that a late sender is told instead of filling a new one."""


def unavailable() -> str | None:
    """Why nothing can run on Ray now; None where it can."""
    import os

    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return None
    return "ray is not started: call ray.init()"


# --- the mailbox ------------------------------------------------------------------------------------------------------


class _Box:
    def __init__(self) -> None:
        self.items: deque[tuple[Any, int]] = deque()
        self.weight = 0
        self.reason = ""
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.closed = asyncio.Event()

    def empty(self) -> list[Any]:
        items = [item for item, _ in self.items]
        self.items.clear()
        self.weight = 0
        self.news.clear()
        self.room.set()
        return items


class _Post:
    """The actor that holds a driver's mailboxes."""

    def __init__(self) -> None:
        self._boxes: dict[str, _Box] = {}
        self._closed: dict[str, str] = {}

    def _box(self, name: str) -> _Box:
        return self._boxes.setdefault(name, _Box())

    async def put(self, name: str, item: Any, weight: int, capacity: int) -> str:
        """Takes the item once there is room; the reason where the box is closed."""
        if name in self._closed:
            return self._closed[name]
        box = self._box(name)
        while box.weight and box.weight + weight > capacity and not box.reason:
            box.room.clear()
            await box.room.wait()
        if not box.reason:
            box.items.append((item, weight))
            box.weight += max(weight, 1)  # what holds no event holds room all the same
            box.news.set()
        return box.reason

    async def take(self, name: str, wait_s: float) -> list[Any]:
        """All that is there; waits for something."""
        if name in self._closed:
            return []
        box = self._box(name)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await box.news.wait()
        return box.empty()

    async def watch(self, name: str) -> str:
        """Waits until the box is closed; why it is."""
        if name not in self._closed:
            await self._box(name).closed.wait()
        return self._closed.get(name, "closed")

    async def close(self, name: str, reason: str) -> list[Any]:
        """Closes the box; what it held."""
        if name in self._closed:
            return []
        if len(self._closed) >= TOMBSTONES:
            del self._closed[next(iter(self._closed))]
        self._closed[name] = reason
        box = self._boxes.pop(name, None) or _Box()
        box.reason = reason
        left = box.empty()
        box.news.set()
        box.closed.set()
        return left

    async def held(self, name: str) -> int:
        """How many events the box holds."""
        return self._box(name).weight if name not in self._closed else 0


_post: tuple[str, Any] | None = None
_post_lock = threading.Lock()
_forgotten: SimpleQueue[tuple[Any, str]] = SimpleQueue()
"""Boxes to close: the collector, which may not call Ray, puts; a thread takes."""


def _close_forgotten() -> None:
    while True:
        post, name = _forgotten.get()
        with suppress(Exception):  # Ray is shut down, and the box with it
            post.close.remote(name, "nobody reads what is sent")


def _own_post() -> Any:
    """This driver's actor: made at first use, and anew after `ray.shutdown()`."""
    global _post  # noqa: PLW0603, one per process is the point
    with _post_lock:
        if _post is None:
            threading.Thread(target=_close_forgotten, name="turnstream-mailboxes", daemon=True).start()
        if not ray.is_initialized():
            ray.init()
        context = ray.get_runtime_context()
        life = f"{context.get_job_id()} {context.get_worker_id()}"
        if _post is None or _post[0] != life:
            here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True)
            made = ray.remote(_Post).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote()
            _post = life, made
        return _post[1]


class Mailbox:
    """A bounded box between processes, picklable: `put` on any side, `session.pump(mailbox)` where the session is.

    On full `put` waits. After the pump's end it raises SinkClosed; also once the box is forgotten where it was made,
    with no pump and no copy of it elsewhere that could be pumped.
    """

    def __init__(self, capacity: int = 1000, *, name: str | None = None, post: Any = None) -> None:
        self.name: str = name or uuid.uuid4().hex
        self.capacity = capacity
        self._post = _own_post() if post is None else post
        self._keep: Callable[[], object] | None = None
        if name is None:
            finalizer = weakref.finalize(self, _forgotten.put, (self._post, self.name))
            finalizer.atexit = False  # Ray goes then, and all boxes
            self._keep = finalizer.detach

    def put(self, item: Any, weight: int = 1, *, timeout_s: float | None = None) -> bool:
        """Puts an item for the pump: a triple, None for the end, a batch. False: there was no room in time, and the
        item may still be put."""
        return _Sending(self).put(item, weight, timeout_s)

    def sink(self) -> _MailboxSink:
        """The producer's end, picklable."""
        return _MailboxSink(self)

    def source(self, expected: Callable[[], int]) -> _MailboxSource:
        """The pump's end; `expected` says how many producers were sent away with a sink."""
        return _MailboxSource(self, expected)

    def keep(self) -> None:
        """From now on the box outlives this object."""
        if self._keep is not None:
            self._keep()

    def address(self) -> tuple[int, str, Any]:
        """What an object elsewhere needs to send to it."""
        return self.capacity, self.name, self._post

    def __reduce__(self) -> tuple[Any, ...]:
        self.keep()
        return _mailbox, self.address()

    def __repr__(self) -> str:
        return f"<Mailbox {self.name[:8]}>"


def _mailbox(capacity: int, name: str, post: Any) -> Mailbox:
    return Mailbox(capacity, name=name, post=post)


def _mailbox_sink(capacity: int, name: str, post: Any) -> _MailboxSink:
    return _MailboxSink(_mailbox(capacity, name, post))


class _Sending:
    """One call to the actor at a time; a call that takes long is waited for again, never made twice."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box
        self._pending: concurrent.futures.Future[str] | None = None

    def begin(self, item: Any, weight: int) -> None:
        box = self._box
        self._pending = box._post.put.remote(box.name, item, weight, box.capacity).future()

    def put(self, item: Any, weight: int, timeout_s: float | None) -> bool:
        if self._pending is None:
            self.begin(item, weight)
        assert self._pending is not None
        try:
            reason = self._pending.result(timeout_s)
        except (TimeoutError, GetTimeoutError):
            return False
        except RayError as error:
            raise SinkClosed(f"the session's process is gone: {type(error).__name__}") from None
        self._pending = None
        if reason:
            raise SinkClosed(reason)
        return True


class _MailboxSink:
    def __init__(self, box: Mailbox) -> None:
        self._box = box
        self._sending = _Sending(box)

    def begin(self, item: Any, weight: int) -> None:
        self._sending.begin(item, weight)

    def put(self, item: Any, weight: int, timeout_s: float) -> bool:
        return self._sending.put(item, weight, timeout_s)

    def on_close(self, call: Callable[[str], None]) -> None:
        def told(future: concurrent.futures.Future[str]) -> None:
            try:
                call(future.result())
            except RayError:
                call("the session's process is gone")

        self._box._post.watch.remote(self._box.name).future().add_done_callback(told)

    def __reduce__(self) -> tuple[Any, ...]:
        return _mailbox_sink, self._box.address()


class _Polled:
    """A source that is asked again and again; a question on its way is never given up, for its answer holds items."""

    loose = False

    def __init__(self, expected: Callable[[], int]) -> None:
        self.expected = expected
        self._asked: asyncio.Future[list[Any]] | None = None

    async def take(self, wait_s: float) -> list[Any]:
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._ask())
        await asyncio.wait({self._asked}, timeout=wait_s)
        if not self._asked.done():
            return []
        asked, self._asked = self._asked, None
        try:
            return asked.result()
        except RayError as error:
            raise ProducerLost(f"the transport is gone: {type(error).__name__}") from None

    async def _ask(self) -> list[Any]:
        raise NotImplementedError

    async def _answer(self) -> list[Any]:
        if self._asked is None:
            return []
        asked, self._asked = self._asked, None
        return await asked


class _MailboxSource(_Polled):
    def __init__(self, box: Mailbox, expected: Callable[[], int]) -> None:
        super().__init__(expected)
        self._box = box

    async def _ask(self) -> list[Any]:
        items: list[Any] = await self._box._post.take.remote(self._box.name, POLL_S)
        return items

    async def close(self, reason: str) -> list[Any]:
        left: list[Any] = await self._box._post.close.remote(self._box.name, reason)
        self._box.keep()  # closed: nothing is left to be said when it is forgotten
        return [*await self._answer(), *left]


# --- ray.util.queue ---------------------------------------------------------------------------------------------------


class _QueueTransport:
    """A queue that may be shared with code that knows only triples and None. Its box carries nothing but the end."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._box = Mailbox()
        self._box.keep()  # the queue may be pumped without us

    def sink(self) -> _QueueSink:
        return _QueueSink(self._queue, self._box)

    def source(self, expected: Callable[[], int]) -> _QueueSource:
        return _QueueSource(self._queue, self._box, expected)

    def __repr__(self) -> str:
        return "<Queue of ray.util.queue>"


class _QueueSink:
    def __init__(self, queue: Queue, box: Mailbox) -> None:
        self._queue, self._box = queue, box
        self._actor: Any = queue.actor
        self._pending: concurrent.futures.Future[None] | None = None

    def begin(self, item: Any, weight: int) -> None:
        # Not queue.put: it blocks in ray.get, which an asyncio actor is warned of even beside its loop.
        self._pending = self._actor.put.remote(item, ROOM_S).future()

    def put(self, item: Any, weight: int, timeout_s: float) -> bool:
        if self._pending is None:
            self.begin(item, weight)
        pending, self._pending = self._pending, None
        assert pending is not None
        try:
            pending.result()
        except Full:
            return False
        except RayError as error:
            raise SinkClosed(f"the queue is gone: {type(error).__name__}") from None
        return True

    def on_close(self, call: Callable[[str], None]) -> None:
        _MailboxSink(self._box).on_close(call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _QueueSink, (self._queue, self._box)


class _QueueSource(_Polled):
    def __init__(self, queue: Queue, box: Mailbox, expected: Callable[[], int]) -> None:
        super().__init__(expected)
        self._actor: Any = queue.actor
        self._box = box
        self._get: Any = None

    async def _ask(self) -> list[Any]:
        self._get = self._actor.get.remote(POLL_S)
        try:
            first = await self._get
        except (Empty, TaskCancelledError):
            return []
        return [first, *await self._rest()]

    async def _rest(self) -> list[Any]:
        try:
            size = await self._actor.qsize.remote()
            return await self._actor.get_nowait_batch.remote(size) if size else []
        except Empty:  # somebody else takes too
            return []

    async def close(self, reason: str) -> list[Any]:
        await self._box._post.close.remote(self._box.name, reason)
        if self._asked is not None and self._get is not None:
            ray.cancel(self._get)  # it gives its item, or takes none
        return [*await self._answer(), *await self._rest()]


# --- streaming generators ---------------------------------------------------------------------------------------------


class _GeneratorTransport:
    def __init__(self, generator: ray.ObjectRefGenerator) -> None:
        self._generator = generator

    def sink(self) -> Any:
        raise UnsupportedSource("a generator is its own producer: it needs no emitter")

    def source(self, expected: Callable[[], int]) -> _GeneratorSource:
        return _GeneratorSource(self._generator)


class _GeneratorSource(_Polled):
    """The task is the producer: its end is the end, its death is seen at once."""

    loose = True

    def __init__(self, generator: ray.ObjectRefGenerator) -> None:
        super().__init__(lambda: 0)
        self._generator = generator
        self._ended = False

    async def take(self, wait_s: float) -> list[Any]:
        items = await super().take(wait_s)
        if not items and self._ended:
            raise StopAsyncIteration
        return items

    async def _ask(self) -> list[Any]:
        generator, refs = self._generator, []
        try:
            refs.append(await anext(generator))
            while generator.next_ready():
                refs.append(next(generator))
        except (StopAsyncIteration, StopIteration):
            self._ended = True
        items = []
        for ref in refs:
            try:
                items.append(await ref)
            except RayTaskError as error:
                raise _cause(error) from None
        return items

    async def close(self, reason: str) -> list[Any]:
        if not self._ended:
            with suppress(Exception):
                ray.cancel(self._generator)
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.wait({self._asked})
            self._asked = None
        return []


def stream(work: Callable[..., Any], *args: Any, turn: int | None = None, **options: Any) -> Iterator[bytes]:
    """Runs `work(emit, *args)`, plain or async, in a thread and yields what it emits: the body of a task or method with
    `num_returns="streaming"`. An exception of the work's is raised here, after what it had emitted."""
    outbox, outcome = _begin(work, args, turn, options)
    try:
        while (item := outbox.next()) is not None:
            # Not `yield from`: Ray sends into a generator, and a list's iterator takes nothing.
            for part in _parts(item):  # noqa: UP028
                yield part
        outcome.result()
    finally:
        outbox.lose("the stream was closed")


async def astream(
    work: Callable[..., Any], *args: Any, turn: int | None = None, **options: Any
) -> AsyncIterator[bytes]:
    """`stream` for an async task or method. The work has a thread and, if it is async, a loop of its own: on the
    actor's loop an emit that waits for room would hold what makes room."""
    outbox, outcome = _begin(work, args, turn, options)
    loop = asyncio.get_running_loop()
    try:
        while (item := await loop.run_in_executor(None, outbox.next)) is not None:
            for part in _parts(item):
                yield part
        await asyncio.wrap_future(outcome)
    finally:
        outbox.lose("the stream was closed")


def _begin(
    work: Callable[..., Any], args: tuple[Any, ...], turn: int | None, options: dict[str, Any]
) -> tuple[Outbox, concurrent.futures.Future[None]]:
    outbox = Outbox(Options(**options), turn or 0)
    outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work(_Emit(outbox), *args)
            if asyncio.iscoroutine(result):
                asyncio.run(result)
        except BaseException as error:  # raised again by the generator
            outcome.set_exception(error)
        else:
            outcome.set_result(None)
        outbox.close()

    threading.Thread(target=run, name="turnstream-work", daemon=True).start()
    return outbox, outcome


def _parts(item: tuple[bytes | list[Any], int]) -> list[Any]:
    load, _ = item
    return load if isinstance(load, list) else [load]


class _Emit(RemoteEmitter):
    """The emitter of a generator, which sends for itself."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._turn = outbox.turn

    def close(self, error: BaseException | str | None = None, *, timeout_s: float = 0.0) -> bool:
        self._outbox.close(error)
        return True


# --- what may be a transport, who may be watched ----------------------------------------------------------------------


def transport_of(given: Any, capacity: int = 1000) -> Any:
    """The transport that `given` is; a new mailbox for None."""
    if given is None:
        return Mailbox(capacity)
    if isinstance(given, Mailbox):
        return given
    if isinstance(given, Queue):
        return _QueueTransport(given)
    if isinstance(given, ray.ObjectRefGenerator):
        return _GeneratorTransport(given)
    raise UnsupportedSource(f"{type(given).__name__} is no transport")


async def watch(producer: Any) -> Any:
    """Waits for a task's result, or for an actor's death. ProducerLost where it died, else the work's own exception."""
    try:
        if not isinstance(producer, ray.actor.ActorHandle):
            if isinstance(producer, ray.ObjectRefGenerator):
                producer = producer.completed()
            return await producer
        ping: Any = producer.__ray_ready__
        while True:
            await ping.remote()  # waits behind what the actor does now; fails at once when it dies
            await asyncio.sleep(PING_S)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayError as error:
        raise ProducerLost(f"the producer is gone: {type(error).__name__}") from None


def stop_all(producers: list[Any]) -> None:
    """Cancels tasks. An actor is left alone: it may serve others."""
    for producer in producers:
        if isinstance(producer, ray.ObjectRef | ray.ObjectRefGenerator):
            with suppress(Exception):
                ray.cancel(producer)


def _cause(error: RayTaskError) -> Exception:
    """The exception that the work raised, without the remote traceback in its text."""
    cause: BaseException = error.cause
    if isinstance(cause, TaskCancelledError):
        return ProducerLost("the task was cancelled")
    # A CancelledError of another loop would pass for one of this loop's.
    return cause if isinstance(cause, Exception) else RuntimeError(type(cause).__name__)
