"""Running estimate of the scale factor from observations with outliers."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from raymap3r_ros.geometry.weighted_median import weighted_median
from raymap3r_ros.mapping.scale.method import (
    CORRELATION,
    CUTOFF,
    KNOWN_CONFIDENCE,
    KNOWN_VOTES,
    MAX_OBSERVATIONS,
    MAX_PAUSE,
    MAX_RATE,
    MEMORY,
    TOLERANCE,
)
from raymap3r_ros.mapping.scale.source import Observation


@dataclass(frozen=True)
class ScaleEstimate:
    """The factor to use at a time, and its reliability.

    `confidence` is the probability that the factor is within 5 %, judged by the spread of the observations. It does
    not include errors that all observations share, such as a wrong wheel radius. It decays while no observation
    arrives. `known` is true once there was enough evidence, until a reset.
    """

    factor: float  # metres per network unit
    known: bool  # False: `factor` is the option's value
    confidence: float  # 0..1
    observations: int  # number in memory
    spread: float  # robust standard deviation of a single observation's logarithm; NaN without any

    def facts(self, source: str) -> dict[str, object]:
        """Return the entries for the diagnostics, for a value of `scale.source`."""
        if source == "fixed":
            return {"scale": f"{self.factor:.4g} (fixed)"}
        return {
            "scale": f"{self.factor:.4g} ({f'from {source}' if self.known else f'assumed, waiting for {source}'})",
            "scale confidence": round(self.confidence, 3),
            "scale observations": self.observations,
            "scale spread of one": round(self.spread, 3),
        }


class ScaleEstimator:
    """A running estimate from the observations of one source in one world. Most observations must be inliers."""

    def __init__(self, factor: float | None = None) -> None:
        """`factor`: known from an earlier session; it is used until there is as much evidence as for a new one."""
        # Stamp, logarithm, deviation, and the number of independent observations that it counts as.
        self._observations: deque[tuple[float, float, float, float]] = deque(maxlen=MAX_OBSERVATIONS)
        self._log_factor = None if factor is None else math.log(factor)
        self._remembered = factor is not None  # and not yet confirmed
        self._stamp = -math.inf

    def add(self, observation: Observation) -> None:
        """Add an observation; stamps must not decrease. One that is not plausible is dropped."""
        if not observation.plausible:
            return
        last = self._observations[-1][0] if self._observations else -math.inf
        votes = min(1.0, max(0.0, observation.stamp - last) / CORRELATION)
        self._observations.append((observation.stamp, observation.log_scale, observation.deviation, votes))

    def estimate(self, stamp: float, default: float = 1.0) -> ScaleEstimate:
        """Return the estimate at `stamp` seconds; its factor is `default` until the factor is known."""
        if not self._observations:
            factor = default if self._log_factor is None else math.exp(self._log_factor)
            return ScaleEstimate(factor, self._remembered, 0.0, 0, math.nan)
        stamps, values, deviations, shares = np.array(self._observations).T
        age = np.maximum(stamp - stamps, 0)
        freshness = np.exp(-(age - age.min()) / MEMORY)  # relative to the newest, so that not all weights vanish
        centre, spread = robust_centre(values, freshness / deviations**2)
        spread = max(spread, float(np.median(deviations)))
        votes = float((np.exp(-age / MEMORY) * shares).sum())
        error = spread / math.sqrt(votes) if votes > 0 else math.inf
        confidence = math.erf(TOLERANCE / (error * math.sqrt(2)))

        enough = votes >= KNOWN_VOTES and confidence >= KNOWN_CONFIDENCE
        self._remembered = self._remembered and not enough
        if self._log_factor is not None and not self._remembered:
            step = MAX_RATE * min(max(stamp - self._stamp, 0.0), MAX_PAUSE)
            self._log_factor += min(max(centre - self._log_factor, -step), step)
        elif enough:
            self._log_factor = centre
        self._stamp = stamp
        known = self._log_factor is not None
        factor = math.exp(self._log_factor) if known else default
        return ScaleEstimate(factor, known, confidence, len(values), spread)


def robust_centre(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the centre and the robust standard deviation of values (N,) with weights (N,) above 0.

    Starts from the weighted median and the median distance from it, then iterates Tukey's biweight (Mosteller and
    Tukey 1977). Outliers that are all on one side shift a median, but not the biweight.
    """
    data, weight = torch.from_numpy(values)[None], torch.from_numpy(weights)[None]
    centre = weighted_median(data, weight).item()
    for _ in range(5):
        spread = 1.4826 * weighted_median((data - centre).abs(), weight).item()
        if spread == 0:
            break
        share = weights * np.maximum(1 - ((values - centre) / (CUTOFF * spread)) ** 2, 0) ** 2
        centre = float(share @ values / share.sum())
    return centre, spread
