"""`normalize`, `fold` and `Message`, over the native normalizer and real sources."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from scripted import ANTHROPIC, CUT, HANG, OPENAI_BODY, OPENAI_CHAT, ScriptedServer

import turnstream as ts

BODY = b"".join(OPENAI_CHAT)
WAIT_S = 60.0
TRUNCATED = "stream_truncated"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def facts(event: ts.Event) -> dict[str, Any]:
    """An event without what differs from run to run."""
    return {name: value for name, value in event.to_dict().items() if name != "time"}


def kinds(events: list[ts.Event]) -> list[str]:
    return [event.type for event in events]


def text(events: list[ts.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ts.TextDelta))


def drain(source: Any, into: list[ts.Event], **options: Any) -> None:
    """Keeps what was given before an error. A URL is read by a blocking client."""
    if isinstance(source, str):
        with httpx.Client() as client, client.stream("GET", source) as response:
            into.extend(ts.normalize(response, **options))
    else:
        into.extend(ts.normalize(source, **options))


# --- normalize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["auto", "openai-chat"])
def test_plain_iteration(provider: str) -> None:
    source = ts.normalize(io.BytesIO(BODY), provider=provider)
    assert source.provider == provider
    events = list(source)
    assert source.provider == "openai-chat"
    assert text(events) == "Hello €"
    assert (kinds(events)[0], kinds(events)[-1]) == ("round_start", "round_end")
    assert "assistant_message" in kinds(events)


async def test_looped_iteration_gives_the_same_events(server: ScriptedServer) -> None:
    expected = [facts(event) for event in ts.normalize(BODY, "openai-chat")]
    url = server.script("/s", OPENAI_CHAT)
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        assert [facts(event) async for event in ts.normalize(response)] == expected
        assert response.is_closed
    batches = [batch async for batch in ts.normalize(iter(OPENAI_CHAT)).batches()]
    assert [facts(event) for batch in batches for event in batch] == expected
    assert all(batches)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_any_split_gives_the_same_events(size: int) -> None:
    pieces = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    assert [facts(event) for event in ts.normalize(pieces)] == [facts(event) for event in ts.normalize(BODY)]


def test_parsed_chunks_give_the_same_text_as_the_bytes() -> None:
    payloads = [json.loads(line[6:]) for line in BODY.decode().splitlines() if line.startswith("data: {")]
    models = [openai.types.chat.ChatCompletionChunk.model_validate(payload) for payload in payloads]
    for source in (payloads, models):
        events = list(ts.normalize(source, "openai-chat"))
        assert text(events) == "Hello €"
        assert TRUNCATED not in [event.code for event in events if isinstance(event, ts.Error)]


def test_a_whole_body_is_a_stream_too() -> None:
    for source in (OPENAI_BODY, OPENAI_BODY.decode(), json.loads(OPENAI_BODY)):
        assert text(list(ts.normalize(source, "openai-chat"))) == "Hello"


async def test_the_sdks_stream_objects(server: ScriptedServer) -> None:
    server.script("/v1/chat/completions", OPENAI_CHAT)
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert text([event async for event in ts.normalize(stream)]) == "Hello €"


async def test_what_came_is_given_before_the_sources_error(server: ScriptedServer) -> None:
    """Invariant 1: the events that close what was open, too."""
    url = server.script("/c", [OPENAI_CHAT[0], CUT])
    looped: list[ts.Event] = []
    plain: list[ts.Event] = []

    async def loop() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            async for event in ts.normalize(response):
                looped.append(event)

    with pytest.raises(ts.SourceError):
        await loop()
    with pytest.raises(ts.SourceError):
        await asyncio.to_thread(drain, url, plain)
    for events in (looped, plain):
        assert text(events) == "Hel"
        assert {"assistant_message", "round_end"} <= set(kinds(events))
        assert TRUNCATED in [event.code for event in events if isinstance(event, ts.Error)]


async def test_leaving_early_closes_the_source(server: ScriptedServer) -> None:
    """Invariant 2."""
    url = server.script("/h", [OPENAI_CHAT[0], HANG])
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        async with ts.normalize(response) as events:
            async for _ in events:
                break
        assert response.is_closed
    assert await asyncio.to_thread(server.left.wait, WAIT_S)

    closed = []

    def source() -> Iterator[bytes]:
        try:
            yield from OPENAI_CHAT
        finally:
            closed.append(True)

    with ts.normalize(source()) as plain:
        next(plain)
    assert closed


async def test_a_cancel_reaches_the_source() -> None:
    closed = asyncio.Event()
    parked = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield OPENAI_CHAT[0]
            parked.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def read() -> None:
        async for _ in ts.normalize(source()):
            pass

    task = asyncio.ensure_future(read())
    await asyncio.wait_for(parked.wait(), WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_what_follows_a_cancelled_wait_is_no_end() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield OPENAI_CHAT[0]
        await asyncio.Event().wait()

    stream = ts.normalize(source())

    async def read() -> None:
        async for _ in stream:
            pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 0.05)
    with pytest.raises(ts.SourceError, match="cancelled"):
        await anext(stream)


async def test_a_stream_that_is_left_and_forgotten_is_closed_without_a_word() -> None:
    closed = asyncio.Event()
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    async def source() -> AsyncIterator[bytes]:
        try:
            for chunk in OPENAI_CHAT:
                yield chunk
        finally:
            await asyncio.sleep(0)
            closed.set()

    gc.disable()
    try:
        async for _ in ts.normalize(source()):
            break
        await asyncio.wait_for(closed.wait(), WAIT_S)
    finally:
        gc.enable()
    gc.collect()
    await asyncio.sleep(0)
    assert heard == []


@pytest.mark.parametrize("data", [5, None, {}, [100, 97]])
def test_what_cannot_be_fed(data: Any) -> None:
    for takes in (ts.Normalizer().feed, ts.SSEDecoder().feed):
        with pytest.raises(TypeError, match=f"expected bytes.*{type(data).__name__}"):
            takes(data)


def test_bytes_after_the_end_are_an_error() -> None:
    normalizer = ts.Normalizer()
    normalizer.feed(memoryview(BODY))
    normalizer.finish()
    with pytest.raises(ts.ProtocolError, match="after the end"):
        normalizer.feed(BODY)
    assert normalizer.finish() == []


@pytest.mark.parametrize("data", [5, None, {}, [b"x"]])
def test_what_is_no_whole_stream(data: Any) -> None:
    with pytest.raises(ts.UnsupportedSource, match=type(data).__name__):
        ts.fold(data)


def test_an_unknown_provider_is_said_at_once() -> None:
    with pytest.raises(ts.UnknownProvider, match="no-such"):
        ts.normalize(b"", provider="no-such")


def test_a_broken_frame_is_a_warning_or_an_error() -> None:
    broken = OPENAI_CHAT[0] + b"data: {no json\n\n" + b"".join(OPENAI_CHAT[1:])
    events = list(ts.normalize(broken, "openai-chat"))
    assert text(events) == "Hello €"
    assert [event.type for event in events if isinstance(event, ts.Warning)] == ["warning"]
    seen: list[ts.Event] = []
    with pytest.raises(ts.ProtocolError, match=r"openai-chat.*byte \d+"):
        drain(broken, seen, provider="openai-chat", strict=True)
    assert text(seen) == "Hel"


# --- fold and Message ------------------------------------------------------------------------------------------------


def test_fold() -> None:
    message = ts.fold(BODY)
    assert (message.provider, message.text, message.finish_reason, message.finish_reason_raw) == (
        "openai-chat",
        "Hello €",
        "stop",
        "stop",
    )
    assert (message.model, message.tool_calls, message.error, message.choices) == ("m", [], None, [])
    assert ts.fold(BODY.decode()) == ts.fold(bytearray(BODY)) == ts.fold(BODY, "openai-chat") == message
    anthropic = ts.fold(b"".join(ANTHROPIC))
    assert (anthropic.provider, anthropic.text, anthropic.finish_reason_raw) == ("anthropic", "Hello", "end_turn")
    assert anthropic.usage is not None
    assert anthropic.usage["output_tokens"] == 2


def test_calls_in_the_text_are_calls_where_that_is_asked_for() -> None:
    said = ["Wait. <tool_", 'call>{"name":"add","arguments":{"a":1}}</tool_call>', "<|im_", "end|>"]
    chunks = [{"id": "m", "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in said]
    chunks.append({"id": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events = list(ts.normalize(chunks, provider="openai-chat", text_tools=True))
    assert text(events) == "Wait. "
    assert [(event.name, event.arguments) for event in events if isinstance(event, ts.ToolCall)] == [("add", {"a": 1})]
    assert text(list(ts.normalize(chunks, provider="openai-chat"))) == "".join(said)
    body = "".join(f"{json.dumps(chunk)}\n" for chunk in chunks)
    message = ts.fold(body, text_tools=True)
    assert (message.text, message.finish_reason) == ("Wait. ", "tool_calls")
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("add", {"a": 1})]
    assert ts.fold(body).text == "".join(said)


def test_a_message_gives_its_json_back() -> None:
    """Invariant 1 of `message`."""
    several = BODY.replace(b'"index":0,"delta":{"content"', b'"index":1,"delta":{"content"')
    for data in (BODY, b"".join(ANTHROPIC), OPENAI_BODY, several):
        fold = ts._native.fold_json(data, "auto")
        assert ts.fold(data).to_dict() == json.loads(fold)
    assert [choice.text for choice in ts.fold(several).choices] == ["Hel", "lo €"]
    assert [choice.extra["index"] for choice in ts.fold(several).choices] == [0, 1]
    unknown = {**json.loads(ts._native.fold_json(BODY, "auto")), "new_in_version_2": 1}
    assert ts.Message.from_dict(unknown).extra == {"new_in_version_2": 1}
    assert ts.Message.from_dict(unknown).to_dict() == unknown


def test_the_calls_of_a_message() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "c", "object": "chat.completion.chunk", "model": "m", "created": 1,
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}  # fmt: skip

    def call(index: int, **function: str) -> dict[str, Any]:
        return chunk({"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]})

    chunks = [call(0, name="add", arguments='{"a":'), call(0, arguments="1}"), call(1, name="bad", arguments="{")]
    data = "\n".join(json.dumps(line) for line in [*chunks, chunk({}, "tool_calls")])
    good, bad = ts.fold(data, "openai-chat").tool_calls
    assert (good.id, good.name, good.arguments, good.arguments_raw, good.arguments_error, good.kind) == (
        "c0",
        "add",
        {"a": 1},
        '{"a":1}',
        None,
        "client",
    )
    assert (bad.arguments, bad.arguments_raw) == (None, "{")
    assert bad.arguments_error
    with pytest.raises(AttributeError):
        good.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("data", [b"", b"<html>nothing</html>", b"\xff\xfe\x00", b"hello\n"])
def test_bytes_that_are_no_stream(data: bytes) -> None:
    with pytest.raises((ts.ProtocolError, ts.UnknownProvider)):
        ts.fold(data)
