"""`Message`: what one model call said, whole; the Python form of the fold.

Owns the names that code reads off a message. Refuses to know how a fold comes about: it is read from the JSON that
the core writes. Invariant: 1. `to_dict()` of what was read gives equal JSON back, unknown members included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

__all__ = ["Message", "MessageToolCall"]


@dataclass(frozen=True, slots=True)
class MessageToolCall:
    """A tool call, whole. Where `arguments_raw` is not JSON, `arguments` is None and `arguments_error` says why."""

    id: str
    name: str
    arguments: Any = None
    arguments_raw: str = ""
    arguments_error: str | None = None
    kind: str = "client"
    """`client`: the caller runs it. Anything else ran at the provider."""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A call of a fold; members without a name here are in `extra`."""
        return cast(Self, _read(cls, data))

    def to_dict(self) -> dict[str, Any]:
        """The fold's JSON object."""
        return _write(self)


@dataclass(frozen=True, slots=True)
class Message:
    """What one model call said, whole. `text` and `tool_calls` are the answer's own: the first choice's."""

    provider: str = ""
    message_id: str | None = None
    model: str | None = None
    text: str = ""
    reasoning: str = ""
    refusal: str | None = None
    tool_calls: list[MessageToolCall] = field(default_factory=list)
    finish_reason: str = "unknown"
    """stop, length, tool_calls, content_filter, refusal, pause, error, cancelled or unknown."""
    finish_reason_raw: str | None = None
    """The provider's own word."""
    usage: dict[str, Any] | None = None
    """`input_tokens`, `output_tokens`, `total_tokens`, …: totals include their cached and reasoning parts."""
    usage_raw: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    """The error that came in the stream, or `stream_truncated`."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    turns: list[dict[str, Any]] = field(default_factory=list)
    choices: list[Message] = field(default_factory=list)
    """All choices, where the provider answered several times at once, each with its `extra["index"]`; else empty."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Members of the fold that have no name here."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The message of a fold, as `turnstream fold` prints it."""
        parts = dict(data)
        parts["tool_calls"] = [MessageToolCall.from_dict(call) for call in data.get("tool_calls") or ()]
        parts["choices"] = [Message.from_dict(choice) for choice in data.get("choices") or ()]
        return cast(Self, _read(cls, parts))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """`from_dict` of JSON text; ValueError where it is none."""
        return cls.from_dict(json.loads(text))

    def to_dict(self) -> dict[str, Any]:
        """The fold's JSON object."""
        whole = _write(self)
        whole["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        whole["choices"] = [
            {name: member for name, member in choice.to_dict().items() if name not in _SAID_ONCE}
            for choice in self.choices
        ]
        return whole


_SAID_ONCE = frozenset(("provider", "usage", "usage_raw", "error", "warnings", "events", "turns", "choices"))
"""Members of the whole fold, which no single choice repeats."""


def _read(cls: Any, data: Mapping[str, Any]) -> Any:
    named = cls.__dataclass_fields__
    known = {name: value for name, value in data.items() if name in named and name != "extra"}
    return cls(**known, extra={name: value for name, value in data.items() if name not in named})


def _write(part: Any) -> dict[str, Any]:
    whole = {name: getattr(part, name) for name in part.__dataclass_fields__ if name != "extra"}
    return {**whole, **part.extra}
