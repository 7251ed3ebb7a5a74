"""Where images wait for the worker: one slot that the newest image takes, or a bounded queue of all of them."""

from __future__ import annotations

import enum
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from raymap3r_ros.geometry.calibration import Calibration

DEPTH = 100  # images that may wait in every-frame mode


@dataclass(frozen=True)
class WaitingFrame:
    """An image message on its way to the worker."""

    message: Any
    stamp: Any  # builtin_interfaces/Time that everything made from this image will carry
    arrival: float  # seconds of the monotonic clock
    scene: int  # counts up at every jump of the stamps: the worker starts a new scene where it changes
    calibration: Calibration | None = None  # that was in force when it arrived: a newer one belongs to later images


class PutResult(enum.Enum):
    """What became of a frame that was put into the queue."""

    WAITING = "waiting"
    REPLACING = "replacing an older one, which is dropped"
    OVERFLOW = "lost, because the queue was full"
    CLOSED = "lost, because nobody waits for frames any more"


class FrameQueue:
    """Passes frames from the subscription to the worker; every method may be called from any thread."""

    def __init__(self, every_frame: bool = False, depth: int = DEPTH) -> None:
        self._every_frame = every_frame
        self._depth = depth if every_frame else 1
        self._frames: deque[WaitingFrame] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: WaitingFrame) -> PutResult:
        """Let a frame wait, and say what came of it. Never blocks."""
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
        """The oldest waiting frame, as soon as there is one; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed)
            return None if self._closed else self._frames.popleft()

    def close(self) -> int:
        """End all waiting; returns how many frames were still there and are forgotten."""
        with self._changed:
            self._closed = True
            left = len(self._frames)
            self._frames.clear()
            self._changed.notify_all()
            return left
