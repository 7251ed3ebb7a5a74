"""Options of the static scene of a recording."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.mapping import PixelOptions
from raymap3r_ros.mapping.static_map import SMALLEST_VOXEL, VOXEL_HELP
from raymap3r_ros.options import option

MOST_POINTS = 100_000_000


@dataclass(frozen=True)
class CloudOptions(PixelOptions):
    """The complete static scene of a recording."""

    voxel_size: float = option(
        0.0,
        VOXEL_HELP,
        low=SMALLEST_VOXEL,
        high=100.0,
        or_zero=True,
    )
    max_points: int = option(
        1_000_000, "maximum number of points; above it, the cubes grow", low=1000, high=MOST_POINTS
    )
