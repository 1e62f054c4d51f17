"""What every test may lean on: loops, a real server, fresh interpreters, and when a test may be skipped.

1. Every `async def` test runs on asyncio and on uvloop; `@pytest.mark.asyncio(loop_factories=["asyncio"])` names one.
2. Under TURNSTREAM_REQUIRE=all a skip is a failure, also that of a whole module.
3. Servers listen on 127.0.0.1, on a port that the system picks, and are stopped when their test ends.
4. A process is killed with all its children when its time is over, and the test fails.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    import httpx

    import turnstream as ts

ROOT = Path(__file__).resolve().parent.parent

# --- skips ------------------------------------------------------------------------------------------------------------

# Where a package's program goes by another name, on another distribution or from another vendor.
PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "nodejs": ("node", "nodejs")}


def need_package(package: str) -> str:
    """The path of the package's program; skips with one line that names the package where there is none."""
    for program in PROGRAMS.get(package, (package,)):
        if path := shutil.which(program):
            return path
    pytest.skip(f"needs the package {package}", allow_module_level=True)


def shared(*parts: str) -> Path:
    """A path below the folder of shared test data: $TURNSTREAM_SHARED, or `shared` beside the checkout; else skips."""
    root = Path(os.environ.get("TURNSTREAM_SHARED") or ROOT.parent / "shared")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('../shared', *parts))}", allow_module_level=True)
    return path


def _skips_fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("TURNSTREAM_REQUIRE") != "all" or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason}, and TURNSTREAM_REQUIRE=all makes a skip a failure"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skips_fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skips_fail(report)
    return report


# --- loops ------------------------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest.fixture(params=sorted(LOOPS))
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """For plain tests that run a loop themselves: `with asyncio.Runner(loop_factory=loop_factory) as runner`."""
    return LOOPS[request.param]


# --- servers ----------------------------------------------------------------------------------------------------------


class _Server:
    """One ASGI application behind uvicorn, on a loop of its own thread."""

    def __init__(self, app: Any, **options: Any) -> None:
        import uvicorn

        started = self._started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        options = {"log_level": "warning", "timeout_graceful_shutdown": 0, **options}
        self._server = Server(uvicorn.Config(app, **options))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, name="uvicorn", daemon=True)
        self._error: BaseException | None = None
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._error = error  # uvicorn leaves by SystemExit where the application's startup fails
        finally:
            self._started.set()

    def start(self) -> str:
        self._thread.start()
        assert self._started.wait(60), "the server did not start"
        assert self._server.started, f"the server did not start: {self._error!r}"
        return self.base_url

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._server.force_exit = True
        self._thread.join(60)
        self._socket.close()
        assert not self._thread.is_alive(), "the server did not stop"


@pytest.fixture
def serve() -> Generator[Callable[..., str]]:
    """`serve(app) -> base_url`: a real server for the test's length. More arguments go to `uvicorn.Config`."""
    servers: list[_Server] = []

    def start(app: Any, **options: Any) -> str:
        servers.append(_Server(app, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def hub() -> "ts.Hub":
    import turnstream as ts

    return ts.Hub()


@pytest.fixture
async def http() -> AsyncIterator["httpx.AsyncClient"]:
    import httpx

    async with httpx.AsyncClient(timeout=60) as client:
        yield client


# --- processes --------------------------------------------------------------------------------------------------------


def run_bounded(
    command: list[str], *, timeout_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; kills the whole process group and fails when time is over."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"still running after {timeout_s} s: {command[-1]}\n{out}{err}", pytrace=False)
        return process.returncode, out, err


@pytest.fixture
def subprocess_python() -> Callable[..., list[str]]:
    """`subprocess_python(code, n) -> standard outputs`: runs `code` in n fresh interpreters, two at a time, every other
    one with asyncio in debug mode.

    Fails on an exit status other than `status` (0), and when one takes longer than `timeout_s`.
    """

    def run(
        code: str, n: int = 1, *, timeout_s: float = 60.0, status: int = 0, env: Mapping[str, str] | None = None
    ) -> list[str]:
        def one(number: int) -> str:
            command = [sys.executable, "-X", "faulthandler", "-c", code]
            debug = {"PYTHONASYNCIODEBUG": "1"} if number % 2 else {}
            seen, out, err = run_bounded(
                command, timeout_s=timeout_s, env={**(os.environ if env is None else env), **debug}
            )
            if seen != status:
                pytest.fail(f"exit status {seen}, not {status}\n{out}{err}", pytrace=False)
            return out

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(n)))

    return run
