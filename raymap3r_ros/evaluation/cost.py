"""What a variant costs: passes of the decoder and memory of its stream. Both are equal on all machines."""

from __future__ import annotations

from typing import Any

from raymap3r_ros.network import Network
from raymap3r_ros.network.decoder import Decoded
from raymap3r_ros.streaming import Stream


class CountedNetwork:
    """A network whose passes of the decoder are counted: one for each image, or for all of a batch."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def decode(self, *arguments: Any, **named: Any) -> Decoded:
        """Same as `Network.decode`."""
        self.passes += 1
        return self._network.decode(*arguments, **named)


class Cost:
    """The cost of a variant whose streams have a `CountedNetwork` of their own, over the frames of a run.

    A run requests motion in a few frames only. The ray branch is counted in all frames in which a node with
    subscribers to the dynamic mask runs it.
    """

    def __init__(self) -> None:
        self._passes: list[int] = []
        self._bytes = 0

    def add(self, stream: Stream, frame: int, *, motion: bool) -> None:
        """Add the frame with this index, directly after it was processed, with or without `motion`."""
        counted = stream.network
        wanted, ran = (stream.plan(frame, motion=one).run_ray_branch for one in (True, motion))
        self._passes.append(counted.passes + wanted - ran)
        self._bytes = max(self._bytes, stream.kept_bytes)
        counted.passes = 0

    def values(self) -> dict[str, float]:
        """Passes per frame, most passes in a frame, and the largest memory, MB for each camera."""
        if not self._passes:
            return {}
        mean = sum(self._passes) / len(self._passes)
        return {"passes": mean, "most_passes": float(max(self._passes)), "stream_memory": self._bytes / 1e6}
