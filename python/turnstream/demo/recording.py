"""Provider streams that were written down, played again at the pace at which they are spoken.

Owns the recordings (`streams/*.sse`, in the providers' real wire formats), what is filled into them, and the pauses.
Knows nothing of events: what comes out is bytes, and `turn.relay` reads them as it reads any server's.
Invariants: 1. a filled recording is valid in its format, whatever the text; 2. the pieces of a recording are its bytes,
in order, all of them; 3. equal bytes get equal pauses.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from random import Random
from typing import Any

PROMPT, ID = "{{prompt}}", "{{id}}"
"""What a recording holds in place of the user's request, and of the part of its ids that differs from run to run."""

_RAW_JSON = {"arguments", "partial_json"}
"""Fields whose text is itself a piece of JSON: what is filled in is escaped once more."""

_LONG = 2048
"""A piece above this many bytes (one line of a JSON array, a binary stream) is cut into pieces of 64."""


def recorded(name: str, prompt: str, run: str) -> bytes:
    """The recording `name` with `prompt` and `run` filled in: the request a few words at a time."""
    text = (files(__package__) / "streams" / f"{name}.sse").read_text("utf-8")
    return b"".join(_fill(event, prompt, run) for event in re.split(r"(?<=\n\n)", text))


def _fill(event: str, prompt: str, run: str) -> bytes:
    event = event.replace(ID, run)
    if PROMPT not in event:
        return event.encode()
    head, data, tail = re.fullmatch(r"(.*?data: )(.*)(\n\n)", event, re.DOTALL).groups()  # type: ignore[union-attr]
    pieces = [json.dumps(_replace(json.loads(data), words), ensure_ascii=False) for words in _by_few_words(prompt)]
    # A lone surrogate has no UTF-8: it is shown as a question mark, and the recording stays valid.
    return "".join(head + piece + tail for piece in pieces).encode("utf-8", "replace")


def _by_few_words(prompt: str) -> list[str]:
    return re.findall(r"\s*\S{1,12}", " ".join(prompt.split())) or ["(nothing)"]


def _replace(value: Any, words: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _replace(item, words, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, words, key) for item in value]
    if isinstance(value, str):
        return value.replace(PROMPT, json.dumps(words, ensure_ascii=False)[1:-1] if key in _RAW_JSON else words)
    return value


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` as it would come over the wire: by event where blank lines part them, else by line, else by 64 bytes."""
    parts = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", data)
    for part in parts if len(parts) > 2 else data.splitlines(keepends=True):
        if len(part) <= _LONG:
            yield part
        else:
            yield from (part[at : at + 64] for at in range(0, len(part), 64))


async def paced(data: bytes, pace: float = 1.0) -> AsyncIterator[bytes]:
    """The pieces of `data`, with pauses: `pace` 1 is natural, 2 twice as fast, 0 without any."""
    rng = Random(0)
    wait = 0.45  # to the first token
    for piece in pieces(data):
        if piece:
            # Even without pauses others on the loop have their turn: a reader, and whoever wants to stop this.
            await asyncio.sleep(wait / pace if pace > 0 else 0)
            yield piece
            wait = min(0.09, max(0.004, rng.expovariate(1 / 0.018)))
            if rb".\n" in piece or rb"\n\n" in piece:
                wait += 0.16  # a paragraph's breath
