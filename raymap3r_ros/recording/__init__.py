"""Recordings in, files out: videos, image folders and bags read frame by frame, results written. Needs no ROS."""

from raymap3r_ros.recording.cloud import CloudOptions
from raymap3r_ros.recording.readers import Frame, Recording, open_recording
from raymap3r_ros.recording.run import RunOutputs, RunSummary, run_recording

__all__ = [
    "CloudOptions",
    "Frame",
    "Recording",
    "RunOutputs",
    "RunSummary",
    "open_recording",
    "run_recording",
]
