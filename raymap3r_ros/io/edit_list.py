"""The edit list of an MP4 or QuickTime file, which may hide some of its frames (ISO/IEC 14496-12, 8.6)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from raymap3r_ros.io.video_container import inner_boxes, mp4_video_tracks

_EMPTY = -1  # media time of an edit that shows nothing
_NORMAL = 1 << 16  # rate of an edit
_MAX_FRAMES = 10_000_000  # 92 hours at 30 Hz; a small file can claim any number, and each takes memory


def shown_frames(path: Path) -> int | None:
    """Return how many frames of the first video track the edit list shows; None if that cannot be read."""
    with path.open("rb") as file:
        try:
            index, track = next(mp4_video_tracks(file, path.stat().st_size))
            times = _times(next(inner_boxes(track, b"mdia", b"minf", b"stbl")))
            edits = _edits(next(inner_boxes(track, b"edts", b"elst")))
            media = _units_per_second(next(inner_boxes(track, b"mdia", b"mdhd")))
            movie = _units_per_second(next(inner_boxes(index, b"mvhd")))
        except (StopIteration, struct.error, ValueError, IndexError):
            return None
    shown = np.zeros(len(times), bool)
    for length, begin, rate in edits:
        if begin == _EMPTY:
            continue
        if rate != _NORMAL:
            return None
        end = begin + (2 * length * media + movie) // (2 * movie)  # rounded, as in FFmpeg
        shown |= (times >= begin) & (times < end)
    return int(shown.sum())


def _times(table: bytes) -> np.ndarray:
    """When the frames (N,) are shown, in units of the track, from its tables of durations and offsets."""
    counts, durations = _runs(next(inner_boxes(table, b"stts")), signed=False)
    if not 0 < counts.sum() <= _MAX_FRAMES:
        raise ValueError("no frames, or too many")
    times = np.concatenate(([0], np.cumsum(np.repeat(durations, counts))[:-1]))
    for offsets in inner_boxes(table, b"ctts"):
        counts, values = _runs(offsets, signed=True)
        if counts.sum() != len(times):
            raise ValueError("another number of frames")
        times = times + np.repeat(values, counts)
    return times


def _runs(box: bytes, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Number of frames and value of each run."""
    (count,) = struct.unpack_from(">I", box, 4)
    runs = np.frombuffer(box, ">u4", 2 * count, 8).reshape(count, 2)
    return runs[:, 0].astype(np.int64), runs[:, 1].astype(np.int32 if signed else np.int64).astype(np.int64)


def _edits(box: bytes) -> list[tuple[int, int, int]]:
    """Length in units of the movie, begin in units of the track, and rate of each edit."""
    (count,) = struct.unpack_from(">I", box, 4)
    return list(struct.iter_unpack(">Qqi" if box[0] else ">Iii", box[8 : 8 + count * (20 if box[0] else 12)]))


def _units_per_second(box: bytes) -> int:
    (units,) = struct.unpack_from(">I", box, 20 if box[0] else 12)
    if not units:
        raise ValueError("no unit of time")
    return units
