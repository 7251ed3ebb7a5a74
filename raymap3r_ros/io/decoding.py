"""Decoding of image files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.encoded import JPEG_SIGNATURE, MAX_PIXELS, PNG_SIGNATURE, checked_image
from raymap3r_ros.io.recording import BrokenFrame

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Pillow supports many more, one of which it passes to Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
MAX_FILE = 2**29  # bytes


def decode_image(source: Path | io.BytesIO, upright: bool = True) -> np.ndarray:
    """Return an encoded image as (h, w, 3) uint8 RGB. Grey and palette are converted to colour, alpha is dropped.

    With `upright` it is rotated by its EXIF orientation; not suited for a calibrated camera, whose pixels must not
    move. Raises BrokenFrame if the data are damaged, truncated or in an unknown format.
    """
    try:
        data = _bounded_bytes(source)
        if data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            checked_image(data)
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenFrame(f"{picture.width}x{picture.height} pixels are more than any camera's ({MAX_PIXELS})")
            if picture.mode.startswith(("I", "F")):
                # Pillow would clip 16-bit grey to 255 instead of scaling it.
                values = np.asarray(picture)
                if picture.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
                    raise BrokenFrame(f"pixel type {picture.mode!r} has no known brightness range")
                return np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray((ImageOps.exif_transpose(picture) if upright else picture).convert("RGB"))
    except InputError as error:
        raise BrokenFrame(error) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise all of these on damaged files.
        why = "not a known image format" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenFrame(why) from error


def _bounded_bytes(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    size = source.stat().st_size
    if size > MAX_FILE:
        raise BrokenFrame(f"it has {size} bytes, more than {MAX_FILE}")
    return source.read_bytes()
