"""Scale from a range sensor that points along the camera's optical axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale.matching import FrameMatcher, Samples
from raymap3r_ros.mapping.scale.method import (
    DEVIATION,
    LONGEST_LENS,
    MAX_AGE,
    MAX_MISALIGNMENT,
    MAX_MOVING,
    MIN_BEAM,
    MIN_USABLE,
    NEAR_DEPTH,
    NEAR_SHARE,
    SAMPLES_ACROSS,
    SPOT,
)
from raymap3r_ros.mapping.scale.source import Observation, ScaleSource
from raymap3r_ros.streaming import StepResult

if TYPE_CHECKING:  # options are built from the sources
    from raymap3r_ros.mapping.scale.options import ScaleOptions


@dataclass(frozen=True)
class RangeReading:
    """A sensor_msgs/Range of a sensor that points along the camera's optical axis. Metres and radians."""

    stamp: float  # seconds
    distance: float  # to the nearest surface in the beam; inf: none, -inf: too near (REP 117), NaN: invalid
    low: float  # limits of the sensor
    high: float
    field_of_view: float  # full angle of the beam

    @property
    def valid(self) -> bool:
        """Whether the reading is a measurement: without an echo, many sensors report their upper limit."""
        return math.isfinite(self.distance) and max(self.low, 0.0) < self.distance < self.high


class RangeSource(ScaleSource):
    """Compares the sensor's readings with the nearest distance in its beam, see `distance_ahead`."""

    name = "range"
    help = "a range sensor that points straight ahead"
    uses_maps = True

    def __init__(self) -> None:
        self._samples = Samples()
        self._matcher = FrameMatcher(self._samples, self._compare)
        self._beam: float | None = None  # full angle, radians; None before the first reading
        self._aligned = True  # the sensor points along the optical axis
        self._offset = 0.0  # metres along the optical axis from the camera's centre to the sensor's origin

    def mount_sensor(self, camera_from_sensor: np.ndarray) -> None:
        """Set the sensor's pose (4, 4) in the camera's optical frame. It measures along its own x axis.

        Raises InputError if it points in another direction; its readings cannot be used then.
        """
        angle = math.acos(np.clip(camera_from_sensor[2, 0], -1.0, 1.0))
        self._aligned = angle <= MAX_MISALIGNMENT
        if not self._aligned:
            raise InputError(
                f"the range sensor points {math.degrees(angle):.0f} degrees away from the camera's axis (along x of "
                f"its own frame); allowed: up to {math.degrees(MAX_MISALIGNMENT):.0f}"
            )
        self._offset = float(camera_from_sensor[2, 3])

    def add(self, reading: RangeReading) -> None:
        """Add a reading; one that is not a measurement only sets the beam."""
        self._beam = reading.field_of_view
        if reading.valid:
            self._samples.add(reading.stamp, reading)

    def drop(self) -> None:
        """Drop all readings, which were of another sensor."""
        self._samples.clear()
        self._beam = None

    def reset(self) -> None:
        self._matcher.reset()

    def measure(self, result: StepResult, min_confidence: float) -> Tensor | None:
        if self._beam is None or not self._aligned:
            return None
        return distance_ahead(result.points, result.confidence, result.dynamic_mask, self._beam, min_confidence)

    def observe(
        self, stamp: float, pose: np.ndarray, measured: np.ndarray | None, options: ScaleOptions
    ) -> list[Observation]:
        return [] if measured is None else self._matcher.match(stamp, measured)

    def _compare(self, stamp: float, measured: np.ndarray) -> Observation | None:
        pair = self._samples.around(stamp)
        if pair is None:
            return None
        nearest, reading = min(pair, key=lambda sample: abs(sample[0] - stamp))
        distance, uncertainty = (float(number) for number in measured)
        if abs(nearest - stamp) > MAX_AGE or not distance > 0 or not reading.distance + self._offset > 0:
            return None
        log_scale = math.log(reading.distance + self._offset) - math.log(distance)
        return Observation(stamp, log_scale, math.hypot(DEVIATION, uncertainty))


@torch.no_grad()
def distance_ahead(
    points: Tensor, confidence: Tensor, moving: Tensor, field_of_view: float, min_confidence: float
) -> Tensor:
    """Return (2,): the distance along the ray to the nearest surface in a beam about the optical axis, and its error.

    `points` (H, W, 3) camera frame, `confidence` (H, W), `moving` (H, W) bool, `field_of_view` the beam's full angle
    in radians. The distance is a low quantile, or for a beam up to SPOT the median over the nearest surface. The
    error, relative, is the difference of these two: small for a wall ahead, larger where a wide beam meets a slanted
    surface. NaN if too few pixels of the beam are usable, or if something moves in it: the network may miss what the
    sensor measures.
    """
    half = max(field_of_view, MIN_BEAM) / 2
    height, width = moving.shape
    # Sample the central part of the image that contains the beam. The focal length is only on the device, so assume
    # the longest lens.
    reach = math.ceil(max(math.tan(min(half, 1.5)) * LONGEST_LENS, 1 / 16) * max(height, width))
    rows, columns = (slice(max(0, side // 2 - reach), side // 2 + reach + 1) for side in (height, width))
    step = max(1, min(2 * reach, max(height, width)) // SAMPLES_ACROSS)
    points, confidence, moving = (
        item[rows, columns][::step, ::step].flatten(0, 1) for item in (points, confidence, moving)
    )
    distance = points.norm(dim=-1)
    inside = torch.isfinite(distance) & (distance > 0) & (points[:, 2] >= math.cos(half) * distance)
    usable = inside & (confidence >= min_confidence) & ~moving
    ordered = torch.where(usable, distance, torch.inf).sort().values
    number, total = usable.sum(), inside.sum()
    nearest = _pick(ordered, NEAR_SHARE * number)
    surface = (ordered <= nearest * NEAR_DEPTH).sum()
    middle = _pick(ordered, 0.5 * surface)
    distance = middle if field_of_view <= SPOT else nearest
    seen = (number >= MIN_USABLE * total) & ((inside & moving).sum() <= MAX_MOVING * total) & (number > 0)
    return torch.where(seen, torch.stack((distance, middle / nearest - 1)), torch.nan)


def _pick(ordered: Tensor, place: Tensor) -> Tensor:
    """Return the element () of a row (N,) at the index `place` (), without synchronising with the device."""
    return ordered.gather(0, place.long().clamp(max=len(ordered) - 1)[None])[0]
