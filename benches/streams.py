"""Provider streams in real wire format, made up from a fixed seed: every run and every side reads the same bytes."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator

PROSE = r"""
the a of and to in is that it for on as with was by be this which or from at one had not but what all were when
we there can an your said if will each about how up out them then she many some so these would other into has
more stream event buffer reader writer cursor socket thread queue session latency number people because between
naïve café Straße 東京 データ 🙂 “quoted” don't "raw" C:\temp\x
"""
WORDS = PROSE.split()


def tokens(count: int, seed: int = 7) -> Iterator[str]:
    """Pieces of text of a model's size: mostly one word with its space, at times punctuation or a line break."""
    choose = random.Random(seed)
    for _ in range(count):
        roll = choose.random()
        yield "\n\n" if roll < 0.01 else choose.choice(".,:;") if roll < 0.12 else " " + choose.choice(WORDS)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _data(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _line(value: object) -> bytes:
    return _json(value) + b"\n"


def _named(kind: str, **fields: object) -> bytes:
    """An event whose name stands in its data, too."""
    return b"event: " + kind.encode() + b"\n" + _data({"type": kind, **fields})


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _padding(choose: random.Random) -> str:
    """What hides a token's length from who sees only the size of packets."""
    return "".join(choose.choices(LETTERS, k=choose.randint(2, 14)))


def openai_chat(count: int, answers: int = 1) -> list[bytes]:
    """One chat completion, one event an item: role, `count` contents of about 300 bytes, finish, usage, `[DONE]`.

    Several answers (`n`) take turns, chunk by chunk.
    """
    choose = random.Random(11)
    head = {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion.chunk",
        "created": 1741570283,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_fc9f1d7035",
    }

    def chunk(delta: dict[str, object], finish: str | None = None, index: int = 0) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], "usage": None, "obfuscation": _padding(choose)})

    usage = {
        "prompt_tokens": 57,
        "completion_tokens": count,
        "total_tokens": 57 + count,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return [
        *(chunk({"role": "assistant", "content": "", "refusal": None}, index=index) for index in range(answers)),
        *(chunk({"content": token}, index=at % answers) for at, token in enumerate(tokens(count))),
        *(chunk({}, "stop", index=index) for index in range(answers)),
        _data({**head, "choices": [], "usage": usage, "obfuscation": ""}),
        b"data: [DONE]\n\n",
    ]


def anthropic(count: int) -> list[bytes]:
    """One message of one text block with `count` text deltas, as api.anthropic.com sends it. One event an item."""

    event = _named
    usage = {"input_tokens": 57, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message: dict[str, object] = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-20250514",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "service_tier": "standard"},
    }
    return [
        event("message_start", message=message),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": token})
            for token in tokens(count)
        ),
        event("content_block_stop", index=0),
        event(
            "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": count}
        ),
        event("message_stop"),
    ]


def openai_responses(count: int) -> list[bytes]:
    """One response of one message with `count` text deltas, as api.openai.com sends it. One event an item."""
    choose = random.Random(13)
    item = "msg_68af2a1c4b8c81a0b5f0c9f7a3e1d2b40a9c8e7d6f5b4a39"
    numbers = iter(range(count + 10))

    def event(kind: str, **fields: object) -> bytes:
        return _named(kind, sequence_number=next(numbers), **fields)

    def response(status: str, **fields: object) -> dict[str, object]:
        return {
            "id": "resp_68af2a1b9d5881a0a3d7c6b5e4f3021109a8b7c6d5e4f302",
            "object": "response",
            "created_at": 1756309019,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "model": "gpt-4.1-2025-04-14",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
            **fields,
        }

    def part(text: str) -> dict[str, object]:
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def message(status: str, *content: object) -> dict[str, object]:
        return {"id": item, "type": "message", "status": status, "content": list(content), "role": "assistant"}

    place = {"item_id": item, "output_index": 0, "content_index": 0}
    text = "".join(tokens(count))
    usage = {
        "input_tokens": 57,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 57 + count,
    }
    whole = message("completed", part(text))
    return [
        event("response.created", response=response("in_progress")),
        event("response.in_progress", response=response("in_progress")),
        event("response.output_item.added", output_index=0, item=message("in_progress")),
        event("response.content_part.added", **place, part=part("")),
        *(
            event(
                "response.output_text.delta",
                **place,
                delta=token,
                logprobs=[],
                obfuscation=_padding(choose),
            )
            for token in tokens(count)
        ),
        event("response.output_text.done", **place, text=text, logprobs=[]),
        event("response.content_part.done", **place, part=part(text)),
        event("response.output_item.done", output_index=0, item=whole),
        event("response.completed", response=response("completed", output=[whole], usage=usage)),
    ]


def mistral(count: int) -> list[bytes]:
    """One chat completion in Mistral's dialect of OpenAI's: padding by the name of `p`, no other extras."""
    choose = random.Random(17)
    head = {
        "id": "3f0c1d9be27a4c5f8a6b7d2e90415c68",
        "object": "chat.completion.chunk",
        "created": 1756309019,
        "model": "mistral-small-latest",
    }

    def chunk(delta: dict[str, object], finish: str | None = None, **fields: object) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _data({**head, "choices": [choice], **fields, "p": _padding(choose)})

    usage = {"prompt_tokens": 57, "total_tokens": 57 + count, "completion_tokens": count}
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": token}) for token in tokens(count)),
        chunk({"content": ""}, "stop", usage=usage),
        b"data: [DONE]\n\n",
    ]


def gemini(count: int) -> list[bytes]:
    """One answer of `count` parts, as generativelanguage.googleapis.com sends it: whole responses, counts in each."""

    def response(said: int, text: str, **fields: object) -> bytes:
        value = {
            "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, **fields, "index": 0}],
            "usageMetadata": {
                "promptTokenCount": 57,
                "candidatesTokenCount": said,
                "totalTokenCount": 57 + said,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 57}],
            },
            "modelVersion": "gemini-2.5-flash",
            "responseId": "m3uvaNGsC9Wm1MkP6Yb3oQ4",
        }
        return b"data: " + _json(value) + b"\r\n\r\n"

    texts = enumerate(tokens(count), 1)
    return [*(response(said, token) for said, token in texts), response(count, "", finishReason="STOP")]


def ollama(count: int) -> list[bytes]:
    """One answer of `/api/chat`, a line an item; each has its time."""

    def line(at: int, text: str, **fields: object) -> bytes:
        seconds, fraction = divmod(at * 31_847_213, 1_000_000_000)
        created = f"2025-08-27T15:{seconds // 60:02}:{seconds % 60:02}.{fraction:09}Z"
        message = {"role": "assistant", "content": text}
        return _line({"model": "llama3.2", "created_at": created, "message": message, "done": False, **fields})

    counts = {
        "total_duration": 4883583458,
        "load_duration": 1334875,
        "prompt_eval_count": 57,
        "prompt_eval_duration": 342546000,
        "eval_count": count,
        "eval_duration": 4535599000,
    }
    texts = enumerate(tokens(count))
    return [*(line(at, token) for at, token in texts), line(count, "", done_reason="stop", done=True, **counts)]


def cohere(count: int) -> list[bytes]:
    """One answer of `/v2/chat`, one event an item."""
    usage = {
        "billed_units": {"input_tokens": 57, "output_tokens": count},
        "tokens": {"input_tokens": 561, "output_tokens": count + 3},
        "cached_tokens": 448,
    }
    message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    start = {"id": "5d0f2a6c-81b3-4e7d-9c24-6a1be0f3d785", "type": "message-start", "delta": {"message": message}}
    return [
        b"event: message-start\n" + _data(start),
        _named("content-start", index=0, delta={"message": {"content": {"type": "text", "text": ""}}}),
        *(_named("content-delta", index=0, delta={"message": {"content": {"text": token}}}) for token in tokens(count)),
        _named("content-end", index=0),
        _named("message-end", delta={"finish_reason": "COMPLETE", "usage": usage}),
        b"data: [DONE]\n\n",
    ]


def bedrock(count: int) -> list[bytes]:
    """One answer of ConverseStream, one AWS event stream message an item, padded as Bedrock pads."""
    choose = random.Random(19)

    def message(kind: str, **fields: object) -> bytes:
        headers = b"".join(
            bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
            for name, value in (
                (b":event-type", kind.encode()),
                (b":content-type", b"application/json"),
                (b":message-type", b"event"),
            )
        )
        payload = _json(fields)
        prelude = struct.pack(">II", 12 + len(headers) + len(payload) + 4, len(headers))
        body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
        return body + struct.pack(">I", zlib.crc32(body))

    usage = {"inputTokens": 57, "outputTokens": count, "totalTokens": 57 + count}
    return [
        message("messageStart", p=_padding(choose), role="assistant"),
        *(
            message("contentBlockDelta", contentBlockIndex=0, delta={"text": token}, p=_padding(choose))
            for token in tokens(count)
        ),
        message("contentBlockStop", contentBlockIndex=0, p=_padding(choose)),
        message("messageStop", p=_padding(choose), stopReason="end_turn"),
        message("metadata", metrics={"latencyMs": 8605}, p=_padding(choose), usage=usage),
    ]


def lmstudio(count: int) -> list[bytes]:
    """One answer of `/api/v1/chat`, one event an item."""
    model = "openai/gpt-oss-20b"
    stats = {
        "input_tokens": 57,
        "total_output_tokens": count,
        "reasoning_output_tokens": 0,
        "tokens_per_second": 43.73,
        "time_to_first_token_seconds": 0.781,
    }
    output = [{"type": "message", "content": "".join(tokens(count))}]
    result = {
        "model_instance_id": model,
        "output": output,
        "stats": stats,
        "response_id": "resp_02b2017dbc06c12bfc353a2ed6c2b802f8cc682884bb5716",
    }
    return [
        _named("chat.start", model_instance_id=model),
        _named("prompt_processing.start"),
        *(_named("prompt_processing.progress", progress=progress) for progress in (0, 0.5, 1)),
        _named("prompt_processing.end"),
        _named("message.start"),
        *(_named("message.delta", content=token) for token in tokens(count)),
        _named("message.end"),
        _named("chat.end", result=result),
    ]


def codex(count: int) -> list[bytes]:
    """A turn of codex's app server: notifications of JSON-RPC, a line each, `count` deltas of one message."""
    thread, turn, item = "01a1fb0e-5ff0-79e3-8d72-6794899e6ff8", "01a1fb0e-6020-7b21-9c07-0d7e35a7a6c1", "msg_0076"

    def notice(method: str, **params: object) -> bytes:
        return _line({"method": method, "params": {"threadId": thread, **params}})

    def message(text: str) -> dict[str, object]:
        return {"type": "agentMessage", "id": item, "text": text, "phase": None}

    def state(status: str) -> dict[str, object]:
        return {"id": turn, "items": [], "status": status, "error": None}

    return [
        notice("turn/started", turn=state("inProgress")),
        notice("item/started", turnId=turn, item=message("")),
        *(notice("item/agentMessage/delta", turnId=turn, itemId=item, delta=token) for token in tokens(count)),
        notice("item/completed", turnId=turn, item=message("".join(tokens(count)))),
        notice("turn/completed", turn=state("completed")),
    ]


def codex_exec(count: int) -> list[bytes]:
    """A turn of `codex exec --json`, a line an item: it streams no pieces, so `count` messages come whole."""
    return [
        _line({"type": "thread.started", "thread_id": "0199f2b4-6c1e-7a83-b5d0-4e9a17c3f862"}),
        _line({"type": "turn.started"}),
        *(
            _line({"type": "item.completed", "item": {"id": f"item_{at}", "type": "agent_message", "text": token}})
            for at, token in enumerate(tokens(count))
        ),
        _line(
            {
                "type": "turn.completed",
                "usage": {"input_tokens": 6057, "cached_input_tokens": 4992, "output_tokens": count},
            }
        ),
    ]


def pieces(events: list[bytes], size: int | None) -> list[bytes]:
    """The stream as a socket gives it: one event a read (`None`), or reads of `size` bytes that know no event's end."""
    if size is None:
        return events
    whole = b"".join(events)
    return [whole[at : at + size] for at in range(0, len(whole), size)]
