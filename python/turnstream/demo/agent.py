"""The agents behind the demo: a recorded one of three stages, a replayer of any stream, and a plain live one.

Each is an ordinary user of the package: `turn.emit` and `turn.relay`, nothing else. Owns what is done, in which order;
knows nothing of how it is stored, delivered or shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from turnstream import Message, Turn

from .recording import paced, pieces, recorded
from .tools import TOOLS, check_case

Agent = Callable[[Turn], Awaitable[None]]

LIVE = ("openai-chat", "anthropic")
"""What is spoken to live servers."""


# --- the recorded agent ----------------------------------------------------------------------------------------------


def recorded_agent(pace: float = 1.0) -> Agent:
    """Plans, codes and reviews. The words are recorded, the request is filled in, and the tools are run."""

    async def agent(turn: Turn) -> None:
        run = Run(turn, pace)
        await run.plan()
        await run.code()
        await run.review()

    return agent


class Run:
    """One turn of the recorded agent."""

    def __init__(self, turn: Turn, pace: float) -> None:
        self.turn = turn
        self.pace = pace
        self.prompt: str = prompt_of(turn.input)

    async def plan(self) -> None:
        self._begin("plan", "analyst", 1, "measures the request")
        message = await self._speak("plan", "anthropic", "plan")
        for call in message.tool_calls:
            await self._run_tool(call)
        self._end("plan", "request measured")

    async def code(self) -> None:
        self._begin("code", "engineer", 2, "writes and checks")
        message = await self._speak("code", "openai-chat", "code", share=0.7)
        for call in message.tool_calls:
            await self._run_tool(call)
        await self._speak("code-done", "openai-chat", "code", start=0.7)
        self._end("code", "all cases checked")

    async def review(self) -> None:
        self._begin("review", "reviewer", 3, "reads it as a stranger would")
        await self._speak("review", "anthropic", "review")
        self._end("review", "ready to merge")

    def _begin(self, stage: str, agent: str, index: int, message: str) -> None:
        self.turn.emit("stage_start", stage=stage, agent=agent, index=index, total=3, message=message)

    def _end(self, stage: str, message: str) -> None:
        self.turn.emit("stage_end", stage=stage, status="completed", message=message)

    async def _speak(
        self, name: str, provider: str, stage: str, start: float = 0.0, share: float | None = None
    ) -> Message:
        """One model call. The stage's progress, in percent, moves with the bytes from `start` by `share`."""
        share = 1 - start if share is None else share
        # Ids differ from run to run, as a provider's do: equal ids would be copies of one message.
        data = recorded(name, self.prompt, secrets.token_hex(6))

        async def source() -> AsyncIterator[bytes]:
            size, sent, told = len(data), 0, -1
            async for piece in paced(data, self.pace):
                yield piece
                sent += len(piece)
                percent = int(100 * (start + share * sent / size))
                if percent // 10 != told:
                    told = percent // 10
                    self.turn.emit("progress", stage=stage, current=percent, total=100)

        return await self.turn.relay(source(), provider=provider)

    async def _run_tool(self, call: Any) -> None:
        try:
            output = await self._tool(call.id, call.name, call.arguments)
        except Exception as error:  # whatever a tool raises is its answer
            output, failed = f"{type(error).__name__}: {error}", True
        else:
            failed = False
        self.turn.emit(
            "tool_result", call_id=call.id, output=output, is_error=failed, status="error" if failed else "ok"
        )

    async def _tool(self, call_id: str, name: str, arguments: dict[str, Any]) -> Any:
        if name != "check_cases":
            await self._pause(0.35)
            return TOOLS[name](**arguments)
        lines = []
        for case in arguments["cases"]:
            await self._pause(0.3)
            lines.append(check_case(**case))
            self.turn.emit("tool_output_delta", call_id=call_id, text=lines[-1] + "\n")
        return "\n".join(lines)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.pace if self.pace > 0 else 0)


def prompt_of(value: Any) -> str:
    """The text of a turn's input, which may be any JSON."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("text", "prompt", "content") if key in value), value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- a recorded stream -----------------------------------------------------------------------------------------------


def replay_agent(data: bytes, pace: float = 1.0, provider: str = "auto") -> Agent:
    """Plays one recorded stream, of any provider, as the answer to every request."""

    async def agent(turn: Turn) -> None:
        turn.emit(
            "stage_start", stage="replay", message=f"{len(data):,} bytes in {sum(1 for _ in pieces(data)):,} pieces"
        )
        message = await turn.relay(paced(data, pace), provider=provider)
        turn.emit("stage_end", stage="replay", status="failed" if message.error else "completed")

    return agent


# --- a live server ---------------------------------------------------------------------------------------------------


def live_agent(base_url: str, model: str, provider: str = "openai-chat", *, max_tokens: int = 4096) -> Agent:
    """Streams the answer of an OpenAI-compatible or Anthropic server; the session's earlier turns go with the request.

    The key is read from OPENAI_API_KEY or ANTHROPIC_API_KEY; none is sent where there is none.
    """
    import httpx

    if provider not in LIVE:
        raise ValueError(f"provider is one of {', '.join(LIVE)}, not {provider!r}")
    base = base_url.rstrip("/")
    if provider == "anthropic":
        key = os.environ.get("ANTHROPIC_API_KEY")
        url = f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"
        headers = {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})
        options: dict[str, Any] = {"max_tokens": max_tokens}
    else:
        key = os.environ.get("OPENAI_API_KEY")
        url = f"{base}/chat/completions"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        options = {"stream_options": {"include_usage": True}}

    async def agent(turn: Turn) -> None:
        body = {"model": model, "stream": True, "messages": conversation(turn), **options}
        # A model may think for minutes between two bytes; a server that cannot be reached says so in seconds.
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(300, connect=10)) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            if response.is_error:
                said = (await response.aread())[:2000].decode("utf-8", "replace")
                turn.fail(f"the server answered {response.status_code}: {said}", code=f"http_{response.status_code}")
                return
            await turn.relay(response.aiter_bytes(), provider=provider)

    return agent


def conversation(turn: Turn) -> list[dict[str, str]]:
    """The session so far as a request's messages, this turn's input last. Empty answers are left out."""
    earlier = [
        {"role": said["role"], "content": text}
        for said in turn.session.messages()
        if said["turn"] < turn.number and (text := prompt_of(said["input"]) if said["role"] == "user" else said["text"])
    ]
    return [*earlier, {"role": "user", "content": prompt_of(turn.input)}]
