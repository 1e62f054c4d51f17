"""`EventQueue`: a bounded queue between any mix of threads and event loops. Nothing lost, doubled or stuck."""

import asyncio
import gc
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import turnstream as ts

Overflow = Literal["block", "drop_oldest", "drop_newest", "merge", "fail"]


def balanced(queue: ts.EventQueue[Any]) -> dict[str, int]:
    counts = queue.statistics()
    gone = counts["taken"] + counts["dropped"] + counts["merged"] + counts["discarded"]
    assert counts["put"] == gone + counts["size"], counts
    return counts


async def until(condition: Callable[[], bool]) -> None:
    """Lets others run until it holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- statistics tell nobody
            await asyncio.sleep(0)


async def parked(queue: ts.EventQueue[Any], *, getters: int = 0, putters: int = 0) -> None:
    def there() -> bool:
        counts = queue.statistics()
        return counts["waiting_getters"] == getters and counts["waiting_putters"] == putters

    await until(there)


# --- items, order, the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [0, "", (), (1, 2), [], {}, StopIteration(3), StopAsyncIteration(), ValueError("x"), asyncio.CancelledError(), int],
    ids=repr,
)
async def test_an_item_is_any_object(item: Any) -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue()
    for _ in range(5):
        assert queue.put(item) is True
    assert queue.get() is item
    assert queue.get_nowait() is item
    assert await queue.aget() is item
    assert await anext(aiter(queue)) is item
    assert next(iter(queue)) is item
    assert await queue.aput(item) is True
    assert [got async for got in _closed(queue)] == [item]


def _closed(queue: ts.EventQueue[Any]) -> ts.EventQueue[Any]:
    queue.close()
    return queue


async def test_items_come_in_order_then_the_end_for_everybody() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    for number in range(300):
        queue.put_nowait(number)
    queue.close()
    assert [number async for number in queue] == list(range(300))
    assert [number async for number in queue] == []
    assert list(queue) == []
    assert (queue.get(), queue.get_nowait(), await queue.aget()) == (None, None, None)
    assert queue.closed
    assert balanced(queue)["taken"] == 300


async def test_batches_hold_what_is_ready() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    for number in range(150):
        queue.put_nowait(number)
    queue.put_nowait(None)
    assert [len(batch) async for batch in queue.batches(64)] == [64, 64, 22]
    again: ts.EventQueue[int] = ts.EventQueue()
    again.put(7)
    again.close()
    assert list(again.batches()) == [[7]]
    with pytest.raises(ValueError, match="max_items"):
        again.batches(0)


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "merge", "fail"])
async def test_the_end_is_not_lost_on_a_full_queue(overflow: Overflow) -> None:
    for end in (ts.EventQueue.put, ts.EventQueue.put_nowait, ts.EventQueue.close):
        queue: ts.EventQueue[int] = ts.EventQueue(2, overflow)
        queue.put(1)
        queue.put(2)
        end(queue, None)
        assert [item async for item in queue] == [1, 2]
    queue = ts.EventQueue(1, overflow)
    queue.put(1)
    assert await queue.aput(None) is True
    assert await queue.aput(None) is False
    assert list(queue) == [1]


async def test_an_error_comes_after_the_items_and_to_every_consumer() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    queue.put(1)
    queue.close(LookupError("the source broke"))
    queue.close(ValueError("too late"))
    assert await queue.aget() == 1
    for get in (queue.get, queue.get_nowait, lambda: next(iter(queue)), lambda: list(queue.batches())):
        with pytest.raises(LookupError, match="the source broke"):
            get()
    with pytest.raises(LookupError):
        await queue.aget()
    with pytest.raises(LookupError):
        [item async for item in queue]
    with pytest.raises(TypeError):
        ts.EventQueue().close("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [StopIteration, StopAsyncIteration])
async def test_an_error_that_would_pass_for_the_end_does_not(end: type[Exception]) -> None:
    queue = ts.EventQueue[int]()
    queue.put_nowait(1)
    queue.close(end("reason"))
    assert await queue.aget() == 1
    with pytest.raises(RuntimeError, match=end.__name__) as error:
        assert [item async for item in queue]
    assert isinstance(error.value.__cause__, end)
    for ask in (lambda: list(queue), queue.get, queue.get_nowait, lambda: list(queue.batches())):
        with pytest.raises(RuntimeError, match=end.__name__):
            ask()


async def test_an_error_that_is_raised_again_and_again_does_not_grow() -> None:
    def raised() -> ValueError:
        try:
            raise ValueError("the source broke")
        except ValueError as error:
            return error

    def length(error: BaseException) -> int:
        return len(traceback.extract_tb(error.__traceback__))

    queue: ts.EventQueue[int] = ts.EventQueue()
    queue.close(raised())
    lengths = set()
    for _ in range(20):
        with pytest.raises(ValueError, match="broke") as caught:
            await queue.aget()
        lengths.add(length(caught.value))
    assert lengths == {2}  # where it was raised, and here


async def test_a_put_that_nobody_awaits_is_said() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        queue.aput(1)  # type: ignore[unused-coroutine]
    assert queue.qsize() == 0
    begun = asyncio.ensure_future(queue.aput(2))
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert await queue.aput(3)
    assert balanced(queue)["put"] == 1


async def test_a_put_after_the_close_is_refused() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    queue.close()
    assert (queue.put(1), queue.put_nowait(1), await queue.aput(1)) == (False, False, False)
    assert balanced(queue)["refused"] == 3


async def test_a_close_wakes_everybody() -> None:
    empty: ts.EventQueue[int] = ts.EventQueue()
    full: ts.EventQueue[int] = ts.EventQueue(1)
    full.put(0)
    with ThreadPoolExecutor(4) as pool:
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[Any]] = [
            loop.run_in_executor(pool, empty.get),
            loop.run_in_executor(pool, full.put, 1),
            asyncio.create_task(empty.aget()),
            asyncio.create_task(full.aput(1)),
        ]
        await parked(empty, getters=2)
        await parked(full, putters=2)
        empty.close()
        full.close()
        assert await asyncio.gather(*waits) == [None, False, None, False]
    assert list(full) == [0]


async def test_a_consumer_that_leaves_early_frees_everything() -> None:
    class Item:
        pass

    queue: ts.EventQueue[Item] = ts.EventQueue(1)
    item = Item()
    gone = weakref.ref(item)
    queue.put(item)
    del item
    producer = asyncio.create_task(queue.aput(Item()))
    await parked(queue, putters=1)
    queue.close(discard=True)
    assert await producer is False
    assert gone() is None
    assert balanced(queue)["discarded"] == 1


# --- a full queue -----------------------------------------------------------------------------------------------------


async def test_drop_oldest() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(3, "drop_oldest")
    with pytest.warns(RuntimeWarning, match="dropped 1 items so far"):
        assert [queue.put(number) for number in range(10)] == [True] * 10
    queue.close()
    assert [number async for number in queue] == [7, 8, 9]
    assert balanced(queue)["dropped"] == 7


async def test_drop_newest() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(3, "drop_newest")
    with pytest.warns(RuntimeWarning):
        assert [await queue.aput(number) for number in range(5)] == [True] * 3 + [False] * 2
    queue.close()
    assert [number async for number in queue] == [0, 1, 2]
    assert balanced(queue)["dropped"] == 2


async def test_fail() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1, "fail")
    queue.put(1)
    for put in (queue.put, queue.put_nowait):
        with pytest.raises(ts.QueueFull, match="holds 1 items already"):
            put(2)
    with pytest.raises(ts.WouldBlock):
        await queue.aput(2)
    assert await queue.aget() == 1
    assert balanced(queue)["refused"] == 3


def test_drops_warn_once_in_an_interval_with_the_total() -> None:
    def seen(interval: float, drops: int) -> list[str]:
        queue: ts.EventQueue[int] = ts.EventQueue(1, "drop_newest", warn_interval_s=interval)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(drops + 1):
                queue.put(number)
        assert all(warning.filename == __file__ for warning in caught)
        return [str(warning.message) for warning in caught]

    assert len(seen(3600, 10_000)) == 1
    assert [text.split()[2] for text in seen(0, 3)] == ["1", "2", "3"]


def text(piece: str, message: str = "m1", **fields: Any) -> ts.TextDelta:
    return ts.TextDelta(text=piece, message_id=message, **fields)


async def test_merge_joins_neighbours_of_one_id() -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(5, "merge")
    call = ts.ToolCallStart(call_id="c1", name="look")
    puts = [text("a"), text("b"), text("x", "m2"), call, text("c"), text("d"), text("e"), {"not": "ours"}]
    for item in puts:
        queue.put_nowait(item)  # full at the sixth: joins the last two; at the eighth it makes room: a and b
    queue.close()
    got = [item async for item in queue]
    assert [getattr(item, "text", item) for item in got[:2]] == ["ab", "x"]
    assert got[2] is call
    assert got[3].text == "cde"
    assert balanced(queue)["merged"] == 3


async def test_merge_waits_where_nothing_can_be_joined() -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(2, "merge")
    queue.put(text("a"))
    queue.put(text("b", "m2"))
    for apart in (text("c"), text("c", "m2", turn=2), text("c", "m2", mine=1), 7):
        with pytest.raises(ts.QueueFull):
            queue.put_nowait(apart)
    producer = asyncio.create_task(queue.aput(7))
    await parked(queue, putters=1)
    assert queue.get_nowait() == text("a")
    assert await producer is True


async def test_merge_loses_no_text_however_small_the_queue() -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(3, "merge")
    whole = {"m1": "", "m2": ""}

    def produce() -> None:
        for number in range(5000):
            message = "m2" if number % 7 == 0 else "m1"
            whole[message] += f"{number},"
            queue.put(text(f"{number},", message))
        queue.close()

    got = {"m1": "", "m2": ""}
    thread = threading.Thread(target=produce)
    thread.start()
    async for event in queue:
        got[event.message_id] += event.text
    thread.join()
    assert got == whole
    balanced(queue)


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_a_thread_feeds_a_loop_and_is_held_back() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(10)

    def produce() -> None:
        for number in range(20_000):
            queue.put(number)
        queue.close()

    thread = threading.Thread(target=produce)
    thread.start()
    assert [number async for number in queue] == list(range(20_000))
    thread.join()
    assert balanced(queue)["peak"] == 10


async def test_a_loop_feeds_a_thread_and_is_held_back() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(10)
    with ThreadPoolExecutor(1) as pool:
        consumer = asyncio.get_running_loop().run_in_executor(pool, lambda: list(queue))
        for number in range(5000):
            await queue.aput(number)
        await queue.aput(None)
        assert await consumer == list(range(5000))
    assert balanced(queue)["peak"] <= 10


def test_get_and_put_wait_no_longer_than_told_and_take_nothing() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    begun = time.monotonic()
    with pytest.raises(ts.QueueEmpty):
        queue.get(0)
    with pytest.raises(ts.QueueEmpty):
        queue.get(timeout=0.02)
    assert queue.put(1, 0) is True
    with pytest.raises(ts.QueueFull):
        queue.put(2, timeout=0.02)
    assert 0.04 <= time.monotonic() - begun < 5
    counts = balanced(queue)
    assert (counts["waiting_getters"], counts["waiting_putters"], counts["refused"]) == (0, 0, 1)
    threading.Timer(0.02, queue.get).start()
    assert queue.put(3, 10) is True
    assert queue.get(10) == 3
    threading.Timer(0.02, queue.close).start()
    assert queue.get(10) is None


async def test_a_blocking_call_on_a_loop_raises_where_it_would_wait() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    with pytest.raises(ts.QueueEmpty, match="await aget"):
        queue.get()
    with pytest.raises(ts.QueueEmpty):
        queue.get_nowait()
    with pytest.raises(ts.QueueEmpty, match="async for"):
        next(iter(queue))
    queue.put(1)
    with pytest.raises(ts.QueueFull, match="await aput"):
        queue.put(2)
    assert queue.get() == 1
    assert balanced(queue)["refused"] == 1


async def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    served: list[tuple[int, int | None]] = []

    async def get(who: int) -> None:
        served.append((who, await queue.aget()))

    async with asyncio.TaskGroup() as group:
        for who in range(5):
            group.create_task(get(who))
        await parked(queue, getters=5)
        for number in range(5):
            await queue.aput(number)
    assert served == [(number, number) for number in range(5)]

    queue.put(-1)
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(queue.aput(number))
        await parked(queue, putters=5)
        assert [await queue.aget() for _ in range(6)] == [-1, 0, 1, 2, 3, 4]


async def test_threads_are_served_in_the_order_in_which_they_came() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    queue.put(-1)
    with ThreadPoolExecutor(4) as pool:
        puts = []
        for number in range(4):
            puts.append(pool.submit(queue.put, number))
            await parked(queue, putters=number + 1)
        await asyncio.sleep(0.25)  # longer than the 100 ms after which a blocked thread looks around
        assert [await queue.aget() for _ in range(5)] == [-1, 0, 1, 2, 3]
        assert all(put.result() for put in puts)


@pytest.mark.parametrize("called", [False, True], ids=["asleep", "called"])
async def test_a_cancelled_wait_passes_its_call_on(called: bool) -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    first, second = (asyncio.create_task(queue.aget()) for _ in range(2))
    await parked(queue, getters=2)
    if called:
        queue.put(1)
        first.cancel()
    else:
        first.cancel()
        queue.put(1)
    assert await asyncio.wait_for(second, 30) == 1
    assert first.cancelled()
    await parked(queue)

    queue.put(0)
    first_put, second_put = (asyncio.create_task(queue.aput(number)) for number in (1, 2))
    await parked(queue, putters=2)
    if called:
        assert queue.get_nowait() == 0
        first_put.cancel()
    else:
        first_put.cancel()
        await parked(queue, putters=1)
        assert queue.get_nowait() == 0
    assert await asyncio.wait_for(second_put, 30) is True
    assert first_put.cancelled()
    assert (queue.get_nowait(), queue.qsize()) == (2, 0)


@pytest.mark.parametrize("leave", ["close", "drop"])
async def test_a_wait_that_is_given_up_passes_its_call_on(leave: str) -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    given_up = queue.aget()
    given_up.send(None)
    second = asyncio.create_task(queue.aget())
    await parked(queue, getters=2)
    queue.put(1)  # calls the first
    if leave == "close":
        given_up.close()
    else:
        del given_up
    assert await asyncio.wait_for(second, 30) == 1


async def test_a_thousand_timeouts_lose_nothing() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(2)
    got: list[int | None] = []
    timeouts = 0

    async def collect(wait: Awaitable[int | None], timeout_s: float) -> None:
        nonlocal timeouts
        try:
            got.append(await asyncio.wait_for(wait, timeout_s))
        except TimeoutError:
            timeouts += 1

    iterator = aiter(queue)
    for _ in range(500):
        await collect(queue.aget(), 1e-6)
        await collect(anext(iterator), 1e-6)
    assert (timeouts, balanced(queue)["waiting_getters"]) == (1000, 0)

    def produce() -> None:
        for number in range(3000):
            queue.put(number)
        queue.close()

    thread = threading.Thread(target=produce)
    thread.start()
    while None not in got[-1:]:
        await collect(queue.aget(), (1e-6, 1e-5, 1e-4)[len(got) % 3])
    thread.join()
    assert got == [*range(3000), None]


async def test_a_timeout_that_meets_an_item_loses_nothing() -> None:
    for number in range(1000):
        queue: ts.EventQueue[int] = ts.EventQueue()
        task = asyncio.create_task(queue.aget())
        await parked(queue, getters=1)
        queue.put(number)
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
        try:
            assert await task == number
        except asyncio.CancelledError:
            assert queue.get_nowait() == number
        balanced(queue)


async def test_other_tasks_run_while_items_are_ready() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(10_000)
    ticks = 0
    busy = True

    async def tick() -> None:
        nonlocal ticks
        while busy:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    for form in ("aput", "aget", "aput", "async for"):
        before = ticks
        if form == "aput":
            for number in range(5000):
                await queue.aput(number)
        elif form == "aget":
            for _ in range(5000):
                await queue.aget()
        else:
            async for number in queue:
                if number == 4999:
                    break
        assert ticks - before >= 5000 // 128, form
    busy = False
    await ticker


async def test_two_tasks_on_one_iterator_are_told() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    iterator = aiter(queue)
    first = asyncio.create_task(anext(iterator))
    await parked(queue, getters=1)
    with pytest.raises(ts.ReaderBusy, match="two tasks wait on one iterator"):
        await anext(iterator)
    queue.put(1)
    assert await first == 1


@pytest.mark.parametrize("producers", [8])
@pytest.mark.parametrize("consumers", [4])
def test_threads_and_loops_each_item_exactly_once_in_order_per_producer(
    producers: int, consumers: int, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    each = 20_000
    queue: ts.EventQueue[tuple[int, int]] = ts.EventQueue(100)

    def produce(who: int) -> None:
        for number in range(each):
            assert queue.put((who, number))

    async def take(form: int) -> list[tuple[int, int]]:
        if form == 0:
            return [item async for item in queue]
        if form == 1:
            return [item async for batch in queue.batches(16) for item in batch]
        taken = []
        while (item := await queue.aget()) is not None:
            taken.append(item)
        return taken

    def consume(who: int) -> list[tuple[int, int]]:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(take(who % 3))

    with ThreadPoolExecutor(producers + consumers) as pool:
        consuming = [pool.submit(consume, who) for who in range(consumers)]
        producing = [pool.submit(produce, who) for who in range(producers)]
        for done in producing:
            done.result(50)
        queue.close()
        taken = [done.result(50) for done in consuming]
    for one in taken:
        last: Counter[int] = Counter()
        for who, number in one:
            assert number >= last[who]
            last[who] = number + 1
    assert sorted(item for one in taken for item in one) == [(p, n) for p in range(producers) for n in range(each)]
    assert balanced(queue)["taken"] == producers * each


# --- what a queue is to the interpreter -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:EventQueue.aput was never awaited")
async def test_a_queue_that_holds_itself_is_collected() -> None:
    class Item:
        queue: Any

    queue: ts.EventQueue[Any] = ts.EventQueue()
    item = Item()
    item.queue = [queue, aiter(queue), iter(queue), queue.batches(), queue.aget(), queue.aput(queue)]
    queue.put(item)
    gone = weakref.ref(item)
    del item, queue
    gc.collect()
    assert gone() is None


def test_a_queue_closed_with_an_error_that_knows_it_is_collected() -> None:
    class Item:
        pass

    def close() -> weakref.ref[Item]:
        queue: ts.EventQueue[Any] = ts.EventQueue()
        item = Item()
        queue.put(item)
        try:
            raise LookupError
        except LookupError as error:
            queue.close(error)  # its traceback has this frame, and so the queue
        return weakref.ref(item)

    gone = close()
    gc.collect()
    assert gone() is None


async def test_a_destructor_may_come_back() -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(1, "drop_oldest", warn_interval_s=3600)
    seen: list[int] = []

    class Item:
        def __del__(self) -> None:
            seen.append(queue.qsize())
            queue.close()

    queue.put(Item())
    with pytest.warns(RuntimeWarning):
        queue.put(1)
    assert seen == [1]
    assert queue.closed


def test_a_loop_that_was_closed_under_a_wait_keeps_no_one_waiting(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    queue: ts.EventQueue[int] = ts.EventQueue()
    dead = loop_factory()
    wait = queue.aget()

    async def park() -> None:
        wait.send(None)

    dead.run_until_complete(park())
    dead.close()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(queue.get)
        while queue.statistics()["waiting_getters"] < 2:
            pass
        queue.put(1)
        assert other.result(30) == 1
    wait.close()


@pytest.mark.parametrize("debug", [False, True])
def test_debug_mode(debug: bool, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def cross() -> int:
        queue: ts.EventQueue[int] = ts.EventQueue(5)
        total = 0

        async def produce() -> None:
            for number in range(1000):
                await queue.aput(number)
            queue.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            async for number in queue:
                total += number
        task = asyncio.create_task(queue.aget(), name="get")
        assert "get" in repr(task)
        assert await task is None
        return total

    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        assert runner.run(cross()) == sum(range(1000))


def test_its_face() -> None:
    queue = ts.EventQueue[int](3, "merge")
    queue.put(1)
    assert (queue.qsize(), queue.maxsize, queue.overflow, queue.closed) == (1, 3, "merge", False)
    assert repr(queue) == "<EventQueue 1/3 overflow=merge>"
    queue.close()
    assert repr(queue) == "<EventQueue 1/3 overflow=merge, closed>"
    assert ts.EventQueue().maxsize == 1000
    for arguments in ((0,), (1, "other"), (-1,)):
        with pytest.raises((ValueError, OverflowError)):
            ts.EventQueue(*arguments)
    for interval in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="warn_interval_s"):
            ts.EventQueue(warn_interval_s=interval)


# --- a model ----------------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Against a list: all that one thread can do without blocking, with waits that are begun, resumed and left."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()

    def new_loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    @initialize(maxsize=st.integers(1, 5), overflow=st.sampled_from(["block", "drop_oldest", "drop_newest", "fail"]))
    def make(self, maxsize: int, overflow: Overflow) -> None:
        self.queue: ts.EventQueue[int] = ts.EventQueue(maxsize, overflow, warn_interval_s=3600)
        self.maxsize, self.overflow = maxsize, overflow
        self.items: list[int] = []
        self.closed = False
        self.number = 0
        self.getters: list[asyncio.Task[int | None]] = []
        self.got: list[int] = []
        self.expected: list[int] = []

    def run(self) -> None:
        """Until all that can be done is done."""

        async def settle() -> None:
            for _ in range(8):
                await asyncio.sleep(0.0005 if _ == 2 else 0)

        self.loop.run_until_complete(settle())
        done = [task for task in self.getters if task.done()]
        self.getters = [task for task in self.getters if not task.done()]
        self.got += [item for task in done if (item := task.result()) is not None]
        served = min(len(self.items), len(done)) if done else 0
        self.expected += self.items[:served]
        del self.items[:served]
        assert self.got == self.expected

    @precondition(lambda self: not self.getters)
    @rule()
    def put(self) -> None:
        self.number += 1
        full = len(self.items) >= self.maxsize
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result: object = self.queue.put_nowait(self.number)
            except ts.QueueFull:
                result = "full"
        if self.closed:
            assert result is False
        elif not full:
            assert result is True
            self.items.append(self.number)
        elif self.overflow == "drop_oldest":
            assert result is True
            self.items = [*self.items[1:], self.number]
        elif self.overflow == "drop_newest":
            assert result is False
        else:
            assert result == "full"

    @rule(count=st.integers(1, 4))
    def put_for_waiters(self, count: int) -> None:
        if self.closed or len(self.items) + count > self.maxsize:
            return
        for _ in range(count):
            self.number += 1
            assert self.queue.put_nowait(self.number) is True
            self.items.append(self.number)
        self.run()

    @precondition(lambda self: not self.getters)
    @rule()
    def get(self) -> None:
        try:
            item = self.queue.get_nowait()
        except ts.QueueEmpty:
            assert not self.items
            assert not self.closed
        else:
            assert item == (self.items.pop(0) if self.items else None)
            assert item is not None or self.closed

    @precondition(lambda self: not self.getters)
    @rule(most=st.integers(1, 4))
    def batch(self, most: int) -> None:
        if self.items:
            assert next(iter(self.queue.batches(most))) == self.items[:most]
            del self.items[:most]

    @rule()
    def wait(self) -> None:
        self.getters.append(self.loop.create_task(self.queue.aget()))
        self.run()

    @precondition(lambda self: self.getters)
    @rule(data=st.data(), between=st.booleans())
    def cancel(self, data: st.DataObject, between: bool) -> None:
        at = data.draw(st.integers(0, len(self.getters) - 1))
        if between and not self.closed and len(self.items) < self.maxsize:
            self.number += 1
            self.queue.put_nowait(self.number)  # may call the one that is cancelled now
            self.items.append(self.number)
        task = self.getters.pop(at)
        task.cancel()
        self.run()
        assert task.cancelled()

    @rule()
    def close(self) -> None:
        self.closed = True
        self.queue.put_nowait(None)
        self.run()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.qsize() == len(self.items)
        assert self.queue.closed == self.closed
        assert balanced(self.queue)["waiting_getters"] == len(self.getters)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.run()
            assert not self.getters
        self.loop.close()


SETTINGS = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_it_is_a_list(debug: bool, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    class Here(Model):
        def new_loop(self) -> asyncio.AbstractEventLoop:
            loop = loop_factory()
            loop.set_debug(debug)
            return loop

    run_state_machine_as_test(Here, settings=SETTINGS)
