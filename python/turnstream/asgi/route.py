"""What a route is: one method of one path, and the function that answers it."""

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from turnstream.asgi.http import Answer, ASGIApp, HTTPError, Request

if TYPE_CHECKING:
    from turnstream.asgi.app import App

SESSION_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
SESSION_ID_RULE = "an id is 1 to 128 of A-Z a-z 0-9 _ - and, not first, ."

Handler: TypeAlias = "Callable[[App, Request], Awaitable[ASGIApp]]"
"""Reads the request and gives what sends the answer. `WS` is a WebSocket's handshake."""


class Route(NamedTuple):
    """One method of one path template."""

    method: Literal["GET", "POST", "DELETE", "WS"]
    path: str
    handler: Handler
    summary: str
    refuse: Callable[[HTTPError], Answer] = Answer.error
    """How an error is said here."""
    name_params: Callable[[dict[str, str]], None] = lambda _: None
    """Adds to `path_params` what the auth hook is to know besides."""

    @property
    def name(self) -> str:
        """The handler's name."""
        return self.handler.__name__
