"""Videos, folders of images and new formats, against frames that the tests encoded."""

import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from recordings import assert_shows, index_of, picture, write_video

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import formats, open_recording


@pytest.mark.parametrize(("name", "code"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
def test_video_frames_are_rgb_with_the_containers_times(tmp_path, name, code):
    recording = open_recording(write_video(tmp_path / name, code=code))
    frames = list(recording)
    assert (recording.kind, recording.length, recording.rate) == ("video", 10, 20.0)
    assert [index_of(frame.image) for frame in frames] == list(range(10))
    assert np.allclose([frame.stamp for frame in frames], np.arange(10) / 20)
    assert np.abs(frames[3].image[..., 0].astype(int) - picture(3)[..., 0]).mean() < 8  # red is red
    assert frames[0].intrinsics is None


def test_video_with_stride_and_limit_keeps_stamps(tmp_path):
    recording = open_recording(write_video(tmp_path / "a.mp4"), stride=3, max_frames=3)
    assert recording.length == 3
    assert recording.rate == pytest.approx(20 / 3)
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == [0, 3, 6]
    assert np.allclose([frame.stamp for frame in frames], [0, 0.15, 0.3])
    assert len(list(recording)) == 3  # can be read again


def test_recorded_clip_has_its_65_frames_at_30_hz(shared):
    recording = open_recording(shared / "clips" / "lady-running.mp4", stride=16)
    frames = list(recording)
    assert len(frames) == recording.length == 5
    assert frames[0].image.shape == (480, 854, 3)
    assert frames[-1].stamp == pytest.approx(64 / 30)


def test_video_that_ends_early_is_reported(tmp_path, caplog):
    whole = write_video(tmp_path / "a.avi", count=12, code="MJPG").read_bytes()
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", whole)]
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: starts[8]])
    recording = open_recording(cut)
    assert [index_of(frame.image) for frame in recording] == list(range(8))
    assert (recording.length, recording.skipped) == (12, 0)
    assert "ended after 8 frames; 12 according to its header" in caplog.text


def test_broken_video_frame_in_the_middle_is_skipped_and_counted(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi", count=8, code="MJPG")
    data = bytearray(path.read_bytes())
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)]
    data[starts[4] : starts[5] - 30] = bytes(starts[5] - 30 - starts[4])
    path.write_bytes(data)
    recording = open_recording(path)
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 3, 5, 6, 7]
    assert np.allclose([frame.stamp for frame in frames], np.array([0, 1, 2, 3, 5, 6, 7]) / 20)
    assert recording.skipped == 1
    assert "skipped frame 4: it cannot be decoded" in caplog.text
    assert "ended after" not in caplog.text


def test_images_are_in_natural_order_with_given_rate_and_intrinsics(tmp_path):
    names = ["frame10.png", "frame9.PNG", "frame1.bmp", "frame2.tif", "frame11.webp"]
    for name in names:
        index = int("".join(filter(str.isdigit, name)))
        Image.fromarray(picture(index)).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "metadata.yaml").write_text("of no bag: true")
    (tmp_path / "._frame3.png").write_bytes(b"left by another system")
    matrix = np.array([[30.0, 0, 24], [0, 31, 16], [0, 0, 1]])
    recording = open_recording(tmp_path, rate=4, intrinsics=matrix)
    frames = list(recording)
    assert recording.length == 5
    for frame, index in zip(frames, (1, 2, 9, 10, 11), strict=True):
        assert_shows(frame.image, index)
        assert frame.intrinsics is matrix
    assert [frame.stamp for frame in frames] == [0, 0.25, 0.5, 0.75, 1.0]
    assert [frame.stamp for frame in open_recording(tmp_path, rate=4, stride=2)] == [0, 0.5, 1.0]


def test_grey_16_bit_and_transparent_images_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(8, 32) * 256
    cv2.imwrite(str(tmp_path / "1.png"), grey)
    cv2.imwrite(str(tmp_path / "2.png"), (grey // 256).astype(np.uint8))
    Image.fromarray(np.dstack([grey // 256] * 3 + [np.zeros_like(grey)]).astype(np.uint8), "RGBA").save(
        tmp_path / "3.png"
    )
    for frame in open_recording(tmp_path):
        assert np.array_equal(frame.image, np.dstack([grey // 256] * 3))


def test_photo_lying_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    lying = np.rot90(picture(1))
    Image.fromarray(np.ascontiguousarray(lying)).save(tmp_path / "1.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(picture(2)).save(tmp_path / "2.png")  # the same size once it is upright
    first, _ = open_recording(tmp_path)
    assert_shows(first.image, 1, tolerance=12)


def test_broken_image_in_the_middle_is_skipped_and_counted(tmp_path, caplog):
    for index in range(5):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"this is no image at all")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    recording = open_recording(tmp_path, rate=10)
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == [0, 2, 4]
    assert [frame.stamp for frame in frames] == [0, 0.2, 0.4]
    assert recording.skipped == 2
    assert "skipped 1.png: not a known image format" in caplog.text
    assert "skipped 3.png" in caplog.text


def test_missing_path():
    with pytest.raises(InputError, match="nowhere: there is no such file or folder"):
        open_recording("/nowhere")


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"no images \(\.png .*\) and no bag in this folder"):
        open_recording(tmp_path)


def test_file_that_is_not_a_video(tmp_path, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match="not a video that OpenCV can read"):
        open_recording(path)


def test_single_image(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a single image; give a folder"):
        open_recording(tmp_path / "a.png")


def test_folder_of_broken_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no frame could be read \(1 could not be decoded"):
        list(open_recording(tmp_path))


def test_images_of_different_sizes_are_refused_before_work_begins(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    Image.fromarray(picture(1, (16, 32))).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"different sizes: 1\.png is 48x32, 2\.png is 16x32"):
        open_recording(tmp_path)
    assert len(list(open_recording(tmp_path, max_frames=1))) == 1


def test_topic_of_an_input_that_is_not_a_bag(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="not a bag, so it has no topic '/image'"):
        open_recording(tmp_path, topic="/image")


@pytest.mark.parametrize(
    ("option", "message"),
    [({"stride": 0}, "stride is 0"), ({"max_frames": 0}, "max_frames is 0"), ({"rate": 0}, "rate is 0")],
)
def test_options_out_of_range(tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        open_recording(tmp_path, **option)


NEW_FORMAT = """
import numpy as np
from raymap3r_ros.io.recording import Format, Frame, Recording


def read(path, options):
    images = np.load(path)

    def frames(recording):
        for index in range(0, len(images), options.stride):
            yield Frame(images[index], index / options.rate, options.intrinsics)

    return Recording(
        path, "array", options.expected(len(images)), options.stride, options.max_frames, options.rate, frames=frames
    )


ARRAY = Format("array", lambda path: path.suffix == ".npy", read)
"""


def test_a_new_format_is_one_new_file(tmp_path, monkeypatch):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "test_only_array.py").write_text(NEW_FORMAT)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(plugins)])
    np.save(tmp_path / "a.npy", np.stack([picture(index) for index in range(5)]))
    recording = open_recording(tmp_path / "a.npy", stride=2, rate=10)
    assert (recording.kind, recording.length) == ("array", 3)
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == [0, 2, 4]
    assert [frame.stamp for frame in frames] == [0, 0.2, 0.4]
    with pytest.raises(InputError, match="not a bag"):
        open_recording(tmp_path / "a.npy", topic="/image")


def test_names_with_digits_that_are_no_numbers(tmp_path):
    names = ["2.png", "a²1.png", "a²10.png", "a²9.png", "¾.png", "٣.png"]
    for index, name in enumerate(names):
        Image.fromarray(picture(index)).save(tmp_path / name)
    assert [index_of(frame.image) for frame in open_recording(tmp_path)] == [0, 5, 1, 3, 2, 4]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_does_not_hide_the_picture(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "maker"
    exif[0x8769] = {0x9003: "2024:01:01 00:00:00", 0x829A: 0.5}
    for index in range(2):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}{name}", exif=exif)
    data = (tmp_path / f"1{name}").read_bytes()
    start = data.find(b"MM\0*") if b"MM\0*" in data else data.find(b"II*\0")
    assert start > 0
    rng = np.random.default_rng(0)
    for position in range(4, 60):
        damaged = bytearray(data)
        damaged[start + position] ^= rng.integers(1, 256)
        (tmp_path / f"1{name}").write_bytes(damaged)
        try:
            frames = list(open_recording(tmp_path))
        except InputError as error:
            assert "different sizes" in str(error)  # a damaged orientation may turn the picture
        else:
            assert len(frames) == 2 or name == "a.png"  # which has a checksum


def test_images_that_are_no_files_are_skipped_and_counted(tmp_path, caplog):
    for index in (0, 2, 5):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "3.png").symlink_to("gone.png")
    (tmp_path / "4.png").symlink_to("4.png")
    (tmp_path / "6.png").mkdir()
    (tmp_path / "7").symlink_to(".")
    recording = open_recording(tmp_path, rate=1)
    assert [(index_of(frame.image), frame.stamp) for frame in recording] == [(0, 0), (2, 2), (5, 5)]
    assert (recording.length, recording.skipped) == (6, 3)
    assert "skipped 1.png: not a regular file" in caplog.text
    assert "skipped 3.png: a link that leads nowhere" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["IMG_1.HEIC", "IMG_2.HEIC", "notes"], r"its files: 2 \.heic, 1 without suffix \(convert images"),
        (["dive_1.mp4", "dive_2.WMV", "x.txt"], r"2 videos: give one of them, or the folder to `raymap3r batch`"),
        (["dive_1.mp4", "x.txt"], r"give the video in it: .*dive_1\.mp4"),
        ([".DS_Store", "Thumbs.db"], r"its files: .*1 \.db"),
        (["left/1.png", "right/1.png"], r"its subfolder left contains images: give .*left$"),
    ],
)
def test_a_folder_without_images_reports_what_it_contains(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        open_recording(tmp_path)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_an_animation_in_an_image_file_is_named(tmp_path, name):
    first, second = (Image.fromarray(picture(index)) for index in range(2))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(InputError, match=r"is a sequence of images \(convert it to a video\)"):
        open_recording(tmp_path / name)


@pytest.mark.parametrize("name", ["b.webp", "b.png", "b.tif"])
def test_a_sequence_of_images_in_a_file_of_a_folder_is_skipped_by_name(tmp_path, caplog, name):
    pictures = [Image.fromarray(picture(index)) for index in range(4)]
    pictures[0].save(tmp_path / "a.png")
    pictures[1].save(tmp_path / name, save_all=True, append_images=pictures[2:])
    recording = open_recording(tmp_path)
    assert len(list(recording)) == 1 and recording.skipped == 1
    assert f"{name}: it contains several images; convert it to a video or to single images" in caplog.text


@pytest.mark.parametrize(("name", "size"), [("a.jpg", (48, 32)), ("a.tif", (12, 8))])
def test_a_second_picture_of_a_phone_or_a_preview_is_no_sequence(tmp_path, name, size):
    """As the depth or gain maps in photographs of phones, and thumbnails in TIFF files."""
    first = Image.fromarray(picture(0))
    kind = "MPO" if name == "a.jpg" else None
    first.save(tmp_path / name, kind, save_all=True, append_images=[first.resize(size)])
    recording = open_recording(tmp_path)
    assert len(list(recording)) == 1 and not recording.skipped


def test_depth_maps_among_the_images_are_reported_once(tmp_path, caplog):
    for index in range(2):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}_rgb.png")
        cv2.imwrite(str(tmp_path / f"{index}_depth.png"), np.full((32, 48), 1000, np.uint16))
    open_recording(tmp_path)
    (record,) = caplog.records
    assert "2 of 4 images have 16 bits of grey (0_depth.png)" in record.getMessage()


def test_pictures_of_formats_that_are_not_read_are_skipped_and_counted(tmp_path, caplog):
    for name in ("0.png", "2.png", "3.png"):
        cv2.imwrite(str(tmp_path / name), picture(0))
    (tmp_path / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))  # as a phone mixes them
    (tmp_path / "3.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))  # 3.png is its converted copy
    (tmp_path / "4.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(400))
    (tmp_path / "Thumbs.db").write_bytes(bytes(100))
    recording = open_recording(tmp_path, rate=10)
    assert [frame.stamp for frame in recording] == [0.0, 0.2, 0.3]
    assert recording.skipped == 2 and "skipped 1.HEIC" in caplog.text and "skipped 4.exr" in caplog.text


def test_a_folder_names_the_bags_and_videos_in_it(tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / "session" / name).mkdir(parents=True)
        (tmp_path / "session" / name / "a_0.mcap").touch()
    with pytest.raises(InputError, match=r"its subfolder a is a bag \(one of 2\): give .*session/a"):
        open_recording(tmp_path / "session")
    write_video(tmp_path / "mixed.mp4")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed.mp4").rename(tmp_path / "mixed" / "clip.mp4")
    Image.new("RGB", (48, 32)).save(tmp_path / "mixed" / "0.png")
    assert len(list(open_recording(tmp_path / "mixed"))) == 1
    assert "mixed: videos beside the images are not read: clip.mp4" in caplog.text


def test_a_tiff_of_32_bit_colours_is_named(tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "0.tiff"), np.zeros((32, 48, 3), np.float32))
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(tmp_path))
    assert "has pixels of an unsupported type; convert it to 8 or 16 bits" in caplog.text
