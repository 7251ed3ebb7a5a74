"""Recordings as a sequence of frames, read one at a time.

A frame that cannot be decoded is skipped, logged as a warning and counted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from raymap3r_ros.discovery import find_in_package
from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import intrinsics_doubt, intrinsics_problem
from raymap3r_ros.output_files import kind_of
from raymap3r_ros.stamps import MAX_GAP

log = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 1e-6, 1e6  # frames per second


@dataclass(frozen=True)
class Frame:
    """One image of a recording."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    stamp: float  # seconds, as recorded
    intrinsics: np.ndarray | None  # (3, 3) pixels of `image`
    jumps: int = 0  # of the recorded stamps so far; each starts a new world, see `raymap3r_ros.stamps`
    recorded: int | None = None  # the stamp in nanoseconds, if it is recorded so

    @property
    def nanoseconds(self) -> int:
        """The stamp. As a float, seconds since 1970 are accurate to a microsecond."""
        return round(self.stamp * 1e6) * 1000 if self.recorded is None else self.recorded


class BrokenFrame(Exception):
    """A frame, or a message of a bag, that cannot be decoded. Internal: readers skip it."""


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a recording. Raises InputError for values out of range."""

    topic: str | None = None  # image topic of a bag
    rate: float = 30.0  # frames per second, for recordings without times
    stride: int = 1  # read every N-th frame
    max_frames: int | None = None
    intrinsics: np.ndarray | None = None  # (3, 3) pixels of the recorded images; overrides those of the recording
    max_gap: float = MAX_GAP  # longest step between two recorded stamps that starts no new world, seconds
    start: float = 0.0  # seconds from the start of the recording; frames before are not read
    end: float | None = None  # frames from here on are not read; None: to the end

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"stride is {self.stride}; allowed: 1 and more")
        if self.max_frames is not None and self.max_frames < 1:
            raise InputError(f"max_frames is {self.max_frames}; allowed: 1 and more")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise InputError(f"rate is {self.rate}; allowed: {MIN_RATE:g} to {MAX_RATE:g} frames per second")
        if not self.max_gap > 0:
            raise InputError(f"max_gap is {self.max_gap}; allowed: above 0 seconds")
        if not 0 <= self.start < math.inf:
            raise InputError(f"start is {self.start}; allowed: 0 and more, seconds from the start of the recording")
        if self.end is not None and not self.end > self.start:
            raise InputError(f"end is {self.end}; allowed: above the start, {self.start} s")

    @property
    def is_part(self) -> bool:
        """Whether only the frames from `start` to before `end` are read."""
        return self.start > 0 or self.end is not None

    @property
    def part_text(self) -> str:
        """The part that is read, for a message; "" for a whole recording."""
        until = "its end" if self.end is None else f"{self.end:g} s"
        return f" from {self.start:g} s to {until}" if self.is_part else ""

    def is_over(self, seconds: float) -> bool:
        """Return whether a time from the start of the recording is at `end` or after it."""
        return self.end is not None and seconds >= self.end

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        values = vars(self).copy()
        if self.intrinsics is not None:
            values["intrinsics"] = np.asarray(self.intrinsics).tolist()
        return values

    def expected(self, stored: int | None) -> int | None:
        """Return how many of `stored` frames will be read; None if that is unknown."""
        if stored is None:
            return None
        count = math.ceil(stored / self.stride)
        return count if self.max_frames is None else min(count, self.max_frames)


@dataclass
class Recording:
    """The frames of one recording or live input, in order. Can be iterated over repeatedly.

    Iterating raises InputError if no frame can be read, and ends early if the size of the images changes.
    """

    path: Path | None  # None for a live input
    kind: str  # of its format: "video", "images", "bag" or "ROS 1 bag"; of a live input: "camera" or "stream"
    length: int | None  # expected frames, after `stride` and `max_frames`; None if unknown
    stride: int
    max_frames: int | None
    rate: float  # frames per second, approximate, after `stride`
    topic: str = ""  # of a bag
    given_intrinsics: np.ndarray | None = None  # those of ReadOptions
    max_gap: float = MAX_GAP  # longest time between two images that starts no new world, seconds
    options: ReadOptions | None = None  # with which `open_recording` opened it
    label: str = ""  # name of a live input
    size: tuple[int, int] | None = None  # width and height of the images of a live input
    names: Sequence[str] = ()  # of the images of a folder that are read, without their suffixes
    # Of the last iteration:
    skipped: int = 0  # frames that could not be decoded
    first_skip: str = ""  # which frame, and why
    dropped: int = 0  # images of a live input that newer ones replaced before they were processed
    ended: str = ""  # why it ended before the end of the recording; empty if it did not
    read: int = 0  # how many of `names` were used
    frames: Callable[[Recording], Iterator[Frame]] = field(repr=False, kw_only=True)  # one pass, in order

    @property
    def live(self) -> bool:
        """Whether the frames arrive now, from a camera or a network stream."""
        return self.path is None

    @property
    def name(self) -> str:
        """What messages and files call it: the path, or the name of a live input."""
        return self.label or str(self.path)

    @property
    def short_name(self) -> str:
        """`name` without the folder."""
        return self.label or self.path.name

    def __iter__(self) -> Iterator[Frame]:
        self.skipped, self.first_skip, self.dropped, self.ended, self.read = 0, "", 0, "", 0
        size = None
        with closing(self.frames(self)) as source:
            for frame in islice(source, self.max_frames and min(self.max_frames, sys.maxsize)):
                height, width = frame.image.shape[:2]
                if size is None:
                    size = width, height
                elif size != (width, height):
                    self.ended = (
                        f"the image at {frame.stamp:.3f} s is {width}x{height}, those before it are "
                        f"{size[0]}x{size[1]}; give one recording per image size"
                    )
                    log.warning("%s: %s", self.short_name, self.ended)
                    return
                yield frame
        if size is None:
            broken = f" ({self.skipped} could not be decoded; the first: {self.first_skip})" if self.skipped else ""
            reason = f": {self.ended}" if self.ended else ""
            part = "" if self.options is None else self.options.part_text
            raise InputError(f"{self.name}: no frame could be read{part}{broken}{reason}")

    def check_intrinsics(self, size: tuple[int, int]) -> None:
        """Compare given intrinsics with the size of the images (width, height): log a warning if they are doubtful.

        Raises InputError if they cannot be used.
        """
        if self.given_intrinsics is None:
            return
        if problem := intrinsics_problem(self.given_intrinsics, size):
            raise InputError(
                f"{self.name}: the given intrinsics cannot be used: {problem}; give those of these images"
            )
        if doubt := intrinsics_doubt(self.given_intrinsics, size):
            log.warning("%s: the given intrinsics are probably wrong: %s", self.short_name, doubt)

    def names_hash(self, count: int) -> str:
        """Return a hash of the first `count` names; it differs if an image was added, removed or renamed since."""
        return hashlib.sha256("\n".join(self.names[:count]).encode(errors="surrogateescape")).hexdigest()

    def skip(self, what: str, why: object) -> None:
        """Count a frame that cannot be used, and log a warning."""
        self.skipped += 1
        self.first_skip = self.first_skip or f"{what}: {why}"
        log.warning("%s: skipped %s: %s", self.short_name, what, why)


@dataclass(frozen=True)
class Format:
    """A format of recordings. One defined in a module of `formats/` is used by `open_recording`."""

    kind: str
    matches: Callable[[Path], bool]  # of an existing file or folder
    open: Callable[[Path, ReadOptions], Recording]  # raises InputError if the recording cannot be read
    has_topics: bool = False
    priority: int = 0  # of several formats that match, the one with the highest priority is used


def open_recording(
    path: str | Path,
    *,
    topic: str | None = None,
    rate: float = 30.0,
    stride: int = 1,
    max_frames: int | None = None,
    intrinsics: np.ndarray | None = None,
    max_gap: float = MAX_GAP,
    start: float = 0.0,
    end: float | None = None,
) -> Recording:
    """Return the recording at `path`, ready to be read.

    `path`: a video; a folder of images (read in natural order of their names); a ROS 2 bag, as a folder or as one of
    its .mcap or .db3 files, also compressed with zstd; a ROS 1 bag. `topic`: the image topic, for a bag with several.
    `rate`: frames per second of a folder of images, and of a video without times. `stride`: read every N-th
    frame. `intrinsics`: (3, 3) pixels of the recorded images; overrides the calibration in a bag. `max_gap`: longest
    step between the stamps of a bag that starts no new world, seconds. `start`, `end`: read only the frames
    from here to before there, seconds from the start of the recording: the first image of a video or folder, the first
    message of a bag, by the times at which messages were recorded. Consecutive parts have each frame once.

    Raises InputError if nothing can be read, with what was found.
    """
    path = Path(path)
    options = ReadOptions(topic, rate, stride, max_frames, intrinsics, max_gap, start, end)
    if not path.exists():
        what = kind_of(path)
        raise InputError(f"{path}: {f'is {what}' if what else 'there is no such file or folder'}")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is neither a file nor a folder; recordings are read from their start twice")
    matching = [known for known in _formats() if known.matches(path)]
    chosen = max(matching, key=lambda known: known.priority)
    if topic is not None and not chosen.has_topics:
        raise InputError(f"{path}: not a bag, so it has no topic {topic!r}")
    recording = chosen.open(path, options)
    recording.given_intrinsics = None if intrinsics is None else np.asarray(intrinsics, np.float64)
    recording.options, recording.max_gap = options, max_gap
    return recording


def _formats() -> list[Format]:
    return find_in_package("raymap3r_ros.io.formats", lambda value: isinstance(value, Format))
