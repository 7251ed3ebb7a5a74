"""Jumps in the stamps of the images that arrive, and stamps of another clock than the node's."""

from __future__ import annotations

import math

LATE = 0.1  # seconds by which a stamp may lie before the last one and still be a late image, not a jump
# Seconds by which a stamp may be ahead of the node's clock, or behind it: no image waits for ten minutes.
MAX_AHEAD, MAX_BEHIND = 1.0, 600.0


def clock_problem(now: float, stamp: float, simulated: bool) -> str:
    """Why an image of this stamp cannot come from the node's clock; "" if it can.

    Args:
        now: time of the node's clock, seconds.
        stamp: of the image, seconds.
        simulated: the node has `use_sim_time`.
    """
    behind = now - stamp
    if -MAX_AHEAD <= behind <= MAX_BEHIND:
        return ""
    if simulated and now == 0:
        return (
            "use_sim_time is true, but nothing arrives on /clock: publish it (ros2 bag play --clock), or set "
            "use_sim_time to false"
        )
    remedy = (
        "set use_sim_time to false, unless /clock comes from the same recording or simulator as the images"
        if simulated
        else "set use_sim_time to true if they come from a simulator or a bag (ros2 bag play --clock); "
        "otherwise synchronise the clocks of the two machines"
    )
    direction = "behind" if behind > 0 else "ahead of"
    return f"the stamps of the images are {abs(behind):.6g} s {direction} the node's clock: {remedy}"


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
