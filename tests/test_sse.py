"""SSEDecoder: the shared cases of the standard in three splits, leniency, limits."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import turnstream as ts

SHARED = Path(os.environ.get("TURNSTREAM_SHARED") or Path(__file__).parents[2] / "shared")
CASES = SHARED / "conformance" / "sse_cases.json"


def cases() -> list[Any]:
    if CASES.exists():
        return [pytest.param(case, id=case["name"]) for case in json.loads(CASES.read_text())]
    if os.environ.get("TURNSTREAM_REQUIRE") == "all":
        raise FileNotFoundError(CASES)
    return [pytest.param(None, marks=pytest.mark.skip(f"no shared test data at {SHARED}"))]


def input_of(case: dict[str, Any]) -> bytes:
    parts = case.get("input_parts") or [[case["input_base64"], 1]]
    return b"".join(base64.b64decode(part) * times for part, times in parts)


def split(data: bytes, lengths: Iterable[int]) -> Iterable[bytes]:
    at = 0
    for length in lengths:
        yield data[at : at + length]
        at += length
    assert at == len(data)


def decode(chunks: Iterable[bytes], **options: Any) -> tuple[ts.SSEDecoder, list[ts.Frame]]:
    decoder = ts.SSEDecoder(**options)
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return decoder, frames + decoder.finish()


def check(case: dict[str, Any], chunks: Iterable[bytes]) -> None:
    decoder, frames = decode(chunks)
    assert len(frames) == len(case["expected"])
    for frame, expected in zip(frames, case["expected"], strict=True):
        assert (frame.event, frame.id, frame.retry) == (expected["event"], expected["id"], expected["retry"])
        if "data" in expected:
            assert frame.data == expected["data"]
        else:
            data = frame.data.encode()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (expected["data_bytes"], expected["data_sha256"])
    assert (decoder.last_event_id, decoder.retry) == (case["final_last_event_id"], case["final_retry"])
    assert decoder.comments == case.get("comments", decoder.comments)


@pytest.mark.parametrize("case", cases())
def test_the_cases_in_three_splits(case: dict[str, Any]) -> None:
    data = input_of(case)
    check(case, [data])
    check(case, split(data, case.get("chunk_lengths", [len(data)])))
    # 16 MiB in Python calls of one byte each take seconds and show nothing that the core's own test does not.
    step = 1 if len(data) < 1 << 20 else 4093
    check(case, (data[at : at + step] for at in range(0, len(data), step)))


def test_lenient_gives_an_unterminated_last_event() -> None:
    for end in ("", "\n", "\r\n"):
        data = f"data: a\n\nevent: last\ndata: b{end}".encode()
        assert [frame.data for frame in decode([data])[1]] == ["a"]
        assert [frame.event for frame in decode([data], lenient=True)[1]] == ["message", "last"]


@pytest.mark.parametrize("options", [{"max_line_bytes": 10}, {"max_event_bytes": 4}])
@pytest.mark.parametrize("step", [1, 99])
def test_at_the_limit_and_one_past(options: dict[str, int], step: int) -> None:
    def feed(data: bytes) -> list[str]:
        return [
            frame.data for frame in decode((data[at : at + step] for at in range(0, len(data), step)), **options)[1]
        ]

    assert feed(b"data: 1234\n\n") == ["1234"]
    with pytest.raises(ts.FrameTooLong, match=r"at byte 0 is (larger|longer) than") as caught:
        feed(b"data: 12345\n\n")
    assert caught.value.code == "frame_too_long"
    assert isinstance(caught.value, ts.ProtocolError)


def test_frames_before_an_error_come_first_and_the_error_stays() -> None:
    decoder = ts.SSEDecoder(max_event_bytes=3)
    assert [frame.data for frame in decoder.feed(b"data: 123\n\ndata: 1234\n\ndata: 1\n\n")] == ["123"]
    for call in (decoder.finish, decoder.finish, lambda: decoder.feed(b"data: 1\n\n")):
        with pytest.raises(ts.FrameTooLong, match="at byte 11"):
            call()


def test_comments_are_bounded() -> None:
    decoder = ts.SSEDecoder(max_line_bytes=1000)
    for number in range(10_000):
        decoder.feed(b": %d\n" % number)
    assert decoder.comments[-1] == " 9999"
    assert 1 < len(decoder.comments) < 20


def test_frames_are_values() -> None:
    (one,), (two,), (other,) = (decode([data])[1] for data in (b"data: a\n\n", b"data:a\r\r", b"data: b\n\n"))
    assert one == two
    assert one != other
    assert repr(one) == 'Frame(event="message", data=<1 bytes>, id="", retry=None)'
    with pytest.raises(AttributeError):
        setattr(one, "data", "x")  # noqa: B010
    decoder = ts.SSEDecoder()
    assert decoder.feed(bytearray(b"data: a\n\n")) == [one]
