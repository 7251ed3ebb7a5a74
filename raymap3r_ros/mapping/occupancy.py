"""A 2-D occupancy grid for navigation: obstacles, and where the floor is free."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymap3r_ros.errors import OptionError
from raymap3r_ros.options import check_options, option

UNKNOWN, FREE, OCCUPIED = -1, 0, 100  # as in nav_msgs/OccupancyGrid
MAX_SIDE = 2048  # cells; a larger grid is cropped around the median of the points
FLOOR_NOISE = 0.1  # metres: points of a floor at z = 0 may be this much above it
FLOOR_LAYER = 0.05  # metres: resolution of the search for the floor


@dataclass(frozen=True)
class OccupancyOptions:
    """The 2-D grid for navigation."""

    enabled: bool = option(False, "publish ~/occupancy, computed from the static map")
    resolution: float = option(
        0.05, "edge of a cell, metres; never finer than the voxels of the map", low=0.001, high=10.0, live=True
    )
    min_height: float = option(
        0.15,
        "points closer to the level of the floor than this, metres, are floor: free; less than max_height",
        low=0.0,
        high=100.0,
        live=True,
    )
    max_height: float = option(
        1.5,
        "points higher above the floor than this, metres, are not obstacles; more than min_height",
        low=0.0,
        high=100.0,
        live=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.min_height >= self.max_height:
            raise OptionError(
                f"min_height is {self.min_height!r}; allowed: less than max_height, which is {self.max_height!r}"
            )


@dataclass(frozen=True)
class OccupancyGrid:
    """Cells of the ground, in the world of REP 103 axes (x forward, y left, z up)."""

    cells: np.ndarray  # (rows along y, columns along x) int8: UNKNOWN, FREE or OCCUPIED
    resolution: float  # metres, edge of a cell; larger than the option's value if the map's voxels are larger
    origin: tuple[float, float]  # x, y of the outer corner of cell [0, 0], metres
    floor: float  # z of the floor, metres
    cropped: bool  # the points extend beyond MAX_SIDE


def nothing_known(options: OccupancyOptions) -> OccupancyGrid:
    """Return the smallest grid: one unknown cell."""
    return OccupancyGrid(np.full((1, 1), UNKNOWN, np.int8), options.resolution, (0.0, 0.0), 0.0, False)


def floor_height(heights: np.ndarray) -> float:
    """Return z of the floor, metres, from the heights (n,) of voxels: the level with the most voxels that is not
    above the origin. NaN if there is none.

    The number of voxels is a measure of area, and the floor is the largest level surface below the first camera. If
    the origin is a robot's base, it may be at the height of the floor.
    """
    below = heights[heights < FLOOR_NOISE]
    if len(below) == 0:
        return math.nan
    layers = np.floor(below / FLOOR_LAYER).astype(np.int64)
    layers -= layers.min()
    count = np.convolve(np.bincount(layers), (1, 1, 1), mode="same")  # a floor may be split between two layers
    return float(np.median(below[np.abs(layers - count.argmax()) <= 1]))


def occupancy_grid(
    points: np.ndarray,
    voxel_size: float,
    world_from_map: np.ndarray,
    options: OccupancyOptions,
    floor: float | None = None,
) -> OccupancyGrid | None:
    """Return the grid of a static map; None without points, or if no floor is given or found.

    `points` (n, 3) and `voxel_size` in the map's units and axes; `world_from_map` (4, 4) a similarity to a level world
    with REP 103 axes, in metres; `floor`: z of the floor in that world, by default `floor_height`. A cell is occupied
    if a point is in the band of obstacle heights; free if there is no such point and a voxel of the floor covers a
    part of it; otherwise unknown. A pit is unknown too: free air above it is no evidence of ground.
    """
    linear, offset = np.asarray(world_from_map, np.float64)[:3, :3], np.asarray(world_from_map, np.float64)[:3, 3]
    world = points @ linear.T + offset
    world = world[np.isfinite(world).all(axis=1)]
    if floor is None:
        floor = floor_height(world[:, 2])
    if len(world) == 0 or math.isnan(floor):
        return None
    voxel = voxel_size * float(np.cbrt(np.linalg.det(linear)))
    resolution = max(options.resolution, voxel)
    height = world[:, 2] - floor
    obstacle = world[(height >= options.min_height) & (height <= options.max_height), :2]
    ground = world[np.abs(height) < options.min_height, :2]
    # A voxel covers a square, not a point; otherwise a floor of voxels as large as the cells would have holes.
    ground = np.concatenate([ground + voxel / 2 * np.array(corner) for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1))])

    seen = np.concatenate((obstacle, ground))
    if len(seen) == 0:
        return None
    low, high = np.floor(seen.min(axis=0) / resolution), np.floor(seen.max(axis=0) / resolution)
    middle = np.floor(np.median(seen, axis=0) / resolution)
    first = np.where(high - low < MAX_SIDE, low, np.clip(middle - MAX_SIDE // 2, low, high - MAX_SIDE + 1))
    columns, rows = np.minimum(high - low + 1, MAX_SIDE).astype(int)
    cells = np.full((rows, columns), UNKNOWN, np.int8)
    for places, value in ((ground, FREE), (obstacle, OCCUPIED)):
        column, row = (np.floor(places / resolution) - first).T
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        cells[row[inside].astype(int), column[inside].astype(int)] = value
    x, y = (float(corner) for corner in first * resolution)
    return OccupancyGrid(cells, resolution, (x, y), floor, bool((high - low >= MAX_SIDE).any()))
