"""`turnstream.streams`: tools over async iterators. Nothing lost, nothing left; on both loops, in debug mode too."""

import ast
import asyncio
import gc
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import until

import turnstream as ts
from conftest import ROOT
from turnstream import streams

PATIENCE_S = 30.0


@pytest.fixture(autouse=True, params=[False, True], ids=["", "debug"])
async def nothing_is_left(request: pytest.FixtureRequest) -> AsyncGenerator[None]:
    """After each test only the tasks that were there before it are there."""
    asyncio.get_running_loop().set_debug(request.param)
    before = asyncio.all_tasks()
    yield
    if not asyncio.all_tasks() <= before | {asyncio.current_task()}:
        gc.collect()  # a traceback may hold a stream
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


class Script(AsyncIterator[Any]):
    """A source that a test feeds; it says when it is closed, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def give(self, *items: Any) -> "Script":
        for item in items:
            self._items.put_nowait(item)
        return self

    def end(self, error: BaseException | None = None) -> "Script":
        return self.give(error or StopAsyncIteration())

    async def __anext__(self) -> Any:
        self.asked += 1
        item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


def text(piece: str, message_id: str = "m", seq: int = 0) -> ts.TextDelta:
    return ts.TextDelta(message_id=message_id, text=piece, seq=seq)


def tool(call_id: str = "c") -> ts.ToolCallStart:
    return ts.ToolCallStart(call_id=call_id, name="t", kind="client")


def told(events: list[Any]) -> list[str]:
    """Texts of deltas, types of others."""
    return [getattr(event, "text", None) or event.type for event in events]


async def bounded(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [item async for item in stream]


async def until_error(stream: AsyncIterator[Any]) -> list[Any]:
    """The items before a LookupError."""
    got = []
    try:
        async for item in stream:
            got.append(item)
    except LookupError:
        return got
    pytest.fail("no error came")


# --- edge cases by number ---------------------------------------------------------------------------------------------


async def test_edge_27_fifty_deltas_in_an_interval_are_one_event() -> None:
    source = Script().give(*(text(f"w{n} ", seq=n) for n in range(1, 51)))
    stream = streams.throttle(source, 0.5)
    first = await bounded(anext(stream))
    assert (first.text, first.seq) == ("".join(f"w{n} " for n in range(1, 51)), 50)
    source.give(text("a"), text("b"), tool(), text("c")).end()
    assert told(await collect(stream)) == ["ab", "tool_call_start", "c"]
    assert source.closed == 1


async def test_edge_27_a_tool_event_comes_at_once_and_after_the_text() -> None:
    source = Script().give(text("Hel"), text("lo"), tool())
    stream = streams.throttle(source, 3600)  # only the tool event can flush
    assert told([await bounded(anext(stream)), await bounded(anext(stream))]) == ["Hello", "tool_call_start"]
    await stream.aclose()


async def test_edge_27_close_flushes_and_what_comes_later_is_counted() -> None:
    source = Script().give(text("a"), text("b"))
    stream = streams.throttle(source, 3600)
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: source.asked == 3)
    stream.close()
    assert (await bounded(waiting)).text == "ab"
    source.give(text("late"), tool())
    await until(lambda: stream.late == 2)
    assert await collect(stream) == []
    assert (source.closed, stream.late) == (1, 2)


async def test_edge_28_deltas_of_two_messages_are_never_joined() -> None:
    source = Script().give(text("a", "m1"), text("x", "m2"), text("b", "m1"), text("c", "m1"), text("y", "m2")).end()
    events = await collect(streams.throttle(source, 3600))
    assert [(event.message_id, event.text) for event in events] == [("m1", "a"), ("m2", "x"), ("m1", "bc"), ("m2", "y")]


@pytest.mark.parametrize("unit", ["a", "ü", "€", "👩", "👩\u200d💻", "🇨🇭", "e\u0301", "\r\n"])
async def test_edge_28_a_chunk_splits_no_character_and_no_pair(unit: str) -> None:
    whole = "x" + unit * 2000
    # Cut by characters, so that a pair lies in two deltas.
    source = Script().give(*(text(piece, seq=n) for n, piece in enumerate(whole, 1))).end()
    pieces = [event.text for event in await collect(streams.throttle(source, 3600))]
    assert "".join(pieces) == whole
    assert max(len(piece.encode()) for piece in pieces) <= 4000
    assert all(set(piece.removeprefix("x").split(unit)) == {""} for piece in pieces)
    assert len(pieces) <= len(whole.encode()) // 3900 + 2


async def test_edge_28_one_delta_that_is_too_long_is_split() -> None:
    pieces = streams.join([text("🇨🇭" * 1500, seq=7)], 4000)
    assert [len(event.text.encode()) for event in pieces if isinstance(event, ts.TextDelta)] == [4000, 4000, 4000]
    assert [event.seq for event in pieces] == [6, 6, 7]  # a reader that resumes at 6 gets all of 7 again
    one = text("short")
    assert streams.join([one], 4000)[0] is one
    assert told(streams.join([text("a"), tool(), text("b"), text("c")])) == ["a", "tool_call_start", "bc"]


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "merge", "fail"])
async def test_edge_29_a_full_queue_does_what_it_says_and_leaves_a_gap(overflow: Any) -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(2, overflow, gaps=True, warn_interval_s=3600)
    items: list[Any] = [tool(str(n)) for n in range(5)]
    put: list[bool | None] = []
    for item in items[:2]:
        put.append(queue.put_nowait(item))
    for item in items[2:]:
        try:
            with pytest.warns(RuntimeWarning) if overflow.startswith("drop") and item is items[2] else nullcontext():
                put.append(queue.put_nowait(item))
        except ts.QueueFull:
            put.append(None)
    queue.close()
    got = [(item.first, item.last, item.reason) if isinstance(item, ts.Gap) else items.index(item) for item in queue]
    counts = queue.statistics()
    refused = {"put": 2, "taken": 2, "dropped": 0, "refused": 3, "gaps": 0}
    dropped = {"put": 5, "taken": 2, "dropped": 3, "refused": 0, "gaps": 1}
    expected: dict[str, Any] = {
        "drop_oldest": ([True] * 5, [(1, 3, "overflow"), 3, 4], dropped),
        "drop_newest": ([True, True, False, False, False], [0, 1, (3, 5, "overflow")], dropped),
    }
    assert (put, got, {name: counts[name] for name in refused}) == expected.get(
        overflow, ([True, True, None, None, None], [0, 1], refused)
    )


@pytest.mark.filterwarnings("ignore:EventQueue dropped:RuntimeWarning")
async def test_edge_29_gaps_stand_where_the_items_were() -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(2, "drop_newest", gaps=True)

    def brief(items: list[Any]) -> list[Any]:
        return [(item.first, item.last) if isinstance(item, ts.Gap) else item for item in items]

    for number in (1, 2, 3):
        queue.put(number)
    assert queue.get() == 1
    queue.put(4)
    queue.put(5)
    assert brief([await queue.aget() for _ in range(4)]) == [2, (3, 3), 4, (5, 5)]
    waiting = asyncio.ensure_future(queue.aget())  # a gap that was taken wakes nobody
    await until(lambda: queue.statistics()["waiting_getters"] == 1)
    queue.put(6)
    assert await waiting == 6
    for number in (7, 8, 9):
        queue.put(number)
    assert brief(await anext(queue.batches())) == [7, 8, (9, 9)]
    for number in (10, 11, 12):
        queue.put(number)
    queue.close(discard=True)
    assert [item async for item in queue] == []  # thrown away by the consumer: no gap
    plain: ts.EventQueue[int] = ts.EventQueue(1, "drop_oldest")
    plain.put(1)
    plain.put(2)
    plain.close()
    assert list(plain) == [2]


@pytest.mark.filterwarnings("ignore:EventQueue dropped:RuntimeWarning")
@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "merge"])
async def test_edge_30_the_end_passes_a_full_queue(overflow: Any) -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(1, overflow, gaps=True)
    queue.put(tool("first"))
    if overflow.startswith("drop"):
        queue.put(tool("second"))
    queue.put(None)
    kept = [item async for item in queue if not isinstance(item, ts.Gap)]
    assert [item.call_id for item in kept] == ["second" if overflow == "drop_oldest" else "first"]


async def test_edge_31_ten_thousand_drops_are_one_warning() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1, "drop_newest", gaps=True, warn_interval_s=3600)
    fast: ts.EventQueue[int] = ts.EventQueue(1, "drop_newest", warn_interval_s=0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for number in range(10_001):
            queue.put(number)
        for number in range(4):
            fast.put(number)
    said = [str(one.message).split(" so far")[0] for one in warned]
    assert said == [f"EventQueue dropped {count} items" for count in (1, 1, 2, 3)]
    queue.get()
    gap: Any = queue.get()
    assert (gap.first, gap.last) == (2, 10_001)


async def test_edge_32_a_close_wakes_a_blocked_producer() -> None:
    queue: ts.EventQueue[int] = ts.EventQueue(1)
    queue.put(1)
    task = asyncio.ensure_future(queue.aput(2))
    thread = asyncio.ensure_future(asyncio.to_thread(queue.put, 3))
    await until(lambda: queue.statistics()["waiting_putters"] == 2)
    queue.close()
    assert await bounded(asyncio.gather(task, thread)) == [False, False]
    assert queue.put(4) is False


def tools() -> dict[str, Callable[[Any], AsyncIterator[Any]]]:
    return {
        "map": lambda source: streams.map(source, lambda item: item),
        "filter": lambda source: streams.filter(source, lambda item: True),
        "merge": streams.merge,
        "buffer": lambda source: streams.buffer(source, 1),
        "timeout": lambda source: streams.timeout(source, idle_s=3600, total_s=3600),
        "throttle": lambda source: streams.throttle(source, 0.01),
        "tee": lambda source: streams.tee(source, 1)[0],
    }


TOOLS = [*tools()]


def flat(items: list[Any]) -> list[Any]:
    return [part for item in items for part in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("name", TOOLS)
async def test_edge_33_items_come_before_the_error_that_followed_them(name: str) -> None:
    source = Script().give(tool("1"), tool("2")).end(LookupError("broke"))
    stream = tools()[name](source)
    got = await until_error(stream)
    assert [item.call_id for item in flat(got)] == ["1", "2"]
    assert await collect(stream) == []
    assert source.closed == 1


@pytest.mark.parametrize("name", [name for name in TOOLS if name not in {"map", "filter"}])
async def test_edge_33_a_consumer_that_stops_waiting_loses_nothing(name: str) -> None:
    source = Script()
    stream = tools()[name](source)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(stream)
    source.give(tool("next")).end()
    assert [item.call_id for item in flat(await collect(stream))] == ["next"]
    assert source.closed == 1


async def test_edge_33_the_item_that_comes_with_the_timeout_is_delivered() -> None:
    source = Script()
    stream = streams.timeout(source, idle_s=0.1)
    for number in range(3):
        with pytest.raises(ts.StreamTimeout, match=r"0\.1") as caught:
            await bounded(anext(stream))
        assert (caught.value.kind, caught.value.code) == ("idle", "stream_timeout")
        source.give(number)
        assert await bounded(anext(stream)) == number
    assert source.closed == 0
    await stream.aclose()
    assert source.closed == 1


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("how", ["break", "aclose", "cancel"])
async def test_edge_34_leaving_early_frees_the_source(name: str, how: str) -> None:
    source = Script().give(tool("1"))
    got = asyncio.Event()

    async def consume() -> None:
        stream = tools()[name](source)
        async for _ in stream:
            got.set()
            if how == "break":
                break
            if how == "aclose":
                await stream.aclose()  # type: ignore[attr-defined]
                assert source.closed == 1

    task = asyncio.ensure_future(consume())
    await bounded(got.wait())
    if how == "cancel":
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await bounded(task)
    await until(lambda: source.closed == 1)


@pytest.mark.parametrize("name", TOOLS)
async def test_edge_34_a_producer_is_told_and_its_memory_is_freed(name: str) -> None:
    queue: ts.EventQueue[Any] = ts.EventQueue(1)

    async def produce() -> int:
        number = 0
        while await queue.aput(tool(str(number))):
            number += 1
        return number

    producer = asyncio.ensure_future(produce())
    async with aclosing(tools()[name](queue)) as stream:  # type: ignore[type-var]
        await bounded(anext(stream))
    assert await bounded(producer) > 0
    assert (queue.closed, queue.qsize()) == (True, 0)


# --- the tools one by one ---------------------------------------------------------------------------------------------


async def test_map_and_filter_take_plain_and_async_functions() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def odd(number: int) -> bool:
        await asyncio.sleep(0)
        return number % 2 == 1

    assert await collect(streams.map(Script().give(1, 2).end(), str)) == ["1", "2"]
    assert await collect(streams.map(Script().give(1, 2).end(), double)) == [2, 4]
    assert await collect(streams.filter(Script().give(*range(5)).end(), odd)) == [1, 3]
    assert await collect(streams.filter(Script().give(*range(5)).end(), lambda n: n > 2)) == [3, 4]
    source = Script().give(1)
    with pytest.raises(ZeroDivisionError):
        await collect(streams.map(source, lambda n: n / 0))
    assert source.closed == 1


async def test_merge_gives_what_comes_as_it_comes() -> None:
    first, second = Script(), Script()
    stream = streams.merge(first, second)
    got = []
    for source, item in ((first, 1), (second, 2), (second, 3), (first, 4)):
        source.give(item)
        got.append(await bounded(anext(stream)))
    first.end()
    second.give(5).end()
    assert got + await collect(stream) == [1, 2, 3, 4, 5]
    assert (first.closed, second.closed) == (1, 1)
    assert await collect(streams.merge()) == []


async def test_merge_ends_all_with_the_first_error() -> None:
    first, second = Script().give(1), Script().end(LookupError("broke"))
    assert await until_error(streams.merge(first, second)) == [1]
    assert (first.closed, second.closed) == (1, 1)


async def test_merge_closes_the_others_before_anybody_hears_of_the_error() -> None:
    first, second = Script().give(1), Script()
    stream = streams.merge(first, second)
    assert await bounded(anext(stream)) == 1
    first.give(2).end(LookupError("broke"))
    await until(lambda: second.closed == 1)
    assert await until_error(stream) == [2]


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_wait_that_ends_early_leaves_no_timer() -> None:
    def timers() -> int:
        return sum(isinstance(one, asyncio.TimerHandle) and not one.cancelled() for one in gc.get_objects())

    source = Script()
    before = timers()
    for stream in (streams.timeout(source, idle_s=3600, total_s=3600), streams.throttle(source, 3600)):
        waiting = asyncio.ensure_future(anext(stream))
        source.give(tool())
        await bounded(waiting)
        source.give(text("a"))
        await stream.aclose()
    assert timers() == before


async def test_merge_is_fair_to_a_slow_source() -> None:
    async def forever() -> AsyncGenerator[str]:
        while True:
            yield "fast"

    slow = Script()
    async with streams.merge(forever(), slow, ahead=4) as stream:
        assert await bounded(anext(stream)) == "fast"
        slow.give("slow")
        seen = [await bounded(anext(stream)) for _ in range(12)]
        assert "slow" in seen


@pytest.mark.parametrize("name", ["merge", "throttle", "timeout"])
async def test_backpressure_holds(name: str) -> None:
    source = Script().give(*(tool(str(n)) for n in range(50)))
    make: dict[str, Callable[[], AsyncIterator[Any]]] = {
        "merge": lambda: streams.merge(source, ahead=3),
        "throttle": lambda: streams.throttle(source, 0.01, ahead=3),
        "timeout": lambda: streams.timeout(streams.timeout(source, idle_s=9, ahead=1), idle_s=9, ahead=2),
    }
    stream = make[name]()
    await bounded(anext(stream))
    for _ in range(20):
        await asyncio.sleep(0)
    assert source.asked <= 5
    await stream.aclose()  # type: ignore[attr-defined]


async def test_buffer_by_count_by_time_and_at_the_end() -> None:
    source = Script().give(*range(5))
    stream = streams.buffer(source, 2, 0.3)
    assert [await bounded(anext(stream)) for _ in range(3)] == [[0, 1], [2, 3], [4]]
    source.give(5).end()
    assert await collect(stream) == [[5]]
    assert await collect(streams.buffer(Script().give(*range(7)).end(), ahead=3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert await collect(streams.buffer(Script().end(), 2)) == []
    with pytest.raises(ValueError, match="max_items"):
        streams.buffer(Script(), 0)


async def test_timeout_in_total_gives_first_what_had_come() -> None:
    source = Script()
    stream = streams.timeout(source, total_s=0.3)
    source.give(1)
    assert await bounded(anext(stream)) == 1
    source.give(2)
    await until(lambda: source.closed == 1)
    assert await bounded(anext(stream)) == 2
    with pytest.raises(ts.StreamTimeout) as caught:
        await bounded(anext(stream))
    assert caught.value.kind == "total"
    assert await collect(stream) == []
    assert await collect(streams.timeout(Script().give(1).end(), total_s=3600)) == [1]


async def test_tee_gives_all_to_all_and_the_slow_one_holds_back() -> None:
    source = Script().give(*range(10)).end()
    fast, slow = streams.tee(source, ahead=2)
    assert [await bounded(anext(fast)) for _ in range(2)] == [0, 1]
    waiting = asyncio.ensure_future(anext(fast))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert await bounded(anext(slow)) == 0
    assert await bounded(waiting) == 2
    await slow.aclose()
    assert source.closed == 0
    assert await collect(fast) == list(range(3, 10))
    assert source.closed == 1


async def test_tee_is_not_held_by_a_branch_that_was_dropped_before_anything_began() -> None:
    async def numbers() -> AsyncGenerator[int]:
        for number in range(20):
            yield number

    kept = streams.tee(numbers(), 3, ahead=2)[1]
    assert [number async for number in kept] == list(range(20))


async def test_tee_frees_the_source_with_its_last_branch_also_when_they_are_dropped() -> None:
    source = Script().give(1)
    one, two = streams.tee(source)
    assert await bounded(anext(one)) == 1
    del one
    assert await bounded(anext(two)) == 1
    assert source.closed == 0
    del two
    await until(lambda: source.closed == 1)
    left, right = streams.tee(unread := Script())
    await left.aclose()
    await right.aclose()
    assert (unread.closed, unread.asked) == (1, 0)


async def test_error_boundary_makes_an_error_an_event() -> None:
    async def fails(error: BaseException) -> AsyncGenerator[int]:
        yield 1
        raise error

    one, error = await collect(streams.error_boundary(fails(LookupError("broke"))))
    assert (one, error.type, error.code, error.message, error.fatal) == (
        1,
        "error",
        "source_failed",
        "LookupError: broke",
        True,
    )
    idle = streams.error_boundary(streams.timeout(Script(), idle_s=0.01))
    [timed_out] = await collect(idle)
    assert (timed_out.code, timed_out.retryable) == ("stream_timeout", True)
    with pytest.raises(asyncio.CancelledError):
        await collect(streams.error_boundary(fails(asyncio.CancelledError())))
    assert await collect(streams.error_boundary(Script().give(1).end())) == [1]


async def test_error_boundary_takes_an_error_that_cannot_say_what_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    (event,) = [event async for event in streams.error_boundary(Script().end(Mute()))]
    assert isinstance(event, ts.Error)
    assert event.message == "Mute"


async def test_throttle_flushes_before_an_error_and_gives_what_is_no_event() -> None:
    source = Script().give(text("a"), 7, text("b"), text("c")).end(LookupError("broke"))
    got = await until_error(streams.throttle(source, 3600))
    assert [getattr(item, "text", item) for item in got] == ["a", 7, "bc"]


async def test_throttle_gives_full_chunks_before_the_interval_and_keeps_an_open_end() -> None:
    source = Script().give(text("x" * 10), text("👩"))
    stream = streams.throttle(source, 3600, max_bytes=10)
    assert (await bounded(anext(stream))).text == "x" * 10
    source.give(text("\u200d💻"), tool())
    assert told([await bounded(anext(stream)) for _ in range(2)]) == ["👩\u200d💻", "tool_call_start"]
    await stream.aclose()


async def test_throttle_of_an_endless_source_flushes_by_time() -> None:
    ran_away = False

    async def endless() -> AsyncGenerator[ts.TextDelta]:
        nonlocal ran_away
        for _ in range(200_000):
            yield text("x")
        ran_away = True

    async with streams.throttle(endless(), 0.01, max_bytes=0, ahead=100) as stream:
        for _ in range(3):
            assert set((await bounded(anext(stream))).text) == {"x"}
        stream.close()
        for _ in range(5):
            await asyncio.sleep(0)  # the source is read on, to be counted, and this task still runs
        assert len(await collect(stream)) <= 1
    assert stream.late > 0
    assert not ran_away


async def test_a_second_waiter_is_told() -> None:
    source = Script()
    stream = streams.merge(source)
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: source.asked == 1)
    with pytest.raises(ts.ReaderBusy):
        await anext(stream)
    source.give(1)
    assert await bounded(waiting) == 1
    await stream.aclose()


@pytest.mark.parametrize("handed_over", [True, False])
async def test_a_task_that_ends_in_a_cancelled_wait_frees_the_source_unless_another_reads_on(handed_over: bool) -> None:
    source, gave_up, then = Script(), asyncio.Event(), asyncio.Event()
    stream = streams.merge(source)

    async def gives_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(stream)
        gave_up.set()
        await then.wait()

    task = asyncio.ensure_future(gives_up())
    await bounded(gave_up.wait())
    if handed_over:
        source.give(1)
        assert await bounded(anext(stream)) == 1
    then.set()
    await bounded(task)
    if handed_over:
        source.give(2)
        assert await bounded(anext(stream)) == 2
        await stream.aclose()
    else:
        await until(lambda: source.closed == 1)
        assert await collect(stream) == []


async def test_what_closing_a_source_raises_is_said() -> None:
    class Bad(Script):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("cannot close")

    stream = streams.merge(source := Bad().give(1))
    assert await bounded(anext(stream)) == 1
    with pytest.raises(OSError, match="cannot close"):
        await stream.aclose()
    await stream.aclose()
    assert source.closed == 1


async def test_a_cancel_while_the_source_closes_leaves_the_error_for_the_next_call() -> None:
    closing, may_close = asyncio.Event(), asyncio.Event()

    class Slow(Script):
        async def aclose(self) -> None:
            closing.set()
            await may_close.wait()
            await super().aclose()

    stream = streams.merge(Slow(), Script().end(LookupError("broke")))
    waiting = asyncio.ensure_future(anext(stream))
    await bounded(closing.wait())
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    may_close.set()
    with pytest.raises(LookupError):
        await bounded(anext(stream))
    assert await collect(stream) == []


async def test_sources_are_readers_queues_and_normalized_streams() -> None:
    hub = ts.Hub()
    session = hub.session("s")
    with session.turn("x") as turn:
        for piece in "Hello":
            turn.emit("text_delta", message_id="m", text=piece)
    reader = session.read()
    events = await collect(streams.throttle(reader, 3600))
    assert [event.type for event in events] == [
        "turn_start",
        "message_start",
        "text_delta",
        "assistant_message",
        "completion",
    ]
    assert events[2].text == "Hello"
    assert session.statistics()["readers"] == 0
    body = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'
    kinds = [event.type for event in await collect(streams.merge(ts.normalize(body, "openai-chat"), session.read()))]
    assert kinds.count("completion") == 1
    assert kinds.count("text_delta") == 6
    async with streams.throttle(session.read(follow="session"), 0.01) as live:
        async for event in live:
            if event.type == "completion":
                break
    assert session.statistics()["readers"] == 0


async def test_a_chain_is_freed_as_one() -> None:
    source = Script().give(text("a"), tool())
    chain = streams.error_boundary(
        streams.map(streams.throttle(streams.timeout(streams.merge(source), idle_s=9), 0.01), lambda event: event.type)
    )
    async with aclosing(chain):
        assert await bounded(anext(chain)) == "text_delta"
    assert source.closed == 1


async def test_what_cannot_hold_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="ahead"):
        streams.merge(Script(), ahead=0)
    with pytest.raises(ValueError, match="n: expected"):
        streams.tee(Script(), 0)


PIECES = st.tuples(st.sampled_from(["m1", "m2"]), st.text("aé👩\u200d💻🇨🇭\u0301\r\n", max_size=5))


@given(
    script=st.lists(PIECES | st.just(None), max_size=30),
    max_bytes=st.sampled_from([0, 1, 7, 40]),
    interval_s=st.sampled_from([0.0, 3600.0]),
)
def test_throttle_changes_nothing_but_where_texts_are_cut(
    script: list[tuple[str, str] | None], max_bytes: int, interval_s: float
) -> None:
    def whole(events: list[Any]) -> list[Any]:
        out: list[Any] = []
        for event in events:
            if isinstance(event, ts.TextDelta) and out and out[-1][0] == event.message_id:
                out[-1] = (event.message_id, out[-1][1] + event.text)
            else:
                out.append((event.message_id, event.text) if isinstance(event, ts.TextDelta) else (event.type, ""))
        return out

    events = [text(one[1], one[0]) if one else tool() for one in script]

    async def throttled() -> list[Any]:
        return await collect(streams.throttle(Script().give(*events).end(), interval_s, max_bytes=max_bytes))

    assert whole(asyncio.run(throttled())) == whole(events)


async def test_the_code_in_the_documentation_runs() -> None:
    page = (ROOT / "docs" / "streams.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        running = eval(compile(block, "docs/streams.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if running is not None:
            await bounded(running)
    assert names["shown"] == ["Hello world"]
    assert names["pairs"] == [[0, 2], [4, 6], [8]]
    assert sorted(names["both"]) == sorted([*range(5)] * 2)
    assert names["last"].code == "stream_timeout"
    assert names["seen"] == [8, 10]
