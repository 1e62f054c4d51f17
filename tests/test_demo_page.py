"""The demo's page in headless Chromium: text arrives, reload in mid-word, stop, two tabs, a cut connection.

The agents here are played by the tests, word by word, so that "in mid-word" is a place and not a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import turnstream as ts
from conftest import ROOT, need_package
from turnstream import demo
from turnstream.demo.recording import recorded

CHROMIUM = need_package("chromium")
try:
    from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
except ImportError:
    pytest.skip("needs the package playwright (pip)", allow_module_level=True)

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(120)]

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PROMPT = 'How long does “静かな朝” take? <b>&amp; "quotes"</b> ☕️'


# --- a browser, a page that is watched, an agent on strings -----------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=20_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Watched:
    """Pages whose console errors and outside requests are counted against the test."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self.errors: list[str] = []
        self.requests: list[str] = []

    def open(self, url: str) -> Page:
        page = self._context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        return page


@pytest.fixture
def watched(
    browser: Browser, serve: Callable[..., str]
) -> Iterator[Watched]:  # `serve`: the pages close before the server
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield Watched(context)
    context.close()


class Puppet:
    """An agent that does what the test says, when it says it: `do(lambda turn: turn.emit(…))`, then `end()`."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[Callable[[ts.Turn], object] | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()

    async def __call__(self, turn: ts.Turn) -> None:
        self._loop, self._lines = asyncio.get_running_loop(), asyncio.Queue()
        self._started.set()
        while (line := await self._lines.get()) is not None:
            if asyncio.iscoroutine(result := line(turn)):
                await result

    def do(self, line: Callable[[ts.Turn], object] | None) -> None:
        assert self._started.wait(20), "no turn was started"
        assert self._loop is not None
        assert self._lines is not None
        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)

    def say(self, text: str, message_id: str = "m1") -> None:
        self.do(lambda turn: turn.emit("text_delta", message_id=message_id, text=text))

    def end(self) -> None:
        self.do(None)
        self._started.clear()


def ask(page: Page, prompt: str = PROMPT) -> str:
    """Sends a prompt; the session's id."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("#."))
    return str(page.evaluate("decodeURIComponent(location.hash.slice(1))"))


def answer(page: Page, turn: int = 1) -> Any:
    return page.locator(f'[data-turn="{turn}"] .answer')


def ended(page: Page, turn: int = 1) -> Any:
    return page.locator(f'[data-turn="{turn}"] > .over')


def words(text: str) -> str:
    """Markdown or the page's text, down to what both must have: letters, digits and signs without markup and space."""
    text = re.sub(r"^```\w*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\|[-| ]+\|$", "", text, flags=re.MULTILINE)
    return re.sub(r"[\s*`#>|_-]", "", text)


def said(page: Page) -> list[str]:
    return [words(text) for text in page.locator(".answer").all_text_contents() if text]


# --- what people do ---------------------------------------------------------------------------------------------------


def test_text_arrives_as_it_is_said(watched: Watched, serve: Callable[..., str]) -> None:
    puppet = Puppet()
    page = watched.open(serve(demo.create_app(puppet)))
    ask(page)
    expect(page.locator(".ask")).to_have_text(PROMPT)
    for so_far, piece in (("The qu", "The qu"), ("The quick br", "ick br"), ("The quick brown **f", "own **f")):
        puppet.say(piece)
        expect(answer(page)).to_have_text(so_far)
        expect(page.locator("#phase")).to_have_text("live")
    puppet.say("ox** 狐🦊.")
    expect(answer(page).locator("strong")).to_have_text("fox")
    expect(page.locator("#stop")).to_be_visible()
    puppet.end()
    expect(ended(page)).to_contain_text("Completed")
    expect(answer(page)).to_have_text("The quick brown fox 狐🦊.")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#phase")).to_have_text("ended")


def test_reload_in_mid_word_loses_nothing(watched: Watched, serve: Callable[..., str]) -> None:
    puppet, hub = Puppet(), ts.Hub()
    url = serve(demo.create_app(puppet, hub=hub))
    page = watched.open(url)
    session = hub.find(ask(page))
    stays = watched.open(page.url)
    for so_far, piece in (("An unbrea", "An unbrea"), ("An unbreakable wo", "kable wo")):
        puppet.say(piece)
        expect(answer(page)).to_have_text(so_far)
        page.reload()
        expect(answer(page)).to_have_text(so_far)
        expect(answer(page)).to_have_count(1)
    puppet.say("rd")
    puppet.end()
    for tab in (page, stays):
        expect(ended(tab)).to_contain_text("Completed")
        expect(answer(tab)).to_have_text("An unbreakable word")
    (message,) = (entry for entry in session.messages() if entry["role"] == "assistant")
    assert message["text"] == "An unbreakable word" == page.evaluate("turnstream.state.messages.get('m1').text")
    page.reload()
    expect(ended(page)).to_contain_text("Completed")
    expect(answer(page)).to_have_text("An unbreakable word")
    assert not watched.errors


def test_stop_ends_as_cancelled_and_keeps_the_text(watched: Watched, serve: Callable[..., str]) -> None:
    puppet, hub = Puppet(), ts.Hub()
    page = watched.open(serve(demo.create_app(puppet, hub=hub)))
    session = hub.find(ask(page))
    puppet.do(lambda turn: turn.emit("stage_start", stage="plan"))
    puppet.say("What was sa")
    expect(answer(page)).to_have_text("What was sa")
    page.click("#stop")
    expect(ended(page)).to_contain_text("Stopped")
    expect(answer(page)).to_have_text("What was sa")
    expect(page.locator(".stagehead")).to_have_attribute("data-state", "stopped")
    result = session.result()
    assert result is not None
    assert result["status"] == "cancelled"
    assert [entry["text"] for entry in session.messages() if entry["role"] == "assistant"] == ["What was sa"]
    page.reload()
    expect(answer(page)).to_have_text("What was sa")
    expect(ended(page)).to_contain_text("Stopped")
    assert not watched.errors


def test_two_tabs_show_the_same_and_a_second_turn_too(watched: Watched, serve: Callable[..., str]) -> None:
    puppet = Puppet()
    one = watched.open(serve(demo.create_app(puppet)))
    ask(one)
    puppet.say("first")
    two = watched.open(one.url)
    puppet.end()
    for tab in (one, two):
        expect(ended(tab)).to_contain_text("Completed")
    ask(two, "again")
    puppet.say("second", "m2")
    puppet.end()
    for tab in (one, two):
        expect(ended(tab, 2)).to_contain_text("Completed")
        assert said(tab) == ["first", "second"]
    assert one.evaluate("turnstream.cursorOf(turnstream.state)") == two.evaluate(
        "turnstream.cursorOf(turnstream.state)"
    )
    assert one.locator("#talk").inner_text() == two.locator("#talk").inner_text()
    assert not watched.errors


class Cable:
    """A TCP proxy that can be cut: all connections at once, and none is taken until it is mended."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
                self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            self._end(near, far)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        with self._lock:
            self._whole = False
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)  # the pump closes: a close under its select would not wake it
            self._pairs.clear()

    def mend(self) -> None:
        with self._lock:
            self._whole = True

    def close(self) -> None:
        self.cut()
        self._end(self._listener)


def test_a_cut_connection_resumes_without_duplicates(watched: Watched, serve: Callable[..., str]) -> None:
    puppet, hub = Puppet(), ts.Hub()
    cable = Cable(int(serve(demo.create_app(puppet, hub=hub)).rsplit(":", 1)[1]))
    try:
        page = watched.open(f"http://127.0.0.1:{cable.port}/")
        session = hub.find(ask(page))
        puppet.say("before, ")
        expect(answer(page)).to_have_text("before,")
        for piece in ("during, ", "and aga"):
            cable.cut()
            expect(page.locator("#link")).to_have_attribute("data-phase", "reconnecting")
            puppet.say(piece)
            cable.mend()
            expect(page.locator("#link")).to_have_attribute("data-phase", "live")
        puppet.say("in")
        puppet.end()
        expect(ended(page)).to_contain_text("Completed")
        expect(answer(page)).to_have_text("before, during, and again")
        assert page.evaluate("turnstream.state.head") == session.head
        opened = page.evaluate(
            "turnstream.state.timeline.filter(row => row.type === 'stream_open').map(row => row.say)"
        )
        assert opened[0] == "live"
        assert opened.count("resumed") >= 2
        seen = page.evaluate("turnstream.state.timeline.filter(row => row.to).map(row => [row.from, row.to])")
        assert all(before[1] < after[0] for before, after in itertools.pairwise(seen))
    finally:
        cable.close()


def test_a_session_that_is_not_there_is_said(watched: Watched, serve: Callable[..., str]) -> None:
    page = watched.open(serve(demo.create_app(Puppet())) + "/#nobody")
    expect(page.locator("#phase")).to_have_text("unknown session")
    page.click("#new")
    expect(page.locator("#phase")).to_have_text("no session")
    expect(page.locator(".hero h2")).to_be_visible()


def test_the_recorded_agent_from_end_to_end(watched: Watched, serve: Callable[..., str]) -> None:
    hub = ts.Hub()
    url = serve(demo.create_app(hub=hub, pace=12))
    page = watched.open(url)
    session = hub.find(ask(page, PROMPT))
    expect(page.locator(".tool").first).to_be_visible()
    late = watched.open(page.url)
    page.reload()
    for tab in (page, late):
        expect(ended(tab)).to_contain_text("Completed", timeout=60_000)

    assert page.locator(".stagehead h2").all_text_contents() == ["plan", "code", "review"]
    assert page.locator(".tool summary code").all_text_contents() == ["measure_text", "check_cases", "reading_time"]
    assert page.locator(".tool .verdict b").all_text_contents() == ["done"] * 3
    expect(page.locator("blockquote")).to_have_text(" ".join(PROMPT.split()))
    assert page.locator("#talk b").count() == page.locator("#talk .verdict b, #talk .over b, #talk .think b").count()
    expect(page.locator(".think:visible")).to_have_count(3)
    page.locator(".think summary").first.click()
    expect(page.locator(".think .body").first).to_contain_text("three code points")

    messages = [entry for entry in session.messages() if entry["role"] == "assistant" and entry["text"]]
    assert said(page) == said(late) == [words(entry["text"]) for entry in messages]
    assert page.evaluate("[...turnstream.state.messages.values()].map(m => m.text).filter(Boolean)") == [
        entry["text"] for entry in messages
    ]
    usage = session.status()["usage"]
    assert page.locator("#input").text_content() == f"{usage['input_tokens']:,}"
    assert page.locator("#output").text_content() == f"{usage['output_tokens']:,}"
    assert not watched.errors
    outside = [request for request in watched.requests if not request.startswith(url)]
    assert not outside


def test_ten_thousand_deltas_stay_smooth(watched: Watched, serve: Callable[..., str]) -> None:
    puppet = Puppet()
    page = watched.open(serve(demo.create_app(puppet)))
    ask(page)
    page.evaluate(
        """() => { let last = performance.now(); window.worst = 0;
                   (function tick() { const now = performance.now(); worst = Math.max(worst, now - last); last = now;
                                      requestAnimationFrame(tick); })(); }"""
    )

    async def speak(turn: ts.Turn) -> None:
        for number in range(10_000):
            turn.emit("text_delta", message_id="m1", text=f"word{number} " if number % 50 else "**new**\n\n")
            await asyncio.sleep(0)  # the reader has its turn: what comes is not one merged frame

    puppet.do(speak)
    puppet.end()
    expect(ended(page)).to_contain_text("Completed", timeout=60_000)
    expect(answer(page).locator("p")).to_have_count(201)
    assert len(page.evaluate("turnstream.state.messages.get('m1').text")) > 80_000
    taken = page.evaluate("turnstream.state.rev")
    assert taken > 1000, "merged into too few frames to show anything"
    print("events", taken, "longest frame", page.evaluate("worst"), "ms")
    assert page.evaluate("worst") < 1500  # a redraw per delta takes minutes
    rows = page.locator("#events .row").count()
    assert 0 < rows < 60


# --- the fold, alone --------------------------------------------------------------------------------------------------


SHOWN = ["kind", "id", "text", "done", "raw", "args", "output", "status", "printed", "current", "total"]


def fold(page: Page, *events: dict[str, Any]) -> dict[str, Any]:
    """What the page makes of these events: turns with their items, the head and the epoch."""
    folded: dict[str, Any] = page.evaluate(
        """([events, fields]) => {
             let state = turnstream.initial();
             for (const event of events) state = turnstream.apply(state, event);
             const item = it => Object.fromEntries(fields.map(field => [field, it[field]]));
             const turns = {}, tokens = {};
             for (const [number, turn] of state.turns) {
               const items = turn.items.map(item), over = turn.ended !== null;
               turns[number] = {status: turn.status, input: turn.input, over, items};
               tokens[number] = turnstream.tokens(turn);
             }
             return {head: state.head, epoch: state.epoch, rows: state.timeline.length, tokens, turns};
           }""",
        [list(events), SHOWN],
    )
    return folded


def opened(status: str = "live", epoch: str = "e1", **more: Any) -> dict[str, Any]:
    return {
        "type": "stream_open",
        "status": status,
        "epoch": epoch,
        "earliest": 1,
        "head": 0,
        "heartbeat_s": 10,
        **more,
    }


def event(seq: int, type: str, **fields: Any) -> dict[str, Any]:
    return {"type": type, "seq": seq, "session": "s", "turn": 1, "round": 1, "time": 1_700_000_000_000 + seq, **fields}


@pytest.fixture
def page(watched: Watched, serve: Callable[..., str]) -> Page:
    return watched.open(serve(demo.create_app(Puppet())))


def test_the_page_knows_the_whole_vocabulary(page: Page) -> None:
    table = (ROOT / "crates/core/src/event/vocabulary.rs").read_text()
    types = dict(re.findall(r'\b[A-Z]\w+ "(\w+)" (boundary|delta|state|control)\b', table))
    assert len(types) > 25
    assert {name: kind["cls"] for name, kind in page.evaluate("turnstream.KIND").items()} == types


def test_repeated_events_are_ignored_and_merged_deltas_taken(page: Page) -> None:
    first = [event(1, "turn_start", input="x"), event(2, "text_delta", message_id="m", text="a")]
    merged = event(5, "text_delta", message_id="m", text="bcd")
    state = fold(page, opened(), *first, *first, merged, merged, event(4, "text_delta", message_id="m", text="c"))
    assert state["turns"]["1"]["items"][0]["text"] == "abcd"
    assert (state["head"], state["rows"]) == (5, 3)


def test_a_reset_withdraws_and_the_whole_message_wins(page: Page) -> None:
    whole: dict[str, Any] = {
        "refusal": None,
        "tool_calls": [],
        "finish_reason": "stop",
        "finish_reason_raw": None,
        "model": None,
        "streamed": True,
    }
    state = fold(
        page,
        opened(),
        event(1, "text_delta", message_id="m", text="wrong"),
        event(2, "message_reset", message_id="m"),
        event(3, "text_delta", message_id="m", text="rig"),
        event(4, "assistant_message", message_id="m", text="right", reasoning="", origin="provider", **whole),
    )
    assert [(i["text"], i["done"]) for i in state["turns"]["1"]["items"]] == [("right", True)]


def test_calls_by_round_and_results(page: Page) -> None:
    one = [
        event(1, "tool_call_start", call_id="c", name="look", kind="client"),
        event(2, "tool_call_delta", call_id="c", text='{"a":'),
        event(3, "tool_call_delta", call_id="c", text="1}"),
        event(
            4,
            "tool_call",
            call_id="c",
            name="look",
            arguments={"a": 1},
            arguments_raw='{"a":1}',
            arguments_error=None,
            kind="client",
        ),
        event(5, "tool_output_delta", call_id="c", text="so "),
        event(6, "tool_result", call_id="c", output=None, is_error=False, status="ok"),
    ]
    again = {**event(7, "tool_call_start", call_id="c", name="look", kind="client"), "round": 2}
    calls = fold(page, opened(), *one, again)["turns"]["1"]["items"]
    assert [(c["raw"], c["args"], c["status"]) for c in calls] == [('{"a":1}', {"a": 1}, "ok"), ("", None, None)]
    assert calls[0]["printed"] == "so "


def test_usage_is_the_last_per_round_and_the_sum_over_rounds(page: Page) -> None:
    state = fold(
        page,
        opened(),
        event(1, "usage", input_tokens=5, output_tokens=1, total_tokens=6),
        event(2, "usage", input_tokens=None, output_tokens=4, total_tokens=None),
        {**event(3, "usage", input_tokens=7, output_tokens=2, total_tokens=9, reasoning_tokens=1), "round": 2},
    )
    assert state["tokens"]["1"] == {"input_tokens": 12, "output_tokens": 6, "reasoning_tokens": 1}


def test_another_epoch_and_a_cursor_ahead_start_anew(page: Page) -> None:
    before = [opened(), event(1, "turn_start", input="old"), event(9, "text_delta", message_id="m", text="old")]
    for again in (opened("other_epoch", "e2"), opened("ahead", "e1")):
        state = fold(page, *before, again, event(1, "turn_start", input="new"))
        assert (state["head"], state["epoch"], state["turns"]["1"]["input"]) == (1, again["epoch"], "new")
        assert not state["turns"]["1"]["items"]
    kept = fold(page, *before, opened("resumed"), event(10, "text_delta", message_id="m", text="er"))
    assert kept["turns"]["1"]["items"][0]["text"] == "older"


def test_a_snapshot_stands_for_what_is_gone(page: Page) -> None:
    call = {
        "call_id": "c",
        "name": "look",
        "kind": "client",
        "arguments": {"a": 1},
        "arguments_raw": '{"a":1}',
        "done": True,
    }
    held = {
        "turn": 2,
        "running": True,
        "messages": [
            {"role": "user", "turn": 1, "message_id": "input-1", "input": "first"},
            {"role": "assistant", "turn": 1, "message_id": "m1", "text": "one", "reasoning": "", "done": True,
             "tool_calls": [{**call, "status": "ok", "output": 7, "is_error": False}]},
            {"role": "user", "turn": 2, "message_id": "input-2", "input": "second"},
            {"role": "assistant", "turn": 2, "message_id": "m2", "text": "tw", "reasoning": "hm", "done": False,
             "tool_calls": []},
        ],
        "open_calls": [],
        "progress": {"plan": {"open": True, "current": 1, "total": 4}},
        "usage": {"input_tokens": 3},
        "completion": None,
    }  # fmt: skip
    snapshot = {"type": "snapshot", "head": 40, "state": held, "time": 1}
    rest = [
        {**event(41, "text_delta", message_id="m2", text="o"), "turn": 2},
        {**event(40, "text_delta", message_id="m2", text="?"), "turn": 2},
    ]
    state = fold(page, opened("trimmed"), snapshot, *rest)
    one, two = state["turns"]["1"], state["turns"]["2"]
    assert (one["input"], one["over"], two["input"], two["over"]) == ("first", True, "second", False)
    assert [i["text"] for i in one["items"] + two["items"] if i["kind"] == "message"] == ["one", "two"]
    assert [i["output"] for i in one["items"] if i["kind"] == "call"] == [7]
    assert [(i["current"], i["total"]) for i in two["items"] if i["kind"] == "stage"] == [(1, 4)]
    assert state["tokens"]["2"] == {"input_tokens": 3}
    assert state["head"] == 41


def test_the_session_s_end_leaves_nothing_running(page: Page) -> None:
    state = fold(page, opened(), event(1, "stage_start", stage="plan"), event(2, "session_end", reason=None))
    assert state["turns"]["1"]["over"]
    assert state["turns"]["1"]["items"][0]["status"] == "incomplete"


# --- markdown ---------------------------------------------------------------------------------------------------------

TEXTS = [
    *(ts.fold(recorded(name, PROMPT, "r"), provider="auto").text for name in ("plan", "code", "review")),
    "# T\n\n1. one\n2. two\n   - in\n\n3. three\n\n> q\n> > r\n\n***\n\n~~~js\nlet a = `x`;\n~~~\nend *it* ~~no~~ [a](https://x.y/z)",
    "- a\n\n- b\n- c\n\n\npara with `co``de` and **bold *nested* text** and https://example.org/a_b_c.\n|not|a table",
    "a\r\nb\r\n\r\n```\nunclosed <script>\n",
    "***\n_a_b_ 2*3*4 **open\n\n\n\n   \n#no\n####### seven\n|a|\n|-|\n|x|\n|",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_markdown_is_the_same_however_it_came(page: Page, text: str) -> None:
    by_char, at_once = page.evaluate(
        """text => [[...text], [text]].map(pieces => {
             const root = document.createElement("div"), view = new turnstream.Markdown(root);
             let so_far = "";
             for (const piece of pieces) view.show(so_far += piece);
             root.normalize();
             return root.innerHTML;
           })""",
        text,
    )
    assert by_char == at_once


def test_markup_in_a_message_stays_text(page: Page) -> None:
    hostile = (
        '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\n\n'
        "[a](javascript:window.pwned=1) ![b](https://example.org/x.png) [c](data:text/html,x) [d](https://ok.example)\n\n"
        "```html\n<iframe src=//example.org></iframe>\n```\n\n| <b>x</b> |\n|---|\n| <svg onload=1> |"
    )
    found = page.evaluate(
        """text => { const root = document.createElement("div"); document.body.append(root);
             new turnstream.Markdown(root).show(text);
             return { tags: [...root.querySelectorAll("*")].map(e => e.tagName.toLowerCase()),
                      links: [...root.querySelectorAll("a")].map(e => e.getAttribute("href")),
                      text: root.textContent }; }""",
        hostile,
    )
    assert not {"img", "script", "iframe", "b"} & set(found["tags"])
    assert found["links"] == ["https://example.org/x.png", "https://ok.example"]
    assert '<img src=x onerror="window.pwned=1">' in found["text"]
    assert page.evaluate("window.pwned") is None


# --- hands and eyes ---------------------------------------------------------------------------------------------------


def test_the_timeline_filters_and_shows_an_event(watched: Watched, serve: Callable[..., str]) -> None:
    puppet = Puppet()
    page = watched.open(serve(demo.create_app(puppet)))
    ask(page)
    puppet.say("hello ")
    puppet.say("there")
    puppet.do(lambda turn: turn.emit("custom", name="mark", data={"x": 1}))
    puppet.end()
    expect(ended(page)).to_be_visible()
    rows = page.locator("#events .row")
    everything = rows.count()
    page.fill("#find", "text_delta")
    expect(rows).to_have_count(1)
    page.locator("#events").focus()
    page.keyboard.press("ArrowDown")
    shown = json.loads(page.locator("#json").text_content() or "")
    assert shown["text"] == "hello there"
    assert shown["type"] == "text_delta"
    page.keyboard.press("Escape")
    expect(page.locator("#json")).to_be_hidden()
    page.fill("#find", "")
    expect(rows).to_have_count(everything)
    page.get_by_role("button", name="Text").click()
    expect(page.locator("#events .row .lane-text")).to_have_count(0)
    assert not watched.errors


def test_sessions_are_listed_and_left_for_one_another(watched: Watched, serve: Callable[..., str]) -> None:
    puppet = Puppet()
    page = watched.open(serve(demo.create_app(puppet)))
    for number in ("one", "two"):
        page.click("#new")
        expect(page.locator("#phase")).to_have_text("no session")
        ask(page, f"prompt {number}")
        puppet.say(f"answer {number}")
        puppet.end()
        expect(ended(page)).to_be_visible()
    listed = page.locator("#sessions a")
    expect(listed).to_have_count(2)
    listed.filter(has_text="prompt one").click()
    expect(answer(page)).to_have_text("answer one")
    page.go_back()
    expect(answer(page)).to_have_text("answer two")
    expect(page.locator("#sessions a[aria-current]")).to_contain_text("prompt two")


def test_an_agent_that_fails_says_so(watched: Watched, serve: Callable[..., str]) -> None:
    async def agent(turn: ts.Turn) -> None:
        turn.emit("text_delta", message_id="m", text="half a sent")
        turn.fail("the model is <gone>", code="gone")

    page = watched.open(serve(demo.create_app(agent)))
    ask(page)
    expect(ended(page)).to_contain_text("Failed")
    expect(answer(page)).to_have_text("half a sent")
    expect(page.locator(".note.bad")).to_contain_text("the model is <gone>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 900, 1280])
def test_nothing_spills_sideways(
    browser: Browser, serve: Callable[..., str], scheme: Any, width: int, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(serve(demo.create_app(pace=0)))
    ask(page, "x" * 300)
    expect(ended(page)).to_contain_text("Completed", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('talk').scrollWidth <= document.getElementById('talk').clientWidth")
    context.close()


def test_the_page_comes_with_its_policy(serve: Callable[..., str]) -> None:
    import httpx

    url = serve(demo.create_app(Puppet()))
    answer = httpx.get(url + "/")
    assert answer.headers["content-security-policy"].startswith("default-src 'self' 'unsafe-inline'")
    assert httpx.head(url + "/").content == b""
    assert httpx.get(url + "/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert httpx.post(url + "/").status_code in (404, 405)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
