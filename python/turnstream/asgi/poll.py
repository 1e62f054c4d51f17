"""Long polling: what comes after a cursor, as one JSON answer, for a client that can hold no stream open.

Owns the wait and the answer's shape. Knows no event: events go out as their own JSON.

Invariants: 1. an answer's cursor stands right behind its last event, so that the next poll skips nothing and repeats
nothing; 2. an empty answer gives the cursor back; 3. a client that leaves, and a server that stops, end the wait; 4. a
client that does not take its answer in time is cut; 5. a poll counts among the readers while it waits, and its client
has left when no other follows within LINGER_S.
"""

import asyncio
from itertools import accumulate
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from turnstream._native import Event, Gap, Reader, Session, Snapshot
from turnstream.asgi.http import Answer, ASGIApp, HTTPError, Receive, Request, Scope, Send
from turnstream.asgi.route import Route
from turnstream.asgi.stream import StreamQuery, expired
from turnstream.errors import CursorExpired

if TYPE_CHECKING:
    from turnstream.asgi.app import App

WAIT_S = 20.0
"""How long a poll waits for the first event, unless told."""

MAX_WAIT_S = 55.0
"""The longest wait: proxies give an answer up after 60 s (nginx's default)."""

LINGER_S = 5.0
"""How long after a poll its client is not yet taken to have left."""

MAX_EVENTS = 1000
"""The most events of one answer."""

MAX_BYTES = 4 << 20
"""About the longest answer: it is held whole, for each client that takes its time."""


class Poll:
    """One poll as an ASGI response."""

    def __init__(self, app: "App", session: Session, reader: Reader, limit: int, wait_s: float) -> None:
        self._streams = app.streams
        self._session = session
        self._reader = reader
        self._limit = limit
        self._wait_s = wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = self._reader
        left = asyncio.create_task(_close_on_disconnect(receive, reader))
        try:
            with self._streams.opened(reader, self._session, scope=scope, linger_s=LINGER_S) as stream:
                answer = await self._answer()
                if not left.done():
                    stream.sending = asyncio.get_running_loop().time()
                    await Answer.of_json(200, answer)(scope, receive, send)
        finally:
            reader.close()
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)

    async def _answer(self) -> str:
        reader, batches = self._reader, self._reader.batches(max(2, self._limit))
        events: list[Event] = []
        ended = more = False
        cursor = reader.cursor
        try:
            async with asyncio.timeout(self._wait_s):
                events = await batches
            cursor = reader.cursor
            more = True
            async with asyncio.timeout(0):
                await batches
        except TimeoutError:
            more = cursor != self._session.cursor  # what has left the memory is on its way from the store
        except StopAsyncIteration:
            more, ended = False, not self._streams.closing
        texts = [event.json() for event in events]
        if (taken := _fitting(events, texts, self._limit)) < len(texts):
            cursor, more, ended = f"{self._session.epoch}.{_seq(events[taken - 1])}", True, False
        flags = f'"status":"{reader.status}","more":{_json(more)},"ended":{_json(ended)}'
        return f'{{"events":[{",".join(texts[:taken])}],"cursor":"{cursor}",{flags}}}'


def _fitting(events: list[Event], texts: list[str], limit: int) -> int:
    """How many of these an answer holds: one, however long it is, and a snapshot with the gap that it stands for."""
    taken = min(limit, max(1, sum(size <= MAX_BYTES for size in accumulate(map(len, texts)))))
    match events[taken - 1 : taken + 1]:
        case [Gap(), Snapshot()]:
            return taken + 1
    return taken


def _seq(event: Event) -> int | None:
    """How far who has this event has come."""
    match event:
        case Snapshot(head=head):
            return head
        case Gap(last=last):
            return last
    return event.seq


def _json(flag: bool) -> str:
    return "true" if flag else "false"


async def _close_on_disconnect(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()


def _wait_s(scope: Scope) -> float:
    text = parse_qs(scope["query_string"].decode("latin-1")).get("wait_s", [str(WAIT_S)])[-1]
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise HTTPError(400, "bad_query", "wait_s is a number of seconds from 0", parameter="wait_s")
    return min(seconds, MAX_WAIT_S)


async def poll(app: "App", request: Request) -> ASGIApp:
    """200 `{"events", "cursor", "status", "more", "ended"}`, at once where something is there, else within `wait_s`."""
    session = await app.find(request)
    query = StreamQuery.of(request.scope)
    wait_s = 0.0 if request.scope["method"] == "HEAD" else _wait_s(request.scope)
    app.streams.require_room(session.id)
    try:
        reader = session.read(query.after, query.follow, deltas=query.deltas, on_trim=query.on_trim)
    except CursorExpired as error:
        raise expired(error, session) from error
    return Poll(app, session, reader, min(query.limit or MAX_EVENTS, MAX_EVENTS), wait_s)


ROUTES = (Route("GET", "/sessions/{session_id}/poll", poll, "What comes after a cursor, waiting for it a while"),)
