"""Sessions in a store, a file or a Redis server: what a crash, a second process and a full disk do to them."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import redis_server
from support import PATIENCE_S, frames, line, python, running, tell
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream.asgi import app

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("TURNSTREAM_KILLS", "30"))
"""`make soak-stores` asks for 300."""

Python = Callable[..., list[str]]


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store/runs.db?lease_s=5"


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that several processes share; more options may follow."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store/runs.db?lease_s=5"
        return
    with redis_server(tmp_path / "redis") as server:
        yield f"redis://127.0.0.1:{server.port}/0?lease_s=5"


def test_what_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    for bad in ("nope", "sqlite://", f"sqlite:///{tmp_path}/x?colour=red", "pg://me:secret@host"):
        with pytest.raises(ts.UnknownStore) as refused:
            ts.Hub(bad)
        assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="durability"):
        ts.Hub(durability="for ever")  # type: ignore[arg-type]
    (tmp_path / "noise").write_bytes(os.urandom(9000))
    with pytest.raises(ts.StoreCorrupt):
        ts.Hub(f"sqlite:///{tmp_path}/noise")
    with pytest.raises(ValueError, match="session id"):
        ts.Hub(f"sqlite:///{tmp_path}/runs.db").session("../other")


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
def test_a_process_that_ends_leaves_everything_behind(url: str, durability: str, subprocess_python: Python) -> None:
    said = subprocess_python(f"""if True:
        import turnstream as ts
        hub = ts.Hub({url!r}, durability={durability!r})
        session = hub.session("s")
        with session.turn("hi", client_id="c") as turn:
            turn.emit("text_delta", text="whole")
        print(session.cursor, session.messages())
        session.emitter()("custom", name="last", data=1)  # nobody waits for this one but the exit
    """)
    cursor, _, messages = said[0].strip().partition(" ")
    hub = ts.Hub(url)
    session = hub.find("s")
    assert str(session.messages()) == messages
    assert [event.type for event in session.read(after=cursor, follow="none")] == ["custom"]
    assert not session.turn("hi", client_id="c").started
    with pytest.raises(ts.Conflict):
        session.turn("other", client_id="c")
    with pytest.raises(ts.UnknownSession):
        hub.find("t")
    with session.turn() as turn:
        assert turn.number == 2


WRITER = """
    import os, sys, turnstream as ts
    hub = ts.Hub(sys.argv[1])
    session = hub.session(sys.argv[2])
    number = 0
    while True:
        with session.turn("go") as turn:
            for _ in range(40):
                number += 1
                seq = turn.emit("text_delta", text=f"{number} ")
                if number % 7 == 0 and hub.flush():
                    os.write(1, b"%d\\n" % seq)
        os.write(1, b"%d\\n" % session.head)
"""


def killed(url: str, name: str) -> tuple[int, int]:
    """Kills a writer at a random moment; the last seq it was told is stored, and how many of its events are."""
    with python(WRITER, url, name) as writer:
        acknowledged = 0
        for _ in range(random.randint(1, 30)):
            acknowledged = int(line(writer))
        writer.kill()
        assert writer.stdout is not None
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split("\n")[:-1])])
    hub = ts.Hub(url)
    session = hub.find(name)
    events: list[ts.Event] = []
    turn = session.status()["turn"]
    for event in session.read(follow="session"):  # a turn that was cut is ended within its lease
        events.append(event)
        if event.type == "completion" and event.turn == turn:
            break
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "dense, no block torn"
    assert len(events) >= acknowledged
    texts = "".join(event.to_dict()["text"] for event in events if event.type == "text_delta")
    assert texts == "".join(f"{number} " for number in range(1, texts.count(" ") + 1)), "a prefix of what was said"
    ends = [(event.turn, event.to_dict()["status"]) for event in events if event.type == "completion"]
    assert [number for number, _ in ends] == list(range(1, turn + 1)), "one completion a turn"
    assert {status for _, status in ends[:-1]} <= {"completed"}
    assert hub.find(name).status()["state"] == ends[-1][1]
    hub.close()
    return acknowledged, len(events)


@pytest.mark.timeout(60 + 2 * KILLS)
def test_a_killed_writer_loses_nothing_that_was_acknowledged(url: str) -> None:
    url += "&lease_s=0.5"
    with ThreadPoolExecutor(3) as pool:
        all_killed = list(pool.map(lambda n: killed(url, f"s{n}"), range(KILLS)))
    assert sum(acknowledged for acknowledged, _ in all_killed) > KILLS


FOLLOWER = """
    import sys, turnstream as ts
    hub = ts.Hub(sys.argv[1], ts.Limits(max_events=50))
    for event in hub.session("s").read(follow="session"):
        print(event.seq, flush=True)
"""


@pytest.mark.timeout(60 + KILLS)
def test_a_killed_follower_costs_nobody_anything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    session = ts.Hub(url).session("s")

    def speak(turn: ts.Turn, count: int) -> None:
        for number in range(count):
            turn.emit("text_delta", text=f"{number} ")

    for _ in range(max(3, KILLS // 10)):
        with python(FOLLOWER, url) as killed, python(FOLLOWER, url) as spared, session.turn("go") as turn:
            speak(turn, 100)
            assert (line(killed), line(spared)) == ("1", "1")
            speak(turn, random.randint(0, 400))
            killed.kill()
            speak(turn, 100)
            turn.complete()
            assert [int(line(spared)) for _ in range(session.head - 1)] == list(range(2, session.head + 1))
    everything = ts.Hub(url).find("s").read(follow="none")
    assert [event.seq for event in everything] == list(range(1, session.head + 1))
    # Ours, the last one's and perhaps the one's that was killed last: those of the dead are removed by who finds them.
    assert len(list((tmp_path / "runs.db-hints").iterdir())) <= 4


ASKED = """
    import sys, turnstream as ts
    hub = ts.Hub(sys.argv[1])
    session = hub.session("s")
    turn = session.turn("go")
    print("running", flush=True)
    for said in sys.stdin:
        if said == "end\\n":
            turn.complete()
            print("ended", flush=True)
        elif said == "cancelled?\\n":
            for event in session.read():
                pass
            print(turn.cancelled, flush=True)
        else:
            turn.emit("text_delta", text=said.strip())
"""


async def test_two_processes_one_session(url: str) -> None:
    hub = ts.Hub(url)
    with python(ASKED, url) as writer:
        assert line(writer) == "running"
        session = hub.find("s")
        seen: list[ts.Event] = []
        with pytest.raises(ts.NotWriter):
            session.emitter()("text_delta", text="no")
        with pytest.raises(ts.TurnActive):
            session.turn()
        async with asyncio.timeout(PATIENCE_S):
            async with session.read() as reader:
                for piece in ("a", "b", "c"):
                    tell(writer, piece)
                    async for event in reader:
                        seen.append(event)
                        if event.type == "text_delta":
                            assert event.to_dict()["text"] == piece
                            break
                tell(writer, "end")
                seen += [event async for event in reader]
        assert seen[-1].type == "completion"
        assert session.result() == seen[-1].to_dict()
        assert line(writer) == "ended"
        with session.turn("mine now") as turn:  # and the next one may run here
            turn.emit("text_delta", text="d")
        assert seen[-1].seq is not None
        assert session.head == seen[-1].seq + 5


async def test_a_cancel_reaches_the_other_process(url: str) -> None:
    hub = ts.Hub(url)
    with python(ASKED, url) as writer:
        assert line(writer) == "running"
        assert await hub.find("s").cancel("enough")
        tell(writer, "cancelled?")
        assert await asyncio.to_thread(line, writer) == "True"
    result = hub.find("s").result()
    assert result is not None
    assert (result["status"], result["reason"]) == ("cancelled", "enough")


async def test_a_socket_cancels_the_turn_of_another_process(serve: Callable[..., str], url: str) -> None:
    hub = ts.Hub(url)
    with python(ASKED, url) as writer:
        assert line(writer) == "running"
        at = serve(app(hub)).replace("http", "ws", 1) + "/sessions/s/ws"
        async with asyncio.timeout(PATIENCE_S), connect(at, proxy=None) as client:
            await client.send('{"type": "cancel", "reason": "enough"}')
            seen = [json.loads(await client.recv())]
            while seen[-1]["type"] != "completion":
                seen.append(json.loads(await client.recv()))
        assert not any("error" in frame for frame in seen if frame["type"] == "reply")
        assert (seen[-1]["status"], seen[-1]["reason"]) == ("cancelled", "enough")


def test_a_full_store_refuses_with_its_reason_and_keeps_what_it_has(tmp_path: Path) -> None:
    hub = ts.Hub(f"sqlite:///{tmp_path}/runs.db?max_bytes=200000&lease_s=0.5")
    session = hub.session("s")
    turn = session.turn()
    kept = 0

    def fill() -> None:
        nonlocal kept
        for number in range(10_000):
            turn.emit("custom", name="filler", data="x" * 2000)
            if number % 10 == 0 and hub.flush():
                kept = session.head

    with pytest.raises(ts.StoreFull):
        fill()
    assert kept > 50
    assert [event.seq for event in session.read(follow="none")] == list(range(1, session.head + 1))
    assert session.head >= kept


def test_a_full_file_makes_room_by_its_oldest_sessions(tmp_path: Path) -> None:
    hub = ts.Hub(f"sqlite:///{tmp_path}/runs.db?max_bytes=1000000&lease_s=0.5")

    def fill(number: int) -> str:
        session = hub.session(f"s{number}")
        with suppress(ts.TurnstreamError), session.turn() as turn:
            for _ in range(5):
                turn.emit("custom", name="filler", data="x" * 20_000)
        hub.flush()
        return str(session.status()["state"])

    number = 0
    while fill(number) == "completed":
        number += 1
    assert number > 5
    # Not by the timer, which comes once a minute.
    deadline = time.monotonic() + PATIENCE_S
    while fill(number := number + 1) != "completed":
        assert time.monotonic() < deadline


FILLER = """
    import resource, sys, turnstream as ts
    url, limit = sys.argv[1:]
    session = ts.Hub(url).session("s")
    turn = session.turn("go")
    if int(limit):  # a file that may not grow fails as a device does: EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        for number in range(100_000):
            turn.emit("custom", name="filler", data="x" * 2000)
    except ts.StoreError as error:
        print(type(error).__name__)
    kept = session.head
    assert [event.seq for event in session.read(follow="none")] == list(range(1, kept + 1))
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with session.turn("again") as turn:
            turn.emit("text_delta", text="room")
        print(session.result()["text"], session.head > kept)
"""


def test_a_file_that_may_not_grow_fails_and_goes_on(file_url: str) -> None:
    with python(FILLER, file_url, str(1 << 20)) as process:
        assert (line(process), line(process)) == ("StoreIO", "room True")
    session = ts.Hub(file_url).find("s")
    assert [event.seq for event in session.read(follow="none")] == list(range(1, session.head + 1))


def test_a_disk_without_room(tmp_path: Path) -> None:
    """The kernel's own ENOSPC; what is done with it is held by `crates/core/tests/store/faults.rs` on any machine."""
    mount = f"mount -t tmpfs -o size=2m none {tmp_path} && exec "
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount + "true"], check=False).returncode
    ):
        if os.environ.get("TURNSTREAM_REQUIRE") != "all":
            pytest.skip("needs the right to mount: user namespaces, or root")
        return
    code = [sys.executable, "-c", textwrap.dedent(FILLER), f"sqlite:///{tmp_path}/runs.db", "0"]
    said = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + '"$@"', "sh", *code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.stdout, said.stderr) == ("StoreFull\n", "")


def test_a_fork_leaves_the_store_to_its_parent(file_url: str, subprocess_python: Python) -> None:
    assert subprocess_python(f"""if True:
        import os, turnstream as ts
        hub = ts.Hub({file_url!r})
        turn = hub.session("s").turn()
        if (child := os.fork()) == 0:
            try:
                hub.session("s")
            except ts.ForkedProcess:
                try:
                    ts.Hub({file_url!r})
                except ts.ForkedProcess:
                    os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        turn.complete()
        print(hub.find("s").status()["state"])
    """) == ["completed\n"]


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """Edge cases 55 and 63: what an older release wrote stays readable; see tests/fixtures/README.md."""
    fixtures = Path(__file__).parent / "fixtures"
    shutil.copy(fixtures / "store-v1.db", tmp_path / "runs.db")
    expected = json.loads((fixtures / "store-v1.json").read_text())
    hub = ts.Hub(f"sqlite:///{tmp_path}/runs.db", ts.Limits(max_age_s=1e9))
    for name, told in expected.items():
        session = hub.find(name)
        assert session.messages() == told["messages"]
        events = [event.to_dict() for event in session.read(follow="none")]
        assert events[: len(told["events"])] == told["events"]
        assert session.epoch == told["epoch"]
    assert hub.find("cut").result()["reason"] == "producer_lost"  # type: ignore[index]
    with hub.find("done").turn("more") as turn:
        assert turn.number == 2


# --- longer than the memory -------------------------------------------------------------------------------------------


@pytest.fixture
def long(url: str) -> ts.Session:
    """A session of 4,060 events, of which 100 are in memory."""
    session = ts.Hub(url, ts.Limits(max_events=100)).session("s")
    for turn in range(10):
        with session.turn("go") as emitting:
            for number in range(402):
                emitting.emit("text_delta", text=f"{turn}.{number} ")
    return session


async def test_a_long_run_is_replayed_from_its_start(long: ts.Session) -> None:
    everything = list(range(1, long.head + 1))
    assert len(everything) > 4000
    assert long.earliest == 1
    with pytest.raises(ts.WouldBlock):  # on a loop's thread: it would wait for the file
        list(long.read("0", "none"))
    async with asyncio.timeout(PATIENCE_S):
        reader = long.read(follow="none", on_trim="fail")
        assert [event.seq async for event in reader] == everything
        resumed = long.read(f"{long.epoch}.1234", "none", on_trim="fail")
        assert resumed.status == "resumed"
        assert [event.seq for batch in [b async for b in resumed.batches(50)] for event in batch] == everything[1234:]
        body = b"".join([frame async for frame in long.frames(follow="none", deltas="exact")])
        ids = [line.rpartition(b".")[2] for line in body.splitlines() if line.startswith(b"id: ")]
        assert list(map(int, ids)) == everything
    assert [event.seq for event in await asyncio.to_thread(lambda: list(long.read(follow="none")))] == everything


@pytest.mark.parametrize("wait_s", ["0", "5"])
def test_a_long_run_is_replayed_by_polling(long: ts.Session, url: str, serve: Callable[..., str], wait_s: str) -> None:
    served = app(ts.Hub(url, ts.Limits(max_events=100)))
    with httpx.Client(base_url=serve(served), timeout=PATIENCE_S) as http:
        seen: list[int] = []
        page: dict[str, Any] = {"more": True, "cursor": "0"}
        while page["more"]:
            query = {"after": page["cursor"], "wait_s": wait_s, "limit": 700, "follow": "session", "deltas": "exact"}
            page = http.get("/sessions/s/poll", params=query).raise_for_status().json()
            assert page["status"] != "trimmed"
            seen += [event["seq"] for event in page["events"]]
    assert seen == list(range(1, long.head + 1))


async def test_a_live_run_outruns_a_slow_reader(url: str) -> None:
    """What leaves the memory between two steps of a reader is no gap."""
    session = ts.Hub(url, ts.Limits(max_events=20)).session("s")
    reader = session.read()
    seen = []
    with session.turn("go") as turn:
        for number in range(600):
            turn.emit("custom", name="n", data=number)
            if number % 150 == 149:
                async with asyncio.timeout(PATIENCE_S):
                    seen.append(await anext(reader))
    async with asyncio.timeout(PATIENCE_S):
        seen += [event async for event in reader]
    assert [event.seq for event in seen] == list(range(1, session.head + 1))


# --- several workers -------------------------------------------------------------------------------------------------


def accepting(url: str) -> None:
    """Waits until one worker listens: the socket is bound before there is any, and each says so a moment before."""
    address = httpx.URL(url)
    until = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((address.host, address.port)) == 0:
                return
        assert time.monotonic() < until, "nobody accepts"
        time.sleep(0.01)  # between two tries


@contextmanager
def workers(command: list[str], **options: Any) -> Iterator[str]:
    """A server with several worker processes; its URL."""
    with running(command, stderr=subprocess.PIPE, **options) as server:
        assert server.stderr is not None
        for said in server.stderr:
            if "running on http://" in said:
                url = said.partition("running on ")[2].split()[0]
                break
        else:
            pytest.fail("the server has not said where it listens")
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(server.stderr.read)  # a full pipe would stop it
            try:
                accepting(url)
                yield url
            finally:
                os.killpg(server.pid, signal.SIGKILL)  # or the pipe stays open, and the pool waits for it
                draining.result(PATIENCE_S)


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the workers have their own
@pytest.mark.parametrize("fate", ["ends", "killed"])
async def test_a_viewer_on_another_worker_than_the_run(url: str, fate: str) -> None:
    environment = {
        **os.environ,
        "STORE": f"{url}&lease_s=1",
        "PAUSE_S": "0.02" if fate == "ends" else "60",  # between two words: it does not end before it is killed
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples" / "multi-worker"), "workers:app"]
    with workers([*command, "--workers", "3", "--port", "0"], env=environment) as served:
        async with asyncio.timeout(3 * PATIENCE_S), httpx.AsyncClient(base_url=served, timeout=PATIENCE_S) as http:
            made = await http.post("/sessions", json={"input": "go", "session_id": "s"})
            assert made.status_code == 201
            writer = made.headers["x-worker"]
            while True:  # a connection each, until another worker takes one
                async with (
                    httpx.AsyncClient(base_url=served, timeout=PATIENCE_S) as viewer,
                    viewer.stream("GET", "/sessions/s/events") as view,
                ):
                    if view.headers["x-worker"] == writer:
                        continue
                    seen = []
                    async for frame in frames(view):
                        seen.append(frame)
                        if fate == "killed" and frame.event == "text_delta":
                            fate = "was killed"
                            os.kill(int(writer), signal.SIGKILL)
                    break
            end = seen[-1].data
            assert seen[-1].event == "completion"
            if fate == "ends":
                assert end["text"] == "".join(f"{number} " for number in range(1, 51))
            else:
                assert (end["status"], end["reason"]) == ("failed", "producer_lost")
            assert sum(frame.event == "completion" for frame in seen) == 1
            # Status and result are the same whoever is asked.
            for _ in range(6):
                async with httpx.AsyncClient(base_url=served, timeout=PATIENCE_S) as other:
                    assert (await other.get("/sessions/s/result")).json() == end


def test_serve_takes_several_workers(tmp_path: Path, url: str) -> None:
    (tmp_path / "mine.py").write_text(f"import turnstream as ts\nhub = ts.Hub({url!r})\nalone = ts.Hub()\n")
    hub = ts.Hub(url)
    with hub.session("s").turn("hi") as turn:
        turn.emit("text_delta", text="whole")
    command = [sys.executable, "-m", "turnstream", "serve"]
    with workers([*command, "mine:hub", "--workers", "3", "--port", "0"], cwd=tmp_path) as served:
        for _ in range(6):  # a connection each: whoever of them answers
            assert httpx.get(f"{served}/sessions/s/result", timeout=PATIENCE_S).json() == hub.find("s").result()
    refused = subprocess.run(
        [*command, "mine:alone", "--workers", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "one process" in refused.stderr
