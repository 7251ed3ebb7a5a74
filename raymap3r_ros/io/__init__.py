"""Recordings in, files out. One file per format; formats of recordings (`formats/`) are found by themselves.

Does not need ROS.
"""

from raymap3r_ros.io.recording import Frame, Recording, open_recording

__all__ = ["Frame", "Recording", "open_recording"]
