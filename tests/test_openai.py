"""The OpenAI-compatible routes, with OpenAI's own SDK over a real socket: live, resumed, and validated strictly."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from clients import cutting
from openai.lib.streaming.chat import ContentDoneEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from support import PATIENCE_S, WORDS, Gate, until

import turnstream as ts
from turnstream.asgi import HTTPError, Scope, app

Serve = Callable[..., str]
Body = dict[str, Any]

TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CHAT_TOOL = {"type": "function", "function": TOOL}
RESPONSE_TOOL = {"type": "function", "strict": False, **TOOL}
ANSWER = "Let me look.\n\nIt is 3 °C.\u2028"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def answering(turn: ts.Turn) -> None:
    """An agent that thinks, calls a tool of its own, and answers in a second round."""
    turn.emit("round_start", model="provider-model")
    turn.emit("reasoning_delta", message_id="m1", text="The user ", part=0)
    turn.emit("reasoning_delta", message_id="m1", text="asks.", part=0)
    turn.emit("reasoning_delta", message_id="m1", text="So look.", part=1)
    for word in ("Let ", "me ", "look."):
        turn.emit("text_delta", message_id="m1", text=word)
    turn.emit("tool_call_start", call_id="c1", name="search", message_id="m1")
    turn.emit("tool_call_delta", call_id="c1", text='{"q":')
    turn.emit("tool_call_delta", call_id="c1", text='"x"}')
    turn.emit("tool_call", call_id="c1", name="search", arguments={"q": "x"}, arguments_raw='{"q":"x"}')
    whole = {"finish_reason": "tool_calls", "tool_calls": [{"call_id": "c1", "name": "search"}]}
    turn.emit("assistant_message", message_id="m1", text="Let me look.", reasoning="The user asks.So look.", **whole)
    turn.emit("usage", input_tokens=10, output_tokens=5, total_tokens=15, reasoning_tokens=2, cache_read_tokens=4)
    turn.emit("round_end")
    turn.emit("tool_result", call_id="c1", output={"found": 1})
    turn.emit("round_start")
    turn.emit("progress", stage="write", current=1, total=2)
    for word in ("It is ", "3 °C.", "\u2028"):
        turn.emit("text_delta", message_id="m2", text=word)
    turn.emit("citation", message_id="m2", url="https://example.com", title="Weather", start=0, end=5)
    turn.emit("assistant_message", message_id="m2", text="It is 3 °C.\u2028", finish_reason="stop")
    turn.emit("usage", input_tokens=20, output_tokens=6, total_tokens=26)
    turn.emit("round_end")


def calling(turn: ts.Turn) -> None:
    """An agent that leaves a call to its client."""
    turn.emit("text_delta", message_id="m9", text="One moment.")
    turn.emit("tool_call_start", call_id="c1", name="weather", message_id="m9")
    turn.emit("tool_call_delta", call_id="c1", text='{"city":')
    turn.emit("tool_call_delta", call_id="c1", text='"Oslo"}')
    turn.emit("tool_call", call_id="c1", name="weather", arguments={"city": "Oslo"}, arguments_raw='{"city":"Oslo"}')
    turn.emit("tool_call_start", call_id="c2", name="search", message_id="m9")  # the agent's own
    turn.emit("tool_call", call_id="c2", name="search", arguments={}, arguments_raw="{}")
    turn.emit("tool_result", call_id="c2", output="nothing", is_error=True)
    turn.emit("assistant_message", message_id="m9", text="One moment.", finish_reason="tool_calls")


def failing(turn: ts.Turn) -> None:
    turn.emit("text_delta", message_id="m1", text="I will ")
    raise ValueError("no bread")


AGENTS = {"answer": answering, "call": calling, "fail": failing}


def agent(turn: ts.Turn) -> None:
    AGENTS[turn.input["model"]](turn)


def client(base: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, timeout=PATIENCE_S)


def blocking(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, timeout=PATIENCE_S)


def strict(model: type[BaseModel], body: Any) -> Any:
    return model.model_validate(body, strict=True)


def data(body: str) -> Iterator[str]:
    """The data of each frame, read strictly: LF only, one data line, no id."""
    assert body.endswith("\n\n")
    for block in body.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        *before, last = lines
        assert [line.split(": ")[0] for line in before] in ([], ["event"])
        assert last.startswith("data: ")
        if before:
            assert json.loads(last[6:])["type"] == before[0].removeprefix("event: ")
        yield last[6:]


def seen_events(body: str) -> list[Any]:
    """The events of a response's stream, each strictly what the SDK's model says, numbered from 0 without a gap."""
    return [EVENT.validate_json(text, strict=True) for text in data(body)]


def chat(model: str, **more: Any) -> Body:
    return {"model": model, "messages": [{"role": "user", "content": "Hei"}], **more}


# --- Chat Completions -------------------------------------------------------------------------------------------------


async def test_chat_chunks_are_strictly_the_sdks(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    body = chat("answer", stream=True, stream_options={"include_usage": True}, extra={"kept": [1]})
    response = await http.post(f"{serve(app(hub, agent))}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *texts, done = data(response.text)
    assert done == "[DONE]"
    chunks = [strict(ChatCompletionChunk, json.loads(text)) for text in texts]
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {(chunks[0].id, chunks[0].created, "answer")}
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == "The user asks.So look."
    assert not any(delta.tool_calls for delta in deltas)  # the agent's own
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert finishes == ["stop"]
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 11, 41)
    assert (usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens) == (4, 2)
    (session,) = hub.sessions()
    assert session.messages()[0]["input"] == body


async def test_chat_without_stream(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, agent))
    whole = strict(ChatCompletion, (await http.post(f"{base}/v1/chat/completions", json=chat("answer"))).json())
    (choice,) = whole.choices
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    assert (choice.message.tool_calls, choice.message.reasoning_content) == (None, "The user asks.So look.")
    assert whole.usage.total_tokens == 41
    async with client(base) as api:
        called = await api.chat.completions.create(**chat("call", tools=[CHAT_TOOL]))
    (call,) = called.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "weather", '{"city":"Oslo"}')
    assert called.choices[0].finish_reason == "tool_calls"


async def test_the_sdk_streams_a_chat(serve: Serve, hub: ts.Hub) -> None:
    base = serve(app(hub, agent))
    async with client(base) as api, api.chat.completions.stream(**chat("call", tools=[CHAT_TOOL])) as stream:
        contents = [event.content async for event in stream if isinstance(event, ContentDoneEvent)]
        final = await stream.get_final_completion()
    assert contents == ["One moment."]
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Oslo"}')
    assert final.choices[0].finish_reason == "tool_calls"

    def blocked() -> str:
        with blocking(base) as api, api.chat.completions.create(**chat("answer"), stream=True) as stream:
            return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)

    assert await asyncio.to_thread(blocked) == ANSWER


async def test_what_a_chat_asks_beside_its_messages(serve: Serve, hub: ts.Hub) -> None:
    def choosing(turn: ts.Turn) -> None:
        for choice in range(turn.input.get("n", 1)):
            turn.emit("message_start", message_id=f"m{choice}", choice=choice)
            turn.emit("text_delta", message_id=f"m{choice}", text=f"answer {choice}")
            turn.emit("refusal_delta", message_id=f"m{choice}", text="but no more")
        turn.emit("usage", input_tokens=3, output_tokens=4, reasoning_tokens=1)

    async with client(serve(app(hub, choosing))) as api:
        # The agent's to mind: the server refuses none of it.
        ignored: Body = {"seed": 7, "store": False, "modalities": ["text"], "logit_bias": {"1": 2}, "user": "u"}
        whole = await api.chat.completions.create(**chat("x", n=2, **ignored))
        assert [choice.message.content for choice in whole.choices] == ["answer 0", "answer 1"]
        assert whole.choices[0].message.refusal == "but no more"
        for asked_for in (True, False):
            options = {"include_usage": asked_for}
            stream = await api.chat.completions.create(**chat("x", n=2, stream_options=options), stream=True)
            chunks = [chunk async for chunk in stream]
            assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - asked_for) + [
                True
            ] * asked_for
            reasoning = [strict(ChatCompletionChunk, chunk.model_dump()).usage for chunk in chunks[-1:] if asked_for]
            assert [usage.completion_tokens_details.reasoning_tokens for usage in reasoning] == [1] * asked_for
            ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
            assert [choice.index for choice in ends] == [0, 1], "each choice ends once"
            refusals = [choice.delta.refusal or "" for chunk in chunks for choice in chunk.choices if choice.index == 1]
            assert "".join(refusals) == "but no more"
        wrongs: list[Body] = [{"n": "two"}, {"n": 0}, {"n": -1}, {"n": 129}, {"stream_options": []}]
        for wrong in wrongs:
            with pytest.raises(openai.BadRequestError) as refused:
                await api.chat.completions.create(**chat("x", **wrong))
            assert (refused.value.code, refused.value.param) == ("invalid_value", next(iter(wrong)))


async def test_the_sdks_errors_are_typed(serve: Serve, hub: ts.Hub) -> None:
    async with client(serve(app(hub, agent))) as api:
        unknown = "resp_nobody_abc_7"
        for call in (
            api.responses.retrieve(unknown),
            api.responses.cancel(unknown),
            api.responses.create(**asked("answer"), previous_response_id=unknown),
            api.responses.retrieve(unknown, stream=True, starting_after=3),
        ):
            with pytest.raises(openai.NotFoundError) as missing:
                await call
            assert missing.value.code == "not_found"
        first = await api.responses.create(**asked("answer"), background=True, store=True)
        await until(lambda: hub.sessions()[0].status()["state"] == "completed")
        everything = [event async for event in await api.responses.retrieve(first.id, stream=True)]
        # Past the last number there is nothing, and it is no error.
        last = everything[-1].sequence_number
        rest = await api.responses.retrieve(first.id, stream=True, starting_after=last)
        assert [event async for event in rest] == []
        middle = await api.responses.retrieve(first.id, stream=True, starting_after=last // 2)
        assert [event async for event in middle] == everything[last // 2 + 1 :]


async def test_a_chat_that_fails_says_so(serve: Serve, hub: ts.Hub) -> None:
    base, shown = serve(app(hub, agent)), ""
    async with client(base) as api:
        stream = await api.chat.completions.create(**chat("fail"), stream=True)
        error: openai.APIError | None = None
        try:
            async for chunk in stream:
                shown += chunk.choices[0].delta.content or ""
        except openai.APIError as raised:
            error = raised
        assert error is not None
        assert (shown, error.code) == ("I will ", "agent_error")
        assert "no bread" in error.message
        with pytest.raises(openai.InternalServerError, match="no bread"):
            await api.chat.completions.create(**chat("fail"))


async def test_a_client_that_leaves_a_chat_stops_nothing(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    gate = Gate()

    async def waiting(turn: ts.Turn) -> None:
        turn.emit("text_delta", message_id="m1", text="One")
        await gate.passed()
        turn.emit("text_delta", message_id="m1", text=" two")

    base = serve(app(hub, waiting))
    async with client(base) as api:
        stream = await api.chat.completions.create(**chat("x"), stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
    whole = asyncio.create_task(http.post(f"{base}/v1/chat/completions", json=chat("x")))
    await until(lambda: len(hub.sessions()) == 2 and all(session.head >= 3 for session in hub.sessions()))
    whole.cancel()
    await until(lambda: all(session.statistics()["readers"] == 0 for session in hub.sessions()))
    gate.open()
    await until(lambda: all(session.result() is not None for session in hub.sessions()))
    assert [session.messages()[1]["text"] for session in hub.sessions()] == ["One two"] * 2


async def test_silence_in_a_chat_breaks_no_client(serve: Serve, hub: ts.Hub) -> None:
    async def slow(turn: ts.Turn) -> None:
        for word in ("a", "b"):
            turn.emit("text_delta", message_id="m1", text=word)
            await asyncio.sleep(0.2)

    async with client(serve(app(hub, slow, heartbeat_s=0.05))) as api:
        stream = await api.chat.completions.create(**chat("x"), stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "ab"
        response = await api.responses.create(model="x", input="y", stream=True)
        assert [event.type async for event in response][-1] == "response.completed"


# --- repetitions ------------------------------------------------------------------------------------------------------


async def test_a_run_that_failed_is_not_repeated_by_the_sdk(serve: Serve, hub: ts.Hub) -> None:
    async with client(serve(app(hub, agent))).with_options(max_retries=2) as api:
        with pytest.raises(openai.InternalServerError, match="no bread"):
            await api.chat.completions.create(**chat("fail"))
    assert len(hub.sessions()) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repetition_under_its_key_joins_the_run_that_it_repeats(
    serve: Serve, hub: ts.Hub, stream: bool
) -> None:
    """The SDK's own: its connection is cut before the answer's head has come."""
    base = serve(app(hub, agent))
    with cutting(base, 1, most=15, path=b"/v1/", cuts=2) as proxy:
        async with client(proxy).with_options(max_retries=2) as api:
            key = {"Idempotency-Key": "b7c4d2"}
            said = await api.chat.completions.create(**chat("answer"), stream=stream, extra_headers=key)
            if isinstance(said, openai.AsyncStream):
                shown = "".join([choice.delta.content or "" async for chunk in said for choice in chunk.choices])
            else:
                shown = said.choices[0].message.content or ""
            assert shown == ANSWER
            (session,) = hub.sessions()
            assert session.status()["turn"] == 1
            with pytest.raises(openai.ConflictError):
                await api.chat.completions.create(**chat("call"), extra_headers=key)
            first = await api.responses.create(**asked("answer"), extra_headers={"Idempotency-Key": "r1"})
            assert await api.responses.create(**asked("answer"), extra_headers={"Idempotency-Key": "r1"}) == first
    assert len(hub.sessions()) == 2


# --- Responses --------------------------------------------------------------------------------------------------------


def asked(model: str, **more: Any) -> Body:
    return {"model": model, "input": "Hei", **more}


async def test_response_events_are_strictly_the_sdks(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, agent))
    body = asked("answer", stream=True, instructions="Be brief", metadata={"k": "v"}, temperature=0.5)
    events = seen_events((await http.post(f"{base}/v1/responses", json=body)).text)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1].response
    assert events[-1].type == "response.completed"
    assert [item.type for item in final.output] == ["reasoning", "message", "mcp_call", "message"]
    assert [part.text for part in final.output[0].summary] == ["The user asks.", "So look."]
    assert final.output_text == ANSWER.replace("\n\n", "")
    assert (final.output[2].arguments, final.output[2].output) == ('{"q":"x"}', '{"found":1}')
    assert final.output[3].content[0].annotations[0].url == "https://example.com"
    assert (final.usage.input_tokens, final.usage.output_tokens, final.usage.total_tokens) == (30, 11, 41)
    assert (final.instructions, final.metadata, final.temperature) == ("Be brief", {"k": "v"}, 0.5)
    assert final.model == "answer"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
    added = {event.output_index: event.item.id for event in events if event.type == "response.output_item.added"}
    done = {event.output_index: event.item for event in events if event.type == "response.output_item.done"}
    assert added == {index: item.id for index, item in done.items()}
    assert list(done.values()) == final.output
    again = strict(Response, (await http.get(f"{base}/v1/responses/{final.id}")).json())
    assert again == final


async def test_a_response_is_resumed_after_every_number(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, agent))
    async with client(base) as api:
        stream = await api.responses.create(**asked("answer"), stream=True)
        events = [event async for event in stream]
        assert events[0].type == "response.created"
        response_id = events[0].response.id
        for after in range(len(events) + 1):
            resumed = await api.responses.retrieve(response_id, stream=True, starting_after=after)
            assert [event async for event in resumed] == events[after + 1 :]
        whole = await api.responses.retrieve(response_id, stream=True)
        assert [event async for event in whole] == events

    def blocked() -> list[Any]:
        with blocking(base) as api:
            return list(api.responses.retrieve(response_id, stream=True, starting_after=3))

    assert await asyncio.to_thread(blocked) == events[4:]


async def test_a_live_response_goes_on_elsewhere_with_the_same_numbers(serve: Serve, hub: ts.Hub) -> None:
    gates = [Gate() for _ in WORDS[:10]]

    async def stepwise(turn: ts.Turn) -> None:
        for gate, word in zip(gates, WORDS[:10], strict=True):
            await gate.passed()
            turn.emit("text_delta", message_id="m1", text=word)

    async with client(serve(app(hub, stepwise))) as api:
        stream = await api.responses.create(**asked("x"), stream=True)
        gates[0].open()
        events = []
        async for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        assert events[0].type == "response.created"
        response_id = events[0].response.id
        for gate in gates[1:5]:
            gate.open()
        stream = await api.responses.retrieve(response_id, stream=True, starting_after=events[-1].sequence_number)
        async for event in stream:
            events.append(event)
            if len(events) == 8:
                for gate in gates[5:]:
                    gate.open()
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events == [event async for event in await api.responses.retrieve(response_id, stream=True)]
        final = events[-1]
        assert final.type == "response.completed"
        assert final.response.output_text == "".join(WORDS[:10])


async def test_the_sdk_streams_a_response(serve: Serve, hub: ts.Hub) -> None:
    base = serve(app(hub, agent))
    async with client(base) as api, api.responses.stream(**asked("call", tools=[RESPONSE_TOOL])) as stream:
        arguments = [event.snapshot async for event in stream if event.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    assert arguments == ['{"city":', '{"city":"Oslo"}']
    assert [item.type for item in final.output] == ["message", "function_call", "mcp_call"]
    assert final.output_text == "One moment."
    strict(Response, json.loads(final.to_json()) | {"output": [item.to_dict() for item in final.output[1:]]})


async def test_responses_without_stream(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    base = serve(app(hub, agent))
    async with client(base) as api:
        first = await api.responses.create(**asked("answer"))
        assert (first.status, first.output_text) == ("completed", ANSWER.replace("\n\n", ""))
        second = await api.responses.create(**asked("call", tools=[RESPONSE_TOOL]), previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert await api.responses.retrieve(first.id) == first
        assert await api.responses.retrieve(second.id) == second
        assert len(hub.sessions()) == 1
        failed = await api.responses.create(**asked("fail"))
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        assert "no bread" in failed.error.message
    for response in (first, second, failed):
        strict(Response, (await http.get(f"{base}/v1/responses/{response.id}")).json())
    events = seen_events((await http.post(f"{base}/v1/responses", json=asked("fail", stream=True))).text)
    assert [event.type for event in events[-2:]] == ["response.output_item.done", "response.failed"]


async def test_a_background_response_is_polled_and_cancelled(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient
) -> None:
    async def endless(turn: ts.Turn) -> None:
        turn.emit("text_delta", message_id="m1", text="So far")
        await asyncio.sleep(60)

    base = serve(app(hub, endless))
    async with client(base) as api:
        response = await api.responses.create(**asked("x"), background=True)
        assert (response.status, response.background) == ("in_progress", True)
        await until(lambda: hub.sessions()[0].head >= 3)
        partial = await api.responses.retrieve(response.id)
        assert (partial.status, partial.output_text) == ("in_progress", "So far")
        assert (await api.responses.cancel(response.id)).status == "cancelled"
        again = await api.responses.cancel(response.id)
        assert (again.status, again.output_text) == ("cancelled", "So far")
        events = [event async for event in await api.responses.retrieve(response.id, stream=True)]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.status == "cancelled"
    seen_events((await http.get(f"{base}/v1/responses/{response.id}?stream=true")).text)


async def test_errors_have_openais_shape(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    def auth(scope: Scope) -> str | None:
        who = dict(scope["headers"]).get(b"authorization", b"").decode()
        return None if who == "Bearer nobody" else "somebody"

    base = serve(app(hub, agent, auth=auth))
    for path, body, param in [
        ("chat/completions", {}, "model"),
        ("chat/completions", {"model": "x", "messages": "y"}, "messages"),
        ("chat/completions", chat("x", stream="yes"), "stream"),
        ("responses", {"model": "x"}, "input"),
        ("responses", asked("x", tools={}), "tools"),
        ("responses", asked("x", conversation="c"), "conversation"),
    ]:
        response = await http.post(f"{base}/v1/{path}", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert set(error) == {"message", "type", "param", "code"}
    assert len(hub.sessions()) == 0
    async with client(base) as api:
        for wrong in ("resp_x", "resp_none_abc_0", "resp_.._a_0", "x"):
            with pytest.raises(openai.NotFoundError):
                await api.responses.retrieve(wrong)
        with pytest.raises(openai.NotFoundError):
            await api.responses.create(**asked("answer"), previous_response_id="resp_none_abc_0")
        made = await api.responses.create(**asked("answer"))
        epoch = hub.sessions()[0].epoch
        for guessed in (made.id.replace(epoch, "aaaaaaaa"), made.id + "5", made.id[:-1] + "3"):
            with pytest.raises(openai.NotFoundError):
                await api.responses.retrieve(guessed)
        with pytest.raises(openai.BadRequestError):
            await api.get(f"/responses/{made.id}?stream=true&starting_after=x", cast_to=httpx.Response)
        assert [model.id async for model in api.models.list()] == ["turnstream"]
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="nobody", max_retries=0) as nobody:
        with pytest.raises(openai.AuthenticationError):
            await nobody.responses.retrieve(made.id)
        with pytest.raises(openai.AuthenticationError):
            await nobody.chat.completions.create(**chat("answer"))


async def test_the_auth_hook_decides_by_the_responses_session(serve: Serve, hub: ts.Hub) -> None:
    owners: dict[str, str] = {}

    def auth(scope: Scope) -> str:
        who = str(dict(scope["headers"]).get(b"authorization", b"").decode())
        session_id = scope["path_params"].get("session_id")
        if session_id is not None and owners.setdefault(session_id, who) != who:
            raise HTTPError(403, "forbidden", "not yours")
        return who

    base = serve(app(hub, agent, auth=auth))
    async with client(base) as ann, openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="eve", max_retries=0) as eve:
        made = await ann.responses.create(**asked("answer"))
        await ann.responses.retrieve(made.id)
        with pytest.raises(openai.PermissionDeniedError):
            await eve.responses.retrieve(made.id)
        with pytest.raises(openai.PermissionDeniedError):
            await eve.responses.cancel(made.id)
        with pytest.raises(openai.PermissionDeniedError):
            await eve.responses.create(**asked("answer"), previous_response_id=made.id)


async def test_a_session_is_followed_in_openais_formats(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """A turn that no OpenAI request has begun: its calls for a client are the client's."""
    session = hub.session("s")
    for number in range(2):
        with session.turn({"text": "hi"}) as turn:
            calling(turn) if number else answering(turn)
    url = f"{serve(app(hub))}/sessions/s/events"
    *texts, done = data((await http.get(url, params={"format": "openai-chat"})).text)
    chunks = [strict(ChatCompletionChunk, json.loads(text)) for text in texts]
    assert done == "[DONE]"
    names = [
        call.function.name for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []
    ]
    assert [name for name in names if name] == ["weather", "search"]
    newest = seen_events((await http.get(url, params={"format": "openai-responses"})).text)
    assert newest[-1].response.output_text == "One moment."
    for cursor in (f"{session.epoch}.0", f"{session.epoch}.7"):  # from inside a turn, its whole
        first = seen_events((await http.get(url, params={"format": "openai-responses", "after": cursor})).text)
        assert first[0].sequence_number == 0
        assert first[-1].response.output_text == ANSWER.replace("\n\n", "")


async def test_missing_history_is_an_error_and_no_other_number(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = ts.Hub(limits=ts.Limits(max_events=40))

    def long(turn: ts.Turn) -> None:
        for message_id, words in (("m1", WORDS[:25]), ("m2", WORDS[25:])):
            for word in words if message_id == "m1" or turn.input["model"] == "two" else WORDS:
                turn.emit("text_delta", message_id=message_id, text=word)
            turn.emit("assistant_message", message_id=message_id)

    base = serve(app(hub, long))
    made = (await http.post(f"{base}/v1/responses", json=asked("two"))).json()
    said = [part["text"] for item in made["output"] for part in item["content"]]
    assert said == ["".join(WORDS[:25]), "".join(WORDS[25:])]  # what is left, the messages, is whole
    *_, error = seen_events((await http.get(f"{base}/v1/responses/{made['id']}?stream=true&starting_after=0")).text)
    assert (error.type, error.code) == ("error", "history_trimmed")
    *_, text = data((await http.get(f"{base}/sessions/{hub.sessions()[0].id}/events?format=openai-chat")).text)
    assert json.loads(text)["error"]["code"] == "history_trimmed"
    gone = await http.post(f"{base}/v1/responses", json=asked("beyond"))  # more than the log holds, its beginning too
    assert (gone.status_code, gone.json()["error"]["code"]) == (500, "history_trimmed")
