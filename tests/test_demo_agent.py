"""The demo's agents: recordings are valid whatever is filled in, tools run, replays and live servers answer."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import turnstream as ts
from turnstream import demo
from turnstream.demo import tools
from turnstream.demo.recording import paced, pieces, recorded

pytestmark = pytest.mark.timeout(120)

RECORDINGS = {"plan": "anthropic", "code": "openai-chat", "code-done": "openai-chat", "review": "anthropic"}
PROMPTS = [
    "How long does 静かな朝 ☕️ take?",
    'quotes " and \\ and \\u0000, {"json": [1]}, </script>, {{prompt}} and {{id}}',
    "lines\n\nand\ttabs\r\n> here",
    "",
    "a lone surrogate: \ud83d!",
    "data: [DONE]\n\nevent: error",
    "long " * 200,
]


def spoken(prompt: str) -> str:
    """How a prompt appears in an answer: its white space made single."""
    return " ".join(prompt.split()).encode("utf-8", "replace").decode() or "(nothing)"


async def play(
    agent: Callable[[ts.Turn], Awaitable[None]], prompt: Any, session: ts.Session | None = None
) -> list[ts.Event]:
    """The events of one turn."""
    session = session or ts.Hub().session()
    async with session.turn(input=prompt) as turn:
        await agent(turn)
    return [event async for event in session.read(follow="none") if event.turn == turn.number]


# --- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_a_filled_recording_is_valid_and_whole(name: str, prompt: str) -> None:
    data = recorded(name, prompt, "run1")
    message = ts.fold(data, provider=RECORDINGS[name])
    assert message.error is None
    assert not message.warnings
    assert message.text
    assert message.usage is not None
    assert message.usage["output_tokens"] > 0
    for call in message.tool_calls:
        assert call.arguments_error is None
        if "text" in call.arguments:
            assert call.arguments["text"] == spoken(prompt)
    if name == "plan":
        assert f"> {spoken(prompt)}\n\n" in message.text
    assert ts.fold(data, provider="auto").to_dict() == message.to_dict()


def test_ids_differ_from_run_to_run() -> None:
    one, two = (ts.fold(recorded("plan", "x", run), provider="anthropic") for run in ("a1", "b2"))
    assert one.message_id != two.message_id
    assert one.tool_calls[0].id != two.tool_calls[0].id


@pytest.mark.parametrize(
    "data",
    [
        recorded("code", "x", "r"),
        recorded("plan", "x", "r").replace(b"\n", b"\r\n"),
        b'{"a":1}\n{"b":2}\n{"c":3}',
        b"[" + b'{"text":"long"},' * 900 + b"{}]",
        bytes(range(256)) * 40,
        b"",
    ],
    ids=["sse", "crlf", "ndjson", "one-line", "binary", "empty"],
)
async def test_pieces_are_the_bytes_in_order(data: bytes) -> None:
    cut = list(pieces(data))
    assert b"".join(cut) == data
    assert all(len(piece) <= 2048 for piece in cut)
    assert b"".join([piece async for piece in paced(data, pace=0)]) == data


def test_sse_is_cut_by_event() -> None:
    data = recorded("plan", "x", "r")
    assert len([piece for piece in pieces(data) if piece]) == data.count(b"\n\n")


def test_the_code_that_is_shown_is_the_code_that_runs() -> None:
    text = ts.fold(recorded("code", "x", "r"), provider="openai-chat").text
    shown = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert shown
    assert shown[1] == inspect.getsource(tools.reading_time).rstrip()


def test_tools() -> None:
    assert tools.reading_time("one quiet morning") == 0.78
    assert tools.reading_time("静かな朝") == 0.5
    measured = tools.measure_text("hi 世界 👩‍🚀", {"words": 230, "cjk": 480})
    assert (measured["words"], measured["cjk"], measured["seen"], measured["characters"]) == (1, 2, 7, 9)
    assert tools.check_case("x", 9.0).startswith("FAIL")


# --- the recorded agent -----------------------------------------------------------------------------------------------


async def test_the_recorded_agent_plans_codes_and_reviews() -> None:
    prompt = 'Measure 静かな朝 "quoted" 👩‍🚀'
    events = await play(demo.recorded_agent(pace=0), prompt)

    def of(kind: str) -> list[dict[str, Any]]:
        return [event.to_dict() for event in events if event.type == kind]

    assert [stage["stage"] for stage in of("stage_start")] == ["plan", "code", "review"]
    assert [stage["status"] for stage in of("stage_end")] == ["completed"] * 3
    assert [step["current"] for step in of("progress")][-1] == 100
    for stage in ("plan", "code", "review"):
        steps = [step["current"] for step in of("progress") if step["stage"] == stage]
        assert steps == sorted(steps)
    assert len(of("round_start")) == len(of("assistant_message")) == 4

    results = {result["call_id"]: result for result in of("tool_result")}
    calls = {call["call_id"]: call for call in of("tool_call")}
    assert set(results) == set(calls)
    assert len(calls) == 3
    by_name = {calls[call_id]["name"]: result for call_id, result in results.items()}
    assert not any(result["is_error"] for result in results.values())
    assert by_name["measure_text"]["output"] == tools.measure_text(prompt, {"words": 230, "cjk": 480})
    assert by_name["reading_time"]["output"] == tools.reading_time(prompt)
    assert by_name["check_cases"]["output"].count("pass") == 5
    assert "FAIL" not in by_name["check_cases"]["output"]
    assert "".join(delta["text"] for delta in of("tool_output_delta")).strip() == by_name["check_cases"]["output"]

    (end,) = of("completion")
    assert end["status"] == "completed"
    assert "Ready to merge" in end["text"]
    assert end["usage"]["output_tokens"] == sum(usage["output_tokens"] for usage in of("usage"))
    assert not of("warning")
    assert not of("error")


async def test_a_session_takes_a_second_turn() -> None:
    session = ts.Hub().session()
    first = await play(demo.recorded_agent(pace=0), "one", session)
    second = await play(demo.recorded_agent(pace=0), "two", session)
    texts = ["".join(e.to_dict()["text"] for e in events if e.type == "text_delta") for events in (first, second)]
    assert texts[1] == texts[0].replace("> one", "> two")


async def test_a_tool_that_raises_is_answered_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.TOOLS, "reading_time", lambda text: 1 / 0)
    events = await play(demo.recorded_agent(pace=0), "x")
    (failed,) = (event.to_dict() for event in events if event.type == "tool_result" and event.to_dict()["is_error"])
    assert failed["output"] == "ZeroDivisionError: division by zero"
    assert events[-1].to_dict()["status"] == "completed"


@pytest.mark.parametrize(
    ("value", "text"), [("plain", "plain"), ({"text": "t"}, "t"), ({"x": 1}, '{"x": 1}'), (None, "null"), ([1], "[1]")]
)
def test_any_json_is_a_prompt(value: Any, text: str) -> None:
    from turnstream.demo.agent import prompt_of

    assert prompt_of(value) == text


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
async def test_a_recorded_stream_is_replayed(name: str) -> None:
    data = recorded(name, "again", "r")
    events = await play(demo.replay_agent(data, pace=0), "ignored")
    said = "".join(event.to_dict()["text"] for event in events if event.type == "text_delta")
    assert said == ts.fold(data, provider=RECORDINGS[name]).text
    assert events[-1].to_dict()["status"] == "completed"


def test_run_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        demo.run(replay="x", base_url="http://127.0.0.1:1", model="m")
    with pytest.raises(ValueError, match="model"):
        demo.run(base_url="http://127.0.0.1:1")
    with pytest.raises(ValueError, match="gemini"):
        demo.run(base_url="http://127.0.0.1:1", model="m", provider="gemini")
    with pytest.raises(FileNotFoundError):
        demo.run(replay=tmp_path / "absent.sse")
    nothing = tmp_path / "nothing.bin"
    nothing.write_bytes(b"\x00\x01 this is no stream")
    with pytest.raises(ts.TurnstreamError):
        demo.run(replay=nothing)


# --- live -------------------------------------------------------------------------------------------------------------


class Scripted:
    """A model server that answers each request with the next of `answers`: (status, body), as chunks of 7 bytes."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Scripted]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append((head.split()[1], headers, body))
        status, answer = self.answers.pop(0)
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".encode())
        for at in range(0, len(answer), 7):
            writer.write(answer[at : at + 7])
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def test_live_openai_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    answers = [recorded("code-done", "", "a"), recorded("code-done", "", "b")]
    async with Scripted(*((200, answer) for answer in answers)).serve() as server:
        agent = demo.live_agent(server.url + "/v1/", "tiny")
        session = ts.Hub().session()
        events = await play(agent, "first", session)
        await play(agent, {"text": "second"}, session)
    said = ts.fold(answers[0], provider="openai-chat").text
    assert "".join(e.to_dict()["text"] for e in events if e.type == "text_delta") == said
    assert events[-1].to_dict()["status"] == "completed"
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-test"
    assert body["model"] == "tiny"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "first"}]
    assert server.requests[1][2]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "second"},
    ]


@pytest.mark.parametrize("suffix", ["", "/v1"])
async def test_live_anthropic(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "ak-test")
    async with Scripted((200, recorded("review", "", "a"))).serve() as server:
        events = await play(demo.live_agent(server.url + suffix, "tiny", "anthropic"), "hello")
    assert "Ready to merge" in events[-1].to_dict()["text"]
    path, headers, body = server.requests[0]
    assert path == "/v1/messages"
    assert headers["x-api-key"] == "ak-test"
    assert headers["anthropic-version"]
    assert body["stream"] is True
    assert body["max_tokens"] > 0


async def test_live_without_a_key_sends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with Scripted((200, recorded("code-done", "", "a"))).serve() as server:
        await play(demo.live_agent(server.url, "tiny"), "hello")
    assert "authorization" not in server.requests[0][1]


async def test_a_refusing_server_fails_the_turn() -> None:
    async with Scripted((401, b'{"error": {"message": "no such key"}}')).serve() as server:
        events = await play(demo.live_agent(server.url, "tiny"), "hello")
    error = next(event.to_dict() for event in events if event.type == "error")
    assert error["code"] == "http_401"
    assert "no such key" in error["message"]
    assert events[-1].to_dict()["status"] == "failed"


async def test_a_server_that_is_not_there_fails_the_turn() -> None:
    async with Scripted().serve() as server:
        url = server.url
    session = ts.Hub().session()
    with contextlib.suppress(OSError, Exception):
        await play(demo.live_agent(url, "tiny"), "hello", session)
    result = session.result()
    assert result is not None
    assert result["status"] == "failed"
