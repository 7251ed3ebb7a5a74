"""World outputs of the node over real DDS: transform modes, metric scale, static map and occupancy."""

import itertools
import math

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Range
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from raymap3r_ros.geometry import poses
from raymap3r_ros.mapping.static_map import StaticMap
from raymap3r_ros.node import conversions, map_publisher
from raymap3r_ros.node.map_publisher import MAP_TOPICS, MapPublisher
from raymap3r_ros.streaming import METHOD
from raymap3r_ros.synthetic import suite_sequence

START = 1_700_000_000  # seconds; the stamps of a bench start here
WARMUP = METHOD.warmup_frames  # the first frames of a world have no dynamic mask

# The camera is 0.2 m in front of and 0.5 m above the base and faces forward, pitched 20 degrees down.
PITCH = math.radians(20)
MOUNT = np.eye(4)
MOUNT[:3, :3] = (
    np.array([[math.cos(PITCH), 0, math.sin(PITCH)], [0, 1, 0], [-math.sin(PITCH), 0, math.cos(PITCH)]])
    @ poses.ROS_FROM_OPTICAL
)
MOUNT[:3, 3] = 0.2, 0, 0.5


@pytest.fixture(scope="module")
def room():
    """Frames of the room that the shipped weights were trained on."""
    sequence = suite_sequence("static", 0, world="one_room", size=(96, 128))
    return [frame for frame, _ in zip(sequence.frames(), range(24), strict=False)]


def process(bench, frames, start=0):
    """Send the intrinsics and then the frames, and wait until all are processed."""
    before = int(bench.diagnostics.get("frames out", 0))
    bench.send_camera_info(width=64, height=48, k=frames[0].intrinsics.ravel().tolist())
    bench.wait_for_camera_info()
    for index, frame in enumerate(frames, start):
        bench.send(index, message=conversions.image_message(Header(), frame.image, "rgb8"))
    bench.wait_for_diagnostics("frames out", before + len(frames))


def mount_camera(bench):
    """Publish base_link -> camera on /tf_static, and wait until the node has received it."""
    transform = conversions.transform_message(Header(frame_id="base_link"), "camera", MOUNT)
    broadcaster = StaticTransformBroadcaster(bench.probe)
    broadcaster.sendTransform(transform)
    bench.wait_for_transform("base_link", "camera")
    return broadcaster


def matrices(message):
    """Transforms of a TFMessage: (parent, child) -> (4, 4)."""
    return {(one.header.frame_id, one.child_frame_id): matrix_of(one) for one in message.transforms}


def matrix_of(transform: TransformStamped):
    pose = np.eye(4)
    t, q = transform.transform.translation, transform.transform.rotation
    pose[:3, 3] = t.x, t.y, t.z
    x, y, z, w = q.x, q.y, q.z, q.w
    pose[:3, 0] = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    pose[:3, 1] = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    pose[:3, 2] = 2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)
    return pose


def camera_poses(bench, topic="pose"):
    return [conversions.pose_matrix(message.pose) for message in bench.messages[topic]]


# ---------------------------------------------------------------------------------------------------------- transforms


def test_mode_base(make_bench, room):
    bench = make_bench(tf_mode="base", every_frame=True)
    bench.start("tf", "pose", "odometry")
    broadcaster = mount_camera(bench)
    process(bench, room[:6])
    assert broadcaster is not None
    bench.wait_for("tf", 6)
    bench.wait_for("pose", 6)
    bench.wait_for("odometry", 6)
    for message, camera, odometry in zip(
        bench.messages["tf"], camera_poses(bench), bench.messages["odometry"], strict=True
    ):
        ((frames, base),) = matrices(message).items()
        assert frames == ("map", "base_link")
        np.testing.assert_allclose(base @ MOUNT, camera, atol=1e-6)
        assert (odometry.header.frame_id, odometry.child_frame_id) == frames
        np.testing.assert_allclose(conversions.pose_matrix(odometry.pose.pose), base, atol=1e-6)
    # The world starts at the base: level, though the camera is pitched down.
    first = matrices(bench.messages["tf"][0])["map", "base_link"]
    np.testing.assert_allclose(first, np.eye(4), atol=1e-5)


def test_mode_odom_is_continuous_and_map_contains_the_corrections(make_bench, room):
    bench = make_bench(tf_mode="odom", every_frame=True)
    bench.start("tf", "pose", "odometry")
    broadcaster = mount_camera(bench)
    process(bench, room[:8])
    assert broadcaster is not None
    assert bench.reset().success
    process(bench, room[12:20], start=8)
    bench.wait_for("tf", 16)
    bench.wait_for("pose", 16)
    bench.wait_for("odometry", 16)
    seen = [matrices(message) for message in bench.messages["tf"]]
    assert all(set(one) == {("odom", "base_link"), ("map", "odom")} for one in seen)
    for one, camera, odometry in zip(seen, camera_poses(bench), bench.messages["odometry"], strict=True):
        np.testing.assert_allclose(one["map", "odom"] @ one["odom", "base_link"] @ MOUNT, camera, atol=1e-5)
        assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    steps = [
        np.linalg.norm(after["odom", "base_link"][:3, 3] - before["odom", "base_link"][:3, 3])
        for before, after in itertools.pairwise(seen)
    ]
    world_steps = [
        np.linalg.norm(after[:3, 3] - before[:3, 3]) for before, after in itertools.pairwise(camera_poses(bench))
    ]
    # The reset moves the pose back to the origin of the world; odom is continuous.
    assert world_steps[7] > 2 * max(steps)
    np.testing.assert_allclose(seen[7]["map", "odom"], np.eye(4), atol=1e-5)
    assert np.abs(seen[8]["map", "odom"] - np.eye(4)).max() > 0.01


def test_mode_map_does_not_publish_odom(make_bench, room):
    bench = make_bench(tf_mode="map", every_frame=True)
    bench.start("tf", "pose")
    broadcaster = mount_camera(bench)
    odom = TransformBroadcaster(bench.probe)
    wheels = np.eye(4)
    wheels[:3, 3] = 1.0, 2.0, 0.0
    for time in (0.0, 8.0):
        stamp = bench.stamp(time)
        odom.sendTransform(conversions.transform_message(Header(stamp=stamp, frame_id="odom"), "base_link", wheels))
    bench.wait_for_transform("odom", "base_link", 5.0)
    process(bench, room[:6])
    assert broadcaster is not None
    bench.wait_for("pose", 6)
    corrections = [
        matrices(message) for message in bench.messages["tf"] if message.transforms[0].header.frame_id == "map"
    ]
    assert len(corrections) == 6 and all(set(one) == {("map", "odom")} for one in corrections)
    for one, camera in zip(corrections, camera_poses(bench), strict=True):
        np.testing.assert_allclose(one["map", "odom"] @ wheels @ MOUNT, camera, atol=1e-5)


def test_inverted_tree(make_bench, room):
    bench = make_bench(invert_tf=True, every_frame=True)
    bench.start("tf", "pose")
    process(bench, room[:4])
    bench.wait_for("tf", 4)
    bench.wait_for("pose", 4)
    for message, camera in zip(bench.messages["tf"], camera_poses(bench), strict=True):
        ((frames, inverse),) = matrices(message).items()
        assert frames == ("camera", "map")
        np.testing.assert_allclose(inverse @ camera, np.eye(4), atol=1e-5)


def test_unknown_mount_is_one_warning_and_depth_is_still_published(make_bench, room):
    bench = make_bench(tf_mode="base", every_frame=True)
    bench.start("tf", "pose", "depth")
    process(bench, room[:3])
    bench.wait_for("depth", 3)
    line = bench.wait_for_log("no transform base_link -> camera", level=30)
    assert "static_transform_publisher" in line
    assert bench.count_logs("no transform") == 1
    assert not bench.messages["tf"] and not bench.messages["pose"]
    broadcaster = mount_camera(bench)
    process(bench, room[3:5], start=3)
    assert broadcaster is not None
    bench.wait_for("pose", 2)
    np.testing.assert_allclose(camera_poses(bench)[0], MOUNT, atol=1e-5)  # the world starts at the first known pose


# --------------------------------------------------------------------------------------------------------------- scale


def test_fixed_scale_applies_to_all_outputs(make_bench, room):
    topics = ("pose", "depth", "points", "trajectory", "tf", "static_map", "odometry")
    seen = []
    for value in (1.0, 2.0):
        bench = make_bench(
            scale__value=value, every_frame=True, static_map__voxel_size=0.05 * value, confidence_threshold=1.0
        )
        bench.start(*topics)
        process(bench, room[:12])
        for topic in ("pose", "depth", "tf", "odometry"):
            bench.wait_for(topic, 12)
        bench.wait_for("points", 12 - WARMUP)
        bench.wait(lambda bench=bench: len(bench.messages["trajectory"][-1].poses) == 12, "the whole trajectory")
        seen.append(bench)
    single, double = seen

    def doubles(read, **tolerance):
        np.testing.assert_allclose(read(double), 2 * read(single), **{"rtol": 1e-5, "atol": 1e-6, **tolerance})

    doubles(lambda bench: np.frombuffer(bench.messages["depth"][-1].data, np.float32))
    doubles(lambda bench: np.array([pose[:3, 3] for pose in camera_poses(bench)]))
    doubles(lambda bench: np.stack([read_points(bench.messages["points"][-1])[axis] for axis in "xyz"]))
    doubles(lambda bench: np.array([next(iter(matrices(m).values()))[:3, 3] for m in bench.messages["tf"][:12]]))
    doubles(lambda bench: np.sqrt(np.diag(bench.messages["odometry"][-1].pose.covariance.reshape(6, 6))[:3]))
    doubles(
        lambda bench: np.array(
            [[p.pose.position.x, p.pose.position.y] for p in bench.messages["trajectory"][-1].poses]
        )
    )
    for bench in seen:
        bench.wait(lambda bench=bench: bench.messages["static_map"], "a map")
    spans = [np.ptp(read_points(bench.messages["static_map"][-1])["x"]) for bench in seen]
    assert spans[1] == pytest.approx(2 * spans[0], rel=0.2)


def test_scale_from_a_range_sensor(make_bench, room):
    bench = make_bench(scale__source="range", every_frame=True, confidence_threshold=1.0)
    bench.start("depth", "pose")
    bench.advertise(Range, "range", QoSProfile(depth=10))
    ratio = 3.0  # the sensor measures three times the depth that the network predicts
    ahead = 2.0  # metres from the camera to the sensor, which measures along its x axis
    ranger = np.eye(4)
    ranger[:3, :3] = poses.ROS_FROM_OPTICAL.T
    ranger[2, 3] = ahead
    broadcaster = StaticTransformBroadcaster(bench.probe)
    broadcaster.sendTransform(conversions.transform_message(Header(frame_id="camera"), "ranger", ranger))
    bench.wait_for_transform("camera", "ranger")
    process(bench, room[:1])
    predicted = float(np.frombuffer(bench.messages["depth"][0].data, np.float32).reshape(96, 128)[47:49, 63:65].mean())
    reading = Range(field_of_view=0.05, min_range=0.01, max_range=100.0, range=ratio * predicted - ahead)
    reading.header.frame_id = "ranger"
    for index in range(1, 200):
        reading.header.stamp = bench.stamp(index / 5)
        bench.publishers["range"].publish(reading)
        bench.send(time=index / 5, message=conversions.image_message(Header(), room[0].image, "rgb8"))
        if index % 20 == 0:
            bench.wait_for("depth", index + 1)
            if bench.diagnostics.get("scale", "").endswith("(from range)"):
                break
    assert bench.diagnostics["scale"].endswith("(from range)"), bench.diagnostics
    bench.wait_for_diagnostics("frames out", len(bench.times("depth")))
    last = np.frombuffer(bench.messages["depth"][-1].data, np.float32).reshape(96, 128)[47:49, 63:65].mean()
    assert last == pytest.approx(ratio * predicted, rel=0.15)


def test_wheel_odometry_is_received(make_bench, room):
    bench = make_bench(scale__source="odometry", every_frame=True)
    bench.start("pose")
    bench.advertise(Odometry, "wheel_odometry", QoSProfile(depth=50))
    received = []
    bench.node.localizer.add_odometry = lambda stamp, pose: received.append((stamp, pose))
    message = Odometry()
    message.header.stamp = bench.stamp(1.5)
    message.pose.pose.position.x = 4.0
    bench.publishers["wheel_odometry"].publish(message)
    bench.wait(lambda: received, "the odometry")
    assert received[0][0] == pytest.approx(START + 1.5) and received[0][1][0, 3] == 4.0
    process(bench, room[:1])
    bench.wait_for_diagnostics("scale", "1 (assumed, waiting for odometry)")


# ---------------------------------------------------------------------------------------------------------------- maps


def test_static_map_matches_the_room_and_is_latched(make_bench, room):
    bench = make_bench(every_frame=True, static_map__always=True, static_map__rate=10.0, static_map__voxel_size=0.1)
    bench.start("pose")
    process(bench, room)
    bench.wait_for("pose", len(room))
    bench.subscribe("static_map")  # after the last image
    cloud = bench.wait_for("static_map")
    assert cloud.header.frame_id == "map" and [field.name for field in cloud.fields] == ["x", "y", "z", "rgb"]
    points = np.stack([read_points(cloud)[axis] for axis in "xyz"], -1)
    assert len(points) > 200 and bench.diagnostics["static map (points)"] != "0"
    # Ground truth: all pixels of every fourth frame, in the world of the first camera with REP 103 axes.
    rows, columns = np.mgrid[:96, :128]
    rays = np.stack([columns, rows, np.ones((96, 128))], -1) @ np.linalg.inv(room[0].intrinsics).T
    surface = []
    for frame in room[::4]:
        pose = poses.world_pose(np.linalg.inv(room[0].pose) @ frame.pose)
        surface.append((frame.depth[..., None] * rays).reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3])
    surface = np.concatenate(surface)
    distance = np.array([np.linalg.norm(surface - point, axis=1).min() for point in points[::7]])
    assert np.median(distance) < 0.25  # metres, in a room of about six metres: the accuracy of this network


def test_map_is_discarded_with_the_world(make_bench, room, monkeypatch):
    maps = []  # one map for each world

    class CountingMap(StaticMap):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            maps.append(self)
            self.frames = 0

        def integrate(self, *arguments):
            super().integrate(*arguments)
            self.frames += 1

    monkeypatch.setattr(map_publisher, "StaticMap", CountingMap)
    bench = make_bench(every_frame=True, static_map__rate=20.0)
    bench.start("pose", "static_map")
    process(bench, room[:10])
    before = bench.wait_for("static_map")
    bench.reset()
    process(bench, room[10:18], start=10)
    # Five frames without a mask and three with one: the map of the new world contains only these three.
    bench.wait(lambda: bench.messages["static_map"][-1].header.stamp != before.header.stamp, "a map of the new world")
    assert 0 < bench.messages["static_map"][-1].width <= 3 * 96 * 128
    assert len(maps) == 2 and maps[1].frames <= 3


def test_large_map_uses_fewer_frames(make_bench, room, monkeypatch):
    publishers = []
    integrate = MapPublisher.integrate

    def spy(self, result, stamp, placement):
        publishers.append(self)
        integrate(self, result, stamp, placement)

    monkeypatch.setattr(MapPublisher, "integrate", spy)
    bench = make_bench(every_frame=True, static_map__always=True)
    bench.start("pose")
    process(bench, room[:8])
    maps, last = publishers[-1], START + 0.7
    assert not maps.wants(last + 0.05) and maps.wants(last + 0.15)
    monkeypatch.setattr(MapPublisher, "__len__", lambda _: 500_000)
    assert not maps.wants(last + 0.43) and maps.wants(last + 0.47)  # five times as many points as a large map has


def test_occupancy_is_published_only_if_enabled(make_bench, room):
    assert "occupancy" not in {one.topic_name.rpartition("/")[2] for one in make_bench().node.publishers}
    bench = make_bench(every_frame=True, occupancy__enabled=True, static_map__rate=20.0, occupancy__resolution=0.1)
    bench.start("pose", "occupancy")
    process(bench, room)
    bench.wait(lambda: bench.messages["occupancy"], "a grid")
    grid = bench.messages["occupancy"][-1]
    assert grid.header.frame_id == "map" and grid.info.resolution >= 0.1
    cells = np.array(grid.data)
    assert len(cells) == grid.info.width * grid.info.height
    assert set(np.unique(cells)) <= {-1, 0, 100} and (cells == 100).any()


def test_map_without_subscribers_is_not_computed(make_bench, room):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    process(bench, room[:8])
    bench.wait_for("pose", 8)
    assert "static map (points)" not in bench.current_diagnostics()
    assert set(MAP_TOPICS) == {"static_map", "occupancy"}
