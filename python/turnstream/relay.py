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

from turnstream.errors import HTTPStatusError, TurnstreamError
from turnstream.message import Message
from turnstream.sources import chunks

if TYPE_CHECKING:
    from turnstream._native import Turn

__all__ = ["relay"]


async def relay(turn: Turn, source: Any, provider: str = "auto", strict: bool = False) -> Message:
    """Feeds the source's bytes to the turn; what `Turn.relay` does. Returns what the model said.

    An error that the provider sent stands in the message's `error`. Raises `SourceError` when the server or the
    connection failed, `ProtocolError` when the bytes are not the provider's format; the exceptions of a user's own
    iterable pass as they are.
    """
    feed = turn.normalizer(provider, strict=strict)
    try:
        async with aclosing(chunks(source)) as parts:
            async for part in parts:
                feed.feed(part)
                await turn.ready()
    except BaseException as error:
        if isinstance(error, Exception):
            _log(turn, error)
        _close(feed)
        raise
    return _message(feed.finish())


def _log(turn: Turn, error: Exception) -> None:
    fields: dict[str, Any] = {
        "code": error.code if isinstance(error, TurnstreamError) else "source_failed",
        "message": str(error) if isinstance(error, TurnstreamError) else f"{type(error).__name__}: {error}",
        "retryable": bool(getattr(error, "retryable", False)),
        "fatal": True,  # to the model call; a later call that succeeds makes it good
    }
    if isinstance(error, HTTPStatusError):
        fields["raw"] = {"status": error.status}  # not the body: it may quote a key, and readers are not the caller
    with suppress(TurnstreamError):  # the turn may have ended; the exception itself still reaches the caller
        turn.emit("error", fields)


def _close(feed: Any) -> None:
    with suppress(Exception):  # the error under way says more than its consequences would
        feed.finish()


def _message(fold: str | bytes | Message) -> Message:
    return fold if isinstance(fold, Message) else Message.from_json(fold)
