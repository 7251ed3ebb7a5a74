"""One world for the cameras of a process that see the same place: parameter `shared_world`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import numpy as np

from raymap3r_ros.network import Network
from raymap3r_ros.node.localizer import PlacedFrame
from raymap3r_ros.streaming.state import WorldNumbers
from raymap3r_ros.streaming.world_files import SavedWorld


class SharedWorlds:
    """The cameras whose worlds are shared: each is searched for in the older worlds of the others.

    A world has one number in all streams, which it keeps when another camera is found in it.
    """

    def __init__(self) -> None:
        self.numbers = WorldNumbers()
        self.lock = threading.Lock()  # guards everything below
        self.cameras: list[SharingCamera] = []  # in the order in which they were configured
        self.ended: set[int] = set()  # numbers of worlds that a user has reset


class SharingCamera:
    """One of the cameras. From `__init__` to `leave` the others see its world. Thread-safe."""

    def __init__(
        self, together: SharedWorlds, network: Network, world_frame: str, current: Callable[[], SavedWorld | None]
    ) -> None:
        """`current` returns the camera's world with its place, and is called from the threads of other cameras."""
        self._together = together
        self._network = network
        self._world_frame = world_frame
        self._current = current
        self._number = -1  # of the world of its last placed frame
        with together.lock:
            together.cameras.append(self)

    def leave(self) -> None:
        """Share nothing any more."""
        with self._together.lock:
            self._together.cameras.remove(self)

    def end_world(self) -> None:
        """No other camera enters the camera's present world from now on."""
        with self._together.lock:
            self._together.ended.add(self._number)

    def worlds_of_others(self) -> list[SavedWorld]:
        """The present worlds of the cameras with the same network, each once."""
        with self._together.lock:
            others = [one for one in self._together.cameras if one is not self and one._network is self._network]
            ended = set(self._together.ended)
        # Not under the lock: another thread may need it to finish what `current` waits for.
        worlds = {world.number: world for one in others if (world := one._current()) is not None}
        return [world for number, world in worlds.items() if number not in ended]

    def link(self, placed: PlacedFrame, number: int) -> PlacedFrame:
        """Enter the world with this number, and link the camera's `world_frame` to the first camera's."""
        with self._together.lock:
            self._number = number
            first = next(one for one in self._together.cameras if one._number == number)
        if first is self or placed.placement is None:
            return placed
        transforms = (*placed.placement.transforms, (first._world_frame, self._world_frame, np.eye(4)))
        return dataclasses.replace(placed, placement=dataclasses.replace(placed.placement, transforms=transforms))
