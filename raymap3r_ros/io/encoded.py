"""Structure of encoded images, checked before a decoder reads them.

A few bytes can announce gigabytes, in the header or in any later part, and decoders allocate what is announced.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

from raymap3r_ros.errors import InputError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
MAX_SIDE = 16_384  # pixels; anything larger is damaged or malicious, not from a camera
MAX_PIXELS = 2**26
DEPTH_ENCODINGS = ("16UC1", "32FC1", "64FC1")  # of depth images in ROS
MAX_SCANS = 32  # of a progressive JPEG, each over the whole image; encoders write about 10

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_DEFLATE_RATIO = 1040  # deflate compresses at most 1032 times
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_JPEG_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
_JPEG_KEPT = (*_JPEG_FRAMES, *_JPEG_TABLES, 0xE0, 0xEE)  # APP0 and APP14 define the colour space
_JPEG_DROPPED = (*range(0xE1, 0xEE), 0xEF, 0xFE)
# The end of the entropy-coded data of a scan: a marker that is neither a stuffed byte nor a restart.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def depth_encoding(message: Any) -> str:
    """The encoding of an Image or CompressedImage message if it is one of depth images, else ""."""
    encoding = message.format.partition(";")[0].strip() if hasattr(message, "format") else message.encoding
    return encoding if encoding in DEPTH_ENCODINGS else ""


def checked_image(data: bytes) -> bytes:
    """The PNG or JPEG file `data` without metadata, so that a decoder allocates no more than the pixels need.

    Raises InputError if it is neither, if its parts do not fit into the data, or if it announces more pixels than a
    camera has or than its data can encode.
    """
    if data.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(_png_parts(data))
    if data.startswith(JPEG_SIGNATURE):
        return b"\xff\xd8" + b"".join(_jpeg_parts(data))
    raise _damaged(data, "it starts like neither")


def check_size(width: int, height: int) -> None:
    """Raise InputError if an encoded image has no pixels or more than a camera."""
    if not (width and height):
        raise InputError(f"compressed image of {width}x{height} pixels cannot be decoded: it has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"compressed image of {width}x{height} pixels is larger than any camera's ({MAX_SIDE} a side and "
            f"{MAX_PIXELS} in all)"
        )


def _damaged(data: bytes, reason: str) -> InputError:
    return InputError(f"compressed image of {len(data)} bytes cannot be decoded as jpeg or png: {reason}")


def _png_parts(data: bytes) -> Iterator[bytes]:
    """The chunks with the pixels, without the optional ones."""
    position, needed, stored = len(PNG_SIGNATURE), 0, 0
    while True:
        if len(data) - position < 12:
            raise _damaged(data, "it is cut off")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise _damaged(data, f"its chunk {name!r} of {length} bytes reaches beyond its end")
        if (name == b"IHDR") != (not needed):
            raise _damaged(data, "it has no header, or two")
        if name == b"IHDR":
            needed = _png_size(data, position + 8, length)
        elif name == b"IDAT":
            stored += length
        if name in _PNG_KEPT:
            yield data[position:end]
        if name == b"IEND":
            break
        position = end
    if stored * _DEFLATE_RATIO < needed:
        raise _damaged(data, f"{stored} bytes of compressed pixels cannot contain {needed}")


def _png_size(data: bytes, start: int, length: int) -> int:
    """Bytes of the uncompressed pixels that the header announces."""
    if length != 13:
        raise _damaged(data, f"its header has {length} bytes instead of 13")
    width, height, depth, color = struct.unpack_from(">IIBB", data, start)
    check_size(width, height)
    if color not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise _damaged(data, f"colour type {color} with {depth} bits does not exist")
    return height * (1 + (width * _PNG_CHANNELS[color] * depth + 7) // 8)


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """The segments with the pixels, without metadata."""
    position, frames, scans, whole = 2, 0, 0, False
    while marker := _JPEG_MARKER.match(data, position):
        start, kind = marker.end() - 2, data[marker.end() - 1]
        whole = kind == 0xD9  # end of the image; more bytes may follow
        if whole:
            break
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + length
        if length < 2 or end > len(data):
            raise _damaged(data, f"its segment {kind:02X} of {length} bytes reaches beyond its end")
        if kind in _JPEG_FRAMES:
            frames += 1
            _check_jpeg_size(data, start, length)
        elif kind == 0xDA:
            scans += 1
            found = _JPEG_MARKER.search(data, end)
            end = found.start() if found else len(data)
        elif kind not in _JPEG_KEPT and kind not in _JPEG_DROPPED:
            raise _damaged(data, f"segments of kind {kind:02X} are not supported")
        if frames > 1 or (scans and not frames) or scans > MAX_SCANS:
            raise _damaged(data, f"it has {frames} headers and {scans} scans; allowed: 1 and up to {MAX_SCANS}")
        if kind == 0xDA or kind in _JPEG_KEPT:
            yield data[start:end]
        position = end
    if not scans:
        raise _damaged(data, "it has no pixels")
    if not whole:
        raise _damaged(data, "it is cut off, without the marker of its end")
    yield b"\xff\xd9"


def _check_jpeg_size(data: bytes, start: int, length: int) -> None:
    if length < 8:
        raise _damaged(data, f"its header has only {length} bytes")
    height, width = struct.unpack_from(">HH", data, start + 5)
    check_size(width, height)
    # Each block of 8x8 pixels takes one bit or more.
    if width * height > 512 * len(data):
        raise _damaged(data, f"it cannot contain {width}x{height} pixels")
