"""Baselines for the dynamic map: figures from backgrounds that do not depend on the place, and from colour.

They are computed on the frames that the sequences keep as `SampledFrame`s; NETWORK is the first variant on the same
frames with the same code, for comparison.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from raymap3r_ros.evaluation.metrics import MotionScore, motion_metrics
from raymap3r_ros.evaluation.scorer import SampledFrame, SequenceRun, motion_values
from raymap3r_ros.streaming import MaskOptions
from raymap3r_ros.streaming.mask import dynamic_mask

NETWORK = "network, same frames"
OTHER_RAYS = "another sequence's rays"
CONSTANT = "best constant background"
TRUE_BACKGROUND = "true background"
_FEATURES = {"saturation alone": 1, "brightness alone": 2}  # channel of an HSV image
_LEVELS = 32  # thresholds tried for each, at even shares of the pixels

Backgrounds = list[np.ndarray | None]  # one per sampled frame of a sequence


def map_controls(runs: list[SequenceRun], options: MaskOptions) -> list[dict[str, dict[str, float]]]:
    """For each sequence: baseline -> metric -> value, as far as the ground truth allows.

    - the network's own depth and rays;
    - its depth against the rays of the sequence before it in the list (of the last one, for the first);
    - its depth against a single static depth map for all sequences, the median over all their frames;
    - its depth against the true static depth;
    - saturation or brightness above or below the best threshold for all sequences.

    True depths are scaled to the network by the median ratio over the static pixels of each frame. Masks of
    backgrounds use the absolute decision, regardless of the kind in `options`.
    """
    controls: list[dict[str, dict[str, float]]] = [{} for _ in runs]
    best = _median_background(runs)
    for place, run in enumerate(runs):
        backgrounds: dict[str, Backgrounds] = {
            NETWORK: [sample.ray_depth for sample in run.samples],
            OTHER_RAYS: _other_rays(run, runs[place - 1]),
            CONSTANT: [_scaled(best, sample) for sample in run.samples],
            TRUE_BACKGROUND: [_scaled(sample.true_static, sample) for sample in run.samples],
        }
        for name, maps in backgrounds.items():
            controls[place][name] = motion_values(_against_background(run.samples, maps, options))
    for name, channel in _FEATURES.items():
        for control, scores in zip(controls, _best_threshold(runs, channel), strict=True):
            control[name] = motion_values(scores)
    return [{name: values for name, values in control.items() if values} for control in controls]


def _against_background(
    samples: list[SampledFrame], backgrounds: Backgrounds, options: MaskOptions
) -> list[MotionScore]:
    """Scores of masks from the difference between the network's depth and a background, decided as in the stream."""
    scores = []
    for sample, background in zip(samples, backgrounds, strict=True):
        if sample.moving is None or background is None:
            continue
        known = background > 0
        discrepancy = np.where(known, np.abs(sample.depth - background) / np.maximum(np.abs(sample.depth), 1e-6), 0)
        # Copies: arrays that come from another process are read-only, of which torch warns.
        depth, static, trusted = (torch.tensor(array)[None] for array in (sample.depth, background, known))
        mask = dynamic_mask(depth, static, trusted, options)[0].numpy()
        scores.append(motion_metrics(discrepancy, mask, sample.moving))
    return scores


def _other_rays(run: SequenceRun, other: SequenceRun) -> Backgrounds:
    """The ray depths of `other` in the order of `run`'s samples."""
    rays = [sample.ray_depth for sample in other.samples]
    if other is run or not rays or not run.samples or rays[0].shape != run.samples[0].depth.shape:
        return [None] * len(run.samples)
    return [rays[index % len(rays)] for index in range(len(run.samples))]


def _median_background(runs: list[SequenceRun]) -> np.ndarray | None:
    """Median (h, w) of all true static depths, 0 where always unknown; None if maps are missing or differ in size."""
    maps = [sample.true_static for run in runs for sample in run.samples]
    if not maps or any(depth is None or depth.shape != maps[0].shape for depth in maps):
        return None
    stack = np.stack(maps)
    known = stack > 0
    # Pixels without any value are 0 in every map, because a median of nothing is a warning.
    stack = np.where(known | ~known.any(axis=0), stack, np.nan)
    return np.maximum(np.nanmedian(stack, axis=0), 0).astype(np.float32)


def _scaled(true_depth: np.ndarray | None, sample: SampledFrame) -> np.ndarray | None:
    if true_depth is None or sample.moving is None:
        return None
    still = ~sample.moving & (true_depth > 0) & (sample.depth > 0)
    return true_depth * np.float32(np.median(sample.depth[still] / true_depth[still]) if still.any() else 1)


def _best_threshold(runs: list[SequenceRun], channel: int) -> list[list[MotionScore]]:
    """For each sequence, the scores of its frames by the one threshold with the highest mean IoU over all frames.

    Empty if nothing moves: no threshold is best then.
    """
    samples = [
        (place, sample) for place, run in enumerate(runs) for sample in run.samples if sample.moving is not None
    ]
    scores: list[list[MotionScore]] = [[] for _ in runs]
    if not any(sample.moving.any() for _, sample in samples):
        return scores
    values = [cv2.cvtColor(sample.image, cv2.COLOR_RGB2HSV)[..., channel].astype(np.float32) for _, sample in samples]
    levels = np.unique(np.quantile(np.concatenate([value.ravel() for value in values]), np.linspace(0, 1, _LEVELS)))

    def mean_iou(rule: tuple[int, float]) -> float:
        sign, level = rule
        return np.nanmean([_iou(sign * v > level, s.moving) for v, (_, s) in zip(values, samples, strict=True)])

    sign, level = max([(sign, sign * level) for sign in (1, -1) for level in levels], key=mean_iou)
    for value, (place, sample) in zip(values, samples, strict=True):
        scores[place].append(motion_metrics(sign * value, sign * value > level, sample.moving))
    return scores


def _iou(mask: np.ndarray, moving: np.ndarray) -> float:
    union = np.count_nonzero(mask | moving)
    return np.count_nonzero(mask & moving) / union if union else np.nan
