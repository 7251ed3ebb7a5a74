"""Scores of depth, motion and reconstruction.

Everything is numpy. Unknown ground truth is 0 (depth) or not finite (points) and is ignored. Predictions must be
finite; InputError reports the first that is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.statistics import optional_module
from raymap3r_ros.geometry.similarity import fit_similarity

DEPTH_ALIGNMENTS = ("sequence", "metric")
DELTA = 1.25  # the usual limit of the ratio of predicted to true depth
WEISZFELD_STEPS = 10
WEISZFELD_FLOOR = 1e-3  # share of the median true depth; without it one exact pixel would outweigh all others
ICP_STEPS = 30
ICP_CHANGE = 1e-6  # relative change of the RMS distance below which ICP has converged

# ----------------------------------------------------------------------------------------------------------- depth


@dataclass(frozen=True)
class DepthScore:
    """Depth of one sequence, over all its pixels. NaN if no true depth is known."""

    abs_rel: float  # mean of |predicted - true| / true
    delta1: float  # share of pixels with max(predicted / true, true / predicted) below 1.25
    scale: float  # factor applied to the prediction
    pixels: int  # with known true depth; the weight in a mean over sequences


def depth_metrics(
    predicted: Iterable[np.ndarray],
    truth: Iterable[np.ndarray],
    *,
    align: str = "sequence",
    cap: float | None = None,
) -> DepthScore:
    """Score the depth maps (h, w) of a sequence against the true ones (H, W), metres.

    A prediction of another size is resized to the true map (bicubic). Pixels with true depth in (0, `cap`) count.
    `align`: "sequence" fits one factor for the whole sequence (see `fit_scale`), "metric" uses the depth unchanged.

    Raises InputError for different numbers of maps and for predictions that are not finite, OptionError for an unknown
    `align`.
    """
    if align not in DEPTH_ALIGNMENTS:
        raise OptionError(f"align is {align!r}; allowed values: {', '.join(DEPTH_ALIGNMENTS)}")
    predicted, truth = list(predicted), list(truth)
    if len(predicted) != len(truth):
        raise InputError(
            f"{len(predicted)} predicted depth maps, {len(truth)} true ones; expected one of each for every frame"
        )
    frames = [_known_pixels(*maps, cap, index) for index, maps in enumerate(zip(predicted, truth, strict=True))]
    pixels = sum(len(true) for _, true in frames)
    if pixels == 0:
        return DepthScore(np.nan, np.nan, np.nan, 0)
    scale = fit_scale(frames) if align == "sequence" else 1.0
    error = close = 0.0
    for depth, true in frames:
        depth = scale * depth.astype(np.float64)
        error += float((np.abs(depth - true) / true).sum())
        close += int(np.count_nonzero((depth < DELTA * true) & (true < DELTA * depth)))
    return DepthScore(error / pixels, close / pixels, scale, pixels)


def fit_scale(frames: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The factor s that minimises sum |s predicted - true| over frames of (predicted (n,), true (n,)).

    Starts at the ratio of the medians and performs ten Weiszfeld steps. Returns 0 if the median prediction is not
    positive, because no positive factor reduces the error then.
    """
    middle = float(np.median(np.concatenate([depth for depth, _ in frames])))
    true_middle = float(np.median(np.concatenate([true for _, true in frames])))
    if not middle > 0:
        return 0.0
    scale = true_middle / middle
    for _ in range(WEISZFELD_STEPS):
        along = square = 0.0
        for depth, true in frames:
            depth = depth.astype(np.float64)
            weighted = depth / np.maximum(np.abs(scale * depth - true), WEISZFELD_FLOOR * true_middle)
            along += float(weighted @ true)
            square += float(weighted @ depth)
        scale = along / square
    return scale


def _known_pixels(
    predicted: np.ndarray, truth: np.ndarray, cap: float | None, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true depth (n,) of the pixels with known true depth."""
    predicted = resized(_finite(predicted, f"predicted depth of frame {index}"), truth.shape, cv2.INTER_CUBIC)
    known = np.isfinite(truth) & (truth > 0)
    if cap is not None:
        known &= truth < cap
    return predicted[known], truth[known]


def resized(values: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """(h, w) -> (H, W) = `size` as float32, unchanged if it has that size; the corners of the images coincide."""
    values = np.asarray(values, np.float32)
    return values if values.shape == size else cv2.resize(values, size[::-1], interpolation=interpolation)


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values if they are two-dimensional and finite. Raises InputError otherwise."""
    values = np.asarray(values)
    if values.ndim != 2:
        raise InputError(f"{what}: its shape is {values.shape}; expected (height, width)")
    broken = np.count_nonzero(~np.isfinite(values))
    if broken:
        raise InputError(f"{what}: {broken} of {values.size} values are not finite")
    return values


# ---------------------------------------------------------------------------------------------------------- motion


@dataclass(frozen=True)
class MotionScore:
    """Scores of a dynamic map and a mask, for one frame or as the mean over a sequence.

    NaN if a figure is undefined, because the ground truth has no moving or no static pixel.
    """

    ratio: float  # mean discrepancy on moving pixels / on static ones; NaN also if the latter is 0
    auc: float  # area under the ROC curve of the dynamic map; 0.5 is chance
    iou: float  # of the mask; NaN only if nothing moves and nothing is flagged
    false_alarm: float  # share of static pixels flagged
    share: float  # of moving pixels


def motion_metrics(
    dynamic_map: np.ndarray, mask: np.ndarray, moving: np.ndarray, discrepancy: np.ndarray | None = None
) -> MotionScore:
    """Score one frame's dynamic map (h, w) and mask (h, w) bool against the true `moving` (H, W) bool.

    `ratio` is computed from `discrepancy` (h, w), by default the dynamic map. Maps of another size are resized to
    the size of `moving`: bilinear, the mask to the nearest pixel. Raises InputError if a map is not finite.
    """
    moving = np.asarray(moving, bool)
    dynamic = resized(_finite(dynamic_map, "dynamic map"), moving.shape, cv2.INTER_LINEAR)
    mask = resized(_finite(mask, "mask"), moving.shape, cv2.INTER_NEAREST_EXACT) > 0.5
    if discrepancy is None:
        discrepancy = dynamic
    else:
        discrepancy = resized(_finite(discrepancy, "discrepancy"), moving.shape, cv2.INTER_LINEAR)

    movers, both, union = (int(np.count_nonzero(area)) for area in (moving, mask & moving, mask | moving))
    still = moving.size - movers
    ratio = auc = np.nan
    if movers and still:
        background = float(discrepancy[~moving].mean(dtype=np.float64))
        ratio = float(discrepancy[moving].mean(dtype=np.float64)) / background if background else np.nan
        # The area under the curve is the Mann-Whitney statistic: how often a moving pixel ranks above a static one.
        ranks = optional_module("scipy.stats").rankdata(dynamic, axis=None).reshape(moving.shape)
        auc = float((ranks[moving].sum() - movers * (movers + 1) / 2) / (movers * still))
    return MotionScore(
        ratio=ratio,
        auc=auc,
        iou=both / union if union else np.nan,
        false_alarm=(union - movers) / still if still else np.nan,
        share=movers / moving.size,
    )


def sequence_motion(scores: list[MotionScore]) -> MotionScore:
    """The mean of every figure over the frames where it is defined. Raises InputError without frames."""
    if not scores:
        raise InputError("no frame with a true moving mask; there is nothing to average")
    columns = np.array([dataclasses.astuple(score) for score in scores]).T
    return MotionScore(
        *(float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else np.nan for values in columns)
    )


# -------------------------------------------------------------------------------------------------- reconstruction


@dataclass(frozen=True)
class ReconstructionScore:
    """Comparison of two point clouds. Metres."""

    accuracy: float  # mean distance of predicted points to the nearest true one
    completeness: float  # mean distance of true points to the nearest predicted one
    normal_consistency: (
        float  # mean |cosine| of the normals of nearest points, mean of both directions; NaN without normals
    )
    chamfer: float  # (accuracy + completeness) / 2


def reconstruction_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    predicted_normals: np.ndarray | None = None,
    truth_normals: np.ndarray | None = None,
    icp_distance: float = 0.1,
    voxel: float = 0.01,
) -> ReconstructionScore:
    """Score points (N, 3) against true ones (M, 3), metres; points that are not finite are ignored.

    Both clouds are reduced to the first point in each cube of edge `voxel` (0: no reduction), then the prediction is
    aligned by point-to-point ICP over pairs closer than `icp_distance` (0: no ICP). It must already be in the frame
    and scale of the true points, see `align_clouds`. Normals (N, 3) and (M, 3) have length 1; their sign does not
    matter, and those that are not finite are ignored, see `estimate_normals`.

    Raises InputError if a cloud has no finite point, or if the shapes of points and normals differ.
    """
    trees = optional_module("scipy.spatial").cKDTree
    points, normals = _thinned(predicted, predicted_normals, voxel, "predicted")
    true_points, true_normals = _thinned(truth, truth_normals, voxel, "true")
    tree = trees(true_points)
    if icp_distance > 0:
        rotation, translation = _icp(points, true_points, tree, icp_distance)
        points, normals = points @ rotation.T + translation, normals @ rotation.T
    distance, nearest = tree.query(points)
    back_distance, back_nearest = trees(points).query(true_points)
    accuracy, completeness = float(distance.mean()), float(back_distance.mean())
    one_way = _mean_cosine(normals, true_normals[nearest])
    other_way = _mean_cosine(true_normals, normals[back_nearest])
    return ReconstructionScore(accuracy, completeness, (one_way + other_way) / 2, (accuracy + completeness) / 2)


def align_clouds(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`predicted` (..., 3) aligned to the corresponding points `truth` (..., 3) by a similarity transform.

    It is fitted to the points that are finite in both and applied to all. Raises InputError if the shapes differ or
    fewer than three points remain.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or predicted.shape[-1] != 3:
        raise InputError(f"points of shape {predicted.shape} against {truth.shape}; expected the same, ending in 3")
    both = np.isfinite(predicted).all(-1) & np.isfinite(truth).all(-1)
    if np.count_nonzero(both) < 3:
        raise InputError(f"{np.count_nonzero(both)} points are finite in both clouds; an alignment needs three")
    scale, rotation, translation = umeyama(predicted[both], truth[both])
    return scale * predicted @ rotation.T + translation


def estimate_normals(points: np.ndarray) -> np.ndarray:
    """Unit normals (H, W, 3) of a point map (H, W, 3), towards the camera, from differences of neighbouring pixels.

    NaN where a neighbour is not finite or the differences are parallel. At the edge of an object the normal
    belongs to the gap between object and background. Raises InputError for maps with fewer than two rows or columns.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 3 or points.shape[2] != 3 or min(points.shape[:2]) < 2:
        raise InputError(f"a point map of shape {points.shape}; expected (H, W, 3) with two rows and columns at least")
    with np.errstate(invalid="ignore", divide="ignore"):
        down, right = np.gradient(points, axis=(0, 1))
        normals = np.cross(down, right)  # with x right, y down and z forward: -z for a wall in front of the camera
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def umeyama(source: np.ndarray, target: np.ndarray, *, scaled: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Return scale, rotation (3, 3) and translation (3,) from source (N, 3) to target with the least squared error.

    See `fit_similarity`. For points on a line or in one place the rotation is ambiguous; one of the best is returned.
    The scale is 1 without `scaled`, and if all of `source` is in one place.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    # Centred here: equal points then become exactly 0, and their scale NaN.
    a, b = (
        torch.from_numpy(np.asarray(cloud, np.float64))[None] for cloud in (source - source_mean, target - target_mean)
    )
    fit = fit_similarity(a, b, torch.ones_like(a[..., 0]))
    scale, rotation = fit.scale.item() if scaled else 1.0, fit.rotation[0].numpy()
    if not np.isfinite(scale):
        scale = 1.0
    return scale, rotation, target_mean - scale * rotation @ source_mean


def _thinned(points: np.ndarray, normals: np.ndarray | None, voxel: float, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Finite points (n, 3), one per cube, and their normals, NaN if there are none."""
    points = np.asarray(points, np.float64)
    normals = np.full(points.shape, np.nan) if normals is None else np.asarray(normals, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or normals.shape != points.shape:
        raise InputError(f"{what} points of shape {points.shape}, normals {normals.shape}; expected (N, 3), both")
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        raise InputError(f"not one of the {len(points)} {what} points is finite")
    points, normals = points[finite], normals[finite]
    if voxel > 0:
        # The first point instead of the mean, which would reduce the noise that is measured.
        _, first = np.unique(np.floor(points / voxel), axis=0, return_index=True)
        points, normals = points[first], normals[first]
    return points, normals


def _icp(points: np.ndarray, target: np.ndarray, tree: object, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of `points` onto `target`, whose cKDTree is `tree` (Besl and McKay 1992)."""
    rotation, translation = np.eye(3), np.zeros(3)
    last = np.inf
    for _ in range(ICP_STEPS):
        distance, nearest = tree.query(points @ rotation.T + translation, distance_upper_bound=limit)
        paired = np.isfinite(distance)
        if np.count_nonzero(paired) < 3:
            break
        _, rotation, translation = umeyama(points[paired], target[nearest[paired]], scaled=False)
        error = float(np.sqrt(np.square(distance[paired]).mean()))
        if abs(last - error) <= ICP_CHANGE * error:
            break
        last = error
    return rotation, translation


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    cosine = np.abs((first * second).sum(axis=1))
    cosine = cosine[np.isfinite(cosine)]
    return float(cosine.mean()) if len(cosine) else np.nan
