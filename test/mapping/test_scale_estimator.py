"""The running estimate of the scale factor, from observations with outliers, drift and pauses."""

import math

import numpy as np
import pytest

from raymap3r_ros.mapping.scale import Observation, ScaleEstimator
from raymap3r_ros.mapping.scale.estimator import robust_centre
from raymap3r_ros.mapping.scale.method import MAX_RATE


def test_centre_is_the_value_of_the_majority():
    """30 % of the values on one side shift the mean and even the median, but not the centre."""
    generator = np.random.default_rng(0)
    values = generator.normal(0.3, 0.05, 400)
    values[:120] -= generator.uniform(0.2, 1.5, 120)
    centre, spread = robust_centre(values, np.ones(400))
    assert abs(centre - 0.3) < 0.012 < abs(np.median(values) - 0.3) < abs(values.mean() - 0.3)
    assert 0.04 < spread < 0.1
    # A weight is equivalent to a number of copies.
    weights = generator.integers(1, 4, 400)
    assert robust_centre(values, weights) == pytest.approx(
        robust_centre(values.repeat(weights), np.ones(weights.sum()))
    )
    assert robust_centre(np.full(5, 0.7), np.ones(5)) == (0.7, 0.0)


def test_unknown_before_enough_evidence():
    estimator = ScaleEstimator()
    estimate = estimator.estimate(0.0, 1.3)
    assert (estimate.factor, estimate.known, estimate.confidence, estimate.observations) == (1.3, False, 0.0, 0)
    # Thirty observations in one second share one error, which is too little evidence; a few seconds are enough.
    known = []
    for stamp in np.arange(0, 10, 1 / 30):
        estimator.add(Observation(stamp, math.log(2.0), 0.03))
        known.append((stamp, estimator.estimate(stamp, 1.3)))
    first = next(stamp for stamp, estimate in known if estimate.known)
    assert 3.0 < first < 6.0
    assert known[5][1].facts("range")["scale"] == "1.3 (assumed, waiting for range)"
    assert known[-1][1].facts("range")["scale"] == "2 (from range)"
    assert all(estimate.factor == 1.3 for stamp, estimate in known if stamp < first)
    assert all(estimate.factor == pytest.approx(2.0) for stamp, estimate in known if stamp >= first)


def test_inconsistent_observations_are_no_evidence():
    generator = np.random.default_rng(1)
    estimator = ScaleEstimator()
    for stamp in np.arange(0, 60, 0.1):
        estimator.add(Observation(stamp, generator.uniform(-1.5, 1.5), 0.03))
        estimate = estimator.estimate(stamp)
    assert not estimate.known
    assert estimate.confidence < 0.5


def test_confidence_is_the_probability_of_an_accurate_scale():
    """Over 300 runs with errors that are correlated over a second: the share within 5 % agrees with the confidence."""
    generator = np.random.default_rng(2)
    confidences, hits = [], []
    for spread in np.linspace(0.05, 0.3, 300):
        estimator = ScaleEstimator()
        error, values = generator.normal(), []
        for stamp in np.arange(0, generator.uniform(2, 20), 0.2):
            error = math.exp(-0.4) * error + math.sqrt(1 - math.exp(-0.8)) * generator.normal()
            estimator.add(Observation(stamp, spread * error, 0.03))
            values.append(spread * error)
        confidences.append(estimator.estimate(stamp).confidence)
        hits.append(abs(robust_centre(np.array(values), np.ones(len(values)))[0]) < math.log(1.05))
    confidences, hits = np.array(confidences), np.array(hits)
    order = confidences.argsort()
    for third in np.array_split(order, 3):
        assert hits[third].mean() == pytest.approx(confidences[third].mean(), abs=0.15)
    assert confidences[order[:100]].mean() < 0.5 < 0.7 < confidences[order[200:]].mean()


def test_confidence_decreases_without_observations():
    estimator = ScaleEstimator()
    for stamp in np.arange(0, 30, 0.2):
        estimator.add(Observation(stamp, 0.5 + 0.1 * math.sin(7 * stamp), 0.03))
        fresh = estimator.estimate(stamp)
    old = [estimator.estimate(30 + wait).confidence for wait in (30, 90, 300)]
    assert fresh.known and fresh.confidence > 0.9
    assert fresh.confidence > old[0] > old[1] > old[2] and old[2] < 0.1
    later = estimator.estimate(1e5)
    assert later.known and later.factor == pytest.approx(math.exp(0.5), rel=0.02)


def test_drift_is_followed_without_jumps():
    """The unit of length grows by 20 % in 200 s; a fifth of the observations has a larger error."""
    generator = np.random.default_rng(3)
    estimator = ScaleEstimator()
    before = None
    for stamp in np.arange(0, 260, 0.5):
        true = 0.2 * min(stamp / 200, 1.0)
        outlier = generator.uniform(-1, 0.3) if generator.random() < 0.2 else 0.0
        estimator.add(Observation(stamp, true + outlier + generator.normal(0, 0.05), 0.03))
        estimate = estimator.estimate(stamp)
        if estimate.known:
            assert abs(math.log(estimate.factor) - true) < 0.05
            if before is not None:
                assert abs(math.log(estimate.factor / before)) <= MAX_RATE * 0.5 + 1e-9
            before = estimate.factor
    assert math.log(estimate.factor) == pytest.approx(0.2, abs=0.015)


def test_a_remembered_factor_holds_until_there_is_evidence():
    estimator = ScaleEstimator(2.0)
    assert estimator.estimate(0.0, 1.3).factor == pytest.approx(2.0) and estimator.estimate(0.0).known
    new, before = ScaleEstimator(), 2.0
    for stamp in np.arange(0, 100, 0.5):
        for one in (estimator, new):
            one.add(Observation(stamp, math.log(2.2), 0.03))
        estimate, evident = estimator.estimate(stamp, 1.3), new.estimate(stamp, 1.3).known
        assert estimate.known and (evident or estimate.factor == pytest.approx(2.0))
        assert abs(math.log(estimate.factor / before)) <= MAX_RATE * 0.5 + 1e-9
        before = estimate.factor
    assert evident and before == pytest.approx(2.2)


def test_no_jump_after_a_pause():
    estimator = ScaleEstimator()
    for index in range(20):
        estimator.add(Observation(float(index), 0.0, 0.03))
    assert estimator.estimate(20.0).factor == 1.0
    for index in range(60):
        estimator.add(Observation(1000.0 + index, math.log(2), 0.03))
    before = 1.0
    for stamp in (1060.0, 2000.0, 2000.5):
        after = estimator.estimate(stamp).factor
        assert before < after < before * 1.011, "the scale jumps"
        before = after


def test_a_lasting_change_is_followed_and_a_short_one_is_not():
    estimator = ScaleEstimator()

    def feed(start, seconds, value):
        for stamp in np.arange(start, start + seconds, 0.5):
            estimator.add(Observation(stamp, value + 0.03 * math.sin(5 * stamp), 0.03))
            estimate = estimator.estimate(stamp)
        return math.log(estimate.factor)

    assert feed(0, 30, 0.0) == pytest.approx(0.0, abs=0.01)
    assert feed(30, 6, -0.5) == pytest.approx(0.0, abs=0.03)  # a person stands in front of the sensor
    assert feed(36, 20, 0.0) == pytest.approx(0.0, abs=0.02)
    assert feed(56, 100, 0.3) == pytest.approx(0.3, abs=0.02)
