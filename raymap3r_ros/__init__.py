"""Live 3D perception for robots in a moving world: CUT3R networks run with the RayMap3R scheme on ROS 2."""

__version__ = "0.1.0"
