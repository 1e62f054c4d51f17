"""Made-up runs, read from anywhere in them by the clients that the formats are for.

What each has at the end is what the session says was said.
"""

import asyncio
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from clients import node

import turnstream as ts

RUNS = 60
# What a line, a JSON reader or a careless parser may stumble over.
TEXTS = ["", "a", "é\u2028\u2029", '\0"\\', '{"a":', "1}", '{"a":1}', "\r\ndata: x\n\n", "😀", "[DONE]"]
KINDS = ("text", "reasoning", "refusal")


def run(seed: int) -> ts.Session:
    """A session of a turn or two, each of events in any order, sensible or not."""
    chance = random.Random(seed)
    session = ts.Hub().session(f"run-{seed}")
    for number in range(1, chance.choice([2, 2, 3])):
        with session.turn({"model": "m", "input": "x"} if chance.random() < 0.5 else "x") as turn:
            for _ in range(chance.randrange(30)):
                kind, fields = step(chance, number)
                turn.emit(kind, fields)
            if chance.random() < 0.2:
                turn.emit("error", {"code": "broken", "message": chance.choice(TEXTS), "fatal": True})
    return session


def step(chance: random.Random, turn: int) -> tuple[str, dict[str, Any]]:
    message = f"t{turn}" + chance.choice(["m1", "m:2\n", "m3"])
    call = {"call_id": f"t{turn}" + chance.choice(["c1", "c:2\r\n", "c3"])}
    name = chance.choice(["look", "data: x\n\n"])
    text = chance.choice(TEXTS)
    said = {"message_id": message, "text": text}
    events: list[tuple[str, dict[str, Any]]] = [
        *[("text_delta", said)] * 5,
        *[("reasoning_delta", {**said, "part": len(text)})] * 2,
        ("refusal_delta", said),
        ("tool_call_start", {**call, "name": name, "message_id": message}),
        *[("tool_call_delta", {**call, "text": text})] * 3,
        ("tool_call", {**call, "name": name, "kind": chance.choice(["client", "mcp"])}),
        ("tool_call", {**call, "name": name, "arguments_raw": text}),
        ("tool_result", {**call, "output": text, "is_error": not text}),
        ("tool_output_delta", {**call, "text": text}),
        ("message_reset", {"message_id": message, "reason": chance.choice(["retry", "contradicted"])}),
        ("assistant_message", {**said, "finish_reason": chance.choice(["stop", "length", "tool_calls"])}),
        ("round_start", {"model": "m"}),
        ("round_end", {}),
        ("citation", {"message_id": message, "url": "https://example.com", "text": text}),
        ("file", {"media_type": "image/png", "data": "AAAA"}),
        ("custom", {"name": "chart", "data": {"text": text, "lone": "\ud800", "far": math.inf}}),
        ("stage_start", {"stage": name}),
        ("stage_end", {"stage": name}),
        ("progress", {"stage": name, "current": chance.choice([1, 0.5]), "message": text}),
    ]
    return chance.choice(events)


def body(session: ts.Session, format: Any, seq: int | None) -> bytes:
    after = None if seq is None else f"{session.epoch}.{seq}"
    return b"".join(session.frames(after, format=format, heartbeat_s=0))


def frames(body: bytes) -> Iterator[Any]:
    """Each is one `data` line of JSON, whatever it says."""
    assert b"\r" not in body
    for block in body.removesuffix(b"\n\n").split(b"\n\n"):
        *_, line = block.split(b"\n")
        assert line.startswith(b"data: ")
        if line != b"data: [DONE]":
            yield json.loads(line[6:], parse_constant=pytest.fail)


def starts(session: ts.Session, seed: int) -> list[int | None]:
    head = session.status()["head"]
    return [None, *random.Random(seed).sample(range(1, head), min(3, head - 1))]


def answers(session: ts.Session) -> list[dict[str, Any]]:
    return [message for message in session.messages() if message["role"] != "user"]


def said(session: ts.Session, turn: int) -> dict[tuple[str, str], str]:
    of_turn = [message for message in answers(session) if message["turn"] == turn]
    return {(m["message_id"], kind): m[kind] for m in of_turn for kind in KINDS if m.get(kind)}


def shown(parts: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """What is left of a UI message's texts once the withdrawn ones are void."""
    texts: dict[tuple[str, str], str] = {}
    for part in parts:
        if part["type"] == "data-reset":
            void = part["data"]["message_id"]
            texts = {key: text for key, text in texts.items() if key[0] != void}
        elif part["type"] in ("text", "reasoning"):
            ours = part["providerMetadata"]["turnstream"]
            key = (ours["message_id"], "refusal" if ours.get("refusal") else part["type"])
            texts[key] = texts.get(key, "") + part["text"]
            assert part.get("state") == "done"
    return texts


def calls(session: ts.Session, turn: int) -> int:
    opened = [event for event in session.read() if event.type == "tool_call"]
    return sum(event.turn == turn for event in opened)


def test_the_ai_sdk_and_ag_ui_read_any_run_from_anywhere(tmp_path: Path) -> None:
    told: list[tuple[ts.Session, str, int | None, bytes]] = []
    for seed in range(RUNS):
        session = run(seed)
        for seq in starts(session, seed):
            for format in ("ai-sdk", "ag-ui"):
                if text := body(session, format, seq):
                    list(frames(text))
                    told.append((session, format, seq, text))
    assert len(told) > 6 * RUNS
    file = tmp_path / "bodies.json"
    file.write_text(json.dumps([{"format": format, "body": text.decode()} for _, format, _, text in told]))
    for (session, format, seq, text), result in zip(told, node("bodies.mjs", str(file), timeout_s=120), strict=True):
        where = f"{session.id} {format} after {seq}: {text.decode()}"
        if format == "ag-ui":
            assert (result["failure"], result["warnings"]) in ((None, []), failed(text)), where
            by_id = {message["id"]: message for message in result["messages"]}
            turns = {int(event["runId"].rpartition(".")[2]) for event in result["events"] if "runId" in event}
            for message in answers(session):
                if message["turn"] in turns and message["text"]:
                    resets = f".{message['resets']}" if message.get("resets") else ""
                    assert by_id[message["message_id"] + resets]["content"] == message["text"], where
            continue
        (start, *_) = frames(text)
        turn = int(start["messageId"].rpartition(".")[2])
        for major in result:
            parts = major["message"]["parts"] if major["message"] else []
            assert shown(parts) == said(session, turn), where
            tools = [part for part in parts if part["type"].startswith("tool-") or part["type"] == "dynamic-tool"]
            assert len(tools) == calls(session, turn), where
            assert not any(part["state"] == "input-streaming" for part in tools), where


def failed(text: bytes) -> Any:
    """How the client ends on a RUN_ERROR: it is no fault of the stream."""
    *_, last = frames(text)
    return (f"Error: {last['message']}", []) if last["type"] == "RUN_ERROR" else None


@pytest.mark.parametrize("format", ["openai-chat", "openai-responses"])
async def test_openais_sdk_accumulates_any_run(format: Any) -> None:
    bodies: list[bytes] = []

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=bodies[-1], headers={"content-type": "text/event-stream"})

    transport = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    async with openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="-", http_client=cast(Any, transport)) as api:
        for seed in range(RUNS):
            session = run(seed)
            newest = session.status()["turn"]
            bodies.append(body(session, format, None))
            wire = list(frames(bodies[-1]))
            await asyncio.wait_for((chat if format == "openai-chat" else responses)(api, session, newest, wire), 30)


async def chat(api: openai.AsyncOpenAI, session: ts.Session, turn: int, wire: list[Any]) -> None:
    content = ""
    try:
        async with api.chat.completions.stream(model="m", messages=[]) as stream:
            async for event in stream:
                content += event.delta if event.type == "content.delta" else ""
            final = (await stream.get_final_completion()).choices[0].message
        assert content == (final.content or "")
        called = [call.id for call in final.tool_calls or []]
        assert len(called) == len(set(called)), "two calls of one id"
    except openai.LengthFinishReasonError:
        assert (
            wire[-2]["choices"][0]["finish_reason"] == "length" or wire[-1]["choices"][0]["finish_reason"] == "length"
        )
        return
    except openai.APIError:
        assert wire[-1]["error"]["code"] in ("broken", "contradicted", "withdrawn")
        return
    texts = [text for (_, kind), text in said(session, turn).items() if kind == "text"]
    if not any(message.get("resets") for message in answers(session)):
        assert sorted(content.replace("\n", "")) == sorted("".join(texts).replace("\n", ""))


async def responses(api: openai.AsyncOpenAI, session: ts.Session, turn: int, wire: list[Any]) -> None:
    assert [event["sequence_number"] for event in wire] == list(range(len(wire)))
    numbers: list[int] = []
    final: Any = None
    async with api.responses.stream(model="m", input="x") as stream:
        async for event in stream:
            numbers.append(event.sequence_number)
            if event.type in ("response.completed", "response.failed", "response.incomplete"):
                final = event.response
    assert numbers == list(range(len(wire)))
    items = [item for item in final.output if item.type in ("message", "reasoning")]
    parts = [part for item in items for part in (item.content if item.type == "message" else item.summary)]
    heard = "".join(part.refusal if part.type == "refusal" else part.text for part in parts)
    if not any(message.get("resets") for message in answers(session)):
        assert sorted(heard) == sorted("".join(said(session, turn).values()))


def test_large_and_hostile_pieces_stay_one_line_of_json_in_every_format() -> None:
    session = ts.Hub().session()
    large = "é\u2028\n\0" * 200_000
    with session.turn({"model": "data: x\n\n", "input": large}) as turn:
        turn.emit("text_delta", {"message_id": "id: 7\nevent: x", "text": large})
        turn.emit(
            "tool_call", {"call_id": "a:\n\nb", "name": "data: x\n\n", "arguments": {"deep": [math.nan, "\ud800"]}}
        )
        turn.emit("tool_result", {"call_id": "a:\n\nb", "output": {"far": -math.inf, "raw": b"\xff"}})
        turn.emit("progress", {"stage": "s\r\n", "current": 1e308, "message": large})
        turn.emit("custom", {"name": "x\ny", "data": {"lone": "\udfff", "line": "\r\n\r\n"}})
    for format in ("sse", "ndjson", "ai-sdk", "ag-ui", "openai-chat", "openai-responses"):
        text = body(session, format, None)
        if format == "ndjson":
            lines = [b"data: " + line for line in text.splitlines()]
        else:
            blocks = text.removesuffix(b"\n\n").split(b"\n\n")
            fields = {line.split(b":")[0] for block in blocks for line in block.split(b"\n")}
            assert fields <= {b"id", b"event", b"data"}, format
            lines = [block.split(b"\n")[-1] for block in blocks]
        seen = list(frames(b"\n\n".join(lines)))
        assert len(text) > len(large), format
        assert len(seen) >= 3, format
