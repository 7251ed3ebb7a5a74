"""A folder of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.decoding import IMAGE_FORMATS, IMAGE_SUFFIXES, decode_image, orientation
from raymap3r_ros.io.files import natural_key
from raymap3r_ros.io.recording import BrokenFrame, Format, Frame, ReadOptions, Recording

log = logging.getLogger(__name__)


def _matches(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


def _open(path: Path, options: ReadOptions) -> Recording:
    if path.is_file():
        raise InputError(f"{path}: is a single image; give a folder of images, a video or a bag")
    files = [
        item
        for item in path.iterdir()
        # macOS leaves ._name.jpg files beside copied pictures.
        if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".") and item.is_file()
    ]
    if not files:
        raise InputError(f"{path}: no images ({' '.join(IMAGE_SUFFIXES)}) and no bag in this folder")
    length = options.expected(len(files))
    files.sort(key=lambda item: natural_key(item.name))
    files = files[:: options.stride]
    turned = _check_same_size(files[:length])
    if turned and options.intrinsics is not None:
        log.warning(
            "%s: %s is turned by its EXIF orientation: the given intrinsics must be those of the turned picture",
            path.name, turned.name,
        )  # fmt: skip

    def frames(recording: Recording) -> Iterator[Frame]:
        for position, file in enumerate(files):
            try:
                image = decode_image(file)
            except BrokenFrame as error:
                recording.skip(file.name, error)
                continue
            yield Frame(image, position * options.stride / options.rate, options.intrinsics)

    return Recording(
        path, "images", length, options.stride, options.max_frames, options.rate / options.stride, frames=frames
    )


def _check_same_size(files: list[Path]) -> Path | None:
    """Return the first picture that its EXIF orientation turns. Raises InputError if the sizes differ.

    Reads only headers, so that mixed sizes are found before any work.
    """
    first = turned = None
    for file in files:
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as picture:
                width, height = picture.size
                turn = orientation(picture)
                if turn >= 5:  # rotated by 90 degrees
                    width, height = height, width
                if turn > 1:
                    turned = turned or file
        except Exception:  # as in `decode_image`
            continue  # skipped with a warning when it is read
        if first is None:
            first = file, width, height
        elif first[1:] != (width, height):
            raise InputError(
                f"{file.parent}: images of different sizes: {first[0].name} is {first[1]}x{first[2]}, "
                f"{file.name} is {width}x{height}"
            )
    return turned


FORMAT = Format("images", _matches, _open, priority=-1)  # matches any folder
