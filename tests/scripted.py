"""A scripted HTTP server on a real socket, in a thread of its own, so that blocking clients can talk to it too.

Owns what the server says and what it saw. A path's script is a list: bytes are sent as one chunk, `HANG` waits until
the client leaves, a `threading.Event` is a gate, `CUT` drops the connection in the middle of the body.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

HANG: Final = object()
CUT: Final = object()
WAIT_S = 60.0

OPENAI_CHAT: Final = (
    b': a comment, which no SDK gives on\n\ndata: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"lo \xe2\x82',
    b'\xac"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
)
OPENAI_BODY: Final = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Hello"}}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)
ANTHROPIC: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1}}}'
    b'\n\nevent: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    b'event: ping\ndata: {"type":"ping"}\n\nevent: content_block_delta\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
)
GEMINI: Final = (
    b'data: {"candidates": [{"content": {"parts": [{"text": "Hel"}],"role": "model"},"index": 0}],"modelVersion": "m"}'
    b"\r\n\r\n",
    b'data: {"candidates": [{"content": {"parts": [{"text": "lo"}],"role": "model"},"finishReason": "STOP","index": 0}'
    b'],"usageMetadata": {"promptTokenCount": 3,"candidatesTokenCount": 2,"totalTokenCount": 5},"modelVersion": "m"}'
    b"\r\n\r\n",
)
OLLAMA: Final = (
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"Hel"},"done":false}\n',
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"lo","tool_calls":'
    b'[{"function":{"name":"add","arguments":{"a":1}}}]},"done":false}\n',
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},"done":true,'
    b'"done_reason":"stop","prompt_eval_count":3,"eval_count":2}\n',
)


@dataclass
class Script:
    parts: Sequence[Any]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})


class ScriptedServer:
    """`with ScriptedServer() as server: server.script("/v1", [b"…"])`. Every request to a path plays its script."""

    def __init__(self) -> None:
        self.left = threading.Event()
        """Set when a client went away during HANG or a gate."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._scripts: dict[str, Script | Callable[[dict[str, str]], Script]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def script(self, path: str, parts: Sequence[Any], status: int = 200, **headers: str) -> str:
        """Sets what `path` plays; gives its URL."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._scripts[path] = Script(parts, status, {"content-type": "text/event-stream"} | named)
        return self.url + path

    def script_by(self, path: str, choose: Callable[[dict[str, str]], Script]) -> str:
        """What `path` plays is chosen by the request's headers."""
        self._scripts[path] = choose
        return self.url + path

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split(" ")[1]
        self.requests.append((path, headers))
        script = self._scripts[path.partition("?")[0]]
        if not isinstance(script, Script):
            script = script(headers)
        lines = [f"HTTP/1.1 {script.status} Scripted", *(f"{name}: {value}" for name, value in script.headers.items())]
        if script.status == 204:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            await writer.drain()
            return True
        writer.write(("\r\n".join(lines) + "\r\ntransfer-encoding: chunked\r\n\r\n").encode())
        for part in script.parts:
            if part is CUT:
                writer.transport.abort()
                return False
            if part is HANG:
                await asyncio.wait_for(reader.read(1), WAIT_S)
                self.left.set()
                return False
            if isinstance(part, threading.Event):
                if not await self._loop.run_in_executor(None, part.wait, WAIT_S):
                    raise TimeoutError("the gate was never opened")
                continue
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
