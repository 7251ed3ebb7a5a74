"""Poses between the stream's world (optical axes) and ROS's (REP 103), and what an odometry message needs."""

from __future__ import annotations

import math

import numpy as np

from raymap3r_ros.mapping.uncertainty import ONE_ROOM, travels

# Columns are the optical axes (x right, y down, z forward) written in x forward, y left, z up.
ROS_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])

UNKNOWN_VARIANCE = 1e6  # of a velocity without a predecessor


def world_pose(camera_to_world: np.ndarray) -> np.ndarray:
    """(4, 4) pose of the camera's optical frame in a world with REP 103 axes, from one with optical axes."""
    pose = camera_to_world.astype(np.float64)
    pose[:3] = ROS_FROM_OPTICAL @ pose[:3]
    return pose


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w), w >= 0, of a (3, 3) rotation matrix.

    As `streaming.cameras.quaternion`, in plain numbers: for a single matrix, each call of a tensor's operation would
    cost more than all of this.
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


def travel(previous: np.ndarray, current: np.ndarray) -> float:
    """How far two (4, 4) poses are apart for the growth of errors, see `mapping.uncertainty`. Stream's metres."""
    return float(travels(np.stack((previous, current)))[0])


def pose_covariance(
    child: np.ndarray, child_from_camera: np.ndarray, confidence: float, travelled: float, scale: float = 1.0
) -> np.ndarray:
    """(6, 6) covariance of nav_msgs/Odometry's pose: x y z (metres) and rotation about x y z (radians).

    Of the child frame at `child` (4, 4) in the header's frame, in the axes of that frame, where `child_from_camera`
    (4, 4) is the camera's place in the child. `confidence` is the frame's median, `travelled` the sum of `travel`
    since the stream began, `scale` metres per metre of the stream.
    """
    variances = ONE_ROOM.pose_variances(confidence, travelled)
    axes = child[:3, :3] @ child_from_camera[:3, :3]
    return _carried(variances, axes, child[:3, :3] @ child_from_camera[:3, 3], scale)


def twist_covariance(
    child_from_camera: np.ndarray, confidence: float, travel: float, seconds: float, scale: float = 1.0
) -> np.ndarray:
    """(6, 6) covariance of nav_msgs/Odometry's twist in the child's axes: linear (m/s) and angular (rad/s).

    The motion took `seconds` and its own `travel`; the rest is as for `pose_covariance`.
    """
    variances = ONE_ROOM.step_variances(confidence, travel)
    return _carried(variances, child_from_camera[:3, :3], child_from_camera[:3, 3], scale) / seconds**2


def _carried(variances: np.ndarray, axes: np.ndarray, lever: np.ndarray, scale: float) -> np.ndarray:
    """(6, 6) for a body whose camera sits at `lever` (3,) metres from it, from (6,) variances in the camera's axes.

    `axes`: (3, 3) rotation of the camera. What is off by a turn d at the camera is off by lever x d at the body.
    """
    x, y, z = lever
    carry = np.zeros((6, 6))
    carry[:3, :3] = scale * axes
    carry[3:, 3:] = axes
    carry[:3, 3:] = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ axes
    return carry * variances @ carry.T
