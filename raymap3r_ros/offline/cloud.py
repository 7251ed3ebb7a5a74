"""Options of the static scene of a recording."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.mapping import PixelOptions
from raymap3r_ros.options import option


@dataclass(frozen=True)
class CloudOptions(PixelOptions):
    """The complete static scene of a recording."""

    voxel_size: float = option(
        0.0,
        "edge of the cubes in which points are merged, metres; 0 = a pixel at the first frame's median depth",
        low=0.0,
        high=100.0,
    )
    max_points: int = option(
        1_000_000, "maximum number of points; above it, the cubes grow", low=1000, high=100_000_000
    )
