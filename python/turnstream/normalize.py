"""`normalize` and `fold`: one provider stream's bytes to events, or to one message, with no session.

Owns the loop between a source and a `Normalizer`. Refuses to know what a source is (`sources`) or what a provider
means (the core). Invariants: 1. the events of all bytes that came are given before the source's error is raised, those
that close what was open included; 2. leaving early closes the source.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self

from turnstream._native import Event, Normalizer, fold_json
from turnstream.message import Message
from turnstream.sources import chunks, iter_chunks

__all__ = ["Normalized", "fold", "normalize"]


def normalize(source: Any, provider: str = "auto", strict: bool = False, *, text_tools: bool = False) -> Normalized:
    """The events of one model call's stream, as they come.

    `source`: an iterable of bytes or str, async or plain; a response; an SDK's stream object; SDK models or dicts; a
    whole body: see `turnstream.sources.chunks`. `provider`: a name of `providers()`, or `auto`, which looks at the
    first bytes. `strict`: what the format does not allow is a `ProtocolError`, not a `warning` event.
    `text_tools`: tool calls that a model wrote into its text are calls; see `Normalizer`.

    A provider's error in the stream is an `error` event; the server's or the connection's is a `SourceError`, raised
    after the events of all that came before it.

        async for event in normalize(response, provider="anthropic"): ...
        for event in normalize(open("recorded.sse", "rb")): ...
    """
    return Normalized(source, Normalizer(provider, strict=strict, text_tools=text_tools))


def fold(data: bytes | bytearray | memoryview | str, provider: str = "auto", *, text_tools: bool = False) -> Message:
    """The message that a whole stream, or a whole non-streaming body, amounts to. Its own error stands in `.error`;
    bytes that are no stream of the provider are a `ProtocolError` or an `UnknownProvider`. `text_tools`: tool calls
    that a model wrote into its text are calls; see `Normalizer`."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data)
    return Message.from_json(fold_json(raw, provider, text_tools=text_tools))


class Normalized:
    """Events of one source; made by `normalize`. An async iterator and a plain one, for one reader, once."""

    def __init__(self, source: Any, normalizer: Normalizer) -> None:
        self._source = source
        self._normalizer = normalizer
        self._running: AsyncGenerator[Event] | None = None
        self._running_plain: Generator[Event] | None = None

    @property
    def provider(self) -> str:
        """The provider; `auto` until the bytes have told."""
        return self._normalizer.provider

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._running is None:
            self._running = self._events()
        return self._running

    def __anext__(self) -> Any:
        return aiter(self).__anext__()

    def __iter__(self) -> Iterator[Event]:
        if self._running_plain is None:
            self._running_plain = self._events_plain()
        return self._running_plain

    def __next__(self) -> Event:
        return next(iter(self))

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """The events of one chunk at a time, never an empty list."""
        feed = self._normalizer.feed
        try:
            async with aclosing(chunks(self._source)) as parts:
                async for part in parts:
                    if events := feed(part):
                        yield events
            if events := self._normalizer.finish():
                yield events
        except Exception:
            if events := self._closing():
                yield events
            raise

    def _closing(self) -> list[Event]:
        try:
            return self._normalizer.finish()
        except Exception:  # the error under way says more than its consequences would
            return []

    async def _events(self) -> AsyncGenerator[Event]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    def _events_plain(self) -> Generator[Event]:
        feed = self._normalizer.feed
        try:
            with closing(iter_chunks(self._source)) as parts:
                for part in parts:
                    yield from feed(part)
            yield from self._normalizer.finish()
        except Exception:
            yield from self._closing()
            raise

    async def aclose(self) -> None:
        """Ends the iteration and closes the source."""
        if self._running is not None:
            await self._running.aclose()

    def close(self) -> None:
        """Ends the plain iteration and closes the source."""
        if self._running_plain is not None:
            self._running_plain.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
