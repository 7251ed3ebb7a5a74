"""Bags that a killed recorder, an incomplete copy or a damaged disk left behind, and bags in other forms."""

import json
import re
import shutil
import sqlite3
import struct
import sys
import zlib
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

sys.path.insert(0, str(Path(__file__).parent))
from hostile_bags import channel, mcap, message
from recordings import (
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

from raymap3r_ros import cli
from raymap3r_ros.errors import InputError
from raymap3r_ros.io import bag_child, bag_files, open_recording
from raymap3r_ros.io.bag_messages import new_bag

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def indices(path, **options):
    return [index_of(frame.image) for frame in open_recording(path, **options)]


def noise_bag(path, plugin, count=12):
    return write_bag(
        path, [("/a", 1 + index, image_message(1 + index, NOISE, "rgb8")) for index in range(count)], plugin
    )


def data_file(bag):
    return next(item for item in sorted(bag.iterdir()) if item.suffix in (".db3", ".mcap"))


def killed_recorder(tmp_path, journal):
    """A bag whose last three images are in a journal (WAL), or whose journal must be rolled back."""
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    (bag / "metadata.yaml").unlink()
    killed = tmp_path / "killed"
    with closing(sqlite3.connect(data_file(bag), isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("PRAGMA cache_size=1")  # an open transaction is written to the file before its end
        database.execute("BEGIN")
        for index in range(4, 7):
            data = STORE.serialize_cdr(image_message(50 + index, picture(index), "rgb8"), "sensor_msgs/msg/Image")
            row = 1, (100 + index) * 10**9, bytes(data)
            database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", row)
        if journal == "WAL":
            database.execute("COMMIT")
        shutil.copytree(bag, killed)
    return killed


@pytest.mark.parametrize(("journal", "count"), [("WAL", 7), ("DELETE", 4)])
def test_journal_of_a_killed_recorder_is_applied_and_kept(tmp_path, caplog, journal, count):
    killed = killed_recorder(tmp_path, journal)
    before = {item.name: item.read_bytes() for item in killed.iterdir()}
    assert any(name.endswith(("-wal", "-journal")) for name in before)
    recording = open_recording(killed)
    assert recording.length == count
    assert indices(killed) == list(range(count)) and not recording.ended
    assert indices(data_file(killed)) == list(range(count))
    assert "a killed recorder left a journal" in caplog.text
    assert {item.name: item.read_bytes() for item in killed.iterdir()} == before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_to_the_bag_of_a_killed_recorder_has_its_journal(tmp_path, what):
    """For SQLite, the journal is beside the file to which a link points."""
    killed = data_file(killed_recorder(tmp_path, "WAL"))
    link = tmp_path / "today.db3" if what == "file" else tmp_path / "today/lab_0.db3"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(killed)
    assert indices(link if what == "file" else link.parent) == list(range(7))


def test_a_full_folder_of_temporary_files_is_no_damage(tmp_path, monkeypatch):
    killed = data_file(killed_recorder(tmp_path, "WAL"))
    full = "database or disk is full"

    def connect(path):
        raise sqlite3.OperationalError(full)

    monkeypatch.setattr(bag_files.sqlite3, "connect", connect)
    text = f"cannot be repaired in {tmp_path}: No space left on device; set TMPDIR to a folder with more space"
    with pytest.raises(InputError, match=re.escape(text)):
        bag_files.prepare(killed, tmp_path / "copy")
    usage = shutil.disk_usage(tmp_path)
    for free, reason in ((10_000, "is full; set TMPDIR"), (2**40, "too much memory or disk space for its size")):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: usage._replace(free=free))
        assert reason in bag_child._reason(sqlite3.OperationalError(full))


@pytest.mark.parametrize("name", ["run#3", "a?mode=memory", "100%25", "%d", "ro[b]*", "é ü", "file:x", b"\xff\xfe"])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_names_are_not_part_of_another_syntax(tmp_path, name, plugin):
    bag = camera_bag(tmp_path / "bag", plugin=plugin)
    folder = tmp_path / (name if isinstance(name, str) else name.decode(errors="surrogateescape"))
    bag.rename(folder)
    assert indices(folder) == [0, 1, 2, 3]
    file = data_file(folder)
    renamed = file.rename(folder / f"{folder.name}{file.suffix}")
    assert indices(renamed) == [0, 1, 2, 3]


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_damage_in_the_middle_is_reported_with_the_number_of_missing_images(tmp_path, plugin):
    bag = noise_bag(tmp_path / "bag", plugin, 200)
    file = data_file(bag)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 20000] = np.random.default_rng(1).integers(0, 256, 20000, dtype=np.uint8).tobytes()
    file.write_bytes(data)
    recording = open_recording(bag)
    count = len(list(recording))
    assert 0 < count < recording.length == 200
    # An index of MCAP that is damaged hides its messages without an error.
    assert re.match(rf"damaged, cannot be read after this point: |{count} images of /a could be read", recording.ended)
    assert len(list(open_recording(bag, max_frames=count))) == count
    limited = open_recording(bag, max_frames=count)
    assert len(list(limited)) == count and not limited.ended


def test_metadata_that_lists_more_images_than_the_files_contain(tmp_path, caplog):
    bag = camera_bag(tmp_path / "bag")
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 4", "message_count: 30"))
    recording = open_recording(bag)
    assert len(list(recording)) == 4 and recording.length == 30
    assert recording.ended == "4 images of /cam/image_raw could be read; its index or metadata.yaml lists 30"


def test_metadata_that_lists_fewer_images_or_topics(tmp_path):
    bag = camera_bag(tmp_path / "bag")
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 4", "message_count: 1"))
    assert indices(bag) == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [".inf", "-7", "1" + 400 * "0", "text", "[1, 2]", "1.5", "null"])
def test_absurd_counts_in_the_metadata_are_not_used(tmp_path, caplog, value):
    bag = camera_bag(tmp_path / "bag")
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 4", f"message_count: {value}"))
    recording = open_recording(bag)
    assert len(list(recording)) == recording.length == 4 and not recording.ended
    assert "metadata.yaml: not used" in caplog.text


@pytest.mark.parametrize(
    "text", ["rosbag2_bagfile_information: [", "rosbag2_bagfile_information: 3", 5000 * "[", "\0"]
)
def test_damaged_metadata_is_reported_and_the_files_are_read(tmp_path, caplog, text):
    bag = camera_bag(tmp_path / "bag")
    (bag / "metadata.yaml").write_text(text)
    assert indices(bag) == [0, 1, 2, 3]
    assert "metadata.yaml: damaged, not used" in caplog.text


def test_a_file_that_the_metadata_does_not_list_is_named(tmp_path, caplog):
    bag = camera_bag(tmp_path / "bag")
    shutil.copy(data_file(camera_bag(tmp_path / "other")), bag / "other.mcap")
    assert indices(bag) == [0, 1, 2, 3]
    assert "other.mcap is not read, because metadata.yaml does not list it" in caplog.text


def split_files(tmp_path, plugin=StoragePlugin.MCAP):
    folder = tmp_path / "split"
    folder.mkdir()
    for index in range(3):
        messages = [("/a", 10 * index + i, image_message(10 * index + i, picture(index), "rgb8")) for i in (1, 2)]
        bag = write_bag(tmp_path / f"part_{index}", messages, plugin)
        data_file(bag).rename(folder / f"part_{9 + index}{data_file(bag).suffix}")
    return folder


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_split_files_without_metadata_are_read_in_order(tmp_path, plugin):
    folder = split_files(tmp_path, plugin)
    assert indices(folder) == [0, 0, 1, 1, 2, 2]
    # The one that was being written when the recorder was killed.
    (folder / f"part_12{data_file(folder).suffix}").write_bytes(data_file(folder).read_bytes()[:20])
    if plugin is StoragePlugin.MCAP:
        recording = open_recording(folder)
        assert len(list(recording)) == 6 and "part_12.mcap ends in the middle" in recording.ended
    else:
        with pytest.raises(InputError, match=r"is not a database; .* move it away to read the others"):
            open_recording(folder)


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_compressed_bags_are_read_as_folders_and_files(tmp_path, mode, plugin):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=STORE)
        for index in range(3):
            message = image_message(1 + index, picture(index), "rgb8")
            writer.write(connection, 1 + index, STORE.serialize_cdr(message, connection.msgtype))
    assert indices(tmp_path / "bag") == [0, 1, 2]
    (file,) = (item for item in (tmp_path / "bag").iterdir() if item.name != "metadata.yaml")
    assert indices(file) == [0, 1, 2]
    if mode is CompressionMode.FILE:
        (tmp_path / "bag" / "metadata.yaml").unlink()
        assert indices(tmp_path / "bag") == [0, 1, 2]
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(InputError, match="damaged or cut off, cannot be unpacked"):
            open_recording(file)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_cut_mcap_is_read_up_to_the_cut(tmp_path, share):
    whole = data_file(noise_bag(tmp_path / "bag", StoragePlugin.MCAP, 40)).read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: int(len(whole) * share)])
    recording = open_recording(cut)
    count = len(list(recording))
    assert share * 40 - 2 < count < 40
    assert recording.length is None
    assert f"cut.mcap ends in the middle of a record, at byte {cut.stat().st_size}" in recording.ended
    shutil.copy(cut, data_file(tmp_path / "bag"))
    listed = open_recording(tmp_path / "bag")  # with metadata.yaml
    assert len(list(listed)) == count and listed.length == 40


@pytest.mark.parametrize("end", ["zeros", "cut"])
def test_an_mcap_after_a_power_failure_is_read_up_to_the_damage(tmp_path, end):
    """Blocks that were never written are zeros; the end and with it the index is missing."""
    noise = np.random.default_rng(0).integers(0, 64, (40, 256, 256, 3), dtype=np.uint8)  # a chunk has five
    with new_bag(tmp_path / "bag", compressed=True) as writer:
        connection = writer.add_connection("/a", "sensor_msgs/msg/Image", typestore=STORE)
        for index in range(40):
            message = image_message(1 + index, noise[index], "rgb8", width=256)
            writer.write(connection, (1 + index) * 10**9, bytes(STORE.serialize_cdr(message, message.__msgtype__)))
    whole = bytearray(data_file(tmp_path / "bag").read_bytes())
    fourth = [start for operation, start, _ in records(whole[8:]) if operation == 6][3] + 8
    if end == "zeros":
        whole[fourth + 30_000 :] = bytes(len(whole) - fourth - 30_000)
    else:
        whole[fourth + 49 : fourth + 20_000] = bytes(20_000 - 49)
        del whole[-50_000:]
    (tmp_path / "power.mcap").write_bytes(whole)
    recording = open_recording(tmp_path / "power.mcap")
    frames = list(recording)
    assert 10 < len(frames) < 25 and all((frame.image == noise[i]).all() for i, frame in enumerate(frames))
    assert "power.mcap lacks its end, and is damaged at byte" in recording.ended


def test_mcap_that_only_lacks_its_index_is_complete(tmp_path):
    whole = data_file(camera_bag(tmp_path / "bag")).read_bytes()
    (summary,) = struct.unpack_from("<Q", whole, len(whole) - 28)
    (tmp_path / "cut.mcap").write_bytes(whole[: summary + 5])
    recording = open_recording(tmp_path / "cut.mcap")
    assert len(list(recording)) == recording.length == 4 and not recording.ended


def records(data):
    """Operation, start and end of the records of MCAP data."""
    position = 0
    while position < len(data):
        end = position + 9 + int.from_bytes(data[position + 1 : position + 9], "little")
        yield data[position], position, end
        position = end


@pytest.mark.parametrize("chunked", [True, False])
def test_mcap_without_an_index_is_read_in_order_of_time(tmp_path, chunked):
    """Messages that are written out of order, across chunks too, and without stamps: two passes at a time."""
    size, matrix = (512, 256), np.array([[400, 0, 256], [0, 400, 128], [0, 0, 1]])
    messages = []
    for index in [0, 1, 2, 4, 3, 5, 6, 7, 8]:  # a chunk has three
        messages.append(("/c/image_raw", 9 + index / 10, image_message(0, picture(index, size), "rgb8", size[0])))
        messages.append(("/c/camera_info", 8.997 + index / 10, info_message(0, matrix, size)))
    whole = data_file(write_bag(tmp_path / "bag", messages)).read_bytes()
    summary = next(end for operation, _, end in records(whole[8:]) if operation == 0x0F)
    killed = whole[: 8 + summary]
    chunks = [killed[8 + start : 8 + end] for operation, start, end in records(killed[8:]) if operation == 6]
    assert len(chunks) >= 3
    if not chunked:
        header = killed[: 8 + next(records(killed[8:]))[2]]
        killed = header + b"".join(one[49:] for one in chunks) + killed[-13:]
    (tmp_path / "killed.mcap").write_bytes(killed)
    expected = list(open_recording(tmp_path / "bag"))
    recording = open_recording(tmp_path / "killed.mcap")
    frames = list(recording)
    assert [index_of(frame.image) for frame in frames] == list(range(9)) and not recording.ended
    assert [frame.stamp for frame in frames] == [frame.stamp for frame in expected]
    assert all(np.array_equal(frame.intrinsics, matrix) for frame in frames)


def test_mcap_that_is_cut_between_two_records_is_named_so(tmp_path):
    whole = data_file(noise_bag(tmp_path / "bag", StoragePlugin.MCAP)).read_bytes()
    end = next(end for operation, _, end in records(whole[8:]) if operation == 6) + 8
    (tmp_path / "cut.mcap").write_bytes(whole[:end])
    recording = open_recording(tmp_path / "cut.mcap")
    assert len(list(recording)) == 12
    assert f"cut.mcap ends between two records, at byte {end} (recorder killed" in recording.ended


def test_mcap_without_any_whole_image_is_named(tmp_path):
    whole = data_file(camera_bag(tmp_path / "bag")).read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[:400])
    with pytest.raises(InputError, match=r"cut\.mcap ends in the middle of a record"):
        open_recording(tmp_path / "cut.mcap")


def ros1_bag(path, topic="/camera/image_raw"):
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    matrix = np.array([[40.0, 0, 24], [0, 41, 16], [0, 0, 1]])

    def header(index):
        stamp = types["builtin_interfaces/msg/Time"](sec=50 + index, nanosec=0)
        return types["std_msgs/msg/Header"](seq=index, stamp=stamp, frame_id="camera")

    with Writer1(path) as writer:
        infos = writer.add_connection(
            topic.rpartition("/")[0] + "/camera_info", "sensor_msgs/msg/CameraInfo", typestore=store
        )
        images = writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=store)
        region = types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        info = types["sensor_msgs/msg/CameraInfo"](
            header=header(0), height=32, width=48, distortion_model="plumb_bob", D=np.zeros(5), K=matrix.reshape(9),
            R=np.eye(3).reshape(9), P=np.hstack([matrix, np.zeros((3, 1))]).reshape(12), binning_x=0, binning_y=0,
            roi=region,
        )  # fmt: skip
        writer.write(infos, 10**9, store.serialize_ros1(info, info.__msgtype__))
        for index in range(3):
            data = picture(index)
            message = types["sensor_msgs/msg/Image"](
                header=header(index), height=32, width=48, encoding="rgb8", is_bigendian=0, step=144,
                data=data.reshape(-1),
            )  # fmt: skip
            writer.write(images, (1 + index) * 10**9, store.serialize_ros1(message, message.__msgtype__))
    return path


@pytest.mark.parametrize("topic", ["/camera/image_raw", "camera/image_raw"])
def test_ros1_bag_is_read(tmp_path, topic):
    path = ros1_bag(tmp_path / "old.bag", topic)
    for source in (path, path.rename(tmp_path / "renamed"), tmp_path / "renamed"):
        if not source.exists():
            continue
        recording = open_recording(source, topic="/camera/image_raw")
        frames = list(recording)
        assert (recording.kind, recording.length) == ("ROS 1 bag", 3)
        for index, frame in enumerate(frames):
            assert_shows(frame.image, index)
            assert frame.stamp == 50 + index and frame.intrinsics[0, 0] == 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("old.bag", b"#ROSBAG V2.0\n" + bytes(4096), "cannot be read as a ROS 1 bag"),
        ("a.bag.gz", b"\x1f\x8b" + bytes(50), "is a gzip archive; unpack it first"),
        ("a.tar", bytes(257) + b"ustar\0" + bytes(50), "is a tar archive; unpack it first"),
        ("a.mcap.lz4", b"\x04\x22\x4d\x18" + bytes(50), "is an lz4 archive; unpack it first"),
        ("a.mp4", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, .* git lfs pull"),
        ("a.mp4", b"", "a.mp4: is empty"),
        ("metadata.yaml", b"rosbag2_bagfile_information:\n", "is the metadata of a bag; give its folder"),
    ],
)
def test_formats_that_are_not_read_are_named_with_the_cure(tmp_path, capfd, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_recording(tmp_path / name)


def test_unindexed_ros1_bag_is_named_with_the_cure(tmp_path):
    path = ros1_bag(tmp_path / "a.bag")
    data = path.read_bytes()
    start = data.index(b"index_pos=") + len("index_pos=")
    active = tmp_path / "a.bag.active"
    active.write_bytes(data[:start] + bytes(8) + data[start + 8 :])
    with pytest.raises(InputError, match=r"ROS 1 bag: Bag is not indexed.*; repair it with: rosbag reindex"):
        open_recording(active)


@pytest.mark.parametrize(
    ("name", "content", "cure"),
    [
        ("a.bag", b"#ROSBAG V2.0\n" + bytes(4096), "rosbag reindex"),
        ("a.bag", b"#ROSBAG V2.0\n", "rosbag reindex"),
        ("a.bag", b"#ROSBAG V1.2\n" + b"x" * 100, "rosbag fix"),
        ("a.mcap", b"hello world" * 10, "not an MCAP file by its first bytes"),
        ("a.db3", b"hello world" * 10, "is not a database; its start is damaged"),
    ],
    ids=["zeros", "empty", "old", "mcap", "db3"],
)
def test_a_file_that_is_no_bag_is_named_with_a_cure(tmp_path, name, content, cure):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(cure)):
        open_recording(tmp_path / name)


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("with_metadata", [False, True])
def test_files_that_macos_leaves_beside_copies_are_no_part_of_a_bag(tmp_path, caplog, plugin, with_metadata):
    bag = camera_bag(tmp_path / "bag", plugin=plugin)
    whole = len(list(open_recording(bag)))
    file = data_file(bag)
    file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4064))
    if not with_metadata:
        (bag / "metadata.yaml").unlink()
    assert len(list(open_recording(bag))) == whole and not caplog.records


def test_of_the_files_of_a_folder_the_one_that_is_no_mcap_file_is_named(tmp_path):
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.MCAP)
    (bag / "metadata.yaml").unlink()
    (bag / "zzz.mcap").write_bytes(bytes(5000))
    with pytest.raises(InputError, match=r"zzz\.mcap: .*not an MCAP file by its first bytes; .* move it away"):
        open_recording(bag)


@pytest.mark.parametrize("qos", ["- history: 3\n  depth: 0\n", "- {}\n", "text", "- [1]\n", "{a: &x 1"])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_quality_of_service_of_a_bag_is_not_needed(tmp_path, plugin, qos):
    bag = camera_bag(tmp_path / "bag", plugin=plugin)
    file = data_file(bag)
    if plugin == StoragePlugin.SQLITE3:
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("UPDATE topics SET offered_qos_profiles = ?", (qos,))
    else:
        store = get_typestore(Stores.ROS2_HUMBLE)
        kind = "sensor_msgs/msg/Image"
        image = store.serialize_cdr(image_message(1, picture(3), "rgb8"), kind)
        definition = "ros2msg", store.generate_msgdef(kind, ros_version=2)[0]
        chunks = [message(bytes(image))]
        file = mcap(
            tmp_path / "a.mcap", chunks, channels=channel(kind, definition, qos), size=len(chunks[0]), compression=""
        )
    assert indices(file)[-1] == 3


def test_a_database_of_another_program_is_named(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.db3")) as database:
        database.execute("CREATE TABLE notes (text)")
    with pytest.raises(InputError, match="an SQLite database, but not a bag"):
        open_recording(tmp_path / "a.db3")


def test_types_of_other_topics_are_listed(tmp_path):
    bag = write_bag(tmp_path / "bag", [("/cam/camera_info", 1, info_message(1.0, np.eye(3)))])
    with pytest.raises(InputError, match=r"/cam/camera_info \(sensor_msgs/msg/CameraInfo\)"):
        open_recording(bag)


def compressed(seconds, data, kind):
    message = compressed_message(seconds, picture(0))
    message.data, message.format = np.frombuffer(data, np.uint8), kind
    return message


def test_a_video_stream_in_images_is_named_by_its_format(tmp_path, caplog):
    data = [compressed_message(0.1, picture(0)), compressed(0.2, b"\0\0\0\1\x67" + bytes(50), "h264")]
    bag = write_bag(tmp_path / "bag", [("/cam/compressed", 1 + index, message) for index, message in enumerate(data)])
    assert len(list(open_recording(bag))) == 1
    assert "not a known image format (format 'h264')" in caplog.text


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_metadata_of_png_messages_are_not_read(tmp_path, kind):
    """As in the node: the pixels are used, whatever a text or colour profile unpacks to."""
    plain = cv2.imencode(".png", picture(1)[..., ::-1])[1].tobytes()
    bomb = b"name\0\0" + zlib.compress(bytes(2**24), 9)
    part = struct.pack(">I", len(bomb)) + kind + bomb + struct.pack(">I", zlib.crc32(kind + bomb))
    message = compressed(0.1, plain[:33] + part + plain[33:], "png")
    (frame,) = open_recording(write_bag(tmp_path / "bag", [("/cam/compressed", 1, message)]))
    assert_shows(frame.image, 1)


@pytest.mark.parametrize(("width", "rows"), [(47, 48), (48, 47)])
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_semiplanar_images_with_odd_sides_are_refused_in_words(tmp_path, caplog, encoding, width, rows):
    message = image_message(0.1, np.zeros((rows * 3 // 2 + 1, width), np.uint8), encoding, width=width)
    message.height = rows
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(write_bag(tmp_path / "bag", [("/cam/image", 1, message)])))
    assert f"{width}x{rows} {encoding}: its sides must be even" in caplog.text
    assert "OpenCV" not in caplog.text


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_images_of_pixel_pairs_with_odd_width_are_refused_in_words(tmp_path, caplog, encoding):
    message = image_message(0.1, np.zeros((32, 2 * 47), np.uint8), encoding, width=47)
    with pytest.raises(InputError, match="no frame could be read"):
        list(open_recording(write_bag(tmp_path / "bag", [("/cam/image", 1, message)])))
    assert f"47x32 {encoding}: its width must be even" in caplog.text


def test_more_frames_than_another_bags_metadata_lists_leaves_the_missing_number_unknown(tmp_path):
    noise_bag(tmp_path / "other", StoragePlugin.MCAP, 3)
    bag = noise_bag(tmp_path / "bag", StoragePlugin.MCAP)
    file = bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    metadata = (tmp_path / "other" / "metadata.yaml").read_text().replace("other.mcap", "bag.mcap")
    (bag / "metadata.yaml").write_text(metadata)
    arguments = ["--checkpoint", "mini", "--size", "64", "--no-depth", "--no-masks", "--no-cloud", "--no-preview"]
    assert cli.main(["run", str(bag), "--out", str(tmp_path / "out"), *arguments]) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 3 < summary["frames"] < 12
    assert (summary["complete"], summary["frames_missing"]) == (False, None)
