"""The video tracks of an MP4, QuickTime, Matroska or WebM file, of which OpenCV reads the first one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from raymap3r_ros.io.video_container import EBML, MAX_HEADER, MP4_STARTS, ebml_number, inner_boxes, mp4_video_tracks

_CLUSTER, _TRACKS, _TRACK, _VIDEO = 0x1F43B675, 0x1654AE6B, 0xAE, 0xE0  # Matroska; the first: images begin
_TYPE, _DEFAULT, _WIDTH, _HEIGHT = 0x83, 0x88, 0xB0, 0xBA


@dataclass(frozen=True)
class VideoTrack:
    """One video track."""

    width: int
    height: int
    default: bool  # players show it


def better_track(path: Path) -> str:
    """Return a warning if a file has another video track than the first that is larger, as large, or the default.

    Empty for other files, and for containers whose tracks are not read.
    """
    first, *others = _video_tracks(path) or [None]
    for number, other in enumerate(others, 1):
        is_default = other.default and not first.default
        if is_default or other.width * other.height >= first.width * first.height:
            return (
                f"only its first video track, {first.width}x{first.height}, is read; another one has "
                f"{other.width}x{other.height}{' and is the default' if is_default else ''}; to read that one: "
                f"ffmpeg -i INPUT -map 0:v:{number} -c copy OUTPUT{path.suffix}"
            )
    return ""


def _video_tracks(path: Path) -> list[VideoTrack]:
    with path.open("rb") as file:
        start = file.read(8)
        try:
            if start[4:8] in MP4_STARTS:
                return list(_mp4_tracks(file, path.stat().st_size))
            if start.startswith(EBML):
                return list(_matroska_tracks(file))
        except (struct.error, IndexError):  # damaged: OpenCV decides whether it can be read
            return []
    return []


def _mp4_tracks(file: BinaryIO, size: int) -> Iterator[VideoTrack]:
    for _, track in mp4_video_tracks(file, size):
        for table in inner_boxes(track, b"mdia", b"minf", b"stbl", b"stsd"):
            width, height = struct.unpack_from(">HH", table, 40)
            yield VideoTrack(width, height, any(head[3] & 1 for head in inner_boxes(track, b"tkhd")))


def _matroska_tracks(file: BinaryIO) -> Iterator[VideoTrack]:
    file.seek(4)
    length, used = ebml_number(file.read(8))
    file.seek(4 + used + (length or 0))
    data = file.read(MAX_HEADER)
    _, used = ebml_number(data[4:12])
    for name, content in _elements(data[4 + used :]):  # of the segment
        if name == _CLUSTER:
            return
        for track_name, track in _elements(content) if name == _TRACKS else ():
            values = dict(_elements(track)) if track_name == _TRACK else {}
            if _number(values, _TYPE) == 1:
                sides = dict(_elements(values.get(_VIDEO, b"")))
                yield VideoTrack(_number(sides, _WIDTH), _number(sides, _HEIGHT), _number(values, _DEFAULT, 1) == 1)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield identifier and content of Matroska elements."""
    position = 0
    while position < len(data) and data[position]:
        count = 9 - data[position].bit_length()  # bytes of the identifier
        name = int.from_bytes(data[position : position + count], "big")
        length, used = ebml_number(data[position + count : position + count + 8])
        position += count + used
        end = len(data) if length is None else position + length
        yield name, data[position:end]
        position = end


def _number(values: dict[int, bytes], name: int, default: int = 0) -> int:
    return int.from_bytes(values[name], "big") if name in values else default
