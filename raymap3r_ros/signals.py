"""SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as shells report it


_received: list[int] = []  # stop signals within `on_stop_signals`; not an Event, which handlers can block


class StopSignal:
    """Wakes a main thread that only waits for SIGINT or SIGTERM.

    The system may deliver a signal to any thread, or to the main thread just before it blocks. An Event set by the
    handler would not wake it then. The file descriptor that Python writes to on a signal always does.
    """

    def __init__(self) -> None:
        """Install permanent handlers for both signals. Call it in the main thread."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the default would end the process

    def set(self) -> None:
        """Wake the waiting thread as a signal would. Callable from any thread."""
        self._sender.send(b"\0")

    def wait(self) -> None:
        """Block until a signal has arrived; return at once if one arrived earlier."""
        self._receiver.recv(1)


@contextmanager
def on_stop_signals(react: Callable[[str], None], *, repeatedly: bool = False) -> Iterator[None]:
    """Call `react` with the signal's name on the first SIGINT and on the first SIGTERM.

    A second signal of the same kind has its usual effect, or calls `react` again with `repeatedly`. Outside the main
    thread, which alone may install signal handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, _: object) -> None:
        _received.append(number)
        if not repeatedly:
            signal.signal(number, before[number])
        react(signal.Signals(number).name)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def stop_requested() -> bool:
    """Return whether a stop signal was received within the current `on_stop_signals`: work that waits should end."""
    return bool(_received)
