"""Jumps in the stamps of the images that arrive."""

from __future__ import annotations

import math

LATE = 0.1  # seconds by which a stamp may lie before the last one and still be a late image, not a jump


class JumpDetector:
    """Finds images whose stamp does not follow the last one: a bag that starts again, a long gap.

    It checks images as they arrive, whether or not they are processed later: a slow network is no gap in the stamps.
    Not thread-safe.
    """

    def __init__(self) -> None:
        self.jumps = 0  # found so far
        self._last: float | None = None  # stamp in seconds
        self._resumed = False

    def resume(self) -> None:
        """Accept a gap of any length before the next image, because the node was paused or inactive."""
        self._resumed = True

    def check(self, stamp: float, max_gap: float) -> float:
        """Seconds from the last stamp to this one if that is a jump, otherwise 0.

        Args:
            stamp: seconds, of the image that has just arrived.
            max_gap: longest step forward that is no jump, seconds.
        """
        last, self._last = self._last, stamp
        step = 0.0 if last is None else stamp - last
        longest = math.inf if self._resumed else max_gap
        self._resumed = False
        if -LATE <= step <= longest:
            return 0.0
        self.jumps += 1
        return step
