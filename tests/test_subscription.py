"""`session.subscribe`: callbacks in order, where they were registered; a failing one is counted and harms nobody."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from support import Gate, until

import turnstream as ts

PATIENCE_S = 30.0
place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="nowhere")


@pytest.fixture
def session() -> ts.Session:
    return ts.Hub().session("s")


@pytest.fixture
async def nothing_is_left() -> AsyncGenerator[None]:
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


def speak(turn: ts.Turn, count: int) -> None:
    for number in range(count):
        turn.emit("text_delta", message_id="m", text=f"w{number} ")


def kinds(events: list[Any]) -> list[str]:
    return [event.type for event in events]


ALL = ["turn_start", "message_start", "text_delta", "text_delta", "assistant_message", "completion"]


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.usefixtures("nothing_is_left")
async def test_a_callback_gets_all_in_order_on_its_loop_and_in_its_context(session: ts.Session, is_async: bool) -> None:
    got: list[Any] = []
    running = 0

    def note(event: ts.Event) -> None:
        got.append((event.seq, threading.get_ident(), place.get()))

    async def note_later(event: ts.Event) -> None:
        nonlocal running
        running += 1
        assert running == 1, "one at a time"
        await asyncio.sleep(0)
        note(event)
        running -= 1

    token = place.set("here")
    subscription = session.subscribe(note_later if is_async else note)
    place.reset(token)

    def work() -> None:
        with session.turn() as turn:
            speak(turn, 300)

    await asyncio.to_thread(work)
    await subscription.drain()
    assert got == [(seq, threading.get_ident(), "here") for seq in range(1, session.head + 1)]
    assert (subscription.delivered, subscription.failed, subscription.dropped) == (session.head, 0, 0)
    subscription.close()
    assert not subscription.active
    await subscription.drain()


def test_without_a_loop_it_runs_in_a_thread_of_its_own(session: ts.Session) -> None:
    got: list[Any] = []

    def note(event: ts.Event) -> None:
        thread = threading.current_thread()
        got.append((event.type, thread is threading.main_thread(), thread.daemon, place.get()))

    async def note_later(event: ts.Event) -> None:
        await asyncio.sleep(0)
        note(event)

    token = place.set("there")
    subscriptions = [session.subscribe(note), session.subscribe(note_later)]
    place.reset(token)
    with session.turn() as turn:
        speak(turn, 2)
    for subscription in subscriptions:
        assert subscription.wait_drained(PATIENCE_S)
        assert subscription.delivered == len(ALL)
        subscription.close()
    assert sorted(got) == sorted([(kind, False, True, "there") for kind in ALL * 2])
    assert all(subscription.wait_drained(PATIENCE_S) for subscription in subscriptions)


def test_a_drain_that_takes_too_long_says_so(session: ts.Session) -> None:
    gate = Gate()
    with session.subscribe(lambda event: gate.wait()) as subscription:
        session.emitter()("custom", name="x")
        assert subscription.wait_drained(0.01) is False
        gate.open()
        assert subscription.wait_drained(PATIENCE_S) is True


@pytest.mark.usefixtures("nothing_is_left")
async def test_types_cursor_and_follow(session: ts.Session) -> None:
    with session.turn() as turn:
        speak(turn, 2)
    texts: list[Any] = []
    later: list[Any] = []
    async with session.subscribe(texts.append, types="text_delta", follow="turn"):
        pass
    assert kinds(texts) == ["text_delta", "text_delta"]
    async with session.subscribe(
        later.append, after=session.cursor, types=["turn_start", "completion"]
    ) as subscription:
        with session.turn():
            pass
    assert (kinds(later), [event.turn for event in later]) == (["turn_start", "completion"], [2, 2])
    assert repr(subscription) == "<Subscription to 's' delivered=2 failed=0 dropped=0 ended>"
    joined: list[Any] = []
    async with session.subscribe(joined.append, follow="none", deltas="merged", types={"text_delta"}):
        pass
    assert [event.text for event in joined] == ["w0 w1 "]
    with pytest.raises(ValueError, match="no_such_type"):
        session.subscribe(print, types=["no_such_type"])
    with pytest.raises(ValueError, match="backlog"):
        session.subscribe(print, backlog=0)
    with pytest.raises(ts.CursorError):
        session.subscribe(print, after="garbage")


@pytest.mark.usefixtures("nothing_is_left")
async def test_it_ends_with_what_it_follows(session: ts.Session) -> None:
    got: list[Any] = []
    one = session.subscribe(got.append, follow="turn")
    two = session.subscribe(got.append)
    with session.turn():
        pass
    await one.drain()
    await until(lambda: not one.active)
    assert two.active
    session.close()
    await two.drain()
    await until(lambda: not two.active)
    assert kinds(got).count("session_end") == 1
    assert session.statistics()["readers"] == 0


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_edge_44_a_failing_callback_is_counted_and_the_agent_goes_on(
    session: ts.Session, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(event: ts.Event) -> None:
        raise LookupError("no such row: secret")

    async def fails_later(event: ts.Event) -> None:
        await asyncio.sleep(0)
        fails(event)

    good: list[Any] = []
    bad = session.subscribe(fails_later if is_async else fails)
    session.subscribe(good.append).close()
    well = session.subscribe(good.append)
    with caplog.at_level(logging.CRITICAL, "turnstream"), session.turn() as turn:
        speak(turn, 2)
        await bad.drain()
        seen = bad.failed
        assert turn.emit("custom", name="goes on") > 0
    assert seen >= 4
    await bad.drain()
    await well.drain()
    [warning] = [event for event in good if event.type == "warning"]
    assert (warning.code, warning.turn) == ("subscriber_failed", 1)
    assert "LookupError" in warning.message
    assert "secret" not in warning.message
    completion = good[-1]
    assert (completion.type, completion.status, completion.subscriber_failures) == ("completion", "completed", seen)
    assert (bad.delivered, bad.failed) == (0, session.head)
    assert session.statistics()["subscriber_failures"] == session.head
    assert session.status()["subscriber_failures"] == session.head
    assert (session.result() or {})["subscriber_failures"] == seen
    bad.close()
    with session.turn():  # the flag is the turn's own
        pass
    await well.drain()
    assert good[-1].subscriber_failures is None
    assert "subscriber_failures" not in good[-1].to_dict()
    well.close()


async def test_edge_44_the_end_of_a_session_that_a_callback_fails_on(session: ts.Session) -> None:
    def fails(event: ts.Event) -> None:
        if event.type == "session_end":
            raise LookupError

    subscription = session.subscribe(fails)
    session.close()
    await subscription.drain()
    await until(lambda: not subscription.active)
    assert (subscription.failed, session.statistics()["subscriber_failures"]) == (1, 1)


@pytest.mark.usefixtures("nothing_is_left")
async def test_a_cancellation_that_a_callback_raises_is_its_failure(session: ts.Session) -> None:
    async def fails(event: ts.Event) -> None:
        raise asyncio.CancelledError

    subscription = session.subscribe(fails)
    session.emitter()("custom", name="x")
    await subscription.drain()
    assert subscription.active
    assert (subscription.failed, session.head) == (2, 2)  # the warning of the first is an event too
    subscription.close()


# --- a slow one -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_left")
async def test_what_cannot_be_called_is_refused(session: ts.Session) -> None:
    for wrong in (None, "print", asyncio.sleep(0)):
        with pytest.raises(TypeError, match="callback"):
            session.subscribe(wrong)  # type: ignore[arg-type]
        if asyncio.iscoroutine(wrong):
            wrong.close()


def test_a_callback_that_exits_its_thread_is_said(session: ts.Session, caplog: pytest.LogCaptureFixture) -> None:
    def leave(event: ts.Event) -> None:
        raise SystemExit

    turn = session.turn()
    subscription = session.subscribe(leave)
    assert subscription.wait_drained(20)
    assert (subscription.failed, subscription.active) == (1, False)
    assert "SystemExit" in caplog.text
    turn.complete()


async def test_a_slow_callback_misses_deltas_with_a_gap_and_no_boundary_event(session: ts.Session) -> None:
    got: list[Any] = []
    gate = asyncio.Event()

    async def slow(event: ts.Event) -> None:
        got.append(event)
        await gate.wait()

    subscription = session.subscribe(slow, backlog=10)
    with session.turn() as turn:
        await until(lambda: len(got) == 1)
        speak(turn, 50)
        turn.emit("custom", name="in between")
        speak(turn, 50)
    gate.set()
    await subscription.drain()
    subscription.close()
    # 1 turn_start, 2 message_start, 3-52 deltas, 53 custom, 54-103 deltas, 104 assistant_message, 105 completion
    seqs = [(event.first, event.last, event.reason) if event.type == "gap" else event.seq for event in got]
    assert seqs == [1, 2, (3, 52, "backlog"), 53, (54, 95, "backlog"), *range(96, 106)]
    assert (subscription.dropped, subscription.delivered) == (92, len(got))


@pytest.mark.usefixtures("nothing_is_left")
async def test_what_has_left_the_log_is_a_gap_too() -> None:
    session = ts.Hub(limits=ts.Limits(max_events=20)).session("s")
    got: list[Any] = []
    gate = asyncio.Event()

    async def slow(event: ts.Event) -> None:
        got.append(event)
        await gate.wait()

    subscription = session.subscribe(slow)
    emit = session.emitter()
    emit("custom", name="first")
    await until(lambda: len(got) == 1)
    for _ in range(300):
        emit("custom", name="x")
    gate.set()
    await subscription.drain()
    subscription.close()
    missing = [event for event in got if event.type == "gap"]
    assert missing
    assert subscription.dropped == sum(event.last - event.first + 1 for event in missing)
    assert subscription.dropped + sum(event.type == "custom" for event in got) == 301


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_left")
async def test_close_lets_a_running_call_end_and_begins_no_other(session: ts.Session) -> None:
    gate, got = asyncio.Event(), list[Any]()

    async def slow(event: ts.Event) -> None:
        await gate.wait()
        got.append(event)

    subscription = session.subscribe(slow)
    emit = session.emitter()
    emit("custom", name="one")
    emit("custom", name="two")
    for _ in range(5):
        await asyncio.sleep(0)
    draining = asyncio.ensure_future(subscription.drain())
    await asyncio.sleep(0)
    subscription.close()
    assert not draining.done()
    gate.set()
    await asyncio.wait_for(draining, PATIENCE_S)
    assert [event.name for event in got] == ["one"]


@pytest.mark.usefixtures("nothing_is_left")
async def test_a_callback_may_close_itself_and_may_not_wait_for_itself(session: ts.Session) -> None:
    said: list[str] = []

    async def callback(event: ts.Event) -> None:
        try:
            await subscription.drain()
        except RuntimeError as error:
            said.append(str(error))
        subscription.close()

    subscription = session.subscribe(callback)
    emit = session.emitter()
    emit("custom", name="one")
    emit("custom", name="two")
    await subscription.drain()
    assert said == ["a callback cannot wait for itself"]
    assert subscription.delivered == 1
    with session.subscribe(print) as other, pytest.raises(ts.WouldBlock):
        other.wait_drained()


@pytest.mark.usefixtures("nothing_is_left")
async def test_an_exception_in_the_block_is_not_held_up_by_a_drain(session: ts.Session) -> None:
    gate = asyncio.Event()

    async def stuck(event: ts.Event) -> None:
        await gate.wait()

    async def leave() -> None:
        async with asyncio.timeout(PATIENCE_S), session.subscribe(stuck):
            await asyncio.sleep(0)
            raise LookupError

    session.emitter()("custom", name="x")
    with pytest.raises(LookupError):
        await leave()
    gate.set()


def test_a_loop_that_ends_ends_its_subscriptions(
    session: ts.Session, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> ts.Subscription:
        subscription = session.subscribe(lambda event: None)
        session.emitter()("custom", name="x")
        await subscription.drain()
        return subscription

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        subscription = runner.run(main())
    assert not subscription.active
    assert session.statistics()["readers"] == 0
    session.emitter()("custom", name="y")
    assert subscription.wait_drained(PATIENCE_S)


@pytest.mark.processes
def test_an_interpreter_exits_with_callbacks_running(subprocess_python: Callable[..., list[str]]) -> None:
    code = """
import threading
import turnstream as ts
session = ts.Hub().session("s")
session.subscribe(lambda event: None)
async def later(event):
    pass
session.subscribe(later)
emit = session.emitter()
def work():
    while True:
        emit("custom", name="x")
threading.Thread(target=work, daemon=True).start()
session.read(follow="session").get()
print("done")
"""
    assert subprocess_python(code, 10) == ["done\n"] * 10
