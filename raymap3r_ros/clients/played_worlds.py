"""Finds which frames of a replay are in which world, from the trajectories that the node publishes."""

from __future__ import annotations

from collections.abc import Sequence


class PlayedWorlds:
    """The worlds of the frames that were sent.

    Frames are in flight while a trajectory is on its way, and a stamp may occur more than once (a clock that was set
    back, a second pass), so a trajectory is assigned to the frame at which it was published, not to the last one sent.
    """

    def __init__(self, starts: dict[int, int]) -> None:
        """`starts`: see `Playback.worlds`; empty, it is filled."""
        self.starts = starts
        self._stamps: list[int] = []  # of the frames
        self._newest = -1  # frame at which the last trajectory was published

    def add(self, stamp: int, jump: bool) -> None:
        """Add a frame that is sent. `jump`: its stamp does not follow the last one, so another world begins."""
        if jump:
            self.starts[len(self._stamps)] = len(self._stamps)
        self._stamps.append(stamp)

    def add_trajectory(self, published: int, stamps: Sequence[int]) -> None:
        """Take a trajectory of the node: the stamp of the frame at which it was published, and those of its poses."""
        frame = self._frame(published, begins=list(stamps) == [published]) if self._stamps else None
        if frame is None or not stamps or stamps[0] not in self._stamps[: frame + 1]:
            return
        self._newest = frame
        start = max((index for index in self.starts if index <= frame), default=None)
        current = None if start is None else self.starts[start]
        continued = current is not None and self._stamps[current] == stamps[0]
        if continued and stamps[-1] in self._stamps[start : frame + 1]:
            return
        firsts = {index for index, first in self.starts.items() if index == first <= frame} - {current}
        earlier = [index for index in firsts if self._stamps[index] == stamps[0]]
        if earlier:  # the camera was found again in that world
            self.starts[frame] = max(earlier)
        elif not continued:
            first = max(index for index in range(frame + 1) if self._stamps[index] == stamps[0])
            self.starts[first] = first

    def _frame(self, published: int, begins: bool) -> int | None:
        """The frame at which a trajectory was published; `begins`: a world begins with it."""
        if begins:
            expected = {0, *self.starts}
            new = [index for index in expected if index > self._newest and self._stamps[index] == published]
            if new:
                return min(new)
        later = range(max(self._newest, 0), len(self._stamps))
        return next((index for index in later if self._stamps[index] == published), None)
