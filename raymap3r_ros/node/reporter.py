"""Warnings and errors of the node: throttled log lines, and the diagnostics."""

from __future__ import annotations

from rclpy.impl.rcutils_logger import RcutilsLogger

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.conversions import EncodingError
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.text import LONGEST_TEXT, MAX_PROBLEMS, THROTTLE, Throttle, printable


class Reporter:
    """Reports events of one node to its log and its monitor. All methods may be called from any thread."""

    def __init__(self, logger: RcutilsLogger, monitor: Monitor) -> None:
        self._logger = logger
        self._monitor = monitor
        self._logged_once: set[str] = set()
        self._throttle = Throttle()

    def __len__(self) -> int:
        """Number of kinds of problems that are remembered."""
        return len(self._logged_once) + len(self._throttle)

    def forget(self) -> None:
        """Log again what is logged only once."""
        self._logged_once.clear()

    def count(self, name: str) -> None:
        """Add one to a counter of the diagnostics, see `diagnostics.COUNTS`."""
        self._monitor.count(name)

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

    def fail(self, text: str, throttle: bool = False, details: str = "") -> None:
        """Report an error in the log and the diagnostics; `details` are only logged."""
        text = printable(text)
        self._monitor.error(text)
        if not throttle or self._throttle.permits(text, THROTTLE):
            # Indented, so that no line of it passes for another message.
            self._logger.error(text + printable(details.replace("\n", "\n  "), 10 * LONGEST_TEXT, lines=True))

    def refuse(self, error: InputError) -> None:
        """Report an image that cannot be used."""
        self._monitor.count("bad frames")
        self.warn(f"image skipped: {error}", once=isinstance(error, EncodingError))
