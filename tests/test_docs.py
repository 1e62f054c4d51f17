"""The pages about clients: their code runs, as it stands there, against a served agent; and that about stores."""

import asyncio
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import cutting, script
from support import PATIENCE_S, parse, text

import turnstream as ts
from conftest import ROOT, need_package, run_bounded
from turnstream.asgi import app

Serve = Callable[..., str]

WORDS = ["One ", "two ", "three ", "\u2028 four."]
ANSWER = "".join(WORDS)


async def agent(turn: ts.Turn) -> None:
    for word in WORDS:
        turn.emit("text_delta", message_id=f"m{turn.number}", text=word)
        await asyncio.sleep(0)


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    """What the code leaves behind."""
    names["__name__"] = "__main__"  # frameworks look for the module of a function
    exec(compile(code, "docs", "exec"), names)
    return names


@pytest.fixture
def base(serve: Serve) -> str:
    return serve(app(ts.Hub(), agent))


async def started(base: str) -> tuple[str, str]:
    async with httpx.AsyncClient() as http:
        made = (await http.post(f"{base}/sessions", json={"input": "go"})).json()
    return made["session_id"], made["cursor"]


async def test_websocket(base: str) -> None:
    (code,) = blocks("websocket.md")
    async with httpx.AsyncClient() as http, asyncio.timeout(PATIENCE_S):
        session_id = (await http.post(f"{base}/sessions")).json()["session_id"]
        assert await run(code)["ask"](base, session_id, "go") == ANSWER


async def test_websocket_in_javascript(base: str) -> None:
    node = need_package("nodejs")
    (code,) = blocks("websocket.md", "js")
    session_id, cursor = await started(base)
    script = f"""
        let text = ""; const show = (more) => text += more
        const [base, id, cursor] = {[base, session_id, cursor]}
        {code}
        socket.onclose = (event) => console.log(JSON.stringify([event.code, text]))
    """
    command = [node, "--no-warnings", "--experimental-websocket", "-e", script]
    status, out, err = await asyncio.to_thread(run_bounded, command, timeout_s=PATIENCE_S)
    assert (status, err) == (0, "")
    assert run(f"seen = {out}")["seen"] == [1000, ANSWER]


async def test_polling(base: str) -> None:
    session_id, cursor = await started(base)
    found = run("\n".join(blocks("polling.md")))
    assert await asyncio.to_thread(found["follow"], base, session_id, cursor) == ANSWER
    assert await asyncio.to_thread(found["load"], base, session_id) == ANSWER


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("block", [0, 1])
async def test_openai(base: str, block: int) -> None:
    said = io.StringIO()

    def blocked() -> None:
        with contextlib.redirect_stdout(said):
            run(blocks("openai.md")[block], base=base)["client"].close()

    await asyncio.to_thread(blocked)
    assert said.getvalue() == ANSWER


def test_eventsource(serve: Serve) -> None:
    """With npm's, over a wire that is cut; it ends by itself."""
    base = serve(app(ts.Hub(), agent, retry_ms=20))
    (code,) = blocks("eventsource.md", "js")
    session_id, cursor = asyncio.run(started(base))
    prelude = """
        import { EventSource } from "eventsource"
        const alive = setInterval(() => {}, 1000), seen = { text: "", id: "", end: "" }
        const show = (more) => (seen.text += more), remember = (id) => (seen.id = id)
        const finish = (end) => (seen.end = end.status)
        const stopped = () => (clearInterval(alive), console.log(JSON.stringify(seen)))
    """
    with cutting(base, 3, most=400, cuts=2) as proxy:
        names = f"const [base, id, cursor] = {json.dumps([proxy, session_id, cursor])}"
        seen = script(f"{prelude}\n{names}\n{code}")
    assert (seen["text"], seen["end"]) == (ANSWER, "completed")
    assert seen["id"].startswith(cursor.partition(".")[0])


async def test_httpx_sse(base: str) -> None:
    (code,) = blocks("httpx-sse.md")
    session_id, cursor = await started(base)
    with cutting(base, 5, most=900, cuts=3) as proxy:
        async with asyncio.timeout(PATIENCE_S):
            assert await run(code)["follow"](proxy, session_id, cursor) == ANSWER


async def test_terminal(base: str, tmp_path: Path) -> None:
    need_package("curl")
    environment = {"B": base, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    first, pages, watch = blocks("terminal.md", "sh")

    async def bash(code: str) -> str:
        command = ["bash", "-euc", code]
        status, out, err = await asyncio.to_thread(
            run_bounded, command, timeout_s=PATIENCE_S, env=environment, cwd=tmp_path
        )
        assert status == 0, err
        return out

    *lines, result = (await bash(first)).replace("}{", "}\n{").split("\n")
    kinds = [json.loads(line).get("type") for line in lines]
    assert (kinds[:2], kinds[-1]) == ([None, "stream_open"], "completion")
    assert json.loads(result)["text"] == ANSWER
    assert text(parse((await bash(pages)).encode())) == ANSWER
    assert "four." in await bash(watch)


@pytest.mark.parametrize("block", range(3), ids=["starlette", "litestar", "bare"])
async def test_frameworks(serve: Serve, block: int) -> None:
    names = {"hub": ts.Hub(), "agent": agent}
    if block == 1:
        pytest.importorskip("litestar")
    base = serve(run(blocks("frameworks.md")[block], **names)["application"], lifespan="on")
    async with httpx.AsyncClient(base_url=base) as http:
        made = await http.post("/api/sessions", json={"input": "go", "session_id": "s"})
        assert made.status_code == 201
        for path in ("/api/sessions/s/events", "/mine/s"):
            assert text(parse((await http.get(path)).content)) == ANSWER


def test_every_kind_of_client_has_a_page() -> None:
    """And the first page names them all."""
    overview = (ROOT / "docs" / "http.md").read_text()
    pages = ["eventsource", "websocket", "polling", "terminal", "httpx-sse", "ai-sdk", "ag-ui", "openai", "frameworks"]
    assert [name for name in pages if f"({name}.md)" not in overview] == []
