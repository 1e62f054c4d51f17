"""The official SDKs' own accumulators read the recordings too, and agree with the fold.

Recordings go through the SDK's client over a mock transport, framed as a server would. A recording that the SDK itself
gives up on, with an exception, has no oracle; those are counted, and bounded. `DIFFERENT` says where the SDK loses or
mixes up what the provider said.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx2
import openai
import pytest

import turnstream as ts
from conftest import shared

CORPUS = shared("corpus")


class Answer(NamedTuple):
    """What both say of one answer."""

    text: str
    calls: list[tuple[str, Any]]
    finish: str | None


def recordings(*protocols: str) -> list[Path]:
    """The streamed recordings of these protocols."""
    named = [
        path.with_name(path.name.removesuffix(".expected.json"))
        for path in sorted(CORPUS.glob("*/*.expected.json"))
        if json.loads(path.read_bytes())["protocol"] in protocols
    ]
    streams = (Path(f"{path}.{end}") for path in named for end in ("sse", "chunks.jsonl"))
    return [path for path in streams if path.exists()]


def as_sse(path: Path) -> bytes:
    """The recording as a server sends it: frames with their names, and an end."""
    data = path.read_bytes()
    if path.suffix == ".sse":
        return data
    frames = []
    for line in data.decode().splitlines():
        if line.strip():
            chunk = json.loads(line)
            name = f"event: {chunk['type']}\n" if "type" in chunk else ""
            frames.append(f"{name}data: {line}\n\n")
    return "".join([*frames, "data: [DONE]\n\n"]).encode()


def transport(body: bytes) -> httpx2.Client:
    reply = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: reply))


def parsed(arguments: Any) -> Any:
    """Arguments as a value; what is no JSON, as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def chat(body: bytes) -> Answer:
    with transport(body) as http:
        client = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
        with client.chat.completions.stream(model="m", messages=[]) as stream:
            choice = stream.get_final_completion().choices[0]
    calls = [(call.function.name, parsed(call.function.arguments)) for call in choice.message.tool_calls or []]
    return Answer(choice.message.content or "", calls, choice.finish_reason)


def responses(body: bytes) -> Answer:
    with transport(body) as http:
        client = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
        with client.responses.stream(model="m", input="") as stream:
            response = stream.get_final_response()
    calls = [
        (item.name, parsed(item.arguments if item.type == "function_call" else json.dumps(item.input)))
        for item in response.output
        if item.type in ("function_call", "custom_tool_call")
    ]
    return Answer(response.output_text, calls, response.status)


def messages(body: bytes) -> Answer:
    with transport(body) as http:
        client = anthropic.Anthropic(api_key="k", http_client=http, max_retries=0)
        with client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
            message = stream.get_final_message()
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    return Answer(text, calls, message.stop_reason)


def ours(path: Path, provider: str) -> Answer:
    message = ts.fold(path.read_bytes(), provider=provider)
    calls = [
        (call.name, call.arguments if call.arguments_error is None else call.arguments_raw)
        for call in message.tool_calls
        if call.kind == "client"
    ]
    return Answer(message.text, calls, message.finish_reason_raw)


UNSEEN = "the last chunk is a `chat.completion.done`; the SDK does not take its finish reason"
DIFFERENT = {
    "mistral/rubyllm-chat_mistral_hybrid_reasoning_streams_thinking_separately_from_content-0": (
        "content is a list of parts, then a string; the SDK drops the list, and the answer's first digit with it"
    ),
    "openai-chat/llm-test_tools_streaming_variant_a-0": "the name is said twice; the SDK joins both",
    "openai-chat/llm-test_tools_streaming_variant_d-0": "null arguments: to us, a call without any",
    "others/rubyllm-chat_citations_with_perplexity_sonar_returns_search_result_citations_when_streaming-0": UNSEEN,
    "others/vercel-perplexity-citations": UNSEEN,
    "others/vercel-perplexity-text": UNSEEN,
    "anthropic/sdk-incomplete_partial_json_response": (
        "the limit cut the arguments; the SDK completes them, we never let half a call run"
    ),
    "anthropic/vercel-spliced-message-start": (
        "a second message begins inside the first; the SDK mixes them, we withdraw the first"
    ),
}
"""Recordings on which the SDK and we differ, and why: in each the SDK loses or mixes up what the provider said."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("provider", "protocols", "oracle", "least"),
    [
        ("openai-chat", ("openai-chat",), chat, 0.8),
        ("openai-responses", ("openai-responses",), responses, 0.85),
        ("anthropic", ("anthropic",), messages, 0.95),
    ],
)
def test_the_sdk_says_the_same(
    provider: str, protocols: tuple[str, ...], oracle: Callable[[bytes], Answer], least: float
) -> None:
    refused: Counter[str] = Counter()
    differ, agreed = [], 0
    paths = recordings(*protocols)
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydantic's, about models it has not seen
                theirs = oracle(as_sse(path))
        except Exception as error:  # its own, and what its models and lists raise on a dialect
            refused[f"{type(error).__module__}.{type(error).__qualname__}: {str(error)[:80]}"] += 1
            continue
        mine = ours(path, provider)
        name = f"{path.parent.name}/{path.name.split('.sse')[0].removesuffix('.chunks.jsonl')}"
        if mine == theirs:
            agreed += 1
        elif name not in DIFFERENT:
            differ.append(f"{name}\n  sdk  {theirs}\n  ours {mine}"[:900])
    assert not differ, f"{len(differ)} of {len(paths)}\n" + "\n".join(differ)
    assert agreed >= least * len(paths), f"{agreed} of {len(paths)} have an oracle; refused: {refused.most_common()}"
