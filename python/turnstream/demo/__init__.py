"""The demo: one page that shows a run, and an agent that gives it something to show.

Owns the page's delivery and the choice of the agent. What it serves beside the page is `turnstream.asgi.app`, as any
program would; the page asks for nothing but that, from nowhere but here.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from turnstream import Hub, Normalizer, TurnstreamError, asgi

from .agent import LIVE, Agent, live_agent, recorded_agent, replay_agent

__all__ = ["DemoError", "create_app", "live_agent", "recorded_agent", "replay_agent", "run", "serve"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class DemoError(TurnstreamError, ValueError):
    """What was asked of the demo does not go together; the text says what."""

    code = "demo_options"


POLICY = "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


def create_app(agent: Agent | None = None, *, hub: Hub | None = None, pace: float | None = None) -> App:
    """The page at `/`, the sessions' routes beside it. Without `agent`, the recorded one at `pace` (1 is natural)."""
    # The list of sessions opens all of them to whoever asks: right for a demo on one's own machine.
    delivery = asgi.app(hub or Hub(), agent=agent or recorded_agent(_pace(pace)), listing=True, retry_ms=500)
    here = files(__package__)
    page, icon = (here / "page.html").read_bytes(), (here / "icon.svg").read_bytes()
    documents = {
        "/": (page, b"text/html; charset=utf-8"),
        "/favicon.svg": (icon, b"image/svg+xml"),
        "/favicon.ico": (icon, b"image/svg+xml"),
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else None
        if path not in documents or scope["method"] not in ("GET", "HEAD"):
            await delivery(scope, receive, send)
            return
        body, kind = documents[path]
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", POLICY.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] == "GET" else b""})

    return app


def run(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    replay: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    model: str | None = None,
    provider: str | None = None,
    pace: float | None = None,
) -> None:
    """What `turnstream demo` does: chooses the agent by what is given, and serves until interrupted.

    `replay`: a recorded stream, of `provider` or of any. `base_url` and `model`: a live server that speaks `provider`
    (openai-chat or anthropic). Neither: the recorded agent. DemoError where they do not go together, OSError where the
    recording cannot be read, TurnstreamError where it is of no known format.
    """
    provider = provider or "auto"
    if model is not None and base_url is None:
        raise DemoError("a model's name needs the address of its server")
    if replay is not None and base_url is not None:
        raise DemoError("a demo replays a recording or talks to a server, not both")
    if base_url is not None:
        if not model:
            raise DemoError("a live server needs a model's name")
        if provider == "auto":
            provider = "anthropic" if "anthropic" in base_url else "openai-chat"
        if provider not in LIVE:
            raise DemoError(f"the demo speaks {' and '.join(LIVE)} to live servers, not {provider}")
        serve(host, port, live_agent(base_url, model, provider))
    elif replay is not None:
        data = Path(replay).read_bytes()
        check = Normalizer(provider)
        check.feed(data)
        check.finish()
        serve(host, port, replay_agent(data, _pace(pace), provider))
    else:
        serve(host, port, recorded_agent(_pace(pace)))


def serve(host: str = "127.0.0.1", port: int = 8000, agent: Agent | None = None, *, pace: float | None = None) -> None:
    """Serves the demo with uvicorn until interrupted, and says where. Port 0 takes a free one."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[Any] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                at = self.servers[0].sockets[0].getsockname()
                print(f"turnstream demo on http://{f'[{at[0]}]' if ':' in at[0] else at[0]}:{at[1]}/", flush=True)

    # An open event stream would hold the shutdown for ever; two seconds let a running answer's frames go out.
    config = uvicorn.Config(create_app(agent, pace=pace), host, port, log_level="warning", timeout_graceful_shutdown=2)
    Server(config).run()


def _pace(pace: float | None) -> float:
    return float(os.environ.get("TURNSTREAM_DEMO_PACE", "1")) if pace is None else pace
