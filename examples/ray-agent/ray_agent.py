"""A FastAPI server and an agent on Ray, in one command, `python examples/ray-agent/ray_agent.py`; then, elsewhere,

    curl -s localhost:8000/sessions -H 'content-type: application/json' -d '{"input": "Hi", "session_id": "s-42"}'
    curl -N localhost:8000/sessions/s-42/events

The agent is an actor in a process of its own, on whatever machine of the cluster; what it emits is in the session's
log, and with every reader, as if it were here. TURNSTREAM_ENABLE_REMOTE_STREAM=0 turns that off: then its result is the
message.
"""

import argparse
import asyncio
import os
import socket
from typing import Any

import ray
import uvicorn
from fastapi import FastAPI

import turnstream as ts
import turnstream.fastapi


class Agent:
    """The user's own loop: it knows a callable `emit`, and nothing of sessions, HTTP or Ray."""

    async def run(self, emit: Any, question: str) -> str:
        emit("stage_start", stage="think")
        for word in f"You said: {question}".split(" "):
            emit("text_delta", {"text": f"{word} "})
            await asyncio.sleep(0.05)
        emit("tool_call", {"call_id": "c1", "name": "shout", "arguments": {"text": question}})
        emit("tool_result", {"call_id": "c1", "output": question.upper()})
        return question.upper()


hub = ts.Hub()


async def agent(turn: ts.Turn) -> str | None:
    """One actor a turn: a turn that is cancelled or dies takes nothing else with it."""
    worker = ray.remote(num_cpus=0)(Agent).remote()
    return await ts.remote.agent(worker.run)(turn)


app = FastAPI(title="turnstream on Ray")
app.include_router(turnstream.fastapi.router(hub, agent=agent))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    options = parser.parse_args()
    os.environ.setdefault("TURNSTREAM_ENABLE_REMOTE_STREAM", "1")
    # Before the server starts: Ray takes SIGTERM, and the server takes it back. A cluster of its own; a plain
    # `ray.init()` joins the one that RAY_ADDRESS names.
    ray.init(num_cpus=2, include_dashboard=False)
    listener = socket.create_server(("127.0.0.1", options.port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    ray.shutdown()


if __name__ == "__main__":
    main()
