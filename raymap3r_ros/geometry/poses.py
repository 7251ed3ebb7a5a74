"""Poses between the stream's world (optical axes) and ROS's (REP 103), quaternions and velocities."""

from __future__ import annotations

import math

import numpy as np

# Columns are the optical axes (x right, y down, z forward) written in x forward, y left, z up.
ROS_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])

# Metres. Coordinates in UTM and from the centre of the Earth are below 1e7; a larger number is damage.
MAX_DISTANCE = 1e8


def is_plausible(pose: np.ndarray) -> bool:
    """Whether a pose (4, 4) is finite and at most MAX_DISTANCE from its origin."""
    return bool(np.isfinite(pose).all() and np.abs(pose[:3, 3]).max() <= MAX_DISTANCE)


def world_pose(camera_to_world: np.ndarray) -> np.ndarray:
    """(4, 4) pose of the camera's optical frame in a world with REP 103 axes, from one with optical axes."""
    pose = camera_to_world.astype(np.float64)
    pose[:3] = ROS_FROM_OPTICAL @ pose[:3]
    return pose


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w), w >= 0, of a (3, 3) rotation matrix.

    As `geometry.cameras.quaternion`, in plain Python: for a single matrix, one tensor operation costs more than this.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    columns = (
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx),
        (xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy),
        (yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz),
    )
    w, x, y, z = columns[max(range(4), key=lambda index: columns[index][index])]
    length = math.copysign(math.sqrt(w * w + x * x + y * y + z * z), w)
    return x / length, y / length, z / length, w / length


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle, radians, of a (3, 3) rotation matrix."""
    x, y, z, w = quaternion(rotation)
    axis = np.array([x, y, z])
    length = float(np.linalg.norm(axis))
    if length < 1e-12:
        return np.zeros(3)
    return axis * (2 * math.atan2(length, w) / length)


def twist(previous: np.ndarray, current: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Linear (m/s) and angular (rad/s) velocity in the axes of the current child frame, from two (4, 4) poses."""
    linear = current[:3, :3].T @ (current[:3, 3] - previous[:3, 3]) / seconds
    angular = rotation_vector(previous[:3, :3].T @ current[:3, :3]) / seconds
    return linear, angular
