"""Many SSE clients in one process, as lean as Python allows: non-blocking sockets and one epoll, no event loop.

`python -m benches.crowd` answers `{}`, and then one JSON answer for each JSON command that it reads, a line each:

- `{"do": "join", "port", "path", "clients", "epoch", "after"}`: connects them all at once, each, where `after` is two
  numbers, with a Last-Event-ID somewhere between; answers when each has been sent the head of its response.
- `{"do": "hear"}`: waits until each has been sent an event that was made after the first of them called, and answers
  `{"seconds"}` since then.
- `{"do": "listen", "seconds"}`: reads for so long, and answers `{"late": [percentiles], "count"}`: how long after its
  making each event reached its client, in seconds, at the 50th, 99th and 99.9th percentile.
- `{"do": "leave"}`.

A delivery costs it about 3 µs, less than any server pays for it: on a second core it keeps up.
"""

from __future__ import annotations

import json
import random
import re
import resource
import select
import socket
import struct
import sys
import time
from typing import Any

from benches.live_server import ADDRESSES

PATIENCE_S = 120.0
_MADE = re.compile(rb'"data":(\d+)\}\n\n')
_RESET = struct.pack("ii", 1, 0)


class Crowd:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, socket.socket] = {}
        self._chance = random.Random(7)
        self._buffer = bytearray(1 << 18)
        self._begun = 0
        self._deaf: set[int] = set()
        """Clients that have been sent no event of later than `_begun`."""

    def join(self, order: dict[str, Any]) -> dict[str, Any]:
        self._begun = time.monotonic_ns()
        request = f"GET {order['path']} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"
        calling: dict[int, bytes] = {}
        for number in range(order["clients"]):
            client = socket.socket()
            client.setblocking(False)
            # A reset at the end leaves no port behind for a minute.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.connect_ex((ADDRESSES[number % len(ADDRESSES)], order["port"]))
            cursor = ""
            if order.get("after"):
                cursor = f"Last-Event-ID: {order['epoch']}.{self._chance.randint(*order['after'])}\r\n"
            calling[client.fileno()] = f"{request}{cursor}\r\n".encode()
            self._clients[client.fileno()] = client
            self._epoll.register(client, select.EPOLLOUT)
        self._deaf = set(calling)
        self._until(set(calling), calling)
        return {}

    def hear(self, _: dict[str, Any]) -> dict[str, Any]:
        self._until(self._deaf, {})
        return {"seconds": (time.monotonic_ns() - self._begun) / 1e9}

    def _until(self, waiting: set[int], calling: dict[int, bytes]) -> None:
        """Reads until nobody is left in `waiting`, whom any bytes release, or, being the deaf, a new event."""
        until = time.monotonic() + PATIENCE_S
        while waiting:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(waiting)} of {len(self._clients)} clients wait")
            for descriptor, _ in self._epoll.poll(1.0, 4096):
                client = self._clients[descriptor]
                if request := calling.pop(descriptor, None):
                    client.send(request)
                    self._epoll.modify(client, select.EPOLLIN)
                    continue
                got = client.recv(1 << 18)
                if not got:
                    raise ConnectionError("a stream ended")
                if descriptor in self._deaf and any(int(made) > self._begun for made in _MADE.findall(got)):
                    self._deaf.discard(descriptor)
                if waiting is not self._deaf:
                    waiting.discard(descriptor)

    def listen(self, order: dict[str, Any]) -> dict[str, Any]:
        late: list[int] = []
        buffer, poll, now = self._buffer, self._epoll.poll, time.monotonic_ns
        until = time.monotonic() + order["seconds"]
        while (left := until - time.monotonic()) > 0:
            for descriptor, _ in poll(left, 64):
                size = self._clients[descriptor].recv_into(buffer)
                arrived = now()
                if not size:
                    raise ConnectionError("a stream ended")
                late += [arrived - int(made) for made in _MADE.findall(buffer, 0, size)]
        if not late:
            raise AssertionError("nothing was delivered")
        late.sort()
        at = [late[min(len(late) - 1, int(len(late) * share))] / 1e9 for share in (0.5, 0.99, 0.999)]
        return {"late": at, "count": len(late)}

    def leave(self, _: dict[str, Any]) -> dict[str, Any]:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._epoll.close()
        self._epoll = select.epoll()
        return {}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    crowd = Crowd()
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(crowd, order["do"])(order)), flush=True)


if __name__ == "__main__":
    main()
