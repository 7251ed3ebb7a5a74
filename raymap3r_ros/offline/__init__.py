"""Recordings processed without ROS."""

from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.run import RunOutputs, RunSummary, run_recording

__all__ = ["CloudOptions", "RunOutputs", "RunSummary", "run_recording"]
