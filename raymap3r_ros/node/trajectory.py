"""A trajectory of bounded length."""

from __future__ import annotations

from typing import Any

MAX_POSES = 1000


class Trajectory:
    """The poses of a stream from its start to now.

    When it is full every second pose is dropped and from then on only every second, fourth, ... one is kept, so that
    the whole way stays covered evenly. The newest pose is always there.
    """

    def __init__(self, max_poses: int = MAX_POSES) -> None:
        self._max_poses = max_poses
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept: list[Any] = []
        self._newest: Any = None
        self._stride = 1  # of the poses appended, every so-many-th is kept
        self._appended = 0

    def append(self, pose: Any) -> None:
        """Add the newest pose."""
        self._newest = pose
        if self._appended % self._stride == 0:
            self._kept.append(pose)
        self._appended += 1
        if len(self._kept) == self._max_poses:
            self._kept = self._kept[::2]
            self._stride *= 2

    @property
    def poses(self) -> list[Any]:
        """What is kept, oldest first, and the newest."""
        if not self._kept or self._kept[-1] is self._newest:
            return list(self._kept)
        return [*self._kept, self._newest]
