"""MCAP files that other programs than ROS 2 wrote, with and without messages of ROS 2."""

import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag2 import StoragePlugin

sys.path.insert(0, str(Path(__file__).parent))
from hostile_bags import channel, message, record, text
from recordings import camera_bag, image_message, index_of, info_message, picture, write_bag

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording


@pytest.mark.parametrize(("profile", "encoding"), [("", "json"), ("", "protobuf"), ("ros1", "ros1"), ("x", "cdr")])
def test_an_mcap_file_of_another_profile_is_named_with_its_topics(tmp_path, profile, encoding):
    kind = "foxglove.CompressedImage"
    records = record(1, text(profile) + text("sdk"))
    records += record(3, struct.pack("<H", 7) + text(kind) + text(encoding) + text("definition"))
    for number in range(12):
        records += record(4, struct.pack("<HH", number, 7) + text(f"/camera{number}") + text(encoding) + text(""))
    records += message(b"{}") + record(0x0F, bytes(4)) + record(2, bytes(20))
    path = tmp_path / "a.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + records + b"\x89MCAP0\r\n")
    with pytest.raises(InputError) as caught:
        open_recording(path)
    error = str(caught.value)
    assert (
        f"without messages of ROS 2 (its profile is {profile!r}); its topics: /camera0 ({kind}, {encoding})" in error
    )
    assert "/camera9" in error and "/camera10" not in error
    assert ("give the original .bag" in error) == (profile == "ros1")
    assert "write its images to a folder" in error and "rosbags-convert" not in error and ".;" not in error


OTHER_CHANNEL = (
    record(3, struct.pack("<H", 900) + text("foxglove.CompressedImage") + text("jsonschema") + text("{}"))
    + record(4, struct.pack("<HH", 900, 900) + text("/a_scene") + text("json") + text(""))
    + message(b"{}", 10**9, number=900)
)


def of_other_writer(bag, profile, *, chunked, others=b"", named=lambda kind: kind):
    """An MCAP file with the images of a bag, as a writer without ROS writes them; without an index."""
    with AnyReader([bag]) as reader:
        channels, data = b"", b""
        numbers = {}
        for one in reader.connections:
            number = numbers[one.topic] = len(numbers) + 1
            language = {MessageDefinitionFormat.MSG: "ros2msg", MessageDefinitionFormat.IDL: "ros2idl"}
            channels += channel(
                named(one.msgtype), (language[one.msgdef.format], one.msgdef.data), "", number, one.topic
            )
        for one, time, raw in reader.messages():
            data += message(raw, time, numbers[one.topic])
    records = others + channels + data
    if chunked:
        records = record(6, struct.pack("<QQQI", 0, 2**40, len(records), 0) + text("") + pack_long(records))
    records = record(1, text(profile) + text("sdk")) + records + record(0x0F, bytes(4)) + record(2, bytes(20))
    path = bag.with_name("other.mcap")
    path.write_bytes(b"\x89MCAP0\r\n" + records + b"\x89MCAP0\r\n")
    return path


def pack_long(data):
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize("others", [b"", OTHER_CHANNEL], ids=["alone", "beside JSON"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("profile", ["", "x", "ros2"])
def test_ros_messages_in_an_mcap_file_of_any_profile_are_read(tmp_path, profile, chunked, others):
    path = of_other_writer(camera_bag(tmp_path / "bag"), profile, chunked=chunked, others=others)
    assert [index_of(frame.image) for frame in open_recording(path)] == [0, 1, 2, 3]


def test_an_indexed_mcap_file_without_a_profile_is_read_with_its_index(tmp_path):
    whole = bytearray(next(camera_bag(tmp_path / "bag").glob("*.mcap")).read_bytes())
    start = whole.index(b"ros2")
    whole[start : start + 4] = b"none"
    (tmp_path / "a.mcap").write_bytes(whole)
    recording = open_recording(tmp_path / "a.mcap")
    assert len(list(recording)) == recording.length == 4


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("profile", ["", "ros2"])
def test_types_without_msg_in_their_names_are_read(tmp_path, profile, chunked):
    """Some writers use the names of ROS 1, `sensor_msgs/Image`, for messages of ROS 2."""
    matrix = np.array([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]])
    messages = [("/cam/camera_info", 100, info_message(50, matrix))]
    messages += [("/cam/image_raw", 100 + i, image_message(50 + i / 10, picture(i), "rgb8")) for i in range(4)]
    bag = write_bag(tmp_path / "bag", messages)
    path = of_other_writer(bag, profile, chunked=chunked, named=lambda kind: kind.replace("/msg/", "/"))
    frames = list(open_recording(path))
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 3]
    assert all((frame.intrinsics == matrix).all() for frame in frames)


def test_types_without_msg_in_their_names_are_read_from_sqlite(tmp_path):
    """Bags of the first distributions of ROS 2."""
    bag = camera_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob("*.db3")
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        assert database.execute("UPDATE topics SET type = replace(type, '/msg/', '/')").rowcount
    assert [index_of(frame.image) for frame in open_recording(file)] == [0, 1, 2, 3]


def test_other_messages_in_a_file_of_the_profile_of_ros2_are_named(tmp_path):
    records = record(1, text("ros2") + text("")) + record(
        3, struct.pack("<H", 7) + text("sensor_msgs/Image") + text("ros1msg") + text("uint8 a")
    )
    records += record(4, struct.pack("<HH", 1, 7) + text("/camera") + text("ros1") + text(""))
    path = tmp_path / "a.mcap"
    path.write_bytes(
        b"\x89MCAP0\r\n" + records + message(b"") + record(0x0F, bytes(4)) + record(2, bytes(20)) + b"\x89MCAP0\r\n"
    )
    with pytest.raises(InputError, match=r"its topics: /camera \(sensor_msgs/Image, ros1\); write its images"):
        open_recording(path)
