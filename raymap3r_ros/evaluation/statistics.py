"""Confidence intervals of means over sequences, and correlations.

NaN means that a figure is undefined for a sequence; such values are ignored everywhere.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from raymap3r_ros.errors import InputError, Raymap3rError


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def optional_module(name: str) -> ModuleType:
    """Import a library that only the evaluation needs.

    Raises Raymap3rError with the command to install it if it is missing.
    """
    try:
        try:
            return importlib.import_module(name)
        except ValueError:
            # Matplotlib refuses a backend that is not installed, such as the one that Jupyter sets for its commands.
            # Pictures that go to files need none.
            backend = os.environ.pop("MPLBACKEND", None)
            if backend is None:
                raise
            try:
                return importlib.import_module(name)
            finally:
                os.environ["MPLBACKEND"] = backend
    except ModuleNotFoundError as error:
        raise Raymap3rError(
            f"{error.name} is not installed; the evaluation needs it: pip install evo scipy matplotlib"
        ) from error


def bootstrap_mean(values: np.ndarray, *, seed: int = 0, samples: int = 2000, level: float = 0.95) -> Interval:
    """Mean of values (n,), one per sequence, and its interval by the percentile bootstrap over sequences.

    Everything is NaN without values; the interval is also NaN for a single value.
    """
    values = _finite_or_nan(values)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    return _interval(values, _resampled_means(values, seed, samples), level)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[Interval, float]:
    """Mean of a - b over the same sequences (n,) with its interval, and the probability that a's mean is below b's.

    The probability is the share of resamplings of the sequences in which it is below; a tie counts half. Sequences
    with NaN in either are ignored; with fewer than two left the probability is NaN.
    """
    a, b = _pairs(a, b)
    if not len(a):
        return Interval(np.nan, np.nan, np.nan), np.nan
    means = _resampled_means(a - b, seed, samples)
    below = float(np.mean(means < 0) + np.mean(means == 0) / 2) if len(a) > 1 else np.nan
    return _interval(a - b, means, level), below


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of x and y (n,); NaN for fewer than three pairs or if either is constant."""
    x, y = _pairs(x, y)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(optional_module("scipy.stats").spearmanr(x, y)[0])


def _resampled_means(values: np.ndarray, seed: int, samples: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    return values[drawn].mean(axis=1)


def _interval(values: np.ndarray, means: np.ndarray, level: float) -> Interval:
    if len(values) == 1:
        return Interval(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values.mean()), float(low), float(high))


def _pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite_or_nan(x), _finite_or_nan(y)
    if x.shape != y.shape:
        raise InputError(f"{len(x)} values against {len(y)}; expected pairs of the same sequences in the same order")
    both = ~(np.isnan(x) | np.isnan(y))
    return x[both], y[both]


def _finite_or_nan(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or np.isinf(values).any():
        raise InputError(f"values of shape {values.shape}; allowed: one number per sequence, finite or NaN")
    return values
