"""The metric scale of one stream."""

from __future__ import annotations

import math
import threading

import numpy as np
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale.estimator import ScaleEstimate, ScaleEstimator
from raymap3r_ros.mapping.scale.options import SOURCES, ScaleOptions
from raymap3r_ros.mapping.scale.source import ScaleSource
from raymap3r_ros.mapping.scale.sources.odometry import OdometrySource
from raymap3r_ros.mapping.scale.sources.range_sensor import RangeReading, RangeSource
from raymap3r_ros.streaming import StepResult


class MetricScale:
    """Combines readings of the source with the frames of a stream, and estimates metres per network unit.

    `add_range` and `add_odometry` may be called from any thread; everything else belongs to the thread of the frames.
    Per frame: `measured = scale.look(result, ...)` on the device, then, with `measured` in host memory,
    `scale.update(...)`.
    """

    def __init__(self, options: ScaleOptions) -> None:
        """`options.source` is fixed from here on."""
        self.options = options  # replace it when `value` or `camera_height` changes
        self.source: ScaleSource | None = None  # None: the scale is fixed
        if options.source in SOURCES:
            self.source = SOURCES[options.source]()
        self.estimator = ScaleEstimator()  # of the current world
        self._lock = threading.Lock()

    def mount_camera(self, base_from_camera: np.ndarray) -> None:
        """Set the camera's pose (4, 4) in the robot's base frame, whose z axis points up.

        Raises InputError if it is not a pose.
        """
        pose = _checked_pose(base_from_camera, "the camera's pose in the base frame")
        if self.source is not None:
            with self._lock:
                self.source.mount_camera(pose)

    def mount_ranger(self, camera_from_ranger: np.ndarray) -> None:
        """Set the range sensor's pose (4, 4) in the camera's optical frame. It measures along its own x axis.

        Raises InputError if it is not a pose, or if the sensor does not point along the optical axis.
        """
        pose = _checked_pose(camera_from_ranger, "the range sensor's pose in the camera's frame")
        if isinstance(self.source, RangeSource):
            with self._lock:
                self.source.mount_sensor(pose)

    def add_range(self, reading: RangeReading) -> None:
        """Add a reading of the range sensor."""
        if isinstance(self.source, RangeSource):
            with self._lock:
                self.source.add(reading)

    def drop_ranges(self) -> None:
        """Drop the readings of the range sensor, because those that follow are of another one."""
        if isinstance(self.source, RangeSource):
            with self._lock:
                self.source.drop()

    def add_odometry(self, stamp: float, pose: np.ndarray) -> None:
        """Add a pose (4, 4) of the base in the odometry's frame, metres, at `stamp` seconds."""
        if isinstance(self.source, OdometrySource):
            with self._lock:
                self.source.add((stamp, pose))

    def reset(self, estimator: ScaleEstimator | None = None) -> None:
        """Start again for another world, whose unit of length may differ. Not needed after an aligned memory reset.

        `estimator` belongs to an earlier world that continues.
        """
        with self._lock:
            self.estimator = estimator or ScaleEstimator()
            if self.source is not None:
                self.source.reset()

    def look(self, result: StepResult, min_confidence: float) -> Tensor | None:
        """Return what `update` needs of a frame's maps: (2,) on the network's device; None if it needs nothing.

        Also None if motion was not estimated for the frame: a moving object may be in the beam or on the floor.
        """
        if self.source is None or not self.source.uses_maps or not result.motion:
            return None
        return self.source.measure(result, min_confidence)

    def update(self, stamp: float, pose: np.ndarray, measured: np.ndarray | None) -> ScaleEstimate:
        """Return the scale at a frame.

        `stamp` in seconds, finite; `pose` (4, 4) camera to world in network units; `measured` from `look`, in host
        memory.
        """
        default = self.options.value
        if self.source is None:
            return ScaleEstimate(default, True, 1.0, 0, math.nan)
        if measured is not None and not np.isfinite(measured).all():
            measured = None
        with self._lock:
            observations = self.source.observe(stamp, pose, measured, self.options)
        for observation in observations:
            self.estimator.add(observation)
        return self.estimator.estimate(stamp, default)


def _checked_pose(pose: np.ndarray, what: str) -> np.ndarray:
    """Return the pose in float64. Raises InputError if it is not one."""
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-3):
        raise InputError(f"{what} is not a (4, 4) pose: {pose.tolist()}")
    return pose
