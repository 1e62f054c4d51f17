"""What tests share: frames read from a response, gates between a test and an agent, bounded waiting, bounds on a busy
machine, processes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx

import turnstream as ts

PATIENCE_S = 30.0

AT_ONCE_S = 5.0
"""What comes at once has come by then, also on a busy machine; a heartbeat, which would find it out too, takes ten."""

NOT_OURS_S = 5.0
"""As much of the time that processes wait for a processor does not count in `within`."""


class Seen(NamedTuple):
    """One server-sent event as a client sees it; a comment has the event name ":"."""

    event: str
    data: dict[str, Any]
    id: str | None


def parse(body: bytes) -> list[Seen]:
    """The frames of a whole SSE body, strictly: LF only, and no field but ours."""
    assert b"\r" not in body
    seen: list[Seen] = []
    name, data, cursor = "", "", None
    for line in body.decode().split("\n"):
        if line.startswith(":"):
            seen.append(Seen(":", {"comment": line}, None))
        elif line:
            field, _, value = line.partition(": ")
            assert field in ("event", "data", "id", "retry"), line
            name, data, cursor = (
                value if field == "event" else name,
                value if field == "data" else data,
                value if field == "id" else cursor,
            )
        elif name:
            seen.append(Seen(name, json.loads(data), cursor))
            name, data, cursor = "", "", None
    assert not name, "the last frame is cut"
    return seen


async def frames(response: httpx.Response) -> AsyncIterator[Seen]:
    """The frames of a response as they come."""
    buffer = b""
    async for piece in response.aiter_raw():
        buffer += piece
        *whole, buffer = buffer.split(b"\n\n")
        for frame in whole:
            for seen in parse(frame + b"\n\n"):
                yield seen


def seqs(seen: list[Seen]) -> list[int]:
    return [frame.data["seq"] for frame in seen if frame.id is not None]


def text(seen: list[Seen]) -> str:
    return "".join(frame.data["text"] for frame in seen if frame.event == "text_delta")


class Gate:
    """Opened by a test, passed by an agent, on whatever loops."""

    def __init__(self) -> None:
        self._open: Future[None] = Future()

    @property
    def is_open(self) -> bool:
        return self._open.done()

    def open(self) -> None:
        self._open.set_result(None)

    async def passed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(asyncio.wrap_future(self._open))

    def wait(self) -> None:
        self._open.result(PATIENCE_S)


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Waits for what has no event to wait for: another thread's count."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110, the counts of another thread ring no bell
            await asyncio.sleep(0.005)


def waited_s() -> float:
    """For how long, since the machine's start, somebody was to run and had no processor. 0 where no kernel says."""
    try:
        pressure, stat = Path("/proc/pressure/cpu").read_text(), Path("/proc/stat").read_text()
    except OSError:
        return 0.0
    stalled_us = int(pressure.partition("total=")[2].split()[0])
    stolen = int(stat.split()[8]) / (os.cpu_count() or 1)  # by the machine's own host, in ticks of each processor
    return stalled_us / 1e6 + stolen / os.sysconf("SC_CLK_TCK")


@contextmanager
def within(promised_s: float) -> Iterator[None]:
    """Fails where the block takes longer, on a machine that has a processor for it."""
    began, before = time.monotonic(), waited_s()
    yield
    took, waited = time.monotonic() - began, waited_s() - before
    assert took < promised_s + min(waited, NOT_OURS_S), f"{took:.2f} s, without a processor for {waited:.2f}"


async def listening(port: int) -> None:
    """Waits for a server that is another process."""

    def is_up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(is_up)


def is_reset(connection: Any) -> bool:
    """Whether the other end has reset a connection that nobody reads: the kernel knows (TCP_CLOSE)."""
    state: bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0] == 7


def frozen(base: str, path: str) -> socket.socket:
    """A client that asks for a stream and takes as little of it as the kernel lets it."""
    url = httpx.URL(base)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE_S)
    client.connect((url.host, url.port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def speak(turn: ts.Turn, words: list[str]) -> None:
    """One streamed message."""
    for word in words:
        turn.emit("text_delta", {"message_id": "m1", "text": word})


WORDS = [f"w{i} " for i in range(50)]


def finished(hub: ts.Hub, session_id: str = "s", words: list[str] = WORDS) -> ts.Session:
    """A session with one finished turn that nobody has read."""
    session = hub.session(session_id)
    with session.turn("say it") as turn:
        speak(turn, words)
    return session


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it has ended, and been waited for
                os.killpg(process.pid, signal.SIGKILL)


def python(code: str, *arguments: str) -> Any:
    """A process that runs `code` and talks in lines."""
    return running([sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()
