"""The same streams behind other servers, proxies and middleware, and in other frameworks."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import (
    AT_ONCE_S,
    PATIENCE_S,
    WORDS,
    Seen,
    finished,
    frames,
    frozen,
    listening,
    parse,
    speak,
    text,
    until,
    within,
)

import turnstream as ts
from conftest import need_package
from turnstream.asgi import EventStream, Policy, app

Serve = Callable[..., str]


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- granian ----------------------------------------------------------------------------------------------------------

GRANIAN = """
import asyncio, sys
import turnstream as ts
from turnstream.asgi import app

hub = ts.Hub()
hub.session("idle")
big = hub.session("big").turn("big")
for _ in range(300):
    big.emit("custom", {"name": "part", "data": "x" * 100_000})

async def agent(turn):
    while True:
        turn.emit("custom", {"name": "tick"})
        await asyncio.sleep(0.01)

application = app(hub, agent=agent)
"""


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("stuck", [False, True], ids=["reading", "and-one-frozen"])
async def test_granian_stops_and_tells(http: httpx.AsyncClient, tmp_path: Path, stuck: bool) -> None:
    (tmp_path / "served.py").write_text(GRANIAN)
    port = a_free_port()
    command = [
        sys.executable,
        "-m",
        "granian",
        "--interface",
        "asgi",
        "--port",
        str(port),
        "--no-ws",
        "served:application",
    ]
    if stuck:  # granian itself waits for who takes nothing, as long as it is let
        command[3:3] = ["--workers-kill-timeout", "1"]
    server = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, start_new_session=True)
    try:
        await listening(port)
        base = f"http://127.0.0.1:{port}"
        made = (await http.post(f"{base}/sessions", json={"input": "go"})).json()
        opened = asyncio.Queue[None]()

        async def follow(session: str) -> list[Seen]:
            seen: list[Seen] = []
            async with http.stream("GET", f"{base}/sessions/{session}/events?follow=session") as response:
                async for frame in frames(response):
                    opened.put_nowait(None)
                    seen.append(frame)
            return seen

        following = [asyncio.create_task(follow(session)) for session in ("idle", made["session_id"])]
        for _ in range(10):
            await asyncio.wait_for(opened.get(), PATIENCE_S)
        client = frozen(base, "/sessions/big/events") if stuck else None
        if client is not None:
            client.recv(1)
        with within(3):
            server.send_signal(signal.SIGTERM)
            await asyncio.wait_for(server.wait(), PATIENCE_S)
        idle, busy = await asyncio.gather(*following, return_exceptions=stuck)
        if client is not None:
            client.close()
    finally:
        if server.returncode is None:
            os.killpg(server.pid, signal.SIGKILL)
        await server.wait()
    if stuck:
        return  # its worker was killed: who read may have been told, or not
    assert isinstance(idle, list)
    assert isinstance(busy, list)
    assert (idle[-1].event, idle[-1].data["reason"]) == ("stream_close", "shutdown")
    assert busy[-1].event == "stream_close"
    assert busy[-2].event == "completion"


# --- nginx ------------------------------------------------------------------------------------------------------------

NGINX = """
daemon off;
master_process off;
error_log {folder}/error.log;
pid {folder}/pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_read_timeout 20s;
    }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: str) -> Generator[int]:
    """Debian's nginx before `upstream`, with buffering as it comes: on."""
    program = need_package("nginx")
    port = a_free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        proxy.terminate()
        proxy.wait(PATIENCE_S)


async def test_nginx_passes_each_frame_on_at_once(
    serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """And a client that leaves it leaves us."""
    session = hub.session("s")
    with nginx(tmp_path, serve(app(hub))) as port, session.turn("go") as turn:
        await listening(port)
        async with http.stream("GET", f"http://127.0.0.1:{port}/sessions/s/events") as response:
            reading = frames(response)
            assert (await anext(reading)).event == "stream_open"
            assert (await anext(reading)).event == "turn_start"
            for number in range(20):  # each is there before the next is said: nothing waits for a full buffer
                turn.emit("custom", {"name": "part", "data": number})
                assert (await asyncio.wait_for(anext(reading), AT_ONCE_S)).data["data"] == number
        await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)
        # It reads no further than its client does, so that a frozen one is seen, and cut, behind it too.
        for _ in range(300):
            turn.emit("custom", {"name": "part", "data": "x" * 100_000})
        with frozen(f"http://127.0.0.1:{port}", "/sessions/s/events") as client:
            client.recv(1)
            await until(lambda: session.statistics()["readers"] == 1)
        await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)


# --- middleware -------------------------------------------------------------------------------------------------------


def starlette_app(hub: ts.Hub, *middleware: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Mount

    inner = app(hub, policy=Policy(write_timeout_s=0.4))
    return Starlette(
        routes=[Mount("/", inner)], middleware=[Middleware(*one) for one in middleware], lifespan=inner.lifespan
    )


class _Passes:
    """`BaseHTTPMiddleware`, as applications write it."""

    def __new__(cls, application: Any) -> Any:
        from starlette.middleware.base import BaseHTTPMiddleware

        async def dispatch(request: Any, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["x-passed"] = "yes"
            return response

        return BaseHTTPMiddleware(application, dispatch=dispatch)


async def test_under_base_http_middleware(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """Frames come at once; leaving frees the reader, also one that had nothing to say."""
    session = hub.session("s")
    base = serve(starlette_app(hub, (_Passes,)))
    with session.turn("go") as turn:
        async with http.stream("GET", f"{base}/sessions/s/events") as response:
            assert response.headers["x-passed"] == "yes"
            reading = frames(response)
            await anext(reading)
            await anext(reading)
            for number in range(5):
                turn.emit("custom", {"name": "part", "data": number})
                assert (await asyncio.wait_for(anext(reading), AT_ONCE_S)).data["data"] == number
        await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)
        speak(turn, WORDS)
    assert parse((await http.get(f"{base}/sessions/s/events")).content)[-1].event == "completion"


async def test_under_gzip_an_event_stream_is_left_alone(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    """NDJSON it compresses, and flushes each piece."""
    from starlette.middleware.gzip import GZipMiddleware

    session = hub.session("s")
    base = serve(starlette_app(hub, (GZipMiddleware, 1)))
    with session.turn("go") as turn:
        for kind, coding in (("sse", None), ("ndjson", "gzip")):
            url = f"{base}/sessions/s/events?format={kind}&after={session.cursor}"
            async with http.stream("GET", url, headers={"accept-encoding": "gzip"}) as response:
                assert response.headers.get("content-encoding") == coding
                pieces = response.aiter_bytes()
                await asyncio.wait_for(anext(pieces), AT_ONCE_S)
                turn.emit("custom", {"name": kind})
                assert f'"name":"{kind}"'.encode() in await asyncio.wait_for(anext(pieces), AT_ONCE_S)
            await until(lambda: session.statistics()["readers"] == 0, patience_s=AT_ONCE_S)


# --- frameworks -------------------------------------------------------------------------------------------------------


async def whole_and_resumed(http: httpx.AsyncClient, url: str, session: ts.Session) -> None:
    seen = parse((await http.get(url)).content)
    assert text(seen) == "".join(WORDS)
    assert seen[-1].event == "completion"
    tail = parse((await http.get(url, headers={"last-event-id": f"{session.epoch}.5"})).content)
    assert (tail[0].data["status"], tail[1].data["seq"] > 5) == ("resumed", True)
    assert (await http.get(url, headers={"last-event-id": session.cursor})).status_code == 204


async def test_starlette(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    from turnstream.fastapi import Respond

    session = finished(hub)
    inner = app(hub)

    async def mine(request: Any) -> Any:
        return Respond(EventStream(hub.find(request.path_params["id"])))

    routes = [Route("/mine/{id}", mine), Mount("/api", inner)]
    base = serve(Starlette(routes=routes, lifespan=inner.lifespan))
    for url in (f"{base}/mine/s", f"{base}/api/sessions/s/events"):
        await whole_and_resumed(http, url, session)


async def test_litestar(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    litestar = pytest.importorskip("litestar")
    session = finished(hub)
    inner = app(hub)

    @litestar.asgi("/api", is_mount=True, copy_scope=True)  # type: ignore[untyped-decorator, unused-ignore]
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    @litestar.asgi("/mine", copy_scope=True)  # type: ignore[untyped-decorator, unused-ignore]
    async def mine(scope: Any, receive: Any, send: Any) -> None:
        await EventStream(hub.find("s"))(scope, receive, send)

    base = serve(litestar.Litestar([mounted, mine], lifespan=[inner.lifespan]))
    for url in (f"{base}/mine", f"{base}/api/sessions/s/events"):
        await whole_and_resumed(http, url, session)


@pytest.mark.parametrize("root", ["/", "/api"])
async def test_litestar_at_a_root(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient, root: str) -> None:
    litestar = pytest.importorskip("litestar")
    inner = app(hub)

    @litestar.asgi(root, is_mount=True, copy_scope=True)  # type: ignore[untyped-decorator, unused-ignore]
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    base = serve(litestar.Litestar([mounted], lifespan=[inner.lifespan]))
    made = await http.post(f"{base}{root.rstrip('/')}/sessions", json={})
    assert made.status_code == 201
    assert (await http.get(base + made.headers["location"])).json()["session_id"] == made.json()["session_id"]


async def test_bare_asgi(serve: Serve, hub: ts.Hub, http: httpx.AsyncClient) -> None:
    session = finished(hub)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await EventStream(hub.find("s"))(scope, receive, send)

    await whole_and_resumed(http, serve(application, lifespan="off"), session)
