"""Notice that the process is told to stop, in time to end the streams that a server would wait for, or cut."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

HAND_ON_S = 1.0
"""The server hears of a signal so late at most."""


@contextmanager
def before_stop_signals(loop: asyncio.AbstractEventLoop, call: Callable[[], asyncio.Task[None]]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM call `call` on the loop, and do what they did once its task is done.

    A server stops by waiting for its open responses, uvicorn without a limit, and tells the application only after
    that: an event stream would wait for events for ever. The signal is the one notice that comes in time. Sockets it
    closes at once: on a busy machine before they were told why. A second signal is the server's alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    installed: dict[signal.Signals, tuple[Any, Any]] = {}

    def install(number: signal.Signals) -> None:
        before = signal.getsignal(number)
        if not callable(before):  # the default action ends the process: nothing waits
            return
        heard = handed_on = False

        def handle(received: int, frame: Any) -> None:
            nonlocal heard, handed_on
            if not heard:
                heard = True
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(begin)
                    return
            handed_on = True
            before(received, frame)

        def begin() -> None:
            loop.call_later(HAND_ON_S, hand_on)
            call().add_done_callback(lambda _: hand_on())

        def hand_on() -> None:
            nonlocal handed_on
            if not handed_on:
                handed_on = True
                before(number, None)

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
