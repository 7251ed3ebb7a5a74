"""What a part of the node keeps of earlier worlds, which continue if the camera is found in them again."""

from __future__ import annotations

from typing import Generic, TypeVar

from raymap3r_ros.streaming import StepResult

Kept = TypeVar("Kept")


class Worlds(Generic[Kept]):
    """Something that belongs to one world, for each of the worlds that may come back."""

    def __init__(self) -> None:
        self._number: int | None = None  # of the current world
        self._kept: dict[int, Kept] = {}

    @property
    def number(self) -> int | None:
        """The number of the current world; None before the first one."""
        return self._number

    def add(self, number: int, kept: Kept) -> None:
        """Keep something of a world that has not been entered yet, because it comes from a file."""
        self._kept[number] = kept

    def enter(self, result: StepResult, current: Kept) -> Kept | None:
        """Enter the world of a frame, and keep `current`, which belongs to the world that is left.

        Returns what was kept of the world entered; None if it is new. What can no longer be needed is dropped.
        """
        if self._number not in (None, result.world):  # segments that are not aligned are new worlds of one number
            self._kept[self._number] = current
        self._number = result.world
        found = self._kept.pop(self._number, None)
        self._kept = {number: kept for number, kept in self._kept.items() if number in result.past_worlds}
        return found
