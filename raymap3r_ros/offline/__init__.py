"""Recordings processed without ROS."""

from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.run import RunOutputs, run_recording
from raymap3r_ros.offline.summary import RunSummary

__all__ = ["CloudOptions", "RunOutputs", "RunSummary", "run_recording"]
