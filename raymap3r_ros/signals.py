"""Stop signals: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which a terminal sends when it is closed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as shells report it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_NAMES = tuple(number.name for number in STOP_SIGNALS)


_received: list[int] = []  # stop signals within `on_stop_signals`; not an Event, which handlers can block
_interrupted: list[int] = []  # the one that raised KeyboardInterrupt within `interrupted_once`


class StopSignal:
    """Wakes a main thread that only waits for a stop signal.

    The system may deliver a signal to any thread, or to the main thread just before it blocks. An Event set by the
    handler would not wake it then. The file descriptor that Python writes to on a signal always does.
    """

    def __init__(self) -> None:
        """Install permanent handlers for the stop signals. Call it in the main thread, and keep the object."""
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in _accepted():
            signal.signal(number, lambda *_: None)  # the default would end the process

    def set(self) -> None:
        """Wake the waiting thread as a signal would. Callable from any thread."""
        self._sender.send(b"\0")

    def wait(self) -> None:
        """Block until a signal has arrived; return at once if one arrived earlier."""
        self._receiver.recv(1)


@contextmanager
def on_stop_signals(react: Callable[[str], None], *, repeatedly: bool = False) -> Iterator[None]:
    """Call `react` with the signal's name on the first stop signal.

    Another SIGINT or SIGTERM has its usual effect, or calls `react` again with `repeatedly`. Another SIGHUP has none:
    a closed terminal sends several. Outside the main thread, which alone may install signal handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, _: object) -> None:
        _received.append(number)
        if repeatedly or len(_received) == 1:
            react(signal.Signals(number).name)
        if not repeatedly:
            for repeated in (signal.SIGINT, signal.SIGTERM):
                signal.signal(repeated, before[repeated])

    before = {number: signal.getsignal(number) for number in _accepted()}
    try:
        for number in before:
            signal.signal(number, receive)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def stop_requested() -> bool:
    """Return whether a stop signal was received within the current `on_stop_signals`: work that waits should end."""
    return bool(_received)


@contextmanager
def interrupted_once(*, at_end: bool = False) -> Iterator[None]:
    """Raise KeyboardInterrupt on the first stop signal, and ignore all others, so that none interrupts cleaning up.

    `at_end`: the process ends after this block; the signals stay ignored, because one would change the exit status.
    Signals that the caller of the process ignores, as nohup does, stay ignored. Nothing changes outside the main
    thread, and within another block.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda error: _repeat() if error.exc_type is KeyboardInterrupt else hook(error)
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if at_end else handler)
        sys.unraisablehook = hook
        _interrupted.clear()


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Keep stop signals, also the first one, back until the end of the block, which cleans up in a short time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def ignore_stop_signals() -> None:
    """Let no stop signal raise KeyboardInterrupt from now on within `interrupted_once`."""
    _interrupted.append(0)


def print_now(text: str) -> None:
    """Print to standard error from a handler of a signal, which may have interrupted a write to the same buffer."""
    with suppress(OSError):  # the terminal may be closed
        os.write(2, text.encode(errors="backslashreplace"))


def _interrupt(number: int, _: object) -> None:
    if not _interrupted:
        _interrupted.append(number)
        raise KeyboardInterrupt


def _repeat() -> None:
    """Send the signal again whose KeyboardInterrupt was lost, because it interrupted a `__del__` or a callback."""
    number = _interrupted[0] if _interrupted else 0
    if number:
        _interrupted.clear()
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _accepted() -> tuple[signal.Signals, ...]:
    """Return the stop signals, without SIGHUP under nohup, which ignores it."""
    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return STOP_SIGNALS[:2] if under_nohup else STOP_SIGNALS
