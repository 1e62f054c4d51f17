"""`Fixture`: a recorded run as an agent's work, here or elsewhere.

Owns reading and checking. Invariants: 1. every line is checked before the first is emitted: a bad one publishes
nothing; 2. what only a session may say (a turn's start, a session's end, control frames) is left out; the end that a
recording lacks is the pump's, or the turn's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from turnstream._native import compose
from turnstream.errors import PayloadError

__all__ = ["Fixture"]

_HEADER = frozenset({"type", "seq", "session", "turn", "round", "time", "backend"})
_OTHERS = frozenset({"turn_start", "session_end", "stream_open", "snapshot", "gap"})


class Fixture:
    """Events as lines of JSON, in their wire form, as `turnstream events` prints them. Picklable.

    `ts.remote.agent(Fixture.load("run.ndjson"))` plays them. PayloadError, with the line's number, where one is no
    event: from the call that plays them, before anything is emitted.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = [line for line in lines if line.strip()]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The lines of a file."""
        return cls(Path(path).read_text().splitlines())

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and fields of each event; PayloadError where a line is none."""
        found = []
        for number, line in enumerate(self._lines, 1):
            try:
                whole = json.loads(line)
                kind = whole["type"]
                if kind in _OTHERS:
                    continue
                fields = {name: value for name, value in whole.items() if name not in _HEADER}
                compose(kind, fields)
            except (ValueError, TypeError, KeyError) as error:
                raise PayloadError(f"line {number} of {len(self._lines)}: no event") from error
            found.append((kind, fields))
        return found

    def __call__(self, emit: Any, _input: Any = None) -> None:
        """Emits all of them, once all are found good."""
        for kind, fields in self.events():
            emit(kind, fields)
