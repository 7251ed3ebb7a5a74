"""Errors of a camera path against the ground truth, computed by evo. Poses are camera to world, metres."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.evaluation.statistics import optional_module
from raymap3r_ros.io.tum import write_trajectory

if TYPE_CHECKING:
    from evo.core.trajectory import PosePath3D

DRIFT = 0.02  # of odometry, as a share of the distance travelled
STANDSTILL = 1e-6  # metres; a path with a smaller RMS distance to its mean position does not move


@dataclass(frozen=True)
class TrajectoryScore:
    """Errors of one path. RPE is between consecutive frames, RMSE over all of them, after the Sim(3) alignment.

    A path that does not move determines no scale: if one of the two does not move, `scale` is NaN and 1 is used.
    """

    ate: float  # metres, RMSE of positions after Sim(3) alignment
    ate_se3: float  # metres, RMSE of positions after SE(3) alignment; relevant for a robot
    rpe_translation: float  # metres
    rpe_rotation: float  # degrees
    scale: float  # of the Sim(3) alignment; far from 1 a low `ate` means little
    end_drift: float  # metres between the last positions with the first poses aligned
    ate_constant: float  # metres, ATE of a camera at rest: RMS distance of the true positions to their mean
    relative: float  # ate_se3 / ate_constant; NaN if the true path does not move
    growth: float  # RMSE of the last tenth of the path / of the second, after SE(3) alignment of all; NaN if undefined


def trajectory_metrics(predicted: np.ndarray, truth: np.ndarray, stamps: np.ndarray) -> TrajectoryScore:
    """Score poses (T, 4, 4) against the true ones of the same frames, at `stamps` (T,) seconds.

    Raises InputError for fewer than two poses, other shapes, stamps that do not increase, values that are not finite,
    or invalid rotations, and Raymap3rError if evo is not installed.
    """
    predicted, truth = checked_poses(predicted, "predicted"), checked_poses(truth, "true")
    stamps = np.asarray(stamps, np.float64)
    if not len(predicted) == len(truth) == stamps.size or len(truth) < 2:
        raise InputError(
            f"{len(predicted)} predicted poses, {len(truth)} true ones, {stamps.size} stamps; needed: one of each for "
            "every frame, and at least two frames"
        )
    if not (np.diff(stamps) > 0).all():
        raise InputError("stamps do not rise from frame to frame; sort the frames by time first")

    metrics = optional_module("evo.core.metrics")
    paths = optional_module("evo.core.trajectory")
    reference, rigid = (paths.PoseTrajectory3D(poses_se3=list(p), timestamps=stamps) for p in (truth, predicted))
    scaled = copy.deepcopy(rigid)
    both_move = min(_rms_extent(predicted), _rms_extent(truth)) > STANDSTILL
    _align(rigid, reference, scaled=False)
    scale = _align(scaled, reference, scaled=both_move)

    def rmse(metric: object, path: PosePath3D) -> float:
        metric.process_data((reference, path))
        return float(metric.get_statistic(metrics.StatisticsType.rmse))

    def rpe(relation: object) -> float:
        return rmse(metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True), scaled)

    position = metrics.PoseRelation.translation_part
    ate_se3, ate_constant = rmse(metrics.APE(position), rigid), _rms_extent(truth)
    errors = np.linalg.norm(rigid.positions_xyz - reference.positions_xyz, axis=1)
    end = truth[0] @ np.linalg.inv(predicted[0]) @ predicted[-1]
    return TrajectoryScore(
        ate=rmse(metrics.APE(position), scaled),
        ate_se3=ate_se3,
        rpe_translation=rpe(position),
        rpe_rotation=rpe(metrics.PoseRelation.rotation_angle_deg),
        scale=scale if both_move else np.nan,
        end_drift=float(np.linalg.norm(end[:3, 3] - truth[-1, :3, 3])),
        ate_constant=ate_constant,
        relative=ate_se3 / ate_constant if ate_constant > STANDSTILL else np.nan,
        growth=growth(errors, np.arange(len(errors)), len(errors), lambda values: np.sqrt(np.square(values).mean())),
    )


def growth(values: np.ndarray, frames: np.ndarray, length: int, summary: Callable[[np.ndarray], np.floating]) -> float:
    """The summary of values (N,) in the last tenth of `length` frames, divided by their summary in the second tenth.

    `frames` (N,) are the frames that the values belong to. NaN if one of the two has no values, or the second is 0.
    """
    tenth = frames * 10 // length
    late, early = (values[tenth == number] for number in (9, 1))
    if not len(late) or not len(early):
        return np.nan
    reference = float(summary(early))
    return float(summary(late)) / reference if reference > 0 else np.nan


def random_walk(truth: np.ndarray, seed: int) -> np.ndarray:
    """A baseline (T, 4, 4): the true steps and turns from the first true pose, each in a random direction."""
    truth = checked_poses(truth, "true")
    rotations = optional_module("scipy.spatial.transform").Rotation
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    angles = rotations.from_matrix(truth[:-1, :3, :3].transpose(0, 2, 1) @ truth[1:, :3, :3]).magnitude()
    directions, axes = rng.normal(size=(2, len(lengths), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)

    walk = truth.copy()
    walk[1:, :3, 3] = truth[0, :3, 3] + np.cumsum(lengths[:, None] * directions, axis=0)
    for index, turn in enumerate(rotations.from_rotvec(angles[:, None] * axes).as_matrix()):
        walk[index + 1, :3, :3] = walk[index, :3, :3] @ turn
    return walk


def drifting(truth: np.ndarray, seed: int, share: float = DRIFT) -> np.ndarray:
    """Poses (T, 4, 4) of odometry that drifts by this share of the distance travelled, in one random direction."""
    direction = np.random.default_rng(seed).normal(size=3)
    direction /= np.linalg.norm(direction)
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0, prepend=truth[:1, :3, 3]), axis=1)
    poses = truth.copy()
    poses[:, :3, 3] += share * np.cumsum(steps)[:, None] * direction
    return poses


def write_tum(path: Path, stamps: Sequence[float], poses: np.ndarray) -> None:
    """TUM format, one line `timestamp tx ty tz qx qy qz qw` per pose (n, 4, 4)."""
    # As a float, seconds since 1970 are accurate to a microsecond.
    write_trajectory(path, [round(stamp * 1e6) * 1000 for stamp in stamps], poses)


def checked_poses(poses: np.ndarray, what: str) -> np.ndarray:
    """Poses (T, 4, 4) as float64 with exact rotations. Raises InputError if they are not finite or not poses."""
    poses = np.array(poses, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise InputError(f"{what} poses have the shape {poses.shape}; expected (frames, 4, 4)")
    broken = ~np.isfinite(poses).all(axis=(1, 2))
    if broken.any():
        raise InputError(
            f"{what} poses: {broken.sum()} of {len(poses)} are not finite, the first is {broken.argmax()}"
        )
    # Rotations in single precision fail the check of evo; the nearest exact rotation passes.
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    nearest = u @ vt
    wrong = (np.abs(nearest - poses[:, :3, :3]).max(axis=(1, 2), initial=0) > 1e-2) | (np.linalg.det(nearest) < 0)
    if wrong.any():
        raise InputError(f"{what} poses: the one at {wrong.argmax()} has no rotation in its upper left 3 x 3")
    poses[:, :3, :3] = nearest
    return poses


def _rms_extent(poses: np.ndarray) -> float:
    """RMS distance of the positions to their mean, metres."""
    positions = poses[:, :3, 3]
    return float(np.sqrt(np.square(positions - positions.mean(axis=0)).sum(axis=1).mean()))


def _align(path: PosePath3D, reference: PosePath3D, *, scaled: bool) -> float:
    """Align `path` to `reference` in place (Umeyama); returns the scale."""
    refused = optional_module("evo.core.geometry").GeometryException
    try:
        return float(path.align(reference, correct_scale=scaled)[2])
    except refused:
        # evo requires a unique rotation, which a straight path or a camera at rest does not have. All best alignments
        # have the same error.
        scale, rotation, translation = umeyama(path.positions_xyz, reference.positions_xyz, scaled=scaled)
        path.scale(scale)
        path.transform(optional_module("evo.core.lie_algebra").se3(rotation, translation))
        return scale
