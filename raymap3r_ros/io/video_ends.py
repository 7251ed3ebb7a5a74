"""Whether a video file of a streaming format ends before its contents, found without decoding it.

Raw streams such as H.264, and NUT files, do not show it. A transport or program stream that ends between
two packets does not either.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import BinaryIO

_TAIL = 2**23  # bytes at the end in which the last packet or image begins
_MAX_TAGS = 5_000_000  # of an FLV or IVF file, hours of images and sound
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # file properties object
_ASF_BROADCAST = 1
_FLV_TAGS = (8, 9, 18)  # sound, image, data
# Kind of colours: width and height of an image relative to those of each plane. The longer names first.
_YUV_PLANES: dict[bytes, tuple[tuple[int, int], ...]] = {
    b"444alpha": ((1, 1),) * 4,
    b"444": ((1, 1),) * 3,
    b"422": ((1, 1), (2, 1), (2, 1)),
    b"420": ((1, 1), (2, 2), (2, 2)),
    b"411": ((1, 1), (4, 1), (4, 1)),
    b"mono": ((1, 1),),
}
_PACKETS = (188, 192, 204)  # bytes, of transport streams; 192 with a time before each packet
_PACK, _PROGRAM_END = b"\x00\x00\x01\xba", 0xB9


def is_cut(file: BinaryIO, size: int, start: bytes) -> bool:
    """Return whether a file of this size in bytes lacks its end; other formats: False. `start`: its first 1 kB."""
    return next((check(file, size) for pattern, check in _CHECKS if re.match(pattern, start, re.DOTALL)), False)


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(max(0, position))
    return file.read(count)


def _asf(file: BinaryIO, size: int) -> bool:
    """ASF, WMV: the header states the size of the file, unless it was sent live."""
    start = _read(file, 0, 2**16)
    at = start.find(_ASF_FILE)
    if at < 0 or len(start) < at + 92:
        return False
    (stated,) = struct.unpack_from("<Q", start, at + 40)
    (flags,) = struct.unpack_from("<I", start, at + 88)
    return not flags & _ASF_BROADCAST and stated > size


def _flv(file: BinaryIO, size: int) -> bool:
    """FLV: a chain of tags. The first one may state the size of the file, which a cut between tags does not change."""
    start = _read(file, 0, 4096)
    (position,) = struct.unpack_from(">I", start, 5)
    at = start.find(b"\x08filesize\x00")
    if at >= 0 and len(start) >= at + 18:
        (stated,) = struct.unpack_from(">d", start, at + 10)
        if stated > size:
            return True
    for _ in range(_MAX_TAGS):
        position += 4  # the length of the tag before
        if position >= size:
            return position > size
        head = _read(file, position, 11)
        if head[0] & 0x1F not in _FLV_TAGS:
            return False  # other bytes after the last tag
        position += 11 + int.from_bytes(head[1:4], "big")
    return False


def _ivf(file: BinaryIO, size: int) -> bool:
    position = struct.unpack_from("<H", _read(file, 6, 2))[0]
    for _ in range(_MAX_TAGS):
        head = _read(file, position, 12)
        if len(head) < 12:
            return bool(head)
        position += 12 + struct.unpack_from("<I", head)[0]
        if position > size:
            return True
    return False


def _yuv4mpeg(file: BinaryIO, size: int) -> bool:
    """YUV4MPEG2: images of equal size, each after a line with the word FRAME."""
    line = _read(file, 0, 1024).partition(b"\n")[0]
    fields = {word[:1]: word[1:] for word in line.split()[1:]}
    try:
        width, height = int(fields[b"W"]), int(fields[b"H"])
    except (KeyError, ValueError):
        return False
    kind = fields.get(b"C", b"420")
    planes = next((planes for name, planes in _YUV_PLANES.items() if kind.startswith(name)), None)
    if planes is None:
        return False
    values = sum(-(-width // across) * -(-height // down) for across, down in planes)
    length = len(b"FRAME\n") + values * (2 if re.search(rb"p1[0-6]$|mono1[0-6]$", kind) else 1)
    rest = (size - len(line) - 1) % length
    return rest > 0 and b"FRAME\n".startswith(_read(file, size - rest, min(rest, 6)))


def _transport_stream(file: BinaryIO, size: int) -> bool:
    start = _read(file, 0, 8 * max(_PACKETS))
    for length in _PACKETS:
        sync = 4 if length == 192 else 0
        if set(start[sync::length]) == {ord("G")}:
            last = size // length * length
            return size != last and _read(file, last + sync, 1) == b"G"  # otherwise other bytes follow the packets
    return False


def _program_stream(file: BinaryIO, size: int) -> bool:
    """MPEG program stream, VOB: the packets after the last pack header."""
    begin = max(0, size - _TAIL)
    tail = _read(file, begin, _TAIL)
    position = tail.rfind(_PACK)
    while 0 <= position < len(tail):
        head = tail[position : position + 14]
        if len(head) < 6:
            return True
        if not head.startswith(b"\x00\x00\x01") or head[3] == _PROGRAM_END:
            return False  # padding, or the end
        if head[3] != _PACK[3]:
            position += 6 + int.from_bytes(head[4:6], "big")
        elif len(head) < 14:
            return True
        else:
            position += 14 + (head[13] & 7) if head[4] & 0xC0 == 0x40 else 12  # MPEG-2, MPEG-1
    return position > len(tail)


def _ogg(file: BinaryIO, size: int) -> bool:
    """Ogg: the last page is marked as such."""
    tail = _read(file, size - _TAIL, _TAIL)
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & 4


def _gif(file: BinaryIO, size: int) -> bool:
    return not _read(file, size - 4096, 4096).rstrip(b"\0\r\n ").endswith(b";")


def _png(file: BinaryIO, size: int) -> bool:
    return b"IEND\xae\x42\x60\x82" not in _read(file, size - _TAIL, _TAIL)


def _jpegs(file: BinaryIO, size: int) -> bool:
    """JPEG images one after the other."""
    tail = _read(file, size - _TAIL, _TAIL)
    return tail.rfind(b"\xff\xd9") < tail.rfind(b"\xff\xd8\xff")


_CHECKS: tuple[tuple[bytes, Callable[[BinaryIO, int], bool]], ...] = (
    (rb"\x30\x26\xb2\x75", _asf),
    (rb"FLV\x01", _flv),
    (rb"DKIF", _ivf),
    (rb"YUV4MPEG2 ", _yuv4mpeg),
    (re.escape(_PACK), _program_stream),
    (rb"OggS", _ogg),
    (rb"GIF8", _gif),
    (rb"\x89PNG", _png),
    (rb"\xff\xd8\xff", _jpegs),
    (rb"(.{4})?G", _transport_stream),
)
