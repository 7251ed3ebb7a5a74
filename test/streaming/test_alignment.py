"""Similarity transforms are recovered despite noise and moving objects."""

import math

import pytest
import torch

from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.similarity import Similarity, weighted_umeyama
from raymap3r_ros.streaming.alignment import align_segments


def some_similarity(scale: float = 1.7) -> Similarity:
    pose = cameras.pose_matrix(torch.tensor([[0.4, -1.2, 0.8, 0.9, 0.2, -0.3, 0.1]]))
    return Similarity(torch.tensor([scale]), pose[:, :3, :3], pose[:, :3, 3])


def cloud(count: int = 2000, seed: int = 0) -> torch.Tensor:
    """Points before a camera at the origin, 2 to 6 m away."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(1, count, 3, generator=generator)
    return torch.cat(((uniform[..., :2] - 0.5) * 4, 2 + 4 * uniform[..., 2:]), dim=-1)


def close(found: Similarity, truth: Similarity, tolerance: float) -> None:
    assert found.scale.item() == pytest.approx(truth.scale.item(), rel=tolerance)
    torch.testing.assert_close(found.rotation, truth.rotation, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.translation, truth.translation, atol=5 * tolerance, rtol=0)


@pytest.mark.parametrize("reflect_scale", [True, False])
def test_an_exact_similarity_is_found(reflect_scale: bool):
    truth, source = some_similarity(), cloud()
    weight = torch.rand(1, 2000) + 0.1
    close(weighted_umeyama(source, truth.apply(source), weight, reflect_scale=reflect_scale), truth, 1e-5)


def test_weightless_points_do_not_count():
    truth, source = some_similarity(), cloud()
    target, weight = truth.apply(source), torch.ones(1, 2000)
    target[:, ::2] += 3
    weight[:, ::2] = 0
    close(weighted_umeyama(source, target, weight), truth, 1e-5)


def from_one_camera(noise: float, seed: int = 0, movers: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Clouds (1, N, 3) of one frame in the new and in the old segment, weights without movers, and the two poses.

    The error of a depth has a part shared by its quarter of the image and an independent part. For the share `movers`
    of the points, the two predictions differ by a factor of 1.6.
    """
    generator = torch.Generator().manual_seed(seed)
    poses = cameras.pose_matrix(torch.randn(2, 7, generator=generator))
    rays = cloud(4000, seed)
    quarter = (rays[0, :, 0] > 0) * 2 + (rays[0, :, 1] > 0)
    factors = []
    for _ in range(2):
        shared = torch.randn(4, generator=generator)[quarter]
        factors.append((noise * (0.7 * shared + 0.7 * torch.randn(4000, generator=generator))).exp()[None, :, None])
    moving = torch.arange(4000) < 4000 * movers
    factors[1] = torch.where(moving[:, None], 1.6 * factors[1], factors[1])
    after = cameras.transform_points(poses[:1], rays * factors[0] / 1.7)
    before = cameras.transform_points(poses[1:], rays * factors[1])
    return after, before, (~moving)[None].float(), poses[:1], poses[1:]


def errors(kind: str, noise: float, movers: float = 0.0, weighted: bool = True) -> torch.Tensor:
    """Mean rotation (degrees), position (metres) and log scale errors of the camera over ten alignments."""
    rows = []
    for seed in range(10):
        after, before, weight, after_pose, before_pose = from_one_camera(noise, seed, movers)
        weight = weight if weighted else torch.ones_like(weight)
        fit, _ = align_segments(kind, after, before, weight, after_pose, before_pose, torch.ones(1))
        aligned = fit.apply_to_pose(after_pose)
        turn = cameras.rotation_angle(*(cameras.quaternion(pose[:, :3, :3]) for pose in (aligned, before_pose)))
        shift = (aligned[:, :3, 3] - before_pose[:, :3, 3]).norm(dim=-1)
        rows.append(torch.cat((turn, shift, (fit.scale / 1.7).log().abs())))
    return torch.stack(rows).mean(0)


def test_errors_of_depth_neither_turn_nor_shift_the_world():
    turn, shift, scale = errors("robust", 0.1)
    assert turn < 0.01 and shift < 1e-3 and scale < 0.08
    turn, shift, _ = errors("published", 0.1)
    assert turn > 1 and shift > 0.1


def test_the_scale_does_not_shrink_with_the_noise_of_the_clouds():
    """Twenty resets with 10 % noise in each depth: the scale of Umeyama's method shrinks, ours does not."""
    generator = torch.Generator().manual_seed(1)
    pose, weight, rays = torch.eye(4)[None], torch.ones(1, 5000), cloud(5000)
    scales = {"robust": 1.0, "published": 1.0}
    for _ in range(20):
        noisy = [rays * (1 + 0.1 * torch.randn(1, 5000, 1, generator=generator)) for _ in range(2)]
        for kind in scales:
            scales[kind] *= align_segments(kind, *noisy, weight, pose, pose, torch.ones(1))[0].scale.item()
    assert scales["published"] < 0.8
    assert scales["robust"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", ["robust", "published"])
def test_weights_exclude_moving_objects(kind: str):
    without, excluded, included = (
        errors(kind, 0.02, movers, weighted) for movers, weighted in ((0.0, True), (0.6, True), (0.6, False))
    )
    assert excluded[2] < without[2] + 0.02 < 0.05 and included[2] > 0.1


def test_poses_are_transformed_and_back():
    truth = some_similarity()
    pose = cameras.pose_matrix(torch.randn(1, 7, generator=torch.Generator().manual_seed(3)))
    moved = truth.apply_to_pose(pose)
    torch.testing.assert_close(truth.invert_on_pose(moved), pose, atol=1e-5, rtol=0)
    # A point ahead of the camera has the same position both ways.
    ahead = torch.tensor([[[0.1, 0.2, 1.5]]])
    there = truth.apply(cameras.transform_points(pose, ahead))
    torch.testing.assert_close(there, cameras.transform_points(moved, ahead * truth.scale), atol=1e-5, rtol=0)


def test_undetected_moving_objects_on_a_third_of_the_points_have_little_effect():
    assert errors("robust", 0.02, 0.33, weighted=False)[2] < 0.03 < 0.1 < errors("published", 0.02, 0.33, False)[2]


@pytest.mark.parametrize("kind", ["robust", "published"])
@pytest.mark.parametrize("broken", ["nan", "no weight"])
def test_unusable_clouds_are_aligned_by_their_poses_and_reported(kind: str, broken: str):
    after = cloud()
    before = after * math.nan if broken == "nan" else after
    weight = torch.zeros(1, 2000) if broken == "no weight" else torch.ones(1, 2000)
    poses = cameras.pose_matrix(torch.randn(2, 7, generator=torch.Generator().manual_seed(2)))
    after_pose, before_pose = poses[:1], poses[1:]
    fit, error = align_segments(kind, after, before, weight, after_pose, before_pose, torch.tensor([0.7]))
    assert error.isnan().all() and fit.scale.item() == pytest.approx(0.7)
    torch.testing.assert_close(fit.apply_to_pose(after_pose), before_pose, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["robust", "published"])
def test_single_bad_points_are_left_out(kind: str):
    truth, after = some_similarity(), cloud()
    before = truth.apply(after)
    before[0, 5], after[0, 9] = math.nan, math.inf
    pose = torch.eye(4)[None]
    fit, error = align_segments(
        kind, after, before, torch.ones(1, 2000), pose, truth.apply_to_pose(pose), torch.ones(1)
    )
    close(fit, truth, 1e-4)
    assert error.item() < 1e-4
