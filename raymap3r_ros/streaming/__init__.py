"""The method: one frame in, one result out, without ROS."""

from raymap3r_ros.streaming.gates import RULES
from raymap3r_ros.streaming.method import METHOD, Method
from raymap3r_ros.streaming.result import StepResult, WorldChange
from raymap3r_ros.streaming.state import StreamState
from raymap3r_ros.streaming.stream import Stream
from raymap3r_ros.streaming.stream_options import MaskOptions, StreamOptions

__all__ = [
    "METHOD",
    "RULES",
    "MaskOptions",
    "Method",
    "StepResult",
    "Stream",
    "StreamOptions",
    "StreamState",
    "WorldChange",
]
