"""What a person sees of a session: finished lines, and the state of what is still moving.

Owns the words and the look. Refuses to know where events come from. Invariants: 1. what came over the wire is stripped
of control characters before it reaches a terminal; 2. a line, once given out, is never changed, so that the display
keeps no more than one unfinished line and what runs now; 3. equal events give equal lines, live or plain.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_SHOWN_CHARS = 200
"""Of arguments and outputs: enough to recognise them by."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Line:
    """One finished line. `style` is a rich style; plain output ignores it."""

    text: str
    style: str = ""


@dataclass(slots=True)
class Stage:
    message: str = ""
    current: float | None = None
    total: float | None = None
    status: str = "running"


@dataclass(slots=True)
class View:
    """The fold of a session's events. `feed` takes an event and gives the lines that are now finished."""

    connection: str = "connecting"
    session: str = ""
    turn: int = 0
    started_ms: float | None = None
    ended_ms: float | None = None
    status: str = "idle"
    tokens: tuple[int, int] = (0, 0)
    stages: dict[str, Stage] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    """Running calls: their title by call id."""
    _text: str = ""
    """The unfinished line of the message under way."""
    _shown: set[str] = field(default_factory=set)
    """Messages of which some text has come as deltas."""
    _reasoning: int = 0
    """Characters of reasoning since the last line that said so."""

    def feed(self, event: dict[str, Any]) -> Iterator[Line]:
        """The lines that this event finishes. Unknown types give none."""
        kind = str(event.get("type", ""))
        if event.get("session"):
            self.session = clean(event["session"])
        if kind not in ("text_delta", "refusal_delta"):
            if kind != "reasoning_delta":
                yield from self._reasoned()
            if kind in _ENDS_TEXT:
                yield from self._flush()
        if (handle := getattr(self, f"_on_{kind}", None)) is not None:
            yield from handle(event)

    # -- text

    def _on_text_delta(self, event: dict[str, Any]) -> Iterator[Line]:
        yield from self._reasoned()
        self._shown.add(str(event.get("message_id")))
        *whole, self._text = (self._text + clean(event.get("text", ""))).split("\n")
        yield from (Line(line) for line in whole)

    _on_refusal_delta = _on_text_delta

    def _on_reasoning_delta(self, event: dict[str, Any]) -> Iterator[Line]:
        self._reasoning += len(str(event.get("text", "")))
        yield from ()

    def _on_message_reset(self, event: dict[str, Any]) -> Iterator[Line]:
        self._shown.discard(str(event.get("message_id")))
        yield Line("(the text above is withdrawn)", "yellow")

    def _on_assistant_message(self, event: dict[str, Any]) -> Iterator[Line]:
        # A client that came late may see a message without its deltas.
        if str(event.get("message_id")) not in self._shown:
            text = clean(event.get("text") or event.get("refusal") or "")
            yield from (Line(line) for line in text.split("\n") if text)
        self._shown.discard(str(event.get("message_id")))

    def rest(self) -> Iterator[Line]:
        """The unfinished line, when no more events will come."""
        yield from self._reasoned()
        yield from self._flush()

    def _flush(self) -> Iterator[Line]:
        if self._text:
            yield Line(self._text)
            self._text = ""

    def _reasoned(self) -> Iterator[Line]:
        if self._reasoning:
            yield Line(f"(reasoned, {self._reasoning:,} characters)", "dim italic")
            self._reasoning = 0

    # -- turns

    def _on_turn_start(self, event: dict[str, Any]) -> Iterator[Line]:
        self.turn, self.started_ms, self.ended_ms = event.get("turn", 0), event.get("time"), None
        self.status, self.tokens = "running", (0, 0)
        self.stages.clear()
        self.tools.clear()
        said = brief(event["input"]) if event.get("input") is not None else ""
        yield Line(f"── turn {self.turn} {said}".rstrip(), "bold")

    def _on_completion(self, event: dict[str, Any]) -> Iterator[Line]:
        self.status, self.ended_ms = clean(event.get("status", "")), event.get("time")
        self._set_usage(event.get("usage"), add=False)
        self.tools.clear()
        reason = f": {clean(event['reason'])}" if event.get("reason") else ""
        parts = [f"── {self.status}{reason}"]
        if (seconds := self.elapsed_s()) is not None:
            parts.append(f"{seconds:.1f} s")
        if any(self.tokens):
            parts.append(self._usage())
        yield Line(", ".join(parts), "bold green" if self.status == "completed" else "bold red")

    def _on_session_end(self, event: dict[str, Any]) -> Iterator[Line]:
        self.status = "ended"
        yield Line(f"── session ended{': ' + clean(event['reason']) if event.get('reason') else ''}", "bold")

    def _on_usage(self, event: dict[str, Any]) -> Iterator[Line]:
        self._set_usage(event, add=True)
        yield from ()

    def _set_usage(self, usage: Any, *, add: bool) -> None:
        if isinstance(usage, dict):
            now = (usage.get("input_tokens") or 0, usage.get("output_tokens") or 0)
            self.tokens = (self.tokens[0] + now[0], self.tokens[1] + now[1]) if add else now

    # -- tools and stages

    def _on_tool_call_start(self, event: dict[str, Any]) -> Iterator[Line]:
        self.tools[str(event.get("call_id"))] = clean(event.get("name", ""))
        yield from ()

    def _on_tool_call(self, event: dict[str, Any]) -> Iterator[Line]:
        arguments = event.get("arguments")
        shown = brief(event.get("arguments_raw", "") if arguments is None else arguments)
        self.tools[str(event.get("call_id"))] = clean(event.get("name", ""))
        yield Line(f"→ {clean(event.get('name', ''))} {shown}".rstrip(), "cyan")

    def _on_tool_result(self, event: dict[str, Any]) -> Iterator[Line]:
        name = self.tools.pop(str(event.get("call_id")), clean(event.get("name") or event.get("call_id") or ""))
        bad = bool(event.get("is_error"))
        yield Line(
            f"← {name} {'failed: ' if bad else ''}{brief(event.get('output'))}".rstrip(), "red" if bad else "cyan"
        )

    def _on_stage_start(self, event: dict[str, Any]) -> Iterator[Line]:
        name = clean(event.get("stage", ""))
        self.stages[name] = Stage(clean(event.get("message") or ""))
        yield Line(_labelled(f"▸ {name}", self.stages[name].message), "magenta")

    def _on_progress(self, event: dict[str, Any]) -> Iterator[Line]:
        stage = self.stages.setdefault(clean(event.get("stage", "")), Stage())
        stage.current, stage.total = event.get("current"), event.get("total")
        stage.message = clean(event.get("message") or "") or stage.message
        yield from ()

    def _on_stage_end(self, event: dict[str, Any]) -> Iterator[Line]:
        name = clean(event.get("stage", ""))
        self.stages.pop(name, None)
        yield Line(
            _labelled(f"▪ {name} {clean(event.get('status', ''))}", clean(event.get("message") or "")), "magenta"
        )

    # -- what went wrong, and what the log says of itself

    def _on_error(self, event: dict[str, Any]) -> Iterator[Line]:
        yield Line(f"error {clean(event.get('code', ''))}: {clean(event.get('message', ''))}", "bold red")

    def _on_warning(self, event: dict[str, Any]) -> Iterator[Line]:
        yield Line(f"warning {clean(event.get('code', ''))}: {clean(event.get('message', ''))}", "yellow")

    def _on_gap(self, event: dict[str, Any]) -> Iterator[Line]:
        yield Line(f"(events {event.get('from')} to {event.get('to')} are missing)", "yellow")

    def _on_snapshot(self, event: dict[str, Any]) -> Iterator[Line]:
        yield Line(f"(history up to event {event.get('head')} is folded)", "yellow")
        state = event.get("state")
        if not isinstance(state, dict):
            return
        self.turn = state.get("turn") or self.turn
        self.status = "running" if state.get("running") else self.status
        self._set_usage(state.get("usage"), add=False)
        for message in state.get("messages") or ():
            if message.get("role") == "user":
                yield Line(f"── turn {message.get('turn')} {brief(message.get('input'))}".rstrip(), "bold")
                continue
            yield from self._on_text_delta(message)
            if message.get("done"):  # of one that is not, the rest comes as deltas
                yield from self._flush()

    # -- the moving part

    def elapsed_s(self) -> float | None:
        """Of the turn, by the server's clock once it has ended and by ours until then."""
        if self.started_ms is None:
            return None
        return max(0.0, ((self.ended_ms or time.time() * 1000) - self.started_ms) / 1000)

    def _usage(self) -> str:
        return f"{self.tokens[0]:,} in, {self.tokens[1]:,} out"

    def render(self) -> RenderableType:
        """The unfinished line, what runs now, and the status line."""
        from rich.console import Group
        from rich.text import Text

        rows: list[RenderableType] = []
        if self._text:
            rows.append(Text(self._text))
        if self._reasoning:
            rows.append(Text(f"reasoning, {self._reasoning:,} characters", "dim italic"))
        for name, stage in self.stages.items():
            rows.append(Text(_labelled(f"▸ {name}{_bar(stage)}", stage.message), "magenta"))
        rows.extend(Text(f"… {name}", "cyan") for name in self.tools.values())
        parts = [self.connection, f"session {self.session}" if self.session else "", self.status]
        if (seconds := self.elapsed_s()) is not None:
            parts.append(f"{seconds:.1f} s")
        if any(self.tokens):
            parts.append(self._usage())
        rows.append(Text(" · ".join(part for part in parts if part), "dim"))
        return Group(*rows)


_ENDS_TEXT = frozenset((
    "turn_start", "message_start", "message_reset", "assistant_message", "tool_call", "tool_result", "stage_start",
    "stage_end", "warning", "error", "completion", "session_end", "gap", "snapshot",
))  # fmt: skip
"""Before these a text's last line is finished. A `usage` or `progress` may come in the middle of one."""


def clean(text: Any) -> str:
    """Text for a terminal: no escape sequences, no carriage returns, no bidirectional overrides."""
    return _CONTROL.sub("", str(text).replace("\r\n", "\n"))


def brief(value: Any) -> str:
    """A JSON value on one line."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    line = " ".join(clean(text[: 4 * MAX_SHOWN_CHARS]).split())
    return line if len(line) <= MAX_SHOWN_CHARS else line[: MAX_SHOWN_CHARS - 1] + "…"


def _labelled(title: str, message: str) -> str:
    return f"{title}: {message}" if message else title


def _bar(stage: Stage) -> str:
    if stage.current is None:
        return ""
    if not stage.total:
        return f" {stage.current:g}"
    filled = min(20, max(0, round(20 * stage.current / stage.total)))
    return f" {'█' * filled}{'░' * (20 - filled)} {stage.current:g}/{stage.total:g}"
