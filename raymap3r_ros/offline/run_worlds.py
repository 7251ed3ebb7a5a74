"""The worlds of a run: which of the written frames belong to each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from raymap3r_ros.offline.result_folder import numbered
from raymap3r_ros.streaming import StepResult


@dataclass(frozen=True)
class WorldSpan:
    """Successive written frames of one world."""

    world: int  # from 1, as in the names of its files
    first: int  # index of the first written frame
    frames: int


@dataclass
class RunWorlds:
    """The worlds of a run, numbered from 1 in the order of their first written frames.

    A world has several spans if the camera was found in it again.
    """

    saved: int | None = None  # number of the stream's world that comes from a file
    of_frames: list[int] = field(default_factory=list)  # number of the world of each written frame
    given: list[int] = field(default_factory=list)  # numbers of worlds that are the frame of known poses
    returns: int = 0  # how often the camera was found again in an earlier world
    _numbers: dict[int, int] = field(default_factory=dict)  # of the stream's worlds
    _last: dict[int, int] = field(default_factory=dict)  # last stamp of each of the stream's worlds, nanoseconds

    def is_late(self, result: StepResult, nanoseconds: int) -> bool:
        """Whether the stamp of a frame is not above the last one in its world."""
        return result.world in self._last and nanoseconds <= self._last[result.world]

    def add(self, result: StepResult, nanoseconds: int) -> bool:
        """Add a written frame; return whether it is the first one after the camera was found in an earlier world."""
        if result.pose_given and result.world not in self._numbers:
            self.given.append(len(self._numbers) + 1)
        known = result.world in self._numbers or result.world == self.saved
        number = self._numbers.setdefault(result.world, len(self._numbers) + 1)
        returned = known and bool(self.of_frames) and number != self.of_frames[-1]
        self.returns += returned
        self.of_frames.append(number)
        self._last[result.world] = nanoseconds
        return returned

    def unfinished(self, result: StepResult) -> set[int]:
        """The numbers of the worlds that may get more frames: of the last frame, and those that may return."""
        return {self._numbers[world] for world in (result.world, *result.past_worlds) if world in self._numbers}

    @property
    def found(self) -> int | None:
        """The index of the first written frame in the world from the file; None if the camera was not found there."""
        number = self._numbers.get(self.saved)
        return None if number is None else self.of_frames.index(number)

    @property
    def count(self) -> int:
        """The number of worlds."""
        return len(self._numbers)

    @property
    def spans(self) -> list[WorldSpan]:
        """The frames of all worlds, in the order of the frames."""
        spans, first = [], 0
        for world, group in itertools.groupby(self.of_frames):
            frames = len(list(group))
            spans.append(WorldSpan(world, first, frames))
            first += frames
        return spans

    def frames_of(self, number: int) -> list[int]:
        """The indices of the written frames of a world."""
        return [index for index, world in enumerate(self.of_frames) if world == number]

    def name(self, name: str, number: int) -> str:
        """The name of a file of which each world has one."""
        return name if self.count == 1 else numbered(name, number)

    def names(self, name: str) -> Iterator[str]:
        """The names of such a file of all worlds."""
        return (self.name(name, number) for number in range(1, self.count + 1))
