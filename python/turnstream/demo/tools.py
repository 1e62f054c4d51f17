"""What the demo's agent can do: small pure functions, run for real on the arguments that the model wrote.

Each takes the call's arguments by name and gives JSON. An exception is the tool's answer too: the agent reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_CJK = "\u3040-\u30ff\u4e00-\u9fff"
_JOINED = re.compile(
    r".[\ufe0f\u0300-\u036f\U0001f3fb-\U0001f3ff]*(?:\u200d.[\ufe0f\U0001f3fb-\U0001f3ff]*)*", re.DOTALL
)


def reading_time(text: str) -> float:
    """Seconds to read `text`: 230 words or 480 CJK characters a minute."""
    cjk = len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", text))
    words = len(re.findall(r"[^\W\u3040-\u30ff\u4e00-\u9fff]+", text))
    return round(60 * (words / 230 + cjk / 480), 2)


def measure_text(text: str, per_minute: dict[str, int]) -> dict[str, Any]:
    """What `text` is made of. `seen` counts what the eye takes for one character: an astronaut 👩‍🚀 is one."""
    words, cjk = len(re.findall(rf"[^\W{_CJK}]+", text)), len(re.findall(rf"[{_CJK}]", text))
    return {
        "words": words,
        "cjk": cjk,
        "seen": len(_JOINED.findall(text)),
        "characters": len(text),
        "bytes": len(text.encode("utf-8", "replace")),
        "seconds": round(60 * (words / per_minute["words"] + cjk / per_minute["cjk"]), 2),
    }


def check_case(text: str, seconds: float) -> str:
    """One line: what `reading_time` gives for `text`, against what it should."""
    took = reading_time(text)
    return f"{'pass' if took == seconds else 'FAIL'}  {text or '(empty)'} → {took} s"


TOOLS: dict[str, Callable[..., Any]] = {"measure_text": measure_text, "reading_time": reading_time}
