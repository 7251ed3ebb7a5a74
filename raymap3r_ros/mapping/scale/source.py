"""The interface of a scale source, and the sources found in `sources/`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from raymap3r_ros.discovery import find_in_package
from raymap3r_ros.mapping.scale.method import MAX_DEVIATION, MAX_FACTOR
from raymap3r_ros.streaming import StepResult

if TYPE_CHECKING:
    from raymap3r_ros.mapping.scale.options import ScaleOptions


@dataclass(frozen=True)
class Observation:
    """One measurement of the scale factor."""

    stamp: float  # seconds
    log_scale: float  # logarithm of the factor
    deviation: float  # its standard deviation, as estimated by the source

    @property
    def plausible(self) -> bool:
        """Whether the numbers can be a measurement: the factor is within the limits of the option `scale.value`."""
        return (
            math.isfinite(self.stamp)
            and abs(self.log_scale) <= math.log(MAX_FACTOR)
            and 0 < self.deviation <= MAX_DEVIATION
        )


class ScaleSource:
    """A quantity of known metric size that frames are compared with. Stateful, for one stream.

    A subclass in a module of `sources/` becomes a value of the option `scale.source` by itself. Camera frames are
    optical (x right, y down, z forward), poses camera to world.
    """

    name: ClassVar[str]  # value of `scale.source`
    help: ClassVar[str]  # for the help text of `scale.source`
    uses_maps: ClassVar[bool]  # whether `measure` needs the dense maps of a frame, dynamic mask included

    @classmethod
    def check(cls, options: ScaleOptions) -> None:
        """Raise OptionError if an option that this source needs is missing."""

    def mount_camera(self, base_from_camera: np.ndarray) -> None:
        """Set the camera's pose (4, 4) in the robot's base frame."""

    def add(self, reading: Any) -> None:
        """Add a reading of the source's sensor."""

    def reset(self) -> None:
        """Drop what belongs to the previous world, whose unit of length may differ."""

    def measure(self, result: StepResult, min_confidence: float) -> Tensor | None:
        """Return what `observe` needs of a frame's maps as a small tensor on their device, without synchronising.

        None if nothing can be measured now. NaN in the tensor means that this frame shows nothing usable.
        """
        return None

    def observe(
        self, stamp: float, pose: np.ndarray, measured: np.ndarray | None, options: ScaleOptions
    ) -> list[Observation]:
        """Return the observations that became possible with a frame, in the order of their stamps.

        `stamp` in seconds; `pose` (4, 4) of the camera in network units; `measured` is the tensor from `measure` in
        host memory, None if there is none or if it is not finite.
        """
        raise NotImplementedError


def _is_source(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, ScaleSource) and value is not ScaleSource


def find_sources() -> dict[str, type[ScaleSource]]:
    """Return the classes of all sources by name."""
    found = find_in_package("raymap3r_ros.mapping.scale.sources", _is_source)
    return {source.name: source for source in found}
