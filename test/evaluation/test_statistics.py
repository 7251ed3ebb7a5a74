"""Intervals and correlations against closed forms, and against scipy."""

import os
import subprocess
import sys

import numpy as np
import pytest

from raymap3r_ros.errors import InputError, Raymap3rError
from raymap3r_ros.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    optional_module,
    paired_bootstrap,
    spearman,
)


def test_interval_of_many_values_equals_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrow = bootstrap_mean(values, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 / 1.96 * half, rel=0.1)


def test_interval_agrees_with_scipy_on_few_skewed_values():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(2).exponential(1, 12)
    interval = bootstrap_mean(values, samples=20_000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, random_state=0
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_sequences_without_a_value_are_left_out():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    assert bootstrap_mean(values) == bootstrap_mean(values[[0, 2, 3]])
    assert bootstrap_mean(values).mean == 3
    one = bootstrap_mean(np.array([np.nan, 7.0]))
    assert one.mean == 7 and np.isnan(one.low) and np.isnan(one.high)
    assert np.isnan(list(vars(bootstrap_mean(np.array([np.nan]))).values())).all()
    assert np.isnan(bootstrap_mean(np.array([])).mean)


def test_same_seed_same_interval():
    values = np.random.default_rng(3).normal(size=20)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_pairing_removes_the_difficulty_of_the_sequences():
    rng = np.random.default_rng(4)
    difficulty = rng.normal(10, 5, 30)
    a = difficulty - 0.5 + rng.normal(0, 0.2, 30)
    interval, below = paired_bootstrap(a, difficulty)
    assert interval.mean == pytest.approx((a - difficulty).mean())
    assert interval.low < -0.5 < interval.high < 0
    assert interval.high - interval.low < 0.3 < bootstrap_mean(a).high - bootstrap_mean(a).low
    assert below == 1
    other_way, above = paired_bootstrap(difficulty, a)
    assert other_way == Interval(-interval.mean, pytest.approx(-interval.high), pytest.approx(-interval.low))
    assert above == 0


def test_probability_by_counting():
    # The mean of two draws from {-1, 3} is below 0 if both are -1: one case of four.
    _, below = paired_bootstrap(np.array([0.0, 3.0]), np.array([1.0, 0.0]), samples=20_000)
    assert below == pytest.approx(0.25, abs=0.02)
    _, same = paired_bootstrap(np.arange(5.0), np.arange(5.0))
    assert same == 0.5


def test_pairs_with_a_gap_are_left_out():
    interval, below = paired_bootstrap(np.array([1.0, np.nan, 3.0]), np.array([2.0, 0.0, np.nan]))
    assert interval.mean == -1 and np.isnan(interval.low) and np.isnan(below)
    with pytest.raises(InputError, match="2 values against 3"):
        paired_bootstrap(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("values", [np.array([1.0, np.inf]), np.zeros((2, 2))])
def test_anything_but_one_value_per_sequence_is_refused(values):
    with pytest.raises(InputError, match="one number per sequence"):
        bootstrap_mean(values)


def test_spearman_by_the_rank_formula():
    pytest.importorskip("scipy")
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 20, 3, 400, 50])
    squares = (np.array([1, 2, 3, 4, 5]) - np.array([1, 3, 2, 5, 4])) ** 2
    assert spearman(x, y) == pytest.approx(1 - 6 * squares.sum() / (5 * 24))
    assert spearman(x, -np.exp(x)) == pytest.approx(-1)
    assert spearman(np.append(x, np.nan), np.append(y, 7)) == pytest.approx(spearman(x, y))


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, np.nan], [1, 2, 3])])
def test_no_correlation_without_spread(x, y):
    assert np.isnan(spearman(np.array(x, float), np.array(y, float)))


def test_error_for_a_missing_library_contains_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "evo", None)
    with pytest.raises(Raymap3rError, match=r"evo is not installed.*pip install evo scipy matplotlib"):
        optional_module("evo")


def test_a_backend_that_is_not_installed_does_not_prevent_pictures():
    """Jupyter sets one for the commands that it runs."""
    pytest.importorskip("matplotlib")
    program = (
        "import os; from raymap3r_ros.evaluation.statistics import optional_module\n"
        "optional_module('matplotlib.figure').Figure(); print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "module://not_installed.backend\n", done.stderr
