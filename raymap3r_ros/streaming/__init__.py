"""The method: one frame in, one result out. It knows nothing of ROS."""

from raymap3r_ros.streaming.result import StepResult, WorldChange
from raymap3r_ros.streaming.stream import Stream, StreamState
from raymap3r_ros.streaming.stream_options import METHOD, MaskOptions, Method, StreamOptions

__all__ = ["METHOD", "MaskOptions", "Method", "StepResult", "Stream", "StreamOptions", "StreamState", "WorldChange"]
