"""Similarity transforms: found again, through noise and through what moves."""

import math

import pytest
import torch

from raymap3r_ros.streaming import cameras
from raymap3r_ros.streaming.alignment import Similarity, align_segments, weighted_umeyama


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


def test_the_scale_does_not_shrink_with_the_noise_of_the_clouds():
    """Twenty resets with 10 % of noise in every depth: Umeyama's own scale would be lost, ours stays."""
    generator = torch.Generator().manual_seed(1)
    pose, weight, rays = torch.eye(4)[None], torch.ones(1, 5000), cloud(5000)
    plain = ours = 1.0
    for _ in range(20):
        noisy = [rays * (1 + 0.1 * torch.randn(1, 5000, 1, generator=generator)) for _ in range(2)]
        plain *= weighted_umeyama(*noisy, weight).scale.item()
        ours *= align_segments(*noisy, weight, pose, pose, torch.ones(1))[0].scale.item()
    assert plain < 0.8
    assert ours == pytest.approx(1.0, abs=0.03)


def test_poses_go_through_and_back():
    truth = some_similarity()
    pose = cameras.pose_matrix(torch.randn(1, 7, generator=torch.Generator().manual_seed(3)))
    moved = truth.apply_to_pose(pose)
    torch.testing.assert_close(truth.invert_on_pose(moved), pose, atol=1e-5, rtol=0)
    # A point ahead of the camera is at the same place, whichever way it goes.
    ahead = torch.tensor([[[0.1, 0.2, 1.5]]])
    there = truth.apply(cameras.transform_points(pose, ahead))
    torch.testing.assert_close(there, cameras.transform_points(moved, ahead * truth.scale), atol=1e-5, rtol=0)


def test_moving_points_that_staticness_missed_are_found_out():
    truth, after = some_similarity(0.8), cloud()
    before = truth.apply(after)
    before[:, :600] += torch.tensor([0.7, 0.0, -0.4])  # 30 % moved between the two memories
    before = before * (1 + 0.01 * torch.randn(before.shape, generator=torch.Generator().manual_seed(1)))
    pose = torch.eye(4)[None]
    fit, error = align_segments(after, before, torch.ones(1, 2000), pose, truth.apply_to_pose(pose), torch.ones(1))
    close(fit, truth, 0.01)
    naive = weighted_umeyama(after, before, torch.ones(1, 2000))
    offset = (fit.translation - truth.translation).norm()
    assert offset < 0.1 * (naive.translation - truth.translation).norm()
    assert 0 < error.item() < 0.05


@pytest.mark.parametrize("broken", ["nan", "no weight"])
def test_clouds_that_cannot_be_fitted_are_joined_by_their_poses_and_reported(broken: str):
    after = cloud()
    before = after * math.nan if broken == "nan" else after
    weight = torch.zeros(1, 2000) if broken == "no weight" else torch.ones(1, 2000)
    poses = cameras.pose_matrix(torch.randn(2, 7, generator=torch.Generator().manual_seed(2)))
    after_pose, before_pose = poses[:1], poses[1:]
    fit, error = align_segments(after, before, weight, after_pose, before_pose, torch.tensor([0.7]))
    assert error.isnan().all() and fit.scale.item() == pytest.approx(0.7)
    torch.testing.assert_close(fit.apply_to_pose(after_pose), before_pose, atol=1e-5, rtol=0)


def test_single_bad_points_are_left_out():
    truth, after = some_similarity(), cloud()
    before = truth.apply(after)
    before[0, 5], after[0, 9] = math.nan, math.inf
    pose = torch.eye(4)[None]
    fit, error = align_segments(after, before, torch.ones(1, 2000), pose, truth.apply_to_pose(pose), torch.ones(1))
    close(fit, truth, 1e-4)
    assert error.item() < 1e-4
