"""`turnstream.remote` without Ray: the decision, the emitter over a sink of the test's, the pump over plain sources."""

import asyncio
import logging
import pickle
import queue
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import turnstream as ts
from turnstream import _native
from turnstream.remote import Decision, Options, RemoteEmitter, decide
from turnstream.remote.emitter import SinkClosed, here, lives

PATIENCE_S = 30.0


def turn_of(hub: ts.Hub, name: str = "s") -> ts.Turn:
    return hub.session(name).turn("q")


# --- the decision -----------------------------------------------------------------------------------------------------

ENV = "TURNSTREAM_ENABLE_REMOTE_STREAM"
ALIAS = "KYLECODE_ENABLE_REMOTE_STREAM"


@pytest.mark.parametrize("name", [ENV, ALIAS])
@pytest.mark.parametrize(
    ("word", "used"),
    [(word, "off") for word in ("0", "false", "no", "off", "", "FALSE", " Off ")]
    + [(word, "remote") for word in ("1", "true", "yes", "on", "TRUE", " On ")],
)
def test_edge_65_the_environment_turns_it_on_and_off(name: str, word: str, used: str) -> None:
    assert decide(remote=True, environ={name: word}).used == used


def test_edge_65_garbage_is_a_warning_and_the_default(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "turnstream"):
        decision = decide(remote=True, environ={ENV: "maybe"}, metadata={"enable_remote_stream": "perhaps"})
    assert decision == Decision("off", "off", "the default", False)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "maybe" not in caplog.text


@pytest.mark.parametrize("said", [False, "false", "off", 0])
def test_edge_65_metadata_off_beats_the_environment_on(said: object) -> None:
    decision = decide(remote=True, environ={ENV: "1"}, metadata={"enable_remote_stream": said})
    assert (decision.used, decision.reason) == ("off", "metadata enable_remote_stream")


@pytest.mark.parametrize("said", [True, "true", "on"])
def test_edge_65_metadata_on_beats_the_environment_off(said: object) -> None:
    decision = decide(remote=True, environ={ENV: "0"}, metadata={"enable_remote_stream": said})
    assert (decision.asked, decision.used, decision.queue_active) == ("on", "remote", True)


def test_edge_65_the_first_name_beats_its_alias_and_the_default_is_off() -> None:
    assert decide(remote=True, environ={ENV: "0", ALIAS: "1"}).used == "off"
    assert decide(remote=True, environ={}) == Decision("off", "off", "the default", False)


@pytest.mark.parametrize("mode", ["interactive", "ask", "Prompt"])
def test_edge_66_an_interactive_permission_mode_forces_it_on(mode: str) -> None:
    decision = decide(remote=True, environ={ENV: "0"}, metadata={"enable_remote_stream": False}, permission_mode=mode)
    assert decision.used == "remote"
    assert decision.reason == f"the permission mode {mode.lower()} is interactive"


def test_edge_66_another_permission_mode_forces_nothing() -> None:
    assert decide(remote=True, environ={}, permission_mode="bypass").used == "off"


def test_edge_71_a_failed_probe_is_off_and_recorded_and_none_at_all_is_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "turnstream"):
        failed = decide(remote=True, environ={ENV: "1"}, probe=False)
    assert failed == Decision("on", "off", "the capability probe failed", False)
    assert "asked on, used off: the capability probe failed" in caplog.text
    assert decide(remote=True, environ={ENV: "1"}, probe=None).used == "remote"
    assert decide(remote=True, environ={ENV: "1"}, probe=True).used == "remote"


def test_a_local_run_always_streams() -> None:
    decision = decide(remote=False, environ={ENV: "0"}, metadata={"enable_remote_stream": False})
    assert (decision.asked, decision.used) == ("off", "local")


async def test_edge_67_without_ray_the_run_goes_on_and_its_message_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "turnstream.ray", None)  # as where it cannot be imported
    hub = ts.Hub()
    with turn_of(hub) as turn:
        turn.complete(await ts.remote.agent(lambda emit, input: f"answer to {input}")(turn))
    session = hub.session("s")
    record = session.status()["remote"]
    assert (record["used"], record["reason"]) == ("unavailable", "ray is not installed")
    events = list(session.read())
    assert [event.type for event in events][1:] == [
        "custom",
        "message_start",
        "text_delta",
        "assistant_message",
        "completion",
    ]
    message, completion = events[-2:]
    assert isinstance(message, ts.AssistantMessage)
    assert isinstance(completion, ts.Completion)
    assert (message.origin, message.text, completion.status) == ("fallback", "answer to q", "completed")
    with pytest.raises(ts.RemoteUnavailable, match="ray is not installed"):
        session.remote_emitter()


def test_everything_else_works_without_ray(subprocess_python: Callable[..., list[str]]) -> None:
    code = """
import sys
sys.modules["ray"] = None
import turnstream as ts
ts.asgi, ts.fastapi, ts.remote
with ts.Hub().session("s").turn("q") as turn:
    turn.emit("text_delta", text="Hi")
assert turn.session.result()["text"] == "Hi"
try:
    ts.ray
except ImportError:
    print("no ray")
"""
    assert subprocess_python(code) == ["no ray\n"]


def test_importing_turnstream_imports_no_ray(subprocess_python: Callable[..., list[str]]) -> None:
    code = "import sys, turnstream.remote; print(sorted({m.partition('.')[0] for m in sys.modules} & {'ray', 'grpc'}))"
    assert subprocess_python(code) == ["[]\n"]


# --- the emitter ------------------------------------------------------------------------------------------------------


class Sink:
    """Takes what comes while its gate is open."""

    def __init__(self, *, open_: bool = True) -> None:
        self.items: queue.Queue[Any] = queue.Queue()
        self.gate = threading.Event()
        self.offered = threading.Event()
        self.begun: Any = None
        self.refusal: str | None = None
        self.call: Callable[[str], None] = lambda reason: None
        if open_:
            self.gate.set()

    def begin(self, item: Any, weight: int) -> None:
        self.begun = item

    def put(self, item: Any, weight: int, timeout_s: float) -> bool:
        assert self.begun is None or self.begun is item
        self.begun = None
        if self.refusal is not None:
            raise SinkClosed(self.refusal)
        self.offered.set()
        if not self.gate.wait(timeout_s):
            return False
        self.items.put(item)
        return True

    def on_close(self, call: Callable[[str], None]) -> None:
        self.call = call

    def batches(self) -> list[Any]:
        found = []
        while not self.items.empty():
            found.append(self.items.get_nowait())
        return found

    def events(self) -> list[ts.Event]:
        return [event for blob in self.batches() for event in _native.read_batch(blob)[1]]


def texts(events: list[ts.Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, ts.TextDelta)]


def test_events_come_in_order_numbered_without_holes_and_then_the_end() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 3, Options(max_events=7)) as emit:
        numbers = [emit("text_delta", {"text": f"{i}"}) for i in range(100)]
    assert numbers == list(range(1, 101))
    batches = [_native.read_batch(blob) for blob in sink.batches()]
    events = [event for _, part in batches for event in part]
    assert texts(events) == [str(i) for i in range(100)]
    assert {event.turn for event in events} == {3}
    assert all(header["count"] <= 7 for header, _ in batches)
    assert [header["first"] for header, part in batches if part] == [
        1 + sum(len(part) for _, part in batches[:at]) for at, (_, part) in enumerate(batches) if part
    ]
    assert batches[0][0]["origin"] == here()
    assert [header["end"] for header, _ in batches if header["end"]] == [{"reason": "closed"}]
    assert batches[-1][0]["end"]


def test_emits_from_many_threads_are_each_sent_once_and_in_each_threads_order() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 1, Options(maxsize=10, max_events=4, delay_s=0)) as emit:
        threads = [
            threading.Thread(target=lambda n=n: [emit("custom", name=f"{n}", data=i) for i in range(50)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    seen: dict[str, list[int]] = {}
    for event in sink.events():
        assert isinstance(event, ts.Custom)
        seen.setdefault(event.name, []).append(event.data)
    assert seen == {f"{n}": list(range(50)) for n in range(4)}


def test_what_a_session_would_refuse_is_refused_where_it_is_emitted() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 1) as emit:
        for wrong in (("nonsense", {}), ("snapshot", {}), ("text_delta", {"text": 5}), ("text_delta", "text")):
            with pytest.raises(ts.PayloadError):
                emit(*wrong)
        cycle: list[Any] = []
        cycle.append(cycle)
        emit("custom", name="x", data={"bytes": b"12", "lock": threading.Lock(), "nan": float("nan"), "cycle": cycle})
    with pytest.raises(ts.SessionClosed):
        emit("custom", name="x")
    (event,) = sink.events()
    assert isinstance(event, ts.Custom)
    assert event.data == {
        "bytes": {"$unserializable": "bytes", "size": 2},
        "lock": {"$unserializable": "lock"},
        "nan": {"$unserializable": "NaN"},
        "cycle": [{"$unserializable": "cycle"}],
    }


def full(overflow: Any, **options: Any) -> tuple[Sink, RemoteEmitter]:
    """An emitter whose sender is held by the first batch, and whose queue is empty."""
    sink = Sink(open_=False)
    emit = RemoteEmitter(sink, 1, Options(maxsize=3, overflow=overflow, **options))
    assert sink.offered.wait(PATIENCE_S)
    return sink, emit


@pytest.mark.filterwarnings("ignore:EventQueue dropped:RuntimeWarning")
@pytest.mark.parametrize(("overflow", "left"), [("drop_oldest", ["7", "8", "9"]), ("drop_newest", ["0", "1", "2"])])
def test_edge_70_a_full_queue_drops_as_its_policy_says_and_tells_the_other_side(overflow: str, left: list[str]) -> None:
    sink, emit = full(overflow)
    for i in range(10):
        emit("custom", name=str(i))
    emit("completion", status="completed")
    sink.gate.set()
    assert emit.close()
    blobs = sink.batches()
    events = [event for blob in blobs for event in _native.read_batch(blob)[1]]
    assert [event.name for event in events if isinstance(event, ts.Custom)] == left
    assert events[-1].type == "completion"  # never dropped
    session = ts.Hub().session("s")
    held = session.turn()
    taken = [session.emit_batch(blob)[1] for blob in blobs]
    assert sum(counts["dropped"] for counts in taken) == 7
    assert held.ended


def test_edge_70_merge_joins_deltas_and_loses_no_text() -> None:
    sink, emit = full("merge")
    for i in range(100):
        emit("text_delta", {"message_id": "m", "text": f"{i} "})
    sink.gate.set()
    assert emit.close()
    events = sink.events()
    assert len(events) <= 3
    assert "".join(texts(events)) == "".join(f"{i} " for i in range(100))


def test_edge_70_fail_raises_and_the_event_was_not_taken() -> None:
    sink, emit = full("fail")
    for i in range(3):
        emit("custom", name=str(i))
    with pytest.raises(ts.QueueFull):
        emit("custom", name="3")
    sink.gate.set()
    assert emit.close()
    assert [event.name for event in sink.events() if isinstance(event, ts.Custom)] == ["0", "1", "2"]


def test_edge_70_block_waits_for_room_on_a_loops_thread_too() -> None:
    sink, emit = full("block")

    async def work() -> None:
        for i in range(20):
            emit("custom", name=str(i))

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    while emit.statistics()["waited"] == 0:
        thread.join(0.005)
    assert thread.is_alive()
    sink.gate.set()
    thread.join(PATIENCE_S)
    assert emit.close()
    assert [event.name for event in sink.events() if isinstance(event, ts.Custom)] == [str(i) for i in range(20)]


def test_a_cancel_wakes_who_is_blocked_and_refuses_the_rest() -> None:
    sink, emit = full("block")
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            for i in range(20):
                emit("custom", name=str(i))
        except ts.TurnEnded as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while emit.statistics()["waited"] == 0:
        thread.join(0.005)
    before = emit.cancelled
    sink.call("cancelled")
    thread.join(PATIENCE_S)
    assert (before, emit.cancelled) == (False, True)
    assert "cancelled" in str(outcome[0])
    with pytest.raises(ts.TurnEnded):
        emit("custom", name="late")
    sink.gate.set()


def test_a_batch_that_is_not_taken_is_offered_again_as_it_is() -> None:
    class Stubborn(Sink):
        seen: list[Any]

        def put(self, item: Any, weight: int, timeout_s: float) -> bool:
            self.seen = [*getattr(self, "seen", []), item]
            return len(self.seen) % 3 == 0 and super().put(item, weight, timeout_s)

    sink = Stubborn()
    with RemoteEmitter(sink, 1) as emit:
        emit("custom", name="once")
    assert sink.seen[0] is sink.seen[1] is sink.seen[2]
    assert len(sink.events()) == 1


def test_a_lost_other_side_is_told_by_the_next_emit() -> None:
    sink = Sink()
    sink.refusal = "the session's process is gone"
    emit = RemoteEmitter(sink, 1)
    assert emit.close()
    with pytest.raises(ts.TurnEnded, match="gone"):
        emit("custom", name="x")


def test_a_forgotten_emitter_sends_what_it_has_and_the_end() -> None:
    sink = Sink()
    emit = RemoteEmitter(sink, 1)
    emit("custom", name="x")
    del emit
    headers = [_native.read_batch(blob)[0] for blob in sink.batches()]
    assert sum(header["count"] for header in headers) == 1
    assert headers[-1]["end"] == {"reason": "closed"}


def test_an_exception_that_leaves_the_block_is_the_runs_failure() -> None:
    sink = Sink()
    with pytest.raises(ValueError, match="no"), RemoteEmitter(sink, 1):
        raise ValueError("no")
    headers = [_native.read_batch(blob)[0] for blob in sink.batches()]
    assert headers[-1]["end"] == {"reason": "failed", "message": "ValueError: no"}


def test_an_idle_emitter_says_that_it_lives() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 1, Options(beat_s=0.01)):
        blobs = [sink.items.get(timeout=PATIENCE_S) for _ in range(3)]
    assert [_native.read_batch(blob)[0]["count"] for blob in blobs] == [0, 0, 0]


def test_triples_are_for_a_consumer_that_knows_nothing_else() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 2, Options(form="triples")) as emit:
        emit("text_delta", {"text": "Hi"})
        emit("custom", name="x", turn=1)
    assert sink.batches() == [
        ("text_delta", {"message_id": "", "text": "Hi"}, 2),
        ("custom", {"name": "x", "data": None}, 1),
        None,
    ]


def test_a_batch_is_bounded_in_bytes() -> None:
    sink = Sink()
    with RemoteEmitter(sink, 1, Options(max_bytes=1000)) as emit:
        for i in range(10):
            emit("custom", name=f"{i}", data="x" * 400)
    blobs = sink.batches()
    assert max(map(len, blobs)) < 2000
    assert sum(_native.read_batch(blob)[0]["count"] for blob in blobs) == 10


def test_where_a_process_runs_tells_whether_it_lives() -> None:
    own = here()
    assert lives(own)
    assert lives({**own, "began": "1"}) is False  # its number went to another
    assert lives({**own, "pid": 2**22 + 1}) is False
    assert lives({**own, "machine": "another"}) is None


# --- the pump ---------------------------------------------------------------------------------------------------------


def blob(*names: str, producer: str = "p", first: int = 1, turn: int = 0, end: str = "") -> bytes:
    events = [_native.compose("custom", {"name": name}, turn) for name in names]
    return _native.write_batch(events, producer, first, end=end)[0]


def names(session: ts.Session) -> list[str]:
    return [event.name for event in session.read(follow="none") if isinstance(event, ts.Custom)]


async def test_edge_68_what_is_no_event_is_skipped_and_counted() -> None:
    class Hostile:
        @property  # type: ignore[misc]
        def __class__(self) -> Any:  # asked by isinstance
            raise RuntimeError("no")

    session = (held := turn_of(ts.Hub())).session
    triple = ("custom", {"name": "good"}, 1)
    wrong: list[Any] = [
        (), ("custom", {}), ("custom", {}, 1, 2), object(), 5, "text", {"type": "custom"}, (5, {}, 1),
        ("custom", {}, "1"), ("custom", {}, True), ("custom", 5, 1), ("text_delta", {"text": 5}, 1), b"foreign",
        [None], Hostile(), b"turnstream-batch/1 {", ("snapshot", {}, 1), ("custom", {}, -1),
    ]  # fmt: skip
    items = [part for one in wrong for part in (one, triple)]
    pumped = await session.pump([*items, None])
    assert pumped.malformed == len(wrong)
    assert names(session) == ["good"] * len(wrong)
    assert held.ended
    assert pumped.status == "completed"


async def test_edge_68_a_generator_may_yield_none_without_ending() -> None:
    async def source() -> AsyncIterator[Any]:
        yield None
        yield "Hel"
        yield {"type": "text_delta", "text": "lo"}
        yield ts.Custom(name="x")

    session = (held := turn_of(ts.Hub())).session
    pumped = await session.pump(source())
    assert (pumped.malformed, pumped.status, held.ended) == (1, "completed", True)
    assert (session.result() or {})["text"] == "Hello"


async def test_edge_68_a_handler_that_raises_stops_nothing_and_is_flagged(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, Any, int | None]] = []

    def handler(kind: str, payload: Any, turn: int | None) -> None:
        seen.append((kind, payload["name"], turn))
        if payload["name"] == "a":
            raise RuntimeError("once")

    session = (held := turn_of(ts.Hub())).session
    pumped = await session.pump([("custom", {"name": "a"}, 1), blob("b", "c"), None], on_event=handler)
    assert seen == [("custom", "a", 1), ("custom", "b", 1), ("custom", "c", 1)]
    assert names(session) == ["a", "b", "c"]
    assert pumped.handler_errors == 1
    warnings = [event for event in session.read(follow="none") if isinstance(event, ts.Warning)]
    assert [warning.code for warning in warnings] == ["handler_failed"]
    assert session.status()["remote"]["handler_errors"] == 1
    assert held.ended


async def test_a_handler_sees_what_was_published_and_nothing_else() -> None:
    seen: list[Any] = []
    session = (held := turn_of(ts.Hub())).session
    mixed = [_native.compose("custom", {"name": name}, turn) for name, turn in (("a", 1), ("unborn", 7), ("b", 1))]
    twice = _native.write_batch(mixed, "p", 1)[0]
    pumped = await session.pump([twice, twice, None], on_event=lambda kind, payload, turn: seen.append(payload["name"]))
    assert (seen, pumped.accepted, pumped.malformed, pumped.duplicates) == (["a", "b"], 2, 1, 3)
    assert held.ended


async def test_a_turnstream_error_of_the_works_own_fails_the_turn_too() -> None:
    async def source() -> AsyncIterator[Any]:
        yield "partial"
        raise ts.PayloadError("the agent's own")

    session = (held := turn_of(ts.Hub())).session
    assert (await session.pump(source())).status == "failed"
    assert held.ended


async def test_the_status_says_that_a_pump_was_asked_for() -> None:
    session = (held := turn_of(ts.Hub())).session
    await session.pump([None])
    record = session.status()["remote"]
    assert {name: record[name] for name in ("asked", "used", "reason", "queue_active", "turn")} == {
        "asked": "on", "used": "remote", "reason": "session.pump", "queue_active": True, "turn": 1,
    }  # fmt: skip
    assert held.ended


async def test_edge_69_what_follows_the_sentinel_is_late_and_not_published() -> None:
    session = (held := turn_of(ts.Hub())).session
    late = [("custom", {"name": "late"}, 1), blob("late", "late")]
    pumped = await session.pump([("custom", {"name": "in time"}, 1), None, *late])
    assert names(session) == ["in time"]
    assert (pumped.late, pumped.status, held.ended) == (3, "completed", True)


async def test_a_repeated_batch_is_not_doubled_and_a_gap_is_said() -> None:
    session = (held := turn_of(ts.Hub())).session
    pumped = await session.pump([blob("1", "2"), blob("1", "2"), blob("2", "3", first=2), blob("7", first=7), None])
    assert names(session) == ["1", "2", "3", "7"]
    assert (pumped.duplicates, pumped.lost, pumped.accepted) == (3, 3, 4)
    (warning,) = [event for event in session.read(follow="none") if isinstance(event, ts.Warning)]
    assert (warning.code, warning.raw) == ("remote_gap", {"dropped": 0, "lost": 3})
    assert held.ended


async def test_an_old_producers_late_events_are_refused() -> None:
    session = (first := turn_of(ts.Hub())).session
    first.complete()
    second = session.turn()
    old = [blob("old", turn=1), ("custom", {"name": "old"}, 1)]
    pumped = await session.pump([*old, blob("new", producer="q", turn=2), None])
    assert names(session) == ["new"]
    assert (pumped.late, second.ended) == (2, True)


async def test_a_type_of_somebody_elses_is_kept_as_custom() -> None:
    session = (held := turn_of(ts.Hub())).session
    await session.pump([("assistant_says", {"a": 1}, None), None])
    (event,) = [event for event in session.read(follow="none") if isinstance(event, ts.Custom)]
    assert (event.name, event.data, held.ended) == ("assistant_says", {"a": 1}, True)


@pytest.mark.parametrize("said", [True, False])
async def test_edge_69_the_end_has_its_order_and_its_count(said: bool, caplog: pytest.LogCaptureFixture) -> None:
    session = (held := turn_of(ts.Hub())).session
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.set_result(SimpleNamespace(text="the result"))
    items = [("text_delta", {"text": "said"}, 1)] if said else []
    with caplog.at_level(logging.INFO, "turnstream"):
        await session.pump([*items, ("progress", {"stage": "s"}, 1)], producer=done)
    events = list(session.read())
    assert [event.type for event in events][-3:] == (
        ["progress", "assistant_message", "completion"] if said else ["text_delta", "assistant_message", "completion"]
    )
    message = events[-2]
    assert isinstance(message, ts.AssistantMessage)
    assert message.origin == ("provider" if said else "fallback")
    assert message.text == ("said" if said else "the result")
    completion = events[-1]
    assert isinstance(completion, ts.Completion)
    assert completion.events == len(events)
    assert f"completed, {len(events)} events published" in caplog.text
    assert held.ended


async def test_pressure_is_said_once_per_interval_with_totals(caplog: pytest.LogCaptureFixture) -> None:
    session = (held := turn_of(ts.Hub())).session

    def dropping(count: int) -> bytes:
        return _native.write_batch([], "p", 1, dropped=count)[0]

    async def source() -> AsyncIterator[Any]:
        for count in range(1, 10_001, 100):
            yield dropping(count)
        yield dropping(10_000)

    with caplog.at_level(logging.INFO, "turnstream"):
        pumped = await session.pump(source())
    assert pumped.dropped == 10_000
    warnings = [event for event in session.read() if isinstance(event, ts.Warning)]
    assert [warning.raw["dropped"] for warning in warnings] == [1, 10_000]
    said = [(record.levelname, record.message) for record in caplog.records if "dropped" in record.message]
    assert [(level, text.partition(": ")[2].split(" ")[0]) for level, text in said] == [
        ("WARNING", "1"),
        ("INFO", "10000"),
    ]
    assert held.ended


async def test_emits_that_waited_are_no_gap() -> None:
    session = (held := turn_of(ts.Hub())).session
    batches = [
        _native.write_batch([], "p", 1, dropped=dropped, waited=waited)[0] for dropped, waited in [(1, 0), (1, 5)]
    ]
    await session.pump(batches, pressure_interval_s=0)
    warnings = [event for event in session.read() if isinstance(event, ts.Warning)]
    assert [(warning.code, warning.raw) for warning in warnings] == [("remote_gap", {"dropped": 1, "lost": 0})]
    assert held.ended


async def test_the_works_own_failure_is_the_turns() -> None:
    async def source() -> AsyncIterator[Any]:
        yield "partial"
        raise ValueError("broken")

    session = (held := turn_of(ts.Hub())).session
    pumped = await session.pump(source())
    result = session.result() or {}
    assert (pumped.status, result["reason"], result["text"]) == ("failed", "agent_error", "partial")
    assert result["error"]["message"] == "ValueError: broken"
    assert held.ended


async def test_a_silent_producer_elsewhere_is_lost_within_the_bound() -> None:
    hello = _native.write_batch([], "p", 1, origin='{"machine": "another", "pid": 1}')[0]
    left = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        yield hello
        yield "partial"
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    session = (held := turn_of(ts.Hub())).session
    async with asyncio.timeout(PATIENCE_S):
        pumped = await session.pump(source(), lost_after_s=1)
    result = session.result() or {}
    assert (pumped.status, result["reason"], result["text"]) == ("failed", "producer_lost", "partial")
    assert held.ended
    assert left.is_set()


async def test_a_queue_that_nobody_fills_ends_where_that_is_asked_for() -> None:
    async def source() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    session = (held := turn_of(ts.Hub())).session
    async with asyncio.timeout(PATIENCE_S):
        assert (await session.pump(source(), idle_timeout_s=0.1)).status == "failed"
    assert held.ended


async def test_a_cancel_of_the_turn_ends_the_pump_and_closes_the_source() -> None:
    started, closed = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        try:
            yield "Hi"
            started.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    session = (held := turn_of(ts.Hub())).session
    async with asyncio.timeout(PATIENCE_S):
        pumping = asyncio.ensure_future(session.pump(source()))
        await started.wait()
        await session.cancel()
        pumped = await pumping
    assert (pumped.status, held.cancelled, closed.is_set()) == ("cancelled", True, True)


@pytest.mark.parametrize("of", ["the producer", "the source"])
async def test_a_cancel_elsewhere_is_none_of_the_pumps(of: str) -> None:
    session = (held := turn_of(ts.Hub())).session
    work = asyncio.get_running_loop().create_future()

    async def source() -> AsyncIterator[Any]:
        yield "partial"
        if of == "the source":
            raise asyncio.CancelledError
        work.cancel()
        await asyncio.Event().wait()

    pumped = await asyncio.wait_for(session.pump(source(), producer=work), PATIENCE_S)
    result = session.result() or {}
    assert (pumped.status, result["reason"], result["text"]) == ("failed", "producer_lost", "partial")
    assert result["error"]["message"] == f"{of} was cancelled"
    assert held.ended


async def test_a_cancelled_pump_cancels_its_turn() -> None:
    started = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        started.set()
        await asyncio.Event().wait()
        yield

    session = (held := turn_of(ts.Hub())).session
    async with asyncio.timeout(PATIENCE_S):
        pumping = asyncio.ensure_future(session.pump(source()))
        await started.wait()
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
    assert held.cancelled


async def test_a_pump_without_a_turn_makes_one() -> None:
    session = ts.Hub().session("s")
    pumped = await session.pump([("text_delta", {"text": "Hi"}, None), None])
    assert (pumped.status, (session.result() or {})["turn"]) == ("completed", 1)


async def test_a_pump_may_leave_the_turn_open() -> None:
    session = (turn := turn_of(ts.Hub())).session
    await session.pump([("text_delta", {"text": "Hi"}, None), None], complete=False)
    assert not turn.ended
    turn.complete()


async def test_a_pacing_reader_holds_the_pump() -> None:
    session = (held := turn_of(ts.Hub())).session
    taken = 0

    async def source() -> AsyncIterator[Any]:
        nonlocal taken
        for i in range(2000):
            taken = i
            yield ("custom", {"name": f"{i}"}, 1)

    async with session.read(pace=True) as reader:
        pumping = asyncio.ensure_future(session.pump(source()))
        async with asyncio.timeout(PATIENCE_S):
            while taken < 200:  # noqa: ASYNC110, a count rings no bell
                await asyncio.sleep(0.005)
            before = -1
            while before != taken:
                before = taken
                await asyncio.sleep(0.15)
            assert taken < 400  # the reader has taken nothing, and its window is 256
            async for event in reader:
                if event.type == "completion":
                    break
            await pumping
    assert len(names(session)) == 2000
    assert held.ended


async def test_nothing_else_can_be_pumped() -> None:
    session = (held := turn_of(ts.Hub())).session
    with pytest.raises(ts.UnsupportedSource):
        await session.pump(5)
    held.complete()


def test_a_remote_emitter_is_picklable_and_counts_where_it_goes() -> None:
    from turnstream.remote import HomeEmitter

    class Transport:
        def sink(self) -> Any:
            return PicklableSink()

    session = (held := turn_of(ts.Hub())).session
    emit = HomeEmitter(session, Transport(), 1, Options())
    assert emit("custom", name="here") == session.head
    with pickle.loads(pickle.dumps(emit)) as far:
        assert far("custom", name="there") == 1
    assert emit.copies == 1
    assert names(session) == ["here"]
    held.complete()


class PicklableSink(Sink):
    def __reduce__(self) -> Any:
        return PicklableSink, ()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("made_with", [True, False])
async def test_the_sessions_metadata_outlive_the_beginning_of_its_log(
    tmp_path: Path, store: str, made_with: bool
) -> None:
    """What has left the memory comes from the store, for which nobody may wait on the loop's thread."""
    hub = ts.Hub(store if store == "memory" else f"sqlite:///{tmp_path}/runs.db", ts.Limits(max_events=20))
    session, said = hub.session("s"), {"enable_remote_stream": True}
    if made_with:
        session.emitter()("custom", name="session_metadata", data=said)  # as `POST /sessions` without an input does

    def work(emit: Any, _input: Any) -> str:
        for number in range(30):
            emit("custom", name="filler", data=number)
        return "done"

    for number in range(1, 4):
        with session.turn(metadata=None if made_with or number > 1 else said) as turn:
            turn.complete(await ts.remote.agent(work)(turn))
        assert session.status()["remote"]["asked"] == "on"
        result = session.result()
        assert result is not None
        assert (result["turn"], result["status"]) == (number, "completed")
