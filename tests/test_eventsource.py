"""EventSource, npm's and Chromium's own, over a wire that is cut at random bytes: each event once, in order."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from clients import cutting, node
from support import WORDS, finished

import turnstream as ts
from conftest import need_package

SEEDS = range(20)
EXACT = "/sessions/s/events?deltas=exact"
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
def _all_cut(url: str) -> Iterator[list[str]]:
    """One proxy per seed; the longest answer that is let through is a little shorter than the whole."""
    most = len(httpx.get(f"{url}{EXACT}").content)
    with ExitStack() as stack:
        yield [stack.enter_context(cutting(url, seed, most=most)) for seed in SEEDS]


@pytest.mark.timeout(120)
def test_the_npm_eventsource_gets_each_event_once_in_order(url: str) -> None:
    with _all_cut(url) as proxies:
        for seen in node("eventsource.mjs", *(proxy + EXACT for proxy in proxies), timeout_s=60):
            _whole(seen)
            assert seen["opens"] > 1, "it was never cut"


@pytest.mark.chromium
@pytest.mark.timeout(120)
def test_chromiums_own_eventsource_gets_each_event_once_in_order(url: str) -> None:
    chromium = need_package("chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright, _all_cut(url) as proxies:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for proxy in proxies:
            page.goto(f"{proxy}/sessions/s")  # any page of that origin
            seen = page.evaluate(FOLLOW, EXACT)
            _whole(json.loads(seen))
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
