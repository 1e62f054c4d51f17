"""Remote agents on a real Ray: one instance for the module, two cores, nothing listens but on 127.0.0.1."""

import asyncio
import importlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import PATIENCE_S, Seen, frames, text, until

import turnstream as ts
from conftest import ROOT

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # off, Ray's processes listen on 127.0.0.1 alone; read on import
ray: Any = pytest.importorskip("ray", reason="needs ray: pip install turnstream[ray]")
from ray.util.queue import Queue  # noqa: E402

from turnstream.ray import Mailbox, astream, stream  # noqa: E402

pytestmark = [
    pytest.mark.timeout(120),
    # Ray's own: sockets and processes that it leaves to the collector, and what it calls of others.
    pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]


SERVE = ROOT / "examples" / "ray-serve"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Generator[None]:
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # The tests' own modules, and the example's.
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(SERVE)])}},
    )
    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    yield
    ray.shutdown()


class Worker:
    """What the tests have running elsewhere."""

    def ready(self) -> int:
        return os.getpid()

    def say(self, emit: Any, words: list[str], said: Path | None = None) -> str:
        for word in words:
            emit("text_delta", {"text": word})
        if said is not None:
            said.touch()
        return "the result"

    def say_and_wait(self, emit: Any, words: list[str]) -> None:
        """Until it is cancelled or killed."""
        for word in words:
            emit("text_delta", {"text": word})
        while not emit.cancelled:
            time.sleep(0.01)

    def hold(self, emit: Any, words: list[str]) -> None:
        """Keeps its emitter."""
        self.emit = emit
        self.say(emit, words)

    def told(self) -> None:
        while not self.emit.cancelled:
            time.sleep(0.01)

    def say_again(self, words: list[str]) -> str:
        try:
            self.say(self.emit, words)
        except ts.TurnEnded as error:
            return f"refused: {error}"
        return "emitted"

    def fail(self, emit: Any) -> None:
        emit("text_delta", {"text": "partial"})
        raise ValueError("the agent's own")

    def many(self, emit: Any, count: int, said: Path | None = None) -> int:
        for i in range(count):
            emit("custom", name="n", data=i)
        if said is not None:
            said.touch()
        return count

    def put_all(self, queue: Any, items: list[Any]) -> None:
        for item in items:
            queue.put(item)

    def generate(self, words: list[str]) -> Iterator[bytes]:
        yield from stream(lambda emit: [emit("text_delta", {"text": word}) for word in words])

    def generate_and_die(self, gate: Path) -> Iterator[bytes]:
        yield from stream(speak, ["partial"], gate)

    def generate_plain(self) -> Iterator[Any]:
        yield "Hel"
        yield None
        yield {"type": "text_delta", "text": "lo"}
        yield ("progress", {"stage": "s"}, None)


class AsyncWorker:
    async def say(self, emit: Any, words: list[str]) -> None:
        async def one(word: str) -> None:
            emit("text_delta", {"text": word})
            await asyncio.sleep(0)

        for word in words:
            await one(word)
        await asyncio.to_thread(emit, "progress", stage="from a thread")

    async def wait(self, emit: Any) -> None:
        emit("text_delta", {"text": "Hi"})
        await asyncio.Event().wait()

    async def generate(self, words: list[str]) -> AsyncIterator[bytes]:
        async def work(emit: Any) -> None:
            for word in words:
                emit("text_delta", {"text": word})
                await asyncio.sleep(0)

        async for part in astream(work):
            yield part


def speak(emit: Any, words: list[str], gate: Path | None = None) -> None:
    """And dies once the gate is there, if there is to be one."""
    for word in words:
        emit("text_delta", {"text": word})
    if gate is not None:
        while not gate.exists():
            time.sleep(0.01)
        os._exit(1)


Agent: Any = ray.remote(num_cpus=0)(Worker)
AsyncAgent: Any = ray.remote(num_cpus=0)(AsyncWorker)
task: Any = ray.remote(num_cpus=0, max_retries=0)(speak)


@pytest.fixture(scope="module")
def agent() -> Any:
    """Shared by tests that leave it alive."""
    made = Agent.remote()
    ray.get(made.ready.remote())
    return made


@pytest.fixture
def doomed() -> Generator[Any]:
    made = Agent.remote()
    ray.get(made.ready.remote())
    yield made
    ray.kill(made)


def queue(maxsize: int = 0) -> Any:
    return Queue(maxsize, actor_options={"num_cpus": 0})


TRANSPORTS: dict[str, Callable[[], Any]] = {"mailbox": lambda: None, "queue": lambda: queue(100)}
WORDS = [f"w{i} " for i in range(2000)]

turns: list[ts.Turn] = []
"""Held to the end of their test: a forgotten turn is failed."""


@pytest.fixture
def session() -> Generator[ts.Session]:
    turns.append(ts.Hub().session("s").turn("q"))
    yield turns[-1].session
    turns.clear()


def result(session: ts.Session) -> dict[str, Any]:
    found = session.result()
    assert found is not None
    return found


async def spoken(session: ts.Session) -> None:
    """Waits for the first text."""
    async for event in session.read():
        if event.type == "text_delta":
            return


one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])

# --- the three transports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
async def test_an_actor_emits_as_if_it_were_here(agent: Any, session: ts.Session, transport: str) -> None:
    emit = session.remote_emitter(transport=TRANSPORTS[transport]())
    ref = agent.say.remote(emit, WORDS)
    pumped = await session.pump(emit, producer=ref)
    assert result(session)["text"] == "".join(WORDS)
    assert (pumped.status, pumped.accepted, pumped.duplicates, pumped.lost) == ("completed", len(WORDS), 0, 0)
    assert result(session)["events"] == len(list(session.read()))


@one_loop
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
async def test_its_end_is_known_without_a_word_about_who_it_is(session: ts.Session, transport: str) -> None:
    emit = session.remote_emitter(transport=TRANSPORTS[transport]())
    task.remote(emit, ["Hel", "lo"])
    pumped = await session.pump(emit)
    assert (pumped.status, result(session)["text"]) == ("completed", "Hello")


async def test_an_async_actor_emits_from_its_loop_and_its_threads(session: ts.Session) -> None:
    agent = AsyncAgent.remote()
    emit = session.remote_emitter(maxsize=10)
    await session.pump(emit, producer=agent.say.remote(emit, WORDS))
    assert result(session)["text"] == "".join(WORDS)
    assert [event.stage for event in session.read() if isinstance(event, ts.Progress)] == ["from a thread"]


async def test_a_streaming_generator_is_pumped_as_it_is(agent: Any, session: ts.Session) -> None:
    await session.pump(agent.generate.options(num_returns="streaming").remote(WORDS))
    assert (result(session)["status"], result(session)["text"]) == ("completed", "".join(WORDS))


@one_loop
async def test_an_async_generator_too(session: ts.Session) -> None:
    agent = AsyncAgent.remote()
    await session.pump(agent.generate.options(num_returns="streaming").remote(WORDS))
    assert (result(session)["status"], result(session)["text"]) == ("completed", "".join(WORDS))


@one_loop
async def test_a_plain_generator_yields_what_an_agent_may(agent: Any, session: ts.Session) -> None:
    pumped = await session.pump(agent.generate_plain.options(num_returns="streaming").remote())
    assert (pumped.status, pumped.malformed, result(session)["text"]) == ("completed", 1, "Hello")


@one_loop
async def test_a_queue_of_triples_and_none_goes_in_unchanged(agent: Any, session: ts.Session) -> None:
    box = queue()
    agent.put_all.remote(box, [("text_delta", {"text": "Hel"}, 1), ("text_delta", {"text": "lo"}, None), None])
    pumped = await session.pump(box)
    assert (pumped.status, pumped.accepted, result(session)["text"]) == ("completed", 2, "Hello")


@one_loop
async def test_triples_and_batches_share_a_queue(agent: Any, session: ts.Session) -> None:
    box = queue()
    emit = session.remote_emitter(transport=box)
    await agent.put_all.remote(box, [("custom", {"name": "triple"}, 1)])
    await agent.say.remote(emit, ["from a batch"])
    await agent.put_all.remote(box, [("custom", {"name": "triple"}, 1), None])
    pumped = await session.pump(box)
    assert (pumped.accepted, pumped.status, result(session)["text"]) == (3, "completed", "from a batch")


@one_loop
async def test_triples_and_none_go_out_unchanged(agent: Any, session: ts.Session) -> None:
    box = queue()
    await agent.say.remote(session.remote_emitter(transport=box, form="triples"), ["Hi"])
    seen = [box.get(timeout=PATIENCE_S) for _ in range(2)]
    assert seen == [("text_delta", {"message_id": "", "text": "Hi"}, 1), None]


@one_loop
async def test_a_mailbox_takes_triples_too(session: ts.Session) -> None:
    box = Mailbox(10)

    def put(box: Mailbox) -> None:
        box.put(("text_delta", {"text": "Hi"}, 1))
        box.put(None)

    ray.remote(num_cpus=0)(put).remote(box)
    assert (await session.pump(box)).status == "completed"
    assert result(session)["text"] == "Hi"


@one_loop
async def test_what_ray_cannot_carry_becomes_a_placeholder_before_it_is_sent(session: ts.Session) -> None:
    def work(emit: Any) -> None:
        emit("custom", name="x", data={"lock": threading.Lock(), "iterator": iter(()), "ok": 1})

    emit = session.remote_emitter()
    await session.pump(emit, producer=ray.remote(num_cpus=0)(work).remote(emit))
    (event,) = [event for event in session.read() if isinstance(event, ts.Custom)]
    assert event.data == {
        "lock": {"$unserializable": "lock"},
        "iterator": {"$unserializable": "tuple_iterator"},
        "ok": 1,
    }


# --- what goes wrong --------------------------------------------------------------------------------------------------


@one_loop
async def test_edge_68_malformed_items_of_a_real_queue_are_skipped_and_counted(agent: Any, session: ts.Session) -> None:
    box = queue()
    wrong = [(), ("custom", {}), ("custom", {}, 1, 2), {"type": "custom"}, 5, b"bytes", [None]]
    good = ("custom", {"name": "good"}, 1)
    agent.put_all.remote(box, [part for one in wrong for part in (one, good)] + [None])
    raised = iter([RuntimeError("once")])

    def handler(*_event: object) -> None:
        for error in raised:
            raise error

    pumped = await session.pump(box, on_event=handler)
    assert (pumped.malformed, pumped.accepted, pumped.handler_errors) == (len(wrong), len(wrong), 1)
    assert session.status()["remote"]["handler_errors"] == 1
    assert result(session)["status"] == "completed"


@one_loop
async def test_edge_69_what_is_left_when_the_worker_ends_is_drained_first(agent: Any, session: ts.Session) -> None:
    box = queue()
    ref = agent.put_all.remote(box, [("text_delta", {"text": f"{i} "}, 1) for i in range(200)])
    await ref  # it has ended without a sentinel before the pump begins
    pumped = await session.pump(box, producer=ref)
    assert (pumped.accepted, pumped.late, pumped.status) == (200, 0, "completed")
    assert result(session)["text"].endswith("199 ")


@one_loop
async def test_edge_69_what_follows_the_sentinel_is_late(agent: Any, session: ts.Session) -> None:
    box = queue()
    late = [("text_delta", {"text": "late"}, 1)] * 3
    await agent.put_all.remote(box, [("text_delta", {"text": "in time"}, 1), None, *late])
    pumped = await session.pump(box)
    assert (pumped.accepted, pumped.late, result(session)["text"]) == (1, 3, "in time")


@one_loop
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
async def test_edge_70_a_killed_actor_fails_the_turn_and_closes_the_stream(
    doomed: Any, session: ts.Session, transport: str, told: bool
) -> None:
    emit = session.remote_emitter(transport=TRANSPORTS[transport]())
    ref = doomed.say_and_wait.remote(emit, ["partial"])
    pumping = asyncio.ensure_future(session.pump(emit, producer=doomed if told else None))
    await spoken(session)
    ray.kill(doomed)
    async with asyncio.timeout(PATIENCE_S):
        assert (await pumping).status == "failed"
        events = [event async for event in session.read()]
    completion = events[-1]
    assert isinstance(completion, ts.Completion)
    assert (completion.status, completion.reason, completion.text) == ("failed", "producer_lost", "partial")
    with pytest.raises(ray.exceptions.RayActorError):
        await ref


@one_loop
@pytest.mark.parametrize("told", [True, False])
async def test_edge_70_a_task_that_dies_fails_the_turn(session: ts.Session, told: bool, tmp_path: Path) -> None:
    emit = session.remote_emitter()
    ref = task.remote(emit, ["partial"], tmp_path / "gate")
    async with asyncio.timeout(PATIENCE_S):
        pumping = asyncio.ensure_future(session.pump(emit, producer=ref if told else None))
        await spoken(session)
        (tmp_path / "gate").touch()
        await pumping
    assert (result(session)["reason"], result(session)["text"]) == ("producer_lost", "partial")


@one_loop
async def test_edge_70_a_generator_that_dies_fails_the_turn(session: ts.Session, tmp_path: Path) -> None:
    agent = Agent.remote()
    async with asyncio.timeout(PATIENCE_S):
        generator = agent.generate_and_die.options(num_returns="streaming").remote(tmp_path / "gate")
        pumping = asyncio.ensure_future(session.pump(generator))
        await spoken(session)
        (tmp_path / "gate").touch()
        await pumping
    assert (result(session)["reason"], result(session)["text"]) == ("producer_lost", "partial")


@one_loop
@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "merge"])
async def test_edge_70_a_full_queue_has_its_policy_across_processes(
    agent: Any, session: ts.Session, overflow: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nobody pumps until the actor has said all, or is held."""
    said = tmp_path / "said"
    emit = session.remote_emitter(maxsize=50, overflow=overflow)
    if overflow == "merge":
        ref = agent.say.remote(emit, [f"{i} " for i in range(5000)], said)
    else:
        ref = agent.many.remote(emit, 5000, said)
    box: Any = emit.transport
    if overflow == "block":
        async with asyncio.timeout(PATIENCE_S):
            while not await box._post.held.remote(box.name):  # noqa: ASYNC110, another process' count
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # what is held stays so: neither here nor there is room for 5,000
        assert not said.exists()
    else:
        await until(said.exists)
    with caplog.at_level(logging.INFO, "turnstream"):  # within the interval the last totals are no second warning
        pumped = await session.pump(emit, producer=ref)
    assert pumped.status == "completed"
    if overflow == "merge":
        assert result(session)["text"] == "".join(f"{i} " for i in range(5000))
        return
    numbers = [event.data for event in session.read() if isinstance(event, ts.Custom)]
    assert len(numbers) + pumped.dropped == 5000
    assert numbers == sorted(numbers)
    if overflow == "block":
        assert len(numbers) == 5000
        assert pumped.waited > 0
    else:
        assert pumped.dropped > 0
        assert (4999 in numbers) == (overflow == "drop_oldest")
        gaps = [event for event in session.read() if isinstance(event, ts.Warning)]
        assert gaps[-1].raw["dropped"] == pumped.dropped
        assert f"{pumped.dropped} events dropped" in caplog.text


@one_loop
async def test_the_works_own_exception_is_the_turns(agent: Any, session: ts.Session) -> None:
    emit = session.remote_emitter()
    await session.pump(emit, producer=agent.fail.remote(emit))
    assert (result(session)["reason"], result(session)["text"]) == ("agent_error", "partial")
    assert result(session)["error"]["message"] == "ValueError: the agent's own"


@one_loop
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
async def test_a_cancel_reaches_the_emitter(agent: Any, session: ts.Session, transport: str) -> None:
    emit = session.remote_emitter(transport=TRANSPORTS[transport]())
    ref = agent.say_and_wait.remote(emit, ["partial"])
    pumping = asyncio.ensure_future(session.pump(emit))
    await spoken(session)
    await session.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert (await pumping).status == "cancelled"
        await ref  # it saw `cancelled`, and returned


@one_loop
async def test_a_cancel_reaches_an_async_task(session: ts.Session) -> None:
    agent = AsyncAgent.remote()
    emit = session.remote_emitter()
    ref = agent.wait.remote(emit)
    pumping = asyncio.ensure_future(session.pump(emit, producer=ref))
    await spoken(session)
    await session.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert (await pumping).status == "cancelled"
        with pytest.raises(ray.exceptions.RayError):
            await ref


@one_loop
async def test_an_emitter_that_nobody_can_pump_any_more_is_closed(agent: Any, session: ts.Session) -> None:
    async with asyncio.timeout(PATIENCE_S):
        emit = session.remote_emitter(maxsize=10)
        ref = agent.many.remote(emit, 100_000)  # more than the box and the emitter hold: it waits for room
        del emit
        with pytest.raises(ts.TurnEnded, match="nobody reads"):
            await ref


@one_loop
async def test_a_mailbox_that_was_given_away_is_not_forgotten(agent: Any, session: ts.Session) -> None:
    box = Mailbox()
    kept = pickle.loads(pickle.dumps(box))
    transport = session.remote_emitter().transport
    del box
    for source in (kept, transport):
        await agent.put_all.remote(source, [("text_delta", {"text": "Hi"}, None), None])
        await session.pump(source, turn=turns[-1], complete=False)
    turns[-1].complete()
    assert result(session)["text"] == "HiHi"


@one_loop
async def test_a_restarted_agent_goes_on_and_the_old_ones_late_events_are_refused(session: ts.Session) -> None:
    old, new = Agent.remote(), Agent.remote()
    first = session.remote_emitter()
    ref = old.hold.remote(first, ["one"])
    await session.pump(first, producer=ref)
    turns.append(session.turn("again"))
    second = session.remote_emitter()
    await old.told.remote()
    assert (await old.say_again.remote(["late"])).startswith("refused")
    await session.pump(second, producer=new.say.remote(second, ["two"]))
    assert [message["text"] for message in session.messages() if message["role"] == "assistant"] == ["one", "two"]


@one_loop
async def test_late_events_of_an_old_producer_on_a_shared_queue_are_refused(agent: Any, session: ts.Session) -> None:
    box = queue()
    first = session.remote_emitter(transport=box)
    old = Agent.remote()
    await old.hold.remote(first, ["one"])
    turns[-1].complete()
    turns.append(session.turn("again"))
    await old.say_again.remote(["late"])  # nobody has told it yet
    second = session.remote_emitter(transport=box)
    pumped = await session.pump(box, producer=agent.say.remote(second, ["two"]))
    assert (pumped.late, pumped.accepted, result(session)["text"]) == (2, 1, "two")


@one_loop
async def test_two_actors_speak_in_one_session(agent: Any, session: ts.Session) -> None:
    other = Agent.remote()
    emit = session.remote_emitter()
    agent.many.remote(emit, 300)
    other.many.remote(emit, 300)
    pumped = await session.pump(emit)
    numbers = [event.data for event in session.read() if isinstance(event, ts.Custom)]
    assert (pumped.accepted, pumped.status, sorted(numbers)) == (600, "completed", sorted([*range(300), *range(300)]))


@one_loop
async def test_twenty_sessions_at_once(agent: Any) -> None:
    other = AsyncAgent.remote()
    hub = ts.Hub()

    async def one(i: int) -> str:
        turn = hub.session(f"s{i}").turn("q")
        emit = turn.session.remote_emitter()
        words = [f"{i}-{n} " for n in range(50)]
        ref = (agent if i % 2 else other).say.remote(emit, words)
        await turn.session.pump(emit, producer=ref)
        assert result(turn.session)["text"] == "".join(words)
        return str(result(turn.session)["status"])

    async with asyncio.timeout(100):
        assert await asyncio.gather(*map(one, range(20))) == ["completed"] * 20


DRIVER = """
import asyncio, os, sys
import ray
import turnstream as ts

ray.init(sys.argv[1], namespace="turnstream-test", log_to_driver=False, logging_level="error")

class Keeper:
    def hold(self, emit):
        self.emit = emit
        emit("text_delta", {"text": "first driver"})
        return 1
    def say(self, emit):
        try:
            self.emit("text_delta", {"text": "late"})
            said = "emitted"
        except ts.TurnEnded:
            said = "refused"
        emit("text_delta", {"text": "second driver, the old one " + said})

async def main():
    with ts.Hub().session("s").turn() as turn:
        emit = turn.session.remote_emitter()
        if sys.argv[2] == "first":
            keeper = ray.remote(Keeper).options(name="keeper", lifetime="detached", num_cpus=0).remote()
            await keeper.hold.remote(emit)
            async for event in turn.session.read():
                pass
        else:
            keeper = ray.get_actor("keeper")
            await turn.session.pump(emit, producer=keeper.say.remote(emit))
            print(turn.session.result()["text"], flush=True)

async def first():
    pumping = None
    turn = ts.Hub().session("s").turn()
    emit = turn.session.remote_emitter()
    keeper = ray.remote(Keeper).options(name="keeper", lifetime="detached", num_cpus=0).remote()
    pumping = asyncio.ensure_future(turn.session.pump(emit, producer=keeper))
    await keeper.hold.remote(emit)
    async for event in turn.session.read():
        if event.type == "text_delta":
            print(event.text, flush=True)
            os._exit(9)  # a crash: nothing is said to anybody

asyncio.run(first() if sys.argv[2] == "first" else main())
"""


@pytest.mark.processes
@pytest.mark.timeout(240)
def test_a_restarted_driver_goes_on_with_the_agent_that_outlived_the_first() -> None:
    address = ray.get_runtime_context().gcs_address

    def drive(which: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", DRIVER, address, which]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    first = drive("first")
    assert (first.returncode, first.stdout) == (9, "first driver\n"), first.stderr
    second = drive("second")
    assert second.stdout == "second driver, the old one refused\n", second.stderr
    ray.kill(ray.get_actor("keeper", namespace="turnstream-test"))


NODE = """
import asyncio, json, os, sys, time
import ray
from ray.cluster_utils import Cluster
import turnstream as ts
from turnstream.ray import stream

ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
# Before there is another: a driver joins any node of its address.
ray.init(ray_cluster.address, log_to_driver=False, logging_level="error")
node = ray_cluster.add_node(num_cpus=1, resources={"there": 1})
assert ray.get_runtime_context().get_node_id() != node.node_id
assert {one["NodeManagerAddress"] for one in ray.nodes()} == {"127.0.0.1"}
# The nodes of one machine see each other's processes; those of two do not.
sys.modules["turnstream.remote.pump"].lives = lambda origin: None

class Agent:
    def where(self):
        return ray.get_runtime_context().get_node_id()
    def say(self, emit):
        emit("text_delta", {"text": "partial"})
        time.sleep(600)
    def generate(self):
        yield from stream(self.say)

async def one(session, source, producer=None):
    pumping = asyncio.ensure_future(session.pump(source, producer=producer))
    events = []
    async for event in session.read():
        events.append(event)
        if event.type == "text_delta":
            spoken.release()
    pumped, after = await pumping, time.monotonic() - removed
    ends = [event for event in events if event.type == "completion"]
    return [after, pumped.status, events[-1].type, *[[end.status, end.reason, end.text] for end in ends]]

async def main():
    global spoken, removed
    spoken, removed, turns = asyncio.Semaphore(0), 0.0, [ts.Hub().session(f"s{i}").turn("q") for i in range(3)]
    agents = [ray.remote(Agent).options(num_cpus=0, resources={"there": 0.1}).remote() for _ in turns]
    assert {await agent.where.remote() for agent in agents} == {node.node_id}
    silent, told, generated = [turn.session for turn in turns]
    first, second = silent.remote_emitter(), told.remote_emitter()
    agents[0].say.remote(first)
    runs = [
        one(silent, first),
        one(told, second, agents[1].say.remote(second)),
        one(generated, agents[2].generate.options(num_returns="streaming").remote()),
    ]
    running = asyncio.gather(*runs)
    for _ in runs:
        await spoken.acquire()
    removed = time.monotonic()
    await asyncio.to_thread(ray_cluster.remove_node, node, allow_graceful=False)
    print(json.dumps(await running), flush=True)

asyncio.run(main())
ray.shutdown()
ray_cluster.shutdown()
"""


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_edge_70_a_node_that_is_gone_fails_the_turn_within_the_bound(
    subprocess_python: Callable[..., list[str]],
) -> None:
    """Known by silence, by the task's end, and by the generator's."""
    (out,) = subprocess_python(NODE, timeout_s=150)
    (line,) = [line for line in out.splitlines() if line.startswith("[[")]  # Ray writes there too
    for after, *said in json.loads(line):
        assert said == ["failed", "completion", ["failed", "producer_lost", "partial"]]
        assert after < 5 + 10  # `lost_after_s`, and a busy machine; the agents are silent for ten minutes


# --- the agent for a router -------------------------------------------------------------------------------------------


def work(emit: Any, input: Any) -> str:
    for word in ("streamed ", str(input)):
        emit("text_delta", {"text": word})
    return "the result"


@pytest.mark.parametrize(
    ("metadata", "used", "text", "origin"),
    [
        ({"enable_remote_stream": True}, "remote", "streamed q", "provider"),
        ({"enable_remote_stream": "false"}, "off", "the result", "fallback"),
        ({"permission_mode": "interactive"}, "remote", "streamed q", "provider"),
    ],
    ids=["on", "off", "interactive"],
)
@one_loop
async def test_edge_66_and_65_the_decision_is_on_the_status_and_in_the_log(
    metadata: Any, used: str, text: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNSTREAM_ENABLE_REMOTE_STREAM", raising=False)
    hub = ts.Hub()
    with hub.session("s").turn("q", metadata=metadata) as turn:
        turn.complete(await ts.remote.agent(work, ray_options={"num_cpus": 0})(turn))
    status = turn.session.status()["remote"]
    events = list(turn.session.read())
    recorded = [event.data for event in events if isinstance(event, ts.Custom) and event.name == "remote_stream"]
    assert status["used"] == used
    assert recorded == [
        {name: status[name] for name in ("asked", "used", "reason")} | {"queue_active": used == "remote"}
    ]
    messages = [event for event in events if isinstance(event, ts.AssistantMessage)]
    assert [(message.text, message.origin) for message in messages] == [(text, origin)]


@one_loop
async def test_the_sessions_first_metadata_count_until_a_turn_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNSTREAM_ENABLE_REMOTE_STREAM", "0")
    agent, session, used = ts.remote.agent(work, ray_options={"num_cpus": 0}), ts.Hub().session("s"), []
    for metadata in ({"enable_remote_stream": True}, None, {"enable_remote_stream": False}):
        with session.turn("q", metadata=metadata) as turn:
            turn.complete(await agent(turn))
        used.append(session.status()["remote"]["used"])
    assert used == ["remote", "remote", "off"]


@one_loop
async def test_edge_67_ray_that_is_not_there_is_said_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnstream.ray.unavailable", lambda: "ray is not started: call ray.init()")
    with ts.Hub().session("s").turn("q", metadata={"enable_remote_stream": True}) as turn:
        turn.complete(await ts.remote.agent(lambda emit, input: "the result")(turn))
    assert turn.session.status()["remote"]["used"] == "unavailable"
    assert result(turn.session)["text"] == "the result"


@one_loop
@pytest.mark.parametrize(("probe", "used"), [(lambda: False, "off"), (lambda: True, "remote"), (None, "remote")])
async def test_edge_71_a_failed_probe_turns_it_off(probe: Any, used: str) -> None:
    with ts.Hub().session("s").turn("q", metadata={"enable_remote_stream": True}) as turn:
        turn.complete(await ts.remote.agent(work, probe=probe, ray_options={"num_cpus": 0})(turn))
    assert turn.session.status()["remote"]["used"] == used
    assert result(turn.session)["status"] == "completed"


def lines(count: int, *, terminal: bool) -> list[str]:
    """A recorded run of so many events."""
    with ts.Hub().session("recorded").turn("q") as turn:
        for i in range(count):
            turn.emit("custom", name=f"{i}")
    events = list(turn.session.read())
    return [event.json() for event in events[: None if terminal else -1]]


async def played(session: ts.Session, fixture: ts.remote.Fixture) -> None:
    def play(emit: Any) -> None:
        fixture(emit)

    emit = session.remote_emitter()
    await session.pump(emit, producer=ray.remote(num_cpus=0)(play).remote(emit))


@one_loop
async def test_edge_72_a_fixture_with_a_bad_line_publishes_nothing(session: ts.Session) -> None:
    bad = lines(100, terminal=True)
    bad[90] = bad[90].replace('"custom"', '"nonsense"')
    await played(session, ts.remote.Fixture(bad))
    assert [event.type for event in session.read()] == ["turn_start", "error", "completion"]
    assert result(session)["status"] == "failed"
    assert result(session)["error"]["message"].endswith("line 91 of 102: no event")


@one_loop
@pytest.mark.parametrize("terminal", [True, False])
async def test_edge_72_a_fixture_without_an_end_gets_one(session: ts.Session, terminal: bool) -> None:
    await played(session, ts.remote.Fixture(lines(100, terminal=terminal)))
    kinds = [event.type for event in session.read()]
    assert kinds == ["turn_start", *["custom"] * 100, "completion"]
    assert result(session)["status"] == "completed"


@one_loop
async def test_edge_72_a_gap_by_chaos_is_detected_and_recovered(session: ts.Session) -> None:
    """A transport that loses a batch: the gap is said; the same batch again fills nothing twice."""
    from turnstream import _native

    def batch(first: int) -> bytes:
        events = [_native.compose("custom", {"name": f"{first + i}"}, 1) for i in range(2)]
        return _native.write_batch(events, "p", first)[0]

    def put(box: Mailbox) -> None:
        for first in (1, 5, 5, 7):  # 3 and 4 are lost, 5 and 6 come twice
            box.put(batch(first), 2)
        box.put(None)

    box = Mailbox()
    ray.remote(num_cpus=0)(put).remote(box)
    pumped = await session.pump(box)
    assert (pumped.lost, pumped.duplicates, pumped.accepted) == (2, 2, 6)
    assert [event.code for event in session.read() if isinstance(event, ts.Warning)] == ["remote_gap"]
    read = list(session.read())
    cut = read[3]
    again = list(session.read(after=f"{session.epoch}.{cut.seq}"))  # and a reader that lost its own place goes on
    assert [event.seq for event in again] == [event.seq for event in read[4:]]


# --- over HTTP --------------------------------------------------------------------------------------------------------


@one_loop
async def test_a_client_reads_a_remote_agent_over_sse(serve: Callable[..., str]) -> None:
    fastapi = pytest.importorskip("fastapi")
    app, hub = fastapi.FastAPI(), ts.Hub()
    app.include_router(ts.fastapi.router(hub, agent=ts.remote.agent(work, ray_options={"num_cpus": 0})))
    async with httpx.AsyncClient(base_url=serve(app), timeout=60) as client:
        body = {"input": "q", "metadata": {"enable_remote_stream": True}}
        made = (await client.post("/sessions", json=body)).json()
        async with client.stream("GET", f"/sessions/{made['session_id']}/events") as response:
            seen = [frame async for frame in frames(response)]
        status = (await client.get(f"/sessions/{made['session_id']}")).json()
    assert seen[-1].event == "completion"
    assert seen[-1].data["text"] == "streamed q"
    assert (status["remote"]["used"], status["remote"]["accepted"]) == ("remote", 2)


async def said(base_url: str, question: str) -> tuple[list[Seen], dict[str, Any]]:
    """A question's whole stream, and the session's status after it."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        made = (await client.post("/sessions", json={"input": question})).json()
        async with client.stream("GET", f"/sessions/{made['session_id']}/events?deltas=exact") as response:
            seen = [frame async for frame in frames(response)]
        return seen, (await client.get(f"/sessions/{made['session_id']}")).json()


@pytest.fixture
def example() -> Generator[str]:
    """The address of the example, which runs as its user would run it."""
    command = [sys.executable, str(ROOT / "examples" / "ray-agent" / "ray_agent.py"), "--port", "0"]
    env = {**os.environ, "TURNSTREAM_ENABLE_REMOTE_STREAM": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.terminate()
            assert process.wait(60) in (0, signal.SIGTERM, -signal.SIGTERM)  # Ray exits with the number itself
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@one_loop
async def test_the_example_answers_from_an_actor(example: str) -> None:
    seen, status = await said(example, "hello there")
    assert text(seen) == "You said: hello there "
    assert [frame.event for frame in seen].count("tool_result") == 1
    assert seen[-1].data["status"] == "completed"
    assert (status["remote"]["used"], status["remote"]["lost"]) == ("remote", 0)


@one_loop
@pytest.mark.timeout(240)
async def test_a_serve_deployment_streams_through_its_router(monkeypatch: pytest.MonkeyPatch) -> None:
    serve: Any = pytest.importorskip("ray.serve")
    monkeypatch.syspath_prepend(str(SERVE))
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(importlib.import_module("ray_serve").backend)
        began = time.monotonic()
        seen, status = await said(f"http://127.0.0.1:{port}", " ".join("abcdefghijklmnopqrst"))
    finally:
        serve.shutdown()
    assert seen[0].event == "stream_open"
    assert text(seen) == f"You said: {' '.join('abcdefghijklmnopqrst')} "
    assert seen[-1].data["status"] == "completed"
    assert status["remote"]["used"] == "remote"
    # 22 words at 50 ms each, and one frame per word: they came as they were said.
    stamps = [frame.data["time"] for frame in seen if frame.event == "text_delta"]
    assert len(stamps) == 22
    assert stamps[-1] - stamps[0] > 500
    assert time.monotonic() - began < 60
