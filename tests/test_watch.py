"""`turnstream watch` against a scripted server on a real socket, in a subprocess, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import CUT, HANG, Script, ScriptedServer

from turnstream.cli.view import View
from turnstream.cli.watch import events_url

pytestmark = pytest.mark.timeout(120)

WAIT_S = 60.0
WATCH = [sys.executable, "-m", "turnstream", "watch"]

START: dict[str, Any] = {"type": "turn_start", "turn": 1, "session": "s", "time": 1_000, "input": "hi"}
TEXT = {"type": "text_delta", "message_id": "m", "text": "one\ntw"}
MORE = {"type": "text_delta", "message_id": "m", "text": "o"}
CALL = {"type": "tool_call", "call_id": "c", "name": "add", "arguments": {"a": 1}, "arguments_raw": '{"a":1}'}
RESULT = {"type": "tool_result", "call_id": "c", "output": "2", "is_error": False, "status": "ok"}
USAGE = {"type": "usage", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
WHOLE = {"type": "assistant_message", "message_id": "m", "text": "one\ntwo", "tool_calls": []}
END: dict[str, Any] = {
    "type": "completion", "turn": 1, "time": 3_500, "status": "completed", "reason": None, "text": "one\ntwo",
    "error": None, "usage": {"input_tokens": 3, "output_tokens": 4}, "events": 8,
}  # fmt: skip
RUN = [START, {"type": "stage_start", "stage": "plan"}, TEXT, MORE, USAGE, WHOLE, CALL, RESULT,
       {"type": "progress", "stage": "plan", "current": 1, "total": 4},
       {"type": "stage_end", "stage": "plan", "status": "completed"}, END]  # fmt: skip
LINES = ["── turn 1 hi", "▸ plan", "one", "two", '→ add {"a": 1}', "← add 2", "▪ plan completed",
         "── completed, 2.5 s, 3 in, 4 out"]  # fmt: skip
OPEN = b'event: stream_open\ndata: {"type":"stream_open","status":"live","epoch":"e","head":0,"heartbeat_s":10.0}\n\n'


def frame(seq: int, event: dict[str, Any]) -> bytes:
    return f"id: e.{seq}\nevent: {event['type']}\ndata: {json.dumps({**event, 'seq': seq})}\n\n".encode()


FRAMES = [frame(at + 1, event) for at, event in enumerate(RUN)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def watch(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WATCH, url, *more], capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_run_is_followed_to_its_end(server: ScriptedServer) -> None:
    server.script("/p/sessions/s/events", [OPEN, b": heartbeat\n\n", *FRAMES, HANG])
    done = watch(server.url + "/p/sessions/s")
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, LINES, "")


def test_a_lost_connection_is_taken_up_behind_the_last_event(server: ScriptedServer) -> None:
    """Invariant 1 of `watch`: cut after every single event, in the middle of the next frame."""

    def choose(headers: dict[str, str]) -> Script:
        taken = int(headers.get("last-event-id", "e.0").removeprefix("e."))
        parts: list[Any] = [b"retry: 1\n\n", OPEN, FRAMES[taken]]
        if taken + 1 < len(FRAMES):
            parts += [FRAMES[taken + 1][:-9], CUT]
        return Script(parts)

    server.script_by("/sessions/s/events", choose)
    done = watch(server.url + "/sessions/s/events?token=t")
    assert (done.returncode, done.stdout.splitlines()) == (0, LINES)
    assert [headers.get("last-event-id") for _, headers in server.requests] == [
        None,
        *(f"e.{at + 1}" for at in range(len(FRAMES) - 1)),
    ]
    assert {path for path, _ in server.requests} == {"/sessions/s/events?token=t&follow=turn"}
    assert "reconnecting" in done.stderr


def test_a_busy_server_is_asked_again(server: ScriptedServer) -> None:
    tries = []

    def choose(headers: dict[str, str]) -> Script:
        tries.append(1)
        return Script([b"later"], 503) if len(tries) < 3 else Script([OPEN, *FRAMES])

    server.script_by("/sessions/s/events", choose)
    done = watch(server.url + "/sessions/s")
    assert (done.returncode, done.stdout.splitlines(), len(tries)) == (0, LINES, 3)


def test_after_the_end_there_is_nothing(server: ScriptedServer) -> None:
    server.script("/sessions/s/events", [], 204)
    done = watch(server.url + "/sessions/s", "--after", "e.11", "--header", "authorization: Bearer t")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.requests[0][1]["last-event-id"] == "e.11"
    assert server.requests[0][1]["authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("parts", "status", "headers", "said"),
    [
        (
            [b'{"error":{"code":"unknown_session","message":"no s"}}'], 404, {},
            "http status 404 from {url}: unknown_session: no s",
        ),
        ([b"nope"], 401, {}, "http status 401 from {url}"),
        ([b"<html>"], 200, {"content_type": "text/html"}, "{url}?follow=turn is no event stream: text/html"),
        ([b"data: hello\n\n"], 200, {}, "{url}?follow=turn is an event stream, but not of a session"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line(server: ScriptedServer, parts: list[Any], status: int, headers: Any, said: str) -> None:
    url = server.script("/sessions/s/events", parts, status, **headers)
    done = watch(server.url + "/sessions/s")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"turnstream: {said.format(url=url)}\n")


@pytest.mark.parametrize("url", ["nothing", "ftp://h/s", "http://", "http://[h/s"])
def test_a_url_that_is_none_is_one_line(url: str) -> None:
    done = watch(url)
    assert done.returncode == 1
    assert done.stderr.startswith("turnstream: ")
    assert done.stderr.count("\n") == 1


def test_a_header_that_cannot_be_sent_is_one_line(server: ScriptedServer) -> None:
    server.script("/sessions/s/events", [b""])
    done = watch(server.url + "/sessions/s", "--header", "no header: x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("turnstream: ")
    assert done.stderr.count("\n") == 1


def test_no_server_is_given_up(server: ScriptedServer) -> None:
    done = watch("http://127.0.0.1:9/sessions/s", "--give-up-s", "0.3")
    assert done.returncode == 1
    assert "no connection to http://127.0.0.1:9/sessions/s/events?follow=turn for 0.3 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_quietly_with_what_was_said(server: ScriptedServer) -> None:
    """Invariant 3 of `watch`."""
    server.script("/sessions/s/events", [OPEN, *FRAMES[:3], HANG])
    process = subprocess.Popen(
        [*WATCH, server.url + "/sessions/s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = [process.stdout.readline().rstrip("\n") for _ in LINES[:3]]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=WAIT_S)
    assert (seen, rest, errors, process.returncode) == (LINES[:3], "tw\n", "", 130)
    assert server.left.wait(WAIT_S)


def test_a_terminal_shows_it_live(server: ScriptedServer) -> None:
    gate = threading.Event()
    server.script("/sessions/s/events", [OPEN, *FRAMES[:4], gate, *FRAMES[4:]])
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [*WATCH, server.url + "/sessions/s"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    screen = b""

    def until(wanted: str) -> None:
        nonlocal screen
        deadline = time.monotonic() + WAIT_S
        while wanted.encode() not in screen and time.monotonic() < deadline:
            try:
                screen += os.read(ours, 65536)
            except OSError:  # how a terminal says that the other side is gone
                break
        assert wanted.encode() in screen, screen.decode(errors="replace")

    until("two")  # the unfinished line, which plain output would keep back
    until("connected")
    until("session s")
    until("running")
    gate.set()
    until(LINES[-1])
    until("\x1b[?25h")  # the cursor is shown again
    assert process.wait(WAIT_S) == 0
    os.close(ours)


# --- the view --------------------------------------------------------------------------------------------------------


def test_no_escape_sequence_reaches_the_terminal() -> None:
    """Invariant 1 of `view`."""
    evil = "\x1b]0;x\x07a\u202eb\r\x9b31m\n"
    view = View()
    lines = []
    for event in (
        {**START, "input": evil},
        {**TEXT, "text": evil},
        {**CALL, "name": evil, "arguments": {"k": evil}},
        {**RESULT, "output": evil},
        {"type": "stage_start", "stage": evil, "message": evil},
        {"type": "error", "code": evil, "message": evil},
        {**END, "status": evil, "reason": evil},
    ):
        lines += [line.text for line in view.feed(event)]
    for line in lines:
        assert not set(line) & set("\x1b\x07\u202e\r\x9b"), line


def test_a_message_without_deltas_is_shown_once() -> None:
    view = View()
    assert [line.text for line in view.feed(WHOLE)] == ["one", "two"]
    again = [line.text for event in (TEXT, MORE, WHOLE) for line in view.feed(event)]
    assert again == ["one", "two"]


def test_a_snapshot_stands_for_the_history() -> None:
    view = View()
    state = {
        "turn": 2,
        "running": True,
        "messages": [
            {"role": "user", "turn": 1, "message_id": "input-1", "input": {"q": 1}},
            {"role": "assistant", "turn": 1, "message_id": "a", "text": "first", "done": True},
            {"role": "user", "turn": 2, "message_id": "input-2", "input": "again"},
            {"role": "assistant", "turn": 2, "message_id": "b", "text": "sec", "done": False},
        ],
        "usage": None,
    }
    lines = [line.text for line in view.feed({"type": "snapshot", "head": 9, "state": state})]
    lines += [line.text for line in view.feed({"type": "text_delta", "message_id": "b", "text": "ond"})]
    lines += [line.text for line in view.feed({"type": "assistant_message", "message_id": "b", "text": "second"})]
    assert lines == ["(history up to event 9 is folded)", '── turn 1 {"q": 1}', "first", "── turn 2 again", "second"]


def test_unknown_events_and_odd_fields_do_no_harm() -> None:
    view = View()
    for event in ({}, {"type": "new_in_version_2"}, {"type": "progress"}, {"type": "tool_result"}, {"type": "rest"}):
        list(view.feed(event))
    view.render()


def test_urls() -> None:
    assert events_url("http://h:1/p/sessions/s", "turn") == "http://h:1/p/sessions/s/events?follow=turn"
    assert events_url("https://h/sessions/s/events/?after=x&k=v&follow=none", "session") == (
        "https://h/sessions/s/events/?k=v&follow=session"
    )
