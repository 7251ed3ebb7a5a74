"""Covariance of the camera's pose and of its motion between two frames.

Errors grow with *travel*: the metres moved so far, plus TURN_LENGTH metres for each radian turned. The coefficients
belong to the weights and are stored in the metadata of their checkpoint. docs/odometry.md defines the errors;
`raymap3r evaluate covariance` fits the coefficients.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymap3r_ros.network.metadata import check_keys, check_number, measured_entry

METADATA_KEY = "covariance"  # of a checkpoint; the value is the JSON of an ErrorModel
UNKNOWN_VARIANCE = 1e6  # of a velocity without a previous frame
TURN_LENGTH = 2.0  # metres of travel per radian; of 0, 1, 2 and 4 the value that fits all groups well


@dataclass(frozen=True)
class VarianceModel:
    """Standard deviation of one group of errors, in metres or radians, as a function of travel.

    Along the camera's axis i the variance at travel m and confidence c is
    (axes_i / c^power)^2 (start^2 + settled^2 (1 - exp(-m / reach)) + creep^2 m).
    """

    start: float  # at zero travel and confidence 1
    creep: float  # per square root of travel, without bound
    power: float  # exponent of the confidence
    axes: tuple[float, float, float]  # factors of the axes x, y, z; their mean square is 1
    settled: float = 0.0  # limit of the part that saturates
    reach: float = 1.0  # travel at which that part has grown to 63 % of its limit in variance

    def variances(self, confidence: np.ndarray | float, travel: np.ndarray | float) -> np.ndarray:
        """(..., 3) variances from a frame's median confidence and the travel, both (...)."""
        travel = np.asarray(travel, np.float64)
        saturating = self.settled**2 * -np.expm1(-travel / self.reach)
        confidence_factor = np.maximum(confidence, 1.0) ** (-2 * self.power)
        return (confidence_factor * (self.start**2 + saturating + self.creep**2 * travel))[..., None] * np.square(
            self.axes
        )


# Allowed values in a checkpoint. The limits keep every variance positive and finite.
_LIMITS = {
    "start": (1e-6, 1e3),
    "creep": (0.0, 1e3),
    "power": (0.0, 10.0),
    "axes": (1e-3, 1e3),
    "settled": (0.0, 1e3),
    "reach": (1e-6, 1e6),
}
_OPTIONAL = {field.name for field in dataclasses.fields(VarianceModel) if field.default is not dataclasses.MISSING}


@dataclass(frozen=True)
class ErrorModel:
    """Variances of a pose (position, rotation) and of the motion between two frames (step, turn)."""

    position: VarianceModel
    rotation: VarianceModel
    step: VarianceModel
    turn: VarianceModel

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, str], source: str = "the checkpoint") -> ErrorModel | None:
        """The model in a checkpoint's metadata; None if the metadata has none.

        `source` names the checkpoint in errors. Raises CheckpointError if the metadata is malformed.
        """
        return measured_entry(manifest, METADATA_KEY, source, "an error model", cls._parse)

    @classmethod
    def _parse(cls, groups: Any) -> ErrorModel:
        check_keys(groups, [field.name for field in dataclasses.fields(cls)])
        return cls(**{name: _variance_model(name, group) for name, group in groups.items()})

    def to_json(self) -> str:
        """JSON for the metadata of a checkpoint, one line per group; `from_manifest` reads it."""
        lines = [f'  "{name}": {json.dumps(group)}' for name, group in dataclasses.asdict(self).items()]
        return "{\n" + ",\n".join(lines) + "\n}"

    def pose_variances(self, confidence: np.ndarray | float, travelled: np.ndarray | float) -> np.ndarray:
        """(..., 6) of position (m^2) and rotation (rad^2), from the frame's median confidence and the total travel."""
        return np.concatenate([g.variances(confidence, travelled) for g in (self.position, self.rotation)], axis=-1)

    def step_variances(self, confidence: np.ndarray | float, travel: np.ndarray | float) -> np.ndarray:
        """(..., 6) of a step's translation (m^2) and rotation (rad^2), from the travel of the step."""
        return np.concatenate([g.variances(confidence, travel) for g in (self.step, self.turn)], axis=-1)


def _variance_model(name: str, values: Any) -> VarianceModel:
    """One group of a model's JSON. Raises ValueError."""
    check_keys(values, _LIMITS.keys() - _OPTIONAL, _OPTIONAL, name)
    for key, value in values.items():
        numbers = value if key == "axes" else [value]
        if not isinstance(numbers, list) or (key == "axes" and len(numbers) != 3):
            raise ValueError(f"{name}.{key} is {value!r:.60}; expected a list of three numbers")
        for number in numbers:
            check_number(f"{name}.{key}", number, *_LIMITS[key])
    return VarianceModel(**{**values, "axes": tuple(values["axes"])})


# Used if a checkpoint has no model of its own: the coefficients that were fitted to the shipped weights `one_room` in
# rendered scenes. For other weights they are only a rough guess.
DEFAULT = ErrorModel(
    position=VarianceModel(
        start=0.00317, creep=0.0183, power=0.457, axes=(1.2, 0.915, 0.846), settled=0.243, reach=3.26
    ),
    rotation=VarianceModel(
        start=0.00356, creep=0.001, power=0.524, axes=(0.81, 1.23, 0.916), settled=0.0903, reach=2.14
    ),
    step=VarianceModel(start=0.001, creep=0.133, power=0.508, axes=(1.33, 0.654, 0.894)),
    turn=VarianceModel(start=0.001, creep=0.0595, power=0.521, axes=(0.721, 1.5, 0.475)),
)


def travels(poses: np.ndarray) -> np.ndarray:
    """(T - 1,) travel of each step of camera-to-world poses (T, 4, 4), in the network's metres."""
    before, after = poses[:-1], poses[1:]
    metres = np.linalg.norm(after[:, :3, 3] - before[:, :3, 3], axis=1)
    # Two rotations an angle apart differ by 2 sqrt(2) sin(angle / 2) in the Frobenius norm.
    apart = np.linalg.norm(after[:, :3, :3] - before[:, :3, :3], axis=(1, 2))
    return metres + TURN_LENGTH * 2 * np.arcsin(np.minimum(apart / np.sqrt(8), 1.0))


def travel(previous: np.ndarray, current: np.ndarray) -> float:
    """Travel between two (4, 4) camera-to-world poses, in the network's metres."""
    return float(travels(np.stack((previous, current)))[0])


def pose_covariance(
    model: ErrorModel,
    child: np.ndarray,
    child_from_camera: np.ndarray,
    confidence: float,
    travelled: float,
    scale: float = 1.0,
) -> np.ndarray:
    """(6, 6) covariance of the pose in nav_msgs/Odometry: x y z (metres), then rotation about x y z (radians).

    It describes the child frame at `child` (4, 4) in the header's frame, in the axes of the header's frame.
    `child_from_camera` (4, 4) is the camera's pose in the child frame, `confidence` the median of the frame,
    `travelled` the sum of `travel` since the stream began, `scale` metres per metre of the network.
    """
    variances = model.pose_variances(confidence, travelled)
    axes = child[:3, :3] @ child_from_camera[:3, :3]
    return _transform_covariance(variances, axes, child[:3, :3] @ child_from_camera[:3, 3], scale)


def twist_covariance(
    model: ErrorModel,
    child_from_camera: np.ndarray,
    confidence: float,
    travel: float,
    seconds: float,
    scale: float = 1.0,
) -> np.ndarray:
    """(6, 6) covariance of the twist in nav_msgs/Odometry, in the child's axes: linear (m/s), then angular (rad/s).

    The motion took `seconds` and covered `travel`; the other arguments are as for `pose_covariance`.
    """
    variances = model.step_variances(confidence, travel)
    return _transform_covariance(variances, child_from_camera[:3, :3], child_from_camera[:3, 3], scale) / seconds**2


def _transform_covariance(variances: np.ndarray, axes: np.ndarray, lever: np.ndarray, scale: float) -> np.ndarray:
    """(6, 6) of a body with the camera at `lever` (3,) metres from it, from (6,) variances in the camera's axes.

    `axes`: (3, 3) rotation of the camera. A rotation error d of the camera moves the body by lever x d.
    """
    x, y, z = lever
    jacobian = np.zeros((6, 6))
    jacobian[:3, :3] = scale * axes
    jacobian[3:, 3:] = axes
    jacobian[:3, 3:] = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ axes
    return jacobian * variances @ jacobian.T
