"""Video files: facts and estimates, cut files, file names, and the speed of previews."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from recordings import SIZE, index_of, picture, write_video

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.video_container import read_container
from raymap3r_ros.io.video_file import MAX_GAP, VideoFile


def element(name: str, content: bytes, size: int | None = None) -> bytes:
    """An EBML element; `size`: another size than the content's."""
    return bytes.fromhex(name) + (0x01 << 56 | (len(content) if size is None else size)).to_bytes(8, "big") + content


def number(name: str, value: int) -> bytes:
    return element(name, value.to_bytes(8, "big"))


def write_matroska(
    path: Path, milliseconds: list[int], size: int | None = None, shown=SIZE, extra: bytes = b"", default: bool = True
) -> Path:
    """A Matroska file of JPEG images with the given times, as a phone writes it: with a duration, without a count.

    `shown`: size for display, from which the shape of the pixels follows; `extra`: tracks after the first one;
    `default`: a flag of the first.
    """
    head = element("1a45dfa3", element("4282", b"matroska") + number("4287", 4) + number("4285", 2))
    info = element("1549a966", number("2ad7b1", 1_000_000) + element("4489", struct.pack(">d", 3000)))
    display = number("54b0", shown[0]) + number("54ba", shown[1])
    picture_size = element("e0", number("b0", 48) + number("ba", 32) + display)
    track = number("d7", 1) + number("73c5", 1) + number("88", default) + number("83", 1) + element("86", b"V_MJPEG")
    # The time of a frame that the header claims: 1/30 s.
    tracks = element("1654ae6b", element("ae", track + number("23e383", 33_333_333) + picture_size) + extra)
    clusters = b""
    for index, time in enumerate(milliseconds):
        data = cv2.imencode(".jpg", picture(index)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
        clusters += element("1f43b675", number("e7", time) + element("a3", b"\x81\0\0\x80" + data))
    path.write_bytes(head + element("18538067", info + tracks + clusters, size))
    return path


TIMES = [0, 33, 66, 500, 533, 566, 1000, 1200, 1210, 1220, 2000, 2500]


def test_estimates_of_matroska_are_not_used_as_facts(tmp_path, caplog):
    path = write_matroska(tmp_path / "phone.mkv", TIMES)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) > 80  # duration times rate
    recording = open_recording(path)
    assert recording.length is None
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.stamp for frame in frames] == pytest.approx([time / 1000 for time in TIMES])
    assert not recording.ended and not caplog.records
    unknown = 2**56 - 1  # as in a live stream
    live = open_recording(write_matroska(tmp_path / "live.mkv", TIMES, unknown))
    assert len(list(live)) == 12 and not live.ended


def test_cut_matroska_is_reported(tmp_path):
    data = write_matroska(tmp_path / "a.mkv", TIMES).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    recording = open_recording(tmp_path / "cut.mkv")
    count = len(list(recording))
    assert 6 <= count < 12 and recording.length is None
    assert recording.ended == f"ended after {count} frames: the file is cut off, or was copied incompletely"


def move_index_to_the_start(path: Path) -> bytes:
    """The bytes of an MP4 file with its index before the images, as cameras and web sites write it."""
    data, boxes, position = path.read_bytes(), {}, 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        boxes[data[position + 4 : position + 8]] = data[position : position + length]
        position += length
    moov = bytearray(boxes.pop(b"moov"))
    table = moov.index(b"stco")
    for entry in range(table + 12, table + 12 + 4 * int.from_bytes(moov[table + 8 : table + 12], "big"), 4):
        offset = int.from_bytes(moov[entry : entry + 4], "big") + len(moov)
        moov[entry : entry + 4] = offset.to_bytes(4, "big")
    return boxes.pop(b"ftyp") + bytes(moov) + b"".join(boxes.values())


def test_cut_mp4_is_reported_with_the_number_of_its_frames(tmp_path):
    data = move_index_to_the_start(write_video(tmp_path / "a.mp4", 12))
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    whole.write_bytes(data)
    cut.write_bytes(data[: len(data) * 3 // 4])
    recording = open_recording(whole)
    assert len(list(recording)) == 12 and not recording.ended
    recording = open_recording(cut)
    count = len(list(recording))
    assert 0 < count < recording.length == 12
    assert recording.ended == (
        f"ended after {count} frames; 12 according to its header: the file is cut off, or was copied incompletely"
    )


def test_mp4_without_its_end_is_named(tmp_path, capfd):
    data = write_video(tmp_path / "a.mp4", 12).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="a video that was cut off, or copied incompletely"):
        open_recording(tmp_path / "cut.mp4")


NAMES = ["a%d.mp4", "a%03d.mp4", "frame_0001.mp4", "http:a.mp4", "concat:a|b.mp4", "a*[x]?.mp4", "#a.mp4", "ü.mp4"]


@pytest.mark.parametrize("name", [*NAMES, b"\xff\xfe.mp4", b"no suffix \xff"])
def test_names_of_videos_are_not_part_of_another_syntax(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    write_video(tmp_path / "plain.mp4").rename(path)
    recording = open_recording(path)
    assert [index_of(frame.image) for frame in recording] == list(range(10))
    folder = tmp_path / f"in {path.stem}"
    folder.mkdir()
    with VideoFile(folder, path.stem, 10) as video:
        for index in range(3):
            video.write(picture(index))
    assert os.listdir(folder) == [f"{path.stem}.mp4"]
    assert len(list(open_recording(video.path))) == 3


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_that_are_not_utf8_in_any_locale(tmp_path, locale):
    """A process of its own: OpenCV ends the process on such a name."""
    write_video(tmp_path / "a.mp4").rename(tmp_path / os.fsdecode(b"\xe9\xff.mp4"))
    program = (
        "import pathlib\nfrom raymap3r_ros.io import open_recording\n"
        "(path,) = pathlib.Path('.').iterdir()\nprint(len(list(open_recording(path))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "LC_ALL": locale, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


def preview(folder, seconds, fps):
    with VideoFile(folder, "preview", fps) as video:
        for index, time in enumerate(seconds):
            video.write(np.full((32, 48, 3), 20 * index, np.uint8), time)
    return [round(float(frame.image.mean()) / 20) for frame in open_recording(video.path)]


def test_preview_has_the_speed_of_the_recording(tmp_path):
    shown = preview(tmp_path, [time / 1000 for time in TIMES], 30)
    assert len(shown) == round(2.5 * 30) + 1
    for index, time in enumerate(TIMES):
        assert abs(shown.index(index) - time * 30 / 1000) < 2
    # A rate that is ten times too high, or too low.
    assert preview(tmp_path, np.arange(5) / 6, 60) == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10 + [4]
    assert len(preview(tmp_path, np.arange(10) / 60, 6)) == 2


def test_preview_of_regular_and_of_jumping_clocks_has_every_picture(tmp_path):
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, 12)
    assert preview(tmp_path, (np.arange(12) + jitter) / 10, 10) == list(range(12))
    assert preview(tmp_path, [0, 0.1, 0.2, -5, -4.9, -4.9, -4.8], 10) == list(range(7))
    assert len(preview(tmp_path, [0, 0.1, 1e9, 1e9 + 0.1], 10)) == 1 + 1 + MAX_GAP * 10 + 1


def test_broken_avi_that_lacks_frames_is_incomplete(tmp_path):
    path = write_video(tmp_path / "a.avi", count=12, code="MJPG")
    data = bytearray(path.read_bytes())
    starts = [match.start() for match in re.finditer(b"00dc", data)][:12]
    data[starts[5] : starts[8]] = bytes(starts[8] - starts[5])
    path.write_bytes(data)
    recording = open_recording(path)
    count = len(list(recording)) + recording.skipped
    assert count == 12 or recording.ended


def chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def test_an_avi_whose_camera_has_dropped_frames_is_complete(tmp_path):
    """They are counted in the header, and have chunks without data."""
    slots = [b"" if index in (3, 4, 9) else encoded(index) for index in range(12)]
    header = struct.pack("<14I", 100_000, 0, 0, 0, len(slots), 0, 1, 0, 64, 48, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack(
        "<IHHIIIIIIII4H", 0, 0, 0, 0, 1, 10, 0, len(slots), 0, 2**32 - 1, 0, 0, 0, 64, 48
    )
    picture = struct.pack("<IiiHH4sIiiII", 40, 64, 48, 1, 24, b"MJPG", 64 * 48 * 3, 0, 0, 0, 0)
    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", picture))
    lists = chunk(b"LIST", b"hdrl" + chunk(b"avih", header) + streams)
    lists += chunk(b"LIST", b"movi" + b"".join(chunk(b"00dc", data) for data in slots))
    (tmp_path / "a.avi").write_bytes(chunk(b"RIFF", b"AVI " + lists))
    recording = open_recording(tmp_path / "a.avi")
    frames = list(recording)
    assert len(frames) == recording.length == 9 and not recording.ended
    assert [round(10 * frame.stamp) for frame in frames] == [0, 1, 2, 5, 6, 7, 8, 10, 11]


def encoded(index: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), 40 + 15 * index, np.uint8))[1].tobytes()


def rotate(path: Path, degrees: int) -> Path:
    """Write a rotation into the matrix of an MP4 file's track, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data[start : start + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_that_is_turned_is_reported_if_intrinsics_are_given(tmp_path, caplog, degrees):
    path = rotate(write_video(tmp_path / "a.mp4"), degrees)
    (first, *_) = open_recording(path)
    assert first.image.shape[:2] == ((48, 32) if degrees != 180 else (32, 48))
    turned = np.rot90(first.image, degrees // 90).astype(int)  # back again, counter-clockwise
    assert np.abs(turned[..., 0] - picture(0)[..., 0]).mean() < 8
    assert not caplog.records
    open_recording(path, intrinsics=np.array([[50.0, 0, 16], [0, 50, 24], [0, 0, 1]]))
    (record,) = caplog.records
    assert f"turned by {degrees} degrees" in record.getMessage()


@pytest.mark.parametrize(("shown", "size"), [((96, 32), (96, 32)), ((24, 32), (48, 64)), ((48, 32), SIZE)])
def test_pixels_that_are_not_square_are_stretched(tmp_path, caplog, shown, size):
    path = write_matroska(tmp_path / "dv.mkv", TIMES, shown=shown)
    frames = list(open_recording(path))
    assert len(frames) == 12 and all(frame.image.shape[1::-1] == size for frame in frames)
    ramp = frames[0].image[size[1] // 2, :, 0].astype(int)
    assert np.abs(ramp - np.linspace(250, 20, size[0])).max() < 8
    assert [record.getMessage().partition("pixels are ")[2] for record in caplog.records] == (
        []
        if size == SIZE
        else [f"{'2' if shown[0] > 48 else '0.5'} times as wide as high: the images are stretched to square pixels"]
    )
    caplog.clear()
    open_recording(path, intrinsics=np.array([[90.0, 0, 48], [0, 90, 16], [0, 0, 1]]))
    assert ("the given intrinsics must be those of the stretched images" in caplog.text) == (size != SIZE)


def add_pixel_shape(path: Path, across: int, down: int) -> Path:
    """Write a pixel aspect ratio into an MP4 file, whose index is at its end."""
    data = bytearray(path.read_bytes())
    at = -4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"):
        at = data.index(name, at + 4) - 4
        length = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (length + 16).to_bytes(4, "big")
    data[at + length : at + length] = struct.pack(">I4sII", 16, b"pasp", across, down)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("degrees", "size"), [(90, (32, 96)), (180, (96, 32)), (270, (32, 96))])
def test_a_turned_video_is_stretched_along_its_former_width(tmp_path, degrees, size):
    path = rotate(add_pixel_shape(write_video(tmp_path / "a.mp4"), 2, 1), degrees)
    (first, *_) = open_recording(path)
    assert first.image.shape[1::-1] == size


def test_an_impossible_shape_of_pixels_is_not_used(tmp_path, caplog):
    (first, *_) = open_recording(add_pixel_shape(write_video(tmp_path / "a.mp4"), 60000, 1))
    assert first.image.shape[1::-1] == SIZE and "60000 times as wide as high: read as square ones" in caplog.text


def matroska_track(number_of_track: int, width: int, height: int, default: int) -> bytes:
    head = number("d7", number_of_track) + number("73c5", number_of_track) + number("83", 1) + number("88", default)
    return element("ae", head + element("86", b"V_MJPEG") + element("e0", number("b0", width) + number("ba", height)))


def add_mp4_track(path: Path, size: tuple[int, int], first_is_default: bool) -> Path:
    """Add a copy of the track of an MP4 file, whose index is at its end, with another size in its header."""
    data = bytearray(path.read_bytes())
    moov, track = data.index(b"moov") - 4, data.index(b"trak") - 4
    end = track + int.from_bytes(data[track : track + 4], "big")
    copy = data[track:end]
    entry = copy.index(b"mp4v") + 28
    copy[entry : entry + 4] = struct.pack(">HH", *size)
    head = copy.index(b"tkhd")
    copy[head + 16 : head + 20] = struct.pack(">I", 2)  # its number
    data[track + head + 7] &= ~1 if not first_is_default else 0xFF
    data[end:end] = copy
    data[moov : moov + 4] = (int.from_bytes(data[moov : moov + 4], "big") + len(copy)).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(
    ("size", "first_is_default", "warned"),
    [((96, 64), True, True), ((48, 32), True, True), ((24, 16), True, False), ((24, 16), False, True)],
)
def test_a_better_video_track_than_the_first_is_named(tmp_path, caplog, suffix, size, first_is_default, warned):
    path = tmp_path / f"a.{suffix}"
    if suffix == "mp4":
        add_mp4_track(write_video(path), size, first_is_default)
    else:
        write_matroska(path, TIMES, extra=matroska_track(2, *size, 1), default=first_is_default)
    assert len(list(open_recording(path))) == (10 if suffix == "mp4" else len(TIMES))
    default = "" if first_is_default else " and is the default"
    assert [record.getMessage() for record in caplog.records] == [
        f"a.{suffix}: only its first video track, 48x32, is read; another one has {size[0]}x{size[1]}{default}; to "
        f"read that one: ffmpeg -i INPUT -map 0:v:1 -c copy OUTPUT.{suffix}"
    ] * warned


def test_an_mp4_without_its_index_is_named(tmp_path, capfd):
    data = write_video(tmp_path / "a.mp4", 12).read_bytes()
    (tmp_path / "killed.mp4").write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(InputError, match=r"an MP4 file without its index \(moov box\).*repair it"):
        open_recording(tmp_path / "killed.mp4")


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a.txt"])
@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:1,\n{}\n", "\n ffconcat version 1.0\nfile '{}'\n", "v=0\nm=video\n"],
    ids=["m3u8", "ffconcat", "sdp"],
)
def test_a_file_cannot_name_other_files_to_read(tmp_path, name, text):
    other = write_video(tmp_path / "other.mp4")
    (tmp_path / name).write_text(text.format(other))
    with pytest.raises(InputError, match="a playlist, which names other files; give the video itself"):
        open_recording(tmp_path / name)


def write_grey(path: Path, values: list[int]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, (48, 32))
    for value in values:
        writer.write(np.full((32, 48, 3), value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("values", [[0] * 10, [0], [90] * 10])
def test_a_video_of_images_that_were_never_written_is_no_success(tmp_path, values, stride):
    """OpenCV returns unused memory for interlaced videos, without an error."""
    recording = open_recording(write_grey(tmp_path / "a.avi", values), stride=stride)
    assert len(list(recording)) == len(range(0, len(values), stride))
    assert recording.ended.startswith("every image is black, or the same") and "-vf bwdif" in recording.ended


def test_a_part_in_which_a_camera_stands_is_one_of_a_video_that_moves(tmp_path):
    path = write_grey(tmp_path / "a.avi", [*range(60, 90), *[90] * 30])
    recording = open_recording(path, start=2.0)
    assert len(list(recording)) == 20 and not recording.ended
    recording = open_recording(write_grey(tmp_path / "b.avi", [90] * 60), start=2.0)
    assert len(list(recording)) == 20 and recording.ended.startswith("every image is black, or the same")


@pytest.mark.parametrize("values", [[0] * 9 + [90], [90], [90] * 9 + [91]])
def test_a_dark_or_still_video_is_one(tmp_path, values):
    recording = open_recording(write_grey(tmp_path / "a.avi", values))
    assert len(list(recording)) == len(values) and not recording.ended


class Bits:
    """Bits of an H.264 parameter set, with the codes of the standard (ITU-T H.264, 9.1)."""

    def __init__(self):
        self.text = ""

    def plain(self, value, count):
        self.text += f"{value:0{count}b}"
        return self

    def golomb(self, *values):
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code
        return self

    def unit(self, kind, pixels=b""):
        """The unit with its start code. `pixels` are appended at the next whole byte, as in an I_PCM macroblock."""
        text = self.text if pixels else self.text + "1"
        text += "0" * (-len(text) % 8)
        body = int(text, 2).to_bytes(len(text) // 8, "big") + pixels + (b"\x80" if pixels else b"")
        return b"\0\0\0\1" + bytes([kind]) + body


def write_h264(path: Path, brightness: list[int]) -> Path:
    """A raw H.264 stream of grey images of 16x16 pixels, each one uncompressed macroblock."""
    # Profile 66, level 10; 16 frames, 1x1 macroblock, whole frames.
    stream = Bits().plain(66, 8).plain(0, 8).plain(10, 8).golomb(0, 0, 2, 0).plain(0, 1).golomb(0, 0).plain(0b1100, 4)
    data = stream.unit(0x67)
    data += Bits().golomb(0, 0).plain(0, 2).golomb(0, 0, 0).plain(0, 3).golomb(0, 0, 0).plain(0, 3).unit(0x68)
    for index, value in enumerate(brightness):
        # I slice of an IDR picture; slice QP, no deblocking control; macroblock type 25: I_PCM.
        head = Bits().golomb(0, 7, 0).plain(0, 4).golomb(index % 2).plain(0, 2).golomb(0, 25)
        data += head.unit(0x65, bytes([value]) * 256 + bytes([128]) * 128)
    path.write_bytes(data)
    return path


def test_a_stream_without_times_has_the_given_rate(tmp_path, caplog):
    path = write_h264(tmp_path / "a.h264", [40, 80, 120, 160])
    recording = open_recording(path, rate=10)
    frames = list(recording)
    assert np.allclose(np.diff([frame.image.mean() for frame in frames]), 40 * 255 / 219, atol=2)
    assert [frame.stamp for frame in frames] == [0, 0.1, 0.2, pytest.approx(0.3)]
    assert recording.rate == 10
    assert "a stream without times: 10 frames per second are assumed (--rate)" in caplog.text


def raw_streams(pictures: list[np.ndarray]) -> dict[str, bytes]:
    """Images without a container by file name, as cameras and servers send them."""
    jpegs, pngs, ppms = (
        [cv2.imencode(kind, one)[1].tobytes() for one in pictures] for kind in (".jpg", ".png", ".ppm")
    )
    parts = b"".join(
        b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(p), p) for p in jpegs
    )
    header = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=b\r\n\r\n"
    return {
        "cam.mjpg": b"".join(jpegs), "cam.raw": b"".join(jpegs), "curl.mjpg": parts, "curl-i.mjpg": header + parts,
        "cam.pngs": b"".join(pngs), "cam.ppms": b"".join(ppms),
    }  # fmt: skip


def encode(path: Path, pictures: list[np.ndarray], codec: str) -> bytes | None:
    """A stream at 25 frames per second, as OpenCV's FFmpeg writes it; None if it cannot."""
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 25, (width, height))
    for one in pictures:
        writer.write(one)
    writer.release()
    return path.read_bytes() if path.is_file() else None


def test_every_stream_without_times_has_the_given_rate(tmp_path, caplog):
    pictures = [cv2.resize(picture(index), (176, 144)) for index in range(4)]
    streams = raw_streams(pictures)
    if dirac := encode(tmp_path / "a.drc", pictures, "drac"):
        streams["cam.drc"] = dirac
    for name, data in streams.items():
        caplog.clear()
        (tmp_path / name).write_bytes(data)
        recording = open_recording(tmp_path / name, rate=8)
        assert [frame.stamp for frame in recording] == [0, 0.125, 0.25, 0.375], name
        assert "a stream without times: 8 frames per second are assumed (--rate)" in caplog.text, name


def test_a_stream_that_states_its_rate_of_25_keeps_it(tmp_path, caplog):
    pictures = [cv2.resize(picture(index), (176, 144)) for index in range(4)]
    assert encode(tmp_path / "a.m2v", pictures, "MPG2") and encode(tmp_path / "a.ts", pictures, "MPG2")
    animated = [Image.fromarray(one) for one in pictures]
    animated[0].save(tmp_path / "a.apng", format="png", save_all=True, append_images=animated[1:], duration=40)
    live = write_matroska(tmp_path / "live.mkv", [0, 40, 80, 120], 2**56 - 1).read_bytes()
    live = live.replace(number("23e383", 33_333_333), number("23e383", 40_000_000))
    (tmp_path / "live.mkv").write_bytes(
        live.replace(element("4489", struct.pack(">d", 3000)), element("ec", bytes(8)))
    )
    for name in ("a.m2v", "a.ts", "a.apng", "live.mkv"):
        frames = list(open_recording(tmp_path / name, rate=8))
        assert np.diff([frame.stamp for frame in frames]) == pytest.approx([0.04] * 3, abs=1e-3), name
    assert not caplog.records


@pytest.mark.parametrize(
    "trailer",
    [
        b"8db42d694ccc418790edff439fe026bf",
        b"$GPRMC,081836,A,3751.65,S,14507.36,E*62\n" * 40,
        bytes(4096),
        b"\xfe" * 5000,
    ],
    ids=["marker", "NMEA", "zeros", "data"],
)
@pytest.mark.parametrize("index_first", [False, True])
def test_bytes_that_a_camera_appends_to_a_whole_video_are_no_damage(tmp_path, trailer, index_first, caplog):
    path = write_video(tmp_path / "a.mp4", count=9)
    whole = move_index_to_the_start(path) if index_first else path.read_bytes()
    path.write_bytes(whole + trailer)
    recording = open_recording(path)
    assert len(list(recording)) == 9 and not recording.ended and not caplog.records


def test_a_cut_fragment_after_whole_boxes_is_damage(tmp_path):
    def box(kind, length):
        return struct.pack(">I4s", length, kind)

    path = tmp_path / "a.mp4"
    start = box(b"ftyp", 8) + box(b"moov", 8) + box(b"moof", 8) + box(b"mdat", 16) + bytes(8)
    for kind, cut in ((b"moof", True), (b"mdat", True), (b"moov", True), (b"udta", False)):
        path.write_bytes(start + box(kind, 100) + bytes(20))
        assert read_container(path).cut == cut
    path.write_bytes(box(b"ftyp", 8) + box(b"free", 100))
    assert read_container(path).cut


@pytest.mark.parametrize("lost", [0, 5])
def test_frames_before_the_first_key_frame_are_counted(tmp_path, caplog, lost):
    """As of a transport stream that was recorded from its middle; its groups have 12 frames."""
    pictures = [picture(index) for index in range(12)] * 3
    assert encode(tmp_path / "whole.ts", pictures, "MPG2")
    data = (tmp_path / "whole.ts").read_bytes()
    packets = [data[begin : begin + 188] for begin in range(0, len(data), 188)]
    starts = [number for number, one in enumerate(packets) if one[1] & 0x5F == 0x41 and one[2] == 0]  # of PID 256
    assert len(starts) == len(pictures)
    kept = packets[: starts[0]] + packets[starts[lost] :]
    (tmp_path / "a.ts").write_bytes(b"".join(kept))
    recording = open_recording(tmp_path / "a.ts")
    stamps = [frame.stamp for frame in recording]
    undecodable = 12 - lost if lost else 0
    assert len(stamps) == len(pictures) - lost - undecodable
    assert undecodable <= recording.skipped <= undecodable + bool(lost)
    assert ("before the first key frame: the recording begins in the middle" in caplog.text) == bool(lost)


def test_clips_that_were_joined_continue_with_the_rate_and_a_warning(tmp_path, caplog):
    pictures = [picture(index) for index in range(12)] * 3
    assert encode(tmp_path / "one.ts", pictures, "MPG2")
    (tmp_path / "two.ts").write_bytes(2 * (tmp_path / "one.ts").read_bytes())
    stamps = [frame.stamp for frame in open_recording(tmp_path / "two.ts")]
    assert len(stamps) == 2 * len(pictures) and np.allclose(np.diff(stamps), 0.04, atol=1e-3)
    assert caplog.text.count("the times of the file start again at frame 36") == 1
