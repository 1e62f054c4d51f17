"""`Turn.relay`: a source into the log, and what its failures leave there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from scripted import ANTHROPIC, CUT, HANG, OPENAI_CHAT, ScriptedServer

import turnstream as ts

WAIT_S = 60.0


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def session() -> ts.Session:
    return ts.Hub().session("s")


async def log(session: ts.Session) -> list[dict[str, Any]]:
    return [event.to_dict() async for event in session.read(follow="none")]


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


async def test_a_response_into_the_log(server: ScriptedServer, session: ts.Session) -> None:
    url = server.script("/s", ANTHROPIC)
    with session.turn(input="hi") as turn:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            message = await turn.relay(response, provider="anthropic")
            assert response.is_closed
    assert isinstance(message, ts.Message)
    assert (message.text, message.finish_reason, message.provider) == ("Hello", "stop", "anthropic")
    events = await log(session)
    assert "".join(event["text"] for event in of(events, "text_delta")) == "Hello"
    assert [event["status"] for event in of(events, "completion")] == ["completed"]


async def test_calls_in_the_text_are_calls_of_the_turn(session: ts.Session) -> None:
    said = 'Wait. <tool_call>{"name":"add","arguments":{"a":1}}</tool_call></s>'
    body = {"id": "m", "choices": [{"index": 0, "message": {"content": said}, "finish_reason": "stop"}]}
    with session.turn() as turn:
        message = await turn.relay(body, provider="openai-chat", text_tools=True)
    assert (message.text, [call.name for call in message.tool_calls]) == ("Wait. ", ["add"])
    assert [event["arguments"] for event in of(await log(session), "tool_call")] == [{"a": 1}]


async def test_two_calls_in_one_turn(server: ScriptedServer, session: ts.Session) -> None:
    server.script("/v1/chat/completions", OPENAI_CHAT)
    with session.turn() as turn:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
            for _ in range(2):
                stream = await client.chat.completions.create(model="m", messages=[], stream=True)
                assert (await turn.relay(stream, provider="openai-chat")).text == "Hello €"
    events = await log(session)
    assert [event["round"] for event in of(events, "round_start")] == [1, 2]
    assert len({event["message_id"] for event in of(events, "assistant_message")}) in (1, 2)


async def test_a_provider_that_fails_is_one_error_that_a_later_call_makes_good(
    server: ScriptedServer, session: ts.Session
) -> None:
    """Invariant 2: the body of the answer stays out of the log."""
    refused = server.script("/e", [b"key sk-secret is wrong"], 503)
    good = server.script("/s", OPENAI_CHAT)
    async with httpx.AsyncClient() as client:
        with session.turn() as turn:
            with pytest.raises(ts.HTTPStatusError) as caught:
                await turn.relay(client.stream("GET", refused), provider="openai-chat")
            assert caught.value.retryable
            message = await turn.relay(client.stream("GET", good), provider="openai-chat")
    assert message.text == "Hello €"
    events = await log(session)
    (error,) = of(events, "error")
    assert (error["code"], error["retryable"], error["raw"]) == ("http_status", True, {"status": 503})
    assert "secret" not in str(events)
    assert [event["status"] for event in of(events, "completion")] == ["completed"]


async def test_a_provider_that_fails_fails_the_turn(server: ScriptedServer, session: ts.Session) -> None:
    refused = server.script("/e", [b"no"], 400)
    async with httpx.AsyncClient() as client:
        with session.turn() as turn, contextlib.suppress(ts.SourceError):
            await turn.relay(client.stream("GET", refused), provider="openai-chat")
    events = await log(session)
    (completion,) = of(events, "completion")
    assert (completion["status"], completion["error"]["code"]) == ("failed", "http_status")


async def test_a_connection_that_breaks_closes_what_was_open(server: ScriptedServer, session: ts.Session) -> None:
    """Invariant 1."""
    cut = server.script("/c", [OPENAI_CHAT[0], CUT])
    async with httpx.AsyncClient() as client:
        with pytest.raises(ts.SourceError), session.turn() as turn:
            await turn.relay(client.stream("GET", cut), provider="openai-chat")
    events = await log(session)
    assert [message["text"] for message in of(events, "assistant_message")] == ["Hel"]
    assert len(of(events, "round_end")) == 1
    assert of(events, "error")[0]["code"] == "source_failed"
    assert [event["status"] for event in of(events, "completion")] == ["failed"]


async def test_an_exception_of_the_users_own_source_passes_as_it_is(session: ts.Session) -> None:
    class Mine(Exception):
        pass

    async def source() -> AsyncIterator[bytes]:
        yield OPENAI_CHAT[0]
        raise Mine("why")

    with session.turn() as turn, pytest.raises(Mine):
        await turn.relay(source(), provider="openai-chat")
    (error,) = of(await log(session), "error")
    assert (error["code"], error["message"]) == ("source_failed", "Mine: why")


async def test_strict_raises_and_keeps_what_came_before(session: ts.Session) -> None:
    with session.turn() as turn, pytest.raises(ts.ProtocolError):
        await turn.relay([OPENAI_CHAT[0], b"data: {no json\n\n"], provider="openai-chat", strict=True)
    events = await log(session)
    assert [message["text"] for message in of(events, "assistant_message")] == ["Hel"]
    assert of(events, "error")[0]["code"] == "protocol_error"


async def test_bytes_of_no_provider_are_said_so(session: ts.Session) -> None:
    with session.turn() as turn, pytest.raises(ts.UnknownProvider):
        await turn.relay(b"<html>502</html>")
    (error,) = of(await log(session), "error")
    assert error["code"] == "unknown_provider"


async def test_a_call_that_is_cut_is_not_whole(session: ts.Session) -> None:
    """No arguments mean none only where the provider was done."""

    async def source() -> AsyncIterator[bytes]:
        yield (
            b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,'
            b'"id":"c0","type":"function","function":{"name":"delete","arguments":""}}]}}]}\n\n'
        )
        raise OSError("gone")

    with session.turn() as turn, pytest.raises(OSError, match="gone"):
        await turn.relay(source(), provider="openai-chat")
    (call,) = of(await log(session), "tool_call")
    assert call["arguments"] is None
    assert call["arguments_error"]


def test_an_unknown_provider_takes_nothing(session: ts.Session) -> None:
    with session.turn() as turn, pytest.raises(ts.UnknownProvider):
        asyncio.run(turn.relay(b"", provider="no-such"))


async def test_cancelling_the_session_closes_the_connection(server: ScriptedServer, session: ts.Session) -> None:
    """Invariant 3."""
    url = server.script("/h", [OPENAI_CHAT[0], HANG])

    async def agent() -> None:
        async with (
            session.turn() as turn,
            httpx.AsyncClient() as client,
            client.stream("GET", url) as response,
        ):
            await turn.relay(response, provider="openai-chat")

    task = asyncio.ensure_future(agent())
    async for event in session.read(follow="session"):
        if event.type == "text_delta":
            break
    assert await session.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, WAIT_S)
    assert await asyncio.to_thread(server.left.wait, WAIT_S)
    events = await log(session)
    assert [message["text"] for message in of(events, "assistant_message")] == ["Hel"]
    assert [event["status"] for event in of(events, "completion")] == ["cancelled"]


async def test_a_timeout_around_relay_closes_what_was_open(session: ts.Session) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield OPENAI_CHAT[0]
        await asyncio.Event().wait()

    with session.turn() as turn:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(turn.relay(source(), provider="openai-chat"), 0.05)
        events = await log(session)
        assert [message["text"] for message in of(events, "assistant_message")] == ["Hel"]
        assert len(of(events, "round_end")) == 1


async def test_a_reader_that_asks_for_it_holds_the_source(session: ts.Session) -> None:
    """Invariant 4: without anybody reading on, the source is not drained."""
    taken = 0
    line = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield line

    turn = session.turn()
    async with session.read(pace=True) as reader:
        task = asyncio.ensure_future(turn.relay(source(), provider="openai-chat"))
        await anext(aiter(reader))
        before = -1
        while before != taken:  # until the producer makes no more progress of its own
            before = taken
            await asyncio.sleep(0.05)
        assert taken < 50_000
        held = taken
        async for _ in reader.batches(64):
            if taken > held:
                break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    turn.complete()
