"""Decoding of image files."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.encoded import JPEG_SIGNATURE, MAX_PIXELS, PNG_SIGNATURE, checked_image
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.known_files import START, known_content
from raymap3r_ros.output_files import kind_of

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Pillow supports many more, one of which it passes to Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
MAX_FILE = 2**29  # bytes


def decode_image(source: Path | io.BytesIO, upright: bool = True) -> np.ndarray:
    """Return an encoded image as (h, w, 3) uint8 RGB. Grey and palette are converted to colour, alpha is dropped.

    With `upright` it is rotated by its EXIF orientation; not suited for a calibrated camera, whose pixels must not
    move. Raises BrokenFrame if the data are damaged, truncated or in an unknown format.
    """
    try:
        data = _bounded_bytes(source)
        if not data:
            raise BrokenFrame("it is empty")
        if data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            checked = checked_image(data)
            # As in the node, metadata are not read: they may be damaged. They contain the orientation.
            data = data if upright else checked
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as picture:
            if is_sequence(picture):
                raise BrokenFrame("it contains several images; convert it to a video or to single images")
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenFrame(f"{picture.width}x{picture.height} pixels are more than any camera's ({MAX_PIXELS})")
            return _rgb(_upright(picture) if upright else picture)
    except BrokenFrame:
        raise
    except InputError as error:
        raise BrokenFrame(error) from error
    except Exception as error:  # Pillow's decoders fail in many ways on damaged files
        why = error
        if isinstance(error, UnidentifiedImageError):
            what = known_content(data[:START])
            why = f"it is {what}" if what else "not a known image format"
            if data.startswith(TIFF_SIGNATURES):
                why = "a TIFF that is damaged or has pixels of an unsupported type; convert it to 8 or 16 bits"
        raise BrokenFrame(why) from error


def is_sequence(picture: Image.Image) -> bool:
    """Whether a file contains several images of one size. Previews, and the further images of a JPEG, do not count."""
    size = picture.size
    if not getattr(picture, "is_animated", False) or picture.format in ("JPEG", "MPO"):
        return False
    picture.seek(1)
    same = picture.size == size
    picture.seek(0)
    return same


def decode_message(data: bytes) -> np.ndarray:
    """Return the PNG or JPEG of a message as (h, w, 3) uint8 RGB.

    The calibration is for the pixels as they are stored, so an EXIF orientation is ignored.

    Raises InputError if it is neither, or damaged. OpenCV is not used: it prints a line for each damaged image.
    """
    checked = checked_image(data)
    try:
        with Image.open(io.BytesIO(checked), formats=("PNG", "JPEG")) as picture:
            return _rgb(picture)
    except BrokenFrame as error:
        raise InputError(f"compressed image of {len(data)} bytes: {error}") from error
    except Exception as error:  # as in `decode_image`
        raise InputError(f"compressed image of {len(data)} bytes cannot be decoded as jpeg or png: {error}") from error


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(("I", "F")):
        # Pillow would clip 16-bit grey to 255 instead of scaling it.
        values = np.asarray(picture)
        if picture.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise BrokenFrame(f"pixel type {picture.mode!r} has no known brightness range")
        return np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. 1 (upright) if there is none, or if it is damaged."""
    try:
        if picture.format == "PNG":
            exif = Image.Exif()  # `getexif` would decode the pixels of a PNG
            exif.load(picture.info.get("exif", b""))
        else:
            exif = picture.getexif()
        value = exif.get(_ORIENTATION, 1)
    except Exception as error:  # Pillow's reader fails in many ways on damaged EXIF
        log.warning("damaged EXIF is not used: %s", reason_of(error))
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _upright(picture: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _bounded_bytes(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    if not source.is_file():
        raise BrokenFrame(kind_of(source) if source.is_symlink() else "not a regular file")
    size = source.stat().st_size
    if size > MAX_FILE:
        raise BrokenFrame(f"it has {size} bytes, more than {MAX_FILE}")
    return source.read_bytes()
