"""Provider streams in real wire format, made up from a fixed seed: every run and every side reads the same bytes."""

from __future__ import annotations

import json
import random
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


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


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
        padding = "".join(
            choose.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=choose.randint(2, 14))
        )
        return _data({**head, "choices": [choice], "usage": None, "obfuscation": padding})

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

    def event(kind: str, **fields: object) -> bytes:
        return b"event: " + kind.encode() + b"\n" + _data({"type": kind, **fields})

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
        return b"event: " + kind.encode() + b"\n" + _data({"type": kind, "sequence_number": next(numbers), **fields})

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

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
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
                obfuscation="".join(choose.choices(letters, k=choose.randint(2, 14))),
            )
            for token in tokens(count)
        ),
        event("response.output_text.done", **place, text=text, logprobs=[]),
        event("response.content_part.done", **place, part=part(text)),
        event("response.output_item.done", output_index=0, item=whole),
        event("response.completed", response=response("completed", output=[whole], usage=usage)),
    ]


def pieces(events: list[bytes], size: int | None) -> list[bytes]:
    """The stream as a socket gives it: one event a read (`None`), or reads of `size` bytes that know no event's end."""
    if size is None:
        return events
    whole = b"".join(events)
    return [whole[at : at + size] for at in range(0, len(whole), size)]
