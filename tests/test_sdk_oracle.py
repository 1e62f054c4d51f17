"""The official SDKs read the recordings too, and agree with the fold.

Recordings go through the SDK's client over a mock transport, framed as a server would. openai and anthropic put their
pieces together themselves; google-genai, mistralai and ollama give typed chunks, which are joined here. A recording
that the SDK itself gives up on, with an exception, has no oracle; those are counted, and bounded. `DIFFERENT` says
where the SDK loses or mixes up what the provider said. What an SDK put together is an answer that was not streamed: the
fold reads that too, and says what it said of the stream.

`python tests/test_sdk_oracle.py FOLDER` compares the recordings of any folder, those without an `.expected.json` too.
"""

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from google import genai
from mistralai.client import Mistral

import turnstream as ts
from conftest import shared

ENDS = (".chunks.jsonl", ".ndjson", ".sse")


class Answer(NamedTuple):
    """What both say of one answer."""

    text: str
    calls: list[tuple[str, Any]]
    finish: str | None
    usage: tuple[int | None, int | None]
    """All tokens in, cached ones included, and all tokens out, reasoning included."""


class Reading(NamedTuple):
    """What an SDK made of a stream."""

    answer: Answer
    body: str | None = None
    """The same answer as a body that was not streamed, where the SDK makes one."""


def recordings(folder: Path) -> dict[str, tuple[Path, str]]:
    """The streamed recordings of a folder and those below it by name, and which protocol each speaks."""
    found = {}
    for path in sorted(path for end in ENDS for path in folder.rglob(f"*{end}")):
        case = path.with_name(path.name.removesuffix(next(end for end in ENDS if path.name.endswith(end))))
        told = case.with_name(f"{case.name}.expected.json")
        if told.exists():
            found[f"{case.parent.name}/{case.name}"] = path, json.loads(told.read_bytes())["protocol"]
        else:
            try:
                found[f"{case.parent.name}/{case.name}"] = path, ts.fold(path.read_bytes()).provider
            except ts.ProtocolError:
                continue
    return found


def objects(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


def as_sse(path: Path) -> bytes:
    """The recording as a server sends it: frames with their names, and an end."""
    if path.suffix == ".sse":
        return path.read_bytes()
    frames = []
    for line in objects(path):
        chunk = json.loads(line)
        name = f"event: {chunk['type']}\n" if "type" in chunk else ""
        frames.append(f"{name}data: {line}\n\n")
    return "".join([*frames, "data: [DONE]\n\n"]).encode()


def as_bare_sse(path: Path) -> bytes:
    """The same, without an end mark: of a format that has none."""
    return as_sse(path).replace(b"data: [DONE]\n\n", b"")


def as_lines(path: Path) -> bytes:
    return "".join(f"{line}\n" for line in objects(path)).encode()


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


def total(*counts: int | None) -> int | None:
    """The sum of what was said."""
    said = [count for count in counts if count is not None]
    return sum(said) if said else None


def chat(path: Path) -> Reading:
    with transport(as_sse(path)) as http:
        client = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
        with client.chat.completions.stream(model="m", messages=[]) as stream:
            completion = stream.get_final_completion()
    choice, usage = completion.choices[0], completion.usage
    calls = [(call.function.name, parsed(call.function.arguments)) for call in choice.message.tool_calls or []]
    # Not `completion_tokens`: xAI leaves the reasoning out of it.
    counts = (usage.prompt_tokens, usage.total_tokens - usage.prompt_tokens) if usage else (None, None)
    answer = Answer(choice.message.content or "", calls, choice.finish_reason, counts)
    return Reading(answer, completion.to_json())


def responses(path: Path) -> Reading:
    with transport(as_sse(path)) as http:
        client = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
        with client.responses.stream(model="m", input="") as stream:
            response = stream.get_final_response()
    calls = [
        (item.name, parsed(item.arguments if item.type == "function_call" else json.dumps(item.input)))
        for item in response.output
        if item.type in ("function_call", "custom_tool_call")
    ]
    usage = response.usage
    counts = (usage.input_tokens, usage.output_tokens) if usage else (None, None)
    return Reading(Answer(response.output_text, calls, response.status, counts), response.to_json())


def messages(path: Path) -> Reading:
    with transport(as_sse(path)) as http:
        client = anthropic.Anthropic(api_key="k", http_client=http, max_retries=0)
        with client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
            message = stream.get_final_message()
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    usage = message.usage
    read = total(usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens)
    return Reading(Answer(text, calls, message.stop_reason, (read, usage.output_tokens)), message.to_json())


def gemini(path: Path) -> Reading:
    text, calls, finish, usage = "", [], None, None
    with transport(as_bare_sse(path)) as http:
        options = genai.types.HttpOptions(httpx_client=http, retry_options=genai.types.HttpRetryOptions(attempts=1))
        client = genai.Client(api_key="k", http_options=options)
        for chunk in client.models.generate_content_stream(model="m", contents="x"):
            usage = chunk.usage_metadata or usage
            for candidate in chunk.candidates or []:
                if candidate.index:
                    continue
                finish = candidate.finish_reason.value if candidate.finish_reason else finish
                for part in (candidate.content.parts if candidate.content else None) or []:
                    text += "" if part.thought else part.text or ""
                    if part.function_call is not None:
                        if part.function_call.partial_args or part.function_call.will_continue:
                            raise NotImplementedError("the SDK leaves arguments by path to its user")
                        calls.append((part.function_call.name or "", part.function_call.args or {}))
    if usage is None:
        return Reading(Answer(text, calls, finish, (None, None)))
    read = total(usage.prompt_token_count, usage.tool_use_prompt_token_count)
    counts = read, total(usage.candidates_token_count, usage.thoughts_token_count)
    return Reading(Answer(text, calls, finish, counts))


def mistral(path: Path) -> Reading:
    asked: list[Any] = [{"role": "user", "content": "x"}]
    text, calls, finish, usage = "", dict[int, tuple[str, Any]](), None, None
    with transport(as_sse(path)) as http:
        client = Mistral(api_key="k", client=http)
        with client.chat.stream(model="m", messages=asked) as stream:
            for event in stream:
                usage = event.data.usage or usage
                for choice in event.data.choices:
                    if choice.index:
                        continue
                    finish = choice.finish_reason or finish
                    content = choice.delta.content
                    parts = [content] if isinstance(content, str) else content or []
                    text += "".join(part if isinstance(part, str) else getattr(part, "text", "") for part in parts)
                    for call in choice.delta.tool_calls or []:
                        name, arguments = calls.get(call.index or 0, ("", ""))
                        calls[call.index or 0] = name or call.function.name, arguments + call.function.arguments
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    said = [(name, parsed(arguments)) for name, arguments in calls.values()]
    return Reading(Answer(text, said, finish, counts))


def ollama_lines(path: Path) -> Reading:
    body = as_lines(path)
    reply = httpx.Response(200, headers={"content-type": "application/x-ndjson"}, content=body)
    client = ollama.Client(transport=httpx.MockTransport(lambda _: reply))
    if b'"response"' in body.partition(b"\n")[0]:
        chunks: Iterable[Any] = client.generate(model="m", stream=True)
    else:
        chunks = client.chat(model="m", messages=[], stream=True)
    text, calls, last = "", [], None
    for last in chunks:
        if isinstance(last, ollama.GenerateResponse):
            text += last.response or ""
            continue
        text += last.message.content or ""
        calls += [(call.function.name, dict(call.function.arguments)) for call in last.message.tool_calls or []]
    assert last is not None
    return Reading(Answer(text, calls, last.done_reason, (last.prompt_eval_count, last.eval_count)))


def ours(data: bytes | str, provider: str) -> Answer:
    message = ts.fold(data, provider=provider)
    calls = [
        (call.name, call.arguments if call.arguments_error is None else call.arguments_raw)
        for call in message.tool_calls
        if call.kind == "client"
    ]
    usage = message.usage or {}
    counts = usage.get("input_tokens"), usage.get("output_tokens")
    return Answer(message.text, calls, message.finish_reason_raw, counts)


class Oracle(NamedTuple):
    """One SDK, and the recordings that it can judge."""

    provider: str
    read: Callable[[Path], Reading]
    least: float
    """The share of the recordings that it must have read, and agreed on."""
    below: str = ""
    """Where there is such a folder, only its recordings: others speak dialects that the SDK does not know."""


ORACLES = {
    "openai-chat": Oracle("openai-chat", chat, 0.8),
    "openai-responses": Oracle("openai-responses", responses, 0.85),
    "anthropic": Oracle("anthropic", messages, 0.95),
    "google-genai": Oracle("gemini", gemini, 0.8),
    "mistralai": Oracle("openai-chat", mistral, 0.8, "mistral"),
    "ollama": Oracle("ollama", ollama_lines, 0.8),
}


class Comparison(NamedTuple):
    """What came of reading a folder twice."""

    read: int
    agreed: int
    differ: dict[str, str]
    refused: Counter[str]


def compare(folder: Path, oracle: Oracle) -> Comparison:
    """Reads every recording of the oracle's provider below `folder` with the SDK and with the fold."""
    own = folder / oracle.below
    refused: Counter[str] = Counter()
    differ: dict[str, str] = {}
    paths = {
        name: path
        for name, (path, protocol) in recordings(own if own.is_dir() else folder).items()
        if protocol == oracle.provider
    }
    for name, path in paths.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydantic's, about models it has not seen
                theirs = oracle.read(path)
        except Exception as error:  # its own, and what its models and lists raise on a dialect
            refused[f"{type(error).__module__}.{type(error).__qualname__}: {str(error)[:80]}"] += 1
            continue
        mine = ours(path.read_bytes(), oracle.provider)
        if mine != theirs.answer:
            differ[name] = f"{name}\n  sdk  {theirs.answer}\n  ours {mine}"[:1500]
        elif theirs.body is not None and (body := ours(theirs.body, oracle.provider)) != mine:
            differ[name] = f"{name}\n  streamed {mine}\n  body     {body}"[:1500]
    return Comparison(len(paths), len(paths) - len(differ) - refused.total(), differ, refused)


UNSEEN = "the last chunk is a `chat.completion.done`; the SDK does not take its finish reason"
APART = "the usage stands in a member of its own, which the SDK does not look at"
DIFFERENT = {
    "groq/pydai-test_groq_model_web_search_tool_stream-0": APART,
    "groq/tlp-test_chat_streaming_legacy-0": APART,
    "openai-chat/pydai-test_openai_moderation_stream-0": "a chunk behind the usage makes the SDK forget it",
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
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_the_sdk_says_the_same(name: str) -> None:
    oracle = ORACLES[name]
    found = compare(shared("corpus"), oracle)
    differ = [said for name, said in found.differ.items() if name not in DIFFERENT]
    assert not differ, f"{len(differ)} of {found.read}\n" + "\n".join(differ)
    assert found.agreed >= oracle.least * found.read > 0, (
        f"{found.agreed} of {found.read} agree; refused: {found.refused.most_common()}"
    )


if __name__ == "__main__":
    for name, oracle in ORACLES.items():
        found = compare(Path(sys.argv[1]), oracle)
        print(f"{name}: {found.read} read, {found.agreed} agree, {found.refused.total()} refused by the SDK")
        for said in found.differ.values():
            print(said)
