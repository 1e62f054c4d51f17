"""Every kind of client behind granian and behind nginx: the first byte at once, the whole answer, the server's stop.

What each format says is tested where it is made; here it is read by its released client, over what stands in between.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from clients import node
from support import PATIENCE_S, listening, within
from test_deployments import a_free_port, nginx

Serve = Callable[..., str]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the servers bring their own

SERVED = """
import asyncio
import turnstream as ts
from turnstream.asgi import app

hub = ts.Hub()
gate = asyncio.Event()

async def agent(turn):
    global gate
    if turn.input == "open":
        gate.set()
        gate = asyncio.Event()
        return
    turn.emit("text_delta", message_id="m", text="Hello")
    if "wait" in str(turn.input):
        await gate.wait()
    turn.emit("text_delta", message_id="m", text=", world")

application = app(hub, agent, listing=True)
"""

COMMANDS = {
    "uvicorn": ["uvicorn", "--log-level", "warning", "--host", "127.0.0.1"],
    "granian": ["granian", "--interface", "asgi", "--log-level", "warning", "--host", "127.0.0.1"],
}


@asynccontextmanager
async def serving(folder: Path, server: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    (folder / "served.py").write_text(SERVED)
    port = a_free_port()
    command = [sys.executable, "-m", *COMMANDS[server], "--port", str(port), "served:application"]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder)
    try:
        await listening(port)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(params=["granian", "nginx"])
async def front(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address that clients are given."""
    if request.param == "granian":
        async with serving(tmp_path, "granian") as (base, _):
            yield base
        return
    async with serving(tmp_path, "uvicorn") as (base, _):
        with nginx(tmp_path, base) as port:
            await listening(port)
            yield f"http://127.0.0.1:{port}"


def ai_sdk(text: str = "wait", chat: str = "chat") -> dict[str, Any]:
    return {"id": chat, "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}]}


def ag_ui(text: str = "wait", thread: str = "thread") -> dict[str, Any]:
    return {"threadId": thread, "runId": "r", "messages": [{"id": "u", "role": "user", "content": text}]}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "wait"}], **more}


STREAMS: list[tuple[str, dict[str, Any], str]] = [
    ("/ai-sdk", ai_sdk(), "data: [DONE]\n\n"),
    ("/ag-ui", ag_ui(), '"outcome":{"type":"success"}}\n\n'),
    ("/v1/chat/completions", chat(stream=True), "data: [DONE]\n\n"),
    ("/v1/responses", {"model": "m", "input": "wait", "stream": True}, "}\n\n"),
]


async def test_each_format_comes_at_once(front: str) -> None:
    """The first words are there while the agent still works: nothing on the way waits for more."""
    async with httpx.AsyncClient(base_url=front, timeout=PATIENCE_S) as http:
        for path, body, end in STREAMS:
            async with http.stream("POST", path, json=body) as response:
                assert response.status_code == 200, path
                seen = ""
                pieces = response.aiter_text()
                while "Hello" not in seen:
                    seen += await asyncio.wait_for(anext(pieces), 2)
                assert ", world" not in seen
                assert (await http.post("/sessions", json={"input": "open"})).status_code == 201
                seen += "".join([piece async for piece in pieces])
            assert ", world" in seen, path
            assert seen.endswith(end), path


async def test_released_clients_read_it_whole(front: str) -> None:
    def text(parts: list[dict[str, Any]]) -> str:
        return "".join(part.get("text", "") for part in parts)

    options = {"base": front, "chat": "c", "text": "go"}
    seen = await asyncio.to_thread(node, "ai_sdk.mjs", "7", json.dumps(options))
    assert (seen["error"], text(seen["message"]["parts"])) == (None, "Hello, world")
    options = {"base": front, "thread": "t", "run": "r", "messages": ag_ui("go")["messages"]}
    seen = await asyncio.to_thread(node, "ag_ui.mjs", json.dumps(options))
    assert (seen["failure"], seen["warnings"], seen["messages"][-1]["content"]) == (None, [], "Hello, world")
    async with openai.AsyncOpenAI(base_url=f"{front}/v1", api_key="k", timeout=PATIENCE_S) as api:
        stream = await api.chat.completions.create(model="m", messages=[{"role": "user", "content": "go"}], stream=True)
        said = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        assert "".join(said) == "Hello, world"
        events = [event async for event in await api.responses.create(model="m", input="go", stream=True)]
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == "Hello, world"
        resumed = await api.responses.retrieve(events[0].response.id, stream=True, starting_after=2)
        assert [event async for event in resumed] == events[3:]
        assert (await api.responses.retrieve(events[0].response.id)).output_text == "Hello, world"


ENDS: list[tuple[str, str, dict[str, Any] | None, list[str]]] = [
    ("GET", "/sessions/s/events", None, ['"status":"cancelled","reason":"shutdown"']),
    ("GET", "/sessions/s/events?follow=session", None, ['"completion"', '"stream_close"', '"reason":"shutdown"']),
    ("GET", "/sessions/s/events?format=ndjson", None, ['"status":"cancelled","reason":"shutdown"']),
    ("GET", "/sessions/idle/events", None, ['"stream_close"', '"reason":"shutdown"']),
    ("GET", "/sessions/idle/poll?wait_s=50", None, ['"events":[]', '"ended":false']),
    ("POST", "/ai-sdk", ai_sdk(), ['"type":"abort"', '"type":"finish"', "data: [DONE]"]),
    ("POST", "/ag-ui", ag_ui(), ['"outcome":{"type":"cancelled"}']),
    ("POST", "/v1/chat/completions", chat(stream=True), ['"error":', '"code":"cancelled"']),
    ("POST", "/v1/chat/completions", chat(), ['"error":', '"code":"cancelled"']),
    ("POST", "/v1/responses", {"model": "m", "input": "wait", "stream": True}, ["event: response.incomplete"]),
    ("POST", "/v1/responses", {"model": "m", "input": "wait"}, ['"status":"cancelled"']),
]


@pytest.mark.parametrize("server", [*COMMANDS, "nginx"])
async def test_a_stop_is_told_to_each_in_its_own_words(tmp_path: Path, server: str) -> None:
    async with AsyncExitStack() as stack:
        base, process = await stack.enter_async_context(serving(tmp_path, "uvicorn" if server == "nginx" else server))
        if server == "nginx":
            port = stack.enter_context(nginx(tmp_path, base))
            await listening(port)
            base = f"http://127.0.0.1:{port}"
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=PATIENCE_S))
        await http.post("/sessions", json={"session_id": "idle"})
        await http.post("/sessions", json={"session_id": "s", "input": "wait"})

        async def follow(method: str, path: str, body: dict[str, Any] | None) -> str:
            return (await http.request(method, path, json=body)).text

        following = [asyncio.create_task(follow(method, path, body)) for method, path, body, _ in ENDS]
        async with asyncio.timeout(PATIENCE_S):
            while sum(one["readers"] for one in (await http.get("/sessions")).json()["sessions"]) < len(ENDS):
                pass
        with within(3):
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        told = await asyncio.gather(*following)
    for (_, path, _, words), said in zip(ENDS, told, strict=True):
        assert [word for word in words if word not in said] == [], (path, said)
