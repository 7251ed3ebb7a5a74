"""Covariances of poses and steps, and the error model in the metadata of a checkpoint."""

import json
import math

import numpy as np
import pytest

from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.geometry import poses
from raymap3r_ros.mapping import uncertainty
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, TURN_LENGTH, ErrorModel


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
    """A camera that points along x of the world: its own z is x of the world, its x is -y, its y is -z."""
    covariance = uncertainty.pose_covariance(
        DEFAULT, poses.world_pose(pose()), np.eye(4), confidence=3.0, travelled=2.0
    )
    of_camera = DEFAULT.pose_variances(3.0, 2.0)
    np.testing.assert_allclose(np.diag(covariance), of_camera[[2, 0, 1, 5, 3, 4]])
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-18)
    metric = uncertainty.pose_covariance(DEFAULT, np.eye(4), np.eye(4), 3.0, 2.0, scale=2.5)
    np.testing.assert_allclose(np.diag(metric), of_camera * ([2.5**2] * 3 + [1] * 3))


def test_covariances_are_transformed_from_the_camera_to_the_base():
    """Against errors drawn at the camera, and the resulting errors of a base that the camera is mounted on."""
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
            uncertainty.pose_covariance(DEFAULT, base, base_from_camera, confidence, travelled),
            sample(DEFAULT.pose_variances(confidence, travelled), np.eye(3)),
        ),
        (
            uncertainty.twist_covariance(DEFAULT, base_from_camera, confidence, travelled, seconds) * seconds**2,
            sample(DEFAULT.step_variances(confidence, travelled), base[:3, :3].T),
        ),
    ):
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
        units = np.outer(np.sqrt(np.diag(drawn)), np.sqrt(np.diag(drawn)))
        # Compare entries as correlations, so that metres and radians have the same bound.
        np.testing.assert_allclose(covariance / units, drawn / units, atol=0.1)


def test_position_uncertainty_grows_with_the_travelled_distance():
    traces = [
        np.trace(uncertainty.pose_covariance(DEFAULT, np.eye(4), np.eye(4), 3.0, metres))
        for metres in (0, 0.1, 1, 10, 100)
    ]
    assert (np.diff(traces) > 0).all()


def changed(group="step", **values):
    """The default model as a dictionary with changes in one group; None removes a key."""
    model = json.loads(DEFAULT.to_json())
    model[group] = {key: value for key, value in {**model[group], **values}.items() if value is not None}
    return model


def test_model_survives_metadata():
    assert ErrorModel.from_manifest({METADATA_KEY: DEFAULT.to_json()}) == DEFAULT
    assert ErrorModel.from_manifest({METADATA_KEY: json.dumps(changed(settled=None, reach=None))}) == DEFAULT
    assert ErrorModel.from_manifest({"steps": "12"}) is None


def test_coefficients_in_the_docs_are_the_default(root):
    assert DEFAULT.to_json() in (root / "docs" / "odometry.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[1]", r"JSON is \[1\]; expected an object"),
        ("{}", "JSON has the keys none; missing or unknown: position"),
        (json.dumps({**changed(), "slip": {}}), "missing or unknown: slip"),
        (json.dumps({**changed(), "turn": None}), "turn is None; expected an object"),
        (json.dumps(changed(start=None)), "step has the keys .*; missing or unknown: start"),
        (json.dumps(changed(slope=1.0)), "missing or unknown: slope"),
        (json.dumps(changed(start="0.1")), "step.start is '0.1'; allowed: 1e-06 to 1000"),
        (json.dumps(changed(start=True)), "step.start is True"),
        (json.dumps(changed(start=0)), "step.start is 0;"),
        (json.dumps(changed(creep=-0.1)), "step.creep is -0.1; allowed: 0 to 1000"),
        (json.dumps(changed(creep=10**400)), "step.creep is 1000"),
        (json.dumps(changed("turn", power=math.nan)), "turn.power is nan; allowed: 0 to 10"),
        (json.dumps(changed("position", reach=math.inf)), "position.reach is inf"),
        (json.dumps(changed(axes=[1.0, 1.0])), r"step.axes is \[1.0, 1.0\]; expected a list of three numbers"),
        (json.dumps(changed(axes=1.0)), "step.axes is 1.0; expected a list of three numbers"),
        (json.dumps(changed(axes=[1.0, 0.0, 1.0])), "step.axes is .*; allowed: 0.001 to 1000"),
    ],
)
def test_malformed_metadata_is_refused(text, message):
    with pytest.raises(CheckpointError, match=rf"(?s)metadata 'covariance' of a.safetensors is not .*{message}"):
        ErrorModel.from_manifest({METADATA_KEY: text}, "a.safetensors")
