"""EventSource, npm's and Chromium's own: over a wire that is cut at random bytes, and left to itself over a server's
restart, it gets each event once, in order."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import cutting, node, script
from support import PATIENCE_S, WORDS, finished
from test_deployments import a_free_port

import turnstream as ts
from conftest import need_package

SEEDS = range(20)
EXACT = "/sessions/s/events?deltas=exact"
HEAD = 300
"""More bytes than a head has."""
# Every event of the log, with its id.
EVENTS = 1 + 1 + len(WORDS) + 1 + 1


@pytest.fixture
def url(serve: Callable[..., str]) -> str:
    hub = ts.Hub()
    finished(hub)
    # Without it a client waits three seconds before it comes back.
    return serve(ts.asgi.app(hub, retry_ms=5))


def _whole(seen: dict[str, Any]) -> None:
    assert [int(cursor.rpartition(".")[2]) for cursor in seen["ids"]] == list(range(1, EVENTS + 1))
    assert seen["types"][-1] == "completion"


@contextmanager
def _all_cut(url: str, least: int = 1) -> Iterator[list[str]]:
    """One proxy per seed; the longest answer that is let through is a little shorter than the whole."""
    most = len(httpx.get(f"{url}{EXACT}").content)
    with ExitStack() as stack:
        yield [stack.enter_context(cutting(url, seed, most=most, least=least)) for seed in SEEDS]


@pytest.mark.timeout(120)
def test_the_npm_eventsource_gets_each_event_once_in_order(url: str) -> None:
    with _all_cut(url) as proxies:
        for seen in node("eventsource.mjs", *(proxy + EXACT for proxy in proxies), timeout_s=60):
            _whole(seen)
            assert seen["opens"] > 1, "it was never cut"


@pytest.mark.timeout(120)
def test_a_run_that_goes_on_comes_once_in_order_too(serve: Callable[..., str]) -> None:
    """The words come while the connections are cut; the run outlasts most of them."""
    hub = ts.Hub()
    session = hub.session("s")
    url = serve(ts.asgi.app(hub, retry_ms=5))

    def say() -> None:
        with session.turn("say it") as turn:
            for word in WORDS:
                turn.emit("text_delta", {"message_id": "m1", "text": word})
                paced.wait(0.02)

    paced, speaking = threading.Event(), threading.Thread(target=say)
    with ExitStack() as stack:
        proxies = [stack.enter_context(cutting(url, seed, most=2000)) for seed in SEEDS]
        speaking.start()
        for seen in node("eventsource.mjs", *(proxy + EXACT for proxy in proxies), timeout_s=60):
            _whole(seen)
            assert seen["opens"] > 1, "it was never cut"
    speaking.join()


@pytest.mark.chromium
@pytest.mark.timeout(120)
def test_chromiums_own_eventsource_gets_each_event_once_in_order(url: str) -> None:
    # To Chromium what is cut in its head may be a whole answer without a type, on which an EventSource gives up:
    # "HTTP/1.1" alone once in dozens of times, where the machine is busy.
    with _chromium() as page, _all_cut(url, least=HEAD) as proxies:
        for proxy in proxies:
            page.goto(f"{proxy}/sessions/s")  # any page of that origin
            seen = page.evaluate(FOLLOW, EXACT)
            _whole(json.loads(seen))


@contextmanager
def _chromium() -> Iterator[Any]:
    chromium = need_package("chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


FOLLOW = """url => new Promise(resolve => {
  const seen = {ids: [], types: [], opens: 0}
  const source = new EventSource(url)
  source.addEventListener("open", () => seen.opens += 1)
  for (const type of ["turn_start", "message_start", "text_delta", "assistant_message", "completion"])
    source.addEventListener(type, event => {
      seen.ids.push(event.lastEventId)
      seen.types.push(type)
      if (type === "completion") { source.close(); resolve(JSON.stringify(seen)) }
    })
})"""


# --- left to itself ---------------------------------------------------------------------------------------------------

# Nobody closes it: it is over when it has given up by itself, on a 204 or a 404.
ALONE = """url => new Promise(resolve => {
  const seen = {ids: [], types: [], opens: [], losses: []}
  const source = new EventSource(url)
  source.addEventListener("open", () => seen.opens.push(performance.now()))
  source.addEventListener("error", () => {
    seen.losses.push(performance.now())
    if (source.readyState === EventSource.CLOSED) resolve(JSON.stringify(seen))
  })
  const types = ["turn_start", "message_start", "text_delta", "assistant_message", "completion", "session_end",
    "stream_close"]
  for (const type of types)
    source.addEventListener(type, event => {
      if (type !== "stream_close") seen.ids.push(event.lastEventId)
      seen.types.push(type)
    })
})"""

FROM_NPM = """
import { EventSource } from "eventsource"
globalThis.EventSource = EventSource
const alive = setInterval(() => {}, 1000)
console.log(await (%s)(%s))
clearInterval(alive)
"""

SERVER = """
import sys, uvicorn, turnstream as ts
application = ts.asgi.app(ts.Hub(f"sqlite:///{sys.argv[2]}/runs.db"), lambda turn: "said " + turn.input)
uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@contextmanager
def _by_npm() -> Iterator[Callable[[str], Any]]:
    yield lambda url: script(FROM_NPM % (ALONE, json.dumps(url)), timeout_s=90)


@contextmanager
def _by_chromium() -> Iterator[Callable[[str], Any]]:
    with _chromium() as page:

        def follow(url: str) -> Any:
            page.goto(url.partition("/events")[0])
            return json.loads(page.evaluate(ALONE, url))

        yield follow


@contextmanager
def _server(port: int, folder: Path) -> Iterator[httpx.Client]:
    base = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(folder)])
    with httpx.Client(base_url=base, timeout=PATIENCE_S) as http:
        try:
            _wait(lambda: http.get("/sessions/none").status_code == 404)
            yield http
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if condition():
                return
    raise TimeoutError


CLIENTS = [
    pytest.param(_by_npm, id="npm"),
    pytest.param(_by_chromium, id="chromium", marks=pytest.mark.chromium),
]


@pytest.mark.parametrize("client", CLIENTS)
def test_it_stops_by_itself_after_the_end(url: str, client: Any) -> None:
    """The end of the body is a lost connection to it: it comes back after `retry`, and is answered 204."""
    with client() as follow:
        seen = follow(f"{url}{EXACT}")
    assert [int(cursor.rpartition(".")[2]) for cursor in seen["ids"]] == list(range(1, EVENTS + 1))
    assert (seen["types"][-1], len(seen["opens"]), len(seen["losses"])) == ("completion", 1, 2)


@pytest.mark.parametrize("client", CLIENTS)
def test_it_comes_back_to_the_next_server_and_goes_on(client: Any, tmp_path: Path) -> None:
    """A server's stop says when to come back; the next server has the log, and the cursor is the browser's own."""
    port, serving, over = a_free_port(), threading.Event(), threading.Event()

    def serve_twice() -> None:
        with _server(port, tmp_path) as first:
            first.post("/sessions", json={"session_id": "s", "input": "one"})
            serving.set()
            _wait(lambda: bool(first.get("/sessions/s").json()["readers"]))
        with _server(port, tmp_path) as second:
            _wait(lambda: bool(second.get("/sessions/s").json()["readers"]))
            second.post("/sessions/s/turns", json={"input": "two"})
            _wait(lambda: second.get("/sessions/s/result").status_code == 200)
            second.delete("/sessions/s")
            assert over.wait(PATIENCE_S)

    with client() as follow, ThreadPoolExecutor(1) as pool:
        servers = pool.submit(serve_twice)
        assert serving.wait(PATIENCE_S)
        seen = follow(f"http://127.0.0.1:{port}/sessions/s/events?follow=session&deltas=exact")
        over.set()
        servers.result(PATIENCE_S)
    numbers = [int(cursor.rpartition(".")[2]) for cursor in seen["ids"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert seen["types"].count("completion") == 2
    assert seen["types"].count("stream_close") == 1
    assert seen["types"][-1] == "session_end"
    assert len(seen["opens"]) == 2
    assert seen["opens"][1] - seen["losses"][0] > 1900, "it was told to wait for two seconds"
