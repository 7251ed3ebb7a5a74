"""How far poses and steps are believed to be off, and the covariances made of that."""

import math

import numpy as np
import pytest

from raymap3r_ros.geometry import poses
from raymap3r_ros.mapping import uncertainty
from raymap3r_ros.mapping.uncertainty import ONE_ROOM, TURN_LENGTH


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


def test_travel_does_not_depend_on_the_world():
    before, after = pose((1, 2, 3)), pose((1, 2, 5), rotation((0, 1, 0), 0.3))
    expected = 2 + TURN_LENGTH * 0.3
    assert uncertainty.travel(before, after) == pytest.approx(expected, rel=1e-6)
    assert uncertainty.travel(poses.world_pose(before), poses.world_pose(after)) == pytest.approx(expected, rel=1e-6)
    assert uncertainty.travel(after, after) == 0


def test_pose_covariance_is_in_the_axes_of_the_header():
    """A camera that looks along x of the world: its own z is x of the world, its x is -y, its y is -z."""
    covariance = uncertainty.pose_covariance(poses.world_pose(pose()), np.eye(4), confidence=3.0, travelled=2.0)
    of_camera = ONE_ROOM.pose_variances(3.0, 2.0)
    np.testing.assert_allclose(np.diag(covariance), of_camera[[2, 0, 1, 5, 3, 4]])
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-18)
    metric = uncertainty.pose_covariance(np.eye(4), np.eye(4), 3.0, 2.0, scale=2.5)
    np.testing.assert_allclose(np.diag(metric), of_camera * ([2.5**2] * 3 + [1] * 3))


def test_covariances_are_carried_from_the_camera_to_the_robots_base():
    """Against errors drawn at the camera, and what they do to the pose of a base that the camera is mounted on."""
    rng = np.random.default_rng(0)
    base = pose((3, -1, 0), rotation((0, 0, 1), 2.0)).astype(np.float64)
    base_from_camera = poses.world_pose(pose())
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
            rows.append([*seen_from @ (found - base)[:3, 3], *seen_from @ poses.rotation_vector(change)])
        return np.cov(np.array(rows).T)

    for covariance, drawn in (
        (
            uncertainty.pose_covariance(base, base_from_camera, confidence, travelled),
            sample(ONE_ROOM.pose_variances(confidence, travelled), np.eye(3)),
        ),
        (
            uncertainty.twist_covariance(base_from_camera, confidence, travelled, seconds) * seconds**2,
            sample(ONE_ROOM.step_variances(confidence, travelled), base[:3, :3].T),
        ),
    ):
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
        units = np.outer(np.sqrt(np.diag(drawn)), np.sqrt(np.diag(drawn)))
        # Every entry as a correlation, so that metres and radians are held to the same bound.
        np.testing.assert_allclose(covariance / units, drawn / units, atol=0.1)


def test_a_camera_that_has_gone_farther_is_less_sure_of_its_place():
    traces = [
        np.trace(uncertainty.pose_covariance(np.eye(4), np.eye(4), 3.0, metres)) for metres in (0, 0.1, 1, 10, 100)
    ]
    assert (np.diff(traces) > 0).all()
