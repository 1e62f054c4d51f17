"""Clients in JavaScript, as their packages were released, and a wire that cuts their connections.

Owns how a script of tests/js is run, and the cutting proxy. Refuses to know what the clients read.
"""

import json
import random
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from conftest import ROOT, need_package, run_bounded

JS = ROOT / "tests" / "js"


def node(script: str, *arguments: str, timeout_s: float = 60.0) -> Any:
    """What `node tests/js/<script>` prints, one JSON value."""
    return _run("--experimental-websocket", script, *arguments, timeout_s=timeout_s)


def _run(*arguments: str, timeout_s: float) -> Any:
    program = need_package("nodejs")
    if not (JS / "node_modules").is_dir():
        pytest.skip("needs tests/js/node_modules: npm ci --prefix tests/js")
    status, out, err = run_bounded([program, *arguments], timeout_s=timeout_s, cwd=JS)
    assert status == 0, f"{out}{err}"
    return json.loads(out)


def script(code: str, *, timeout_s: float = 60.0) -> Any:
    """What a module's text prints, one JSON value."""
    return _run("--input-type=module", "--eval", code, timeout_s=timeout_s)


def page(name: str, base_url: str, *, package: tuple[str, str]) -> Any:
    """What the first JavaScript of docs/<name> prints, run against `base_url`; `package` has another name here."""
    text = (ROOT / "docs" / name).read_text()
    code = text.split("```js\n", 1)[1].split("```", 1)[0]
    known, here = package
    assert f'"{known}"' in code
    assert "http://127.0.0.1:8000" in code
    code = code.replace(f'"{known}"', f'"{here}"').replace("http://127.0.0.1:8000", base_url)
    return script(code)


CUTS = 6


@contextmanager
def cutting(
    base_url: str, seed: int, *, most: int, least: int = 1, path: bytes = b"/events", cuts: int = CUTS
) -> Iterator[str]:
    """A proxy whose first answers to `path` are dropped after a random number of bytes, `least` to less than `most`."""
    chance = random.Random(seed)
    lengths = iter([chance.randrange(least, most) for _ in range(cuts)])
    upstream = ("127.0.0.1", int(base_url.rpartition(":")[2]))

    class Handler(socketserver.BaseRequestHandler):
        request: socket.socket

        def handle(self) -> None:
            with suppress(OSError), socket.create_connection(upstream, timeout=60) as server:
                self.request.settimeout(60)
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (piece := self.request.recv(65536)):
                        return
                    request += piece
                head, _, body = request.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
                while length and len(body) < int(length[1]):
                    body += (piece := self.request.recv(65536))
                    if not piece:
                        return
                request = head + b"\r\n\r\n" + body
                server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                left = next(lengths, None) if path in request.split(b"\r\n", 1)[0] else None
                # Bytes of what the client gets, whatever the server's chunks are.
                while piece := server.recv(4096 if left is None else min(4096, left)):
                    self.request.sendall(piece)
                    if left is not None and (left := left - len(piece)) == 0:
                        return  # in the middle of a chunked body: to the client an error, not an end

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False  # server_close waits for them

    with Server(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="cutting")
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join(60)
