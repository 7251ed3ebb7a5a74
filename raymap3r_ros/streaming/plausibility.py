"""Whether the weights fit the images: how confident both branches are, and how well they agree.

A network that was not trained for the images still predicts smooth depth, but with little confidence, and its two
branches, of which one has never seen the current image, predict different depths. The limits belong to the weights.
`raymap3r evaluate plausibility` measures them on images that the weights fit, and stores them in the metadata.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.network.metadata import check_keys, check_number, measured_entry
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.staticness import quantile

METADATA_KEY = "plausibility"  # of a checkpoint; the value is the JSON of PlausibilityLimits
WINDOW = 20  # frames that a judgement is the mean of
MIN_FRAMES = 10  # of the window that must have arrived
_LARGEST = 100.0  # limit in a checkpoint


def plausibility(
    confidence: Tensor, ray_confidence: Tensor, depth: Tensor, ray_depth: Tensor, method: Method
) -> Tensor:
    """(B, 3) confidence, ray confidence and disagreement of a frame, from maps (B, H, W); see PlausibilityLimits.

    Movers lower the confidence and raise the disagreement where they are: the better part of the image counts.
    """
    height, width = depth.shape[1:]
    step = max(1, round((height * width / method.plausibility_samples) ** 0.5))
    sure, ray_sure, near, ray_near = (
        values[:, ::step, ::step].flatten(1) for values in (confidence, ray_confidence, depth, ray_depth)
    )
    disagreement = (ray_near.clamp_min(1e-6) / near.clamp_min(1e-6)).log().abs()
    ordered = torch.stack((sure.log(), ray_sure.log(), disagreement), dim=1).sort(dim=2).values
    shares = method.plausibility_shares
    return torch.stack([quantile(ordered[:, index], share) for index, share in enumerate(shares)], dim=1)


@dataclass(frozen=True)
class PlausibilityLimits:
    """Limits for means over WINDOW frames, beyond which the weights do not fit the images."""

    confidence: float  # lowest log of the main branch's confidence, 90th percentile of the image
    ray_confidence: float  # lowest log of the ray branch's confidence, median of the image
    disagreement: float  # highest |log of the ratio of both depths|, 25th percentile of the image

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, str], source: str = "the checkpoint") -> PlausibilityLimits | None:
        """The limits in a checkpoint's metadata; None if it has none.

        `source` names the checkpoint in errors. Raises CheckpointError if the metadata is malformed.
        """
        return measured_entry(manifest, METADATA_KEY, source, "limits", cls._parse)

    @classmethod
    def _parse(cls, values: Any) -> PlausibilityLimits:
        check_keys(values, [field.name for field in dataclasses.fields(cls)])
        for name, value in values.items():
            check_number(name, value, 0, _LARGEST)
        return cls(**values)

    def to_json(self) -> str:
        """JSON for the metadata of a checkpoint; `from_manifest` reads it."""
        return json.dumps(dataclasses.asdict(self))

    def exceeded(self, means: np.ndarray) -> bool:
        """Whether both confidence and agreement of (3,) means are beyond the limits of the weights."""
        confidence, ray_confidence, disagreement = means.tolist()
        return (confidence < self.confidence or ray_confidence < self.ray_confidence) and (
            disagreement > self.disagreement
        )


class PlausibilityCheck:
    """Judges frame by frame whether the weights fit the images of one stream. Without limits it judges nothing."""

    def __init__(self, limits: PlausibilityLimits | None) -> None:
        self.limits = limits
        self.judged = 0  # frames
        self.implausible = 0  # of them
        self.problem = ""  # what is implausible about the last frames; "" if nothing is
        self._window: deque[np.ndarray] = deque(maxlen=WINDOW)

    @classmethod
    def of(cls, manifest: Mapping[str, str], source: str) -> PlausibilityCheck:
        """The check of a checkpoint, see `PlausibilityLimits.from_manifest`."""
        return cls(PlausibilityLimits.from_manifest(manifest, source))

    def add(self, values: np.ndarray | None) -> bool:
        """Add the (3,) values of a frame, None without the ray branch; return whether it is the first implausible one.

        Values that are not finite do not count.
        """
        if self.limits is None or values is None or not np.isfinite(values).all():
            return False
        self._window.append(values.astype(np.float64))  # a copy: arrays from a GPU share one buffer
        if len(self._window) < MIN_FRAMES:
            return False
        means = np.mean(self._window, axis=0)
        self.problem = _describe(means, self.limits) if self.limits.exceeded(means) else ""
        self.judged += 1
        self.implausible += bool(self.problem)
        return bool(self.problem) and self.implausible == 1

    @property
    def share(self) -> float | None:
        """Share of the judged frames that are plausible; None before the first one."""
        return 1 - self.implausible / self.judged if self.judged else None

    @property
    def verdict(self) -> str:
        """Whether the weights fit the last frames: "yes", "no", or "unknown"."""
        return ("no" if self.problem else "yes") if self.judged else "unknown"


def _describe(means: np.ndarray, limits: PlausibilityLimits) -> str:
    confidence, ray_confidence, disagreement = np.exp(means)
    lowest, ray_lowest, highest = (math.exp(value) for value in dataclasses.astuple(limits))
    return (
        f"the weights do not fit these images, poses and depth are meaningless: confidence {confidence:.2f} (where "
        f"they fit, at least {lowest:.2f}), of the ray branch {ray_confidence:.2f} ({ray_lowest:.2f}), the depths of "
        f"both branches differ by a factor of {disagreement:.2f} (at most {highest:.2f}); use weights for this scene, "
        "see docs/weights.md"
    )
