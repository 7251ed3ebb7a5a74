"""Edit lists of MP4 files, which hide frames: what OpenCV shows is the truth for what can be missing."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from raymap3r_ros.io import open_recording
from raymap3r_ros.io.edit_list import shown_frames

RATE, COUNT = 30, 36


def encode(path: Path) -> Path:
    """H.264 with two frames between references, so that the file has an edit list that hides nothing."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(COUNT):
            image = np.full((64, 96, 3), 40 + 4 * index, np.uint8)
            image[:, 2 * index : 2 * index + 8] = 250
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def edited(path: Path, *edits: tuple[float, float]) -> Path:
    """The file with another edit list: seconds of begin, -1 for nothing shown, and length."""
    data = path.read_bytes()
    movie = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    media = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    place = data.index(b"elst")
    old = struct.unpack_from(">I", data, place - 4)[0]
    entries = b"".join(
        struct.pack(">Iii", round(length * movie), -1 if begin < 0 else round(begin * media), 1 << 16)
        for begin, length in edits
    )
    new = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    changed = bytearray(data[: place - 4] + new + data[place - 4 + old :])
    for kind in (b"moov", b"trak", b"edts"):  # the index is at the end: no positions of images change
        at = changed.index(kind) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + len(new) - old)
    path.write_bytes(changed)
    return path


def decoded(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count


def zero(path: Path, first: int, last: int) -> Path:
    """The file without the contents of some of its images, as after the failure of an SD card."""
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[first:last]:
        data[position + 4 : position + size] = bytes(size - 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("edits", "hidden"),
    [
        ([], False),
        ([(0.0, 2.0)], False),
        ([(-1, 0.5), (2 / RATE, 1.2)], False),  # shown later
        ([(0.5, 2.0)], True),
        ([(0.41, 0.33)], True),
        ([(2 / RATE, 0.5)], True),
    ],
)
def test_frames_that_an_edit_list_hides_are_no_damage(tmp_path, edits, hidden, caplog):
    path = encode(tmp_path / "a.mp4")
    assert b"elst" in path.read_bytes() and (not edits or edited(path, *edits))
    shown = decoded(path)
    assert (shown < COUNT) == hidden and shown_frames(path) == shown
    recording = open_recording(path)
    assert recording.length == len(list(recording)) == shown
    assert not recording.ended and not recording.skipped and not caplog.records


@pytest.mark.parametrize("edits", [[], [(2 / RATE, 0.9)]])
def test_damage_in_a_file_with_an_edit_list_is_reported(tmp_path, edits):
    path = encode(tmp_path / "a.mp4")
    if edits:
        edited(path, *edits)
    whole = decoded(path)
    zero(path, 12, 24)
    count = decoded(path)
    recording = open_recording(path)
    assert len(list(recording)) == count < whole == recording.length
    assert recording.ended == f"ended after {count} frames; {whole} according to its header: the file is damaged"


def test_of_an_edit_list_that_is_damaged_nothing_is_concluded(tmp_path, caplog):
    path = edited(encode(tmp_path / "a.mp4"), (0.5, 2.0))
    data = path.read_bytes()
    for place, value in ((data.index(b"mvhd") + 16, 0), (data.index(b"stts") + 8, 2**32 - 1)):
        changed = bytearray(data)
        struct.pack_into(">I", changed, place, value)
        path.write_bytes(changed)
        assert shown_frames(path) is None
    path.write_bytes(data.replace(b"elst", b"free"))
    assert shown_frames(path) is None
