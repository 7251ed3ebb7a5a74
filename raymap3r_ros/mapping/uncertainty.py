"""How far a pose and a step of the camera are believed to be off: the model, its constants for the shipped weights.

Errors grow with *travel*: the metres of the way so far, and TURN_LENGTH for every radian turned on it. How they are
defined, and how the constants were found, is told in docs/odometry.md and `evaluation.covariance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNKNOWN_VARIANCE = 1e6  # of a velocity without a predecessor
TURN_LENGTH = 2.0  # metres of way that cost as much as one radian; of 0, 1, 2 and 4 what fits all groups well


@dataclass(frozen=True)
class VarianceModel:
    """Standard deviation of one group of errors, metres or radians, as it grows with travel.

    Along the camera's axis i the variance at travel m and confidence c is
    (axes_i / c^power)^2 (start^2 + settled^2 (1 - exp(-m / reach)) + creep^2 m).
    """

    start: float  # without any travel, at confidence 1
    creep: float  # per root of travel, for ever
    power: float  # of the confidence
    axes: tuple[float, float, float]  # factors of the axes x, y, z; their mean square is 1
    settled: float = 0.0  # what is added in the first travel
    reach: float = 1.0  # travel in which two thirds of that come

    def variances(self, confidence: np.ndarray | float, travel: np.ndarray | float) -> np.ndarray:
        """(..., 3) from a frame's median confidence and the travel, both (...)."""
        travel = np.asarray(travel, np.float64)
        bent = self.settled**2 * -np.expm1(-travel / self.reach)
        doubt = np.maximum(confidence, 1.0) ** (-2 * self.power)
        return (doubt * (self.start**2 + bent + self.creep**2 * travel))[..., None] * np.square(self.axes)


@dataclass(frozen=True)
class ErrorModel:
    """Variances of all four groups."""

    position: VarianceModel
    rotation: VarianceModel
    step: VarianceModel
    turn: VarianceModel

    def pose_variances(self, confidence: np.ndarray | float, travelled: np.ndarray | float) -> np.ndarray:
        """(..., 6) of position (m^2) and rotation (rad^2), from the frame's median confidence, the travel so far."""
        return np.concatenate([g.variances(confidence, travelled) for g in (self.position, self.rotation)], axis=-1)

    def step_variances(self, confidence: np.ndarray | float, travel: np.ndarray | float) -> np.ndarray:
        """(..., 6) of a step's translation (m^2) and rotation (rad^2), from its own travel."""
        return np.concatenate([g.variances(confidence, travel) for g in (self.step, self.turn)], axis=-1)


# Of the weights `one_room`, as `raymap3r evaluate covariance` prints it.
ONE_ROOM = ErrorModel(
    position=VarianceModel(
        start=0.00533, creep=0.0438, power=0.44, axes=(1.3, 0.844, 0.767), settled=0.279, reach=3.71
    ),
    rotation=VarianceModel(
        start=0.00331, creep=0.00306, power=0.471, axes=(0.835, 1.36, 0.676), settled=0.111, reach=2.62
    ),
    step=VarianceModel(start=0.00801, creep=0.14, power=0.533, axes=(1.41, 0.355, 0.943)),
    turn=VarianceModel(start=0.00624, creep=0.0583, power=0.508, axes=(0.379, 1.63, 0.464)),
)


def travels(poses: np.ndarray) -> np.ndarray:
    """(T - 1,) travel of each step of camera-to-world poses (T, 4, 4), in the network's metres."""
    before, after = poses[:-1], poses[1:]
    metres = np.linalg.norm(after[:, :3, 3] - before[:, :3, 3], axis=1)
    # Two rotations that are an angle apart differ by 2 sqrt(2) sin(angle / 2) in the Frobenius norm.
    apart = np.linalg.norm(after[:, :3, :3] - before[:, :3, :3], axis=(1, 2))
    return metres + TURN_LENGTH * 2 * np.arcsin(np.minimum(apart / np.sqrt(8), 1.0))


def travel(previous: np.ndarray, current: np.ndarray) -> float:
    """How far two (4, 4) poses are apart for the growth of errors. Stream's metres."""
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
