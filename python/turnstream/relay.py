"""`relay`: a model call's stream into a turn's log, and the whole message back.

Owns the loop between a source and a `TurnFeed`, and what a failure of the source looks like in the log. Refuses to know
what a source is (`sources`), what a provider means or what a turn does with its events (the core). Invariants:

1. However the stream ends, what it opened is closed in the log, once, before the caller hears of it.
2. A failure of the source is one `error` event, and is raised as it is; the turn goes on if the caller
   catches it, and a later model call makes it good.
3. A cancel closes the source, and is raised on.
4. A reader that paces the producer holds this loop, and through it the source.
"""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from turnstream.errors import SourceError, TurnstreamError
from turnstream.message import Message
from turnstream.sources import chunks

if TYPE_CHECKING:
    from turnstream._native import Turn

__all__ = ["error_fields", "relay"]


async def relay(
    turn: Turn, source: Any, provider: str = "auto", strict: bool = False, text_tools: bool = False
) -> Message:
    """Feeds the source's bytes to the turn; what `Turn.relay` does. Returns what the model said.

    An error that the provider sent stands in the message's `error`. Raises `SourceError` when the server or the
    connection failed, `ProtocolError` when the bytes are not the provider's format; the exceptions of a user's own
    iterable pass as they are.
    """
    feed = turn.normalizer(provider, strict=strict, text_tools=text_tools)
    try:
        async with aclosing(chunks(source)) as parts:
            async for part in parts:
                feed.feed(part)
                await turn.ready()
        return Message.from_json(feed.finish())
    except Exception as error:
        with suppress(TurnstreamError):  # the turn may have ended
            feed.stop(error_fields(error))
        raise
    except BaseException:
        with suppress(TurnstreamError):
            feed.finish()
        raise


def error_fields(error: Exception) -> dict[str, Any]:
    """The `error` event that a failure is in the log."""
    typed = isinstance(error, TurnstreamError)
    try:
        text = str(error)
    except Exception:  # an error that cannot say what it is, is one nevertheless
        text = ""
    return {
        "code": error.code if isinstance(error, TurnstreamError) else SourceError.code,
        "message": text if typed else f"{type(error).__name__}: {text}" if text else type(error).__name__,
        "retryable": bool(getattr(error, "retryable", False)),
        "fatal": True,  # to the model call; a later call that succeeds makes it good
        # Not the body: it may quote a key, and a session has more readers than the caller.
        "raw": {"status": error.status} if isinstance(error, SourceError) and error.status else None,
    }
