"""Small bags that are made to take memory, time or disk space without limit, for `test_hostile_bags`."""

import bz2
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import lz4.frame
from rosbags.rosbag1 import Writer as Writer1
from rosbags.typesys import Stores, get_typestore

from raymap3r_ros.io import bag_files

zstd = bag_files.zstd()  # under one of two names

BIG = 2**29  # bytes, unpacked
TOPIC = "/a"
IMAGE = "sensor_msgs/msg/Image"
NO_SCHEMA = "", ""  # encoding and text: the definition of a distribution is used
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


def zstd_zeros():
    return zstd.compress(bytes(2**24)) * (BIG // 2**24)


def lz4_zeros():
    return lz4.frame.compress(bytes(BIG))


def bz2_zeros():
    return bz2.compress(bytes(2**24)) * (BIG // 2**24)


def record(operation, content):
    return struct.pack("<BQ", operation, len(content)) + content


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(value)) + value


def channel(kind=IMAGE, definition=NO_SCHEMA, qos="", number=1, topic=TOPIC):
    """Records of a schema and of a channel with it."""
    encoding, content = definition
    schema = record(3, struct.pack("<H", number) + text(kind) + text(encoding) + text(content))
    metadata = text("offered_qos_profiles") + text(qos) if qos else b""
    return schema + record(4, struct.pack("<HH", number, number) + text(topic) + text("cdr") + text(metadata))


def message(data, time=0, number=1):
    return record(5, struct.pack("<HIQQ", number, 0, time, time) + data)


def chunk(packed, size, compression):
    return record(
        6, struct.pack("<QQQI", 0, 2**40, size, 0) + text(compression) + struct.pack("<Q", len(packed)) + packed
    )


def mcap(path: Path, chunks, *, channels=None, indexed=True, size=BIG, compression="zstd", count=1, summary=b""):
    """`chunks`: packed bytes; each is `count` times in the index, with a message of channel 1 and equal times.

    `summary`: more records at its end.
    """
    data = bytearray(b"\x89MCAP0\r\n" + record(1, text("ros2") + text("")))
    channels = channel() if channels is None else channels
    index = b""
    data += channels
    for packed in chunks:
        start = len(data)
        data += chunk(packed, size, compression)
        length = len(data) - start
        offsets = struct.pack("<HQ", 1, start + length)
        data += record(7, struct.pack("<HIQQ", 1, 16, 0, 0))
        head = struct.pack("<QQQQI", 0, 2**40, start, length, 10) + offsets
        sizes = struct.pack("<QQ", len(packed), size)
        index += count * record(8, head + struct.pack("<Q", len(data) - start - length) + text(compression) + sizes)
    data += record(15, bytes(4))
    start = len(data) if indexed else 0
    if indexed:
        data += channels + index + summary
    data += record(2, struct.pack("<QQI", start, 0, 0)) + b"\x89MCAP0\r\n"
    path.write_bytes(data)
    return path


def sqlite(path: Path, *statements: str, rows=()) -> Path:
    """`statements` create the table `messages`, and others; `rows`: topic and time of its messages."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT, "
            "offered_qos_profiles TEXT)"
        )
        database.execute("INSERT INTO topics VALUES (1, ?, ?, 'cdr', '')", (TOPIC, IMAGE))
        database.execute("BEGIN")
        for statement in statements:
            database.execute(statement)
        database.executemany("INSERT INTO messages (topic_id, timestamp) VALUES (?, ?)", rows)
        database.execute("COMMIT")
    return path


def ros1(path: Path) -> Path:
    """A ROS 1 bag with one chunk, which unpacks to BIG zeros."""
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Writer1(path)
    writer.set_compression(writer.CompressionFormat.BZ2)
    writer.compressor = lambda _: bz2_zeros()
    with writer:
        writer.write(writer.add_connection(TOPIC, IMAGE, typestore=store), 1, b"")
    return path


def ros1_repeated(path: Path, part: str) -> Path:
    """A ROS 1 bag with one message, whose index names the `part`, "chunk" or "message", three times, or "" once."""
    with Writer1(path) as writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=get_typestore(Stores.ROS1_NOETIC))
        writer.write(connection, 1, b"")
        chunk = writer.chunks[-1]
        if part == "message":
            chunk.connections[connection.id] *= 3
        elif part == "chunk":
            writer.write_chunk(chunk)
            writer.chunks[:0] = [chunk] * 2
    return path
