"""Files of streaming formats that are cut off, written by FFmpeg (PyAV)."""

from pathlib import Path

import numpy as np
import pytest

from raymap3r_ros.io import open_recording
from raymap3r_ros.io.video_container import read_container
from raymap3r_ros.text import counted

av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")

# Suffix: encoder, muxer, pixel format, options of the muxer.
FORMATS = {
    ".wmv": ("wmv2", "asf", "yuv420p", {}),
    ".flv": ("flv1", "flv", "yuv420p", {}),
    ".vob": ("mpeg2video", "vob", "yuv420p", {}),
    ".mpg": ("mpeg1video", "mpeg", "yuv420p", {}),
    ".ts": ("mpeg2video", "mpegts", "yuv420p", {}),
    ".m2ts": ("mpeg2video", "mpegts", "yuv420p", {"mpegts_m2ts_mode": "1"}),
    ".ogv": ("libvpx", "ogg", "yuv420p", {}),
    ".ivf": ("libvpx", "ivf", "yuv420p", {}),
    ".y4m": ("wrapped_avframe", "yuv4mpegpipe", "yuv420p", {}),
    ".gif": ("gif", "gif", "rgb8", {}),
    ".apng": ("apng", "apng", "rgb24", {}),
    ".mjpeg": ("mjpeg", "mjpeg", "yuvj420p", {}),
}
FRAMES = 24


def encode(path: Path, encoder: str, muxer: str, pixels: str, options: dict[str, str]) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    try:
        output = av.open(str(path), "w", format=muxer, options=options)
        stream = output.add_stream(encoder, rate=25)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg has no {encoder} in {muxer}: {error}")
    with output:
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 120, pixels, 2_000_000
        for index in range(FRAMES):
            image = np.ascontiguousarray(scene[:, 3 * index : 3 * index + 160])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        output.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_file_is_incomplete_and_a_whole_one_complete(tmp_path: Path, suffix: str):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    encode(whole, *FORMATS[suffix])
    assert not read_container(whole).cut
    recording = open_recording(whole)
    assert len(list(recording)) == FRAMES and not recording.ended
    data = whole.read_bytes()
    ends = np.linspace(0.4, 1, 40, endpoint=False) * len(data)
    found = []
    for end in [*ends.astype(int), len(data) - 1]:
        cut.write_bytes(data[:end])
        found.append(read_container(cut).cut)
    # Some of these are between two packets.
    assert np.mean(found) > 0.9
    cut.write_bytes(data[: int(0.7 * len(data)) // 188 * 188 + 100])
    recording = open_recording(cut)
    count = len(list(recording))
    assert 0 < count < FRAMES
    assert recording.ended == f"ended after {counted(count, 'frame')}: the file is cut off, or was copied incompletely"


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix not in (".ivf", ".gif")])
def test_other_bytes_after_a_whole_file_are_no_damage(tmp_path: Path, suffix: str):
    path = tmp_path / f"whole{suffix}"
    encode(path, *FORMATS[suffix])
    with path.open("ab") as file:
        file.write(b"\0" * 50 + b"recorded by a camera")
    assert not read_container(path).cut


@pytest.mark.parametrize("pixels", ["yuv422p", "yuv444p", "yuv411p", "gray", "yuv420p10le"])
def test_images_without_compression_have_the_size_of_their_kind(tmp_path: Path, pixels: str):
    path = tmp_path / "whole.y4m"
    encode(path, "wrapped_avframe", "yuv4mpegpipe", pixels, {"strict": "-1"})
    data = path.read_bytes()
    assert data.count(b"FRAME\n") == FRAMES and not read_container(path).cut
    for end in np.linspace(len(data) - 30_000, len(data) - 1, 10).astype(int):
        path.write_bytes(data[:end])
        assert read_container(path).cut


def test_a_stream_sent_live_states_no_size(tmp_path: Path):
    """The flag `broadcast` makes the sizes in an ASF header invalid (ASF specification, section 3.2)."""
    path = tmp_path / "live.wmv"
    encode(path, *FORMATS[".wmv"])
    data = bytearray(path.read_bytes())
    at = data.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    data[at + 88] |= 1
    path.write_bytes(data[: len(data) // 2])
    assert not read_container(path).cut
