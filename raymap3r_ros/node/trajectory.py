"""The way of the camera so far, of bounded length."""

from __future__ import annotations

import numpy as np

MAX_POSES = 200_000  # nearly two hours at 30 Hz, 21 MB


class Trajectory:
    """The poses of a stream from its start to now.

    When it is full every second pose is dropped and from then on only every second, fourth, ... one is kept, so that
    the whole way stays covered evenly. The newest pose is always there.
    """

    def __init__(self, max_poses: int = MAX_POSES) -> None:
        self._max_poses = max_poses
        # All at once, and once: the system gives memory as it is first written to, and arrays that grow leave holes.
        self._stamps = np.empty(max_poses + 1, np.int64)
        self._poses = np.empty((max_poses + 1, 3, 4))
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept = 0  # rows in use, but for the newest pose
        self._stride = 1  # of the poses appended, every so-many-th is kept
        self._appended = 0

    def append(self, stamp: int, pose: np.ndarray) -> None:
        """Add the newest pose, (4, 4), of a stamp in nanoseconds."""
        if self._kept == self._max_poses:
            half = (self._kept + 1) // 2
            self._stamps[:half], self._poses[:half] = self._stamps[: self._kept : 2], self._poses[: self._kept : 2]
            self._kept, self._stride = half, 2 * self._stride
        # The newest stands behind those that are kept; it is one of them where its turn has come.
        self._stamps[self._kept], self._poses[self._kept] = stamp, pose[:3]
        self._newest_kept = self._appended % self._stride == 0
        self._kept += self._newest_kept
        self._appended += 1

    def sample(self, most: int = MAX_POSES) -> tuple[np.ndarray, np.ndarray]:
        """Stamps (n,) in nanoseconds and poses (n, 4, 4), oldest first: at most `most`, spread evenly, and the newest.

        While the trajectory grows, a pose that is in the sample either stays in it or goes for good.
        """
        if not self._appended:
            return np.empty(0, np.int64), np.empty((0, 4, 4))
        stride = 1
        while (self._kept + stride - 1) // stride > most:
            stride *= 2
        last = self._kept - self._newest_kept
        rows = np.arange(0, self._kept, stride)
        if not len(rows) or rows[-1] != last:
            rows = np.append(rows, last)
        poses = np.zeros((len(rows), 4, 4))
        poses[:, :3], poses[:, 3, 3] = self._poses[rows], 1.0
        return self._stamps[rows], poses
