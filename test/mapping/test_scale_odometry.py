"""Metric scale from wheel odometry: slip, curves, rest, gaps."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scale_worlds import BASE_FROM_CAMERA, HIDDEN, OPTICAL, drive, ride

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale import MetricScale, ScaleOptions
from raymap3r_ros.mapping.scale.sources.odometry import OdometrySource


def test_odometry_finds_the_scale_despite_slip():
    seconds = np.arange(0, 60, 0.02)
    speed, turn = 0.5 + 0.2 * np.sin(0.3 * seconds), 0.5 * np.sin(0.4 * seconds)
    truth = drive(speed, turn)
    # Wheels spin for one second in five, and always slip a little.
    slips = 1.01 + 0.8 * (seconds % 5 < 1)
    odometry = drive(speed * slips, 0.9 * turn)
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimates = ride(metric, truth, odometry, BASE_FROM_CAMERA)
    error = estimates[-1].factor / HIDDEN - 1
    print(f"\nodometry with slip: error {error:.3f}")
    assert estimates[-1].known and estimates[-1].confidence > 0.8
    assert abs(error) < 0.04
    assert not estimates[20].known and estimates[20].factor == 1.0


def test_curves_do_not_bias_the_scale():
    """Curves of half a metre radius: the camera, in front, travels a fifth farther than the base."""
    seconds = np.arange(0, 60, 0.02)
    speed, turn = np.full(len(seconds), 0.4), 0.8 * np.sign(np.sin(0.5 * seconds))
    path = drive(speed, turn)
    naive = [np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1).sum() for p in (path, path @ BASE_FROM_CAMERA)]
    assert naive[1] / naive[0] > 1.15

    metric = MetricScale(ScaleOptions(source="odometry"))
    metric.mount_camera(BASE_FROM_CAMERA)
    assert ride(metric, path, path, jitter=0.0)[-1].factor == pytest.approx(HIDDEN, rel=0.005)

    # The camera's position is unknown: curves are not used ...
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimate = ride(metric, path, path)[-1]
    assert (estimate.known, estimate.observations, estimate.confidence) == (False, 0, 0.0)
    # ... but straight parts of the path are.
    turn = np.where(seconds % 10 < 2, 0.8, 0.0)
    path = drive(speed, turn)
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimate = ride(metric, path, path)[-1]
    assert estimate.known
    assert estimate.factor == pytest.approx(HIDDEN, rel=0.03)


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_a_robot_at_rest_gives_no_observation(turn):
    path = drive(np.zeros(2000), np.full(2000, turn))
    metric = MetricScale(ScaleOptions(source="odometry"))
    metric.mount_camera(np.block([[OPTICAL, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]))
    estimate = ride(metric, path, path, jitter=0.02)[-1]
    assert (estimate.known, estimate.observations, estimate.confidence) == (False, 0, 0.0)


def test_odometry_that_pauses_or_restarts():
    source = OdometrySource()

    def at(x):
        pose = np.eye(4)
        pose[0, 3] = x
        return pose

    def pass_by(stamps, offset=0.0, step=0.02):
        found = []
        for stamp in stamps:
            source.add((stamp + step / 2, at(stamp - offset)))
            found += source.observe(stamp, at(2 * stamp), None, ScaleOptions())
        return found

    # 1 m/s, and 2 units/s in the prediction: an observation every half second.
    found = pass_by(np.arange(0, 3, 0.02))
    assert len(found) == 5
    assert [o.log_scale for o in found] == pytest.approx([math.log(0.5)] * 5, rel=0.05)
    # A gap of a second is not bridged. Then the stamps jump back, as in a bag that restarts.
    found = pass_by(np.arange(4, 4.45, 0.02))
    assert found == []
    source.reset()
    assert len(pass_by(np.arange(0, 1.3, 0.02))) == 2


def test_an_invalid_pose_is_refused():
    with pytest.raises(InputError, match="pose"):
        MetricScale(ScaleOptions()).mount_camera(np.ones((4, 4)))
