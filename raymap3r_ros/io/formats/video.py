"""A video file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.edit_list import shown_frames
from raymap3r_ros.io.files import silence_ffmpeg
from raymap3r_ros.io.pixel_shape import pixel_ratio, square_pixels
from raymap3r_ros.io.recording import MAX_RATE, MIN_RATE, Format, Frame, ReadOptions, Recording
from raymap3r_ros.io.video_container import Container, read_container
from raymap3r_ros.io.video_tracks import better_track
from raymap3r_ros.known_files import known_file
from raymap3r_ros.plain_name import plain_name
from raymap3r_ros.text import counted

log = logging.getLogger(__name__)

# FFmpeg reads what these files name, anywhere on the disk.
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"v=0", b"<?xml", b"<MPD")
UNWRITTEN = (
    "every image is black, or the same, as OpenCV returns images that it cannot convert, such as interlaced ones; "
    "convert the video: ffmpeg -i INPUT -vf bwdif OUTPUT.mp4"
)
BLACK = 0.01  # share of values above 0 in a black image, which may be memory that was never written
ASSUMED_RATE = 25.0  # by FFmpeg, for streams without times, whose length is then unknown
LONGEST_GROUP = 15.0  # seconds between two key frames; a stream that starts later than this has another zero
GIVE_UP = 10  # consecutive frames that cannot be decoded: treated as the end of the video


def _open(path: Path, options: ReadOptions) -> Recording:
    if what := known_file(path):
        raise InputError(f"{path}: is {what}")
    with path.open("rb") as file:
        if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(PLAYLISTS):
            raise InputError(f"{path}: a playlist, which names other files; give the video itself")
    container = read_container(path)
    with _capture(path) as capture:
        if not capture.isOpened() or not capture.grab():
            raise InputError(f"{path}: {_description(path)}")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = capture.get(cv2.CAP_PROP_FPS)
        turn = round(capture.get(cv2.CAP_PROP_ORIENTATION_META))
        ratio = pixel_ratio(capture, path.name, given_intrinsics=options.intrinsics is not None)
    if track := better_track(path):
        log.warning("%s: %s", path.name, track)
    if container.has_times is None:
        container = replace(container, has_times=fps != ASSUMED_RATE or count > 0)
    if not container.has_times:
        log.warning("%s: a stream without times: %g frames per second are assumed (--rate)", path.name, options.rate)
    if not (container.has_times and MIN_RATE <= fps <= MAX_RATE):
        fps = options.rate
    if turn and options.intrinsics is not None:
        log.warning(
            "%s: the video is turned by %d degrees, as its header requires: the given intrinsics must be those of the "
            "turned images",
            path.name, turn,
        )  # fmt: skip
    stored = count - container.empty_frames if count > 0 and container.counts_frames else None
    if stored is not None and container.edited:
        shown = shown_frames(path)
        stored = None if shown is None else min(stored, shown)
    length = None if options.is_part else options.expected(stored)
    return Recording(
        path, "video", length, options.stride, options.max_frames, fps / options.stride,
        frames=lambda recording: _frames(recording, options, fps, stored, container, ratio),
    )  # fmt: skip


@contextmanager
def _capture(path: Path) -> Iterator[cv2.VideoCapture]:
    with plain_name(path) as name:
        silence_ffmpeg()
        capture = cv2.VideoCapture(name)
        try:
            yield capture
        finally:
            capture.release()


def _description(path: Path) -> str:
    """Return what a file is that OpenCV cannot read as a video, and what to do."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return "is a zip archive; unpack it first: unzip"
    container = read_container(path)
    if container.cut:
        return "a video that was cut off, or copied incompletely; OpenCV cannot read the rest"
    if container.lacks_index:
        return (
            "an MP4 file without its index (moov box): the camera stopped before it wrote it; repair it, for instance "
            "with untrunc and another video of the same camera"
        )
    return "not a video that OpenCV can read (and not a folder of images, .mcap or .db3 file)"


def _frames(
    recording: Recording, options: ReadOptions, fps: float, stored: int | None, container: Container, ratio: float
) -> Iterator[Frame]:
    """Yield every N-th frame. `stored`: number of frames according to the file, None if it does not contain that.

    `ratio`: width of a pixel divided by its height.
    """
    with _capture(recording.path) as capture:
        stamp = first = begin = None
        index = failed = decoded_images = read = 0
        joined = False  # whether its times have fallen
        written = False  # whether an image is certainly not memory that OpenCV has never written to
        while failed < GIVE_UP:
            # OpenCV reports a broken frame and the end alike, but after a broken frame more frames follow.
            if not capture.grab():
                failed += 1
                continue
            for broken in range(index, index + failed):
                recording.skip(f"frame {broken}", "it cannot be decoded")
            index, failed = index + failed, 0
            container_time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if container.has_times else index / fps
            if not joined and stamp is not None and stamp - container_time > 1:
                joined = True
                log.warning(
                    "%s: the times of the file start again at frame %d, as of clips that were joined: from there on, "
                    "%.6g frames per second are assumed",
                    recording.path.name, index, fps,
                )  # fmt: skip
            # Some containers have no times: OpenCV then reports 0 or the same time again.
            stamp = container_time if stamp is None or container_time > stamp else stamp + 1 / fps
            if begin is None:
                begin = stamp
                index += _skip_before_key_frame(recording, begin, fps, container)
            if options.is_over(stamp - begin):
                return
            if stamp - begin < options.start:
                # Whether images are all the same is judged from the first one of the file on.
                first = capture.retrieve()[1] if index == 0 else first
                index += 1
                continue
            if read % options.stride == 0:
                decoded, image = capture.retrieve()
                if decoded:
                    first = image if first is None else first
                    decoded_images += 1
                    written = written or not (_is_black(image) or np.array_equal(first, image))
                    image = cv2.cvtColor(square_pixels(image, ratio), cv2.COLOR_BGR2RGB)
                    yield Frame(image, stamp, options.intrinsics)
                else:
                    recording.skip(f"frame {index}", "it cannot be decoded")
            index, read = index + 1, read + 1
    if first is not None and not written and (decoded_images > 1 or _is_black(first)):
        recording.ended = UNWRITTEN
    _check_end(recording, index, stored, container)


def _skip_before_key_frame(recording: Recording, begin: float, fps: float, container: Container) -> int:
    """Count the frames before the first one, which is at `begin` seconds: FFmpeg leaves out what it cannot decode.

    A stream that was recorded from its middle begins with frames that need earlier ones. Their number is estimated:
    the time 0 may belong to the first frame, or to its decoding.
    """
    count = round(begin * fps)
    usual = container.has_times and container.counts_from_0 and not container.edited
    if not usual or not 0 < count <= LONGEST_GROUP * fps:
        return 0
    recording.skipped += count
    log.warning(
        "%s: skipped about %s before the first key frame: the recording begins in the middle of a stream, and they "
        "cannot be decoded",
        recording.path.name, counted(count, "frame"),
    )  # fmt: skip
    return count


def _is_black(image: np.ndarray) -> bool:
    return np.count_nonzero(image) < BLACK * image.size


def _check_end(recording: Recording, index: int, stored: int | None, container: Container) -> None:
    """Report a video that ended too early, after `index` frames."""
    listed = "" if stored is None or index >= stored else f"; {stored} according to its header"
    ended = f"ended after {counted(index, 'frame')}{listed}"
    if container.cut and not recording.ended:
        recording.ended = f"{ended}: the file is cut off, or was copied incompletely"
    elif listed and not recording.ended:
        recording.ended = f"{ended}: the file is damaged"
    if recording.ended:
        log.warning("%s: %s", recording.path.name, recording.ended)


# Only opening a file shows whether it is a video, so this format matches every file that no other does.
FORMAT = Format("video", lambda path: not path.is_dir(), _open, priority=-2)
