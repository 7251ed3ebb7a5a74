"""Scale from wheel odometry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from raymap3r_ros.geometry.poses import MAX_DISTANCE
from raymap3r_ros.mapping.scale.matching import FrameMatcher, Samples
from raymap3r_ros.mapping.scale.method import DEVIATION, MAX_GAP, MAX_TIME, MAX_TURN, MIN_TRAVEL
from raymap3r_ros.mapping.scale.source import Observation, ScaleSource

if TYPE_CHECKING:  # options are built from the sources
    from raymap3r_ros.mapping.scale.options import ScaleOptions


class OdometrySource(ScaleSource):
    """Compares wheel odometry with the camera path of the network: the lengths of the same stretches, start to end.

    A stretch ends when the odometry is MIN_TRAVEL away from its start, so a robot at rest yields no observation. If
    the camera's position in the base frame is unknown, stretches in which the camera turns are discarded, because
    the camera then travels another distance than the base.
    """

    name = "odometry"
    help = "wheel odometry"
    uses_maps = False

    def __init__(self) -> None:
        self._samples = Samples()
        self._matcher = FrameMatcher(self._samples, self._compare)
        self._lever: np.ndarray | None = None  # (3,) the camera's position in the base frame, metres
        self._start: tuple[float, np.ndarray, np.ndarray] | None = None  # stamp, odometry's position, network's pose

    def mount_camera(self, base_from_camera: np.ndarray) -> None:
        position = np.array(base_from_camera[:3, 3], np.float64)
        if self._lever is not None and np.array_equal(position, self._lever):
            return
        self._lever = position
        self._samples.clear()  # they are positions of another point
        self._start = None

    def add(self, reading: tuple[float, np.ndarray]) -> None:
        """Add a stamp in seconds and a pose (4, 4) of the base in the odometry's frame, metres."""
        stamp, pose = reading
        position = pose[:3, 3] if self._lever is None else pose[:3, :3] @ self._lever + pose[:3, 3]
        if np.isfinite(position).all() and np.abs(position).max() <= MAX_DISTANCE:
            self._samples.add(stamp, np.asarray(position, np.float64))

    def reset(self) -> None:
        """Drop the current stretch. The odometry's frame is independent of the network's world, so samples stay."""
        self._matcher.reset()
        self._start = None

    def observe(
        self, stamp: float, pose: np.ndarray, measured: np.ndarray | None, options: ScaleOptions
    ) -> list[Observation]:
        return self._matcher.match(stamp, np.asarray(pose, np.float64))

    def _compare(self, stamp: float, pose: np.ndarray) -> Observation | None:
        pair = self._samples.around(stamp)
        if pair is None or pair[1][0] - pair[0][0] > MAX_GAP:
            self._start = None
            return None
        (before, first), (after, second) = pair
        share = (stamp - before) / (after - before) if after > before else 0.0
        position = first + share * (second - first)
        if (
            self._start is None
            or not 0 <= stamp - self._start[0] <= MAX_TIME
            or (self._lever is None and _angle(self._start[2], pose) > MAX_TURN)
        ):
            self._start = stamp, position, pose
            return None
        _, start, start_pose = self._start
        travelled = float(np.linalg.norm(position - start))
        if travelled < MIN_TRAVEL:
            return None
        self._start = stamp, position, pose
        seen = float(np.linalg.norm(pose[:3, 3] - start_pose[:3, 3]))
        return Observation(stamp, math.log(travelled) - math.log(seen), DEVIATION) if seen > 0 else None


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle in radians between the rotations of two poses (4, 4)."""
    cosine = (float((first[:3, :3] * second[:3, :3]).sum()) - 1) / 2
    return math.acos(min(max(cosine, -1.0), 1.0))
