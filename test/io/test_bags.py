"""Reading ROS 2 bags that the tests recorded."""

import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

sys.path.insert(0, str(Path(__file__).parent))
from recordings import (
    SIZE,
    STORE,
    assert_shows,
    camera_bag,
    compressed_message,
    image_message,
    index_of,
    info_message,
    picture,
    write_bag,
)

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.bag_files import zstd

MATRIX = np.array([[40.0, 0, 24], [0, 41, 16], [0, 0, 1]])


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("compressed", [False, True])
def test_bag_images_have_their_header_stamps(tmp_path, plugin, compressed):
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


def test_a_cut_jpeg_is_skipped(tmp_path):
    messages = [compressed_message(stamp, picture(stamp), ".jpg") for stamp in range(1, 5)]
    messages[2].data = messages[2].data[:-8]
    recording = open_recording(write_bag(tmp_path / "bag", [("/image", m.header.stamp.sec, m) for m in messages]))
    assert [frame.stamp for frame in recording] == [1, 2, 4]
    assert recording.skipped == 1


def test_images_of_two_cameras_on_one_topic_are_reported_once(tmp_path, caplog):
    messages = [image_message(stamp, picture(stamp), "rgb8") for stamp in range(1, 13)]
    for index, message in enumerate(messages):
        message.header.frame_id = ("left", "right")[index % 2]
    recording = open_recording(write_bag(tmp_path / "bag", [("/image", m.header.stamp.sec, m) for m in messages]))
    assert len(list(recording)) == 12
    (record,) = caplog.records
    assert "/image: the images alternate between the frame_ids 'left', 'right'" in record.getMessage()


def test_zero_stamps_fall_back_to_the_time_of_recording(tmp_path):
    bag = camera_bag(tmp_path / "bag", make=lambda _, image: image_message(0, image, "rgb8"))
    assert [frame.stamp for frame in open_recording(bag)] == [100, 101, 102, 103]


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


def test_uncalibrated_camera_has_no_intrinsics(tmp_path):
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/camera_info", 1, info_message(1, np.zeros((3, 3)))),
            ("/image", 2, image_message(1, picture(0), "rgb8")),
        ],
    )
    (frame,) = open_recording(bag)
    assert frame.intrinsics is None


def test_rectified_image_uses_the_projection_matrix(tmp_path):
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
        "'32FC1' is of depth images; choose a colour topic",
        "'8UC3' does not define its channels; allowed are those that do: rgb8, bgr8",
        "'what' is not supported",
        "message 5 of /a: not a valid sensor_msgs/msg/Image",
    ):
        assert why in caplog.text
    compressed = open_recording(
        write_bag(tmp_path / "bag2", [("/b", 1, nonsense), ("/b", 2, compressed_message(1, picture(1)))])
    )
    assert [index_of(frame.image) for frame in compressed] == [1]
    assert "message 0 of /b: not a known image format" in caplog.text


def test_damaged_bag_is_read_up_to_the_damage(tmp_path, caplog):
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
    assert "damaged, cannot be read after this point" in caplog.text


def test_bag_whose_images_change_size(tmp_path):
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/a", 1, image_message(1, picture(0), "rgb8")),
            ("/a", 2, image_message(2, picture(0, (16, 32)), "rgb8", width=16)),
        ],
    )
    recording = open_recording(bag)
    (frame,) = recording
    assert_shows(frame.image, 0)
    assert "the image at 2.000 s is 16x32, those before it are 48x32" in recording.ended


def test_bag_without_images(tmp_path):
    bag = write_bag(tmp_path / "bag", [("/cam/camera_info", 1, info_message(1, MATRIX))])
    with pytest.raises(InputError, match=r"no image topic .* its topics: /cam/camera_info"):
        open_recording(bag)


@pytest.mark.parametrize("topic", [None, "/cam/image_raw/ffmpeg", "cam/image_raw/ffmpeg"])
@pytest.mark.parametrize("beside", [False, True])
def test_video_streams_are_named_with_the_cure(tmp_path, topic, beside):
    """As of a camera whose driver sends H.264 only."""
    kind = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
    STORE.register(get_types_from_msg("std_msgs/Header header\nstring encoding\nuint8[] data", kind))
    stamped = info_message(1, MATRIX).header
    packet = STORE.types[kind](header=stamped, encoding="h264", data=np.zeros(5, np.uint8))
    messages = [("/cam/image_raw/ffmpeg", 1, packet)]
    if beside:
        messages.append(("/other", 1, image_message(1, picture(0), "rgb8")))
    write_bag(tmp_path / "bag", messages)
    if topic is None and beside:
        assert open_recording(tmp_path / "bag").topic == "/other"
        return
    with pytest.raises(InputError, match=r"/cam/image_raw/ffmpeg has video \(H\.264 .*republish"):
        open_recording(tmp_path / "bag", topic=topic)


def test_a_topic_without_messages_is_told_from_a_wrong_name(tmp_path):
    """As of a driver that was started, but sent nothing."""
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        kind = "sensor_msgs/msg/Image"
        other, _ = (writer.add_connection(name, kind, typestore=STORE) for name in ("/other", "/silent"))
        writer.write(other, 1, STORE.serialize_cdr(image_message(1, picture(1), "rgb8"), kind))
    for topic in ("/silent", "silent"):
        with pytest.raises(InputError, match=r"the topic /silent has no messages: nothing was sent .*; there are:"):
            open_recording(tmp_path / "bag", topic=topic)


def test_names_of_topics_are_escaped_and_their_number_is_limited(tmp_path):
    hostile = "/x\x1b]0;title\x07\r\n  /fake\u202e\x9b31m"
    images = [(f"{hostile}{index}", 1, image_message(1, picture(1), "rgb8")) for index in range(2)]
    infos = [(f"{hostile}{index:03d}", 1, info_message(1, np.eye(3))) for index in range(99)]
    for name, messages, count in (("images", images, 3), ("infos", infos, 1)):
        with pytest.raises(InputError, match="image topic") as caught:
            open_recording(write_bag(tmp_path / name, messages))
        lines = str(caught.value).split("\n")
        assert len(lines) == count and all(line.isprintable() for line in lines)
        assert r"/x\x1b]0;title\x07\r\n  /fake\u202e\x9b31m" in lines[-1]
    assert "and 49 more" in lines[0]


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
        "  /left/image  (Image, 1 message)",
        "  /right/image  (Image, 1 message)",
        "  /right/image/compressed  (CompressedImage, 1 message)",
    ]
    with pytest.raises(InputError, match="no image topic /middle; there are:\n  /left/image"):
        open_recording(bag, topic="/middle")
    for topic, index in (("/right/image", 2), ("right/image/compressed", 3)):
        (frame,) = open_recording(bag, topic=topic)
        assert_shows(frame.image, index)


def depth_messages():
    depth = np.full((32, 48), 1000, np.uint16)
    packed = compressed_message(1, depth)
    packed.format = "16UC1; png compressed "
    return {
        "/d16": image_message(1, depth, "16UC1"),
        "/d32": image_message(1, depth.astype(np.float32), "32FC1"),
        "/packed": packed,
        "/packed/compressedDepth": packed,
    }


@pytest.mark.parametrize("topic", depth_messages())
def test_a_depth_topic_is_refused_with_the_colour_topics_of_the_bag(tmp_path, topic):
    messages = [(name, 1, message) for name, message in depth_messages().items()]
    with pytest.raises(InputError, match=r"probably depth images; this bag has no others|no image topic with"):
        open_recording(write_bag(tmp_path / "depth", [one for one in messages if one[0] == topic]))
    colour = [("/eye", 1, image_message(1, picture(0), "rgb8")), ("/c", 1, compressed_message(1, picture(0)))]
    with pytest.raises(InputError) as caught:
        open_recording(write_bag(tmp_path / "bag", [*messages, *colour]), topic=topic)
    if topic.endswith("compressedDepth"):
        assert f"{topic} has depth images; there are:\n  /c  (" in str(caught.value)
    else:
        assert f"images of {topic} are " in str(caught.value)
        assert str(caught.value).endswith("choose a colour topic with --topic: /c, /eye")


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


@pytest.mark.parametrize(("error", "reason"), [(AssertionError(), "AssertionError"), (KeyError("what"), "'what'")])
def test_an_error_without_a_text_is_reported_by_its_type(tmp_path, monkeypatch, caplog, error, reason):
    bag = camera_bag(tmp_path / "bag")

    def fail(*_):
        raise error

    monkeypatch.setattr(Typestore, "deserialize_cdr", fail)
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(bag))
    assert caplog.messages[0].endswith(f"not a valid sensor_msgs/msg/Image: {reason}")


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_and_its_compressed_copy_are_read_once(tmp_path, caplog, listed):
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob("*.db3")
    (bag / f"{file.name}.zstd").write_bytes(zstd().compress(file.read_bytes()))
    metadata = bag / "metadata.yaml"
    if listed:  # as the recorder wrote it, before the user unpacked the file
        metadata.write_text(metadata.read_text().replace(file.name, f"{file.name}.zstd"))
    else:
        metadata.unlink()
    assert len(list(open_recording(bag))) == 4
    assert "is not read" not in caplog.text


def test_a_journal_without_its_database_is_named(tmp_path, caplog):
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob("*.db3")
    file.rename(bag / "lab.db3")
    (bag / "metadata.yaml").unlink()
    (bag / f"{file.name}-wal").write_bytes(b"the last messages")
    assert len(list(open_recording(bag))) == 4
    text = f"the journal {file.name}-wal has no database {file.name} beside it, and is not read"
    assert caplog.text.count(text) == 1
