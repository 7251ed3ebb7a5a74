"""Whether the process itself was stopped for a while: by a signal, or together with the computer."""

from __future__ import annotations

import math
import time

from raymap3r_ros.node.reporter import Reporter

PERIOD = 1.0  # seconds between two calls of `begin`
LATE = 3.0  # seconds by which the call is late if the process was stopped
GRACE = 5.0  # seconds in which losses of that time are reported


class Stoppage:
    """Recognises from a timer that fires late that this process did not run.

    `ended`: when it ran again, on the monotonic clock.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._rest = math.inf  # end of the last callback of the timer
        self.ended = -math.inf

    def begin(self) -> None:
        """Warn if this call, the first of the timer's callback, is late. The time within the callback is left out."""
        seconds = _now() - self._rest
        if seconds - PERIOD > LATE:
            self.ended = time.monotonic()
            self._reporter.warn(
                f"the node did not run for {seconds:.0f} s: it was stopped (SIGSTOP, Ctrl-Z), or the computer was "
                "suspended or overloaded; images of that time are lost"
            )

    def end(self) -> None:
        """Note the end of the timer's callback."""
        self._rest = _now()

    def explains_losses(self) -> bool:
        """Return whether messages that are reported as lost now were sent while the process did not run."""
        return _now() - self._rest - PERIOD > LATE or time.monotonic() - self.ended < GRACE


def _now() -> float:
    """Return seconds of a clock that continues while the computer is suspended, unlike the monotonic one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
