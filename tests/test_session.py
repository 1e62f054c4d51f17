"""Hubs, sessions, turns and emitters from Python."""

import asyncio
import concurrent.futures
import copy
import dataclasses
import datetime
import gc
import pickle
import threading
import uuid
from typing import Any

import pytest

import turnstream as ts


def kinds(session: ts.Session) -> list[str]:
    return [event.type for event in session.read(follow="none")]


@pytest.fixture
def session() -> ts.Session:
    return ts.Hub().session("s-1")


def test_what_is_no_number_of_things_is_said_so(session: ts.Session) -> None:
    for limit in (0, -1):
        with pytest.raises(ValueError, match="above 0"):
            ts.Limits(max_events=limit)
        with pytest.raises(ValueError, match="at least 1"):
            session.read().batches(limit)
        with pytest.raises(ValueError, match="at least 1"):
            session.subscribe(print, backlog=limit)
        with pytest.raises(ValueError, match="at least 1"):
            ts.EventQueue(limit)
    for number in (-1, 2**70):
        with pytest.raises(ts.PayloadError, match="turn"):
            session.emitter()("custom", name="x", turn=number)
        for name in ("seq", "turn"):
            with pytest.raises(ts.PayloadError, match=name):
                ts.Custom(name="x", **{name: number})


# --- hub --------------------------------------------------------------------------------------------------------------


def test_a_hub_makes_finds_lists_and_deletes() -> None:
    hub = ts.Hub()
    one = hub.session("one")
    assert hub.session("one") == one
    assert hub.find("one") == one
    with pytest.raises(ts.UnknownSession) as error:
        hub.find("two")
    assert error.value.code == "unknown_session"
    two = hub.session()
    assert len(two.id) >= 26
    assert two.id != hub.session().id
    assert len(hub.sessions()) == 3
    assert hub.delete("one")
    assert not hub.delete("one")
    with pytest.raises(ts.SessionClosed):
        one.turn()


def test_what_things_are_is_in_their_repr() -> None:
    hub = ts.Hub()
    session = hub.session("s-1")
    assert repr(hub) == '<Hub "memory" sessions=1>'
    assert repr(session.emitter()) == '<Emitter of "s-1">'
    with session.turn() as turn:
        assert repr(turn) == '<Turn 1 of "s-1">'
        assert repr(session) == '<Session "s-1" running head=1>'
    reader = session.read()
    next(iter(reader))
    assert repr(reader) == '<Reader of "s-1" after 1, live>'


def test_what_stays_in_its_process_says_what_goes_to_another(session: ts.Session) -> None:
    with session.turn() as turn:
        for thing in (session, turn, session.emitter()):
            with pytest.raises(TypeError, match="remote_emitter"):
                pickle.dumps(thing)


def test_limits_are_a_value() -> None:
    names = [name for name in dir(ts.Limits) if "max_" in name]
    given: dict[str, Any] = {name: 2.5 if name == "max_age_s" else at for at, name in enumerate(names, 1)}
    limits = ts.Limits(**given)
    assert all(f"{name}={getattr(limits, name)}" in repr(limits) for name in names)
    assert pickle.loads(pickle.dumps(limits)) == copy.copy(limits) == limits != ts.Limits()


def test_limits_and_stores_are_checked() -> None:
    assert ts.Limits(max_events=5).max_events == 5
    for wrong in ({"max_events": 0}, {"max_bytes": 0}, {"max_age_s": 0}, {"max_age_s": float("nan")}):
        with pytest.raises(ValueError, match="limits"):
            ts.Limits(**wrong)
    with pytest.raises(ts.UnknownStore):
        ts.Hub("carrier-pigeon://loft")
    for id in ("", "a\nb", "x" * 257):
        with pytest.raises(ValueError, match="session id"):
            ts.Hub().session(id)


# --- turns ------------------------------------------------------------------------------------------------------------


def test_a_turn_leaves_one_completion_and_its_input_untouched(session: ts.Session) -> None:
    question = {"q": "hi", "n": [1, 2.5, None]}
    with session.turn(input=question, backend="api") as turn:
        assert turn.input is question
        assert (turn.number, turn.cancelled, turn.ended) == (1, False, False)
        assert turn.session == session
        turn.emit("text_delta", text="Hello")
    assert turn.ended
    assert kinds(session) == ["turn_start", "message_start", "text_delta", "assistant_message", "completion"]
    result = session.result()
    assert result is not None
    assert (result["status"], result["text"], result["events"]) == ("completed", "Hello", 5)
    assert session.messages()[0]["input"] == question
    assert all(event.backend == "api" for event in session.read())


def test_an_exception_in_the_agent_is_an_error_and_a_failed_completion(session: ts.Session) -> None:
    def agent(turn: ts.Turn) -> None:
        turn.emit("text_delta", text="Hal")
        raise KeyError("tool")

    with pytest.raises(KeyError), session.turn() as turn:
        agent(turn)
    assert kinds(session)[-3:] == ["error", "assistant_message", "completion"]
    result = session.result()
    assert result is not None
    assert (result["status"], result["error"]["message"], result["text"]) == ("failed", "KeyError: 'tool'", "Hal")
    assert session.status()["state"] == "failed"


def test_a_forgotten_turn_is_failed_as_abandoned(session: ts.Session) -> None:
    session.turn()
    gc.collect()
    result = session.result()
    assert result is not None
    assert (result["status"], result["reason"]) == ("failed", "abandoned")


def test_one_turn_at_a_time(session: ts.Session) -> None:
    with session.turn():
        with pytest.raises(ts.TurnActive):
            session.turn()
        assert session.result() is None
    with session.turn() as second:
        assert second.number == 2


def test_the_same_client_id_starts_nothing_twice(session: ts.Session) -> None:
    first = session.turn(input=1, client_id="k")
    again = session.turn(input=1, client_id="k")
    assert (first.started, again.started, again.number, again.cursor) == (True, False, 1, first.cursor)
    del again
    gc.collect()
    assert not first.ended, "a repeated request's handle owns nothing"
    with pytest.raises(ts.Conflict):
        session.turn(input=2, client_id="k")
    first.complete()


def test_complete_and_fail_count_once(session: ts.Session) -> None:
    turn = session.turn()
    turn.complete("Done.", reason="finished")
    turn.complete("Again.")
    turn.fail("late")
    result = session.result()
    assert result is not None
    assert (result["status"], result["text"], result["reason"]) == ("completed", "Done.", "finished")
    with pytest.raises(ts.TurnEnded):
        turn.emit("custom", name="x")
    with pytest.raises(ValueError, match="status"):
        session.turn().complete(status="fine")  # type: ignore[arg-type]


async def test_cancel_stops_the_task_and_keeps_the_partial_text(session: ts.Session) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def agent() -> None:
        async with session.turn() as turn:
            turn.emit("text_delta", text="par")
            turn.emit("usage", input_tokens=3, output_tokens=1)
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                assert turn.cancelled
                stopped.set()

    task = asyncio.create_task(agent())
    await started.wait()
    assert await session.cancel()
    assert not await session.cancel()
    await stopped.wait()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = session.result()
    assert result is not None
    assert (result["status"], result["text"]) == ("cancelled", "par")
    assert result["usage"]["input_tokens"] == 3
    assert kinds(session).count("completion") == 1


async def test_a_cancelled_turn_leaves_the_next_one_alone(session: ts.Session) -> None:
    first = asyncio.Event()

    async def agent() -> None:
        async with session.turn():
            first.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(agent())
    await first.wait()
    await session.cancel()
    second = session.turn()  # before the first one's block has heard
    await asyncio.wait([task])
    assert task.cancelled()
    assert not second.ended
    second.complete()
    result = session.result()
    assert result is not None
    assert (result["turn"], result["status"]) == (2, "completed")


async def test_a_turn_stays_cancelled_whatever_comes_after_it(session: ts.Session) -> None:
    first = session.turn()
    await session.cancel()
    second = session.turn()
    assert (first.cancelled, second.cancelled) == (True, False)
    second.complete()
    assert (first.cancelled, second.cancelled) == (True, False)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_timeout_around_a_turn_cancels_its_task_once(session: ts.Session, is_async: bool) -> None:
    turn = session.turn()

    async def work() -> None:
        if is_async:
            async with turn:
                await asyncio.Event().wait()
        with turn:
            await asyncio.Event().wait()

    try:
        async with asyncio.timeout(0.01):  # cancels this task
            await work()
    except TimeoutError:
        pass
    assert turn.cancelled
    for _ in range(3):
        await asyncio.sleep(0)  # where a second cancel would come out


async def test_cancel_stops_the_task_of_a_plain_block_too(session: ts.Session) -> None:
    started = asyncio.Event()

    async def agent() -> None:
        with session.turn():
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(agent())
    await started.wait()
    assert await session.cancel()
    await asyncio.wait_for(asyncio.wait([task]), 10)
    assert task.cancelled()


async def test_a_task_that_has_left_the_block_is_not_cancelled(session: ts.Session) -> None:
    async with session.turn() as turn:
        await session.cancel()  # tells the task once the loop comes to it
    assert turn.cancelled
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_turn_ends_with_the_loop_that_ran_it(session: ts.Session, loop_factory: Any) -> None:
    loop = loop_factory()
    tasks = []

    async def agent(started: asyncio.Event) -> None:
        async with session.turn():
            started.set()
            await asyncio.Event().wait()

    async def main() -> None:
        started = asyncio.Event()
        tasks.append(asyncio.create_task(agent(started)))
        await started.wait()

    loop.run_until_complete(main())
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!"
    loop.close()
    tasks.clear()
    gc.collect()
    assert kinds(session)[-1] == "completion"  # a reader in another thread would wait for ever


def test_a_cancel_may_be_left_unawaited(session: ts.Session) -> None:
    turn = session.turn()
    _ = session.cancel()
    del _
    gc.collect()  # warnings are errors here
    assert turn.cancelled
    assert asyncio.run(asyncio.wait_for(session.cancel(), 10)) is False


# --- emitters ---------------------------------------------------------------------------------------------------------


def test_an_emitter_returns_rising_seqs_from_any_thread(session: ts.Session) -> None:
    emit = session.emitter()
    with session.turn(), concurrent.futures.ThreadPoolExecutor(4) as pool:
        seqs = [list(s) for s in pool.map(lambda n: [emit("custom", {"name": str(n)}) for _ in range(200)], range(4))]
    assert sorted(seq for one in seqs for seq in one) == list(range(2, 802))
    assert all(one == sorted(one) for one in seqs)


def test_an_emitter_takes_mappings_keywords_models_and_dataclasses(session: ts.Session) -> None:
    @dataclasses.dataclass
    class Payload:
        name: str
        data: int

    emit = session.emitter()
    with session.turn() as turn:
        emit("custom", {"name": "a", "data": 1}, turn=turn.number)
        emit("custom", name="b", data=2)
        emit("custom", {"name": "c"}, data=3)
        emit("custom", Payload("d", 4))
    data = [event.data for event in session.read() if isinstance(event, ts.Custom)]
    assert data == [1, 2, 3, 4]


def test_an_emitter_refuses_what_is_not_of_the_vocabulary(session: ts.Session) -> None:
    emit = session.emitter()
    for kind, payload in [("nope", {}), ("gap", {}), ("turn_start", {}), ("text_delta", {"text": 1}), ("custom", [1])]:
        with pytest.raises(ts.PayloadError):
            emit(kind, payload)
    with pytest.raises(ts.TurnEnded):
        emit("custom", name="x", turn=7)
    assert session.statistics()["refused"] >= 3
    assert session.head == 0


def test_what_json_cannot_say_becomes_a_placeholder(session: ts.Session) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "secret"

    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    values = {
        "bytes": b"abc",
        "set": {1},
        "nan": float("nan"),
        "inf": float("inf"),
        "object": Odd(),
        "cycle": cycle,
        "deep": deep,
        "lone": "a\ud800b",
        "date": now,
        "uuid": uuid.UUID(int=1),
        5: "number key",
        (1,): "tuple key",
        "fine": [1, 2.5, None, True, "é", {"k": (1, 2)}],
    }
    with session.turn() as turn:
        turn.emit("custom", name="x", data=values)
        turn.emit("text_delta", text="the stream goes on")
    event = next(event for event in session.read() if isinstance(event, ts.Custom))
    data = event.data
    assert data["bytes"] == {"$unserializable": "bytes", "size": 3}
    assert data["set"] == {"$unserializable": "set"}
    assert data["nan"] == {"$unserializable": "NaN"}
    assert data["object"] == {"$unserializable": "Odd"}
    assert data["cycle"] == [{"$unserializable": "cycle"}]
    assert data["date"] == now.isoformat()
    assert data["lone"] == "a\ufffdb"
    assert data["uuid"] == str(uuid.UUID(int=1))
    assert data["5"] == "number key"
    assert data["fine"] == [1, 2.5, None, True, "é", {"k": [1, 2]}]
    assert "too_deep" in event.json()
    assert "secret" not in event.json()
    del deep


def test_statistics_are_exact(session: ts.Session) -> None:
    with session.turn() as turn:
        turn.emit("assistant_message", message_id="m", text="Hi")
        turn.emit("assistant_message", message_id="m", text="Hi")
        turn.emit("text_delta", message_id="m", text="late")
    counts = session.statistics()
    assert (counts["appended"], counts["duplicates"], counts["late"]) == (session.head, 1, 1)
    assert counts["retained"] == counts["appended"]
    assert counts["evicted"] == 0


def test_status_says_where_the_log_stands() -> None:
    session = ts.Hub(limits=ts.Limits(max_events=4)).session("s")
    assert session.status()["state"] == "idle"
    with session.turn() as turn:
        turn.emit("progress", stage="plan", current=1, total=4)
        for _ in range(6):
            turn.emit("custom", name="x")
        status = session.status()
        assert (status["state"], status["turn"], status["head"]) == ("running", 1, 8)
        assert status["progress"]["plan"]["current"] == 1
        assert status["earliest"] == session.earliest == 5
    assert session.status()["state"] == "completed"
    session.close()
    assert session.status()["state"] == "ended"


def test_many_threads_and_a_reader_agree() -> None:
    session = ts.Hub().session()
    turn = session.turn()
    gate = threading.Barrier(5)

    def work(n: int) -> None:
        gate.wait()
        for i in range(500):
            turn.emit("custom", name=str(n), data=i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    gate.wait()
    reader = session.read()

    def end() -> None:
        for thread in threads:
            thread.join()
        turn.complete()

    ender = threading.Thread(target=end)
    ender.start()
    seen = list(reader)
    ender.join()
    assert [event.seq for event in seen] == list(range(1, 2003))
