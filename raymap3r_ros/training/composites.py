"""Sequences of the held-out part of a recording, with rendered movers and exact masks, to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raymap3r_ros.synthetic import Frame
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training.recording import Recording

_SHARES = (0.02, 0.5)  # mean share of moving pixels of a sequence with movers
_TRIES = 50  # seeds among which one with such a share is selected
_SMALL = (24, 32)  # H, W at which the share is estimated


@dataclass(frozen=True)
class CompositedSequence:
    """The frames of a recording from `first` on, in order or `backwards`, as recorded or with movers."""

    name: str
    recording: Recording
    size: tuple[int, int]  # H, W
    first: int  # frame of the recording
    movers: int | None = None  # seed; None: as recorded
    many: bool = False  # movers
    backwards: bool = False

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.recording.images) - self.first

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels of the images, pixel centres integer."""
        fx, fy, cx, cy = self.recording.camera.double().numpy() * (*self.size[::-1], *self.size[::-1])
        return np.array(((fx, 0, cx - 0.5), (0, fy, cy - 0.5), (0, 0, 1)))

    def frames(self) -> Iterator[Frame]:
        """All frames; stamps are seconds since the first one. Depth of 0 is unknown."""
        seen = self.recording.in_order(self.size, first=self.first, movers=self.movers, many=self.many)
        columns = (seen.image, seen.depth, seen.static_depth, seen.moving, seen.pose.double())
        arrays = [column[0].numpy() for column in columns]
        stamps = self.recording.stamp[self.first :].double()
        order = range(self.length)[:: -1 if self.backwards else 1]
        for index in order:
            stamp = float((stamps[index] - stamps[order[0]]).abs())
            yield Frame(*(array[index] for array in arrays), self.intrinsics, stamp)


def composited_sequences(recording: Recording, size: tuple[int, int], count: int) -> list[CompositedSequence]:
    """`count` sequences with movers of the held-out part at H x W pixels; for 0, one as recorded.

    Every second one has many movers, and is played backwards: the controls of the evaluation compare a sequence with
    the rays of its neighbour, which then show another view.
    """
    first = recording.trained
    if not count:
        return [CompositedSequence("recorded-00", recording, size, first)]
    return [
        CompositedSequence(
            f"movers-{index:02d}",
            recording,
            size,
            first,
            find_movers(recording, first, EVALUATION_SEEDS + _TRIES * index, many=bool(index % 2)),
            many=bool(index % 2),
            backwards=bool(index % 2),
        )
        for index in range(count)
    ]


def find_movers(recording: Recording, first: int, seed: int, *, many: bool) -> int:
    """The first of some seeds, from `seed` on, whose movers cover neither almost nothing nor most of the images.

    If none does, the one with the share of moving pixels that is nearest to the middle of the allowed ones.
    """
    low, high = _SHARES
    distances = {}
    for candidate in range(seed, seed + _TRIES):
        seen = recording.in_order(_SMALL, first=first, movers=candidate, many=many)
        share = float(seen.moving.float().mean())
        if low <= share <= high:
            return candidate
        distances[candidate] = abs(share - (low + high) / 2)
    return min(distances, key=distances.get)
