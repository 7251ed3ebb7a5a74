"""Bags that are made to take memory, time or disk space without limit: each is one error in words, soon."""

import os
import select
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile_bags as hostile
from recordings import STORE, camera_bag, image_message, info_message, picture, write_bag
from rosbags.rosbag2 import StoragePlugin

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import bag_files, bag_process, open_recording
from raymap3r_ros.io.bag_reader import BagReader
from raymap3r_ros.signals import on_stop_signals

MESSAGES = "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
MEMORY_ERROR = "takes too much memory for its size, as files do that are made to exhaust it"
TIME_ERROR = "takes more time than bags of its size, as files do that are made to exhaust it"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(bag_process, "MEMORY", 2**28)
    monkeypatch.setattr(bag_process, "SECONDS", 2.0)


def nested_idl(depth=60):
    value = "(" * depth + "1" + ")" * depth
    return f"module a {{ module msg {{ const long X = {value}; struct B {{ long c; }}; }}; }};"


LAUGHS = "a: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{index}: &a{index + 1} [{','.join([f'*a{index}'] * 8)}]\n" for index in range(12)
)

BAGS = {
    "mcap, a zstd chunk": (lambda path: hostile.mcap(path, [hostile.zstd_zeros()]), ".mcap", MEMORY_ERROR),
    "mcap, an lz4 chunk": (
        lambda path: hostile.mcap(path, [hostile.lz4_zeros()], compression="lz4"), ".mcap", MEMORY_ERROR,
    ),
    "mcap, no index": (lambda path: hostile.mcap(path, [hostile.zstd_zeros()], indexed=False), ".mcap", MEMORY_ERROR),
    "mcap, a false size": (
        lambda path: hostile.mcap(path, [hostile.zstd_zeros()], size=1000, indexed=False), ".mcap", MEMORY_ERROR,
    ),
    "mcap, overlapping chunks": (
        lambda path: hostile.mcap(
            path, [hostile.zstd.compress(hostile.message(bytes(2**26)))], size=2**26 + 31, count=100
        ), ".mcap", MEMORY_ERROR,
    ),
    "mcap, nested IDL": (
        lambda path: hostile.mcap(path, [], channels=hostile.channel("a/msg/B", ("ros2idl", nested_idl()))), ".mcap",
        TIME_ERROR,
    ),
    "mcap, aliases in QoS": (
        lambda path: hostile.mcap(path, [], channels=hostile.channel(qos=LAUGHS)), ".mcap", "cannot be read as a ROS",
    ),
    "SQLite, an endless view": (
        lambda path: hostile.sqlite(path, MESSAGES, f"CREATE VIEW schema(schema_version) AS SELECT max(i) FROM ({hostile.ENDLESS})"),
        ".db3", TIME_ERROR,
    ),
    "SQLite, a large view": (
        lambda path: hostile.sqlite(
            path, MESSAGES, "CREATE VIEW schema AS SELECT 4 AS schema_version",
            "CREATE VIEW message_definitions(id, topic_type, encoding, encoded_message_definition, "
            f"type_description_hash) AS SELECT i, 'a', hex(zeroblob(10000000)), 'c', i FROM ({hostile.ENDLESS})",
        ), ".db3", MEMORY_ERROR,
    ),
    "SQLite, computed messages": (
        lambda path: hostile.sqlite(
            path, MESSAGES.replace("data BLOB", "data BLOB AS (zeroblob(900000000))"),
            rows=[(1, index) for index in range(9)],
        ), ".db3", MEMORY_ERROR,
    ),
    "SQLite, many pairs": (
        lambda path: hostile.sqlite(
            path, MESSAGES, "CREATE TABLE t(id, name, type, serialization_format, offered_qos_profiles)",
            "DROP TABLE topics", "ALTER TABLE t RENAME TO topics",
            *["INSERT INTO topics VALUES (1, '/a', 'sensor_msgs/msg/Image', 'cdr', '')"] * 3000,
            rows=[(1, index) for index in range(20000)],
        ), ".db3", TIME_ERROR,
    ),
    "ROS 1, a bz2 chunk": (hostile.ros1, ".bag", MEMORY_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("name", BAGS)
def test_a_bag_that_exhausts_memory_or_time_is_one_error(tmp_path, name):
    make, suffix, message = BAGS[name]
    path = make(tmp_path / f"bag{suffix}")
    with pytest.raises(InputError, match=message):
        list(open_recording(path))
