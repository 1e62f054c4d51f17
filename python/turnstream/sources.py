"""What a model call may hand over, as chunks of bytes: `chunks` for a loop, `iter_chunks` for code without one.

Owns: telling responses, SDK streams, iterables and whole bodies apart, by their shape alone; freeing them. Refuses to
know any provider's format, and imports no client library. Invariants:

1. An HTTP response, an SDK's stream object's too, is read as decoded bytes and closed however the reading ends.
2. A status of 400 and above is an `HTTPStatusError` before the first chunk; what breaks while a response is read is a
   `SourceError`. An exception of the user's own iterable passes as it is.
3. A source that is always ready lets the other tasks of its loop run every 5 ms; a chunk is at most 256 KiB.
4. Dicts and SDK models are one line of JSON each.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import aclosing, closing, suppress
from os import PathLike
from types import coroutine
from typing import Any

from turnstream.errors import HTTPStatusError, SourceError, TurnstreamError, UnsupportedSource

__all__ = ["chunks", "iter_chunks"]

MAX_CHUNK_BYTES = 256 << 10
MAX_ERROR_BODY_BYTES = 64 << 10
FAIR_S = 0.005
THREAD_EXIT_S = 2.0
"""How long a cancelled read waits for the thread whose socket it has shut down."""

_END: Any = object()


async def chunks(source: Any) -> AsyncGenerator[bytes]:
    """The source's bytes, as they come.

    `source`: an async or plain iterable of bytes, str, dicts or SDK models; a response of httpx, aiohttp or requests;
    a stream object of an SDK (the raw response behind it is read where there is one); one of these still to be awaited
    or entered; or one whole body (bytes, str, dict, SDK model). Responses of blocking clients are read on a thread.

    On cancel, and when the iterator is closed, the source is closed. Errors: see the module.
    """
    fair_until = time.monotonic() + FAIR_S
    async with aclosing(_open(source)) as parts:
        async for part in parts:
            for start in range(0, len(part), MAX_CHUNK_BYTES):
                yield part if len(part) <= MAX_CHUNK_BYTES else part[start : start + MAX_CHUNK_BYTES]
                if time.monotonic() > fair_until:
                    await _let_others_run()
                    fair_until = time.monotonic() + FAIR_S


def iter_chunks(source: Any) -> Generator[bytes]:
    """`chunks` for code without a loop. An async source is an `UnsupportedSource`."""
    with closing(_open_sync(source)) as parts:
        for part in parts:
            for start in range(0, len(part), MAX_CHUNK_BYTES):
                yield part if len(part) <= MAX_CHUNK_BYTES else part[start : start + MAX_CHUNK_BYTES]


# --- telling sources apart -------------------------------------------------------------------------------------------


async def _open(source: Any) -> AsyncGenerator[bytes]:
    if _is_whole(source):
        yield _encode(source)
    elif (response := _response_of(source)) is not None:
        async with aclosing(_read_response(response)) as parts:
            async for part in parts:
                yield part
    elif isinstance(source, Awaitable):
        async with aclosing(_open(await source)) as parts:
            async for part in parts:
                yield part
    elif hasattr(source, "__aiter__"):
        encode = _line_encoder(source)
        items = aiter(source)
        number = 0
        try:
            async for item in items:
                number += 1
                yield encode(item, number)
        finally:
            await _aclose(items)
    elif hasattr(source, "__aenter__"):
        async with source as entered:
            if entered is source:
                raise _unsupported(source)
            async with aclosing(_open(entered)) as parts:
                async for part in parts:
                    yield part
    elif isinstance(source, Iterable) or hasattr(source, "__enter__"):
        with closing(_open_sync(source)) as plain:
            for part in plain:
                yield part
    else:
        raise _unsupported(source)


def _open_sync(source: Any) -> Generator[bytes]:
    if _is_whole(source):
        yield _encode(source)
    elif (response := _response_of(source)) is not None:
        yield from _read_response_sync(response)
    elif isinstance(source, Iterable):
        encode = _line_encoder(source)
        items = iter(source)
        try:
            for number, item in enumerate(items, 1):
                yield encode(item, number)
        finally:
            if isinstance(items, Generator):
                items.close()
    elif hasattr(source, "__enter__") and not isinstance(source, PathLike):
        with source as entered:
            if entered is source:
                raise _unsupported(source)
            yield from _open_sync(entered)
    else:
        raise _unsupported(source)


def _is_whole(source: Any) -> bool:
    return isinstance(source, (bytes, str, bytearray, memoryview, Mapping)) or _is_model(source)


def _is_model(item: Any) -> bool:
    return callable(getattr(item, "model_dump_json", None)) or hasattr(type(item), "__fields__")


def _response_of(source: Any) -> Any | None:
    """The response that `source` is or stands before, unless somebody has begun to read it through the SDK."""
    for name in ("response", "http_response", "_response"):  # SDK streams, their raw wrappers, openai's `.stream()`
        inner = getattr(source, name, None)
        if inner is not None and _is_response(inner) and not getattr(inner, "is_stream_consumed", False):
            return inner
    return source if _is_response(source) else None  # last: the SDKs' wrappers look like responses, and are not


def _is_response(source: Any) -> bool:
    if hasattr(source, "status_code"):
        return hasattr(source, "iter_bytes") or hasattr(source, "aiter_bytes") or hasattr(source, "iter_content")
    return _is_aiohttp(source)


def _is_aiohttp(source: Any) -> bool:
    return hasattr(source, "status") and hasattr(getattr(source, "content", None), "iter_any")


def _is_async(response: Any) -> bool:
    """Whether a loop must read it. An httpx response has both ways; its stream tells which client made it."""
    if _is_aiohttp(response):
        return True
    if not hasattr(response, "aiter_bytes"):
        return False
    return not hasattr(response, "iter_bytes") or hasattr(getattr(response, "stream", None), "__aiter__")


def _unsupported(source: Any) -> UnsupportedSource:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if isinstance(source, Awaitable) or any(hasattr(source, name) for name in ("__aiter__", "__aenter__")):
        return UnsupportedSource(f"source: {kind} needs a running loop; read it with `async for`")
    if isinstance(source, PathLike):
        return UnsupportedSource(f"source: {kind} is a path; open the file, for bytes")
    return UnsupportedSource(f"source: {kind} is no response, no iterable, no SDK stream and no body")


# --- items to bytes --------------------------------------------------------------------------------------------------


def _encode(item: Any, number: int = 0) -> bytes:
    """The item's bytes; `number` is its place in the source, 0 where it is all of it."""
    if isinstance(item, bytes):
        return item
    try:
        return _written(item)
    except (TypeError, ValueError, RecursionError) as error:  # all that json and pydantic say of what is no JSON
        kind = f"{type(item).__module__}.{type(item).__qualname__}"
        which = f"item {number}, {kind}," if number else kind
        if isinstance(error, UnsupportedSource) and error.args == _unsupported(item).args:
            raise UnsupportedSource(f"source: {which} is neither bytes nor text, no dict and no SDK model") from None
        raise UnsupportedSource(f"source: {which} is no JSON: {error}") from error


def _written(item: Any) -> bytes:
    if isinstance(item, str):
        return _utf8(item)
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    data = getattr(item, "data", None)
    if isinstance(data, str) and hasattr(item, "event") and not _is_model(item):  # an event of some SSE reader
        name = f"event: {item.event}\n" if item.event else ""
        return _utf8(name + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n")
    return _utf8(_json(item)) + b"\n"


def _utf8(text: str) -> bytes:
    """Two halves of a character side by side are it; a lone one, which has no UTF-8, is U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _json(item: Any) -> str:
    if callable(dump := getattr(item, "model_dump_json", None)):
        # Only what the server sent, under its own names: the models' defaults are not the server's words.
        return str(dump(by_alias=True, exclude_unset=True, warnings=False))
    if _is_model(item):  # pydantic 1
        return str(item.json(by_alias=True, exclude_unset=True))
    if isinstance(item, (Mapping, list, tuple)):
        return json.dumps(item, default=_plain, ensure_ascii=False, separators=(",", ":"))
    if callable(to_dict := getattr(item, "to_dict", None)):
        return json.dumps(to_dict(), default=_plain, ensure_ascii=False, separators=(",", ":"))
    raise _unsupported(item)


def _plain(value: Any) -> Any:
    """What `json` cannot write by itself, inside a dict."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    return json.loads(_json(value))


def _line_encoder(source: Any) -> Callable[[Any, int], bytes]:
    """The clients' line iterators cut the line ends off, without which there are no frames."""
    if getattr(source, "__name__", None) in ("iter_lines", "aiter_lines"):
        return lambda line, number: _encode(line, number) + b"\n"
    return _encode


# --- responses -------------------------------------------------------------------------------------------------------


async def _read_response(response: Any) -> AsyncGenerator[bytes]:
    if not _is_async(response):
        async with aclosing(_read_on_thread(response)) as parts:
            async for part in parts:
                yield part
        return
    aiohttp = _is_aiohttp(response)
    parts = response.content.iter_any() if aiohttp else response.aiter_bytes()
    try:
        if _status(response) >= 400:
            body = bytearray()
            async for part in parts:
                body += part
                if len(body) >= MAX_ERROR_BODY_BYTES:
                    break
            raise _status_error(response, body)
        async for part in parts:
            yield part
    except TurnstreamError:
        raise
    except Exception as error:
        raise _broken(response, error) from error
    finally:
        await _aclose(parts)
        if aiohttp:
            response.close()
        else:
            await response.aclose()


def _read_response_sync(response: Any) -> Generator[bytes]:
    if _is_async(response) and not hasattr(getattr(response, "stream", None), "__iter__"):
        raise _unsupported(response)
    try:
        parts = response.iter_bytes() if hasattr(response, "iter_bytes") else response.iter_content(chunk_size=None)
        if _status(response) >= 400:
            body = bytearray()
            for part in parts:
                body += part
                if len(body) >= MAX_ERROR_BODY_BYTES:
                    break
            raise _status_error(response, body)
        yield from parts
    except TurnstreamError:
        raise
    except Exception as error:
        raise _broken(response, error) from error
    finally:
        response.close()


async def _read_on_thread(response: Any) -> AsyncGenerator[bytes]:
    """A blocking client's response, one thread hop (about 50 µs) per chunk. A cancel shuts the socket down, which is
    what wakes a thread that sits in `recv`."""
    import asyncio

    loop = asyncio.get_running_loop()
    parts = _read_response_sync(response)
    try:
        while True:
            step = loop.run_in_executor(None, next, parts, _END)
            try:
                part = await asyncio.shield(step)
            except asyncio.CancelledError:
                _shut_down(response)
                await asyncio.wait({step}, timeout=THREAD_EXIT_S)
                if step.done():
                    step.exception()  # seen: the read broke because it was told to
                raise
            if part is _END:
                return
            yield part
    finally:
        if parts.gi_running:  # type: ignore[attr-defined]
            response.close()
        else:
            parts.close()


def _shut_down(response: Any) -> None:
    import socket

    stream = getattr(response, "extensions", {}).get("network_stream")
    sock = stream.get_extra_info("socket") if stream is not None else None
    if sock is not None:
        with suppress(OSError):  # closed already
            sock.shutdown(socket.SHUT_RDWR)


def _status(response: Any) -> int:
    return int(response.status if _is_aiohttp(response) else response.status_code)


def _where(response: Any) -> str:
    try:
        return str(response.url.host)  # a response without a request raises
    except Exception:
        return "the server"


def _status_error(response: Any, body: bytearray) -> HTTPStatusError:
    status = _status(response)
    return HTTPStatusError(
        f"http status {status} from {_where(response)}",
        status=status,
        body=bytes(body[:MAX_ERROR_BODY_BYTES]),
        retry_after=response.headers.get("retry-after"),
    )


def _broken(response: Any, error: Exception) -> SourceError:
    # RuntimeErrors and their like are misuse, such as a body that was read before: trying again changes nothing.
    misuse = isinstance(error, (RuntimeError, TypeError, ValueError))
    return SourceError(f"reading from {_where(response)}: {type(error).__name__}: {error}", retryable=not misuse)


async def _aclose(items: Any) -> None:
    if (close := getattr(items, "aclose", None)) is not None:
        await close()


@coroutine
def _let_others_run() -> Generator[None]:
    """One turn of the loop, as `asyncio.sleep(0)`, without the 30 ms that importing asyncio costs."""
    yield
