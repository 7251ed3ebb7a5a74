"""The MCAP export, read by the libraries mcap and rosbags."""

import itertools
import sqlite3
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from recordings import image_message

from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import KnownTrajectory, read_tum
from raymap3r_ros.offline import RunOutputs, run_recording
from raymap3r_ros.offline.export import export_results
from raymap3r_ros.offline.exports.mcap import TOPICS
from raymap3r_ros.streaming import StreamOptions

OWN = {f"/raymap3r/{name}" for name in TOPICS}
ROS_FROM_OPTICAL = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def read(folder):
    """All messages by topic, with their recording times."""
    found = defaultdict(list)
    with AnyReader([folder]) as reader:
        for connection, time, data in reader.messages():
            found[connection.topic].append((time, reader.deserialize(data, connection.msgtype), bytes(data)))
    return found


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def pixels(message, dtype):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, -1).squeeze()


@pytest.fixture(scope="module")
def bag(exact, tmp_path_factory):
    return export_results(exact.results, "mcap", tmp_path_factory.mktemp("mcap") / "out") / "bag"


@pytest.fixture(scope="module")
def messages(bag):
    return read(bag)


def test_the_inputs_messages_are_unchanged(exact, messages):
    for topic, given in read(exact.bag).items():
        copied = messages[topic]
        if topic == "/tf":
            copied = [one for one in copied if one[1].transforms[0].header.frame_id == "world"]
        assert [(time, data) for time, _, data in copied] == [(time, data) for time, _, data in given]


def test_chunks_are_compressed_and_each_topic_has_its_definition(bag):
    reader = pytest.importorskip("mcap.reader")
    with next(bag.glob("*.mcap")).open("rb") as file:
        found = reader.make_reader(file)
        assert found.get_header().profile == "ros2"
        summary = found.get_summary()
        assert {chunk.compression for chunk in summary.chunk_indexes} == {"zstd"}
        names = {one.topic: summary.schemas[one.schema_id].name for one in summary.channels.values()}
        assert names.keys() >= OWN and names["/raymap3r/points"] == "sensor_msgs/msg/PointCloud2"
        assert all(schema.encoding == "ros2msg" and schema.data for schema in summary.schemas.values())
        assert sum(1 for _ in found.iter_messages()) == summary.statistics.message_count
        latched = {one.topic for one in summary.channels.values() if "transient_local" in one.metadata.get(
            "offered_qos_profiles", ""
        )}  # fmt: skip
        assert latched == {"/raymap3r/trajectory", "/raymap3r/static_map"}


def test_each_frame_has_its_messages_at_the_stamp_of_its_image(exact, messages):
    images = {stamp_of(image): time for time, image, _ in messages["/camera/image_raw"]}
    assert [*images] == [frame.stamp for frame in exact.frames]
    for topic in OWN - {"/raymap3r/trajectory", "/raymap3r/static_map"}:
        assert {stamp_of(message): time for time, message, _ in messages[topic]} == images
    for topic in OWN:
        in_world = topic.rpartition("/")[2] in ("pose", "odometry", "trajectory", "static_map")
        assert {message.header.frame_id for _, message, _ in messages[topic]} == {
            "map" if in_world else "camera_optical_frame"
        }


def test_maps_have_the_values_of_the_results(exact, messages):
    def of(name):
        return [message for _, message, _ in messages[f"/raymap3r/{name}"]]

    for index, frame in enumerate(exact.frames):
        np.testing.assert_array_equal(pixels(of("rgb")[index], np.uint8), frame.image)
        np.testing.assert_array_equal(pixels(of("depth")[index], np.float32), frame.depth)
        static = np.where(frame.moving, np.nan, frame.depth)
        np.testing.assert_array_equal(pixels(of("depth_static")[index], np.float32), static)
        np.testing.assert_array_equal(pixels(of("dynamic_mask")[index], np.uint8), np.where(frame.moving, 255, 0))
        np.testing.assert_allclose(of("camera_info")[index].k, frame.intrinsics.ravel(), atol=1e-4)
        cloud = np.frombuffer(of("points")[index].data, np.float32).reshape(56, 64, 6)
        np.testing.assert_allclose(cloud[..., 2], frame.depth[::2, ::2], atol=1e-6)
        row, column = np.indices((112, 128))[:, ::2, ::2]
        seen = cloud[..., :3] / cloud[..., 2:3] @ frame.intrinsics.T
        np.testing.assert_allclose(seen[..., :2], np.stack((column, row), axis=-1), atol=1e-3)
        np.testing.assert_array_equal(cloud[..., 5] > 0, frame.moving[::2, ::2])
        colors = cloud[..., 3].copy().view(np.uint32)
        np.testing.assert_array_equal(colors >> 16, frame.image[::2, ::2, 0])


def test_poses_are_in_the_axes_of_ros_and_the_camera_keeps_its_parent(exact, messages):
    ours = [m.transforms[0] for _, m, _ in messages["/tf"] if m.transforms[0].header.frame_id != "world"]
    poses, odometry = messages["/raymap3r/pose"], messages["/raymap3r/odometry"]
    path = messages["/raymap3r/trajectory"][-1][1].poses
    assert len(ours) == len(poses) == len(odometry) == len(path) == 6
    for frame, transform, (_, pose, _), (_, moved, _), point in zip(
        exact.frames, ours, poses, odometry, path, strict=True
    ):
        place = ROS_FROM_OPTICAL @ frame.pose[:3, 3]
        for one in (pose.pose, moved.pose.pose, point.pose):
            np.testing.assert_allclose([one.position.x, one.position.y, one.position.z], place, atol=1e-6)
        # `world` is the camera's parent in the bag: our world is the camera's child.
        assert (transform.header.frame_id, transform.child_frame_id) == ("camera_optical_frame", "map")
        offset = transform.transform.translation
        np.testing.assert_allclose(
            [offset.x, offset.y, offset.z], -frame.pose[:3, :3].T @ frame.pose[:3, 3], atol=1e-6
        )
        assert np.linalg.eigvalsh(moved.pose.covariance.reshape(6, 6)).min() > 0
    step = ROS_FROM_OPTICAL @ (exact.frames[3].pose[:3, 3] - exact.frames[2].pose[:3, 3])
    speed = odometry[3][1].twist.twist.linear
    assert np.linalg.norm([speed.x, speed.y, speed.z]) == pytest.approx(np.linalg.norm(step) * 10, rel=1e-4)


def test_messages_of_all_types_and_sizes_are_copied(images, network, tmp_path, caplog):
    """From a bag whose messages are compressed one by one."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("float64 level\nstring[] names", "tank_msgs/msg/Level"))
    make = SimpleNamespace(**{kind.rpartition("/")[2]: one for kind, one in store.types.items()})
    nothing = make.Vector3(x=0.0, y=0.0, z=0.0)
    fixed = make.Transform(translation=nothing, rotation=make.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0))
    header = image_message(49.0, np.zeros((2, 2, 3), np.uint8), "rgb8").header
    header.frame_id = "map"
    others = {
        "/tank": make.Level(level=0.5, names=["a", "b"]),
        "/lidar": make.PointCloud2(
            header=header, height=1, width=5_000_000, fields=[], is_bigendian=False, point_step=1, row_step=5_000_000,
            data=np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8), is_dense=True,
        ),
        "/tf_static": make.TFMessage(
            transforms=[make.TransformStamped(header=header, child_frame_id="base", transform=fixed)]
        ),
        "/raymap3r/pose": make.PoseStamped(
            header=header, pose=make.Pose(position=make.Point(x=9.0, y=9.0, z=9.0), orientation=fixed.rotation)
        ),
    }  # fmt: skip
    writer = Writer(tmp_path / "bag", version=9)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        for topic, message in others.items():
            connection = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connection, 99 * 10**9, store.serialize_cdr(message, message.__msgtype__))
        connection = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=store)
        for index in range(3):
            image = image_message(50 + index / 10, cv2.imread(str(images / f"{index}.png")), "bgr8", width=160)
            writer.write(connection, (100 + index) * 10**9, store.serialize_cdr(image, image.__msgtype__))
    run_recording(
        open_recording(tmp_path / "bag"), network, tmp_path / "results", StreamOptions(image_size=48),
        outputs=RunOutputs(preview=False),
    )  # fmt: skip
    found = read(export_results(tmp_path / "results", "mcap") / "bag")
    assert (found["/tank"][0][1].level, found["/tank"][0][1].names) == (0.5, ["a", "b"])
    np.testing.assert_array_equal(found["/lidar"][0][1].data, others["/lidar"].data)
    assert found["/tf_static"][0][1].transforms[0].child_frame_id == "base"
    assert [time // 10**9 for time, _, _ in found["/raymap3r/pose"]] == [100, 101, 102]
    assert "the input's own messages of /raymap3r/pose are replaced" in caplog.text
    # The bag has a frame `map`, and the camera no parent.
    (transform,) = found["/tf"][0][1].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("raymap3r_map", "camera")
    assert {message.header.frame_id for _, message, _ in found["/raymap3r/pose"]} == {"raymap3r_map"}


def test_an_exported_bag_can_be_exported_again(images, network, tmp_path):
    """The transforms of an earlier export are the input's: ours get a frame of their own."""
    recording, topic = images, None
    for generation, frames in enumerate(
        [("map", "camera_optical_frame"), ("camera_optical_frame", "raymap3r_map"),
         ("camera_optical_frame", "raymap3r_map_2")]
    ):  # fmt: skip
        results = tmp_path / f"results_{generation}"
        run_recording(
            open_recording(recording, topic=topic, max_frames=3), network, results,
            StreamOptions(image_size=48), outputs=RunOutputs(preview=False),
        )  # fmt: skip
        recording, topic = export_results(results, "mcap") / "bag", "/camera/image_raw/compressed"
        found = read(recording)
        tree = [(one.header.frame_id, one.child_frame_id, stamp_of(one)) for _, message, _ in found["/tf"]
                for one in message.transforms]  # fmt: skip
        assert [one[:2] for one in tree].count(frames) == 3 and len(set(tree)) == len(tree) == 3 * (generation + 1)
        parents = {child: {parent for parent, other, _ in tree if other == child} for _, child, _ in tree}
        assert all(len(names) == 1 for names in parents.values()), parents
        world = (set(frames) - {"camera_optical_frame"}).pop()
        assert {message.header.frame_id for _, message, _ in found["/raymap3r/pose"]} == {world}


def test_the_frame_of_known_poses_is_not_turned(images, network, tmp_path):
    """Images before the first pose are a world of their own, which is."""
    lines = [f"{index / 10} {5 + index / 10} 6 7 0 0 0 1" for index in range(2, 5)]
    (tmp_path / "known.txt").write_text("\n".join(lines))
    run_recording(
        open_recording(images, rate=10, max_frames=5), network, tmp_path / "results", StreamOptions(image_size=48),
        outputs=RunOutputs(preview=False), poses=KnownTrajectory.read(tmp_path / "known.txt"),
    )  # fmt: skip
    places = [
        (one.pose.position.x, one.pose.position.y, one.pose.position.z)
        for _, one, _ in read(export_results(tmp_path / "results", "mcap") / "bag")["/raymap3r/pose"]
    ]
    first = read_tum(tmp_path / "results" / "trajectory_1.txt")[1][:, :3, 3]
    np.testing.assert_allclose(places[:2], first @ ROS_FROM_OPTICAL.T, atol=1e-9)
    np.testing.assert_allclose(places[2:], [(5.2, 6, 7), (5.3, 6, 7), (5.4, 6, 7)], atol=1e-6)


def test_a_recording_without_ros_becomes_compressed_images(images, network, tmp_path):
    run_recording(
        open_recording(images, rate=10, stride=2), network, tmp_path / "results", StreamOptions(image_size=48),
        outputs=RunOutputs(preview=False),
    )  # fmt: skip
    found = read(export_results(tmp_path / "results", "mcap") / "bag")
    camera, rgb = found["/camera/image_raw/compressed"], found["/raymap3r/rgb"]
    # Stamps begin at 0, "no time" in ROS: a second is added.
    assert [stamp_of(image) for _, image, _ in camera] == [stamp_of(image) for _, image, _ in rgb]
    assert [stamp_of(image) / 1e9 for _, image, _ in camera] == [1.0, 1.2, 1.4, 1.6]
    assert "/camera/camera_info" not in found
    assert {m.transforms[0].child_frame_id for _, m, _ in found["/tf"]} == {"camera_optical_frame"}
    for index, (_, image, _) in enumerate(camera):
        decoded = cv2.imdecode(image.data, cv2.IMREAD_COLOR)
        given = cv2.imread(str(images / f"{2 * index}.png"))
        assert image.format == "jpeg" and np.abs(decoded.astype(int) - given).mean() < 3
    played = open_recording(tmp_path / "results_mcap" / "bag", topic="/camera/image_raw/compressed")
    assert [round(frame.stamp, 6) for frame in itertools.islice(played, 9)] == [1.0, 1.2, 1.4, 1.6]


def test_topics_without_a_definition_are_copied(images, network, tmp_path, caplog):
    """Of a database of ROS 2 Humble, which has no definitions at all."""
    make_reader = pytest.importorskip("mcap.reader").make_reader
    store = get_typestore(Stores.ROS2_HUMBLE)
    kind, ticks = "acme_msgs/msg/WheelTicks", [bytes([0, 1, 0, 0, index, 0, 0, 0]) for index in range(3)]
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = [
            writer.add_connection(name, kind, msgdef="int32 a\n", rihs01="-") for name in ("/left", "/right")
        ]
        image_connection = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=store)
        for index, data in enumerate(ticks):
            for connection in connections:
                writer.write(connection, (100 + index) * 10**9, data)
            image = image_message(50 + index / 10, cv2.imread(str(images / f"{index}.png")), "bgr8", width=160)
            writer.write(image_connection, (100 + index) * 10**9, store.serialize_cdr(image, image.__msgtype__))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    (database,) = (tmp_path / "bag").glob("*.db3")
    with closing(sqlite3.connect(database, isolation_level=None)) as humble:
        humble.execute("DELETE FROM message_definitions")
    run_recording(
        open_recording(database, topic="/image"), network, tmp_path / "results", StreamOptions(image_size=48),
        outputs=RunOutputs(preview=False),
    )  # fmt: skip
    bag = export_results(tmp_path / "results", "mcap") / "bag"
    assert f"/left is copied without the definition of its type, {kind}" in caplog.text
    with next(bag.glob("*.mcap")).open("rb") as file:
        reader = make_reader(file)
        found = [(schema, message.data) for schema, _, message in reader.iter_messages(topics=["/left", "/right"])]
        assert sum(1 for _ in reader.iter_messages()) == reader.get_summary().statistics.message_count
    assert {(schema.name, schema.encoding, schema.data) for schema, _ in found} == {(kind, "", b"")}
    with AnyReader([bag]) as reader:
        copied = [(one.topic, data) for one, _, data in reader.messages() if one.msgtype == kind]
        shown = [reader.deserialize(data, one.msgtype) for one, _, data in reader.messages() if one.topic == "/image"]
    assert sorted(copied) == sorted((topic, data) for topic in ("/left", "/right") for data in ticks)
    assert len(found) == 6 and [image.width for image in shown] == [160] * 3
    assert len(list(open_recording(bag, topic="/image"))) == 3
    metadata = (bag / "metadata.yaml").read_text()
    assert metadata.count("type_description_hash: ''") == 2 and "unknown" not in metadata
