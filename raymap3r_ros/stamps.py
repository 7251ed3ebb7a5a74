"""The rule for the stamps of images, used by `run`, by `replay` and by the node. docs/bags.md describes it.

All stamps and times are integers in nanoseconds, except those of `clock_problem`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

LATE = 100_000_000  # nanoseconds by which a stamp may lie before the last one and still be a late image, not a jump
END = 2**31 * 1_000_000_000  # stamps of messages are below
MAX_GAP = 2.0  # seconds; default of the longest step forward that is no jump
# Seconds by which a stamp may be ahead of the node's clock, or behind it: no image waits for ten minutes.
MAX_AHEAD, MAX_BEHIND = 1.0, 10.0


class StampClock:
    """Gives stamps to messages without one. Drivers without a clock leave the stamp at zero.

    Such a message gets the time at which it was received or recorded, moved to the clock of the images: by as much as
    the stamp of the neighbouring image differs from the time of that image. Not thread-safe.
    """

    def __init__(self, report: Callable[[str], None], images: Iterable[tuple[int, int]] = ()) -> None:
        """`report` gets one message at the first image without a stamp.

        `images`: stamps and times of the images of a recording, read up to the first image with a stamp, which also
        moves the images before it. If there is none, all get their time.
        """
        self._report = report
        self._reported = False
        self._shift = next((stamp - time for stamp, time in images if stamp > 0), None)

    def image(self, stamp: int, time: int) -> int:
        """The stamp of an image, in order of arrival."""
        if stamp > 0:
            self._shift = stamp - time
            return stamp
        if not self._reported:
            self._reported = True
            if self._shift is None:
                self._report("the images have no stamps: the time of receipt is used")
            else:
                self._report("some images have no stamps: they continue the stamps of the neighbouring images")
        return self.other(stamp, time)

    def other(self, stamp: int, time: int) -> int:
        """The stamp of a message of another sensor."""
        if stamp > 0:
            return stamp
        continued = time + (self._shift or 0)
        if continued <= 0:  # before the clock's zero: an image of a simulation's first moment, recorded a while before
            return 1
        return continued if continued < END else time


class JumpDetector:
    """Finds images whose stamp does not follow the last one: a bag that starts again, a long gap.

    It checks images as they arrive, whether or not they are processed later: a slow network is no gap in the stamps.
    Not thread-safe.
    """

    def __init__(self) -> None:
        self.jumps = 0  # found so far
        self._last: int | None = None  # stamp
        self._resumed = False

    def resume(self) -> None:
        """Accept a gap of any length before the next image, because the node was paused or inactive."""
        self._resumed = True

    def check(self, stamp: int, max_gap: float) -> float:
        """Seconds from the last stamp to this one if that is a jump, otherwise 0.

        Args:
            stamp: of the image that has just arrived.
            max_gap: longest step forward that is no jump, seconds.
        """
        last, self._last = self._last, stamp
        step = 0 if last is None else stamp - last
        longest = math.inf if self._resumed else round(max_gap * 1e9)
        self._resumed = False
        if -LATE <= step <= longest:
            return 0.0
        self.jumps += 1
        return step / 1e9


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


def rising(stamps: Sequence[int]) -> list[int]:
    """Indices of the stamps that are above all before them: late and repeated ones are left out."""
    indices, highest = [], -math.inf
    for index, stamp in enumerate(stamps):
        if stamp > highest:
            indices.append(index)
            highest = stamp
    return indices
