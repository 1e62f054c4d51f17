"""Cuts connections whose client has stopped reading.

ASGI has no word for this: a server that is told to end a response waits until the client has taken what is buffered,
for ever if need be. So the process's own sockets are searched for the one between the two addresses of the request's
scope.
"""

import os
import socket
import stat
import struct
from collections.abc import Collection, Set
from typing import Any, TypeAlias

Ends: TypeAlias = tuple[tuple[str, int], tuple[str, int]]
"""The client's address and ours."""

_RESET = struct.pack("ii", 1, 0)


def ends_of(scope: Any) -> Ends | None:
    """The ends of a request's connection; None where its server does not say both, as behind a Unix socket."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or not client[1] or not server[1]:
        return None
    return (str(client[0]), int(client[1])), (str(server[0]), int(server[1]))


def cut(connections: Collection[Ends]) -> Set[Ends]:
    """Resets these connections of the process, so that the kernel frees what they have buffered. Those that it found.

    About 10 µs per open descriptor, however many are cut.
    """
    found: set[Ends] = set()
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return found
    for name in names:
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            own = os.dup(int(name))  # of our own: the server may close its one meanwhile, and the number be another's
        except OSError:
            continue
        with socket.socket(fileno=own) as connection:
            try:
                client, server = connection.getpeername()[:2], connection.getsockname()[:2]
            except OSError:
                continue
            if (client, server) in connections:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RDWR)
                found.add((client, server))
    return found


def reset(scope: Any) -> None:
    """Resets a request's connection, where its server says which one it is."""
    if (ends := ends_of(scope)) is not None:
        cut({ends})
