"""Comparison of computed values with expected ones, and the tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Allowed errors (see `error_of`) of values that carry over from frame to frame, and of all others. They are about five
# times the largest error of all runs of the golden network on a CPU with AVX-512:
#
#   float32     2.5e-6, 1.8e-6  with two threads, without oneDNN, with unfused attention; allowed is more, because a
#                               GPU sums in another order and has other elementary functions
#   TF32        4.7e-3, 1.8e-3  inputs and weights of convolutions rounded to ten bits, as a GPU does it
#   bfloat16    8.6e-2, 1.1e-2  motion_filter, where pixels of the dynamic mask change; other rules a tenth
#   float16     4.1e-3, 1.0e-3  the same
TOLERANCES = {
    "float32": (1e-4, 1e-4),
    "TF32": (2.5e-2, 1e-2),
    "bfloat16": (0.4, 6e-2),
    "float16": (2e-2, 5e-3),
}
CARRIED = ("position", "gate", "state")


@dataclass(frozen=True)
class Difference:
    """The value that differs most."""

    name: str  # RUN/VALUE
    error: float  # relative; NaN if a value is not finite
    allowed: float

    @property
    def is_allowed(self) -> bool:
        """Whether the error is small enough; False for NaN."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        what = "not finite" if math.isnan(self.error) else f"relative error {self.error:.1e}"
        return f"{what} in {self.name}, allowed {self.allowed:.0e}"


def error_of(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, relative to the root mean square of what is expected.

    NaN if a value is not finite; infinite if the shapes differ.
    """
    if found.shape != expected.shape:
        return math.inf
    if not np.isfinite(found).all():
        return math.nan
    size = float(np.sqrt(np.square(expected, dtype=np.float64).mean()))
    difference = np.square(found.astype(np.float64) - expected)
    return float(np.sqrt(difference.mean())) / max(size, 1e-12)


def largest_difference(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], kind: str) -> Difference:
    """The largest error of all values in shares of its tolerance, or the first value that is not finite.

    `kind` is a key of TOLERANCES. A value that is missing has an infinite error.
    """
    worst, share = None, -1.0
    for name, values in expected.items():
        allowed = TOLERANCES[kind][name.rpartition("/")[2] not in CARRIED]
        error = error_of(found[name], values) if name in found else math.inf
        if math.isnan(error):
            return Difference(name, error, allowed)
        if error / allowed > share:
            worst, share = Difference(name, error, allowed), error / allowed
    if worst is None:
        raise ValueError("there is nothing to compare")
    return worst
