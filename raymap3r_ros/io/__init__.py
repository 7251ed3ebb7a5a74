"""Recordings in, files out: videos, image folders and bags read frame by frame, results written. Needs no ROS."""

from raymap3r_ros.io.readers import Frame, Recording, open_recording

__all__ = ["Frame", "Recording", "open_recording"]
