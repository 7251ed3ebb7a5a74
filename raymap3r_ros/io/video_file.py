"""Preview videos."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from raymap3r_ros.io.video_container import read_container
from raymap3r_ros.output_files import partial_path, whole_file
from raymap3r_ros.plain_name import plain_name

log = logging.getLogger(__name__)

MAX_GAP = 5.0  # seconds for which a picture is shown at most


class EvenSample:
    """At most `limit` items, spread evenly over a stream of unknown length."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen = 0
        self.step = 1  # every N-th item is kept
        self.kept: list[np.ndarray] = []

    def wants_next(self) -> bool:
        """Count one more item; return whether it should be created and kept."""
        self._seen += 1
        return (self._seen - 1) % self.step == 0

    def keep(self, item: np.ndarray) -> None:
        """Add an item. Above the limit, every second item is dropped."""
        self.kept.append(item)
        if len(self.kept) > self._limit:
            self.kept = self.kept[::2]
            self.step *= 2

    def spread(self, count: int) -> list[np.ndarray]:
        """Return at most `count` of the items, including the first and the last."""
        if len(self.kept) <= count:
            return list(self.kept)
        return [self.kept[index] for index in np.linspace(0, len(self.kept) - 1, count).round().astype(int)]


class VideoFile:
    """A preview video `<stem>.mp4` (MPEG-4), or an animated `<stem>.gif` if OpenCV cannot write videos.

    `path` is final once the first picture is written. Used in a `with` block: the file gets its name at the end, or
    is deleted on an error. Without a picture there is no file. Raises OSError if the file could not be written.
    """

    GIF_FRAMES = 60  # in memory until the end; a longer stream is thinned out

    def __init__(self, folder: Path, stem: str, fps: float) -> None:
        self.path = folder / f"{stem}.mp4"
        # MPEG-4 stores times as 16-bit fractions, so two decimals fit. Some players fail below 1.
        self._fps = min(max(round(fps, 2), 1.0), 60.0)
        self._writer: cv2.VideoWriter | None = None
        self._gif: EvenSample | None = None
        self._count = 0  # frames written
        self._due = 0.0  # number of the frame that belongs to the time of the last picture
        self._previous: np.ndarray | None = None  # the last picture
        self._seconds = 0.0  # its time

    def write(self, picture: np.ndarray, seconds: float | None = None) -> None:
        """Add one picture (h, w, 3) uint8 RGB; all of the size of the first, both sides even.

        `seconds`: its time in the recording. Pictures are repeated or left out so that the video has the speed of
        the recording. None: each picture is one frame of the video.
        """
        if seconds is None:
            self._add(picture)
            return
        if self._previous is not None:
            gap = seconds - self._seconds
            self._due += min(gap, MAX_GAP) * self._fps if gap > 0 else 1  # a clock may also jump back
            while self._due - self._count > 0.99:
                self._add(self._previous)
        if self._count - self._due < 0.99:
            self._add(picture)
        self._previous, self._seconds = picture, seconds

    def _add(self, picture: np.ndarray) -> None:
        self._count += 1
        if self._writer is None and self._gif is None:
            self._open((picture.shape[1], picture.shape[0]))
        if self._writer is not None:
            self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        elif self._gif.wants_next():
            self._gif.keep(picture)

    def _open(self, size: tuple[int, int]) -> None:
        partial = partial_path(self.path)
        partial.unlink(missing_ok=True)
        with plain_name(partial) as name:
            writer = cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*"mp4v"), self._fps, size)
        if writer.isOpened():
            self._writer = writer
            return
        partial.unlink(missing_ok=True)
        log.warning("OpenCV cannot write %s here; writing an animated GIF instead", self.path.name)
        self.path = self.path.with_suffix(".gif")
        self._gif = EvenSample(self.GIF_FRAMES)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            partial = partial_path(self.path)
            try:
                self._writer.release()
                if error is None:
                    if not _is_whole(partial):
                        what = "the video could not be written: the disk is full, or the file is larger than allowed"
                        raise OSError(errno.ENOSPC, what, str(self.path))
                    os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
        elif self._gif is not None and error is None:
            first, *rest = [Image.fromarray(picture) for picture in self._gif.kept]
            duration = 1000 * self._gif.step / self._fps
            with whole_file(self.path) as partial:
                first.save(partial, save_all=True, append_images=rest, duration=duration, loop=0)


def _is_whole(video: Path) -> bool:
    """Return whether a video has all its parts. OpenCV does not report errors of writing."""
    container = read_container(video)
    return not (container.cut or container.lacks_index)
