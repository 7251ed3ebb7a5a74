"""Sequences of frames with ground truth, rendered or from disk, as input of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from raymap3r_ros import synthetic
from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import intrinsics_doubt, intrinsics_problem
from raymap3r_ros.synthetic import SUITES, suite_sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One image and its ground truth. Maps have the image's size; None if the data set has none for the frame."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    stamp: float  # seconds
    depth: np.ndarray | None = None  # (h, w) float32 metres along the optical axis, 0 where unknown
    static_depth: np.ndarray | None = None  # the same without moving objects
    moving: np.ndarray | None = None  # (h, w) bool
    pose: np.ndarray | None = None  # (4, 4) float64 camera to world, optical frame (x right, y down, z forward)
    intrinsics: np.ndarray | None = None  # (3, 3) float64 pixels, pixel centres integer
    room: int = 0  # whose world frame the pose is in
    jumps: int = 0  # how often the camera has been carried to another place before


@dataclass(frozen=True)
class PosedSequence:
    """Frames in order. Each call of `frames()` starts at the first one and reads or renders them one by one."""

    name: str
    length: int
    frames: Callable[[], Iterator[Frame]] = field(repr=False)
    unposed: int = 0  # images that were left out because they have no pose
    unit_hint: str = ""  # what to check if depth is about a fifth of the prediction; "" if its unit is certain
    kidnapped: bool = False  # the camera is carried to other places and back
    sessions: bool = False  # and each stay is a session, which begins with the saved world of the first one
    # Distance (N,) of points (N, 3) in the world from the nearest static surface, metres; None if it is not known
    surface_distance: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)


def checked_frames(sequence: PosedSequence) -> Iterator[Frame]:
    """Yield the frames of a sequence. Doubtful intrinsics of the first one are logged as a warning.

    Raises InputError for intrinsics that cannot belong to their image.
    """
    for index, frame in enumerate(sequence.frames()):
        if frame.intrinsics is not None:
            size = frame.image.shape[1], frame.image.shape[0]
            if problem := intrinsics_problem(frame.intrinsics, size):
                raise InputError(
                    f"{sequence.name}: intrinsics of frame {index} cannot be used: {problem}; correct the camera file"
                )
            if not index and (doubt := intrinsics_doubt(frame.intrinsics, size)):
                log.warning("%s: the intrinsics are probably wrong: %s", sequence.name, doubt)
        yield frame


def known_depth(depth: np.ndarray) -> np.ndarray:
    """Depth (h, w) metres as float32, 0 where it is not finite or not positive."""
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def with_known_depth(frame: synthetic.Frame) -> Frame:
    """A frame that was rendered or composited, see `known_depth`."""
    return Frame(
        frame.image,
        frame.stamp,
        known_depth(frame.depth),
        known_depth(frame.static_depth),
        frame.moving,
        frame.pose,
        frame.intrinsics,
        frame.room,
        frame.jumps,
    )


def synthetic_sequence(suite: str, index: int, *, world: str, size: tuple[int, int], device: str) -> PosedSequence:
    """Sequence `index` of a rendered suite, images of `size` (height, width). Raises OptionError for unknown names."""
    rendered = suite_sequence(suite, index, world=world, size=size, device=device)

    def frames() -> Iterator[Frame]:
        return map(with_known_depth, rendered.frames())

    return PosedSequence(
        rendered.name,
        rendered.length,
        frames,
        surface_distance=rendered.surface_distance,
        kidnapped=len(rendered.stays) > 1,
        sessions=SUITES[suite].sessions,
    )
