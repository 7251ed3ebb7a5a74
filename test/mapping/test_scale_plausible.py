"""Absurd but finite input of every scale source: the estimate stays finite and recovers."""

import math

import numpy as np
import pytest

from raymap3r_ros.mapping.scale import MetricScale, Observation, RangeReading, ScaleEstimator, ScaleOptions
from raymap3r_ros.mapping.scale.sources.range_sensor import RangeSource

ABSURD = (1e300, -1e300, 1.7e308, 1e-300, 1e30, 1e-30)


def moved(distance):
    pose = np.eye(4)
    pose[0, 3] = distance
    return pose


@pytest.mark.parametrize("absurd", ABSURD)
@pytest.mark.parametrize("after", [0, 12])
@pytest.mark.parametrize("damaged", ["odometry", "both"])
def test_odometry(absurd, after, damaged):
    metric = MetricScale(ScaleOptions(source="odometry"))
    estimates = []
    for stamp in range(60):
        if stamp == after:
            metric.add_odometry(stamp - 0.1, moved(absurd))
            metric.update(stamp - 0.1, moved(absurd if damaged == "both" else 0.3 * stamp - 0.03), None)
        metric.add_odometry(float(stamp), moved(0.6 * stamp))
        estimates.append(metric.update(float(stamp), moved(0.3 * stamp + 0.005 * math.sin(stamp)), None))
    assert all(math.isfinite(one.factor) for one in estimates)
    assert estimates[-1].known and estimates[-1].factor == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("absurd", [*ABSURD, 3.4e38, 1e-45])
def test_range_readings(absurd):
    metric = MetricScale(ScaleOptions(source="range"))
    estimates = []
    for stamp in range(60):
        distance, measured = (absurd, 4.0) if stamp % 6 == 1 else (8.0, absurd if stamp % 6 == 2 else 4.0)
        metric.add_range(RangeReading(float(stamp), distance, 0.0, 1e308, 0.05))
        estimates.append(metric.update(float(stamp), moved(0), np.array([measured + 0.01 * math.sin(stamp), 0.0])))
    assert all(math.isfinite(one.factor) for one in estimates)
    assert estimates[-1].known and estimates[-1].factor == pytest.approx(2.0, rel=0.02)


def test_range_sensor_mounted_absurdly_far_away():
    source = RangeSource()
    mount = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1e300], [0, 0, 0, 1]])
    source.mount_sensor(mount)
    source.add(RangeReading(0.0, 1e300, 0.0, 1e308, 0.05))
    for observation in source.observe(0.0, np.eye(4), np.array([1e-300, 0.0]), ScaleOptions(source="range")):
        assert not observation.plausible


@pytest.mark.parametrize("measured", [(1e300, 0.0), (1e-300, 0.0), (0.5, 1e300)])
def test_height(measured):
    metric = MetricScale(ScaleOptions(source="height", camera_height=1.0))
    for stamp in range(30):
        estimate = metric.update(float(stamp), moved(0), np.array(measured if stamp == 9 else (0.5, 0.0)))
        assert math.isfinite(estimate.factor)
    assert estimate.known and estimate.factor == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    "observation",
    [
        Observation(5.0, math.nan, 0.03),
        Observation(5.0, math.inf, 0.03),
        Observation(5.0, 700.0, 0.03),
        Observation(math.nan, 0.0, 0.03),
        Observation(5.0, 0.0, math.nan),
        Observation(5.0, 0.0, 0.0),
    ],
)
def test_estimator_drops_an_implausible_observation(observation):
    """Of a source outside this package."""
    estimator = ScaleEstimator()
    for stamp in range(10):
        estimator.add(Observation(float(stamp), math.log(2.0), 0.03))
        if stamp == 5:
            estimator.add(observation)
    estimate = estimator.estimate(9.0)
    assert estimate.observations == 10 and estimate.factor == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("of", "stamp"),
    [*(("sensor", stamp) for stamp in (math.nan, math.inf, -math.inf, 2.0**31, 1e300)), ("frame", 2.0**31)],
)
@pytest.mark.parametrize("source", ["odometry", "range"])
def test_one_absurd_stamp(source, of, stamp):
    metric = MetricScale(ScaleOptions(source=source))
    measured = None if source == "odometry" else np.array([4.0, 0.0])

    def add(at, step):
        metric.add_odometry(at, moved(0.6 * step))
        metric.add_range(RangeReading(at, 8.0, 0.1, 20.0, 0.05))

    for step in range(60):
        if step == 5 and of == "sensor":
            add(stamp, step)
        if step == 5 and of == "frame":
            metric.update(stamp, moved(0.3 * step), measured)
        add(float(step), step)
        estimate = metric.update(float(step), moved(0.3 * step), measured)
        assert math.isfinite(estimate.factor)
    assert estimate.known and estimate.factor == pytest.approx(2.0, rel=0.02)
