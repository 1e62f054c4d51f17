"""The AI SDK's WebSocket transport: the released client (7) on a real socket, and what no client of its sends."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from clients import node
from support import Gate, is_reset, until
from websockets import ConnectionClosed, InvalidStatus
from websockets.asyncio.client import ClientConnection, connect

import turnstream as ts
from turnstream.asgi import HTTPError, Policy, Scope, app
from turnstream.asgi.ai_sdk_socket import MAX_REQUESTS

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


def texts(message: dict[str, Any]) -> list[str]:
    return [part["text"] for part in message["parts"] if part["type"] == "text"]


async def test_the_released_client_asks_leaves_and_resumes(serve: Serve) -> None:
    """Two chats at once over one socket; one that is aborted runs on, and is resumed whole."""
    resumed_c = Gate()
    inputs: list[Any] = []

    async def agent(turn: ts.Turn) -> str | None:
        inputs.append(turn.input)
        asked = turn.input["messages"][-1]["parts"][0]["text"]
        if asked == "fail":
            raise RuntimeError("too much")
        turn.emit("text_delta", {"message_id": "m", "text": f"You said {asked}"})
        if asked == "wait":
            await resumed_c.passed()
            turn.emit("text_delta", {"message_id": "m", "text": ", and left"})
        return None

    def auth(scope: Scope) -> str:
        """The second frame about the chat resumes it."""
        if scope["path_params"].get("session_id") == "c" and len(inputs) == 3 and not resumed_c.is_open:
            resumed_c.open()
        return "me"

    base = serve(app(ts.Hub(), agent, auth=auth))
    ask = [
        [{"chat": "a", "text": "one"}, {"chat": "b", "text": "two"}],
        {"chat": "c", "text": "wait", "cut": 4},
        {"chat": "c", "resume": True},
        {"chat": "c", "resume": True},
        {"chat": "unknown", "resume": True},
        {"chat": "d", "text": "fail"},
        {"chat": "no id", "text": "refused"},
        {"chat": "a", "text": "three"},
    ]
    one, two, cut, resumed, ended, unknown, failed, refused, three = await asyncio.to_thread(
        node, "ai_sdk_socket.mjs", json.dumps({"base": base, "ask": ask})
    )
    for seen, word, message_id in ((one, "one", "a.1"), (two, "two", "b.1"), (three, "three", "a.2")):
        assert (texts(seen["message"]), seen["message"]["id"]) == ([f"You said {word}"], message_id)
    assert cut["parts"] == 4
    assert (texts(resumed["message"]), resumed["message"]["id"]) == (["You said wait, and left"], "c.1")
    assert [seen["active"] for seen in (resumed, ended, unknown)] == [True, False, False]
    assert "too much" in failed["error"]
    assert "an id is 1 to 128" in refused["error"]
    assert inputs[0] == {
        "own": 1,
        "id": inputs[0]["id"],
        "trigger": "submit-message",
        "messages": inputs[0]["messages"],
    }


@asynccontextmanager
async def socket(base: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws{base[4:]}/ai-sdk/ws", proxy=None, close_timeout=1, **options) as client:
        yield client


def asks(request_id: str, chat: str, text: str = "hi") -> str:
    messages = [{"id": f"q-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}]
    body = {"requestId": request_id, "id": chat, "trigger": "submit-message", "messages": messages}
    return json.dumps({"type": "send", "headers": {}, "body": {}, **body})


async def heard(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        frame: dict[str, Any] = json.loads(await client.recv())
        return frame


async def until_last(client: ClientConnection) -> list[dict[str, Any]]:
    seen = [await heard(client)]
    while seen[-1]["type"] in ("start", "chunk"):
        seen.append(await heard(client))
    return seen


async def endless(turn: ts.Turn) -> None:
    turn.emit("text_delta", {"message_id": "m", "text": "on"})
    await asyncio.Event().wait()


async def test_chunks_are_numbered_and_a_repetition_is_answered_with_the_same(serve: Serve) -> None:
    runs: list[int] = []

    async def agent(turn: ts.Turn) -> str:
        runs.append(turn.number)
        return "fine"

    async with socket(serve(app(ts.Hub(), agent))) as client:
        answers = []
        for request_id in ("r1", 'r"2'):
            await client.send(asks(request_id, "c"))
            answers.append(await until_last(client))
            assert {frame["requestId"] for frame in answers[-1]} == {request_id}
            assert [frame.get("sequence") for frame in answers[-1]] == [*range(len(answers[-1]) - 1), None]
            assert answers[-1][-1]["type"] == "end"
    assert [frame.get("chunk") for frame in answers[0]] == [frame.get("chunk") for frame in answers[1]]
    assert runs == [1]


@pytest.mark.parametrize(
    ("sent", "request_id", "why"),
    [
        ("no json", "", "not JSON"),
        ("[]", "", "a JSON object"),
        ('{"type":"send"}', "", "requestId"),
        ('{"type":"send","requestId":7}', "", "requestId"),
        ('{"type":"x","requestId":"r"}', "r", "type is"),
        ('{"type":"send","requestId":"r","id":"../x","messages":[]}', "r", "1 to 128"),
        ('{"type":"send","requestId":"r","id":"c","messages":[]}', "r", "messages"),
        ('{"type":"send","requestId":"r","id":"c","body":[],"messages":[{"id":1}]}', "r", "a message has"),
        ('{"type":"resume","requestId":"r","id":{}}', "r", "1 to 128"),
        ('{"type":"resume","requestId":"r","id":"c","lastSequence":3}', "r", "lastSequence"),
        ("[" * 100_000, "", "not JSON"),
    ],
)
async def test_what_is_wrong_is_said_and_the_socket_lives(serve: Serve, sent: str, request_id: str, why: str) -> None:
    hub = ts.Hub()
    async with socket(serve(app(hub, lambda turn: "fine"))) as client:
        await client.send(sent)
        error = await heard(client)
        assert (error["type"], error["requestId"]) == ("error", request_id)
        assert why in error["errorText"]
        await client.send('{"type":"abort","requestId":"nobody"}')
        await client.send(asks("after", "d"))
        assert (await until_last(client))[-1] == {"type": "end", "requestId": "after"}
    assert [session.id for session in hub.sessions()] == ["d"]


async def test_a_request_has_a_name_of_its_own_and_there_are_so_many(serve: Serve) -> None:
    hub = ts.Hub()
    service = app(hub, endless)
    async with socket(serve(service)) as client:
        for number in range(MAX_REQUESTS):
            await client.send(asks(f"r{number}", f"c{number}"))
        await until(lambda: service.statistics()["streams"] == MAX_REQUESTS)
        for request_id, why in (("r0", "in use"), ("more", "at most")):
            await client.send(asks(request_id, "other"))
            while (frame := await heard(client))["type"] != "error":
                pass
            assert (frame["requestId"], why in frame["errorText"]) == (request_id, True)
        await client.send('{"type":"abort","requestId":"r0"}')
        await until(lambda: service.statistics()["streams"] == MAX_REQUESTS - 1)
        assert hub.session("c0").running == 1, "who leaves stops nothing"
    await until(lambda: service.statistics()["streams"] == 0)
    assert len(hub.sessions()) == MAX_REQUESTS


async def test_who_may_not_is_refused_and_binary_and_long_frames_end_it(serve: Serve) -> None:
    def auth(scope: Scope) -> str:
        if scope["path_params"].get("session_id") == "secret":
            raise HTTPError(403, "not_yours", "not yours")
        return "me"

    base = serve(app(ts.Hub(), lambda turn: "fine", auth=auth, max_body_bytes=1000))
    async with socket(base) as client:
        await client.send(asks("r", "secret"))
        assert await heard(client) == {"type": "error", "requestId": "r", "errorText": "not yours"}
    with pytest.raises(InvalidStatus):
        async with socket(base, origin="http://evil.example"):
            pass
    for frame, code in ((b"{}", 1003), ("x" * 1001, 1009)):
        async with socket(base) as client:
            await client.send(frame)
            with pytest.raises(ConnectionClosed):
                await heard(client)
            assert client.close_code == code


async def test_a_server_that_stops_says_the_end_and_a_frozen_client_is_cut(serve: Serve) -> None:
    service = app(ts.Hub(), endless)
    async with socket(serve(service)) as client:
        await client.send(asks("r", "c"))
        while (await heard(client)).get("chunk", {}).get("type") != "text-delta":
            pass
        await service.shutdown()
        last = [frame.get("chunk", frame)["type"] for frame in await until_last(client)]
        assert last[-3:] == ["abort", "finish", "end"]

    def large(turn: ts.Turn) -> None:
        for _ in range(200):
            turn.emit("custom", {"name": "large", "data": "x" * 65536})

    service = app(hub := ts.Hub(), large, policy=Policy(write_timeout_s=0.3))
    async with socket(serve(service, ws_ping_interval=None), max_queue=1, compression=None) as client:
        await client.send(asks("r", "c"))
        await until(lambda: bool(hub.sessions()) and hub.sessions()[0].statistics()["readers"] == 1)
        await until(lambda: service.statistics() == {"streams": 0, "cut": 1, "refused": 0})
        await until(lambda: is_reset(client.transport.get_extra_info("socket")))
