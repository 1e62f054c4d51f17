"""Reading a provider's stream: its bytes to events in the log and out as SSE bytes, against what reads it today.

Each side gets the same bytes in the same pieces and no network: the SDKs through a mock transport of their own HTTP
client, turnstream through `turn.normalizer`. The SDKs do less: they make chunk objects; nothing is kept or encoded.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches import native, streams
from benches.harness import HERE, Absent, Cost, Group, Line, Scale, Side, Worker, at_least, at_most, repeated

CHUNKS = 2000
HEADERS = {"content-type": "text/event-stream"}
ASK: list[Any] = [{"role": "user", "content": "Go on."}]
SERDE_REPEATS = 20
"""A parse of the whole stream is over in two milliseconds; so often it is done for one reading of the clock."""


def ours(provider: str, pieces: list[bytes], chunks: int, name: str = "turnstream") -> Side:
    """A session, a turn, the bytes into it, all its frames out of it, and the session's end."""
    import turnstream as ts

    hub = ts.Hub()

    def run() -> int:
        session = hub.session()
        turn = session.turn()
        feed = turn.normalizer(provider)
        for piece in pieces:
            feed.feed(piece)
        feed.finish()
        turn.complete()
        size = sum(len(frames) for frames in session.frames(deltas="exact"))
        hub.delete(session.id)
        return size

    if run() < chunks * 100:
        raise AssertionError("fewer SSE bytes than the deltas must make")
    return Side(name, "feed → log, folded → SSE frames, every delta by itself", repeated(run, chunks))


def openai_sdk(pieces: list[bytes], chunks: int) -> Side:
    import httpx2
    import openai

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=iter(pieces)))
    client = openai.OpenAI(api_key="-", http_client=httpx2.Client(transport=transport))

    def run() -> None:
        for _ in client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True):
            pass

    return Side("openai SDK", f"{openai.__version__}, sync client: chunk objects, unread", repeated(run, chunks))


def anthropic_sdk(pieces: list[bytes], chunks: int) -> Side:
    import anthropic
    import httpx2

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=iter(pieces)))
    client = anthropic.Anthropic(api_key="-", http_client=httpx2.Client(transport=transport))

    def run() -> None:
        for _ in client.messages.create(model="claude", max_tokens=1, messages=ASK, stream=True):
            pass

    return Side("anthropic SDK", f"{anthropic.__version__}, sync client: event objects, unread", repeated(run, chunks))


def responses_sdk(pieces: list[bytes], chunks: int) -> Side:
    import httpx2
    import openai

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=iter(pieces)))
    client = openai.OpenAI(api_key="-", http_client=httpx2.Client(transport=transport))

    def run() -> None:
        for _ in client.responses.create(model="gpt-4.1", input="Go on.", stream=True):
            pass

    return Side("openai SDK", f"{openai.__version__}, sync client: event objects, unread", repeated(run, chunks))


def pydantic_ai(pieces: list[bytes], chunks: int, stack: ExitStack) -> Side | Absent:
    try:
        import pydantic_ai as package
        from pydantic_ai.direct import model_request_stream
        from pydantic_ai.messages import ModelRequest
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
    except ImportError as error:
        return Absent("pydantic-ai", f"no {error.name}")
    import httpx2
    import openai

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=body()))
    client = openai.AsyncOpenAI(api_key="-", http_client=httpx2.AsyncClient(transport=transport))
    model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
    loop = stack.enter_context(asyncio.Runner())

    async def read() -> None:
        async with model_request_stream(model, [ModelRequest.user_text_prompt("Go on.")]) as stream:
            async for _ in stream:
                pass

    return Side(
        "pydantic-ai",
        f"{package.__version__}, on the async openai SDK: its own events, unread",
        repeated(lambda: loop.run(read()), chunks),
    )


def litellm(pieces: list[bytes], chunks: int, stack: ExitStack) -> Side | Absent:
    python = HERE.parent / ".venv-litellm" / "bin" / "python"
    if not python.exists():
        return Absent("litellm", "litellm environment")
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "pieces.json"
    scratch.write_text(json.dumps([piece.decode("latin-1") for piece in pieces]))
    # Without it litellm fetches its price list from the network when imported.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(HERE.parent)}
    worker = Worker(str(python), "-m", "benches.litellm_side", str(scratch), str(chunks), env=environment)
    stack.callback(worker.close)
    return Side(
        "litellm", f"{worker.hello['version']}, own process: chunk objects, text read", lambda: worker.ask("")["cost"]
    )


def serde(
    kind: str, events: list[bytes], chunks: int, stack: ExitStack, provider: str = "openai-chat"
) -> Side | Absent:
    name = f"serde_json, {kind}"
    try:
        program = native.build("serde_parse") / "serde_parse"
    except native.NotBuilt as reason:
        return Absent(name, str(reason))
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stream"
    scratch.write_bytes(b"".join(events))
    worker = Worker(str(program), str(scratch), provider, kind)
    stack.callback(worker.close)

    def run() -> Cost:
        before = worker.cpu()
        worker.ask(SERDE_REPEATS)
        return {"cpu": (worker.cpu() - before) * 1e6 / (chunks * SERDE_REPEATS)}

    return Side(name, f"Rust, own process: typed chunks with {kind} strings, dropped at once", run)


def floor(title: str) -> Line:
    """How far turnstream is above the owned parse, with what is aimed at."""
    return Line(title, "turnstream", "serde_json, owned", at_most(3), floor=True)


@contextmanager
def openai_chat(scale: Scale) -> Iterator[Group]:
    chunks = scale.items(CHUNKS)
    events = streams.openai_chat(chunks)
    with ExitStack() as stack:
        yield Group(
            f"OpenAI chat, {chunks} chunks of {sum(map(len, events)) // len(events)} bytes, one event a read",
            {"cpu": "µs CPU per chunk"},
            [
                ours("openai-chat", events, chunks),
                openai_sdk(events, chunks),
                pydantic_ai(events, chunks, stack),
                litellm(events, chunks, stack),
                serde("owned", events, chunks, stack),
                serde("borrowed", events, chunks, stack),
            ],
            [
                Line("OpenAI chat → log → SSE, against the openai SDK", "openai SDK", "turnstream", at_least(150)),
                Line("… against pydantic-ai", "pydantic-ai", "turnstream"),
                Line("… against litellm", "litellm", "turnstream"),
                floor("… over a bare typed parse"),
                Line("… over a bare typed parse that copies nothing", "turnstream", "serde_json, borrowed", floor=True),
            ],
            scale.rounds(11),
        )


@contextmanager
def openai_chat_parsed(scale: Scale) -> Iterator[Group]:
    """No chunk is like the one before, so that every one of them is parsed."""
    chunks = scale.items(CHUNKS)
    events = streams.openai_chat(chunks, answers=2)
    yield Group(
        f"OpenAI chat, {chunks} chunks of two answers in turn, one event a read: every chunk is parsed",
        {"cpu": "µs CPU per chunk"},
        [ours("openai-chat", events, chunks), openai_sdk(events, chunks)],
        [Line("OpenAI chat, two answers in turn, against the openai SDK", "openai SDK", "turnstream")],
        scale.rounds(11),
    )


@contextmanager
def relay(scale: Scale) -> Iterator[Group]:
    """The same work as an application writes it: `await turn.relay(source)`, and a client that reads meanwhile."""
    import httpx2
    import openai

    import turnstream as ts

    chunks = scale.items(CHUNKS)
    events = streams.openai_chat(chunks)
    hub = ts.Hub()

    async def body() -> AsyncIterator[bytes]:
        for piece in events:
            yield piece

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=body()))
    client = openai.AsyncOpenAI(api_key="-", http_client=httpx2.AsyncClient(transport=transport))

    async def sdk() -> None:
        async for _ in await client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True):
            pass

    async def ours() -> None:
        session = hub.session()

        async def frames() -> int:
            return sum([len(frames) async for frames in session.frames(deltas="exact")])

        reading = asyncio.create_task(frames())
        with session.turn() as turn:
            await turn.relay(body(), provider="openai-chat")
        if await reading < chunks * 100:
            raise AssertionError("fewer SSE bytes than the deltas must make")
        hub.delete(session.id)

    with asyncio.Runner() as loop:
        yield Group(
            f"OpenAI chat, {chunks} chunks, one event a read, from an async iterator",
            {"cpu": "µs CPU per chunk"},
            [
                Side(
                    "turnstream",
                    "turn.relay into the log, async for over its frames",
                    repeated(lambda: loop.run(ours()), chunks),
                ),
                Side(
                    "openai SDK",
                    f"{openai.__version__}, async client: unread",
                    repeated(lambda: loop.run(sdk()), chunks),
                ),
            ],
            [Line("`await turn.relay` → log → SSE, against the async openai SDK", "openai SDK", "turnstream")],
            scale.rounds(11),
        )


@contextmanager
def openai_chat_4k(scale: Scale) -> Iterator[Group]:
    chunks = scale.items(CHUNKS)
    pieces = streams.pieces(streams.openai_chat(chunks), 4096)
    yield Group(
        f"the same {chunks} chunks in reads of 4 KiB",
        {"cpu": "µs CPU per chunk"},
        [ours("openai-chat", pieces, chunks), openai_sdk(pieces, chunks)],
        [
            Line(
                "OpenAI chat → log → SSE, reads of 4 KiB, against the openai SDK",
                "openai SDK",
                "turnstream",
                at_least(150),
            )
        ],
        scale.rounds(11),
    )


def deltas(name: str, provider: str, events: list[bytes], sdk: Side, scale: Scale) -> Iterator[Group]:
    """One event a read, against the provider's own SDK and a bare typed parse."""
    chunks = scale.items(CHUNKS)
    with ExitStack() as stack:
        yield Group(
            f"{name}, {chunks} deltas of {sum(map(len, events)) // len(events)} bytes, one event a read",
            {"cpu": "µs CPU per delta"},
            [ours(provider, events, chunks), sdk, serde("owned", events, chunks, stack, provider)],
            [
                Line(f"{name} → log → SSE, against the {sdk.name}", sdk.name, "turnstream", at_least(50)),
                floor(f"{name} → log → SSE, over a bare typed parse"),
            ],
            scale.rounds(11),
        )


@contextmanager
def anthropic(scale: Scale) -> Iterator[Group]:
    chunks = scale.items(CHUNKS)
    events = streams.anthropic(chunks)
    yield from deltas("Anthropic", "anthropic", events, anthropic_sdk(events, chunks), scale)


@contextmanager
def responses(scale: Scale) -> Iterator[Group]:
    chunks = scale.items(CHUNKS)
    events = streams.openai_responses(chunks)
    yield from deltas("OpenAI responses", "openai-responses", events, responses_sdk(events, chunks), scale)


@contextmanager
def objects(scale: Scale) -> Iterator[Group]:
    """Both sides end with the answer's text joined in Python; the other side parses JSON and normalises nothing."""
    import httpx
    import httpx_sse
    import orjson

    import turnstream as ts

    chunks = scale.items(CHUNKS)
    events = streams.openai_chat(chunks)
    text = "".join(streams.tokens(chunks))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=HEADERS, content=iter(events)))
    client = httpx.Client(transport=transport)

    def dicts() -> str:
        parts: list[str] = []
        with httpx_sse.connect_sse(client, "POST", "http://localhost/") as source:
            for sse in source.iter_sse():
                if sse.data != "[DONE]":
                    for choice in orjson.loads(sse.data)["choices"]:
                        parts.append(choice["delta"].get("content") or "")
        return "".join(parts)

    def typed() -> str:
        parts: list[str] = []
        normalizer = ts.Normalizer("openai-chat")
        for piece in events:
            for event in normalizer.feed(piece):
                if isinstance(event, ts.TextDelta):
                    parts.append(event.text)
        normalizer.finish()
        return "".join(parts)

    def side(name: str, does: str, run: Callable[[], str]) -> Side:
        if run() != text:
            raise AssertionError(f"{name} reads another text")
        return Side(name, does, repeated(run, chunks))

    yield Group(
        f"OpenAI chat, {chunks} chunks, one event a read, to Python objects whose text is read",
        {"cpu": "µs CPU per chunk"},
        [
            side("turnstream", "Normalizer.feed: normalized event objects", typed),
            side("httpx-sse + orjson", f"{version('httpx-sse')} + {orjson.__version__}: dicts, not normalized", dicts),
        ],
        [
            Line(
                "OpenAI chat → Python objects, against httpx-sse + orjson",
                "httpx-sse + orjson",
                "turnstream",
                at_least(1),
            )
        ],
        scale.rounds(11),
    )


GROUPS = {
    "normalize": openai_chat,
    "normalize-4k": openai_chat_4k,
    "normalize-parsed": openai_chat_parsed,
    "relay": relay,
    "normalize-anthropic": anthropic,
    "normalize-responses": responses,
    "objects": objects,
}
