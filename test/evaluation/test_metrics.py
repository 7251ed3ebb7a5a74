"""Depth, motion and reconstruction metrics against small cases computed by hand, and brute force."""

import math

import numpy as np
import pytest

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.metrics import (
    MotionScore,
    align_clouds,
    depth_metrics,
    estimate_normals,
    motion_metrics,
    reconstruction_metrics,
    sequence_motion,
    umeyama,
)

pytest.importorskip("scipy", reason="scipy (raymap3r_ros[evaluation]) is not installed")

# ----------------------------------------------------------------------------------------------------------- depth


def best_factor(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Minimiser of sum |s p - g|: the median of g / p with weights p."""
    ratio, weight = (truth / predicted).ravel(), predicted.ravel()
    order = np.argsort(ratio)
    return ratio[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]


def test_depth_by_hand():
    truth = np.array([[1.0, 2.0, 4.0, 0.0, np.nan, 80.0]], np.float32)
    predicted = np.array([[1.1, 1.0, 4.0, 9.0, 9.0, 9.0]], np.float32)
    score = depth_metrics([predicted], [truth], align="metric", cap=70.0)
    assert score.abs_rel == pytest.approx((0.1 + 0.5 + 0) / 3, rel=1e-6)
    assert score.delta1 == pytest.approx(2 / 3)
    assert score.scale == 1 and score.pixels == 3
    assert depth_metrics([predicted], [truth], align="metric").pixels == 4


@pytest.mark.parametrize(("factor", "close"), [(1.249, 1), (1.251, 0), (1 / 1.249, 1), (1 / 1.251, 0), (-1, 0)])
def test_delta_counts_both_ways(factor, close):
    assert depth_metrics([np.full((2, 2), factor * 3.0)], [np.full((2, 2), 3.0)], align="metric").delta1 == close


def test_one_factor_for_the_whole_sequence():
    rng = np.random.default_rng(0)
    truth = [rng.uniform(1, 10, (8, 9)) for _ in range(3)]
    score = depth_metrics((depth / 7 for depth in truth), iter(truth))
    assert score.scale == pytest.approx(7, rel=1e-5)
    assert score.abs_rel == pytest.approx(0, abs=1e-5) and score.delta1 == 1
    # A factor per frame would fit exactly; one factor for all frames does not.
    varied = [depth * factor for depth, factor in zip(truth, (0.5, 1, 2), strict=True)]
    assert depth_metrics(varied, truth).abs_rel > 0.3


def test_factor_is_robust():
    rng = np.random.default_rng(1)
    truth = rng.uniform(1, 5, (40, 50))
    predicted = truth / 3 * np.exp(rng.normal(0, 0.1, truth.shape))
    assert depth_metrics([predicted], [truth]).scale == pytest.approx(best_factor(predicted, truth), rel=2e-3)
    truth[:10] = 30  # a fifth of the true values are outliers
    least_squares = (predicted * truth).sum() / np.square(predicted).sum()
    assert depth_metrics([predicted], [truth]).scale == pytest.approx(best_factor(predicted, truth), rel=2e-2)
    assert best_factor(predicted, truth) < 3.2 < 6 < least_squares


def test_factor_leaves_the_starting_value():
    truth = np.linspace(1, 9, 101)[None] ** 2
    predicted = truth + 10  # the median pixel fits the starting value exactly
    start, best = np.median(truth) / np.median(predicted), best_factor(predicted, truth)
    assert abs(depth_metrics([predicted], [truth]).scale - best) < 0.2 * abs(
        start - best
    )  # after ten steps of a slow descent


def test_negative_depth_has_the_factor_zero():
    score = depth_metrics([np.full((2, 2), -1.0)], [np.ones((2, 2))])
    assert (score.scale, score.abs_rel, score.delta1) == (0, 1, 0)


def test_prediction_is_resized_to_the_truth():
    ramp = np.tile(np.linspace(1, 3, 16, dtype=np.float32), (12, 1))
    columns = (np.arange(32) + 0.5) / 2 - 0.5  # positions of the large image's pixels in the small one
    truth = np.tile(1 + columns * 2 / 15, (24, 1))[:, 4:-4]
    padded = np.zeros((24, 32))
    padded[:, 4:-4] = truth  # bicubic needs two neighbours on each side
    score = depth_metrics([ramp], [padded], align="metric")
    assert score.pixels == truth.size
    assert score.abs_rel < 5e-3  # the nearest pixel, or half a pixel's shift, would be wrong by 1.6 %


def test_unusable_depth():
    known, unknown = np.ones((2, 2)), np.zeros((2, 2))
    nothing = depth_metrics([known], [unknown])
    assert nothing.pixels == 0 and np.isnan(nothing.abs_rel) and np.isnan(nothing.scale)
    with pytest.raises(InputError, match=r"frame 1: 1 of 4 values are not finite"):
        depth_metrics([known, np.array([[1, 2], [np.inf, 1]])], [known, known])
    with pytest.raises(InputError, match="1 predicted depth maps, 2 true"):
        depth_metrics([known], [known, known])
    with pytest.raises(OptionError, match="sequence, metric"):
        depth_metrics([known], [known], align="frame")


# ---------------------------------------------------------------------------------------------------------- motion


def test_motion_by_hand():
    moving = np.array([[True, True, False, False], [True, False, False, False]])
    mask = np.array([[True, False, True, False], [True, False, False, False]])
    delta = np.array([[0.4, 0.5, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1]])
    score = motion_metrics(delta, mask, moving, delta)
    assert score == MotionScore(
        pytest.approx(5), 1.0, pytest.approx(2 / 4), pytest.approx(1 / 5), pytest.approx(3 / 8)
    )
    assert motion_metrics(1 - delta, mask, moving, delta).auc == 0
    assert motion_metrics(1 - delta, mask, moving).ratio == pytest.approx(0.5 / 0.9)


def test_auc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    moving = rng.random((12, 15)) < 0.3
    dynamic = np.round(rng.random((12, 15)) + 0.3 * moving, 1)  # many ties
    above = dynamic[moving][:, None] - dynamic[~moving]
    expected = ((above > 1e-6).mean() + 0.5 * (np.abs(above) <= 1e-6).mean()).item()
    assert motion_metrics(dynamic, moving, moving).auc == pytest.approx(expected)


def test_motion_without_dynamic_or_static_pixels():
    flat, none = np.full((4, 4), 0.5), np.zeros((4, 4), bool)
    still = motion_metrics(flat, none, none)
    assert np.isnan([still.ratio, still.auc, still.iou]).all() and (still.false_alarm, still.share) == (0, 0)
    alarm = none.copy()
    alarm[0, 0] = True
    wrong = motion_metrics(flat, alarm, none)
    assert (wrong.iou, wrong.false_alarm) == (0, 1 / 16)
    full = motion_metrics(flat, alarm, ~none)
    assert np.isnan([full.ratio, full.auc, full.false_alarm]).all() and (full.iou, full.share) == (1 / 16, 1)
    assert np.isnan(motion_metrics(flat, none, alarm, np.zeros((4, 4))).ratio)


def test_maps_are_resized_to_the_truth():
    mask = np.array([[True, False], [False, False]])
    moving = np.kron(mask, np.ones((3, 3))).astype(bool)
    score = motion_metrics(mask.astype(float), mask, moving)
    assert score.iou == 1 and score.false_alarm == 0 and score.auc == 1


def test_motion_map_must_be_finite():
    with pytest.raises(InputError, match="discrepancy: 16 of 16 values are not finite"):
        motion_metrics(np.zeros((4, 4)), np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.full((4, 4), np.nan))


def test_mean_over_a_sequence_skips_missing_values():
    frames = [MotionScore(2, 0.5, 0.2, 0.1, 0.3), MotionScore(np.nan, np.nan, np.nan, 0.3, 0.0)]
    mean = sequence_motion(frames)
    assert mean == MotionScore(2, 0.5, 0.2, pytest.approx(0.2), pytest.approx(0.15))
    assert np.isnan(sequence_motion(frames[1:]).iou)
    with pytest.raises(InputError):
        sequence_motion([])


# -------------------------------------------------------------------------------------------------- reconstruction


def turn(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def corner(step: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Points and normals of three adjacent walls of one metre."""
    u, v = (grid.ravel() for grid in np.meshgrid(*[np.arange(0.02, 1, step)] * 2))
    walls = [np.insert(np.stack((u, v), axis=1), axis, 0.0, axis=1) for axis in range(3)]
    return np.concatenate(walls), np.repeat(np.eye(3), len(u), axis=0)


def test_distance_of_two_walls():
    wall = np.insert(np.random.default_rng(0).uniform(0, 1, (500, 2)), 2, 0.0, axis=1)
    shifted = wall + np.array((0, 0, 0.03))
    score = reconstruction_metrics(shifted, wall, icp_distance=0, voxel=0)
    assert (score.accuracy, score.completeness, score.chamfer) == pytest.approx((0.03, 0.03, 0.03))
    assert np.isnan(score.normal_consistency)
    assert reconstruction_metrics(shifted, wall, voxel=0).chamfer < 1e-9  # ICP removes the shift


def test_a_missing_half_affects_completeness_only():
    wall = np.stack([grid.ravel() for grid in np.mgrid[0:100, 0:10, 0:1]], axis=1) / 100
    score = reconstruction_metrics(wall[wall[:, 0] < 0.5], wall, icp_distance=0, voxel=0)
    assert score.accuracy == 0
    assert score.completeness == pytest.approx(np.arange(1, 51).sum() / 100 / 100)
    assert score.chamfer == pytest.approx(score.completeness / 2)


def test_icp_finds_a_small_motion_and_rotates_the_normals():
    points, normals = corner()
    rotation = turn((1, 2, -1), math.radians(2))
    moved = points @ rotation.T + (0.01, -0.015, 0.01)
    score = reconstruction_metrics(
        moved, points, predicted_normals=-normals @ rotation.T, truth_normals=normals, voxel=0
    )
    assert score.chamfer < 1e-6
    assert score.normal_consistency == pytest.approx(1, abs=1e-9)
    off = reconstruction_metrics(moved, points, predicted_normals=normals, truth_normals=normals, icp_distance=0)
    assert off.chamfer > 0.01


def test_normal_consistency_is_the_cosine():
    points, normals = corner()
    tilted = normals @ turn((1, 1, 1), 0.5).T
    score = reconstruction_metrics(points, points, predicted_normals=tilted, truth_normals=normals, voxel=0)
    cosine = math.cos(0.5) + (1 - math.cos(0.5)) / 3  # a rotation about the diagonal, projected on an axis
    assert score.normal_consistency == pytest.approx(cosine)
    unknown = tilted.copy()
    unknown[::3] = np.nan
    again = reconstruction_metrics(points, points, predicted_normals=unknown, truth_normals=normals, voxel=0)
    assert again.normal_consistency == pytest.approx(cosine)


def test_dense_regions_do_not_weigh_more():
    points, _ = corner()
    crowd = np.concatenate((points, np.tile((0.5, 0.5, 0.08), (5000, 1)), [[np.nan, 0, 0]]))
    dense = reconstruction_metrics(crowd, points, icp_distance=0, voxel=0)
    thin = reconstruction_metrics(crowd, points, icp_distance=0, voxel=0.01)
    assert dense.accuracy > 0.05
    assert thin.accuracy == pytest.approx(dense.accuracy * (len(points) + 5000) / 5000 / (len(points) + 1), rel=1e-6)


def test_empty_cloud_is_refused():
    points, normals = corner()
    with pytest.raises(InputError, match="not one of the 2 predicted points is finite"):
        reconstruction_metrics(np.full((2, 3), np.nan), points)
    with pytest.raises(InputError, match="expected \\(N, 3\\), both"):
        reconstruction_metrics(points, points, truth_normals=normals[1:])


def test_alignment_undoes_a_similarity_and_keeps_the_shape():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 7, 3))
    predicted = (truth - (1, 2, 3)) @ turn((1, -1, 2), 2.0) / 0.3
    seen = predicted.copy()
    seen[0, 0] = np.nan
    aligned = align_clouds(seen, truth)
    assert np.isnan(aligned[0, 0]).all()
    assert np.allclose(aligned[1:], truth[1:])
    with pytest.raises(InputError, match="2 points are finite"):
        align_clouds(seen.reshape(-1, 3)[:3], truth.reshape(-1, 3)[:3])
    with pytest.raises(InputError, match="shape"):
        align_clouds(truth, truth[1:])


def test_alignment_never_mirrors():
    cloud = np.random.default_rng(1).normal(size=(50, 3))
    scale, rotation, _ = umeyama(cloud, cloud * (-1, 1, 1))
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert 0 < scale < 1
    assert umeyama(np.ones((4, 3)), cloud[:4])[0] == 1


def test_normals_of_a_sphere_point_at_its_centre():
    rows, columns = np.mgrid[-20:21, -20:21] / 200
    rays = np.stack((columns, rows, np.ones_like(rows)), axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    centre = np.array((0, 0, 4.0))
    along = rays @ centre
    distance = along - np.sqrt(np.square(along) - 16 + 1)  # a ball of radius 1, seen from 4 metres
    points = rays * distance[..., None]
    normals = estimate_normals(points)
    cosine = (normals * (points - centre)).sum(-1)
    assert np.linalg.norm(normals, axis=-1) == pytest.approx(1)
    assert cosine[1:-1, 1:-1].min() > 0.998 and cosine.min() > 0.95
    points[5, 5] = np.nan
    broken = np.isnan(estimate_normals(points)).any(-1)
    assert broken[5, 4] and broken[4, 5] and not broken[5, 8]
    with pytest.raises(InputError, match="two rows"):
        estimate_normals(points[:1])
