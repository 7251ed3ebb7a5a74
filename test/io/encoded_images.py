"""Encoded images that announce more than they contain."""

import struct
import zlib

import cv2
import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name, data, length=None):
    length = len(data) if length is None else length
    return struct.pack(">I", length) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png_bomb(width, height):
    """A few hundred bytes whose PNG header declares an image of this size."""
    rows = zlib.compress(bytes(100_000))
    return SIGNATURE + png_header(width, height) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(side=16, **options):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    flags = [flag for name, value in options.items() for flag in (getattr(cv2, f"IMWRITE_JPEG_{name}"), value)]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def png(side=16):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg_bomb(width, height):
    """A valid JPEG whose header is changed to this size."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def long_chunk(name, length):
    """A PNG of 45 bytes: a plausible header, then a chunk that claims more than the file has."""
    return (SIGNATURE + png_header(64, 48) + struct.pack(">I", length) + name).ljust(45, b"\x00")


def many_scans(count):
    """A progressive JPEG that repeats its last scan."""
    data = jpeg(PROGRESSIVE=1)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


BOMBS = {
    **{
        f"png chunk {name.decode()} of {length} bytes": long_chunk(name, length)
        for name in (b"IDAT", b"tEXt", b"eXIf", b"fdAT", b"iCCP", b"IEND")
        for length in (0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFF, 10**6)
    },
    **{f"png {w}x{h}": png_bomb(w, h) for w, h in ((50_000, 50_000), (2**31 - 1, 1), (20_000, 20), (16_000, 16_000))},
    "png with more pixels than data": png_bomb(8192, 8192),
    "png with two headers": SIGNATURE + png_header(8, 8) + png(8)[8:],
    "png without header": SIGNATURE + chunk(b"IDAT", zlib.compress(bytes(200))) + chunk(b"IEND", b""),
    "png without pixels": SIGNATURE + png_header(0, 8) + chunk(b"IEND", b""),
    **{f"jpeg {w}x{h}": jpeg_bomb(w, h) for w, h in ((50_000, 50_000), (65_535, 65_535), (12_000, 12_000))},
    "jpeg with more pixels than data": jpeg_bomb(8000, 8000),
    "jpeg with two headers": jpeg()[:2] + jpeg()[2:].replace(b"\xff\xda", jpeg()[2:-2] + b"\xff\xda", 1),
    "jpeg with 2000 scans": many_scans(2000),
    "jpeg with a segment beyond its end": jpeg()[:2] + b"\xff\xe1\xff\xff" + jpeg()[2:],
    "jpeg without scan": jpeg()[: jpeg().index(b"\xff\xda")],
}
