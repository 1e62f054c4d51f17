"""Long polling and the messages' cursor, over a real socket."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support import WORDS, Gate, finished, speak, until

import turnstream as ts
from turnstream.asgi import Scope, app

Serve = Callable[..., str]
Answer = dict[str, Any]


async def poll(http: httpx.AsyncClient, base: str, **params: Any) -> Answer:
    response = await http.get(f"{base}/sessions/s/poll", params=params)
    assert response.status_code == 200, response.text
    answer: Answer = response.json()
    return answer


def seqs(answer: Answer) -> list[int]:
    return [event["seq"] for event in answer["events"] if "seq" in event]


@pytest.mark.parametrize("deltas", ["exact", "merged"])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_edge_51_pages_skip_and_repeat_nothing(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, limit: int, deltas: str
) -> None:
    session = finished(hub)
    base = serve(app(hub))
    cursor, seen, text, ended = f"{session.epoch}.0", [0], "", False
    while not ended:
        page = await poll(http, base, after=cursor, limit=limit, deltas=deltas, wait_s=0)
        assert len(page["events"]) <= limit
        assert page["cursor"] == f"{session.epoch}.{([0, *seqs(page)])[-1]}"
        assert page["more"] == (seqs(page)[-1] < session.head)
        seen += seqs(page)
        text += "".join(event["text"] for event in page["events"] if event["type"] == "text_delta")
        cursor, ended = page["cursor"], page["ended"]
    assert text == "".join(WORDS)
    assert seen == sorted(set(seen))
    assert deltas == "merged" or seen == list(range(session.head + 1))
    again = await poll(http, base, after=cursor)
    assert again == {"events": [], "cursor": cursor, "status": "finished", "more": False, "ended": True}


async def test_an_answer_has_a_length(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event at least, however long; the next poll goes on behind what was told."""
    monkeypatch.setattr("turnstream.asgi.poll.MAX_BYTES", 20_000)
    session = hub.session("s")
    with session.turn("go") as turn:
        for number in range(20):
            turn.emit("custom", name="part", data=[number, "x" * (5_000 if number % 7 else 50_000)])
    base = serve(app(hub))
    cursor, seen, pages, ended = f"{session.epoch}.0", list[int](), 0, False
    while not ended:
        response = await http.get(f"{base}/sessions/s/poll", params={"after": cursor, "wait_s": 0})
        page = response.json()
        assert len(page["events"]) == 1 or len(response.content) < 21_000
        seen += seqs(page)
        cursor, ended, pages = page["cursor"], page["ended"], pages + 1
        assert page["more"] != ended
    assert seen == list(range(1, session.head + 1))
    assert pages > 6


async def test_a_poll_waits_for_the_first_event_and_no_longer(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    session = hub.session("s")
    base = serve(app(hub))
    idle = await poll(http, base, after=session.cursor, wait_s=0.01)
    assert idle == {"events": [], "cursor": session.cursor, "status": "caught_up", "more": False, "ended": False}
    waiting = asyncio.create_task(poll(http, base, after=session.cursor, follow="session"))
    await until(lambda: session.statistics()["readers"] == 1)
    turn = session.turn("go")
    answer = await waiting
    assert [event["type"] for event in answer["events"]] == ["turn_start"]
    turn.complete()
    answer = await poll(http, base, after=answer["cursor"], follow="session")
    assert ([event["type"] for event in answer["events"]], answer["ended"]) == (["completion"], False)
    session.close()
    answer = await poll(http, base, after=answer["cursor"], follow="session")
    assert ([event["type"] for event in answer["events"]], answer["ended"]) == (["session_end"], True)


async def test_what_is_gone_is_told_by_a_snapshot_or_410(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = ts.Hub(limits=ts.Limits(max_events=10))
    session = finished(hub)
    base = serve(app(hub))
    answer = await poll(http, base, after=f"{session.epoch}.1")
    assert answer["status"] == "trimmed"
    assert answer["events"][0]["type"] == "snapshot"
    assert answer["cursor"] == session.cursor
    response = await http.get(f"{base}/sessions/s/poll", params={"after": f"{session.epoch}.1", "on_trim": "fail"})
    assert (response.status_code, response.json()["error"]["code"]) == (410, "cursor_expired")
    ahead = await poll(http, base, after=f"{session.epoch}.999", wait_s=0)
    assert (ahead["status"], ahead["cursor"]) == ("ahead", session.cursor)


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_a_page_that_ends_in_a_gap_stands_behind_it(serve: Serve, http: httpx.AsyncClient, limit: int) -> None:
    hub = ts.Hub(limits=ts.Limits(max_events=12))
    session = hub.session("s")
    for _ in range(4):
        with session.turn() as turn:
            for _ in range(4):
                turn.emit("text_delta", text="x")
    base, cursor, seen = serve(app(hub)), f"{session.epoch}.1", list[Any]()
    for _ in range(50):
        page = await poll(http, base, after=cursor, limit=limit, wait_s=0, follow="none")
        seen += page["events"]
        cursor = page["cursor"]
        if page["ended"]:
            break
    assert cursor == session.cursor
    assert [event["type"] for event in seen].count("snapshot") == 1
    gaps = [(event["first"], event["last"]) for event in seen if event["type"] == "gap"]
    assert gaps
    assert len(gaps) == len(set(gaps))


@pytest.mark.parametrize("wait_s", ["x", "-1", "nan", "inf", ""])
async def test_a_wait_that_is_none_is_refused(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, wait_s: str) -> None:
    finished(hub)
    response = await http.get(f"{serve(app(hub))}/sessions/s/poll", params={"wait_s": wait_s or " "})
    assert (response.status_code, response.json()["error"]["parameter"]) == (400, "wait_s")


async def test_the_auth_hook_is_asked_by_every_poll(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    finished(hub)
    asked: list[dict[str, str]] = []

    def auth(scope: Scope) -> bool:
        asked.append(scope["path_params"])
        return len(asked) < 3

    base = serve(app(hub, auth=auth))
    await poll(http, base)
    await poll(http, base)
    assert (await http.get(f"{base}/sessions/s/poll")).status_code == 401
    assert asked == [{"session_id": "s"}] * 3


async def test_a_poller_that_leaves_frees_its_reader(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    waiting = asyncio.create_task(poll(http, serve(app(hub)), wait_s=50))
    await until(lambda: session.statistics()["readers"] == 1)
    waiting.cancel()
    await until(lambda: session.statistics()["readers"] == 0)


async def test_shutdown_answers_the_waiting(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = hub.session("s")
    application = app(hub)
    base = serve(application)
    loops: list[asyncio.AbstractEventLoop] = []

    async def auth(scope: Scope) -> bool:
        loops.append(asyncio.get_running_loop())
        return True

    application._auth = auth
    waiting = asyncio.create_task(poll(http, base, after=session.cursor, wait_s=50))
    await until(lambda: session.statistics()["readers"] == 1)
    asyncio.run_coroutine_threadsafe(application.shutdown(), loops[0])
    answer = await waiting
    assert (answer["events"], answer["cursor"], answer["ended"]) == ([], session.cursor, False)


async def test_edge_47_messages_come_with_the_cursor_they_end_at(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    gate = Gate()

    async def agent(turn: ts.Turn) -> None:
        speak(turn, WORDS[:20])
        await gate.passed()
        speak(turn, WORDS[20:])

    base = serve(app(hub, agent))
    made = (await http.post(f"{base}/sessions", json={"input": "go", "session_id": "s"})).json()
    await until(lambda: hub.find("s").head >= 21)
    head = hub.find("s").head
    loaded = (await http.get(f"{base}/sessions/s/messages")).json()
    assert hub.find("s").head == head  # no seq is consumed by looking
    assert [message["role"] for message in loaded["messages"]] == ["user", "assistant"]
    shown = loaded["messages"][1]["text"]
    assert shown == "".join(WORDS[:20])
    gate.open()
    cursor, ended = loaded["cursor"], False
    assert cursor.startswith(made["cursor"].split(".")[0])
    while not ended:
        page = await poll(http, base, after=cursor)
        shown += "".join(event["text"] for event in page["events"] if event["type"] == "text_delta")
        cursor, ended = page["cursor"], page["ended"]
    assert shown == "".join(WORDS)


def test_a_snapshot_is_one_moment(hub: ts.Hub) -> None:
    """Messages and cursor agree, however fast another thread writes."""
    import threading

    session = hub.session("s")
    turn = session.turn("go")
    writer = threading.Thread(target=speak, args=(turn, ["x"] * 20_000))
    writer.start()
    seen = 0
    while writer.is_alive() or not seen:
        snapshot = session.snapshot()
        said = "".join(message.get("text", "") for message in snapshot["messages"])
        first = 2 if said else 1  # turn_start, message_start
        assert int(snapshot["cursor"].split(".")[1]) in (len(said) + first, 1, 2)
        seen += 1
    writer.join()
    assert session.messages() == session.snapshot()["messages"]
