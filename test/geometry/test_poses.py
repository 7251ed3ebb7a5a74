import math

import numpy as np
import pytest

from raymap3r_ros.geometry import poses


def rotation(axis, angle):
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def pose(position=(0, 0, 0), turn=None):
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, 3] = position
    if turn is not None:
        matrix[:3, :3] = turn
    return matrix


def test_first_camera_points_along_x_of_the_world():
    world = poses.world_pose(pose())
    forward, right, down = world[:3, 2], world[:3, 0], world[:3, 1]
    np.testing.assert_array_equal(forward, [1, 0, 0])
    np.testing.assert_array_equal(right, [0, -1, 0])
    np.testing.assert_array_equal(down, [0, 0, -1])
    # The well-known quaternion of optical frames.
    np.testing.assert_allclose(poses.quaternion(world[:3, :3]), [-0.5, 0.5, -0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("optical", "ros"), [((0, 0, 2), (2, 0, 0)), ((1, 0, 0), (0, -1, 0)), ((0, 3, 0), (0, 0, -3))]
)
def test_motion_is_converted_to_rep_103_axes(optical, ros):
    np.testing.assert_allclose(poses.world_pose(pose(optical))[:3, 3], ros)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0, math.pi])
def test_quaternion_and_rotation_vector(angle):
    axis = np.array([1.0, 2.0, -2.0]) / 3
    matrix = rotation(axis, angle)
    x, y, z, w = poses.quaternion(matrix)
    assert w >= 0
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    vector = poses.rotation_vector(matrix)
    assert np.linalg.norm(vector) == pytest.approx(angle, abs=1e-7)
    np.testing.assert_allclose(rotation(axis, angle) @ [0.3, 0.2, 0.1], matrix @ [0.3, 0.2, 0.1])


def test_twist_is_in_the_childs_own_axes():
    turn = rotation((0, 0, 1), math.pi / 2)
    before, after = np.eye(4), np.eye(4)
    before[:3, :3] = turn
    after[:3, :3] = turn @ rotation((0, 1, 0), 0.2)
    after[:3, 3] = [0, 0.5, 0]  # nearly along the child's own x: the child is rotated by 90 degrees about z
    linear, angular = poses.twist(before, after, 0.1)
    np.testing.assert_allclose(linear, after[:3, :3].T @ [0, 5, 0], atol=1e-12)
    np.testing.assert_allclose(angular, [0, 2, 0], atol=1e-9)
