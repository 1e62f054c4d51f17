"""`chunks` and `iter_chunks` over every kind of source, with the real clients on a real socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from mistralai.client import Mistral
from scripted import ANTHROPIC, CUT, GEMINI, HANG, OLLAMA, OPENAI_BODY, OPENAI_CHAT, ScriptedServer
from support import within

import turnstream as ts
from turnstream.sources import MAX_CHUNK_BYTES, chunks, iter_chunks

pytestmark = pytest.mark.timeout(120)

WAIT_S = 60.0
BODY = b"".join(OPENAI_CHAT)
ANTHROPIC_BODY = b"".join(ANTHROPIC)
CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


Run = Callable[[Awaitable[Any]], Any]


@pytest.fixture
def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """Runs one piece of work on a loop of its own; each test that asks for it runs on asyncio and on uvloop."""

    def run(work: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(work, WAIT_S)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(bounded())

    return run


def fact(event: ts.Event) -> dict[str, Any]:
    """An event without what differs from run to run."""
    return {name: value for name, value in event.to_dict().items() if name != "time"}


def facts(source: Any, provider: str) -> list[dict[str, Any]]:
    return [fact(event) for event in ts.normalize(source, provider=provider)]


async def gather(source: Any) -> bytes:
    return b"".join([chunk async for chunk in chunks(source)])


async def ticking(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


# --- bodies and iterables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"ab", b"ab"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ("é\ud800", "é\ufffd".encode()),
        ("\ud83d\ude00", "😀".encode()),
        ({"a": "é"}, '{"a":"é"}\n'.encode()),
        ({"a": b"\xff", "b": ({"c": 1},)}, b'{"a":"/w==","b":[{"c":1}]}\n'),
        ([b"a", "b", bytearray(b"c")], b"abc"),
        ([{"a": 1}, {"b": 2}], b'{"a":1}\n{"b":2}\n'),
        ([], b""),
        (b"", b""),
    ],
)
def test_bodies_and_iterables(source: Any, expected: bytes, run: Run) -> None:
    assert b"".join(iter_chunks(source)) == expected
    assert run(gather(source)) == expected
    if isinstance(source, list):
        assert run(gather(ticking(source))) == expected
        assert b"".join(iter_chunks(iter(source))) == expected


@pytest.mark.parametrize("source", [5, None, object(), [5], [None]])
def test_what_is_no_source_is_said_so(source: Any, run: Run) -> None:
    with pytest.raises(ts.UnsupportedSource, match=r"source: \w+"):
        list(iter_chunks(source))
    with pytest.raises(ts.UnsupportedSource):
        run(gather(source))


def test_an_async_source_without_a_loop_is_said_so() -> None:
    with pytest.raises(ts.UnsupportedSource, match="async for"):
        list(iter_chunks(ticking([b"a"])))


def deep(levels: int) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(levels):
        nested = {"a": nested}
    return nested


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    "item",
    [None, 5, deep(100_000), CYCLE, {("a", "b"): 1}, {"a": {1}}],
    ids=["None", "int", "deep", "cycle", "key", "set"],
)
def test_an_item_that_is_none_is_said_with_its_place(item: Any, run: Run) -> None:
    async def read(source: Any) -> list[bytes]:
        return [chunk async for chunk in chunks(source)]

    for attempt in (lambda: list(iter_chunks([b"a", item])), lambda: run(read([b"a", item]))):
        with pytest.raises(ts.UnsupportedSource, match=rf"item 2, .*{type(item).__name__}"):
            attempt()


def test_a_path_is_no_source(tmp_path: Path, run: Run) -> None:
    async def read() -> list[bytes]:
        return [chunk async for chunk in chunks(tmp_path)]

    for attempt in (lambda: list(iter_chunks(tmp_path)), lambda: run(read())):
        with pytest.raises(ts.UnsupportedSource, match="path"):
            attempt()


def test_what_enters_as_itself_is_no_source(run: Run) -> None:
    class Context:
        def __enter__(self) -> Context:
            return self

        def __exit__(self, *_: object) -> None: ...

        async def __aenter__(self) -> Context:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    async def read() -> list[bytes]:
        return [chunk async for chunk in chunks(Context())]

    for attempt in (lambda: list(iter_chunks(Context())), lambda: run(read())):
        with pytest.raises(ts.UnsupportedSource, match="Context"):
            attempt()


def test_server_sent_events_of_another_reader_are_framed_again() -> None:
    body = b"event: ping\ndata: a\ndata: b\n\n"
    frames = ts.SSEDecoder().feed(b"id: 1\n" + body)
    assert b"".join(iter_chunks(frames)) == body


def test_a_large_body_comes_in_pieces() -> None:
    body = bytes(range(256)) * 4096
    pieces = list(iter_chunks(body))
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= MAX_CHUNK_BYTES


def test_a_source_that_is_always_ready_lets_others_run(run: Run) -> None:
    """Invariant 3."""

    async def main() -> int:
        turns = 0
        done = False

        async def other() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        async def ready() -> AsyncIterator[bytes]:
            until = time.thread_time() + 0.2
            while time.thread_time() < until:  # what the machine does meanwhile does not count
                yield b"x"

        task = asyncio.ensure_future(other())
        async for _ in chunks(ready()):
            pass
        done = True
        await task
        return turns

    assert run(main()) > 10


def test_an_exception_of_the_users_own_iterable_passes_as_it_is() -> None:
    class Mine(Exception):
        pass

    def failing() -> Iterator[bytes]:
        yield b"a"
        raise Mine

    seen: list[bytes] = []
    with pytest.raises(Mine):
        seen.extend(iter_chunks(failing()))
    assert seen == [b"a"]


def test_leaving_early_closes_generators(run: Run) -> None:
    closed = []

    def plain() -> Iterator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append("plain")

    async def looped() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append("looped")

    for first in (parts := iter_chunks(plain())):
        assert first == b"a"
        break
    parts.close()

    async def main() -> None:
        parts = chunks(looped())
        assert await anext(parts) == b"a"
        await parts.aclose()

    run(main())
    assert closed == ["plain", "looped"]


def test_a_cancel_reaches_an_async_iterator(run: Run) -> None:
    async def main() -> list[str]:
        events: list[str] = []
        parked = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                parked.set()
                await asyncio.Event().wait()
            finally:
                events.append("closed")

        task = asyncio.ensure_future(gather(source()))
        await parked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return events

    assert run(main()) == ["closed"]


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_are_lines_of_what_the_server_sent() -> None:
    """Invariant 4: no default of the SDK's models becomes the server's word."""
    payloads = [json.loads(line[6:]) for line in BODY.decode().splitlines() if line.startswith("data: {")]
    models = [openai.types.chat.ChatCompletionChunk.model_validate(payload) for payload in payloads]
    lines = b"".join(iter_chunks(models)).splitlines()
    assert [json.loads(line) for line in lines] == payloads


def test_a_whole_model_is_one_line() -> None:
    model = openai.types.chat.ChatCompletion.model_validate_json(OPENAI_BODY)
    (line,) = iter_chunks(model)
    assert json.loads(line) == json.loads(OPENAI_BODY)
    assert line.endswith(b"\n")


# --- responses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_httpx_responses(server: ScriptedServer, library: Any, run: Run) -> None:
    url = server.script("/s", OPENAI_CHAT)

    async def looped() -> bytes:
        async with library.AsyncClient() as client, client.stream("GET", url) as response:
            body = await gather(response)
            assert response.is_closed
            return body

    async def not_entered() -> bytes:
        async with library.AsyncClient() as client:
            return await gather(client.stream("GET", url))

    async def read_before() -> bytes:
        async with library.AsyncClient() as client:
            return await gather(client.get(url))

    async def blocking_client_in_a_loop() -> bytes:
        with library.Client() as client, client.stream("GET", url) as response:
            return await gather(response)

    for work in (looped, not_entered, read_before, blocking_client_in_a_loop):
        assert run(work()) == BODY, work.__name__
    with library.Client() as client:
        with client.stream("GET", url) as response:
            assert b"".join(iter_chunks(response)) == BODY
            assert response.is_closed
        assert b"".join(iter_chunks(client.get(url))) == BODY
        assert b"".join(iter_chunks(client.stream("GET", url))) == BODY
        with client.stream("GET", url) as response:
            assert b"".join(iter_chunks(response.iter_lines())).replace(b"\n", b"") == BODY.replace(b"\n", b"")


def test_lines_without_their_ends_are_still_frames(server: ScriptedServer, run: Run) -> None:
    url = server.script("/s", OPENAI_CHAT)

    async def looped() -> bytes:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            return await gather(response.aiter_lines())

    assert run(looped()) == BODY


def test_a_compressed_response_is_decoded(server: ScriptedServer, run: Run) -> None:
    url = server.script("/s", [gzip.compress(BODY)], content_encoding="gzip")

    async def looped() -> bytes:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            return await gather(response)

    assert run(looped()) == BODY


def test_aiohttp_responses(server: ScriptedServer, run: Run) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    url = server.script("/s", OPENAI_CHAT)
    refused = server.script("/e", [b"slow down"], 429, retry_after="7")
    cut = server.script("/c", [OPENAI_CHAT[0], CUT])
    hang = server.script("/h", [OPENAI_CHAT[0], HANG])

    async def looped() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as response:
                assert await gather(response) == BODY
                assert response.closed
            assert await gather(session.get(url)) == BODY
            with pytest.raises(ts.HTTPStatusError) as caught:
                await gather(session.get(refused))
            assert (caught.value.status, caught.value.body, caught.value.retry_after) == (429, b"slow down", "7")
            with pytest.raises(ts.SourceError) as broken:
                await gather(session.get(cut))
            assert broken.value.retryable
            parts = chunks(session.get(hang))
            assert await anext(parts) == OPENAI_CHAT[0]
            await parts.aclose()

    run(looped())
    assert server.left.wait(WAIT_S)


def test_requests_responses(server: ScriptedServer, run: Run) -> None:
    requests = pytest.importorskip("requests")
    url = server.script("/s", OPENAI_CHAT)
    assert b"".join(iter_chunks(requests.get(url, stream=True, timeout=WAIT_S))) == BODY
    assert run(gather(requests.get(url, stream=True, timeout=WAIT_S))) == BODY


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (401, False), (404, False), (408, True), (429, True), (500, True), (529, True)],
)
def test_a_bad_status_is_a_typed_error(server: ScriptedServer, status: int, retryable: bool, run: Run) -> None:
    """Invariant 2."""
    url = server.script("/e", [b'{"error":', b'{"message":"secret"}}'], status, retry_after="3")

    async def looped() -> ts.HTTPStatusError:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            with pytest.raises(ts.HTTPStatusError) as caught:
                await gather(response)
            assert response.is_closed
            return caught.value

    with httpx.Client() as client, client.stream("GET", url) as response:
        with pytest.raises(ts.HTTPStatusError) as caught:
            list(iter_chunks(response))
        assert response.is_closed
    for error in (run(looped()), caught.value):
        assert (error.status, error.retryable, error.retry_after) == (status, retryable, "3")
        assert error.body == b'{"error":{"message":"secret"}}'
        assert str(error) == f"http status {status} from 127.0.0.1"


def test_the_body_of_an_error_is_bounded(server: ScriptedServer) -> None:
    url = server.script("/e", [b"x" * 50_000] * 3 + [HANG], 500)
    with (
        httpx.Client() as client,
        client.stream("GET", url) as response,
        pytest.raises(ts.HTTPStatusError) as caught,
    ):
        list(iter_chunks(response))
    assert len(caught.value.body) == 64 << 10


def test_a_connection_that_breaks_is_a_typed_error(server: ScriptedServer, run: Run) -> None:
    """Invariant 2: what came before is given first."""
    url = server.script("/c", [OPENAI_CHAT[0], CUT])
    seen: list[bytes] = []

    async def looped() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            async for chunk in chunks(response):
                seen.append(chunk)

    with pytest.raises(ts.SourceError) as caught:
        run(looped())
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, httpx.TransportError)
    with httpx.Client() as client, client.stream("GET", url) as response, pytest.raises(ts.SourceError):
        seen.extend(iter_chunks(response))
    assert seen == [OPENAI_CHAT[0]] * 2


def test_a_body_that_was_read_before_is_misuse(server: ScriptedServer) -> None:
    url = server.script("/s", OPENAI_CHAT)
    with httpx.Client() as client, client.stream("GET", url) as response:
        assert b"".join(response.iter_bytes()) == BODY
        with pytest.raises(ts.SourceError) as caught:
            list(iter_chunks(response))
    assert not caught.value.retryable


@pytest.mark.parametrize("client_kind", ["looped", "blocking"])
def test_a_cancel_closes_the_connection(server: ScriptedServer, client_kind: str, run: Run) -> None:
    """Invariant 1, for a client whose read sits on a thread too."""
    url = server.script("/h", [OPENAI_CHAT[0], HANG])

    async def main() -> None:
        first = asyncio.Event()

        async def read(response: Any) -> None:
            async for _ in chunks(response):
                first.set()

        async def looped() -> None:
            async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
                await read(response)

        async def blocking() -> None:
            with httpx.Client(timeout=None) as client, client.stream("GET", url) as response:  # noqa: ASYNC212
                await read(response)

        task = asyncio.ensure_future(looped() if client_kind == "looped" else blocking())
        await first.wait()
        await asyncio.sleep(0)
        with within(1.5):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
    assert server.left.wait(WAIT_S)
    assert threading.active_count() < 20


# --- SDK streams -----------------------------------------------------------------------------------------------------


def test_openai_streams_are_read_raw(server: ScriptedServer, run: Run) -> None:
    server.script("/v1/chat/completions", OPENAI_CHAT)

    async def looped() -> None:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(stream=True, **CHAT)
            assert await gather(stream) == BODY  # the comment proves it: no SDK gives comments on
            assert stream.response.is_closed
            assert await gather(client.chat.completions.create(stream=True, **CHAT)) == BODY
            assert await gather(client.chat.completions.stream(**CHAT)) == BODY
            async with client.chat.completions.stream(**CHAT) as entered:
                assert await gather(entered) == BODY
            assert await gather(client.chat.completions.with_raw_response.create(stream=True, **CHAT)) == BODY
            assert await gather(client.chat.completions.with_streaming_response.create(stream=True, **CHAT)) == BODY

    run(looped())
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
        assert b"".join(iter_chunks(client.chat.completions.create(stream=True, **CHAT))) == BODY
        assert b"".join(iter_chunks(client.chat.completions.stream(**CHAT))) == BODY
        assert run(gather(client.chat.completions.create(stream=True, **CHAT))) == BODY


def test_an_sdk_stream_that_was_begun_goes_on_as_models(server: ScriptedServer) -> None:
    server.script("/v1/chat/completions", OPENAI_CHAT)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
        stream = client.chat.completions.create(stream=True, **CHAT)
        assert next(stream).choices[0].delta.content == "Hel"
        rest = [json.loads(line) for line in b"".join(iter_chunks(stream)).splitlines()]
    assert [part["choices"][0]["delta"].get("content") for part in rest] == ["lo €", None]


def test_anthropic_streams_are_read_raw(server: ScriptedServer, run: Run) -> None:
    server.script("/v1/messages", ANTHROPIC)
    ask: Any = {**CHAT, "max_tokens": 5}

    async def looped() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as client:
            stream = await client.messages.create(stream=True, **ask)
            assert await gather(stream) == ANTHROPIC_BODY  # the ping proves it
            assert stream.response.is_closed
            assert await gather(client.messages.stream(**ask)) == ANTHROPIC_BODY
            async with client.messages.stream(**ask) as entered:
                assert await gather(entered) == ANTHROPIC_BODY

    run(looped())
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        assert b"".join(iter_chunks(client.messages.create(stream=True, **ask))) == ANTHROPIC_BODY
        assert b"".join(iter_chunks(client.messages.stream(**ask))) == ANTHROPIC_BODY


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
def test_google_genai_streams(server: ScriptedServer, run: Run) -> None:
    """Its generators hide the response, so their models are written down, under the names of the wire."""
    genai = pytest.importorskip("google.genai")
    server.script("/v1/models/m:streamGenerateContent", GEMINI)
    client = genai.Client(api_key="k", http_options={"base_url": server.url})
    sent = [json.loads(part[6:]) for part in GEMINI]

    def texts(body: bytes) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            line.pop("sdkHttpResponse", None)
        return lines

    assert texts(b"".join(iter_chunks(client.models.generate_content_stream(model="m", contents="hi")))) == sent

    async def looped() -> bytes:
        async with client.aio as looped_client:
            return await gather(looped_client.models.generate_content_stream(model="m", contents="hi"))

    assert texts(run(looped())) == sent


def test_google_genai_models_say_what_their_bytes_say(server: ScriptedServer) -> None:
    genai = pytest.importorskip("google.genai")
    server.script("/v1/models/m:streamGenerateContent", GEMINI)
    client = genai.Client(api_key="k", http_options={"base_url": server.url})
    models = client.models.generate_content_stream(model="m", contents="hi")
    assert facts(models, "gemini") == facts(b"".join(GEMINI), "gemini")


def test_mistral_streams_are_read_raw(server: ScriptedServer, run: Run) -> None:
    server.script("/v1/chat/completions", OPENAI_CHAT)
    with Mistral(api_key="k", server_url=server.url) as client:
        assert b"".join(iter_chunks(client.chat.stream(model="m", messages=CHAT["messages"]))) == BODY

    async def looped() -> bytes:
        async with Mistral(api_key="k", server_url=server.url) as client:
            return await gather(client.chat.stream_async(model="m", messages=CHAT["messages"]))

    assert run(looped()) == BODY


def test_ollama_models_say_what_their_bytes_say(server: ScriptedServer, run: Run) -> None:
    server.script("/api/chat", OLLAMA, content_type="application/x-ndjson")
    sent = facts(b"".join(OLLAMA), "ollama")
    with ollama.Client(host=server.url) as client:
        assert facts(client.chat(model="m", messages=CHAT["messages"], stream=True), "ollama") == sent

    async def looped() -> list[dict[str, Any]]:
        async with ollama.AsyncClient(host=server.url) as client:
            stream = client.chat(model="m", messages=CHAT["messages"], stream=True)
            return [fact(event) async for event in ts.normalize(stream, provider="ollama")]

    assert run(looped()) == sent


def test_an_sdk_status_error_is_the_sdks_own(server: ScriptedServer, run: Run) -> None:
    """It is raised where the caller makes the request, before there is a source."""
    server.script("/v1/chat/completions", [b'{"error":{"message":"no"}}'], 400, content_type="application/json")

    async def looped() -> None:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as client:
            await gather(client.chat.completions.create(stream=True, **CHAT))

    with pytest.raises(openai.BadRequestError):
        run(looped())


# --- objects without a raw response ----------------------------------------------------------------------------------


def test_wrappers_without_a_response_are_iterated(run: Run) -> None:
    """The shape of litellm's CustomStreamWrapper: both kinds of iteration, models out, no response."""

    class Wrapper:
        def __init__(self) -> None:
            self.left = [{"n": 1}, {"n": 2}]
            self.closed = False

        def __iter__(self) -> Wrapper:
            return self

        def __next__(self) -> dict[str, int]:
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

        def __aiter__(self) -> Wrapper:
            return self

        async def __anext__(self) -> dict[str, int]:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

        async def aclose(self) -> None:
            self.closed = True

    assert b"".join(iter_chunks(Wrapper())) == b'{"n":1}\n{"n":2}\n'
    wrapper = Wrapper()
    assert run(gather(wrapper)) == b'{"n":1}\n{"n":2}\n'
    assert wrapper.closed
