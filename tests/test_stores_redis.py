"""Sessions in Redis: what a stopped, emptied, promoted, slow or full server does to them, and to the agent's loop."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from redis_servers import Forwarder, Server, ask, forwarder, redis_server, until_answered
from support import PATIENCE_S, line, parse, python, tell, until

import turnstream as ts
from turnstream import asgi

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

LIMIT_S = 0.5
"""The longest that a call waits for its store."""

SLACK_S = 1.5
"""What a busy machine adds to that; without its limit a call would wait for the five seconds of a connection."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def url_of(port: int, **options: object) -> str:
    return f"redis://127.0.0.1:{port}/0" + "".join(
        f"{'&' if at else '?'}{name}={value}" for at, (name, value) in enumerate(options.items())
    )


@asynccontextmanager
async def unblocked_loop() -> AsyncIterator[None]:
    """The loop runs on: between two of its ticks never lies more than one call's limit."""
    longest, before = 0.0, time.monotonic()

    async def tick() -> None:
        nonlocal longest, before
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest, before = max(longest, now - before), now

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert longest < LIMIT_S + SLACK_S, f"the loop stood still for {longest:.2f} s"


async def fill(turn: ts.Turn) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        while True:
            turn.emit("custom", name="filler", data="x" * 10_000)
            await asyncio.sleep(0.001)


async def collect(session: ts.Session) -> list[ts.Event]:
    return [event async for event in session.read()]


async def count_aloud(turn: ts.Turn, until: asyncio.Event, pause_s: float = 0.005) -> int:
    """Emits until told to stop; a refusal for want of room is repeated. How many."""
    number = 0
    while not until.is_set():
        with suppress(ts.StoreUnavailable):
            turn.emit("text_delta", text=f"{number},")
            number += 1
        await asyncio.sleep(pause_s)
    return number


def check(events: list[ts.Event], said: int) -> None:
    """Every event once, in order; everything that was said; one end."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    text = "".join(event.to_dict()["text"] for event in events if event.type == "text_delta")
    assert text == "".join(f"{number}," for number in range(said))
    assert [event.type for event in events].count("completion") == 1
    assert events[-1].to_dict()["status"] == "completed"


async def found(hub: ts.Hub, name: str = "s") -> ts.Session:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await hub.afind(name)
            except ts.TurnstreamError:
                await asyncio.sleep(0.05)  # a client's pause between two tries


async def read_to_the_end(hub: ts.Hub) -> list[ts.Event]:
    """As a client reads: where its stream ends early, it comes back with its cursor."""
    events: list[ts.Event] = []
    cursor: str | None = None
    async with asyncio.timeout(4 * PATIENCE_S):
        while True:
            session = await found(hub)
            async with session.read(after=cursor) as reader:
                events += [event async for event in reader if event.seq is not None]
                assert reader.status in ("live", "resumed", "caught_up", "finished"), reader.status
                cursor = reader.cursor
            if events and events[-1].type == "completion":
                return events


async def through(server_url: str, trouble: "asyncio.Task[None]", read_url: str | None = None) -> None:
    """A turn goes on while `trouble` lasts: nothing of it is lost, here or elsewhere, and the loop runs on."""
    hub, elsewhere = ts.Hub(server_url), ts.Hub(read_url or server_url)
    over = asyncio.Event()
    trouble.add_done_callback(lambda _: over.set())
    async with unblocked_loop():
        session = await hub.asession("s")
        async with await session.aturn("go") as turn:
            reading = asyncio.create_task(read_to_the_end(elsewhere))
            said = await count_aloud(turn, over)
            trouble.result()
        here = await collect(session)
        check(here, said)
        there = await reading
    assert [event.json() for event in there] == [event.json() for event in here]
    # Whoever comes later finds it in the store.
    async with asyncio.timeout(PATIENCE_S):
        later = await found(ts.Hub(read_url or server_url))
        await until(lambda: later.head >= session.head)
    assert [event.json() for event in later.read(follow="none")] == [event.json() for event in here]


async def test_a_server_that_stops_for_5_s(server: Server) -> None:
    async def stop() -> None:
        await asyncio.sleep(0.3)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        server.signal(signal.SIGCONT)
        await asyncio.sleep(0.3)

    await through(url_of(server.port), asyncio.create_task(stop()))


async def test_a_server_that_comes_back_empty(server: Server) -> None:
    async def restart() -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(1)

    await through(url_of(server.port, lease_s=4), asyncio.create_task(restart()))


@pytest.fixture
def replicated(server: Server, tmp_path: Path) -> Iterator[tuple[Server, Server, Forwarder]]:
    options = ("--replicaof", f"127.0.0.1 {server.port}")
    with redis_server(tmp_path / "replica", *options) as replica, forwarder(server.port) as forwards:
        until_answered(replica.port, b"master_link_status:up", "INFO", "replication")
        yield server, replica, forwards


async def test_a_replica_that_missed_the_last_events_takes_over(replicated: tuple[Server, Server, Forwarder]) -> None:
    server, replica, forwards = replicated

    async def fail_over() -> None:
        await asyncio.sleep(0.5)
        ask(replica.port, "REPLICAOF", "NO", "ONE")
        await asyncio.sleep(0.5)  # events that the replica will never see
        forwards.lead_to(replica.port)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.5)

    await through(url_of(forwards.port), asyncio.create_task(fail_over()))


async def test_a_lost_end_is_announced(replicated: tuple[Server, Server, Forwarder]) -> None:
    """The writer is gone, and the replica does not know how it ended: whoever comes with a cursor of that is told."""
    server, replica, forwards = replicated
    with python(_ONE_TURN, url_of(forwards.port)) as writer:
        assert line(writer) == "half"
        watching = ts.Hub(url_of(forwards.port))
        async with (await found(watching)).read(follow="session") as reader:
            until_answered(replica.port, ask(server.port, "DBSIZE").strip(), "DBSIZE")
            ask(server.port, "WAIT", 1, 1000)
            ask(replica.port, "REPLICAOF", "NO", "ONE")
            tell(writer, "")
            async with asyncio.timeout(PATIENCE_S):
                async for event in reader:
                    if event.type == "completion":
                        break
            cursor = reader.cursor
            writer.kill()
            forwards.lead_to(replica.port)
            server.kill()
            async with asyncio.timeout(3 * PATIENCE_S):  # readers of what is lost end
                assert [event.type async for event in reader] == []
    hub = ts.Hub(url_of(forwards.port))
    result = None
    async with asyncio.timeout(3 * PATIENCE_S):
        while result is None:
            result = (await found(hub)).result()
    assert (result["status"], result["reason"]) == ("failed", "producer_lost")
    for other in (hub, watching):
        async with (await found(other)).read(after=cursor) as reader:
            assert reader.status == "other_epoch"
            types = [event.type async for event in reader]
        assert types[0] == "turn_start", "all that there is"
        assert types[-1] == "completion"


_ONE_TURN = """
    import sys, time, turnstream as ts
    hub = ts.Hub(sys.argv[1] + "?lease_s=1")
    with hub.session("s").turn("go") as turn:
        turn.emit("text_delta", text="half")
        hub.flush()
        print("half", flush=True)
        sys.stdin.readline()
        for number in range(20):
            turn.emit("text_delta", text=f"{number},")
    hub.flush()
    time.sleep(60)
"""


async def test_a_slow_server(server: Server) -> None:
    with forwarder(server.port) as forwards:

        async def slow() -> None:
            await asyncio.sleep(0.2)
            forwards.delay_s = 0.1  # each way
            await asyncio.sleep(2)

        await through(url_of(forwards.port), asyncio.create_task(slow()), url_of(server.port))


async def test_calls_on_a_server_that_does_not_answer(server: Server) -> None:
    """Each call of the loop's is refused, or gives what is known, within its limit."""
    hub = ts.Hub(url_of(server.port))
    known = hub.session("s")
    with known.turn("go") as turn:
        turn.emit("text_delta", text="whole")
    running = hub.session("running").turn("go")
    server.signal(signal.SIGSTOP)
    before = time.monotonic()

    def bounded() -> None:
        nonlocal before
        now = time.monotonic()
        assert now - before < LIMIT_S + SLACK_S, f"{now - before:.2f} s"
        before = now

    for refused in (
        lambda: hub.session("new"),
        lambda: hub.find("nobody"),
        lambda: known.turn("again"),
        lambda: known.emitter()("custom", name="x", data=1),
        lambda: hub.delete("s"),
    ):
        with pytest.raises(ts.StoreUnavailable):
            refused()
        bounded()
    async with unblocked_loop():
        with pytest.raises(ts.StoreUnavailable):
            await hub.asession("another")
        assert (await hub.afind("running")).status()["state"] == "running"
    before = time.monotonic()
    running.emit("text_delta", text="x")
    bounded()
    running.complete()
    bounded()
    assert not hub.flush()
    bounded()
    server.signal(signal.SIGCONT)
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(hub.flush):
            pass
    result = ts.Hub(url_of(server.port)).find("running").result()
    assert result is not None
    assert result["text"] == "x"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_memory_while_the_server_is_away_is_bounded(server: Server) -> None:
    hub = ts.Hub(url_of(server.port), ts.Limits(max_events=1000))
    session = hub.session("s")
    turn = session.turn("go")
    server.signal(signal.SIGSTOP)
    gc.collect()
    before, refused, said = resident_bytes(), 0, 0
    async with unblocked_loop():
        while refused < 3:
            try:
                for _ in range(100):
                    turn.emit("custom", name="filler", data="x" * 1000)
                    said += 1
            except ts.StoreUnavailable:
                refused += 1
            await asyncio.sleep(0.01)  # whose turn it is: the ticker's
    assert 10_000 < said <= 65_600
    assert resident_bytes() - before < 128 << 20
    server.signal(signal.SIGCONT)
    turn.complete()
    async with asyncio.timeout(2 * PATIENCE_S):
        while not await asyncio.to_thread(hub.flush):
            pass
    assert ts.Hub(url_of(server.port)).find("s").head == said + 2


async def test_a_server_out_of_memory(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--maxmemory", "8mb") as server:
        hub = ts.Hub(url_of(server.port, lease_s=1))
        old = hub.session("old")
        with old.turn("go") as turn:
            turn.emit("custom", name="filler", data="x" * 500_000)
        stopped = asyncio.Event()
        session = hub.session("s")
        turn = session.turn("go")
        loop = asyncio.get_running_loop()
        turn.bind_task(lambda: loop.call_soon_threadsafe(stopped.set))
        async with unblocked_loop():
            with pytest.raises(ts.StoreFull):
                await fill(turn)
            async with asyncio.timeout(PATIENCE_S):
                await stopped.wait()  # the turn's work is told
            kept = session.head
            assert [event.seq for event in session.read(follow="none")] == list(range(1, kept + 1))
            assert await hub.adelete("old")
            async with asyncio.timeout(2 * PATIENCE_S):
                await until(lambda: session.result() is not None)
        result = ts.Hub(url_of(server.port)).find("s").result()
        assert result is not None
        assert (result["status"], result["reason"]) == ("failed", "store_full")
        with session.turn("more") as turn:
            turn.emit("text_delta", text="there is room")


_WORKER = """
    import asyncio, sys, turnstream as ts

    async def main() -> None:
        hub = ts.Hub(sys.argv[1])
        session = hub.session("s")
        try:
            async with session.turn("go") as turn:
                print("running", flush=True)
                for number in range(100_000):
                    turn.emit("text_delta", text=f"{number},")
                    await asyncio.sleep(0.01)
        except (asyncio.CancelledError, ts.NotWriter, ts.TurnEnded, ts.SessionClosed) as error:
            print("stopped", type(error).__name__, flush=True)
        try:
            session.emitter()("text_delta", text="late", turn=1)
        except ts.TurnstreamError as error:
            print("refused", type(error).__name__, flush=True)
        hub.flush()

    asyncio.run(main())
"""


@pytest.mark.parametrize("fate", ["killed", "stopped"])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_worker_that_is_lost_or_fenced_off(tmp_path: Path, kind: str, fate: str) -> None:
    """Ended once, whoever notices; one that comes back after its lease is told so, and says nothing more."""
    with redis_server(tmp_path / "redis") as server:
        url = f"sqlite:///{tmp_path}/runs.db?lease_s=0.7" if kind == "sqlite" else url_of(server.port, lease_s=0.7)
        hubs = [ts.Hub(url) for _ in range(3)]
        with python(_WORKER, url) as worker:
            assert line(worker) == "running"
            reading = [asyncio.create_task(read_to_the_end(hub)) for hub in hubs]
            session = await found(hubs[0])
            async with asyncio.timeout(PATIENCE_S):
                await until(lambda: session.head >= 10)
            os.kill(worker.pid, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
            async with asyncio.timeout(2 * PATIENCE_S):
                seen = await asyncio.gather(*reading)
            ends = [event.to_dict() for event in seen[0] if event.type == "completion"]
            assert [(end["status"], end["reason"]) for end in ends] == [("failed", "producer_lost")]
            assert len({tuple(event.json() for event in events) for events in seen}) == 1
            if fate == "stopped":
                os.kill(worker.pid, signal.SIGCONT)
                said = await asyncio.to_thread(worker.communicate, timeout=PATIENCE_S)
                assert [line.split()[0] for line in said[0].splitlines()] == ["stopped", "refused"]
        late = [event.json() for event in ts.Hub(url).find("s").read(follow="none")]
        assert late == [event.json() for event in seen[0]]


async def test_no_password_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with redis_server(tmp_path / "redis", "--requirepass", "s3cret-word") as server:
        url = f"redis://:s3cret-word@127.0.0.1:{server.port}/0?lease_s=1"
        hub = ts.Hub(url)
        session = hub.session("s")
        with session.turn("go") as turn:
            turn.emit("text_delta", text="whole")
        said += [repr(hub), str(hub.store), repr(session), str(session.status()), str(hub.statistics())]
        said += [event.json() for event in session.read(follow="none")]
        for bad in (
            url.replace("s3cret", "s3cret-wrong"),
            url.replace("?", "?s3cret-word=1&"),
            url.replace("/0", "/x"),
        ):
            with pytest.raises(ts.TurnstreamError) as refused:
                ts.Hub(bad)
            said.append(str(refused.value).replace("option 's3cret-word'", "").replace('option "s3cret-word"', ""))
        server.kill()
        with pytest.raises(ts.StoreUnavailable) as away:
            hub.session("new")
        said.append(str(away.value))
        with pytest.raises(ts.StoreUnavailable) as away:
            ts.Hub(url)
        said.append(str(away.value))
    assert "s3cret" not in "\n".join([*said, caplog.text])


async def test_ids_that_are_no_keys_are_refused(server: Server) -> None:
    hub = ts.Hub(url_of(server.port))
    for bad in ("../other", "a b", "a\n", "{0}", "*", "é", "x" * 129):
        with pytest.raises(ValueError, match="session id"):
            hub.session(bad)
        with pytest.raises(ts.UnknownSession):
            hub.find(bad)
    assert ask(server.port, "DBSIZE") == b":0\r\n"


async def test_a_deleted_session_stays_deleted(server: Server) -> None:
    """Whoever still has it in memory does not take the server for one that forgot."""
    here, there = ts.Hub(url_of(server.port)), ts.Hub(url_of(server.port))
    session = here.session("s")
    with session.turn("go"):
        pass
    epoch = session.epoch
    assert there.delete("s")
    with pytest.raises(ts.UnknownSession):
        here.find("s")
    assert here.session("s").epoch != epoch
    assert here.find("s").head == 0


async def test_a_turn_after_the_server_came_back_empty(server: Server, serve: Callable[..., str]) -> None:
    """What a process knows of an idle session is told again, under another epoch; its next turn starts as ever."""
    hub = ts.Hub(url_of(server.port))

    async def agent(turn: ts.Turn) -> str:
        return f"answer {turn.number}"

    base = serve(asgi.app(hub, agent))
    async with httpx.AsyncClient(base_url=base, timeout=2 * PATIENCE_S) as http:
        made = (await http.post("/sessions", json={"input": "go", "session_id": "s"})).json()
        before = parse((await http.get("/sessions/s/events", params={"after": made["cursor"]})).content)
        server.kill()
        server.start()
        again = await http.post("/sessions/s/turns", json={"input": "more"})
        for _ in range(100):  # until the hub's connection is made anew
            if again.status_code != 503:
                break
            await asyncio.sleep(0.05)
            again = await http.post("/sessions/s/turns", json={"input": "more"})
        assert again.status_code == 202, again.text
        assert again.json()["turn"] == 2
        seen = parse((await http.get("/sessions/s/events", params={"after": before[-1].id})).content)
    assert seen[0].data["status"] == "other_epoch"
    assert [frame.data["text"] for frame in seen if frame.event == "completion"] == ["answer 1", "answer 2"]
    assert [frame.data["seq"] for frame in seen[1:]] == list(range(1, len(seen)))
