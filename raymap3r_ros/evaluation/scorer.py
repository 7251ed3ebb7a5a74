"""Scores of all variants on one sequence, collected frame by frame."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.metrics import (
    MotionScore,
    depth_metrics,
    estimate_normals,
    motion_metrics,
    reconstruction_metrics,
    sequence_motion,
    umeyama,
)
from raymap3r_ros.evaluation.plan import EvaluationPlan, Setup, Variant
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence
from raymap3r_ros.evaluation.trajectory import drifting, growth, random_walk, trajectory_metrics
from raymap3r_ros.geometry.cameras import back_project
from raymap3r_ros.streaming import METHOD, StepResult
from raymap3r_ros.streaming.preprocessing import Framing, frame_intrinsics, visible_crop

log = logging.getLogger(__name__)

MANY_MOVING = 0.05  # share of moving pixels above which a frame counts for `mask_iou_5`
SAMPLES = 12  # frames of a sequence kept for baselines and pictures
SAMPLE_EDGE = 128  # maximum of their longer edge, pixels
CLOUD_FRAMES = 20  # maximum number of frames of a reconstruction
MAP_POINTS = 500  # about as many of each scored frame determine the thickness of the map
FIFTH = (0.13, 0.3)  # true depth over prediction, if millimetres were read with 5000 values per metre
CONSTANT_POSE, RANDOM_WALK, NOISY_POSES = "constant pose", "random walk", "noisy poses alone"  # trajectory baselines


@dataclass(frozen=True)
class SampledFrame:
    """One downscaled frame of the first variant and of the ground truth, in the network's framing. Depths: metres."""

    frame: int
    image: np.ndarray  # (h, w, 3) uint8 RGB
    depth: np.ndarray  # (h, w) predicted
    ray_depth: np.ndarray  # (h, w) predicted for the static scene
    mask: np.ndarray  # (h, w) bool, predicted
    true_depth: np.ndarray | None  # (h, w), 0 unknown
    true_static: np.ndarray | None  # (h, w), 0 unknown
    moving: np.ndarray | None  # (h, w) bool


@dataclass(frozen=True)
class SequenceRun:
    """Results of all variants on one sequence."""

    suite: str
    world: str  # "" for recorded data
    name: str
    frames: int
    truth: np.ndarray  # (T, 4, 4) c2w of the frames with a true pose; T may be 0
    poses: dict[str, np.ndarray]  # variant -> (T, 4, 4) c2w of the same frames, in the stream's own world
    values: dict[str, dict[str, float]]  # variant or baseline -> metric -> value; NaN if it is undefined
    samples: list[SampledFrame]
    unposed: int = 0  # images of the sequence that were left out because they have no pose


@dataclass(frozen=True)
class _TrueMaps:
    """Ground truth of one scored frame, in the network's framing at its original resolution."""

    depth: np.ndarray | None
    static_depth: np.ndarray | None
    moving: np.ndarray | None
    cloud: _Cloud | None  # static points at the network's resolution


@dataclass(frozen=True)
class _Cloud:
    """Points of one frame in a world, NaN if unknown, and their normals. Both (H, W, 3)."""

    points: np.ndarray
    normals: np.ndarray

    @classmethod
    def concatenate(cls, clouds: Sequence[_Cloud]) -> _Cloud:
        """All points of several frames, (N, 3)."""
        points = np.concatenate([cloud.points.reshape(-1, 3) for cloud in clouds])
        return cls(points, np.concatenate([cloud.normals.reshape(-1, 3) for cloud in clouds]))


@dataclass
class _Prediction:
    """Output of one variant on a sequence; maps of scored frames only."""

    poses: list[np.ndarray] = field(default_factory=list)
    depths: dict[int, np.ndarray] = field(default_factory=dict)  # frame -> (H, W)
    ray_depths: dict[int, np.ndarray] = field(default_factory=dict)
    motion: list[MotionScore] = field(default_factory=list)
    clouds: dict[int, _Cloud] = field(default_factory=dict)  # without the pixels of the dynamic mask
    map_points: dict[int, np.ndarray] = field(default_factory=dict)  # frame -> (N, 3) of them, in the camera frame
    unhealthy: int = 0  # frames with values that are not finite


class SequenceScorer:
    """Scores all variants on one sequence: for each frame first the ground truth, then the results."""

    def __init__(
        self, variants: Sequence[Variant], plan: EvaluationPlan, length: int, step: int, sequence: PosedSequence
    ) -> None:
        self._name = sequence.name
        self._unit_hint = sequence.unit_hint
        self._surface_distance = sequence.surface_distance
        self._seed = zlib.crc32(sequence.name.encode())
        self._setups = {variant.name: variant.setup(length) for variant in variants}
        self._costs: dict[Setup, dict[str, float]] = {}
        self._sampled_setup = self._setups[variants[0].name]
        self._plan = plan
        self._predictions = {setup: _Prediction() for setup in self._setups.values()}
        self._stamps: list[float] = []
        self._posed: list[int] = []  # frames with a true pose
        self._poses: list[np.ndarray] = []
        self._truth: dict[int, _TrueMaps] = {}
        self._samples: list[SampledFrame] = []
        self._sampled = _spaced_frames(METHOD.warmup_frames, length, SAMPLES, step)
        clouded = _spaced_frames(METHOD.warmup_frames, length, CLOUD_FRAMES, step)
        self._clouded = clouded if plan.reconstruction else set()

    def add_truth(self, frame: Frame, framing: Framing, scored: bool) -> None:
        """Add the ground truth of the next frame; its maps are kept if the frame is `scored`."""
        index = len(self._stamps)
        self._stamps.append(frame.stamp)
        if frame.pose is not None:
            self._posed.append(index)
            self._poses.append(frame.pose)
        if not scored:
            return
        depth, static_depth, moving = (
            None if array is None else visible_crop(array, framing)
            for array in (frame.depth, frame.static_depth, frame.moving)
        )
        cloud = None
        if index in self._clouded and depth is not None and frame.pose is not None and frame.intrinsics is not None:
            height, width = frame.image.shape[:2]
            intrinsics = frame_intrinsics(frame.intrinsics, width, height, framing)
            points = _unproject(_nearest(depth, framing.size), intrinsics)
            still = np.ones(framing.size, bool) if moving is None else ~_nearest(moving, framing.size)
            cloud = self._cloud(points, still, frame.pose)
        self._truth[index] = _TrueMaps(depth, static_depth, moving, cloud)

    def given_pose(self, poses: str) -> np.ndarray:
        """(4, 4) given to the stream for that frame, `exact` or `noisy`. Raises InputError without a true pose."""
        if len(self._poses) < len(self._stamps):
            raise InputError(f"{self._name}: frame {len(self._stamps) - 1} has no true pose that could be given")
        return self._poses[-1] if poses == "exact" else drifting(np.stack(self._poses), self._seed)[-1]

    def add_result(self, setup: Setup, result: StepResult, ray_depth: Tensor | None, scored: bool) -> None:
        """Add the result of a stream with this setup for that frame; `ray_depth` (H, W) if the ray branch ran."""
        prediction, index = self._predictions[setup], len(self._stamps) - 1
        if not result.healthy:
            # The node publishes no pose for such a frame, so the last one remains valid.
            prediction.unhealthy += 1
            prediction.poses.append(prediction.poses[-1] if prediction.poses else np.eye(4))
            return
        prediction.poses.append(result.pose.double().cpu().numpy())
        if not scored:
            return
        truth = self._truth[index]
        maps = result.numpy("depth", "points", "dynamic_map", "dynamic_mask", "image")
        depth, mask = maps["depth"], maps["dynamic_mask"]
        if truth.depth is not None:
            prediction.depths[index] = depth
        if truth.cloud is not None and result.motion:
            prediction.clouds[index] = self._cloud(maps["points"], ~mask, prediction.poses[-1])
        if self._surface_distance is not None and result.motion:
            still = maps["points"][~mask]
            prediction.map_points[index] = still[:: max(1, len(still) // MAP_POINTS)]
        if ray_depth is None:
            return
        rays = ray_depth.cpu().numpy()
        if truth.static_depth is not None:
            prediction.ray_depths[index] = rays
        if truth.moving is not None:
            discrepancy = np.abs(depth - rays) / np.maximum(np.abs(depth), 1e-6)
            prediction.motion.append(motion_metrics(maps["dynamic_map"], mask, truth.moving, discrepancy))
        if index in self._sampled and setup == self._sampled_setup:
            self._samples.append(_sampled_frame(index, maps, rays, truth))

    def add_costs(self, costs: dict[Setup, dict[str, float]]) -> None:
        """Add what the stream with each setup has cost, see `Cost.values`."""
        self._costs = costs

    def finish(self, suite: str, world: str) -> SequenceRun:
        """All figures of the sequence."""
        truth = np.stack(self._poses) if self._poses else np.empty((0, 4, 4))
        stamps = np.array(self._stamps)[self._posed]
        poses: dict[str, np.ndarray] = {}
        values: dict[str, dict[str, float]] = {}
        for variant, setup in self._setups.items():
            prediction = self._predictions[setup]
            poses[variant] = np.stack(prediction.poses)[self._posed]
            values[variant] = {
                **_trajectory_values(poses[variant], truth, stamps),
                **self._map_values(prediction, poses[variant], truth),
                **self._depth_values(prediction),
                **motion_values(prediction.motion),
                **self._reconstruction_values(prediction),
                "unhealthy_frames": float(prediction.unhealthy),
                **self._costs.get(setup, {}),
            }
        self._check_unit(next(iter(values.values())))
        if len(truth) > 1:
            walk = random_walk(truth, seed=self._seed)
            values[RANDOM_WALK] = _trajectory_values(walk, truth, stamps)
            values[CONSTANT_POSE] = _trajectory_values(np.repeat(truth[:1], len(truth), axis=0), truth, stamps)
            if any(poses == "noisy" for _, poses, _ in self._setups.values()):
                values[NOISY_POSES] = _trajectory_values(drifting(truth, self._seed), truth, stamps)
        return SequenceRun(suite, world, self._name, len(self._stamps), truth, poses, values, self._samples)

    def _check_unit(self, values: dict[str, float]) -> None:
        """Warn if true depth is about a fifth of the prediction, and the true path is not."""
        low, high = FIFTH
        scale, of_path = values.get("depth_scale", 1.0), values.get("trajectory_scale", 1.0)
        if self._unit_hint and low < scale < high and not low < of_path < high:
            log.warning("%s: true depth is %.2f of the prediction: %s", self._name, scale, self._unit_hint)

    def _cloud(self, points: np.ndarray, keep: np.ndarray, pose: np.ndarray) -> _Cloud:
        """The points (H, W, 3) of a camera at `pose` in the world, NaN where `keep` (H, W) is false."""
        rotation = pose[:3, :3]
        normals = estimate_normals(points) @ rotation.T
        points = np.where(keep[..., None], points @ rotation.T + pose[:3, 3], np.nan)
        edge = self._plan.cloud_crop
        top, left = (max(0, (side - edge) // 2) if edge else 0 for side in keep.shape)
        crop = slice(top, keep.shape[0] - top), slice(left, keep.shape[1] - left)
        return _Cloud(points[crop], normals[crop])

    def _map_values(self, prediction: _Prediction, poses: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        """Thickness of the map: the median distance of its points from the true surfaces, and how it grows.

        The map is placed by the SE(3) alignment of the path: `poses` (T, 4, 4) to `truth`. Empty without points.
        """
        if not prediction.map_points or len(truth) < 2:
            return {}
        _, rotation, translation = umeyama(poses[:, :3, 3], truth[:, :3, 3], scaled=False)
        distances, frames = [], []
        for index, points in prediction.map_points.items():
            pose = prediction.poses[index]
            world = (points @ pose[:3, :3].T + pose[:3, 3]) @ rotation.T + translation
            distances.append(self._surface_distance(world))
            frames.append(np.full(len(points), index))
        distance, frame = np.concatenate(distances), np.concatenate(frames)
        if not len(distance):
            return {}
        return {
            "map_thickness": float(np.median(distance)),
            "map_thickness_growth": growth(distance, frame, len(self._stamps), np.median),
        }

    def _depth_values(self, prediction: _Prediction) -> dict[str, float]:
        """Depth scores over all pixels and over static ones, and of the ray branch against the static scene."""
        values: dict[str, float] = {}
        whole = [(depth, self._truth[index]) for index, depth in prediction.depths.items()]
        rays = [(depth, self._truth[index].static_depth) for index, depth in prediction.ray_depths.items()]
        static = [(depth, np.where(true.moving, 0, true.depth)) for depth, true in whole if true.moving is not None]
        for suffix, pairs in (
            ("", [(depth, true.depth) for depth, true in whole]),
            ("_static", static),
            ("_ray", rays),
        ):
            if not pairs:
                continue
            predicted, truth = zip(*pairs, strict=True)
            score = depth_metrics(predicted, truth, cap=self._plan.depth_cap)
            metric = depth_metrics(predicted, truth, align="metric", cap=self._plan.depth_cap)
            values |= {
                f"abs_rel{suffix}": score.abs_rel,
                f"delta1{suffix}": score.delta1,
                f"abs_rel_metric{suffix}": metric.abs_rel,
                f"delta1_metric{suffix}": metric.delta1,
                f"depth_scale{suffix}": score.scale,
                f"depth_pixels{suffix}": float(score.pixels),
            }
        return values

    def _reconstruction_values(self, prediction: _Prediction) -> dict[str, float]:
        """Scores of the cloud of static pixels; empty without a cloud."""
        if not prediction.clouds:
            return {}
        pairs = [(cloud, self._truth[index].cloud) for index, cloud in prediction.clouds.items()]
        predicted, truth = (_Cloud.concatenate(side) for side in zip(*pairs, strict=True))
        both = np.isfinite(predicted.points).all(1) & np.isfinite(truth.points).all(1)
        if np.count_nonzero(both) < 3:
            return {}
        scale, rotation, translation = umeyama(predicted.points[both], truth.points[both])
        score = reconstruction_metrics(
            scale * predicted.points @ rotation.T + translation,
            truth.points,
            predicted_normals=predicted.normals @ rotation.T,
            truth_normals=truth.normals,
        )
        return dataclasses.asdict(score)


def _trajectory_values(predicted: np.ndarray, truth: np.ndarray, stamps: np.ndarray) -> dict[str, float]:
    if len(truth) < 2:
        return {}
    score = trajectory_metrics(predicted, truth, stamps)
    return {
        "ate": score.ate,
        "ate_se3": score.ate_se3,
        "ate_relative": score.relative,
        "ate_constant": score.ate_constant,
        "rpe_translation": score.rpe_translation,
        "rpe_rotation": score.rpe_rotation,
        "trajectory_scale": score.scale,
        "end_drift": score.end_drift,
        "ate_growth": score.growth,
    }


def motion_values(scores: list[MotionScore]) -> dict[str, float]:
    """Metric -> value of a sequence with these frames; empty without frames.

    IoU covers only frames with moving pixels; flagged pixels in the others count as false alarms.
    """
    if not scores:
        return {}
    mean = sequence_motion(scores)
    some, many = ([score.iou for score in scores if score.share > share] for share in (0, MANY_MOVING))
    return {
        "mask_iou": float(np.mean(some)) if some else np.nan,
        "mask_iou_5": float(np.mean(many)) if many else np.nan,
        "false_alarm": mean.false_alarm,
        "motion_auc": mean.auc,
        "motion_ratio": mean.ratio,
        "moving_share": mean.share,
    }


def _sampled_frame(index: int, maps: dict[str, np.ndarray], rays: np.ndarray, truth: _TrueMaps) -> SampledFrame:
    height, width = rays.shape
    factor = min(1, SAMPLE_EDGE / max(height, width))
    size = round(height * factor), round(width * factor)
    depth, mask, image = (_nearest(maps[name], size) for name in ("depth", "dynamic_mask", "image"))
    true_depth, true_static, moving = (
        None if array is None else _nearest(array, size) for array in (truth.depth, truth.static_depth, truth.moving)
    )
    return SampledFrame(index, image, depth, _nearest(rays, size), mask, true_depth, true_static, moving)


def _spaced_frames(first: int, length: int, count: int, step: int) -> set[int]:
    """About `count` multiples of `step`, evenly spaced over the frames from `first` to `length`."""
    last = max(first, length - 1)
    return set((np.linspace(first, last, count) // step * step).astype(int).tolist())


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, ...) -> (H, W, ...) by the nearest pixel; the type is kept."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def _unproject(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points (H, W, 3) in the camera frame; NaN where depth (H, W) is 0 (unknown)."""
    known = torch.from_numpy(np.where(depth > 0, depth, np.nan).astype(np.float64))
    return back_project(known[None], torch.from_numpy(np.asarray(intrinsics, np.float64))[None])[0].numpy()
