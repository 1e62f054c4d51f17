"""The same routes as a Ray Serve deployment: `serve run --app-dir examples/ray-serve ray_serve:backend`.

The frames stream through Serve's proxy as they come. A hub lives in its replica, and so do its sessions: one replica
here. The agent runs beside the replica, as a task on the cluster.
"""

import time
from typing import Any

from fastapi import FastAPI
from ray import serve

import turnstream as ts
import turnstream.fastapi


def work(emit: Any, question: str) -> None:
    """The agent: a plain function on the cluster."""
    for word in f"You said: {question}".split(" "):
        emit("text_delta", {"text": f"{word} "})
        time.sleep(0.05)


def build() -> FastAPI:
    """Called in the replica: a hub is not sent over."""
    app = FastAPI(title="turnstream on Ray Serve")
    agent = ts.remote.agent(work, permission_mode="interactive", ray_options={"num_cpus": 0})
    app.include_router(turnstream.fastapi.router(ts.Hub(), agent=agent))
    return app


@serve.ingress(build)
class Backend:
    """Has nothing of its own."""


deployment: Any = serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
backend = deployment(Backend).bind()
