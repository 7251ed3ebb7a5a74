"""One bounded point cloud of everything that stands still."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raymap3r_ros.options import check_options, option


@dataclass(frozen=True)
class CloudOptions:
    """Which pixels become points, and how many points there may be."""

    voxel_size: float = option(
        0.0,
        "edge of the cubes in which points are merged, metres; 0 = a pixel at the first frame's median depth",
        low=0.0,
        high=100.0,
    )
    max_points: int = option(1_000_000, "above this many points the cubes grow", low=1000, high=100_000_000)
    confidence_threshold: float = option(
        1.5, "pixels that the network is less sure of are left out (1 = keep all)", low=1.0, high=1000.0
    )
    max_slope: float = option(
        8.0,
        "surfaces that fall away faster than this, metres of depth per metre across, are taken for the gap "
        "between two objects",
        low=0.1,
        high=10_000.0,
    )
    mask_margin: float = option(
        0.01, "how far around a moving object pixels are left out too, share of the image width", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        check_options(self)


def depth_slope(depth: np.ndarray, focal: float) -> np.ndarray:
    """(H, W) steepest change of depth to one of the four neighbours, metres of depth per metre across.

    A plane seen at an angle has the same slope at any resolution; across the border of an object it grows with the
    resolution. `depth`: (H, W) metres, above 0; `focal`: pixels.
    """
    slope = np.zeros_like(depth)
    for axis in (0, 1):
        first = [slice(None)] * 2
        second = [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        first, second = tuple(first), tuple(second)
        step = np.abs(depth[first] - depth[second]) * focal / np.minimum(depth[first], depth[second])
        slope[first] = np.maximum(slope[first], step)
        slope[second] = np.maximum(slope[second], step)
    return slope


def static_pixels(
    depth: np.ndarray, confidence: np.ndarray, dynamic_mask: np.ndarray, focal: float, options: CloudOptions
) -> np.ndarray:
    """(H, W) bool: pixels that stand still, are believed, and do not hang between two objects.

    `depth` (H, W) metres, `confidence` (H, W) at least 1, `dynamic_mask` (H, W) bool, `focal` in pixels.
    """
    known = np.isfinite(depth) & (depth > 0)
    # Beside an unknown pixel there is no telling whether depth is continuous: the tiny value makes the slope large.
    keep = known & (depth_slope(np.where(known, depth, 1e-6), focal) <= options.max_slope)
    keep &= confidence >= options.confidence_threshold
    margin = int(np.ceil(options.mask_margin * depth.shape[1]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2)
    return keep & (cv2.dilate(dynamic_mask.astype(np.uint8), kernel) == 0)


class StaticCloud:
    """Points merged in cubes (voxels), each the mean of what fell into it; in the frame of the points given.

    Memory is bounded: with more than `max_points` cubes they all grow until the number fits, so that the whole scene
    stays covered. `voxel_size` is the present size in metres; 0 until the first points where it is automatic.
    """

    PENDING = 400_000  # points gathered between merges: one sort of many is cheaper than many of few
    GROWTH = 2**0.5  # halves the number of cubes on a surface

    def __init__(self, voxel_size: float = 0.0, max_points: int = 1_000_000) -> None:
        self.voxel_size = voxel_size
        self._max_points = max_points
        self._pending: list[np.ndarray] = []
        self._forget()

    def add(self, points: np.ndarray, colors: np.ndarray, pixel_size: float | None = None) -> None:
        """Take in `points` (n, 3) metres with `colors` (n, 3) uint8; those that are not finite are left out.

        `pixel_size`: metres that a pixel typically spans; it becomes the voxel size where that is automatic. Raises
        ValueError where it is needed and is not above 0.
        """
        if self.voxel_size == 0:
            if pixel_size is None or not pixel_size > 0:
                raise ValueError(f"an automatic voxel size needs a pixel size above 0, not {pixel_size}")
            self.voxel_size = float(pixel_size)
        finite = np.isfinite(points).all(axis=1)
        rows = np.empty((int(finite.sum()), 7))
        rows[:, :3], rows[:, 3:6], rows[:, 6] = points[finite], colors[finite], 1
        self._pending.append(rows)
        if sum(len(rows) for rows in self._pending) >= self.PENDING:
            self._merge()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, 3) float32 metres and colors (m, 3) uint8."""
        self._merge()
        means = self._sums[:, :6] / self._sums[:, 6:]
        return means[:, :3].astype(np.float32), np.rint(means[:, 3:]).astype(np.uint8)

    def clear(self) -> None:
        """Forget all points; the voxel size stays."""
        self._pending.clear()
        self._forget()

    def _forget(self) -> None:
        self._keys = np.empty(0, np.int64)  # of the voxels, ascending
        self._sums = np.empty((0, 7))  # of the points in each: x y z r g b, and their number

    def _merge(self) -> None:
        if self._pending:
            rows = np.concatenate(self._pending)
            self._pending.clear()
            self._take(rows)
        while len(self._keys) > self._max_points:
            self.voxel_size *= self.GROWTH
            rows = self._sums
            self._forget()
            self._take(rows)

    def _take(self, rows: np.ndarray) -> None:
        """Add sums (n, 7) of points to the voxels in which their means lie."""
        keys, sums = _sum_by_voxel(rows, self.voxel_size)
        # Few voxels are new in most frames: looking them up is cheaper than sorting all of them again.
        place = np.searchsorted(self._keys, keys)
        known = place < len(self._keys)
        known[known] = self._keys[place[known]] == keys[known]
        self._sums[place[known]] += sums[known]
        self._keys = np.insert(self._keys, place[~known], keys[~known])
        self._sums = np.insert(self._sums, place[~known], sums[~known], axis=0)


def _sum_by_voxel(rows: np.ndarray, voxel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Keys (m,), ascending, of the voxels in which the means of `rows` (n, 7) lie, and the sums (m, 7) over each."""
    cell = np.floor(rows[:, :3] / (rows[:, 6:] * voxel_size))
    reach = 1 << 20  # cells to each side that fit three to a 64-bit key; a point further out is no scene
    inside = (np.abs(cell) < reach).all(axis=1)
    rows, cell = rows[inside], cell[inside].astype(np.int64) + reach
    keys, group = np.unique((cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2], return_inverse=True)
    sums = [np.bincount(group.reshape(-1), weights=column, minlength=len(keys)) for column in rows.T]
    return keys, np.stack(sums, axis=1)
