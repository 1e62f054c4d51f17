"""The FastAPI face: the same handlers, with FastAPI's dependencies and OpenAPI."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import fastapi
import httpx
import pytest
from starlette.requests import HTTPConnection
from support import WORDS, Gate, finished, frames, parse, speak, text, until
from websockets import InvalidStatus
from websockets.asyncio.client import connect

import turnstream as ts
from turnstream.asgi import ROUTES, EventStream, Policy
from turnstream.fastapi import Respond, router

Serve = Callable[..., str]


def application(hub: ts.Hub, **options: Any) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    app.include_router(router(hub, **options))
    return app


async def agent(turn: ts.Turn) -> None:
    speak(turn, WORDS)


async def test_a_run_end_to_end(serve: Serve) -> None:
    hub = ts.Hub()
    async with httpx.AsyncClient(base_url=serve(application(hub, agent=agent, prefix="/api"))) as http:
        made = await http.post("/api/sessions", json={"input": "go"})
        assert made.status_code == 201
        assert made.headers["location"] == f"/api/sessions/{made.json()['session_id']}"
        url = f"/api/sessions/{made.json()['session_id']}"
        response = await http.get(f"{url}/events", params={"after": made.json()["cursor"]})
        seen = parse(response.content)
        assert text(seen) == "".join(WORDS)
        assert seen[-1].event == "completion"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        ended = await http.get(f"{url}/events", headers={"last-event-id": str(seen[-1].id)})
        assert ended.status_code == 204
        assert (await http.get(f"{url}/result")).json()["status"] == "completed"
        assert (await http.post(f"{url}/turns", json={"input": 2})).json()["turn"] == 2
        assert (await http.head(url)).status_code == 200
        assert (await http.put(url)).status_code == 405
        assert (await http.get(f"{url}/events", params={"after": "x"})).json()["error"]["code"] == "malformed_cursor"
        assert (await http.delete(url)).status_code == 204
        assert (await http.get(url)).json()["error"]["code"] == "unknown_session"


async def test_dependencies_and_auth_guard_every_route(serve: Serve) -> None:
    hub = ts.Hub()
    finished(hub)

    def key(x_key: Annotated[str, fastapi.Header()] = "") -> None:
        if x_key != "k":
            raise fastapi.HTTPException(418)

    def auth(scope: Any) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"").decode() or None

    app = application(hub, agent=agent, dependencies=[fastapi.Depends(key)], auth=auth, listing=True)
    async with httpx.AsyncClient(base_url=serve(app)) as http:
        for route in ROUTES:
            path = route.path.format(session_id="s", response_id="resp_s_e_0")
            assert (await http.request(route.method, path)).status_code == 418
            response = await http.request(route.method, path, headers={"x-key": "k"})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
        assert (await http.get("/sessions/s", headers={"x-key": "k", "x-user": "u"})).status_code == 200


async def test_auth_may_be_a_dependency(serve: Serve) -> None:
    """Asked by every subscription, resume, poll and handshake; what it gives is the principal, of the caps too."""
    hub = ts.Hub()
    asked: list[str] = []

    def bearer(connection: HTTPConnection) -> str:
        return connection.headers.get("x-user", "")

    async def user(connection: HTTPConnection, name: Annotated[str, fastapi.Depends(bearer)]) -> dict[str, str] | None:
        asked.append(connection.path_params.get("session_id", ""))
        if name == "eve":
            raise fastapi.HTTPException(418)
        return {"sub": name} if name else None

    said: list[Any] = []
    policy = Policy(max_readers_per_principal=1)
    app = application(hub, agent=lambda turn: said.append(turn.principal), auth=fastapi.Depends(user), policy=policy)
    session = finished(hub)
    base = serve(app)
    async with httpx.AsyncClient(base_url=base, headers={"x-user": "ann"}) as http:
        resume = {"last-event-id": f"{session.epoch}.3"}
        for path in ("", "/events", "/messages", "/result", "/poll"):
            url = f"/sessions/s{path}"
            assert (await http.get(url, headers=resume)).status_code == 200
            refused = await http.get(url, headers={"x-user": ""})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
            assert (await http.get(url, headers={"x-user": "eve"})).status_code == 418
        assert asked == ["s"] * 15
        assert (await http.post("/sessions/s/turns", json={"input": 1})).status_code == 202
        await until(lambda: said == [{"sub": "ann"}])
        await until(lambda: session.status()["state"] == "completed")
        async with http.stream("GET", "/sessions/s/events", params={"follow": "session"}) as response:
            await anext(reading := frames(response))
            assert (await http.get("/sessions/s/events")).status_code == 429
            assert (await http.get("/sessions/s/events", headers={"x-user": "bob"})).status_code == 200
        del reading
    url = f"{base.replace('http', 'ws')}/sessions/s/ws?follow=turn"
    async with connect(url, additional_headers={"x-user": "bob"}) as socket:
        assert len([text async for text in socket]) > 3
    for who, status in (("eve", 418), ("", 401)):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers={"x-user": who})
        assert caught.value.response.status_code == status
    assert "x-user" not in str(app.openapi()["paths"]["/sessions/{session_id}/events"])


async def test_a_stream_in_an_endpoint_of_ones_own(serve: Serve) -> None:
    hub = ts.Hub()
    finished(hub)
    app = fastapi.FastAPI()
    gate = Gate()

    @app.get("/mine")
    async def mine(tasks: fastapi.BackgroundTasks) -> fastapi.Response:
        tasks.add_task(gate.open)
        return Respond(EventStream(hub.find("s")))

    async with httpx.AsyncClient(base_url=serve(app)) as http:
        assert text(parse((await http.get("/mine")).content)) == "".join(WORDS)
        await gate.passed()


async def test_shutdown_cancels_the_running_turns() -> None:
    hub = ts.Hub()
    stopped = asyncio.Event()

    async def endless(turn: ts.Turn) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    app = application(hub, agent=endless)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            await http.post("/sessions", json={"input": "go", "session_id": "s"})
    assert stopped.is_set()
    result = hub.find("s").result()
    assert result is not None
    assert (result["status"], result["reason"]) == ("cancelled", "shutdown")


def test_openapi_describes_every_route() -> None:
    schema = application(ts.Hub(), agent=agent, prefix="/api", listing=True).openapi()
    for route in ROUTES:
        entry = schema["paths"]["/api" + route.path][route.method.lower()]
        assert entry["summary"] == route.summary
        assert {"401", "403"} <= set(entry["responses"])
        named = [parameter["name"] for parameter in entry.get("parameters", [])]
        assert ("session_id" in named) == ("{session_id}" in route.path)
        assert len(named) == len(set(named))
    events = schema["paths"]["/api/sessions/{session_id}/events"]["get"]
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream", "application/x-ndjson"}
    assert "204" in events["responses"]
    assert "list_sessions" not in str(application(ts.Hub()).openapi())


@pytest.mark.parametrize("module", ["turnstream", "turnstream.asgi"])
def test_nothing_else_imports_a_framework(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('fastapi', 'starlette', 'uvicorn', 'httpx') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=20).strip() == "[]"
