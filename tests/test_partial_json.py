"""A tool call's arguments while they stream: what is there so far, never an exception."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import turnstream as ts

DOCUMENT: dict[str, Any] = {
    "city": "Zürich 🏔",
    "nested": {"list": [1, 2.5, -3e4, True, False, None, 'a\\b"c\n', {"deep": [[], {}, [{"x": "\u2028"}]]}]},
    "big": 123456789012345678901234567890,
    "": "empty key",
}


def is_part(part: Any, whole: Any) -> bool:
    """Whether `part` is `whole` with its end missing: members, items, or the rest of a string or a number."""
    if isinstance(whole, dict):
        return isinstance(part, dict) and all(key in whole and is_part(part[key], whole[key]) for key in part)
    if isinstance(whole, list):
        return isinstance(part, list) and len(part) <= len(whole) and all(map(is_part, part, whole))
    if isinstance(whole, str):
        return isinstance(part, str) and whole.startswith(part)
    if isinstance(whole, int | float) and not isinstance(whole, bool):
        return isinstance(part, int | float)
    return bool(part == whole)


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_cut_gives_the_part_that_has_come(ensure_ascii: bool, indent: int | None) -> None:
    text = json.dumps(DOCUMENT, ensure_ascii=ensure_ascii, indent=indent)
    parts = [ts.partial_json(text[:end]) for end in range(1, len(text) + 1)]
    assert all(is_part(part, DOCUMENT) for part in parts)
    assert parts[0] == {}
    assert parts[-1] == DOCUMENT
    sizes = [len(json.dumps(part)) for part in parts]
    assert len(set(sizes)) > len(text) // 8, "it grows with the text, not with the members alone"


def test_every_byte_of_the_text_may_be_the_last() -> None:
    data = json.dumps(DOCUMENT, ensure_ascii=False).encode()
    for end in range(len(data) + 1):
        part = ts.partial_json(data[:end].decode(errors="ignore"))
        assert is_part(part, DOCUMENT) if end else part is None


@pytest.mark.parametrize("text", ["", " ", "}", "hello", "{1", '{"a" 1}', "[" * 1_000_000, "\ud800", '{"a":"\ud800'])
def test_what_makes_no_sense_raises_nothing(text: str) -> None:
    assert ts.partial_json(text) in (None, {"a": "\ufffd"}, {"a": "\ufffd\ufffd\ufffd"})


@given(st.text())
def test_no_text_raises(text: str) -> None:
    ts.partial_json(text)
    ts.partial_json('{"a":' + text)


def test_the_pieces_of_a_call_so_far() -> None:
    pieces = ['{"ci', 'ty":"Ber', 'lin","days":', "3}"]
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}
    normalizer = ts.Normalizer("openai-chat")
    so_far, seen = "", []
    for arguments in pieces:
        call["function"] = {"name": "weather", "arguments": arguments}
        chunk = {"id": "m", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        for event in normalizer.feed(f"data: {json.dumps(chunk)}\n\n"):
            if isinstance(event, ts.ToolCallDelta):
                so_far += event.text
                seen.append(ts.partial_json(so_far))
    assert seen == [{}, {"city": "Ber"}, {"city": "Berlin"}, {"city": "Berlin", "days": 3}]
