"""The queue between the image subscription and the worker: the newest image only, or all images up to a limit."""

from __future__ import annotations

import enum
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from raymap3r_ros.geometry.calibration import Calibration

QUEUE_DEPTH = 100  # images that may wait in every-frame mode


@dataclass(frozen=True)
class WaitingFrame:
    """An image message on its way to the worker."""

    message: Any
    stamp: Any  # builtin_interfaces/Time of all outputs of this image
    arrival: float  # seconds of the monotonic clock
    jumps: int  # jumps of the stamps so far: where the number changes, the worker resets the stream
    clock: float = 0.0  # seconds of the node's clock at arrival, which a bag or a simulation can set back or forward
    calibration: Calibration | None = None  # at arrival: a calibration that arrives later is for later images


class PutResult(enum.Enum):
    """The result of `FrameQueue.put`."""

    WAITING = "waiting"
    REPLACING = "waiting in place of an older frame, which is dropped"
    OVERFLOW = "lost, because the queue is full"
    CLOSED = "lost, because the queue is closed"


class FrameQueue:
    """Passes frames from the subscription to the worker. All methods may be called from any thread."""

    def __init__(self, every_frame: bool = False, depth: int = QUEUE_DEPTH) -> None:
        self._every_frame = every_frame
        self._depth = depth if every_frame else 1
        self._frames: deque[WaitingFrame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._processing = False  # a frame that `get` returned
        self._ended = -math.inf  # when the last one was processed

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def last_work(self) -> float:
        """When the last frame was processed, seconds of the monotonic clock; now while frames wait or one is."""
        with self._changed:
            return time.monotonic() if self._frames or self._processing else self._ended

    def put(self, frame: WaitingFrame) -> PutResult:
        """Add a frame without blocking."""
        with self._changed:
            if self._closed:
                return PutResult.CLOSED
            full = len(self._frames) == self._depth
            if full and self._every_frame:
                return PutResult.OVERFLOW
            if full:
                self._frames.clear()
            self._frames.append(frame)
            self._changed.notify()
            return PutResult.REPLACING if full else PutResult.WAITING

    def get(self) -> WaitingFrame | None:
        """Wait for a frame and return the oldest one; None once the queue is closed.

        The frame that was returned before has then been processed.
        """
        with self._changed:
            if self._processing:
                self._processing, self._ended = False, time.monotonic()
            self._changed.wait_for(lambda: self._frames or self._closed)
            self._processing = not self._closed
            return None if self._closed else self._frames.popleft()

    def close(self) -> int:
        """End all waiting and drop the waiting frames; returns their number."""
        with self._changed:
            self._closed = True
            left = len(self._frames)
            self._frames.clear()
            self._changed.notify_all()
            return left
