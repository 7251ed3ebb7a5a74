"""A video file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import cv2

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.recording import Format, Frame, ReadOptions, Recording

log = logging.getLogger(__name__)

GIVE_UP = 10  # consecutive frames that cannot be decoded: treated as the end of the video


def _open(path: Path, options: ReadOptions) -> Recording:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.grab():
            raise InputError(
                f"{path}: not a video that OpenCV can read (and not a folder of images, .mcap or .db3 file)"
            )
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    if not (math.isfinite(fps) and fps > 0):
        fps = options.rate
    stored = count if count > 0 else None

    def frames(recording: Recording) -> Iterator[Frame]:
        capture = cv2.VideoCapture(str(path))
        try:
            stamp = None
            index = failed = 0
            while failed < GIVE_UP:
                # OpenCV reports a broken frame and the end alike, but after a broken frame more frames follow.
                if not capture.grab():
                    failed += 1
                    continue
                for broken in range(index, index + failed):
                    recording.skip(f"frame {broken}", "it cannot be decoded")
                index, failed = index + failed, 0
                container = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # Some containers have no times: OpenCV then reports 0 or the same time again.
                stamp = container if stamp is None or container > stamp else stamp + 1 / fps
                if index % options.stride == 0:
                    decoded, image = capture.retrieve()
                    if decoded:
                        yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp, options.intrinsics)
                    else:
                        recording.skip(f"frame {index}", "it cannot be decoded")
                index += 1
            if stored is not None and index < stored:
                log.warning("%s: ended after %d frames; %d according to its header", path.name, index, stored)
        finally:
            capture.release()

    return Recording(
        path, "video", options.expected(stored), options.stride, options.max_frames, fps / options.stride,
        frames=frames,
    )  # fmt: skip


# Only opening a file shows whether it is a video, so this format matches every file that no other does.
FORMAT = Format("video", lambda path: not path.is_dir(), _open, priority=-2)
