"""The Vercel AI SDK's own transport and reader, majors 5, 6 and 7, against a real server."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from clients import node, page
from support import Gate, until

import turnstream as ts

Serve = Callable[..., str]
MAJORS = ("5", "6", "7")


def message(text: str = "What is the weather?", **more: Any) -> dict[str, Any]:
    return {"id": "user-1", "role": "user", "parts": [{"type": "text", "text": text}], **more}


def client(major: str, **options: Any) -> Any:
    return node("ai_sdk.mjs", major, json.dumps(options))


async def agent(turn: ts.Turn) -> None:
    """One of everything."""
    emit = turn.emit
    emit("round_start", {"model": "m"})
    emit("reasoning_delta", {"message_id": "m1", "text": "Hmm."})
    emit("text_delta", {"message_id": "m1", "text": "Let me "})
    emit("text_delta", {"message_id": "m1", "text": "look."})
    emit("tool_call_start", {"call_id": "c1", "name": "weather", "message_id": "m1"})
    emit("tool_call_delta", {"call_id": "c1", "text": '{"city":'})
    emit("tool_call_delta", {"call_id": "c1", "text": '"Oslo"}'})
    emit("tool_call", {"call_id": "c1", "name": "weather", "arguments_raw": '{"city":"Oslo"}', "message_id": "m1"})
    emit("assistant_message", {"message_id": "m1", "finish_reason": "tool_calls"})
    emit("usage", {"input_tokens": 5, "output_tokens": 7, "cache_read_tokens": 2})
    emit("round_end", {})
    emit("tool_output_delta", {"call_id": "c1", "text": "asking"})
    emit("tool_result", {"call_id": "c1", "output": {"celsius": 4}})
    emit("progress", {"stage": "plan", "current": 1, "total": 2})
    emit("citation", {"url": "https://weather.example", "title": "Weather"})
    emit("file", {"media_type": "image/png", "data": "AAAA"})
    emit("custom", {"name": "chart", "data": {"points": [1, 2]}})
    emit("warning", {"code": "slow", "message": "slow"})
    emit("round_start", {"model": "m"})
    emit("text_delta", {"message_id": "m2", "text": "It is four"})
    emit("message_reset", {"message_id": "m2", "reason": "retry"})
    emit("text_delta", {"message_id": "m2", "text": "It is 4 °C."})
    emit("assistant_message", {"message_id": "m2", "finish_reason": "stop"})


def kinds(parts: list[dict[str, Any]]) -> list[str]:
    return [part["type"] for part in parts]


@pytest.mark.parametrize("major", MAJORS)
def test_every_part_is_read_by_every_major(serve: Serve, major: str) -> None:
    seen = client(major, base=serve(ts.asgi.app(ts.Hub(), agent)), chat="chat-1", text="hi")
    message = seen["message"]
    assert seen["error"] is None
    assert message["id"] == "chat-1.1"
    assert message["metadata"]["usage"] == {
        "inputTokens": 5,
        "outputTokens": 7,
        "totalTokens": 12,
        "cachedInputTokens": 2,
    }
    parts = message["parts"]
    assert kinds(parts) == [
        *("step-start", "reasoning", "text", "tool-weather", "data-progress", "source-url", "file", "data-chart"),
        *("step-start", "text", "data-reset", "text"),
    ]
    by_type = {part["type"]: part for part in parts}
    assert (by_type["reasoning"]["text"], by_type["reasoning"]["state"]) == ("Hmm.", "done")
    tool = by_type["tool-weather"]
    assert (tool["state"], tool["input"], tool["output"]) == ("output-available", {"city": "Oslo"}, {"celsius": 4})
    assert by_type["file"]["url"] == "data:image/png;base64,AAAA"
    assert by_type["data-chart"]["data"] == {"points": [1, 2]}
    texts = [part for part in parts if part["type"] == "text"]
    assert [part["text"] for part in texts] == ["Let me look.", "It is four", "It is 4 °C."]
    # What a reset withdrew can be told from what replaced it.
    reset = kinds(parts).index("data-reset")
    void = [
        part
        for part in parts[:reset]
        if part.get("providerMetadata", {}).get("turnstream", {}).get("message_id")
        == parts[reset]["data"]["message_id"]
    ]
    assert [part["text"] for part in void] == ["It is four"]
    assert [chunk["type"] for chunk in seen["chunks"]][-2:] == ["finish-step", "finish"]
    transient = [chunk["type"] for chunk in seen["chunks"] if chunk.get("transient")]
    assert transient == ["data-tool-output", "data-warning"]


@pytest.mark.parametrize("major", MAJORS)
def test_a_cut_chat_is_resumed_with_the_whole_message(serve: Serve, major: str) -> None:
    gate = Gate()

    async def agent(turn: ts.Turn) -> None:
        turn.emit("text_delta", {"message_id": "m", "text": "Hello"})
        await gate.passed()
        await until(lambda: turn.session.statistics()["readers"] > 0, 20)
        turn.emit("text_delta", {"message_id": "m", "text": ", world"})

    hub = ts.Hub()
    base = serve(ts.asgi.app(hub, agent))
    seen = client(major, base=base, chat="c", text="hi", cut=3)
    assert [chunk["type"] for chunk in seen["chunks"]][:3] == ["start", "start-step", "text-start"]
    session = hub.session("c")
    asyncio.run(until(lambda: session.statistics()["readers"] == 0))
    assert session.status()["state"] == "running", "a client that leaves stops nothing"
    gate.open()
    resumed = client(major, base=base, chat="c", resume=True)
    assert resumed["active"]
    assert resumed["chunks"][0]["type"] == "start"
    assert resumed["message"]["id"] == "c.1"
    assert [part["text"] for part in resumed["message"]["parts"] if part["type"] == "text"] == ["Hello, world"]
    assert not client(major, base=base, chat="c", resume=True)["active"], "204: nothing runs"
    assert not client(major, base=base, chat="unknown", resume=True)["active"]


@pytest.mark.parametrize("major", MAJORS)
def test_a_failure_is_an_error_and_a_cancellation_an_abort(serve: Serve, major: str) -> None:
    async def fails(turn: ts.Turn) -> None:
        turn.emit("text_delta", {"message_id": "m", "text": "Half"})
        if turn.input["trigger"] == "submit-message":
            await turn.session.cancel("enough")
        else:
            turn.emit("error", {"code": "overloaded", "message": "too much", "fatal": True})

    base = serve(ts.asgi.app(ts.Hub(), fails))
    seen = client(major, base=base, chat="stopped", text="hi")
    assert [chunk["type"] for chunk in seen["chunks"]][-3:] == ["finish-step", "abort", "finish"]
    seen = client(major, base=base, chat="failed", messages=[message()], trigger="regenerate-message", messageId="a")
    assert seen["error"] == "Error: too much"
    assert [part["text"] for part in seen["message"]["parts"] if part["type"] == "text"] == ["Half"]


async def test_the_body_is_the_agents_input_and_the_same_request_starts_nothing(serve: Serve) -> None:
    inputs: list[Any] = []

    async def agent(turn: ts.Turn) -> str:
        inputs.append(turn.input)
        return f"answer {len(inputs)}"

    base = serve(ts.asgi.app(ts.Hub(), agent))
    body = {"id": "c", "messages": [message()], "trigger": "submit-message", "mine": {"model": "x"}}
    async with httpx.AsyncClient(base_url=base) as http:
        first = await http.post("/ai-sdk", json=body)
        assert inputs == [body]
        assert first.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert first.headers["content-type"] == "text/event-stream"
        again = await http.post("/ai-sdk", json=body)
        assert (again.content, len(inputs)) == (first.content, 1)
        assert b"answer 1" in first.content
        assert first.content.endswith(b'"finish","finishReason":"stop"}\n\ndata: [DONE]\n\n')
        for messages, trigger, replaces in [
            ([message("Another?")], "submit-message", None),  # edited: the same id
            ([message()], "regenerate-message", "c.1"),
            ([message()], "regenerate-message", "c.3"),
            ([message()], "regenerate-message", None),
            ([message()], "regenerate-message", None),
        ]:
            more = {} if replaces is None else {"messageId": replaces}
            await http.post("/ai-sdk", json={"id": "c", "messages": messages, "trigger": trigger, **more})
        assert len(inputs) == 6
        # The old request again, after five others: its own answer, not the newest.
        assert (await http.post("/ai-sdk", json=body)).content == first.content
        # The results of tools that ran in the browser: the answer goes on under its own id.
        answer = {"id": "c.6", "role": "assistant", "parts": [{"type": "tool-x", "state": "output-available"}]}
        goes_on = await http.post("/ai-sdk", json={"id": "c", "messages": [message(), answer]})
        assert b'"start","messageId":"c.6"' in goes_on.content


async def test_what_is_wrong_is_said_before_the_stream(serve: Serve) -> None:
    seen: list[Any] = []

    def auth(scope: Any) -> str | None:
        seen.append(scope["path_params"].get("session_id"))
        return None if seen[-1] == "secret" else "somebody"

    async def agent(turn: ts.Turn) -> None: ...

    async with httpx.AsyncClient(base_url=serve(ts.asgi.app(ts.Hub(), agent, auth=auth))) as http:
        for body, status, code in [
            ({}, 422, "bad_session_id"),
            ({"id": "../x", "messages": [message()]}, 422, "bad_session_id"),
            ({"id": "x" * 129, "messages": [message()]}, 422, "bad_session_id"),
            ({"id": "c", "messages": []}, 422, "bad_body"),
            ({"id": "c", "messages": ["x"]}, 422, "bad_body"),
            ({"id": "c", "messages": [message()], "trigger": "x"}, 422, "bad_body"),
            ({"id": "secret", "messages": [message()]}, 401, "unauthorized"),
        ]:
            response = await http.post("/ai-sdk", json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert (await http.get("/ai-sdk/secret/stream")).status_code == 401
        assert (await http.get("/ai-sdk/%2e%2e/stream")).status_code in (204, 404)
    async with httpx.AsyncClient(base_url=serve(ts.asgi.app(ts.Hub()))) as http:
        response = await http.post("/ai-sdk", json={"id": "c", "messages": [message()]})
        assert (response.status_code, response.json()["error"]["code"]) == (501, "no_agent")


def test_the_page_is_right(serve: Serve) -> None:
    message = page("ai-sdk.md", serve(ts.asgi.app(ts.Hub(), lambda turn: "Monday: rest.")), package=("ai", "ai7"))
    assert (message["id"], message["parts"][-1]["text"]) == ("trip-to-oslo.1", "Monday: rest.")
