"""The files under examples/ that need no cluster, served as their first lines say, and read."""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import httpx
import pytest
from scripted import OPENAI_CHAT, ScriptedServer
from support import parse, text

from conftest import ROOT

Serve = Callable[..., str]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.mark.parametrize(
    ("name", "prefix"), [("starlette_app", "/api"), ("litestar_app", "/api"), ("asgi_app", "")], ids=lambda one: one
)
async def test_frameworks(serve: Serve, http: httpx.AsyncClient, name: str, prefix: str) -> None:
    if name == "litestar_app":
        pytest.importorskip("litestar")
    module = load(name)
    base = serve(module.app, lifespan="on")
    made = await http.post(f"{base}{prefix}/sessions", json={"input": 5, "session_id": "s-42"})
    assert made.status_code == 201
    for url in (f"{base}{prefix}/sessions/s-42/events", f"{base}/runs/s-42"):
        seen = parse((await http.get(url)).content)
        assert (text(seen), seen[-1].data["status"]) == ("0 1 2 3 4 ", "completed")
        assert (await http.get(url, headers={"last-event-id": str(seen[-1].id)})).status_code == 204
    assert (await http.get(f"{base}/runs/nobody")).status_code == 404


async def test_fastapi(serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as provider:
        provider.script("/v1/chat/completions", list(OPENAI_CHAT))
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
        base = serve(load("fastapi_app").app)
        made = await http.post(f"{base}/sessions", json={"input": "Hi", "session_id": "s-42"})
        assert made.status_code == 201
        seen = parse((await http.get(f"{base}/sessions/s-42/events")).content)
    assert (text(seen), seen[-1].data["status"]) == ("Hello €", "completed")
