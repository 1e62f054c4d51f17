"""Real Redis servers for tests: started, stopped, restarted, promoted; and a forwarder between a hub and them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

from conftest import need_package

START_S = 30.0
LOOK_S = 0.05
"""How often a forwarder looks whether it still leads to the same server."""


def ask(port: int, *words: object, timeout_s: float = 30.0) -> bytes:
    """Sends one command, and gives the first piece of the answer: enough for a word or a number."""
    sent = [str(word).encode() for word in words]
    request = b"*%d\r\n" % len(sent) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in sent)
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def until_answered(port: int, expected: bytes, *words: object) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            if expected in ask(port, *words):
                return
        assert time.monotonic() < deadline, f"no {expected!r} to {words}"
        time.sleep(0.01)  # between two questions


class Server:
    """One redis-server without persistence, on a port of its own, which it keeps through restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [need_package("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [*command, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until_answered(self.port, b"PONG", "PING") if "--requirepass" not in self._command else until_answered(
            self.port, b"NOAUTH", "PING"
        )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None


class Forwarder:
    """A port that leads to a server, to another one once `target` is changed, and takes its time."""

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self._target = target
        self._life = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listener:
            while self._life >= 0:
                if select([self._listener], [], [], LOOK_S)[0]:
                    near, _ = self._listener.accept()
                    self._run(self._forward, near, self._target, self._life)

    def _forward(self, near: socket.socket, target: int, life: int) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target), START_S) as far:
            while self._life == life:
                for source in select([near, far], [], [], LOOK_S)[0]:
                    piece = source.recv(1 << 16)
                    if not piece:
                        return
                    time.sleep(self.delay_s)  # the latency itself
                    (far if source is near else near).sendall(piece)

    def lead_to(self, target: int) -> None:
        """Breaks the connections; new ones lead to `target`."""
        self._target = target
        self._life += 1

    def close(self) -> None:
        self._life = -1
        for thread in self._threads:
            thread.join(START_S)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            server.signal(signal.SIGCONT)
        server.kill()


@contextmanager
def forwarder(target: int) -> Iterator[Forwarder]:
    forwards = Forwarder(target)
    try:
        yield forwards
    finally:
        forwards.close()
