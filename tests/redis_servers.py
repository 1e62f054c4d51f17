"""Real Redis servers for tests: started, stopped, restarted, promoted; and a forwarder between a hub and them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import need_package

START_S = 10.0


def ask(port: int, *words: object, timeout_s: float = 5.0) -> bytes:
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
        self.target = target
        self.delay_s = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(self.delay_s)  # the latency itself
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def lead_to(self, target: int) -> None:
        """Breaks the connections; new ones lead to `target`."""
        self.target = target
        self._close_all()

    def _close_all(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self._close_all()


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
