"""The range sensors of one topic, of which the metric scale uses one that points where the camera points."""

from __future__ import annotations

import threading
import time

from builtin_interfaces.msg import Time

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale import MetricScale, RangeReading
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.tf_frames import MOUNT_AGE, LookUp, TransformError
from raymap3r_ros.text import listing

RECENT = 5.0  # seconds without a reading after which another sensor may take over
_MOST = 16  # sensors that are looked up
_NAMED = 4


class Rangers:
    """Passes the readings of one sensor to the metric scale. `add` may be called from any thread."""

    def __init__(self, scale: MetricScale, look_up: LookUp, reporter: Reporter) -> None:
        """`look_up` returns the pose of a child frame in a parent frame, see `tf_frames.look_up`."""
        self._scale = scale
        self._look_up = look_up
        self._reporter = reporter
        self._used = ""  # frame of the sensor whose readings are used, at first of the first one
        self._seen: dict[str, float] = {}  # time of the last reading, by frame
        self._lock = threading.Lock()

    def add(self, reading: RangeReading, frame: str) -> None:
        """Add a reading of the sensor with this TF frame."""
        with self._lock:
            if frame in self._seen or len(self._seen) < _MOST:
                self._seen[frame] = time.monotonic()
            self._used = self._used or frame
            if frame == self._used:
                self._scale.add_range(reading)

    def mount(self, camera_frame: str, stamp: Time) -> None:
        """Look up where the sensor is, and use another one if it does not point where the camera points.

        Raises InputError if none does. Where TF does not contain a sensor, its last known mount stays in use.
        """
        with self._lock:
            now = time.monotonic()
            self._seen = {frame: seen for frame, seen in self._seen.items() if now - seen < RECENT}
            frames = sorted(self._seen, key=lambda frame: frame != self._used)
        problem = None
        for frame in frames:
            try:
                self._scale.mount_ranger(self._look_up(camera_frame, frame, stamp, MOUNT_AGE))
            except TransformError:
                continue
            except InputError as error:
                problem = error
                continue
            problem = None
            self._use(frame)
            break
        else:
            if frames and self._used not in frames:  # it is silent
                self._use(frames[0])
        self._reporter.stand("rangers", self._mix(frames))
        if problem is not None:
            raise problem

    def _use(self, frame: str) -> None:
        with self._lock:
            if frame != self._used:
                self._used = frame
                self._scale.drop_ranges()

    def _mix(self, frames: list[str]) -> str:
        if len(frames) < 2:
            return ""
        names = listing(sorted(frames), _NAMED)
        return (
            f"the readings on `range` come from several sensors, with the frame_ids {names}: only those of "
            f"{self._used} are used; give each sensor a topic of its own, and remap `range` to the one that points "
            "where the camera points"
        )
