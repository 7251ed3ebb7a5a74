"""Bags that are made to take memory, time or disk space without limit: each is one error in words, soon."""

import os
import select
import signal
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile_bags as hostile
from recordings import STORE, camera_bag, image_message, picture, write_bag
from rosbags.rosbag2 import StoragePlugin

from raymap3r_ros.errors import InputError
from raymap3r_ros.io import bag_process, open_recording
from raymap3r_ros.io.bag_reader import BagReader
from raymap3r_ros.signals import on_stop_signals

MESSAGES = "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
MEMORY_ERROR = "takes too much memory or disk space for its size, as files do that are made to exhaust it"
TIME_ERROR = "takes more time than bags of its size, as files do that are made to exhaust it"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(bag_process, "MEMORY", 2**28)
    monkeypatch.setattr(bag_process, "SECONDS", 1.0)
    monkeypatch.setattr(bag_process, "DISK", 2**26)


def nested_idl(depth=5):
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
    "mcap, chunks of the same times": (
        lambda path: hostile.mcap(
            path, [hostile.zstd.compress(hostile.message(bytes(2**26)))] * 100, size=2**26 + 31
        ), ".mcap", MEMORY_ERROR,
    ),
    "mcap, nested IDL": (
        lambda path: hostile.mcap(path, [], channels=hostile.channel("a/msg/B", ("ros2idl", nested_idl()))), ".mcap",
        TIME_ERROR,
    ),
    "mcap, aliases in QoS": (
        lambda path: hostile.mcap(path, [], channels=hostile.channel(qos=LAUGHS)), ".mcap", "no image topic",
    ),
    "SQLite, an endless view": (
        lambda path: hostile.sqlite(
            path, MESSAGES, f"CREATE VIEW schema(schema_version) AS SELECT max(i) FROM ({hostile.ENDLESS})"
        ), ".db3", TIME_ERROR,
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
        ), ".db3", MEMORY_ERROR,
    ),
    "ROS 1, a bz2 chunk": (hostile.ros1, ".bag", MEMORY_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("name", BAGS)
def test_a_bag_that_exhausts_memory_or_time_is_one_error(tmp_path, name):
    make, suffix, message = BAGS[name]
    path = make(tmp_path / f"bag{suffix}")
    with pytest.raises(InputError, match=message):
        list(open_recording(path))


def two_chunks(path, **options):
    """An indexed MCAP file with two uncompressed chunks of one image each."""
    images = [image_message(1 + index, picture(index), "rgb8") for index in range(2)]
    chunks = [
        hostile.message(bytes(STORE.serialize_cdr(image, hostile.IMAGE)), time=index)
        for index, image in enumerate(images)
    ]
    return hostile.mcap(path, chunks, size=len(chunks[0]), compression="", **options)


def statistics(count):
    return hostile.record(11, struct.pack("<QHIIIIQQI", count, 1, 1, 0, 0, 2, 0, 1, 10) + struct.pack("<HQ", 1, count))


@pytest.mark.parametrize(
    "summary", [b"", statistics(2), statistics(1), statistics(0)], ids=["none", "right", "fewer", "zero"]
)
def test_chunks_that_an_mcap_index_repeats_are_read_once(tmp_path, caplog, summary):
    """Whatever the statistics say."""
    recording = open_recording(two_chunks(tmp_path / "bag.mcap", count=50, summary=summary))
    assert [frame.stamp for frame in recording] == [1, 2]
    assert recording.skipped == 0 and not recording.ended
    assert "bag.mcap: its chunk index lists 98 of its chunks again; each is read once" in caplog.text


def test_mcap_chunks_without_an_index_of_their_messages_are_read(tmp_path):
    writer = pytest.importorskip("mcap.writer")
    definition = STORE.generate_msgdef(hostile.IMAGE, ros_version=2)[0].encode()
    with (tmp_path / "bag.mcap").open("wb") as file:
        bag = writer.Writer(file, index_types=writer.IndexType.CHUNK)
        bag.start("ros2")
        number = bag.register_channel("/a", "cdr", bag.register_schema(hostile.IMAGE, "ros2msg", definition))
        for index in range(3):
            data = bytes(STORE.serialize_cdr(image_message(index, picture(index), "rgb8"), hostile.IMAGE))
            bag.add_message(number, index, data, index)
        bag.finish()
    recording = open_recording(tmp_path / "bag.mcap")
    assert len(list(recording)) == recording.length == 3 and not recording.ended


@pytest.mark.parametrize("place", ["in the first chunk", "in the summary", "beyond the file"])
def test_chunks_of_an_mcap_index_that_overlap_or_lie_outside_are_refused(tmp_path, place):
    path = two_chunks(tmp_path / "bag.mcap")
    data = path.read_bytes()
    entry = data.rindex(struct.pack("<BQ", 8, 74))
    (start,) = struct.unpack_from("<Q", data, entry + 25)
    assert data[start] == 6
    start = {"in the first chunk": start - 60, "in the summary": len(data) - 100, "beyond the file": 2**40}[place]
    path.write_bytes(data[: entry + 25] + struct.pack("<Q", start) + data[entry + 33 :])
    with pytest.raises(
        InputError, match=r"index of bag\.mcap has chunks that overlap or lie outside .*: mcap recover"
    ):
        open_recording(path)


def test_a_chunk_that_claims_the_records_behind_it_is_not_read(tmp_path):
    """Without an index, but with statistics: the library does not look at the chunks when it opens the file."""
    path = two_chunks(tmp_path / "bag.mcap", count=0, summary=statistics(2))
    data = bytearray(path.read_bytes())
    start = data.index(struct.pack("<QQ", 0, 2**40)) - 9
    unpacked, packed = start + 25, start + 41
    (size,) = struct.unpack_from("<Q", data, packed)
    for place in (unpacked, packed):
        struct.pack_into("<Q", data, place, size + 45)  # with the index of messages behind it
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"a chunk record of {40 + size} bytes with {size + 45} bytes"):
        list(open_recording(path))


@pytest.mark.parametrize("part", ["chunk", "message"])
def test_a_ros1_index_that_repeats_parts_is_refused(tmp_path, part):
    open_recording(hostile.ros1_repeated(tmp_path / "good.bag", ""))
    path = hostile.ros1_repeated(tmp_path / "bag.bag", part)
    with pytest.raises(InputError, match=r"the index of bag\.bag names parts of the bag twice.*: rosbag reindex"):
        open_recording(path)


def test_a_compressed_file_unpacks_to_a_multiple_of_its_size_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(bag_process, "DISK", 2**30)
    (tmp_path / "bag.db3.zstd").write_bytes(hostile.zstd_zeros())
    with pytest.raises(InputError, match=r"unpacks to more than \d+ bytes, over 50 times its size; .* zstd -d bag"):
        open_recording(tmp_path / "bag.db3.zstd")


def test_a_message_that_unpacks_to_too_much_is_skipped(tmp_path, caplog):
    valid = image_message(1, picture(1), "rgb8")
    packed = [
        hostile.zstd.compress(bytes(hostile.BIG)),
        hostile.zstd.compress(bytes(STORE.serialize_cdr(valid, hostile.IMAGE))),
    ]
    bag = write_bag(tmp_path / "bag", [("/a", 1 + index, (hostile.IMAGE, data)) for index, data in enumerate(packed)])
    metadata = bag / "metadata.yaml"
    text = metadata.read_text()
    assert "compression_mode: ''" in text
    metadata.write_text(text.replace("compression_mode: ''", "compression_mode: message"))
    recording = open_recording(bag)
    assert len(list(recording)) == recording.skipped == 1
    assert "cut off, or unpacks to more than" in caplog.text


def test_aliases_in_the_metadata_are_not_used(tmp_path, caplog):
    bag = camera_bag(tmp_path / "bag")
    (bag / "metadata.yaml").write_text(f"{LAUGHS}rosbag2_bagfile_information: {{compression_mode: *a12}}\n")
    assert len(list(open_recording(bag))) == 4
    assert "metadata.yaml: damaged, not used: contains aliases" in caplog.text


def endless(path):
    return BAGS["SQLite, an endless view"][0](path)


@pytest.fixture
def interrupted(monkeypatch):
    """Sends a signal to this process as soon as the child process that reads a bag exists; returns the children."""
    children = []
    start = subprocess.Popen

    def popen(*arguments, **options):
        children.append(start(*arguments, **options))
        os.kill(os.getpid(), numbers[0])
        return children[-1]

    numbers = []
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(bag_process, "SECONDS", 1000.0)
    return numbers, children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_opening_of_a_bag(tmp_path, interrupted, number):
    numbers, children = interrupted
    numbers.append(number)
    path = endless(tmp_path / "bag.db3")
    received = []
    with on_stop_signals(received.append), pytest.raises(KeyboardInterrupt):
        open_recording(path)
    assert received == [number.name] and children[0].returncode == -signal.SIGKILL


def test_a_signal_ends_the_reading_of_messages(tmp_path):
    path = camera_bag(tmp_path / "bag")
    with on_stop_signals(lambda _: None), closing(BagReader(path)) as bag:
        messages = bag.messages(["/cam/image_raw"])
        next(messages)
        os.kill(os.getpid(), signal.SIGTERM)
        list(messages)  # up to what was already sent
        assert bag.loss == "interrupted by a signal"


def test_the_child_ends_with_its_parent(tmp_path):
    path = endless(tmp_path / "bag.db3")
    program = (
        "import subprocess, sys\n"
        "from raymap3r_ros.io import bag_process, open_recording\n"
        "bag_process.SECONDS, start = 1000.0, subprocess.Popen\n"
        "def popen(*arguments, **options):\n"
        "    child = start(*arguments, **options)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "subprocess.Popen = popen\n"
        "open_recording(sys.argv[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([child], [], [], 60)[0]
        finally:
            os.close(child)


OTHER_IMAGE = "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nfloat64[] data\n"
HEADER = "=" * 80 + "\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
TIME = "=" * 80 + "\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
IMAGE = (
    "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
    "uint8[] data\n"
)


def defined(path, *channels):
    records = [
        hostile.channel(kind, ("ros2msg", definition), number=1 + index, topic=f"/t{index}")
        for index, (kind, definition) in enumerate(channels)
    ]
    return hostile.mcap(path, [hostile.zstd.compress(b"")], channels=b"".join(records), size=0)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (((hostile.IMAGE, OTHER_IMAGE + HEADER + TIME),), "sensor_msgs/msg/Image is defined with other fields than"),
        (
            ((hostile.IMAGE, IMAGE + HEADER + TIME.replace("int32 sec", "int64 sec")),),
            r"'builtin_interfaces/msg/Time' is already present with different definition.*; record it again",
        ),
        (
            ((hostile.IMAGE, IMAGE + HEADER.replace("string", "wstring") + TIME),),
            "sensor_msgs/msg/Image is defined with other fields than in ROS 2",
        ),
        (
            ((hostile.IMAGE, IMAGE + HEADER + TIME), (hostile.IMAGE, OTHER_IMAGE + HEADER + TIME)),
            "two different definitions of sensor_msgs/msg/Image",
        ),
        (
            ((hostile.IMAGE, IMAGE + HEADER + TIME), ("a/msg/B", "int8 a\n" + HEADER + "int8 more\n" + TIME)),
            "two different definitions of std_msgs/msg/Header",
        ),
        ((("tf2_msgs/msg/TFMessage", "int8 transforms\n"),), "tf2_msgs/msg/TFMessage is defined with other fields"),
    ],
)  # fmt: skip
def test_redefined_types_are_refused(tmp_path, channels, message):
    path = defined(tmp_path / "bag.mcap", *channels)
    with pytest.raises(InputError, match=message):
        open_recording(path)


def test_a_second_attempt_gives_the_same_error(tmp_path):
    path = hostile.mcap(tmp_path / "a#b.mcap", [], channels=hostile.channel(definition=("ros2idl", "nothing")))
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read as a ROS 2 bag: Could not parse"):
            open_recording(path)


def test_the_real_definition_is_accepted(tmp_path):
    recording = open_recording(defined(tmp_path / "bag.mcap", (hostile.IMAGE, IMAGE + HEADER + TIME)))
    assert recording.topic == "/t0"


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_messages_with_impossible_times_are_skipped_and_counted(tmp_path, caplog, plugin):
    messages = [("/a", 100 + index, image_message(100 + index, picture(index), "rgb8")) for index in range(3)]
    bag = write_bag(tmp_path / "bag", messages, plugin)
    file = next(item for item in bag.iterdir() if item.suffix in (".db3", ".mcap"))
    old = 102 * 10**9
    new = {StoragePlugin.MCAP: 2**63 - 5, StoragePlugin.SQLITE3: -(2**63)}[plugin]
    if plugin is StoragePlugin.MCAP:
        file.write_bytes(file.read_bytes().replace(struct.pack("<Q", old), struct.pack("<Q", new)))
    else:
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("UPDATE messages SET timestamp = ? WHERE timestamp = ?", (new, old))
    recording = open_recording(bag)
    assert [frame.stamp for frame in recording] == [100, 101]
    assert recording.skipped == 1 and not recording.ended
    assert f"recorded at an impossible time, {new} ns" in caplog.text


def test_stamps_beyond_those_of_messages_are_skipped(tmp_path, caplog):
    messages = [image_message(100 + index, picture(index), "rgb8") for index in range(2)]
    messages[1].header.stamp.sec, messages[1].header.stamp.nanosec = 2**31 - 1, 2**32 - 1
    recording = open_recording(write_bag(tmp_path / "bag", [("/a", 1, one) for one in messages]))
    assert len(list(recording)) == recording.skipped == 1
    assert "its stamp is impossible" in caplog.text
