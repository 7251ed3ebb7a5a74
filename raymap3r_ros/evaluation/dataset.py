"""The description of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raymap3r_ros.evaluation.sequences import PosedSequence


@dataclass(frozen=True)
class Dataset:
    """A data set and the ground truth that its frames can have; single frames may lack some of it."""

    name: str
    help: str
    load: Callable[[Path], list[PosedSequence]]
    depth_cap: float | None = None  # metres; larger depths are ignored in its tables
    has_depth: bool = False
    has_pose: bool = False
    has_mask: bool = False
    load_long: Callable[[Path], list[PosedSequence]] | None = None  # the longer sampling, if its tables have one
