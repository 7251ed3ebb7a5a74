"""Every variant of the method over the same frames, and what comes out against the truth.

A sequence is rendered or read once: all variants step through it side by side, one frame at a time, and image tokens,
which do not depend on the variant, are made once for all of them.
"""

from __future__ import annotations

import dataclasses
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.metrics import (
    MotionScore,
    depth_metrics,
    estimate_normals,
    motion_metrics,
    reconstruction_metrics,
    sequence_motion,
    umeyama,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence
from raymap3r_ros.evaluation.trajectory import random_walk, trajectory_metrics
from raymap3r_ros.geometry.cameras import back_project
from raymap3r_ros.network import Network
from raymap3r_ros.options import build_options
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.preprocessing import Framing, frame_image, frame_intrinsics, visible_crop
from raymap3r_ros.streaming.stream_options import METHOD, UPDATE_RULES

MANY_MOVING = 0.05  # share of moving pixels over which a frame counts for `mask_iou_5`
SAMPLES = 12  # frames of a sequence kept for controls and pictures
SAMPLE_EDGE = 128  # their longest edge, pixels, at most
CLOUD_FRAMES = 20  # frames of a sequence that make a reconstruction, at most
CONSTANT_POSE, RANDOM_WALK = "constant pose", "random walk"  # the trajectory controls


@dataclass(frozen=True)
class Variant:
    """One way to run the stream: a line of the tables."""

    name: str
    kind: str  # "rule" or "ablation"
    options: StreamOptions
    baseline: str  # name of the variant that it is compared with


@dataclass(frozen=True)
class Plan:
    """How sequences are run, whatever the variant."""

    frames: int = 0  # of a sequence, at most; 0 = all
    batch: int = 8  # sequences of one length and image size that run as one batch, at most
    workers: int = 1  # batches that run at the same time, in threads
    known_intrinsics: bool = True  # the stream is told the intrinsics where the truth has them
    judged_frames: int = 200  # frames of a sequence, spread evenly, whose maps are judged, at most
    depth_cap: float | None = None  # metres; truth beyond does not count
    reconstruction: bool = False  # also compare the cloud of what stands still
    cloud_crop: int = 0  # edge of the central square of the image that the clouds are made of, pixels; 0 = all of it

    def __post_init__(self) -> None:
        for name, least in (("frames", 0), ("batch", 1), ("workers", 1), ("judged_frames", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed: {least} and more")


@dataclass(frozen=True)
class Sample:
    """One frame as truth and the first variant see it, in the network's framing, small. Depths in metres."""

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
    """What all variants made of one sequence."""

    suite: str
    world: str  # "" for recorded data
    name: str
    frames: int
    truth: np.ndarray  # (T, 4, 4) c2w of the frames that have a true pose; T may be 0
    poses: dict[str, np.ndarray]  # variant -> (T, 4, 4) c2w of the same frames, in the stream's own world
    values: dict[str, dict[str, float]]  # variant or control -> metric -> value; NaN where it is not defined
    samples: list[Sample]


def rule_variants(options: StreamOptions, rules: Sequence[str] = UPDATE_RULES) -> list[Variant]:
    """One variant per update rule, all else as in `options`. Raises OptionError where a rule is unknown."""
    return [Variant(rule, "rule", dataclasses.replace(options, update_rule=rule), "cut3r") for rule in rules]


# What each ablation changes in the options of the run. The parts of the method are added one by one, as in the
# published ablation (columns 3 and 4 each on top of the dual branch); then single parts are exchanged.
BASE = "base"
_FULL = {"update_rule": "raymap3r", "smoothing": "tied", "reset_alignment": "robust", "router": "off"}
ABLATIONS: dict[str, dict[str, Any]] = {
    BASE: {**_FULL, "update_rule": "cut3r", "smoothing": "off", "reset_alignment": "off"},
    "dual branch": {**_FULL, "smoothing": "off", "reset_alignment": "off"},
    "dual, alignment": {**_FULL, "smoothing": "off"},
    "dual, smoothing": {**_FULL, "reset_alignment": "off"},
    "all": _FULL,
    "all, published alignment": {**_FULL, "reset_alignment": "published"},
    "all, published smoothing": {**_FULL, "smoothing": "published"},
    "all, adaptive router": {**_FULL, "router": "adaptive"},
    "all, published router": {**_FULL, "router": "published"},
    "all, raster pooling": {**_FULL, "token_pooling": "raster"},
    "all, published mask": {**_FULL, "mask.kind": "published"},
    "all, no resets": {**_FULL, "reset_interval": 0},
}


def ablation_variants(options: StreamOptions) -> list[Variant]:
    """The variants of ABLATIONS; what one does not name is as in `options`."""

    def changed(changes: dict[str, Any]) -> StreamOptions:
        return build_options(StreamOptions, lambda name, _: changes.get(name, attrgetter(name)(options)))

    return [Variant(name, "ablation", changed(changes), BASE) for name, changes in ABLATIONS.items()]


def run_sequences(
    network: Network,
    sequences: Sequence[PosedSequence],
    variants: Sequence[Variant],
    plan: Plan,
    *,
    suite: str,
    world: str = "",
    on_frame: Callable[[int], None] = lambda count: None,
) -> Iterator[SequenceRun]:
    """Run all variants over all sequences; gives the sequences in order.

    `on_frame` is told how many frames were done since it was last called, from any thread. Raises InputError where
    there is no sequence or no variant, or where frames cannot be used.
    """
    if not sequences or not variants:
        raise InputError(f"{suite}: nothing to run: {len(sequences)} sequences, {len(variants)} variants")
    stop = threading.Event()

    def advance(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        on_frame(count)

    def run_batch(batch: list[PosedSequence]) -> list[SequenceRun]:
        judges = _run_batch(network, batch, variants, plan, advance)
        return [judge.finish(sequence.name, suite, world) for sequence, judge in zip(batch, judges, strict=True)]

    with ThreadPoolExecutor(plan.workers) as pool:
        try:
            for done in pool.map(run_batch, list(_batches(sequences, plan))):
                yield from done
        finally:
            stop.set()  # after an error the batches that still run end with their next frame


def sequence_length(sequence: PosedSequence, plan: Plan) -> int:
    """Frames of the sequence that the plan runs."""
    return min(sequence.length, plan.frames) if plan.frames else sequence.length


class _StoppedError(Exception):
    """Another batch failed, or nobody wants the rest."""


class SharedEncoder:
    """A network that encodes a batch of images once, however many streams look at it one after the other.

    The streams must run in one precision, and step by step: whether an image is known is asked of its values.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._image: Tensor | None = None
        self._tokens: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def encode_image(self, image: Tensor) -> Tensor:
        """As `Network.encode_image`."""
        if self._image is None or not torch.equal(self._image, image):
            self._image, self._tokens = image, self._network.encode_image(image)
        return self._tokens


# ------------------------------------------------------------------------------------------------------- one batch


def _batches(sequences: Sequence[PosedSequence], plan: Plan) -> Iterator[list[PosedSequence]]:
    """Neighbours of one length; as large as `plan.batch` allows, but no worker without one."""
    size = min(plan.batch, -(-len(sequences) // plan.workers))
    batch: list[PosedSequence] = []
    for sequence in sequences:
        if batch and (len(batch) == size or sequence_length(sequence, plan) != sequence_length(batch[0], plan)):
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def _run_batch(
    network: Network,
    batch: list[PosedSequence],
    variants: Sequence[Variant],
    plan: Plan,
    on_frame: Callable[[int], None],
) -> list[SequenceScorer]:
    length = sequence_length(batch[0], plan)
    shared = SharedEncoder(network)
    # Variants that cannot differ in so many frames run once.
    streams = {
        options: Stream(shared, dataclasses.replace(options, execution="plain"))
        for options in (_in_effect(variant.options, length) for variant in variants)
    }
    step = -(-length // plan.judged_frames)
    judges = [SequenceScorer(variants, plan, length, step) for _ in batch]
    sources = [islice(sequence.frames(), length) for sequence in batch]
    for index, frames in enumerate(zip(*sources, strict=True)):
        images = _stack([frame.image for frame in frames], batch)
        height, width = images.shape[1:3]
        long_edge = variants[0].options.image_size or network.config.image_size
        framing = frame_image(width, height, long_edge, network.config.patch_size)
        intrinsics = None
        if plan.known_intrinsics and all(frame.intrinsics is not None for frame in frames):
            intrinsics = np.stack([frame.intrinsics for frame in frames])
        judged = index % step == 0
        for judge, frame in zip(judges, frames, strict=True):
            judge.take_truth(frame, framing, judged)
        for options, stream in streams.items():
            # At a reset the stream uses what it knows of motion for the alignment.
            resets = bool(options.reset_interval) and index % options.reset_interval == 0
            record: dict[str, Any] = {}
            result = stream.step(
                images, intrinsics=intrinsics, motion=judged or resets, record=record if judged else None
            )
            motion = record.get("motion")
            ray_depth = None if motion is None else motion.ray_points[..., 2] * result.scale[:, None, None]
            for place, judge in enumerate(judges):
                judge.take(options, result.camera(place), None if ray_depth is None else ray_depth[place], judged)
        on_frame(len(batch))
    return judges


def _in_effect(options: StreamOptions, length: int) -> StreamOptions:
    """The same for all options that differ only in resets that so many frames do not reach."""
    if 0 < options.reset_interval < length:
        return options
    return dataclasses.replace(options, reset_interval=0, reset_alignment=StreamOptions.reset_alignment)


def _stack(images: list[np.ndarray], batch: list[PosedSequence]) -> np.ndarray:
    """(B, h, w, 3). Raises InputError where sizes differ."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        names = ", ".join(f"{sequence.name} {image.shape}" for sequence, image in zip(batch, images, strict=True))
        raise InputError(f"images of one batch differ in size ({names}); run them with a batch of 1")
    return np.stack(images)


# ---------------------------------------------------------------------------------------------------- one sequence


@dataclass(frozen=True)
class _TrueMaps:
    """The truth of one judged frame, in the network's framing at its own resolution."""

    depth: np.ndarray | None
    static_depth: np.ndarray | None
    moving: np.ndarray | None
    cloud: _Cloud | None  # at the network's resolution, without what moves


@dataclass(frozen=True)
class _Cloud:
    """Points of one frame in a world, NaN where there is none, and their normals. Both (H, W, 3)."""

    points: np.ndarray
    normals: np.ndarray

    @classmethod
    def joined(cls, clouds: Sequence[_Cloud]) -> _Cloud:
        """All points of several frames, (N, 3)."""
        points = np.concatenate([cloud.points.reshape(-1, 3) for cloud in clouds])
        return cls(points, np.concatenate([cloud.normals.reshape(-1, 3) for cloud in clouds]))


@dataclass
class _Prediction:
    """What one variant says of a sequence; maps are those of judged frames."""

    poses: list[np.ndarray] = field(default_factory=list)
    depths: dict[int, np.ndarray] = field(default_factory=dict)  # frame -> (H, W)
    ray_depths: dict[int, np.ndarray] = field(default_factory=dict)
    motion: list[MotionScore] = field(default_factory=list)
    clouds: dict[int, _Cloud] = field(default_factory=dict)  # without what the mask says moves
    unhealthy: int = 0  # frames without finite values


class SequenceScorer:
    """Takes in one sequence frame by frame, truth first, and says at the end how good each variant was."""

    def __init__(self, variants: Sequence[Variant], plan: Plan, length: int, step: int) -> None:
        self._options = {variant.name: _in_effect(variant.options, length) for variant in variants}
        self._sampled_options = self._options[variants[0].name]
        self._plan = plan
        self._predictions = {options: _Prediction() for options in self._options.values()}
        self._stamps: list[float] = []
        self._posed: list[int] = []  # frames with a true pose
        self._poses: list[np.ndarray] = []
        self._truth: dict[int, _TrueMaps] = {}
        self._samples: list[Sample] = []
        self._sampled = _spread(METHOD.warmup_frames, length, SAMPLES, step)
        clouded = _spread(METHOD.warmup_frames, length, CLOUD_FRAMES, step)
        self._clouded = clouded if plan.reconstruction else set()

    def take_truth(self, frame: Frame, framing: Framing, judged: bool) -> None:
        """The next frame's truth; its maps are kept where it is to be judged."""
        index = len(self._stamps)
        self._stamps.append(frame.stamp)
        if frame.pose is not None:
            self._posed.append(index)
            self._poses.append(frame.pose)
        if not judged:
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

    def take(self, options: StreamOptions, result: StepResult, ray_depth: Tensor | None, judged: bool) -> None:
        """What a stream with these options says of that frame; `ray_depth` (H, W) where the rays were asked."""
        prediction, index = self._predictions[options], len(self._stamps) - 1
        if not result.healthy:
            # A robot would go on believing the last pose that it got.
            prediction.unhealthy += 1
            prediction.poses.append(prediction.poses[-1] if prediction.poses else np.eye(4))
            return
        prediction.poses.append(result.pose.double().cpu().numpy())
        if not judged:
            return
        truth = self._truth[index]
        maps = result.numpy("depth", "points", "dynamic_map", "dynamic_mask", "image")
        depth, mask = maps["depth"], maps["dynamic_mask"]
        if truth.depth is not None:
            prediction.depths[index] = depth
        if truth.cloud is not None and result.motion:
            prediction.clouds[index] = self._cloud(maps["points"], ~mask, prediction.poses[-1])
        if ray_depth is None:
            return
        rays = ray_depth.cpu().numpy()
        if truth.static_depth is not None:
            prediction.ray_depths[index] = rays
        if truth.moving is not None:
            discrepancy = np.abs(depth - rays) / np.maximum(np.abs(depth), 1e-6)
            prediction.motion.append(motion_metrics(maps["dynamic_map"], mask, truth.moving, discrepancy))
        if index in self._sampled and options == self._sampled_options:
            self._samples.append(_sample(index, maps, rays, truth))

    def finish(self, name: str, suite: str, world: str) -> SequenceRun:
        """All figures of the sequence."""
        truth = np.stack(self._poses) if self._poses else np.empty((0, 4, 4))
        stamps = np.array(self._stamps)[self._posed]
        poses: dict[str, np.ndarray] = {}
        values: dict[str, dict[str, float]] = {}
        for variant, options in self._options.items():
            prediction = self._predictions[options]
            poses[variant] = np.stack(prediction.poses)[self._posed]
            values[variant] = {
                **_trajectory_values(poses[variant], truth, stamps),
                **self._depth_values(prediction),
                **motion_values(prediction.motion),
                **self._reconstruction_values(prediction),
                "unhealthy_frames": float(prediction.unhealthy),
            }
        if len(truth) > 1:
            walk = random_walk(truth, seed=zlib.crc32(name.encode()))
            values[RANDOM_WALK] = _trajectory_values(walk, truth, stamps)
            values[CONSTANT_POSE] = _trajectory_values(np.repeat(truth[:1], len(truth), axis=0), truth, stamps)
        return SequenceRun(suite, world, name, len(self._stamps), truth, poses, values, self._samples)

    def _cloud(self, points: np.ndarray, keep: np.ndarray, pose: np.ndarray) -> _Cloud:
        """The points (H, W, 3) of a camera at `pose` that `keep` (H, W) names, in its world; NaN elsewhere."""
        rotation = pose[:3, :3]
        normals = estimate_normals(points) @ rotation.T
        points = np.where(keep[..., None], points @ rotation.T + pose[:3, 3], np.nan)
        edge = self._plan.cloud_crop
        top, left = (max(0, (side - edge) // 2) if edge else 0 for side in keep.shape)
        crop = slice(top, keep.shape[0] - top), slice(left, keep.shape[1] - left)
        return _Cloud(points[crop], normals[crop])

    def _depth_values(self, prediction: _Prediction) -> dict[str, float]:
        """Depth of all pixels, of static ones, and the rays' depth against the static scene."""
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
        """The cloud of static pixels against the true one; nothing where there is no cloud."""
        if not prediction.clouds:
            return {}
        pairs = [(cloud, self._truth[index].cloud) for index, cloud in prediction.clouds.items()]
        predicted, truth = (_Cloud.joined(side) for side in zip(*pairs, strict=True))
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
    }


def motion_values(scores: list[MotionScore]) -> dict[str, float]:
    """Metric -> value of a sequence with these frames; nothing without any.

    IoU is over frames in which anything moves: what is flagged in the others are false alarms, and counted as such.
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


def _sample(index: int, maps: dict[str, np.ndarray], rays: np.ndarray, truth: _TrueMaps) -> Sample:
    height, width = rays.shape
    factor = min(1, SAMPLE_EDGE / max(height, width))
    size = round(height * factor), round(width * factor)
    depth, mask, image = (_nearest(maps[name], size) for name in ("depth", "dynamic_mask", "image"))
    true_depth, true_static, moving = (
        None if array is None else _nearest(array, size) for array in (truth.depth, truth.static_depth, truth.moving)
    )
    return Sample(index, image, depth, _nearest(rays, size), mask, true_depth, true_static, moving)


def _spread(first: int, length: int, count: int, step: int) -> set[int]:
    """About `count` multiples of `step`, spread evenly over the frames from `first` to `length`."""
    last = max(first, length - 1)
    return set((np.linspace(first, last, count) // step * step).astype(int).tolist())


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, ...) -> (H, W, ...), each the value of the nearest pixel; of the same type."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def _unproject(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return points (H, W, 3) in the camera frame; NaN where depth (H, W) is 0, unknown."""
    known = torch.from_numpy(np.where(depth > 0, depth, np.nan).astype(np.float64))
    return back_project(known[None], torch.from_numpy(np.asarray(intrinsics, np.float64))[None])[0].numpy()
