"""The `turnstream` command in fresh processes: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scripted import ANTHROPIC, OPENAI_BODY, OPENAI_CHAT

import turnstream as ts

WAIT_S = 60.0
COMMAND = [sys.executable, "-m", "turnstream"]
STREAMS = {
    "openai-chat": b"".join(OPENAI_CHAT),
    "anthropic": b"".join(ANTHROPIC),
    "openai-chat body": OPENAI_BODY,
    "in-band error": OPENAI_CHAT[0] + b'data: {"error":{"message":"overloaded","type":"server_error","code":503}}\n\n',
}


def turnstream(*arguments: str, stdin: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=WAIT_S, check=False, **options
    )


def one_line(done: subprocess.CompletedProcess[bytes], status: int = 1) -> str:
    assert (done.returncode, done.stdout) == (status, b""), done
    assert done.stderr.startswith(b"turnstream: ")
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


@pytest.fixture(params=sorted(STREAMS))
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "recorded"
    path.write_bytes(STREAMS[request.param])
    return path


def test_fold_prints_one_object_in_any_split(recorded: Path) -> None:
    whole = turnstream("fold", str(recorded))
    assert (whole.returncode, whole.stderr) == (0, b"")
    assert whole.stdout.count(b"\n") == 1
    fold = json.loads(whole.stdout)
    names = "provider text reasoning refusal tool_calls finish_reason finish_reason_raw usage usage_raw error warnings"
    assert {*names.split(), "events", "turns"} <= set(fold)
    named = fold["provider"]
    for more in (["--split", "1"], ["--split", "7"], ["--provider", named], [f"--provider={named}", "--split=4096"]):
        assert turnstream("fold", *more, str(recorded)).stdout == whole.stdout, more
    assert turnstream("fold", "-", stdin=recorded.read_bytes()).stdout == whole.stdout


def test_an_error_in_the_stream_is_no_failure_of_fold() -> None:
    done = turnstream("fold", "-", stdin=STREAMS["in-band error"])
    assert done.returncode == 0
    fold = json.loads(done.stdout)
    assert (fold["text"], fold["finish_reason"]) == ("Hel", "error")
    assert fold["error"]["message"] == "overloaded"


def test_calls_in_the_text_are_calls_where_that_is_asked_for() -> None:
    said = '<tool_call>{"name":"add","arguments":{}}</tool_call>'
    body = {"id": "m", "choices": [{"index": 0, "message": {"content": said}, "finish_reason": "stop"}]}
    data = json.dumps(body).encode()
    assert json.loads(turnstream("fold", "-", stdin=data).stdout)["text"] == said
    fold = json.loads(turnstream("fold", "--text-tools", "-", stdin=data).stdout)
    assert (fold["text"], [call["name"] for call in fold["tool_calls"]]) == ("", ["add"])
    assert b'"tool_call"' in turnstream("events", "--text-tools", "-", stdin=data).stdout


def test_events_are_lines_of_json(recorded: Path) -> None:
    done = turnstream("events", str(recorded))
    assert (done.returncode, done.stderr) == (0, b"")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["type"] == "round_start"
    assert events[-1]["type"] == "round_end"

    def facts(output: bytes) -> list[dict[str, Any]]:
        return [{**json.loads(line), "time": 0} for line in output.splitlines()]

    for more in (["--split", "1"], ["--split", "7"]):
        again = turnstream("events", *more, "-", stdin=recorded.read_bytes())
        assert facts(again.stdout) == facts(done.stdout)


def test_events_come_as_their_bytes_come() -> None:
    process = subprocess.Popen([*COMMAND, "events", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(OPENAI_CHAT[0])
    process.stdin.flush()
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["type"] != "text_delta":
        seen.append(json.loads(process.stdout.readline()))
    assert seen[-1]["text"] == "Hel"
    rest, _ = process.communicate(b"".join(OPENAI_CHAT[1:]), timeout=WAIT_S)
    assert json.loads(rest.splitlines()[-1])["type"] == "round_end"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("provider", "data"),
    [
        ("auto", b""),
        ("auto", b"\n"),
        ("auto", b"<html><body>502</body></html>"),
        ("openai-chat", b"\x00\xff\xfe"),
        ("anthropic", b'"a string"'),
    ],
)
def test_bytes_that_are_no_stream_are_one_line(provider: str, data: bytes) -> None:
    for command in ("fold", "events"):
        one_line(turnstream(command, "--provider", provider, "-", stdin=data))


@pytest.mark.parametrize("command", ["fold", "events"])
def test_what_is_asked_wrongly_is_one_line(command: str, tmp_path: Path) -> None:
    assert "no-such" in one_line(turnstream(command, "--provider", "no-such", "-", stdin=STREAMS["openai-chat"]))
    assert "nowhere" in one_line(turnstream(command, str(tmp_path / "nowhere")))
    assert turnstream(command, "--split", "-1", "-", stdin=b"").returncode == 2


def test_strict_makes_an_error_of_a_broken_frame() -> None:
    broken = OPENAI_CHAT[0] + b"data: {no json\n\n" + b"".join(OPENAI_CHAT[1:])
    lenient = json.loads(turnstream("fold", "-", stdin=broken).stdout)
    assert lenient["text"] == "Hello €"
    assert len(lenient["warnings"]) == 1
    assert "byte" in one_line(turnstream("fold", "--strict", "-", stdin=broken))


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    chunk = json.loads(OPENAI_CHAT[0].split(b"data: ")[1])
    path = tmp_path / "long"
    path.write_bytes(b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for _ in range(50_000)))
    command = subprocess.Popen([*COMMAND, "events", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr is not None
    assert (command.wait(WAIT_S), command.stderr.read()) == (0, b"")
    command.stderr.close()


def test_ctrl_c_is_quiet() -> None:
    process = subprocess.Popen(
        [*COMMAND, "events", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(OPENAI_CHAT[0])
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (130, b"")


def without(*modules: str) -> list[str]:
    """The command in an interpreter that cannot import these."""
    blocked = "; ".join(f"sys.modules[{module!r}] = None" for module in modules)
    return [sys.executable, "-c", f"import sys; {blocked}; from turnstream.cli import main; main()"]


def test_fold_and_events_need_no_client_and_no_display() -> None:
    for command in ("fold", "events"):
        done = subprocess.run(
            [*without("httpx", "uvicorn", "fastapi", "turnstream.cli.watch"), command, "-"],
            input=STREAMS["anthropic"],
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_missing_extra_is_named() -> None:
    done = subprocess.run([*without("typer"), "fold", "-"], capture_output=True, timeout=WAIT_S, check=False)
    assert "turnstream[cli]" in one_line(done)
    done = subprocess.run([*without("httpx"), "watch", "http://h/s"], capture_output=True, timeout=WAIT_S, check=False)
    assert "needs httpx: pip install 'turnstream[cli]'" in one_line(done)


def test_importing_the_package_imports_nobody_else() -> None:
    code = """
        import sys
        import turnstream as ts
        foreign = {"httpx", "httpx2", "aiohttp", "openai", "anthropic", "fastapi", "typer", "rich", "asyncio"}
        assert not foreign & set(sys.modules), foreign & set(sys.modules)
        missing = [name for name in ts.__all__ if name not in ("asgi", "fastapi") and not hasattr(ts, name)]
        assert not missing, missing
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=WAIT_S, check=True)


# --- serve -----------------------------------------------------------------------------------------------------------


def test_serve_serves_a_hub_and_watch_follows_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            import turnstream as ts
            hub = ts.Hub()
            with hub.session("s").turn(input="hi") as turn:
                turn.normalizer("openai-chat").feed(open("recorded", "rb").read())
        """)
    )
    (tmp_path / "recorded").write_bytes(STREAMS["openai-chat"])
    server = subprocess.Popen(
        [*COMMAND, "serve", "mine:hub", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if "running on http://" in line:
                url = line.partition("running on ")[2].split()[0]
                break
        else:
            pytest.fail("the server has not said where it listens")
        done = turnstream("watch", f"{url}/sessions/s")
        assert done.returncode == 0, done
        lines = done.stdout.decode().splitlines()
        assert lines[0] == "── turn 1 hi"
        assert "Hello €" in lines
        assert lines[-1].startswith("── completed")
        gone = turnstream("watch", f"{url}/sessions/other")
        assert "http status 404" in one_line(gone)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=WAIT_S)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing", "expected APP:HUB"),
        ("no_such_module_here:hub", "No module named"),
        ("json:hub", "no attribute 'hub'"),
        ("json:loads", "expected a turnstream.Hub, found function"),
    ],
)
def test_serve_says_what_is_wrong_with_its_target(target: str, said: str, tmp_path: Path) -> None:
    assert said in one_line(turnstream("serve", target, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}))


def test_an_address_that_is_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import turnstream as ts\nhub = ts.Hub()\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = turnstream("serve", "mine:hub", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert (done.returncode, b"already in use" in done.stderr) == (1, True)


def test_the_version_is_the_package_s() -> None:
    done = turnstream("--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{ts.__version__}\n", b"")


def test_a_model_without_its_server_is_refused() -> None:
    assert "the address of its server" in one_line(turnstream("demo", "--model", "m", "--port", "0"))
