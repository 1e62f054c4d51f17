"""A whole backend: sessions over HTTP, an agent that relays one model call.

Run it with `OPENAI_API_KEY=… uvicorn examples.fastapi_app:app`, then open two terminals:

    curl -s localhost:8000/sessions -d '{"input": "Hi", "session_id": "s-42"}' -H 'content-type: application/json'
    curl -N localhost:8000/sessions/s-42/events
"""

import os

import httpx
from fastapi import FastAPI

import turnstream as ts
import turnstream.fastapi

hub = ts.Hub()
BASE_URL = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


async def agent(turn: ts.Turn) -> None:
    """One model call. What it says is in the log, and with every reader, while it comes."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": str(turn.input)}]}
    headers = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    async with (
        httpx.AsyncClient(base_url=BASE_URL, timeout=60) as http,
        http.stream("POST", "/chat/completions", json=body, headers=headers) as response,
    ):
        await turn.relay(response, provider="openai-chat")


app = FastAPI(title="turnstream")
app.include_router(turnstream.fastapi.router(hub, agent=agent))
