"""Known camera poses from TF, for the stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.poses import ROS_FROM_OPTICAL
from raymap3r_ros.mapping.scale import ScaleOptions
from raymap3r_ros.mapping.scale.options import FIXED
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.tf_frames import PATIENCE, LookUp, TransformError
from raymap3r_ros.streaming.known_poses import checked_pose

if TYPE_CHECKING:
    from raymap3r_ros.node.node_options import NodeOptions

POSE_SOURCES = ("none", "tf")
# Seconds of real time to wait for a transform if every image counts, as in a replay faster than the robot was. Only
# after a success, so that a recording without transforms does not wait at each image.
REPLAY_PATIENCE = 0.5


def check_pose_source(source: str, tf_mode: str, publish_tf: bool, scale: ScaleOptions) -> None:
    """Raise OptionError if poses cannot be looked up beside the transforms and the scale of the node."""
    if source == "none":
        return
    if publish_tf and tf_mode != "map":
        raise OptionError(
            f"pose_source is tf, but with tf_mode {tf_mode} this node publishes the parent of the camera or the base, "
            "and would look up its own poses; allowed with publish_tf: tf_mode map, or set publish_tf to false"
        )
    if scale.source != FIXED or scale.value != 1:
        raise OptionError(
            f"pose_source is tf, and scale.source is {scale.source} with scale.value {scale.value}; allowed: "
            f"{FIXED} and 1.0, because the metric scale follows from the given poses"
        )


class TfPoses:
    """Looks up the camera at the stamps of images. Not thread-safe."""

    def __init__(self, options: NodeOptions, look_up: LookUp, reporter: Reporter) -> None:
        """
        Args:
            options: with `every_frame`, look-ups wait longer, so that a fast replay finds what a live node finds.
            look_up: returns the pose of a child frame in a parent frame, see `tf_frames.look_up`.
        """
        self._odom_frame = options.odom_frame
        self._every_frame = options.every_frame
        self._look_up = look_up
        self._reporter = reporter
        self._waits = True  # for a transform that is late
        self._missing = False  # the last image had no pose

    def pose(self, camera_frame: str, stamp: Time) -> np.ndarray | None:
        """(4, 4) camera to the stream's world, `odom_frame` in optical axes; None without a usable transform.

        The first image of a gap without transforms logs a warning.
        """
        deadline = time.monotonic() + (REPLAY_PATIENCE if self._every_frame and self._waits else 0)
        while True:
            try:
                pose = self._look_up(self._odom_frame, camera_frame, stamp, 0.0).copy()
                pose[:3] = ROS_FROM_OPTICAL.T @ pose[:3]
                checked_pose(pose, 1)
                break
            except InputError as error:
                if isinstance(error, TransformError) and time.monotonic() < deadline:
                    time.sleep(PATIENCE / 20)
                    continue
                self._report(str(error))
                return None
        self._waits, self._missing = True, False
        return pose

    def _report(self, problem: str) -> None:
        if not self._missing:
            self._reporter.warn(f"images have no known pose (pose_source tf): {problem}")
        self._waits, self._missing = False, True
