"""The native stream read by `httpx-sse`, a client that somebody else has written."""

import random
from collections.abc import Callable

import httpx
import pytest
from httpx_sse import SSEError, aconnect_sse, connect_sse
from support import WORDS, finished

import turnstream as ts
from turnstream.asgi import app

Serve = Callable[..., str]


@pytest.mark.parametrize("seed", range(5))
async def test_each_event_once_however_often_it_leaves(serve: Serve, seed: int) -> None:
    hub, chance = ts.Hub(), random.Random(seed)
    session = finished(hub)
    url = f"{serve(app(hub))}/sessions/s/events"
    seen: list[int] = []
    text, ended = "", False
    last: str | None = None
    async with httpx.AsyncClient() as http:
        while not ended:
            headers = {"last-event-id": last} if last else {}
            stay = chance.randrange(1, 20)
            async with aconnect_sse(http, "GET", url, headers=headers, params={"deltas": "exact"}) as source:
                if source.response.status_code == 204:
                    ended = True
                    continue
                source.response.raise_for_status()
                async for event in source.aiter_sse():
                    data = event.json()
                    assert event.event == data["type"]
                    if "seq" not in data:
                        continue
                    assert event.id == f"{session.epoch}.{data['seq']}"
                    seen.append(data["seq"])
                    text += data["text"] if event.event == "text_delta" else ""
                    last, stay = event.id, stay - 1
                    if not stay:
                        break
    assert seen == list(range(1, session.head + 1))
    assert text == "".join(WORDS)


def test_blocking_and_refused(serve: Serve) -> None:
    hub = ts.Hub()
    finished(hub)
    base = serve(app(hub))
    with httpx.Client(base_url=base) as http:
        with connect_sse(http, "GET", "/sessions/s/events") as source:
            events = list(source.iter_sse())
        assert events[0].event == "stream_open"
        assert events[-1].event == "completion"
        with connect_sse(http, "GET", "/sessions/none/events") as source, pytest.raises(SSEError):
            list(source.iter_sse())
