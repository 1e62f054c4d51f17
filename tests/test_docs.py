"""The pages about clients: their code runs, as it stands there, against a served agent; and that about stores."""

import asyncio
import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support import PATIENCE_S

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


def test_what_stores_promise_names_its_tests() -> None:
    page = (ROOT / "docs" / "stores.md").read_text()
    table = page.partition("| held by |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [row.strip("| ").split(" | ") for row in table]
    assert len(rows) > 10
    code = "\n".join(
        path.read_text()
        for pattern in ("tests/test_*.py", "crates/core/tests/**/*.rs", "crates/core/src/**/*.rs")
        for path in ROOT.glob(pattern)
    )
    for row in rows:
        names = re.findall(r"`(\w+)`", row[-1])
        assert names, row[0]
        assert all(re.search(rf"\b(?:fn|def) {name}\(", code) for name in names), names
