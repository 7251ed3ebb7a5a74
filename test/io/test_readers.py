"""Recordings against frames that the tests themselves encoded."""

import re
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording

STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPES = STORE.types
SIZE = 48, 32  # width, height


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red-to-dark ramp whose blue tells the index: tells channel order, orientation and frames apart."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[..., 0] = np.linspace(250, 20, size[0])
    image[..., 2] = 20 * index
    return image


def index_of(image: np.ndarray) -> int:
    return round(float(image[..., 2].mean()) / 20)


def assert_shows(image: np.ndarray, index: int, tolerance: float = 0) -> None:
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - picture(index)).max() <= tolerance


# ----------------------------------------------------------------------------------------------------------- video


def write_video(path: Path, count: int = 10, fps: float = 20.0, code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, SIZE)
    for index in range(count):
        writer.write(picture(index)[..., ::-1])
    writer.release()
    return path


@pytest.mark.parametrize(("name", "code"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
def test_video_gives_frames_in_rgb_with_the_containers_times(tmp_path, name, code):
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
    assert len(list(recording)) == 3  # may be read again


def test_recorded_clip_has_its_65_frames_at_30_hz(shared):
    recording = open_recording(shared / "clips" / "lady-running.mp4", stride=16)
    frames = list(recording)
    assert len(frames) == recording.length == 5
    assert frames[0].image.shape == (480, 854, 3)
    assert frames[-1].stamp == pytest.approx(64 / 30)


def test_video_that_ends_early_is_told(tmp_path, caplog):
    whole = write_video(tmp_path / "a.avi", count=12, code="MJPG").read_bytes()
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", whole)]
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: starts[8]])
    recording = open_recording(cut)
    assert [index_of(frame.image) for frame in recording] == list(range(8))
    assert (recording.length, recording.skipped) == (12, 0)
    assert "ended after 8 frames; its header says 12" in caplog.text


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


# ---------------------------------------------------------------------------------------------------------- images


def test_images_come_in_natural_order_with_given_rate_and_intrinsics(tmp_path):
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


# ------------------------------------------------------------------------------------------------------------ bags


def header(seconds: float):
    whole = int(seconds)
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=whole, nanosec=round((seconds - whole) * 1e9))
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def image_message(seconds: float, data: np.ndarray, encoding: str, width: int = SIZE[0], step: int = 0, big: int = 0):
    data = np.ascontiguousarray(data)
    return TYPES["sensor_msgs/msg/Image"](
        header=header(seconds), height=data.shape[0], width=width, encoding=encoding, is_bigendian=big,
        step=step or data.nbytes // data.shape[0], data=data.view(np.uint8).reshape(-1),
    )  # fmt: skip


def compressed_message(seconds: float, image: np.ndarray, suffix: str = ".png"):
    encoded = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1]
    message = TYPES["sensor_msgs/msg/CompressedImage"]
    return message(header=header(seconds), format=suffix[1:], data=encoded.reshape(-1))


def info_message(seconds: float, matrix: np.ndarray, size=SIZE, distortion=(), model="plumb_bob", projection=None):
    projection = matrix if projection is None else projection
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header=header(seconds), height=size[1], width=size[0], distortion_model=model,
        d=np.array(distortion, np.float64), k=matrix.astype(np.float64).reshape(9), r=np.eye(3).reshape(9),
        p=np.hstack([projection, np.zeros((3, 1))]).reshape(12), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def write_bag(path: Path, messages, plugin=StoragePlugin.MCAP) -> Path:
    """`messages`: (topic, recording time in seconds, message or (type name, raw bytes))."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for topic, recorded, message in messages:
            kind, data = message if isinstance(message, tuple) else (message.__msgtype__, None)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind) if data is None else data
            writer.write(connections[topic], round(recorded * 1e9), data)
    return path


def camera_bag(path: Path, topic: str = "/cam/image_raw", plugin=StoragePlugin.MCAP, make=None, count=4) -> Path:
    make = make or (lambda seconds, image: image_message(seconds, image, "rgb8"))
    return write_bag(
        path, [(topic, 100 + index, make(50 + index / 10, picture(index))) for index in range(count)], plugin
    )


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("compressed", [False, True])
def test_bag_gives_images_with_their_own_stamps(tmp_path, plugin, compressed):
    bag = camera_bag(tmp_path / "bag", plugin=plugin, make=compressed_message if compressed else None)
    recording = open_recording(bag)
    frames = list(recording)
    assert (recording.kind, recording.length, recording.topic) == ("bag", 4, "/cam/image_raw")
    for index, frame in enumerate(frames):
        assert_shows(frame.image, index)
        assert frame.stamp == pytest.approx(50 + index / 10, abs=1e-6)
        assert frame.intrinsics is None
    file = next(item for item in bag.iterdir() if item.suffix in (".mcap", ".db3"))
    assert len(list(open_recording(file, stride=2))) == 2
    (bag / "metadata.yaml").unlink()  # the recorder was killed
    assert len(list(open_recording(bag, max_frames=3))) == 3


def test_compressed_bag_is_read(tmp_path):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.FILE, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=STORE)
        writer.write(connection, 1, STORE.serialize_cdr(image_message(1, picture(3), "rgb8"), connection.msgtype))
    assert not list((tmp_path / "bag").glob("*.db3"))
    (frame,) = open_recording(tmp_path / "bag")
    assert_shows(frame.image, 3)


def test_sqlite_bag_without_message_definitions_is_read(tmp_path):
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    with sqlite3.connect(bag / "bag.db3") as database:
        database.execute("DROP TABLE message_definitions")
        database.execute("DROP TABLE schema")
        database.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
    (bag / "metadata.yaml").unlink()
    assert [index_of(frame.image) for frame in open_recording(bag)] == [0, 1, 2, 3]


def encodings():
    rgb = picture(5)
    grey = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]) * 40
    padded = np.zeros((SIZE[1], SIZE[0] * 3 + 16), np.uint8)
    padded[:, : SIZE[0] * 3] = rgb.reshape(SIZE[1], -1)
    flat = np.full((SIZE[1], SIZE[0], 3), (200, 60, 90), np.uint8)
    weights = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    luma, blue, red = np.rint(weights @ flat[0, 0] / 255 + (16, 128, 128)).astype(np.uint8)  # ITU-R BT.601
    even = np.arange(SIZE[0]) % 2 == 0
    chroma = np.broadcast_to(np.where(even, blue, red).astype(np.uint8), (SIZE[1], SIZE[0]))
    bayer = flat[..., 2].copy()
    bayer[::2, ::2], bayer[::2, 1::2], bayer[1::2, ::2] = 200, 60, 60
    yield "bgr8", image_message(1, rgb[..., ::-1], "bgr8"), rgb, 0
    yield "rgba8", image_message(1, np.dstack([rgb, rgb[..., 0]]), "rgba8"), rgb, 0
    yield "rows padded", image_message(1, padded, "rgb8"), rgb, 0
    yield "mono16", image_message(1, grey, "mono16"), np.dstack([grey / 257] * 3), 1
    yield "mono16 big-endian", image_message(1, grey.byteswap(), "mono16", big=1), np.dstack([grey / 257] * 3), 1
    yield "rggb", image_message(1, bayer, "bayer_rggb8"), flat, 1
    yuyv = np.dstack([np.full_like(chroma, luma), chroma])
    yield "yuv422_yuy2", image_message(1, yuyv, "yuv422_yuy2"), flat, 4
    yield "uyvy", image_message(1, yuyv[..., ::-1], "uyvy"), flat, 4
    planes = np.vstack([np.full((SIZE[1], SIZE[0]), luma, np.uint8), chroma[: SIZE[1] // 2]])
    nv12 = image_message(1, planes, "nv12")
    nv12.height = SIZE[1]
    yield "nv12", nv12, flat, 4
    yield "grey jpeg", compressed_message(1, (grey // 256).astype(np.uint8), ".jpg"), np.dstack([grey // 256] * 3), 3


@pytest.mark.parametrize(("message", "truth", "tolerance"), [pytest.param(*row[1:], id=row[0]) for row in encodings()])
def test_encodings(tmp_path, message, truth, tolerance):
    (frame,) = open_recording(write_bag(tmp_path / "bag", [("/image", 1, message)]))
    assert frame.image.shape == (SIZE[1], SIZE[0], 3)
    assert np.abs(frame.image.astype(float) - truth).max() <= tolerance


def test_zero_stamps_fall_back_to_the_time_of_recording(tmp_path):
    bag = camera_bag(tmp_path / "bag", make=lambda _, image: image_message(0, image, "rgb8"))
    assert [frame.stamp for frame in open_recording(bag)] == [100, 101, 102, 103]


MATRIX = np.array([[40.0, 0, 24], [0, 41, 16], [0, 0, 1]])


@pytest.mark.parametrize(
    ("image_topic", "info_topic"),
    [
        ("/cam/image_raw", "/cam/camera_info"),
        ("/cam/image_raw/compressed", "/cam/camera_info"),
        ("/image", "/camera_info"),
        ("/cam/color", "/cam/color/camera_info"),
    ],
)
def test_calibration_beside_the_image_is_found(tmp_path, image_topic, info_topic):
    zoomed = MATRIX * [[2, 1, 1], [1, 2, 1], [1, 1, 1]]
    bag = write_bag(
        tmp_path / "bag",
        [
            (image_topic, 1, compressed_message(1, picture(0))),  # before the first calibration
            (info_topic, 2, info_message(2, MATRIX)),
            (image_topic, 3, compressed_message(3, picture(1))),
            (info_topic, 4, info_message(4, zoomed)),
            (image_topic, 5, compressed_message(5, picture(2))),
            ("/other/camera_info", 6, info_message(4, 3 * MATRIX)),
        ],
    )
    assert [frame.intrinsics[0, 0] for frame in open_recording(bag)] == [40, 40, 80]
    given = np.diag([7.0, 7, 1])
    assert all(frame.intrinsics is given for frame in open_recording(bag, intrinsics=given))


def test_uncalibrated_camera_gives_no_intrinsics(tmp_path):
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/camera_info", 1, info_message(1, np.zeros((3, 3)))),
            ("/image", 2, image_message(1, picture(0), "rgb8")),
        ],
    )
    (frame,) = open_recording(bag)
    assert frame.intrinsics is None


def test_rectified_image_goes_with_the_projection_matrix(tmp_path):
    projection = np.array([[33.0, 0, 23], [0, 33, 15], [0, 0, 1]])
    info = info_message(1, MATRIX, distortion=(-0.3, 0.1, 0, 0, 0), projection=projection)
    frames = {}
    for name in ("image_raw", "image_rect_color"):
        messages = [("/direct/camera_info", 1, info), (f"/direct/{name}", 2, image_message(1, picture(0), "rgb8"))]
        (frames[name],) = open_recording(write_bag(tmp_path / name, messages))
    raw, rectified = frames["image_raw"], frames["image_rect_color"]
    np.testing.assert_array_equal(rectified.image, picture(0))
    np.testing.assert_array_equal(rectified.intrinsics, projection)
    # Zoomed so that no pixel is black, about the principal point.
    assert not np.array_equal(raw.image, picture(0))
    np.testing.assert_array_equal(raw.intrinsics[:, 2], MATRIX[:, 2])
    assert raw.intrinsics[0, 0] / raw.intrinsics[1, 1] == pytest.approx(MATRIX[0, 0] / MATRIX[1, 1])
    assert raw.intrinsics[0, 0] < MATRIX[0, 0]


def test_broken_messages_in_the_middle_are_skipped_and_counted(tmp_path, caplog):
    short = image_message(1.1, picture(1), "rgb8")
    short.data = short.data[:-100]
    nonsense = compressed_message(1.2, picture(2))
    nonsense.data = np.full(50, 7, np.uint8)
    raw = STORE.serialize_cdr(image_message(1.3, picture(3), "rgb8"), "sensor_msgs/msg/Image")
    messages = [("/a", 1, image_message(1, picture(0), "rgb8")), ("/a", 2, short)]
    messages += [("/a", 3, image_message(1.2, np.zeros((4, 4), np.float32), "32FC1", width=4))]
    messages += [("/a", 4, image_message(1.2, np.zeros((4, 12), np.uint8), "8UC3", width=4))]
    messages += [("/a", 5, image_message(1.2, np.zeros((4, 12), np.uint8), "what", width=4))]
    messages += [("/a", 6, ("sensor_msgs/msg/Image", bytes(raw[:40])))]
    messages += [("/a", 7, image_message(1.4, picture(4), "rgb8"))]
    recording = open_recording(write_bag(tmp_path / "bag", messages))
    assert [index_of(frame.image) for frame in recording] == [0, 4]
    assert recording.skipped == 5
    for why in (
        "48x32 rgb8 with a step of 144 bytes does not fit 4508 bytes",
        "'32FC1' does not say what its channels are",
        "'8UC3' does not say",
        "'what' is not supported",
        "message 5 of /a: not a valid sensor_msgs/msg/Image",
    ):
        assert why in caplog.text
    compressed = open_recording(
        write_bag(tmp_path / "bag2", [("/b", 1, nonsense), ("/b", 2, compressed_message(1, picture(1)))])
    )
    assert [index_of(frame.image) for frame in compressed] == [1]
    assert "message 0 of /b: not a known image format" in caplog.text


def test_damaged_bag_gives_what_lies_before_the_damage(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    bag = write_bag(
        tmp_path / "bag", [("/a", 1 + index, image_message(1 + index, noise, "rgb8")) for index in range(60)]
    )
    file = next(bag.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3 : len(data) * 2 // 3 + 200_000] = bytes(200_000)
    file.write_bytes(data)
    count = len(list(open_recording(bag)))
    assert 0 < count < 60
    assert "damaged, nothing can be read after this point" in caplog.text


# ------------------------------------------------------------------------------------------------------ bad inputs


def test_missing_path():
    with pytest.raises(InputError, match="nowhere: there is no such file or folder"):
        open_recording("/nowhere")


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"no images \(\.png .*\) and no bag in this folder"):
        open_recording(tmp_path)


def test_file_that_is_no_video(tmp_path, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match="is no video that OpenCV can read"):
        open_recording(path)


def test_single_image(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is one image; give a folder"):
        open_recording(tmp_path / "a.png")


def test_folder_of_broken_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"not one frame could be read \(1 could not be decoded"):
        list(open_recording(tmp_path))


def test_images_of_different_sizes_are_refused_before_work_begins(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    Image.fromarray(picture(1, (16, 32))).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"different sizes: 1\.png is 48x32, 2\.png is 16x32"):
        open_recording(tmp_path)
    assert len(list(open_recording(tmp_path, max_frames=1))) == 1


def test_bag_whose_images_change_size(tmp_path):
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/a", 1, image_message(1, picture(0), "rgb8")),
            ("/a", 2, image_message(2, picture(0, (16, 32)), "rgb8", width=16)),
        ],
    )
    frames = iter(open_recording(bag))
    assert_shows(next(frames).image, 0)
    with pytest.raises(InputError, match=r"the image at 2\.000 s is 16x32, those before it are 48x32"):
        next(frames)


def test_bag_without_images(tmp_path):
    bag = write_bag(tmp_path / "bag", [("/cam/camera_info", 1, info_message(1, MATRIX))])
    with pytest.raises(InputError, match=r"no image topic .* its topics: /cam/camera_info"):
        open_recording(bag)


def test_bag_with_several_image_topics_lists_them(tmp_path):
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/left/image", 1, image_message(1, picture(1), "rgb8")),
            ("/right/image", 1, image_message(1, picture(2), "rgb8")),
            ("/right/image/compressed", 1, compressed_message(1, picture(3))),
            ("/depth/image/compressedDepth", 1, compressed_message(1, picture(4))),
        ],
    )
    with pytest.raises(InputError) as caught:
        open_recording(bag)
    assert str(caught.value).splitlines()[1:] == [
        "  /left/image  (Image, 1 messages)",
        "  /right/image  (Image, 1 messages)",
        "  /right/image/compressed  (CompressedImage, 1 messages)",
    ]
    with pytest.raises(InputError, match="no image topic /middle; there are:\n  /left/image"):
        open_recording(bag, topic="/middle")
    for topic, index in (("/right/image", 2), ("right/image/compressed", 3)):
        (frame,) = open_recording(bag, topic=topic)
        assert_shows(frame.image, index)


def test_topic_of_something_that_is_no_bag(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="is no bag, so it has no topic '/image'"):
        open_recording(tmp_path, topic="/image")


@pytest.mark.parametrize("content", [b"", b"\x89MCAP0\r\n", b"nothing of the kind" * 20])
@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_unreadable_bag(tmp_path, content, suffix):
    path = tmp_path / f"bag{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as a ROS 2 bag|no image topic"):
        open_recording(path)


def test_bag_with_a_file_missing(tmp_path):
    bag = camera_bag(tmp_path / "bag")
    shutil.move(next(bag.glob("*.mcap")), tmp_path / "elsewhere.mcap")
    with pytest.raises(InputError, match="cannot be read as a ROS 2 bag: Some database files are missing"):
        open_recording(bag)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"stride": 0}, "stride is 0"), ({"max_frames": 0}, "max_frames is 0"), ({"rate": 0}, "rate is 0")],
)
def test_options_out_of_range(tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        open_recording(tmp_path, **option)


@pytest.mark.parametrize(("error", "reason"), [(AssertionError(), "AssertionError"), (KeyError("what"), "'what'")])
def test_an_error_without_a_text_is_told_by_its_kind(tmp_path, monkeypatch, caplog, error, reason):
    bag = camera_bag(tmp_path / "bag")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(InputError, match="not one frame could be read"):
        patch.setattr(AnyReader, "deserialize", fail)
        list(open_recording(bag))
    assert caplog.messages[0].endswith(f"not a valid sensor_msgs/msg/Image: {reason}")
    monkeypatch.setattr(AnyReader, "open", fail)
    with pytest.raises(InputError, match=rf"cannot be read as a ROS 2 bag: {reason}$"):
        open_recording(bag)
