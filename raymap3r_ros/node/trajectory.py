"""A trajectory of bounded length."""

from __future__ import annotations

import numpy as np

MAX_POSES = 200_000  # nearly two hours at 30 Hz, 21 MB


class Trajectory:
    """The poses of a stream since its start.

    When it is full, every second pose is dropped, and from then on only every second, fourth, ... pose is kept. So the
    poses cover the whole trajectory evenly. The newest pose is always kept.
    """

    def __init__(self, max_poses: int = MAX_POSES) -> None:
        self._max_poses = max_poses
        # Allocated once: the system provides memory when it is first written, and growing arrays fragment it.
        self._stamps = np.empty(max_poses + 1, np.int64)
        self._poses = np.empty((max_poses + 1, 3, 4))
        self.clear()

    def clear(self) -> None:
        """Remove all poses."""
        self._kept = 0  # rows in use, without the newest pose
        self._stride = 1  # every `_stride`-th appended pose is kept
        self._appended = 0

    def append(self, stamp: int, pose: np.ndarray) -> None:
        """Add the newest pose, (4, 4), with its stamp in nanoseconds."""
        if self._kept == self._max_poses:
            half = (self._kept + 1) // 2
            self._stamps[:half], self._poses[:half] = self._stamps[: self._kept : 2], self._poses[: self._kept : 2]
            self._kept, self._stride = half, 2 * self._stride
        # The newest pose is stored behind the kept ones, and is one of them if it is a multiple of the stride.
        self._stamps[self._kept], self._poses[self._kept] = stamp, pose[:3]
        self._newest_kept = self._appended % self._stride == 0
        self._kept += self._newest_kept
        self._appended += 1

    def sample(self, most: int = MAX_POSES) -> tuple[np.ndarray, np.ndarray]:
        """Stamps (n,) in nanoseconds and poses (n, 4, 4), oldest first: at most `most`, evenly spaced, and the newest.

        While the trajectory grows, a pose of the sample stays in it, or leaves it and never returns.
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
