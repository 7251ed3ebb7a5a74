"""Poses, rays and focal lengths against closed forms."""

import math

import pytest
import torch

from raymap3r_ros.geometry import cameras


def rotation_about(axis: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotation matrix as the exponential of the cross-product matrix."""
    x, y, z = (axis / axis.norm() * math.radians(degrees)).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)).float()


def random_poses(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    encodings = torch.randn(count, 7, generator=generator)
    return cameras.pose_matrix(encodings)


def test_quaternions_equal_the_matrix_exponential():
    for axis, degrees in (((1, 0, 0), 30), ((0, 1, 0), 179.9), ((1, 2, -3), 90), ((0, 0, 1), 179)):
        rotation = rotation_about(torch.tensor(axis, dtype=torch.float32), degrees)
        unit = torch.tensor(axis, dtype=torch.float32) / torch.tensor(axis, dtype=torch.float32).norm()
        half = math.radians(degrees) / 2
        expected = torch.cat((torch.tensor([math.cos(half)]), unit * math.sin(half)))
        torch.testing.assert_close(cameras.quaternion(rotation), expected, atol=1e-5, rtol=0)
        encoding = torch.cat((torch.tensor([1.0, 2, 3]), 4 * expected))  # a quaternion of any length
        torch.testing.assert_close(cameras.pose_matrix(encoding)[:3, :3], rotation, atol=1e-5, rtol=0)


def test_encoding_and_matrix_are_inverse():
    poses = random_poses(200)
    torch.testing.assert_close(cameras.pose_matrix(cameras.pose_encoding(poses)), poses, atol=1e-5, rtol=0)
    assert (cameras.pose_encoding(poses)[:, 3] >= 0).all()


@pytest.mark.parametrize("degrees", [0.001, 0.5, 45.0, 179.0])
def test_the_angle_between_rotations_keeps_small_angles(degrees: float):
    first = rotation_about(torch.tensor([0.3, -1.0, 0.2]), 70)
    second = rotation_about(torch.tensor([1.0, 1.0, 0.4]), degrees) @ first
    angle = cameras.rotation_angle(cameras.quaternion(first), cameras.quaternion(second))
    assert angle.item() == pytest.approx(degrees, abs=5e-5, rel=1e-4)


def test_focal_length_of_an_exact_and_of_a_disturbed_pinhole():
    size, focal = (36, 50), 41.0
    pixels = cameras.pixel_grid(size, torch.device("cpu")) - torch.tensor([25.0, 18.0])
    depth = 1 + torch.rand(2, *size, 1, generator=torch.Generator().manual_seed(0))
    points = torch.cat((pixels / focal * depth, depth), dim=-1)
    for estimate in (cameras.focal_from_points(points, 10), cameras.median_focal_from_points(points, 4096)):
        torch.testing.assert_close(estimate, torch.full((2,), focal), atol=1e-3, rtol=0)
    points[0, :10] *= torch.tensor([0.5, 0.5, 1.0])  # a quarter of the image is inconsistent
    points[1, 5, 5] = torch.tensor([1.0, 1.0, float("nan")])
    torch.testing.assert_close(cameras.focal_from_points(points, 10), torch.full((2,), focal), atol=0.5, rtol=0)
    torch.testing.assert_close(
        cameras.median_focal_from_points(points, 4096), torch.full((2,), focal), atol=0.5, rtol=0
    )


def test_one_outlier_breaks_the_mean_but_not_the_median():
    size = (36, 50)
    pixels = cameras.pixel_grid(size, torch.device("cpu")) - torch.tensor([25.0, 18.0])
    points = torch.cat((pixels / 41.0, torch.ones(*size, 1)), dim=-1)[None]
    points[0, 3, 3, 2] = 1e-30
    assert cameras.focal_from_points(points, 10) < 1
    assert cameras.median_focal_from_points(points, 4096).item() == pytest.approx(41.0, abs=1e-3)


def test_rays_include_the_translation_in_their_direction_as_in_training():
    pose = random_poses(1)
    intrinsics = torch.tensor([[[30.0, 0, 20], [0, 32.0, 10], [0, 0, 1]]])
    rays = cameras.ray_map(pose, intrinsics, (24, 40))
    row, column = 7, 33
    direction = torch.tensor([(column - 20) / 30.0, (row - 10) / 32.0, 1.0])
    moved = pose[0, :3, :3] @ direction + pose[0, :3, 3]
    torch.testing.assert_close(rays[0, row, column, :3], pose[0, :3, 3])
    torch.testing.assert_close(rays[0, row, column, 3:], moved / moved.norm(), atol=1e-6, rtol=0)


def test_points_are_transformed_by_poses():
    poses = random_poses(3)
    points = torch.randn(3, 4, 5, 3)
    expected = torch.einsum("bij,bhwj->bhwi", poses[:, :3, :3], points) + poses[:, None, None, :3, 3]
    torch.testing.assert_close(cameras.transform_points(poses, points), expected, atol=1e-5, rtol=1e-5)


def test_back_projected_points_lie_on_their_rays():
    generator = torch.Generator().manual_seed(0)
    depth = 0.5 + torch.rand(2, 3, 12, 16, generator=generator)  # streams, time, rows, columns
    intrinsics = torch.tensor([[[20.0, 0.5, 7.0], [0, 22, 5], [0, 0, 1]], [[15.0, 0, 8], [0, 15, 6], [0, 0, 1]]])
    points = cameras.back_project(depth, intrinsics)
    projected = points @ intrinsics[:, None, None].mT
    torch.testing.assert_close(projected[..., 2], depth)
    grid = cameras.pixel_grid((12, 16), depth.device).expand(2, 3, -1, -1, -1)
    torch.testing.assert_close(projected[..., :2] / depth[..., None], grid, atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.back_project(depth[:, 0], intrinsics), points[:, 0], atol=0, rtol=0)
