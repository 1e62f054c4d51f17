"""What a server does about clients that leave, freeze or come in crowds, and about turns that say nothing.

Owns the settings alone; `streams` and `app` act on them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits of `turnstream.asgi.app` and of the router.

    `on_disconnect`: what becomes of a running turn when its last reader has left: "continue", or "cancel", after
    `disconnect_grace_s` in which one may come back. A turn that nobody has read is never cancelled by this.

    `max_readers_per_session`, `max_readers_per_principal`: open streams, sockets and waiting polls; who comes on top is
    answered 429, and one that asks for `text/event-stream` is let in and sent away with `retry:`, as an EventSource
    gives up for good on any status but 200. The principal is what the auth hook gave.

    `write_timeout_s`: a client that takes nothing for so long is cut, and may resume by its cursor; None: never.

    `stall_timeout_s`: after so long without an event of a running turn, a `warning` with the code `stalled`, once per
    stall; heartbeats are no events. `on_stall="cancel"` ends the turn too.
    """

    on_disconnect: Literal["continue", "cancel"] = "continue"
    disconnect_grace_s: float = 0.0
    max_readers_per_session: int | None = None
    max_readers_per_principal: int | None = None
    write_timeout_s: float | None = 30.0
    stall_timeout_s: float | None = None
    on_stall: Literal["warn", "cancel"] = "warn"

    def __post_init__(self) -> None:
        if self.on_disconnect not in ("continue", "cancel") or self.on_stall not in ("warn", "cancel"):
            raise ValueError('policy: on_disconnect is "continue" or "cancel", on_stall "warn" or "cancel"')
        above = (
            self.max_readers_per_session,
            self.max_readers_per_principal,
            self.write_timeout_s,
            self.stall_timeout_s,
        )
        if any(limit is not None and not limit > 0 for limit in above) or not self.disconnect_grace_s >= 0:
            raise ValueError("policy: limits and times are above 0, or None")
