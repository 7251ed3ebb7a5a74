"""Which points of a recording are written as its static scene."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.mapping import PixelOptions
from raymap3r_ros.options import option


@dataclass(frozen=True)
class CloudOptions(PixelOptions):
    """The static scene of a recording, all of it: it has all points at hand and time, so nothing need be left out."""

    voxel_size: float = option(
        0.0,
        "edge of the cubes in which points are merged, metres; 0 = a pixel at the first frame's median depth",
        low=0.0,
        high=100.0,
    )
    max_points: int = option(1_000_000, "above this many points the cubes grow", low=1000, high=100_000_000)
