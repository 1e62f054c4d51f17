"""AG-UI's own client, verifying, against a real server."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from clients import node, page
from support import Gate, until
from test_ai_sdk import agent

import turnstream as ts

Serve = Callable[..., str]
USER: dict[str, Any] = {"id": "user-1", "role": "user", "content": "What is the weather?"}


def client(**options: Any) -> Any:
    seen = node("ag_ui.mjs", json.dumps({"messages": [USER], **options}))
    assert seen["warnings"] == [], "the client found something foreign"
    return seen


def body(thread: str = "t", run: str = "r", **more: Any) -> dict[str, Any]:
    return {"threadId": thread, "runId": run, "messages": [USER], "tools": [], "context": [], "state": {}, **more}


def kinds(seen: Any) -> list[str]:
    return [event["type"] for event in seen["events"]]


def test_every_event_is_verified_and_the_thread_is_whole(serve: Serve) -> None:
    seen = client(base=serve(ts.asgi.app(ts.Hub(), agent)), thread="t", run="run-1")
    assert seen["failure"] is None
    assert seen["events"][0] == {"type": "RUN_STARTED", "threadId": "t", "runId": "run-1"}
    assert seen["events"][-1] == {
        "type": "RUN_FINISHED",
        "threadId": "t",
        "runId": "run-1",
        "outcome": {"type": "success"},
        "usage": [{"inputTokens": 5, "outputTokens": 7, "totalTokens": 12, "cachedInputTokens": 2}],
    }
    by_id = {message["id"]: message for message in seen["messages"]}
    assert by_id["user-1"] == USER
    assert by_id["m1"]["content"] == "Let me look."
    assert by_id["m1"]["toolCalls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    assert json.loads(by_id["c1.result"]["content"]) == {"celsius": 4}
    assert by_id["t.1.progress.plan"]["content"] == {"stage": "plan", "current": 1, "total": 2}
    # What a reset withdrew stays; the event says which messages are void.
    assert [by_id["m2"]["content"], by_id["m2.1"]["content"]] == ["It is four", "It is 4 °C."]
    custom = {event["name"]: event["value"] for event in seen["events"] if event["type"] == "CUSTOM"}
    assert custom["message_reset"] == {"messageIds": ["m2"], "reason": "retry"}
    assert custom["chart"] == {"points": [1, 2]}
    assert custom["citation"]["url"] == "https://weather.example"


def test_a_cancelled_and_a_failed_run_say_so(serve: Serve) -> None:
    async def ends(turn: ts.Turn) -> None:
        turn.emit("stage_start", {"stage": "plan"})
        turn.emit("tool_call_start", {"call_id": "c", "name": "look", "message_id": "m"})
        turn.emit("text_delta", {"message_id": "m", "text": "Half"})
        if turn.input["runId"] == "stopped":
            await turn.session.cancel("enough")
        else:
            raise LookupError("gone")

    base = serve(ts.asgi.app(ts.Hub(), ends))
    seen = client(base=base, thread="a", run="stopped")
    assert (seen["failure"], seen["events"][-1]["outcome"]) == (None, {"type": "cancelled"})
    assert {"TEXT_MESSAGE_END", "TOOL_CALL_END", "STEP_FINISHED"} <= set(kinds(seen))
    seen = client(base=base, thread="b", run="failed")
    assert seen["events"][-1]["type"] == "RUN_ERROR"


def test_a_stream_that_starts_in_the_middle_states_what_is_done_and_reopens_what_is_open(serve: Serve) -> None:
    gate = Gate()

    async def agent(turn: ts.Turn) -> None:
        turn.emit("stage_start", {"stage": "plan"})
        turn.emit("text_delta", {"message_id": "m1", "text": "Done."})
        turn.emit("assistant_message", {"message_id": "m1", "text": "Done."})
        turn.emit("text_delta", {"message_id": "m2", "text": "Hel"})
        turn.emit("tool_call_start", {"call_id": "c", "name": "look", "message_id": "m2"})
        turn.emit("tool_call_delta", {"call_id": "c", "text": '{"a"'})
        gate.open()
        await until(lambda: turn.session.statistics()["readers"] > 0, 20)
        turn.emit("tool_call_delta", {"call_id": "c", "text": ":1}"})
        turn.emit("text_delta", {"message_id": "m2", "text": "lo"})

    hub = ts.Hub()
    base = serve(ts.asgi.app(hub, agent))
    made = httpx.post(f"{base}/sessions", json={"session_id": "s", "input": body(), "client_id": "run-7"})
    assert made.status_code == 201
    gate.wait()
    seen = client(thread="s", run="run-7", get=f"{base}/sessions/s/events?format=ag-ui&after={hub.session('s').cursor}")
    assert seen["failure"] is None
    assert kinds(seen)[:5] == [
        "RUN_STARTED",
        "MESSAGES_SNAPSHOT",
        "STEP_STARTED",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
    ]
    assert seen["events"][0]["runId"] == "run-7"
    by_id = {message["id"]: message for message in seen["messages"]}
    assert by_id["user-1"] == USER
    assert [by_id["m1"]["content"], by_id["m2"]["content"]] == ["Done.", "Hello"]
    assert by_id["m2"]["toolCalls"][0]["function"]["arguments"] == '{"a":1}'


async def test_the_input_is_the_agents_and_the_same_run_starts_nothing(serve: Serve) -> None:
    inputs: list[Any] = []

    async def agent(turn: ts.Turn) -> str:
        inputs.append(turn.input)
        return f"answer {len(inputs)}"

    async with httpx.AsyncClient(base_url=serve(ts.asgi.app(ts.Hub(), agent))) as http:
        first = await http.post("/ag-ui", json=body(forwardedProps={"mine": 1}))
        assert inputs == [body(forwardedProps={"mine": 1})]
        assert first.headers["content-type"] == "text/event-stream"
        assert (await http.post("/ag-ui", json=body(forwardedProps={"mine": 1}))).content == first.content
        assert len(inputs) == 1
        assert (await http.post("/ag-ui", json=body(forwardedProps={"mine": 2}))).status_code == 409
        assert b"answer 2" in (await http.post("/ag-ui", json=body(run="r2"))).content
        for wrong in [{}, body(thread="../x"), {"threadId": "t", "messages": []}, {"threadId": "t", "runId": "r"}]:
            assert (await http.post("/ag-ui", json=wrong)).status_code == 422


@pytest.mark.parametrize("cut", [7, 40])
def test_a_run_that_fell_off_a_small_log_is_stated_from_its_snapshot(serve: Serve, cut: int) -> None:
    hub = ts.Hub(limits=ts.Limits(max_events=4))
    with hub.session("s").turn(body()) as turn:
        for i in range(cut):
            turn.emit("text_delta", {"message_id": "m", "text": f"{i} "})
        turn.emit("assistant_message", {"message_id": "m"})
        for i in range(cut):
            turn.emit("custom", {"name": "x", "data": i})
        said = "".join(f"{i} " for i in range(cut))
    base = serve(ts.asgi.app(hub))
    seen = client(thread="s", run="x", get=f"{base}/sessions/s/events?format=ag-ui")
    assert seen["failure"] is None
    assert {message["id"]: message["content"] for message in seen["messages"]}["m"] == said


def test_the_page_is_right(serve: Serve) -> None:
    base = serve(ts.asgi.app(ts.Hub(), lambda turn: "Monday: rest."))
    messages = page("ag-ui.md", base, package=("@ag-ui/client", "@ag-ui/client"))
    assert [message["content"] for message in messages] == ["Plan a week", "Monday: rest."]
