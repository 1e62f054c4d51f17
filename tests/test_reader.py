"""Readers from Python: late, early, repeated, resumed, batched, paced, cancelled, closed."""

import asyncio
import gc
import re
import threading
import time
import weakref

import pytest

import turnstream as ts


@pytest.fixture
def session() -> ts.Session:
    return ts.Hub().session()


def fill(session: ts.Session, count: int) -> ts.Turn:
    turn = session.turn()
    for i in range(count):
        turn.emit("custom", name="x", data=i)
    return turn


async def collect(reader: ts.Reader) -> list[ts.Event]:
    return [event async for event in reader]


async def test_edge_48_late_early_and_repeated_readers_see_the_same(session: ts.Session) -> None:
    early = [asyncio.create_task(collect(session.read())) for _ in range(2)]
    await asyncio.sleep(0)
    turn = fill(session, 100)
    middle = asyncio.create_task(collect(session.read()))
    await asyncio.sleep(0)
    turn.complete()
    late = await collect(session.read())
    assert [event.seq for event in late] == list(range(1, 103))
    assert late[-1].type == "completion"
    for task in (*early, middle):
        assert await task == late
    assert list(session.read()) == late


async def test_edge_51_a_cursor_goes_on_right_after_it(session: ts.Session) -> None:
    fill(session, 10).complete()
    reader = session.read()
    seen = [await anext(reader) for _ in range(4)]
    cursor = reader.cursor
    assert cursor == f"{session.epoch}.{seen[-1].seq}"
    rest = await collect(session.read(after=cursor))
    assert [event.seq for event in rest] == list(range(5, 13))
    assert session.read(after=cursor).status == "resumed"
    done = session.read(after=session.cursor)
    assert done.status == "finished"
    assert await collect(done) == []


@pytest.mark.parametrize("cursor", ["", "zzz", "1", "a.b", "a.-1", "a:1", "é.1", "a." + "9" * 30])
def test_edge_52_garbage_is_no_cursor(session: ts.Session, cursor: str) -> None:
    with pytest.raises(ts.CursorError) as error:
        session.read(after=cursor)
    assert error.value.code == "malformed_cursor"
    assert not cursor or cursor not in str(error.value).replace("<epoch>.<seq>", "")


def test_edge_52_zero_is_the_beginning_of_a_fresh_session(session: ts.Session) -> None:
    fill(session, 1).complete()
    assert [event.seq for event in session.read(after="0")] == [1, 2, 3]


def test_trimmed_history_is_a_snapshot_or_on_request_an_error() -> None:
    session = ts.Hub(limits=ts.Limits(max_events=5)).session()
    fill(session, 20).complete()
    first = next(iter(session.read()))
    assert isinstance(first, ts.Snapshot)
    with pytest.raises(ts.CursorExpired):
        session.read(after=f"{session.epoch}.1", on_trim="fail")


def test_words_that_are_no_policy_are_refused(session: ts.Session) -> None:
    for wrong in ({"follow": "x"}, {"deltas": "x"}, {"on_trim": "x"}):
        with pytest.raises(ValueError, match="expected"):
            session.read(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_events"):
        session.read().batches(0)


async def test_batches_hold_everything_once(session: ts.Session) -> None:
    fill(session, 1000).complete()
    sizes, seqs = [], []
    async for batch in session.read().batches(64):
        sizes.append(len(batch))
        seqs += [event.seq for event in batch]
    assert seqs == list(range(1, 1003))
    assert max(sizes) == 64
    assert [event.seq for batch in session.read().batches(10) for event in batch] == seqs


async def test_merged_deltas_are_whole(session: ts.Session) -> None:
    with session.turn() as turn:
        for piece in "Hello, wörld 👋":
            turn.emit("text_delta", text=piece)
        turn.emit("tool_call_start", call_id="c", name="f")
        for piece in '{"a": 1}':
            turn.emit("tool_call_delta", call_id="c", text=piece)
    events = [event.to_dict() async for event in session.read(deltas="merged")]
    assert [event["text"] for event in events if event["type"] == "text_delta"] == ["Hello, wörld 👋"]
    assert [event["text"] for event in events if event["type"] == "tool_call_delta"] == ['{"a": 1}']
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(seqs)


async def test_a_ready_reader_lets_others_run(session: ts.Session) -> None:
    fill(session, 2000).complete()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async for _ in session.read():
        pass
    ticker.cancel()
    assert ticks >= 2000 // 128


async def test_a_cancelled_wait_loses_nothing(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read()
    assert (await anext(reader)).seq == 1
    for i in range(50):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(reader), 0.001)
        turn.emit("custom", name="x", data=i)
        event = await asyncio.wait_for(anext(reader), 30)
        assert isinstance(event, ts.Custom)
        assert event.data == i
    turn.complete()


async def test_a_second_waiter_is_told(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read()
    await anext(reader)
    first = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    with pytest.raises(ts.ReaderBusy):
        await anext(reader)
    turn.complete()
    assert (await first).type == "completion"


async def test_closing_ends_a_parked_reader(session: ts.Session) -> None:
    turn = session.turn()
    async with session.read() as reader:
        assert (await anext(reader)).seq == 1
        waiting = asyncio.create_task(collect(reader))
        await asyncio.sleep(0.01)
        assert session.status()["readers"] == 1
        reader.close()
        assert await asyncio.wait_for(waiting, 30) == []
    assert session.status()["readers"] == 0
    turn.complete()


async def test_a_thread_wakes_a_parked_reader(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read()
    await anext(reader)

    def emit() -> None:
        for i in range(100):
            turn.emit("custom", name="x", data=i)
            time.sleep(0.0001)
        turn.complete()

    thread = threading.Thread(target=emit)
    thread.start()
    events = await asyncio.wait_for(collect(reader), 30)
    thread.join()
    assert [event.data for event in events if isinstance(event, ts.Custom)] == list(range(100))


def test_a_blocking_reader_waits_with_the_interpreter_released(session: ts.Session) -> None:
    turn = session.turn()
    seen: list[ts.Event] = []
    thread = threading.Thread(target=lambda: seen.extend(session.read()))
    thread.start()
    for i in range(50):
        turn.emit("custom", name="x", data=i)
    turn.complete()
    thread.join(30)
    assert not thread.is_alive()
    assert [event.seq for event in seen] == list(range(1, 53))


async def test_a_pacing_reader_holds_the_producer(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read(pace=True)
    sent = 0

    async def produce() -> None:
        nonlocal sent
        for i in range(2000):
            await turn.ready()
            turn.emit("custom", name="x", data=i)
            sent += 1
        turn.complete()

    producer = asyncio.create_task(produce())
    await asyncio.sleep(0.05)
    assert sent <= 257
    seen = [event async for event in reader]
    await producer
    assert [event.data for event in seen if isinstance(event, ts.Custom)] == list(range(2000))


async def test_a_pacing_reader_that_leaves_frees_the_producer(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read(pace=True)
    for i in range(300):
        turn.emit("custom", name="x", data=i)
    waiting = asyncio.ensure_future(_ready(turn))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    reader.close()
    await asyncio.wait_for(waiting, 30)


async def _ready(turn: ts.Turn) -> None:
    await turn.ready()


@pytest.mark.parametrize("who", ["turn", "emitter"])
def test_a_thread_waits_until_a_pacing_reader_has_room(session: ts.Session, who: str) -> None:
    turn = session.turn()
    gate = turn if who == "turn" else session.emitter()
    assert gate.wait_ready() is True  # nobody paces
    reader = session.read(pace=True)
    emitted = 0

    def produce() -> None:
        nonlocal emitted
        for number in range(1000):
            gate.wait_ready()
            turn.emit("custom", name="x", data=number)
            emitted = number + 1
        turn.complete()

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    lags, seqs = [], []
    for event in reader:
        lags.append(emitted + 1 - (event.seq or 0))
        seqs.append(event.seq)
    producer.join(30)
    assert not producer.is_alive()
    assert seqs == list(range(1, 1003))
    assert max(lags) <= 256 + 128  # the window, and what the reader has fetched


def test_a_wait_for_room_has_a_timeout_and_may_end_by_the_readers_leaving(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read(pace=True)
    for number in range(300):
        turn.emit("custom", name="x", data=number)
    begun = time.monotonic()
    assert turn.wait_ready(0) is False
    assert turn.wait_ready(0.02) is False
    assert session.emitter().wait_ready(timeout=-1) is False
    assert 0.02 <= time.monotonic() - begun < 5
    threading.Timer(0.02, reader.close).start()
    assert turn.wait_ready(10) is True
    turn.complete()


async def test_a_wait_for_room_never_stops_a_loop(session: ts.Session) -> None:
    turn = session.turn()
    assert turn.wait_ready() is True
    reader = session.read(pace=True)
    for number in range(300):
        turn.emit("custom", name="x", data=number)
    with pytest.raises(ts.WouldBlock, match="ready"):
        turn.wait_ready()
    waiting = asyncio.ensure_future(session.emitter().ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.close()
    await asyncio.wait_for(waiting, 30)
    turn.complete()


async def test_a_blocking_reader_never_stops_a_loop(session: ts.Session) -> None:
    turn = fill(session, 3)
    reader = session.read()
    blocking = iter(reader)
    assert [next(blocking).seq for _ in range(4)] == [1, 2, 3, 4]  # what is ready needs no wait
    with pytest.raises(ts.WouldBlock, match="async for"):
        next(blocking)
    with pytest.raises(ts.WouldBlock):
        list(reader.batches())
    with pytest.raises(ts.WouldBlock):
        reader.get(1)
    frames = iter(session.frames())
    next(frames)
    with pytest.raises(ts.WouldBlock):
        next(frames)
    turn.complete()
    assert [event.seq for event in blocking] == [5]  # nothing was taken
    assert [event.seq for event in session.read()] == [1, 2, 3, 4, 5]


def test_get_takes_the_next_event_waits_no_longer_than_told_and_loses_nothing(session: ts.Session) -> None:
    reader = session.read()
    begun = time.monotonic()
    with pytest.raises(ts.StreamTimeout):
        reader.get(0)
    with pytest.raises(TimeoutError):
        reader.get(timeout=0.02)
    assert 0.02 <= time.monotonic() - begun < 5
    threading.Timer(0.02, fill(session, 1).complete).start()
    got = [reader.get(10) for _ in range(4)]
    assert [event.seq if event else None for event in got] == [1, 2, 3, None]
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout"):
            reader.get(wrong)


async def test_a_thread_takes_no_event_from_the_task_that_waits(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read(after=session.cursor)
    task = asyncio.create_task(anext_of(reader))
    await asyncio.sleep(0)
    for ask in (lambda: reader.get(0), lambda: next(iter(reader)), lambda: next(iter(reader.batches()))):
        with pytest.raises(ts.ReaderBusy):
            await asyncio.to_thread(ask)
    turn.emit("custom", name="x")
    assert (await asyncio.wait_for(task, 30)).seq == 2
    turn.complete()


async def anext_of(reader: ts.Reader) -> ts.Event:
    return await anext(reader)


def test_a_second_thread_is_told_that_one_waits(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read(after=session.cursor)
    got: list[ts.Event | None] = []
    thread = threading.Thread(target=lambda: got.append(reader.get(30)))
    thread.start()
    busy = None
    until = time.monotonic() + 30
    while busy is None and time.monotonic() < until:  # it may not wait yet
        try:
            reader.get(0)
        except ts.ReaderBusy as error:
            busy = error
        except ts.StreamTimeout:
            pass
    turn.emit("custom", name="x")
    thread.join(30)
    assert busy is not None
    assert [event.seq for event in got if event] == [2]
    turn.complete()


async def test_a_reader_is_freed(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read()
    await anext(reader)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(reader), 0.001)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None
    assert session.status()["readers"] == 0
    turn.complete()


def test_one_reader_may_move_between_loops(session: ts.Session) -> None:
    turn = session.turn()
    reader = session.read()

    async def one() -> ts.Event:
        return await anext(reader)

    async def time_out() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(reader), 0.001)

    assert asyncio.run(one()).seq == 1
    asyncio.run(time_out())
    threading.Timer(0.02, lambda: turn.emit("custom", name="x")).start()
    assert asyncio.run(one()).seq == 2
    turn.complete()


async def test_frames_say_where_the_log_stands_and_beat(session: ts.Session) -> None:
    turn = session.turn()
    frames = session.frames(heartbeat_s=0.02)
    first = await anext(frames)
    assert first.startswith(b"event: stream_open\ndata: ")
    assert b"event: turn_start" in first
    beat = await asyncio.wait_for(anext(frames), 30)
    assert re.fullmatch(rb": heartbeat progress_age_s=\d+\.\d\n", beat)
    turn.complete()
    rest = b"".join([chunk async for chunk in frames])
    assert rest.count(b"event: completion") == 1
    assert b"\r" not in first + rest
    with pytest.raises(ValueError, match="heartbeat_s"):
        session.frames(heartbeat_s=-1)
