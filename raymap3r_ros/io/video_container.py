"""What the structure of a video file shows about its length, without decoding it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from raymap3r_ros.io.video_ends import is_cut

MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MP4_CONTENT = {b"moov", b"mdat", b"moof"}
EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# H.264 or H.265 without a container: start code, then a parameter set, delimiter or SEI message. MPEG-1, MPEG-2 and
# program streams have the same start code, but other numbers after it.
_ANNEX_B = rb"\x00?\x00\x00\x01([\x06\x09\x27\x47\x67]|[\x40\x42\x44\x46\x4e]\x01)"
# Streams that state times or a rate, even if they state no length: MPEG-1, -2 and program streams, Flash, Ogg, ASF,
# GIF, APNG, NUT, transport streams.
_TIMED = rb"\x00\x00\x01[\xb3\xba]|FLV|[FC]WS|OggS|\x30\x26\xb2\x75|GIF8|\x89PNG.*acTL|nut/|(.{4})?G"
MAX_HEADER = 2**26  # bytes of a file's index that are read
_MAX_BOXES = 1_000_000  # in a file; a fragmented one has two per fragment


@dataclass(frozen=True)
class Container:
    """Facts about a video file."""

    counts_frames: bool = False  # it stores their number; in other files, OpenCV estimates it from duration and rate
    edited: bool = False  # it has an edit list, which may hide stored frames and delay the first one
    cut: bool = False  # it ends before its contents
    lacks_index: bool = False  # an MP4 file that cannot be decoded
    empty_frames: int = 0  # counted, but without an image: cameras drop frames like this in AVI files
    counts_from_0: bool = True  # its first frame has the time 0
    has_times: bool | None = True  # FFmpeg assumes a rate otherwise; None: its contents do not show it


def read_container(path: Path) -> Container:
    """Return the facts about a video file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(1024)
        file.seek(0)
        if start[4:8] in MP4_STARTS:
            boxes = list(mp4_boxes(file, size))
            fragmented = any(kind == b"moof" for kind, _, _ in boxes)
            edited = any(kind == b"moov" and _contains(file, begin, end, b"elst") for kind, begin, end in boxes)
            lacks_index = not any(kind == b"moov" for kind, _, _ in boxes)
            return Container(not fragmented, edited, _mp4_is_cut(boxes, size), lacks_index)
        if start[:4] == b"RIFF" and start[8:11] == b"AVI":
            cut = any(end > size for end in _riff_ends(file, size))
            return Container(True, False, cut, empty_frames=_empty_frames(file, size))
        if start.startswith(EBML):
            return Container(cut=_matroska_end(file) > size)
        if re.match(_ANNEX_B, start, re.DOTALL):
            return Container(has_times=False)
        if start.startswith(b"\x00\x00\x01\xb3"):  # MPEG-1 or -2 without a container
            return Container(counts_from_0=False)
        return Container(cut=is_cut(file, size, start), has_times=True if re.match(_TIMED, start, re.DOTALL) else None)


def mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the outermost boxes."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8:  # 0: to the end of the file
            return
        yield kind, position, position + length
        position += length


def mp4_video_tracks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the contents of the index (moov) and of each video track (trak) in it."""
    for kind, begin, end in mp4_boxes(file, size):
        if kind == b"moov":
            file.seek(begin + 8)
            index = file.read(min(end - begin - 8, MAX_HEADER))
            for track in inner_boxes(index, b"trak"):
                if any(handler[8:12] == b"vide" for handler in inner_boxes(track, b"mdia", b"hdlr")):
                    yield index, track


def inner_boxes(data: bytes, kind: bytes, *inner: bytes) -> Iterator[bytes]:
    """Yield the contents of the boxes of a kind, or of those in them."""
    position = 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if length < 8:
            return
        if name == kind:
            content = data[position + 8 : position + length]
            yield from inner_boxes(content, *inner) if inner else [content]
        position += length


def _mp4_is_cut(boxes: list[tuple[bytes, int, int]], size: int) -> bool:
    """Return whether a box with images or their index ends beyond the file.

    After these, cameras and other programs append text and data that are no boxes.
    """
    complete = {kind for kind, _, end in boxes if end <= size}
    beyond = {kind for kind, _, end in boxes if end > size}
    return bool(beyond & _MP4_CONTENT or (beyond and not {b"moov", b"mdat"} <= complete))


def _contains(file: BinaryIO, begin: int, end: int, name: bytes) -> bool:
    file.seek(begin)
    return name in file.read(min(end - begin, MAX_HEADER))


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            return
        position += 8 + length
        yield position
        position += length % 2


def _empty_frames(file: BinaryIO, size: int) -> int:
    """Return the number of chunks of an AVI file that stand for a frame of its first stream and have no data."""
    empty, position = 0, 0
    for _ in range(_MAX_BOXES):
        if position + 8 > size:
            break
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name in (b"RIFF", b"LIST") and file.read(4) in (b"AVI ", b"AVIX", b"movi", b"rec "):
            position += 12  # its chunks
            continue
        empty += name in (b"00dc", b"00db") and length == 0
        position += 8 + length + length % 2
    return empty


def _matroska_end(file: BinaryIO) -> int:
    """Return where the segment ends according to its header; 0 if that is unknown, as in a live stream."""
    position = 4
    file.seek(position)
    length, used = ebml_number(file.read(8))
    position += used + (length or 0)
    file.seek(position)
    head = file.read(12)
    if not head.startswith(_SEGMENT):
        return 0
    length, used = ebml_number(head[4:])
    return 0 if length is None else position + 4 + used + length


def ebml_number(data: bytes) -> tuple[int | None, int]:
    """Return a number of variable length, None if it stands for "unknown", and how many bytes it takes."""
    if not data or not data[0]:
        return None, 1
    count = 9 - data[0].bit_length()
    value = int.from_bytes(data[:count], "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), count
