"""Warnings and errors of the node: throttled log lines, and the diagnostics."""

from __future__ import annotations

import re

from rclpy.impl.rcutils_logger import RcutilsLogger

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.conversions import EncodingError
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.text import MAX_PROBLEMS, THROTTLE, Throttle, printable, with_details

_FOREIGN = re.compile(r"'[^']*'|\"[^\"]*\"|[\d.e+]+")  # quoted names and numbers, which may differ each time


class Reporter:
    """Reports events of one node to its log and its monitor. All methods may be called from any thread."""

    def __init__(self, logger: RcutilsLogger, monitor: Monitor) -> None:
        self._logger = logger
        self._monitor = monitor
        self._logged_once: set[str] = set()
        self._throttle = Throttle()
        self._standing: dict[str, str] = {}  # kind of the last text of `stand` that was logged, by subject

    def __len__(self) -> int:
        """Number of kinds of problems that are remembered."""
        return len(self._logged_once) + len(self._throttle)

    def forget(self) -> None:
        """Log again what is logged only once."""
        self._logged_once.clear()

    def count(self, name: str) -> None:
        """Add one to a counter of the diagnostics, see `diagnostics.COUNTS`."""
        self._monitor.count(name)

    def debug(self, text: str) -> None:
        """Log an event that is part of normal operation."""
        self._logger.debug(printable(text))

    def info(self, text: str) -> None:
        """Log an event that is no problem."""
        text = printable(text)
        if self._throttle.permits(text, THROTTLE, burst=5):
            self._logger.info(text)

    def warn(self, text: str, once: bool = False) -> None:
        """Report something that the user should check, in the log and the diagnostics."""
        text = printable(text)
        self._monitor.warning(text)
        if once:
            self.warn_once(text)
        elif self._throttle.permits(text, THROTTLE):
            self._logger.warning(text)

    def warn_once(self, text: str) -> None:
        """Log a warning, only the first time, and not in the diagnostics."""
        text = printable(text)
        if text not in self._logged_once and len(self._logged_once) < MAX_PROBLEMS:
            self._logged_once.add(text)
            self._logger.warning(text)

    def stand(self, subject: str, text: str, again: bool = False) -> None:
        """Report what holds at the moment about a subject, "" if nothing.

        In the diagnostics as long as it holds, and in the log when it begins, or with `again`.
        """
        text = printable(text)
        self._monitor.stand(subject, text)
        if not text:
            self._standing.pop(subject, None)
            return
        kind = _FOREIGN.sub("#", text)
        if (again or kind != self._standing.get(subject)) and self._throttle.permits(subject, THROTTLE):
            self._logger.warning(text)
            self._standing[subject] = kind

    def fail(self, text: str, throttle: bool = False, details: str = "", problem: str = "") -> None:
        """Report an error in the log and the diagnostics.

        Args:
            text: one line.
            throttle: log the same problem only once in THROTTLE seconds.
            details: more lines, only for the log.
            problem: identifies the problem if `text` contains foreign text, which can differ each time.
        """
        text = printable(text)
        self._monitor.error(text)
        if not throttle or self._throttle.permits(problem or text, THROTTLE):
            self._logger.error(with_details(text, details) if details else text)

    def refuse(self, error: InputError) -> None:
        """Report an image that cannot be used."""
        self._monitor.count("bad frames")
        self.warn(f"image skipped: {error}", once=isinstance(error, EncodingError))
