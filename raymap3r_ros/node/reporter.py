"""Warnings and errors of the node: throttled log lines, and the diagnostics."""

from __future__ import annotations

import re
import time

from rclpy.impl.rcutils_logger import RcutilsLogger

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.conversions import EncodingError
from raymap3r_ros.node.diagnostics import Monitor

THROTTLE = 5.0  # seconds between two log lines about the same problem
LONGEST_LINE = 1000  # characters of an error that are logged: a foreign checkpoint has an error in every tensor
MAX_PROBLEMS = 100  # kinds of problems that are remembered: damaged messages can cause new ones without end


class Reporter:
    """Reports events of one node to its log and its monitor. All methods may be called from any thread."""

    def __init__(self, logger: RcutilsLogger, monitor: Monitor) -> None:
        self._logger = logger
        self._monitor = monitor
        self._logged_once: set[str] = set()
        self._last_logged: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of kinds of problems that are remembered."""
        return len(self._logged_once) + len(self._last_logged)

    def forget(self) -> None:
        """Log again what is logged only once."""
        self._logged_once.clear()

    def count(self, name: str) -> None:
        """Add one to a counter of the diagnostics, see `diagnostics.COUNTS`."""
        self._monitor.count(name)

    def info(self, text: str) -> None:
        """Log an event that is no problem."""
        self._logger.info(text)

    def warn(self, text: str, once: bool = False) -> None:
        """Report something that the user should check, in the log and the diagnostics."""
        text = _shortened(text)
        self._monitor.warning(text)
        if once:
            self.warn_once(text)
        elif self._may_log(text):
            self._logger.warning(text)

    def warn_once(self, text: str) -> None:
        """Log a warning, only the first time, and not in the diagnostics."""
        if text not in self._logged_once and len(self._logged_once) < MAX_PROBLEMS:
            self._logged_once.add(text)
            self._logger.warning(text)

    def fail(self, text: str, throttle: bool = False, details: str = "") -> None:
        """Report an error in the log and the diagnostics; `details` are only logged."""
        text = _shortened(text)
        self._monitor.error(text)
        if not throttle or self._may_log(text):
            self._logger.error(text + details)

    def refuse(self, error: InputError) -> None:
        """Report an image that cannot be used."""
        self._monitor.count("bad frames")
        self.warn(f"image skipped: {error}", once=isinstance(error, EncodingError))

    def _may_log(self, text: str) -> bool:
        """Whether this problem was not logged in the last seconds.

        Texts that differ only in numbers are the same problem.
        """
        problem, now = re.sub(r"\d+", "#", text), time.monotonic()
        if now - self._last_logged.get(problem, -THROTTLE) < THROTTLE:
            return False
        if len(self._last_logged) >= MAX_PROBLEMS:
            self._last_logged.clear()
        self._last_logged[problem] = now
        return True


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
