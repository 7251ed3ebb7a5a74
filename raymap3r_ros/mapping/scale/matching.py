"""Matching of a sensor's samples with frames that arrive before or after them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from raymap3r_ros.mapping.scale.method import LATE, MAX_FRAMES, MAX_SAMPLES
from raymap3r_ros.mapping.scale.source import Observation


class Samples:
    """Samples of a sensor with increasing stamps, queried at the increasing stamps of frames."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Any]] = deque(maxlen=MAX_SAMPLES)

    def add(self, stamp: float, value: Any) -> None:
        """Add a sample. One that is late is dropped; one far in the past means that the clock was set back.

        A stamp that is not finite is ignored: all others would compare as late.
        """
        if not math.isfinite(stamp):
            return
        if self._samples and stamp <= self._samples[-1][0]:
            if stamp > self._samples[-1][0] - LATE:
                return
            self._samples.clear()
        self._samples.append((stamp, value))

    def clear(self) -> None:
        """Drop all samples."""
        self._samples.clear()

    def reach(self, stamp: float) -> bool:
        """Return whether there is a sample at or after `stamp`."""
        return bool(self._samples) and self._samples[-1][0] >= stamp

    def around(self, stamp: float) -> tuple[tuple[float, Any], tuple[float, Any]] | None:
        """Return the last sample at or before `stamp` and the first at or after it; None if one is missing.

        Drops older samples.
        """
        while len(self._samples) > 1 and self._samples[1][0] <= stamp:
            self._samples.popleft()
        if not self._samples or self._samples[0][0] > stamp:
            return None
        first = self._samples[0]
        if first[0] == stamp:
            return first, first
        return (first, self._samples[1]) if len(self._samples) > 1 else None


class FrameMatcher:
    """Frames that wait until the sensor's samples have reached their stamps, and are then compared with them."""

    def __init__(self, samples: Samples, compare: Callable[[float, Any], Observation | None]) -> None:
        """`compare` gets the stamp and the data of a frame once `samples` has reached it."""
        self._samples = samples
        self._compare = compare
        self._frames: deque[tuple[float, Any]] = deque(maxlen=MAX_FRAMES)

    def reset(self) -> None:
        """Drop the waiting frames."""
        self._frames.clear()

    def match(self, stamp: float, frame: Any) -> list[Observation]:
        """Add a frame; return the observations from it and from earlier frames that are now possible."""
        if not math.isfinite(stamp):  # it would wait forever, and the frames after it with it
            return []
        if self._frames and stamp < self._frames[-1][0] - LATE:
            self._frames.clear()  # the clock was set back
        self._frames.append((stamp, frame))
        found = []
        while self._frames and self._samples.reach(self._frames[0][0]):
            observation = self._compare(*self._frames.popleft())
            if observation is not None:
                found.append(observation)
        return found
