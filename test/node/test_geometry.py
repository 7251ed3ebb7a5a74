import math

import numpy as np
import pytest

from raymap3r_ros.mapping.uncertainty import ONE_ROOM, TURN_LENGTH
from raymap3r_ros.node import geometry


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


def test_first_camera_looks_along_x_of_the_world():
    world = geometry.world_pose(pose())
    forward, right, down = world[:3, 2], world[:3, 0], world[:3, 1]
    np.testing.assert_array_equal(forward, [1, 0, 0])
    np.testing.assert_array_equal(right, [0, -1, 0])
    np.testing.assert_array_equal(down, [0, 0, -1])
    # The well-known quaternion of optical frames.
    np.testing.assert_allclose(geometry.quaternion(world[:3, :3]), [-0.5, 0.5, -0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("optical", "ros"), [((0, 0, 2), (2, 0, 0)), ((1, 0, 0), (0, -1, 0)), ((0, 3, 0), (0, 0, -3))]
)
def test_motion_is_turned_into_rep_103_axes(optical, ros):
    np.testing.assert_allclose(geometry.world_pose(pose(optical))[:3, 3], ros)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0, math.pi])
def test_quaternion_and_rotation_vector(angle):
    axis = np.array([1.0, 2.0, -2.0]) / 3
    matrix = rotation(axis, angle)
    x, y, z, w = geometry.quaternion(matrix)
    assert w >= 0
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    vector = geometry.rotation_vector(matrix)
    assert np.linalg.norm(vector) == pytest.approx(angle, abs=1e-7)
    np.testing.assert_allclose(rotation(axis, angle) @ [0.3, 0.2, 0.1], matrix @ [0.3, 0.2, 0.1])


def test_twist_is_in_the_childs_own_axes():
    turn = rotation((0, 0, 1), math.pi / 2)
    before, after = np.eye(4), np.eye(4)
    before[:3, :3] = turn
    after[:3, :3] = turn @ rotation((0, 1, 0), 0.2)
    after[:3, 3] = [0, 0.5, 0]  # along the child's own x, nearly: it is turned by 90 degrees about z
    linear, angular = geometry.twist(before, after, 0.1)
    np.testing.assert_allclose(linear, after[:3, :3].T @ [0, 5, 0], atol=1e-12)
    np.testing.assert_allclose(angular, [0, 2, 0], atol=1e-9)


def test_travel_does_not_depend_on_the_world():
    before, after = pose((1, 2, 3)), pose((1, 2, 5), rotation((0, 1, 0), 0.3))
    expected = 2 + TURN_LENGTH * 0.3
    assert geometry.travel(before, after) == pytest.approx(expected, rel=1e-6)
    assert geometry.travel(geometry.world_pose(before), geometry.world_pose(after)) == pytest.approx(
        expected, rel=1e-6
    )
    assert geometry.travel(after, after) == 0


def test_pose_covariance_is_in_the_axes_of_the_header():
    """A camera that looks along x of the world: its own z is x of the world, its x is -y, its y is -z."""
    covariance = geometry.pose_covariance(geometry.world_pose(pose()), np.eye(4), confidence=3.0, travelled=2.0)
    of_camera = ONE_ROOM.pose_variances(3.0, 2.0)
    np.testing.assert_allclose(np.diag(covariance), of_camera[[2, 0, 1, 5, 3, 4]])
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-18)
    metric = geometry.pose_covariance(np.eye(4), np.eye(4), 3.0, 2.0, scale=2.5)
    np.testing.assert_allclose(np.diag(metric), of_camera * ([2.5**2] * 3 + [1] * 3))


def test_covariances_are_carried_from_the_camera_to_the_robots_base():
    """Against errors drawn at the camera, and what they do to the pose of a base that the camera is mounted on."""
    rng = np.random.default_rng(0)
    base = pose((3, -1, 0), rotation((0, 0, 1), 2.0)).astype(np.float64)
    base_from_camera = geometry.world_pose(pose())
    base_from_camera[:3, 3] = 1.5, 0.4, 0.8
    camera = base @ base_from_camera
    confidence, travelled, seconds = 2.0, 1.0, 0.1

    def sample(variances, seen_from):
        off = np.sqrt(variances) * rng.normal(size=(4000, 6))
        rows = []
        for shift, turn in zip(off[:, :3], off[:, 3:], strict=True):
            angle = np.linalg.norm(turn)
            found = camera @ pose(shift, rotation(turn / angle, angle)) @ np.linalg.inv(base_from_camera)
            change = found[:3, :3] @ base[:3, :3].T
            rows.append([*seen_from @ (found - base)[:3, 3], *seen_from @ geometry.rotation_vector(change)])
        return np.cov(np.array(rows).T)

    for covariance, drawn in (
        (
            geometry.pose_covariance(base, base_from_camera, confidence, travelled),
            sample(ONE_ROOM.pose_variances(confidence, travelled), np.eye(3)),
        ),
        (
            geometry.twist_covariance(base_from_camera, confidence, travelled, seconds) * seconds**2,
            sample(ONE_ROOM.step_variances(confidence, travelled), base[:3, :3].T),
        ),
    ):
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
        units = np.outer(np.sqrt(np.diag(drawn)), np.sqrt(np.diag(drawn)))
        # Every entry as a correlation, so that metres and radians are held to the same bound.
        np.testing.assert_allclose(covariance / units, drawn / units, atol=0.1)


def test_a_camera_that_has_gone_farther_is_less_sure_of_its_place():
    traces = [np.trace(geometry.pose_covariance(np.eye(4), np.eye(4), 3.0, metres)) for metres in (0, 0.1, 1, 10, 100)]
    assert (np.diff(traces) > 0).all()
