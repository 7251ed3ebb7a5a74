"""An orderly end by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop_signals(react: Callable[[str], None]) -> Iterator[None]:
    """Call `react` with the name of the first SIGINT and of the first SIGTERM; a second one of a kind acts as it
    always does, at once. Outside the main thread, to which signals belong, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, _: object) -> None:
        signal.signal(number, before[number])
        react(signal.Signals(number).name)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
