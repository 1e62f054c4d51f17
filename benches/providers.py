"""The other providers' streams, from their bytes to the log and out as SSE bytes: against the SDK, over a bare parse.

Each group is `normalize`'s work on another wire format. The SDKs read the same bytes through a mock transport of their
own HTTP client, botocore through the entry of its event streams. LM Studio's API and codex have none.
1. The fold of each stream is checked against the text that it was made of; an SDK that gives fewer chunks is no side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benches import streams
from benches.harness import Absent, Group, Line, Scale, Setup, Side, repeated
from benches.normalize import ASK, CHUNKS, HEADERS, floor, ours, serde

Read = Callable[[], Iterable[object]]
"""One request: the chunks of the whole answer."""


def gemini_sdk(pieces: list[bytes]) -> Read:
    import httpx2
    from google import genai

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=iter(pieces)))
    options = genai.types.HttpOptions(httpx_client=httpx2.Client(transport=transport))
    client = genai.Client(api_key="-", http_options=options)
    return lambda: client.models.generate_content_stream(model="gemini-2.5-flash", contents="Go on.")


def ollama_sdk(pieces: list[bytes]) -> Read:
    import httpx
    import ollama

    headers = {"content-type": "application/x-ndjson"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=iter(pieces)))
    client = ollama.Client(transport=transport)
    return lambda: client.chat(model="llama3.2", messages=ASK, stream=True)


def mistral_sdk(pieces: list[bytes]) -> Read:
    import httpx2
    from mistralai.client import Mistral

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=HEADERS, content=iter(pieces)))
    client = Mistral(api_key="-", client=httpx2.Client(transport=transport))
    return lambda: client.chat.stream(model="mistral-small-latest", messages=ASK)


def cohere_sdk(pieces: list[bytes]) -> Read:
    import cohere
    import httpx

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=HEADERS, content=iter(pieces)))
    client = cohere.ClientV2(api_key="-", httpx_client=httpx.Client(transport=transport))
    return lambda: client.chat_stream(model="command-a-03-2025", messages=ASK)


def bedrock_sdk(pieces: list[bytes]) -> Read:
    import botocore.eventstream
    import botocore.parsers
    import botocore.session

    class Body:
        """What botocore reads of urllib3's response."""

        def stream(self) -> Iterator[bytes]:
            return iter(pieces)

    model = botocore.session.Session().get_service_model("bedrock-runtime").operation_model("ConverseStream")
    shape = model.get_event_stream_output()
    parser = botocore.parsers.EventStreamJSONParser()
    return lambda: botocore.eventstream.EventStream(Body(), shape, parser, "ConverseStream")


def sdk(package: str, make: Callable[[list[bytes]], Read], events: list[bytes], chunks: int) -> Side | Absent:
    name = f"{package} SDK"
    try:
        does = f"{version(package)}, sync client: chunk objects, unread"
        read = make(events)
    except (ImportError, PackageNotFoundError) as error:
        return Absent(name, f"no {error.name}")

    def run() -> int:
        return sum(1 for _ in read())

    if run() < chunks:
        raise AssertionError(f"{name} gives fewer chunks than the stream has")
    return Side(name, does, repeated(run, chunks))


def check(provider: str, events: list[bytes], chunks: int) -> None:
    import turnstream as ts

    session = ts.Hub().session()
    turn = session.turn()
    feed = turn.normalizer(provider)
    feed.feed(b"".join(events))
    feed.finish()
    turn.complete()
    said = "".join(message.get("text", "") for message in session.messages())
    if said != "".join(streams.tokens(chunks)):
        raise AssertionError(f"{provider}: the fold has another text than the stream was made of")


@contextmanager
def group(
    title: str,
    provider: str,
    make: Callable[[int], list[bytes]],
    client: tuple[str, Callable[[list[bytes]], Read]] | None,
    *,
    deltas: bool,
    scale: Scale,
) -> Iterator[Group]:
    chunks = scale.items(CHUNKS)
    events = make(chunks)
    check(provider, events, chunks)
    line = floor(f"{title} → log → SSE, over a bare typed parse")
    # A message that comes whole is opened, said and closed: three events, which is no chunk's work.
    lines = [line if deltas else replace(line, target=None)]
    with ExitStack() as stack:
        sides: list[Any] = [ours(provider, events, chunks), serde("owned", events, chunks, stack, provider)]
        if client:
            package, reader = client
            sides.insert(1, sdk(package, reader, events, chunks))
            against = Line(f"{title} → log → SSE, against {package}", f"{package} SDK", "turnstream")
            lines.insert(0, against)
        yield Group(
            f"{title}, {chunks} chunks of {sum(map(len, events)) // len(events)} bytes, one event a read",
            {"cpu": "µs CPU per chunk"},
            sides,
            lines,
            scale.rounds(11),
        )


def setup(
    title: str,
    provider: str,
    make: Callable[[int], list[bytes]],
    client: tuple[str, Callable[[list[bytes]], Read]] | None,
    *,
    deltas: bool = True,
) -> Setup:
    return lambda scale: group(title, provider, make, client, deltas=deltas, scale=scale)


GROUPS: dict[str, Setup] = {
    "provider-gemini": setup("Gemini", "gemini", streams.gemini, ("google-genai", gemini_sdk)),
    "provider-ollama": setup("Ollama", "ollama", streams.ollama, ("ollama", ollama_sdk)),
    "provider-mistral": setup("Mistral", "openai-chat", streams.mistral, ("mistralai", mistral_sdk)),
    "provider-cohere": setup("Cohere", "cohere", streams.cohere, ("cohere", cohere_sdk)),
    "provider-bedrock": setup("Bedrock Converse", "bedrock", streams.bedrock, ("botocore", bedrock_sdk)),
    "provider-lmstudio": setup("LM Studio", "lmstudio", streams.lmstudio, None),
    "provider-codex": setup("codex app server", "codex", streams.codex, None),
    "provider-codex-exec": setup("codex exec, a message a chunk", "codex", streams.codex_exec, None, deltas=False),
}
