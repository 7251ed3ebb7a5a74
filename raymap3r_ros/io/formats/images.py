"""A folder of images."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.bag_files import is_bag
from raymap3r_ros.io.decoding import IMAGE_FORMATS, IMAGE_SUFFIXES, decode_image, is_sequence, orientation
from raymap3r_ros.io.files import natural_key, visible
from raymap3r_ros.io.recording import BrokenFrame, Format, Frame, ReadOptions, Recording
from raymap3r_ros.known_files import known_file
from raymap3r_ros.text import counted, listing

log = logging.getLogger(__name__)

# Not read, but pictures of the recording all the same, unless converted copies of the same names lie beside them.
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".h264", ".h265", ".mjpeg",
    ".wmv", ".asf", ".flv", ".ts", ".m2ts", ".3gp", ".vob", ".ogv", ".ivf",
)  # fmt: skip
OTHER_SUFFIXES = (
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".exr", ".hdr", ".dpx", ".cin", ".tga", ".sgi",
    ".psd", ".xcf", ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw",
)  # fmt: skip


def _matches(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


def _open(path: Path, options: ReadOptions) -> Recording:
    if path.is_file():
        what = known_file(path)
        if what:
            raise InputError(f"{path}: is {what}")
        what = "a sequence of images (convert it to a video)" if _is_sequence(path) else "a single image"
        raise InputError(f"{path}: is {what}; give a folder of images, a video or a bag")
    files = _images_in(path)
    if not files:
        raise InputError(f"{path}: no images ({' '.join(IMAGE_SUFFIXES)}) and no bag in this folder{_contents(path)}")
    if clips := sorted(item.name for item in visible(path) if item.suffix.lower() in VIDEO_SUFFIXES):
        log.warning("%s: videos beside the images are not read: %s", path.name, listing(clips, 3))
    files.sort(key=lambda item: natural_key(item.name))
    first = _index(options.start, options.rate)
    files = files[first : None if options.end is None else _index(options.end, options.rate)]
    length = options.expected(len(files))
    files = files[:: options.stride]
    turned = _check_same_size(files[:length])
    if turned and options.intrinsics is not None:
        log.warning(
            "%s: %s is turned by its EXIF orientation: the given intrinsics must be those of the turned picture",
            path.name, turned.name,
        )  # fmt: skip

    def frames(recording: Recording) -> Iterator[Frame]:
        gone = 0
        for position, file in enumerate(files):
            recording.read = position + 1
            try:
                image = decode_image(file)
            except BrokenFrame as error:
                if os.path.lexists(file):
                    recording.skip(file.name, error)
                else:
                    gone += 1
                continue
            yield Frame(image, (first + position * options.stride) / options.rate, options.intrinsics)
        if gone:
            recording.ended = f"{counted(gone, 'image')} were removed, moved or renamed during the run"
            log.warning("%s: %s", path.name, recording.ended)

    return Recording(
        path, "images", length, options.stride, options.max_frames, options.rate / options.stride,
        names=[file.stem for file in files], frames=frames,
    )  # fmt: skip


def _index(seconds: float, rate: float) -> int:
    """Return the index of the first image at this time or after it."""
    return math.ceil(seconds * rate - 1e-6)  # 0.3 s at 30 per second are 9 images, not 9.000000000000002


def _images_in(folder: Path) -> list[Path]:
    # Links that lead nowhere and images of other formats are included: they are images that are missing.
    images, others = [], []
    for item in visible(folder):
        if not item.is_dir():
            kind = item.suffix.lower()
            (images if kind in IMAGE_SUFFIXES else others if kind in OTHER_SUFFIXES else []).append(item)
    read = {item.stem for item in images}
    return images and images + [item for item in others if item.stem not in read]


def _contents(folder: Path) -> str:
    """Return what a folder without images contains instead, for an error message."""
    found = Counter(item.suffix.lower() or "without suffix" for item in visible(folder) if item.is_file())
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.most_common(3))
    folders = [item for item in sorted(visible(folder)) if item.is_dir()]
    bags = [item for item in folders if is_bag(item)]
    if bags:
        others = f" (one of {len(bags)})" if len(bags) > 1 else ""
        return f"; its subfolder {bags[0].name} is a bag{others}: give {bags[0]}"
    below = next((item.name for item in folders if _images_in(item)), "")
    videos = [item.name for item in sorted(visible(folder)) if item.suffix.lower() in VIDEO_SUFFIXES]
    if len(videos) > 1:
        return f"; it contains {counted(len(videos), 'video')}: give one of them, or the folder to `raymap3r batch`"
    if videos:
        return f"; give the video in it: {folder / videos[0]}"
    files = f"; its files: {kinds} (convert images of other formats to PNG or JPEG)" if kinds else ""
    return files + (f"; its subfolder {below} contains images: give {folder / below}" if below else "")


def _is_sequence(file: Path) -> bool:
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as picture:
            return is_sequence(picture)
    except Exception:  # as in `decode_image`
        return False


def _check_same_size(files: list[Path]) -> Path | None:
    """Return the first picture that its EXIF orientation turns. Raises InputError if the sizes differ.

    Reads only headers, so that mixed sizes are found before any work.
    """
    first = turned = None
    depths = []
    for file in files:
        if not file.is_file():
            continue  # as below; opening a pipe would wait forever
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as picture:
                width, height = picture.size
                turn = orientation(picture)
                if turn >= 5:  # rotated by 90 degrees
                    width, height = height, width
                if turn > 1:
                    turned = turned or file
                if picture.mode.startswith("I"):
                    depths.append(file.name)
        except Exception:  # as in `decode_image`
            continue  # skipped with a warning when it is read
        if first is None:
            first = file, width, height
        elif first[1:] != (width, height):
            raise InputError(
                f"{file.parent}: images of different sizes: {first[0].name} is {first[1]}x{first[2]}, "
                f"{file.name} is {width}x{height}"
            )
    if depths and len(depths) < len(files):
        log.warning(
            "%s: %d of %d images have 16 bits of grey (%s): if these are depth maps, move them to another folder",
            files[0].parent.name, len(depths), len(files), depths[0],
        )  # fmt: skip
    return turned


FORMAT = Format("images", _matches, _open, priority=-1)  # matches any folder
