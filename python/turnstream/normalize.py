"""`normalize` and `fold`: one provider stream's bytes to events, or to one message, with no session.

Owns the loop between a source and a `Normalizer`. Refuses to know what a source is (`sources`) or what a provider
means (the core). Invariants: 1. the events of all bytes that came are given before the source's error is raised, those
that close what was open included; 2. leaving early closes the source.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator, Iterator
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self

from turnstream._native import Event, Normalizer, fold_json
from turnstream.errors import SourceError, UnsupportedSource
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
    if isinstance(data, str):
        raw = data.encode("utf-8", "replace")
    elif isinstance(data, (bytes, bytearray, memoryview)):
        raw = bytes(data)
    else:
        raise UnsupportedSource(
            f"data: expected bytes or str, saw {type(data).__qualname__}; read a stream with normalize"
        )
    return Message.from_json(fold_json(raw, provider, text_tools=text_tools))


class Normalized:
    """Events of one source; made by `normalize`. An async iterator and a plain one, for one reader, once.

    A wait that is cancelled closes the source: the next one raises a SourceError, for what comes then is no end.
    `turnstream.streams.timeout` waits without.
    """

    def __init__(self, source: Any, normalizer: Normalizer) -> None:
        self._source = source
        self._normalizer = normalizer
        self._cut = _Cut()
        self._running: AsyncGenerator[Event] | None = None
        self._running_plain: Generator[Event] | None = None

    @property
    def provider(self) -> str:
        """The provider; `auto` until the bytes have told."""
        return self._normalizer.provider

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Event]:
        if self._running is None:
            self._running = _events(self._source, self._normalizer, self._cut)
        if self._cut.by_cancel:
            raise SourceError("a wait for an event was cancelled, which closed the source before its end")
        return self._running.__anext__()

    def __iter__(self) -> Iterator[Event]:
        if self._running_plain is None:
            self._running_plain = _events_plain(self._source, self._normalizer)
        return self._running_plain

    def __next__(self) -> Event:
        return next(iter(self))

    def batches(self) -> AsyncGenerator[list[Event]]:
        """The events of one chunk at a time, never an empty list."""
        return _batches(self._source, self._normalizer)

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


# The generators do not hold their `Normalized`: the two would be a cycle, whose generators the collector closes in no
# order, and all at once.


class _Cut:
    by_cancel = False


async def _events(source: Any, normalizer: Normalizer, cut: _Cut) -> AsyncGenerator[Event]:
    try:
        async with aclosing(_batches(source, normalizer)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event
    except BaseException as error:
        cut.by_cancel = not isinstance(error, (Exception, GeneratorExit))
        raise


async def _batches(source: Any, normalizer: Normalizer) -> AsyncGenerator[list[Event]]:
    feed, failure = normalizer.feed, None
    # Nothing is given within a `try`: what a consumer throws in is not the source's failure.
    async with aclosing(chunks(source)) as parts:
        while True:
            try:
                events = feed(await anext(parts))
            except StopAsyncIteration:
                break
            except Exception as error:
                failure = error
                break
            if events:
                yield events
    events, failure = _closing(normalizer, failure)
    if events:
        yield events
    _fail(failure)


def _events_plain(source: Any, normalizer: Normalizer) -> Generator[Event]:
    feed, failure = normalizer.feed, None
    with closing(iter_chunks(source)) as parts:
        while True:
            try:
                events = feed(next(parts))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            yield from events
    events, failure = _closing(normalizer, failure)
    yield from events
    _fail(failure)


def _closing(normalizer: Normalizer, failure: Exception | None) -> tuple[list[Event], Exception | None]:
    """The events that close what is open, and what the reading is to fail with."""
    try:
        return normalizer.finish(), failure
    except Exception as error:
        if failure is None:
            return _closing(normalizer, error)[0], error
        return [], failure  # the error under way says more than its consequences would


def _fail(failure: Exception | None) -> None:
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame
