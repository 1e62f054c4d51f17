"""`turnstream watch`: one session's event stream, followed through lost connections.

Owns the connection and its cursor. Refuses to know what events mean (`view`) but for those that end the stream.
Invariants: 1. after a lost connection it goes on behind the last event it has taken, none twice and none left out;
2. it ends with the completion it follows, on 204, on a refusal, or when no connection came about for `give_up_s`;
3. however it is left, the terminal is as it was.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx

import turnstream as ts
from turnstream.cli.view import Line, View

SILENCE_S = 45.0
"""Three heartbeats and more: a connection that is silent for so long is dead."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
REFRESH_S = 0.1


class Refused(ts.TurnstreamError):
    """The server has answered, and trying again will not change what it said."""

    code = "refused"


def run(url: str, *, after: str | None, follow: str, headers: dict[str, str], give_up_s: float, plain: bool) -> int:
    """Follows until the end; the exit status: 0, or 130 when the user left."""
    try:
        asyncio.run(_watch(Follower(events_url(url, follow), after, follow, headers, give_up_s), plain))
    except KeyboardInterrupt:
        return 130
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"{url}: {str(error) or type(error).__name__}") from None
    return 0


def events_url(url: str, follow: str) -> str:
    """The event stream of a session's URL; one that names the stream already is kept, its query too."""
    try:
        scheme, host, path, query, _ = urlsplit(url)
    except ValueError:  # brackets that are no IPv6 address
        scheme = host = path = query = ""
    if scheme not in ("http", "https") or not host:
        raise Refused(f"{url!r}: expected http://host/prefix/sessions/ID")
    if not path.rstrip("/").endswith("/events"):
        path = path.rstrip("/") + "/events"
    given = [
        (name, value)
        for name, value in parse_qsl(query, keep_blank_values=True)
        if name not in ("follow", "format", "after")
    ]
    return urlunsplit((scheme, host, path, urlencode([*given, ("follow", follow)]), ""))


class Follower:
    """The events of one session, as dicts, through as many connections as it takes."""

    def __init__(self, url: str, after: str | None, follow: str, headers: dict[str, str], give_up_s: float) -> None:
        if follow not in ("turn", "session", "none"):
            raise Refused(f"--follow {follow!r}: expected turn, session or none")
        self.url = url
        self.cursor = after
        self.follow = follow
        self.give_up_s = give_up_s
        self.on_connection: Callable[[str], None] = lambda state: None
        self._headers = {"accept": "text/event-stream", **headers}
        self._first_pause = self._pause = FIRST_PAUSE_S

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        lost_at = time.monotonic()
        async with httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=SILENCE_S)) as client:
            while True:
                try:
                    async with aclosing(self._connection(client)) as events:
                        async for event in events:
                            lost_at = time.monotonic()
                            if event.get("seq"):  # not for a `stream_open`: a server that gives no more is spared
                                self._pause = self._first_pause
                            yield event
                            if self._ends(event):
                                return
                    if self.follow == "none":
                        return
                    why = "the server ended the stream"
                except _Over:
                    return
                except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
                    raise  # what was asked for cannot be sent, now or later
                except (httpx.TransportError, _Busy) as error:
                    why = str(error) or type(error).__name__
                if time.monotonic() - lost_at > self.give_up_s:
                    raise Refused(f"no connection to {self.url} for {self.give_up_s:g} s: {why}")
                self.on_connection(f"reconnecting ({why})")
                await asyncio.sleep(self._pause)
                self._pause = min(LONGEST_PAUSE_S, self._pause * 2)

    def _ends(self, event: dict[str, Any]) -> bool:
        return event.get("type") == "session_end" or (self.follow == "turn" and event.get("type") == "completion")

    async def _connection(self, client: httpx.AsyncClient) -> AsyncGenerator[dict[str, Any]]:
        headers = self._headers | ({"last-event-id": self.cursor} if self.cursor else {})
        async with client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 204:
                raise _Over
            if response.status_code in (408, 425, 429) or response.status_code >= 500:
                raise _Busy(f"http status {response.status_code}")
            if response.status_code != 200:
                raise Refused(await _refusal(response))
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise Refused(
                    f"{self.url} is no event stream: {response.headers.get('content-type', 'no content type')}"
                )
            self.on_connection("connected")
            decoder = ts.SSEDecoder()
            async for chunk in response.aiter_bytes():
                for frame in decoder.feed(chunk):
                    event = _event(frame.data, self.url)
                    if frame.id:
                        self.cursor = frame.id
                    if decoder.retry is not None:
                        self._first_pause = min(LONGEST_PAUSE_S, decoder.retry / 1000)
                    yield event


def _event(data: str, url: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise Refused(f"{url} is an event stream, but not of a session")
    return event


class _Over(Exception):
    """204: the turn has ended and the cursor stands behind its end."""


class _Busy(Exception):
    """The server cannot answer now."""


async def _refusal(response: httpx.Response) -> str:
    said = f"http status {response.status_code} from {response.url.copy_with(query=None)}"
    try:
        error = json.loads(await response.aread())["error"]
        return f"{said}: {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return said


async def _watch(follower: Follower, plain: bool) -> None:
    view = View()

    def connection(state: str) -> None:
        view.connection = state
        if plain and state != "connected":
            print(f"({state})", file=sys.stderr, flush=True)

    follower.on_connection = connection
    with _plain() if plain else _live(view) as show:
        ticker = asyncio.ensure_future(_tick(show))
        try:
            async with aclosing(follower.events()) as events:
                async for event in events:
                    show(list(view.feed(event)))
        finally:
            ticker.cancel()
            show(list(view.rest()))


async def _tick(show: Callable[[list[Line]], None]) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        show([])


@contextmanager
def _plain() -> Iterator[Callable[[list[Line]], None]]:
    def show(lines: list[Line]) -> None:
        if lines:
            print("\n".join(line.text for line in lines), flush=True)

    yield show


@contextmanager
def _live(view: View) -> Iterator[Callable[[list[Line]], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(view.render(), console=console, auto_refresh=False, transient=True) as live:
        refreshed = 0.0

        def show(lines: list[Line]) -> None:
            nonlocal refreshed
            for line in lines:
                console.print(Text(line.text, line.style))
            # At most one redraw per tick: a replay of thousands of events is printed, not animated.
            if time.monotonic() - refreshed >= REFRESH_S or not lines:
                live.update(view.render(), refresh=True)
                refreshed = time.monotonic()

        yield show
