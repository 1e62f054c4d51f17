"""A session and its readers against a list: what is said, ended, waited for, cancelled and left, in any order."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import turnstream as ts

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Fact = tuple[str, Any]


def fact(event: ts.Event) -> Fact:
    return event.type, event.data if isinstance(event, ts.Custom) else None


async def first(source: Any) -> Any:
    return await anext(source)


class Reading:
    """One reader, and the place in the list up to which it has come."""

    def __init__(self, reader: ts.Reader, at: int, batches: int | None) -> None:
        self.reader = reader
        self.source: Any = reader if batches is None else reader.batches(batches)
        self.most = batches or 1
        self.at = at
        self.waiting: asyncio.Task[Any] | None = None

    def expect(self, got: Any, log: list[Fact]) -> None:
        events = got if isinstance(got, list) else [got]
        assert 1 <= len(events) <= self.most
        assert [fact(event) for event in events] == log[self.at : self.at + len(events)]
        assert [event.seq for event in events] == list(range(self.at + 1, self.at + 1 + len(events)))
        self.at += len(events)


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()
        self.hub = ts.Hub()
        self.session = self.hub.session()
        self.emit = self.session.emitter()
        self.turn: ts.Turn | None = None
        self.turns = 0
        self.log: list[Fact] = []
        self.readings: list[Reading] = []
        self.closed = False
        self.number = 0

    def new_loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    def run(self, wait: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(wait, 60))

    def settle(self) -> None:
        """Whoever waits for what is there gets it; nobody else gets anything."""

        async def settled() -> None:
            due = [reading.waiting for reading in self.readings if reading.waiting and self.due(reading)]
            if due:
                await asyncio.wait(due, timeout=30)
            await asyncio.sleep(0)

        self.run(settled())
        for reading in self.readings:
            if reading.waiting is None:
                continue
            assert reading.waiting.done() == self.due(reading)
            if reading.waiting.done():
                if reading.at < len(self.log):
                    reading.expect(reading.waiting.result(), self.log)
                else:
                    assert isinstance(reading.waiting.exception(), StopAsyncIteration)
                reading.waiting = None

    def due(self, reading: Reading) -> bool:
        return reading.at < len(self.log) or self.closed

    # --- those who write

    @precondition(lambda self: self.turn is None and not self.closed)
    @rule()
    def start(self) -> None:
        self.turn = self.session.turn({"n": self.turns})
        self.turns += 1
        self.log.append(("turn_start", None))
        self.settle()

    @precondition(lambda self: not self.closed)
    @rule(count=st.integers(1, 5), how=st.sampled_from(["emitter", "turn", "thread"]))
    def say(self, count: int, how: str) -> None:
        def emit() -> None:
            for _ in range(count):
                self.number += 1
                if how == "turn" and self.turn is not None:
                    self.turn.emit("custom", name="n", data=self.number)
                else:
                    self.emit("custom", name="n", data=self.number)
                self.log.append(("custom", self.number))

        if how == "thread":
            thread = threading.Thread(target=emit)
            thread.start()
            thread.join()
        else:
            emit()
        self.settle()

    @precondition(lambda self: self.turn is not None)
    @rule(how=st.sampled_from(["complete", "fail", "cancel", "leave", "break", "forget"]))
    def end(self, how: str) -> None:
        turn, self.turn = self.turn, None
        assert turn is not None
        if how in ("fail", "break", "forget"):
            self.log.append(("error", None))
        self.log.append(("completion", None))
        match how:
            case "complete":
                turn.complete()
            case "fail":
                turn.fail("it failed")
            case "cancel":
                assert self.run(self.session.cancel()) is True
            case "leave":
                with turn:
                    pass
            case "break":
                with pytest.raises(LookupError), turn:
                    raise LookupError
        if how != "forget":
            with pytest.raises(ts.TurnEnded):
                turn.emit("custom", name="late")
        del turn
        self.settle()

    # --- those who read

    @rule(data=st.data(), batches=st.none() | st.integers(1, 4))
    def open(self, data: st.DataObject, batches: int | None) -> None:
        at = data.draw(st.integers(0, len(self.log)))
        reader = self.session.read(after=f"{self.session.epoch}.{at}", follow="session")
        self.readings.append(Reading(reader, at, batches))

    def pick(self, data: st.DataObject) -> Reading:
        return data.draw(st.sampled_from(self.readings))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        reading = self.pick(data)
        if reading.waiting is None:
            reading.waiting = self.loop.create_task(first(reading.source))
            self.settle()

    @precondition(lambda self: self.readings)
    @rule(data=st.data(), news=st.booleans())
    def cancel_wait(self, data: st.DataObject, news: bool) -> None:
        reading = self.pick(data)
        if reading.waiting is None:
            return
        if news and not self.closed:  # calls the one that is cancelled before it could look
            self.number += 1
            self.emit("custom", name="n", data=self.number)
            self.log.append(("custom", self.number))
        task, reading.waiting = reading.waiting, None
        task.cancel()

        async def cancelled() -> None:
            with pytest.raises(asyncio.CancelledError):
                await task

        self.run(cancelled())
        self.settle()

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        """The blocking face, for as much as is there."""
        reading = self.pick(data)
        if reading.waiting is None and reading.at < len(self.log):
            reading.expect(next(iter(reading.source)), self.log)

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """A new reader from the old one's cursor goes on where that one stood."""
        reading = self.pick(data)
        if reading.waiting is None:
            assert reading.reader.cursor == f"{self.session.epoch}.{reading.at}"
            reading.reader = reading.source = self.session.read(after=reading.reader.cursor, follow="session")
            reading.most = 1

    @precondition(lambda self: self.readings)
    @rule(data=st.data(), how=st.sampled_from(["close", "drop"]))
    def leave(self, data: st.DataObject, how: str) -> None:
        reading = self.pick(data)
        self.readings.remove(reading)
        task, reading.waiting = reading.waiting, None
        if how == "close":
            reading.reader.close()
        elif task is not None:
            task.cancel()
        if task is not None:
            done, _ = self.run(asyncio.wait([task], timeout=30))
            assert done
            assert task.cancelled() if how == "drop" else isinstance(task.exception(), StopAsyncIteration)
        del task, reading
        gc.collect()

    @precondition(lambda self: len(self.log) > 10)
    @rule()
    def close(self) -> None:
        if not self.closed:
            if self.turn is not None:
                self.log.append(("completion", None))
            self.log.append(("session_end", None))
            self.session.close()
            self.closed, self.turn = True, None
            with pytest.raises(ts.SessionClosed):
                self.emit("custom", name="late")
            self.settle()

    @invariant()
    def agrees(self) -> None:
        assert self.session.head == len(self.log)
        assert self.session.status()["readers"] == len(self.readings)

    def teardown(self) -> None:
        self.turn = None  # forgotten
        self.session.close()
        for reading in self.readings:
            if reading.waiting is not None:
                self.run(asyncio.wait([reading.waiting], timeout=30))
                assert reading.waiting.done()
                reading.waiting.exception()
        self.loop.close()


SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.timeout(300)  # 2 s; on a busy machine each collection waits its turn
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_it_is_a_list(loop_factory: LoopFactory, debug: bool) -> None:
    class Here(Model):
        def new_loop(self) -> asyncio.AbstractEventLoop:
            loop = loop_factory()
            loop.set_debug(debug)
            return loop

    gc.collect()
    gc.freeze()  # each step collects: what other tests left behind would make that slow
    try:
        run_state_machine_as_test(Here, settings=SETTINGS)
    finally:
        gc.unfreeze()
