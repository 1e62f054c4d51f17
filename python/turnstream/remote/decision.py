"""Whether a remote run streams: who asked for what, what is used, and why.

Owns the toggles and the record of the decision. Refuses to know Ray: what is available is told to it. Invariants:

1. Every decision has a record; the record says what was asked, what is used and the reason.
2. A local run always streams, whatever the toggles say.
3. A toggle that cannot be read is a warning and the default, never an error.
4. In order: an interactive permission mode, then the metadata, then the environment, then off; what is not available is
   not used, whoever asked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["INTERACTIVE", "TOGGLES", "Decision", "Used", "decide", "toggle"]

TOGGLES = ("TURNSTREAM_ENABLE_REMOTE_STREAM", "KYLECODE_ENABLE_REMOTE_STREAM")
"""Environment variables; the first that is set counts."""
METADATA_KEY = "enable_remote_stream"
INTERACTIVE = frozenset({"interactive", "ask", "prompt"})
"""Permission modes in which a person must see what is asked of them while the run waits."""

Used: TypeAlias = Literal["local", "remote", "off", "unavailable"]

_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off", ""})

_log = logging.getLogger("turnstream")


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of the wish to stream. `to_dict()` stands in the session's status under `remote`."""

    asked: Literal["on", "off"]
    """What the toggles add up to."""
    used: Used
    """local: the run is here, and streams; remote: it streams from there; off: it runs there, and its result is the
    message; unavailable: it cannot run there, and runs here."""
    reason: str
    queue_active: bool
    """Whether the run's events come over a transport."""

    def to_dict(self) -> dict[str, Any]:
        """The record, as JSON has it."""
        return asdict(self)


def toggle(value: object, name: str) -> bool | None:
    """A toggle's value: None where it is not set or, with a warning, where it cannot be read."""
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _ON:
        return True
    if word in _OFF:
        return False
    _log.warning("%s: expected on or off, in some spelling; the default is used", name)
    return None


def decide(
    *,
    remote: bool,
    metadata: object = None,
    permission_mode: str | None = None,
    environ: Mapping[str, str] | None = None,
    unavailable: str | None = None,
    probe: bool | None = None,
) -> Decision:
    """Decides for one run, and says so in the log.

    `remote`: whether the run is to be elsewhere. `metadata`: the turn's own; what is no mapping says nothing.
    `unavailable`: why it cannot be elsewhere. `probe`: whether the capability probe passed; None where there was none.
    """
    asked, reason = _asked(metadata, permission_mode, os.environ if environ is None else environ)
    used: Used
    if not remote:
        used, reason = "local", "a local run always streams"
    elif unavailable is not None:
        used, reason = "unavailable", unavailable
    elif not asked:
        used = "off"
    elif probe is False:
        used, reason = "off", "the capability probe failed"
    else:
        used = "remote"
    decision = Decision("on" if asked else "off", used, reason, used == "remote")
    _log.info("remote stream: asked %s, used %s: %s", decision.asked, decision.used, decision.reason)
    return decision


def _asked(metadata: object, permission_mode: str | None, environ: Mapping[str, str]) -> tuple[bool, str]:
    if permission_mode is not None and permission_mode.strip().lower() in INTERACTIVE:
        return True, f"the permission mode {permission_mode.strip().lower()} is interactive"
    said = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    if (wish := toggle(said, f"metadata {METADATA_KEY}")) is not None:
        return wish, f"metadata {METADATA_KEY}"
    name = next((name for name in TOGGLES if name in environ), None)
    if name is not None and (wish := toggle(environ[name], name)) is not None:
        return wish, f"environment {name}"
    return False, "the default"
