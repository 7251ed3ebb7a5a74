"""An orderly end by Ctrl-C."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C


class StopSignal:
    """SIGINT or SIGTERM, for a main thread that does nothing but wait for it.

    The system may hand a signal to any thread, or to the main one just before it goes to sleep; an Event that the
    handler sets would not wake it then. What Python writes to a file descriptor always does.
    """

    def __init__(self) -> None:
        """Take both signals, for good. Main thread only."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the default would end the process

    def set(self) -> None:
        """As if a signal had come; from any thread."""
        self._sender.send(b"\0")

    def wait(self) -> None:
        """Return once a signal has come, also where that was before."""
        self._receiver.recv(1)


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
