"""The method: one frame in, one result out. It knows nothing of ROS."""

from raymap3r_ros.streaming.options import METHOD, MaskOptions, Method, StreamOptions
from raymap3r_ros.streaming.result import StepResult
from raymap3r_ros.streaming.stream import Stream, StreamState

__all__ = ["METHOD", "MaskOptions", "Method", "StepResult", "Stream", "StreamOptions", "StreamState"]
