"""What the user is told of trouble: in the log, never twice within seconds, and in the diagnostics."""

from __future__ import annotations

import re
import time

from rclpy.impl.rcutils_logger import RcutilsLogger

from raymap3r_ros.node.diagnostics import Monitor

THROTTLE = 5.0  # seconds between two log lines about the same trouble
LONGEST_LINE = 1000  # characters of an error that are logged: a foreign checkpoint mismatches in every tensor
MAX_TROUBLES = 100  # kinds of trouble that are remembered: who sends damaged messages can make up ever new ones


class Reporter:
    """Warnings and errors of one node; to be called from any thread."""

    def __init__(self, logger: RcutilsLogger, monitor: Monitor) -> None:
        self._logger = logger
        self._monitor = monitor
        self._told: set[str] = set()
        self._last_logged: dict[str, float] = {}

    def __len__(self) -> int:
        """How many kinds of trouble are remembered."""
        return len(self._told) + len(self._last_logged)

    def forget(self) -> None:
        """What is told once may be told again."""
        self._told.clear()

    def warn(self, text: str, once: bool = False) -> None:
        """Something that the user should look at."""
        text = _shortened(text)
        self._monitor.warning(text)
        if once:
            self.warn_once(text)
        elif self._may_log(text):
            self._logger.warning(text)

    def warn_once(self, text: str) -> None:
        """Something that the user should know, in the log alone."""
        if text not in self._told and len(self._told) < MAX_TROUBLES:
            self._told.add(text)
            self._logger.warning(text)

    def fail(self, text: str, throttle: bool = False, details: str = "") -> None:
        """Something that went wrong; `details` are for the log alone."""
        text = _shortened(text)
        self._monitor.error(text)
        if not throttle or self._may_log(text):
            self._logger.error(text + details)

    def _may_log(self, text: str) -> bool:
        """Whether this trouble was not logged a moment ago; with other numbers in it, it is still the same one."""
        trouble, now = re.sub(r"\d+", "#", text), time.monotonic()
        if now - self._last_logged.get(trouble, -THROTTLE) < THROTTLE:
            return False
        if len(self._last_logged) >= MAX_TROUBLES:
            self._last_logged.clear()
        self._last_logged[trouble] = now
        return True


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
