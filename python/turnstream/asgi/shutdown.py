"""Notice that the process is told to stop, in time to end the streams that a server would wait for."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def before_stop_signals(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM call `call` on the loop before they do what they did.

    A server stops by waiting for its open responses, uvicorn without a limit, and tells the application only after
    that: an event stream would wait for events for ever. The signal is the one notice that comes in time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    installed: dict[signal.Signals, tuple[Any, Any]] = {}

    def install(number: signal.Signals) -> None:
        before = signal.getsignal(number)
        if not callable(before):  # the default action ends the process: nothing waits
            return

        def handle(received: int, frame: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(call)
            before(received, frame)

        signal.signal(number, handle)
        installed[number] = (handle, before)

    for number in (signal.SIGINT, signal.SIGTERM):
        install(number)
    try:
        yield
    finally:
        for number, (handle, before) in installed.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, before)
