"""Results over many frames: the map of the static scene, the occupancy grid, the metric scale. Does not need ROS."""

from raymap3r_ros.mapping.occupancy import OccupancyGrid, OccupancyOptions, floor_height, occupancy_grid
from raymap3r_ros.mapping.static_map import PixelOptions, StaticMap, StaticMapOptions

__all__ = [
    "OccupancyGrid",
    "OccupancyOptions",
    "PixelOptions",
    "StaticMap",
    "StaticMapOptions",
    "floor_height",
    "occupancy_grid",
]
