"""The node in the world: transform modes, metric scale, static map and occupancy, over real DDS."""

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
from raymap3r_ros.node import conversions, map_publisher, reporter
from raymap3r_ros.node.map_publisher import MAP_TOPICS, MapPublisher
from raymap3r_ros.streaming import METHOD
from raymap3r_ros.synthetic import suite_sequence

START = 1_700_000_000  # seconds; the stamps of a bench begin here
UNKNOWN = METHOD.warmup_frames  # of a world's first frames nobody knows what moves in them

# The camera sits 0.2 m before and 0.5 m above the base, looking forward and 20 degrees down.
PITCH = math.radians(20)
MOUNT = np.eye(4)
MOUNT[:3, :3] = (
    np.array([[math.cos(PITCH), 0, math.sin(PITCH)], [0, 1, 0], [-math.sin(PITCH), 0, math.cos(PITCH)]])
    @ poses.ROS_FROM_OPTICAL
)
MOUNT[:3, 3] = 0.2, 0, 0.5


@pytest.fixture(scope="module")
def room():
    """Frames of the room that the shipped weights know."""
    sequence = suite_sequence("static", 0, world="one_room", size=(48, 64))
    return [frame for frame, _ in zip(sequence.frames(), range(24), strict=False)]


def show(bench, frames, start=0):
    """Send frames, with their intrinsics before them, and wait until all are processed."""
    before = int(bench.told.get("frames out", 0))
    bench.send_camera_info(width=64, height=48, k=frames[0].intrinsics.ravel().tolist())
    bench.wait_for_camera_info()
    for index, frame in enumerate(frames, start):
        bench.send(index, message=conversions.image_message(Header(), frame.image, "rgb8"))
    bench.wait_for_told("frames out", before + len(frames))


def mount_camera(bench):
    """Publish base_link -> camera on /tf_static, and wait until the node knows it."""
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


WALL_SIZE, WALL_FOCAL = (8, 6), 8.0  # of a stand-in's images


def wall(depth):
    """(6, 8, 3) points of a wall straight ahead, as a stand-in is told them."""
    columns, rows = np.meshgrid((np.arange(8) - 4) / WALL_FOCAL, (np.arange(6) - 3) / WALL_FOCAL)
    return np.stack([columns, rows, np.ones((6, 8))], -1) * depth


def wait_for_map(bench, sent):
    """Wait for the static map whose last image is this one."""
    bench.wait(
        lambda: bench.messages["static_map"] and bench.messages["static_map"][-1].header.stamp == sent.header.stamp,
        "the map with the last image",
    )
    return bench.messages["static_map"][-1]


def ahead(cloud):
    """How far ahead the points of a map are, metres, each distance once."""
    return set(np.unique(read_points(cloud)["x"].round(3)).tolist())


# ---------------------------------------------------------------------------------------------------------- transforms


def test_mode_base(make_bench, room):
    bench = make_bench(tf_mode="base", every_frame=True)
    bench.start("tf", "pose", "odometry")
    keep = mount_camera(bench)
    show(bench, room[:6])
    assert keep is not None
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
    # The world begins as the base: level, though the camera looks down.
    first = matrices(bench.messages["tf"][0])["map", "base_link"]
    np.testing.assert_allclose(first, np.eye(4), atol=1e-5)


def test_mode_odom_never_jumps_and_map_carries_the_corrections(make_bench, room):
    bench = make_bench(tf_mode="odom", every_frame=True)
    bench.start("tf", "pose", "odometry")
    keep = mount_camera(bench)
    show(bench, room[:8])
    assert keep is not None
    assert bench.reset().success
    show(bench, room[12:20], start=8)
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
    # The reset sets the world back to its origin; odom goes on as it went.
    assert world_steps[7] > 2 * max(steps)
    np.testing.assert_allclose(seen[7]["map", "odom"], np.eye(4), atol=1e-5)
    assert np.abs(seen[8]["map", "odom"] - np.eye(4)).max() > 0.01


def test_mode_map_leaves_odom_to_its_source(make_bench, room):
    bench = make_bench(tf_mode="map", every_frame=True)
    bench.start("tf", "pose")
    keep = mount_camera(bench)
    odom = TransformBroadcaster(bench.probe)
    wheels = np.eye(4)
    wheels[:3, 3] = 1.0, 2.0, 0.0
    for time in (0.0, 8.0):
        stamp = bench.stamp(time)
        odom.sendTransform(conversions.transform_message(Header(stamp=stamp, frame_id="odom"), "base_link", wheels))
    bench.wait_for_transform("odom", "base_link", 5.0)
    show(bench, room[:6])
    assert keep is not None
    bench.wait_for("pose", 6)
    ours = [matrices(message) for message in bench.messages["tf"] if message.transforms[0].header.frame_id == "map"]
    assert len(ours) == 6 and all(set(one) == {("map", "odom")} for one in ours)
    for one, camera in zip(ours, camera_poses(bench), strict=True):
        np.testing.assert_allclose(one["map", "odom"] @ wheels @ MOUNT, camera, atol=1e-5)


def test_inverted_tree(make_bench, room):
    bench = make_bench(invert_tf=True, every_frame=True)
    bench.start("tf", "pose")
    show(bench, room[:4])
    bench.wait_for("tf", 4)
    bench.wait_for("pose", 4)
    for message, camera in zip(bench.messages["tf"], camera_poses(bench), strict=True):
        ((frames, inverse),) = matrices(message).items()
        assert frames == ("camera", "map")
        np.testing.assert_allclose(inverse @ camera, np.eye(4), atol=1e-5)


def test_unknown_mount_is_one_warning_and_the_maps_go_on(make_bench, room):
    bench = make_bench(tf_mode="base", every_frame=True)
    bench.start("tf", "pose", "depth")
    show(bench, room[:3])
    bench.wait_for("depth", 3)
    line = bench.wait_for_log("no transform base_link -> camera", level=30)
    assert "static_transform_publisher" in line
    assert bench.count_logs("no transform") == 1
    assert not bench.messages["tf"] and not bench.messages["pose"]
    keep = mount_camera(bench)
    show(bench, room[3:5], start=3)
    assert keep is not None
    bench.wait_for("pose", 2)
    np.testing.assert_allclose(camera_poses(bench)[0], MOUNT, atol=1e-5)  # the world begins with the first known place


# --------------------------------------------------------------------------------------------------------------- scale


def test_fixed_scale_goes_to_everything_alike(make_bench, room):
    topics = ("pose", "depth", "points", "trajectory", "tf", "static_map", "odometry")
    seen = []
    for value in (1.0, 2.0):
        bench = make_bench(
            scale__value=value, every_frame=True, static_map__voxel_size=0.05 * value, confidence_threshold=1.0
        )
        bench.start(*topics)
        show(bench, room[:12])
        for topic in ("pose", "depth", "tf", "odometry"):
            bench.wait_for(topic, 12)
        bench.wait_for("points", 12 - UNKNOWN)
        bench.wait(lambda bench=bench: len(bench.messages["trajectory"][-1].poses) == 12, "the whole trajectory")
        seen.append(bench)
    once, twice = seen

    def doubles(read, **tolerance):
        np.testing.assert_allclose(read(twice), 2 * read(once), **{"rtol": 1e-5, "atol": 1e-6, **tolerance})

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
    truth = 3.0  # what the sensor says is three times what the network believes; taken from its own depth below
    ahead = 2.0  # metres: where the sensor sits, measuring along its x axis
    ranger = np.eye(4)
    ranger[:3, :3] = poses.ROS_FROM_OPTICAL.T
    ranger[2, 3] = ahead
    broadcaster = StaticTransformBroadcaster(bench.probe)
    broadcaster.sendTransform(conversions.transform_message(Header(frame_id="camera"), "ranger", ranger))
    bench.wait_for_transform("camera", "ranger")
    show(bench, room[:1])
    believed = float(np.frombuffer(bench.messages["depth"][0].data, np.float32).reshape(48, 64)[23:25, 31:33].mean())
    reading = Range(field_of_view=0.05, min_range=0.01, max_range=100.0, range=truth * believed - ahead)
    reading.header.frame_id = "ranger"
    for index in range(1, 200):
        reading.header.stamp = bench.stamp(index / 5)
        bench.publishers["range"].publish(reading)
        bench.send(time=index / 5, message=conversions.image_message(Header(), room[0].image, "rgb8"))
        if index % 20 == 0:
            bench.wait_for("depth", index + 1)
            if bench.told.get("scale", "").endswith("(from range)"):
                break
    assert bench.told["scale"].endswith("(from range)"), bench.told
    bench.wait_for_told("frames out", len(bench.times("depth")))
    last = np.frombuffer(bench.messages["depth"][-1].data, np.float32).reshape(48, 64)[23:25, 31:33].mean()
    assert last == pytest.approx(truth * believed, rel=0.15)


def test_wheel_odometry_is_heard(make_bench, room):
    bench = make_bench(scale__source="odometry", every_frame=True)
    bench.start("pose")
    bench.advertise(Odometry, "wheel_odometry", QoSProfile(depth=50))
    heard = []
    bench.node.localizer.add_odometry = lambda stamp, pose: heard.append((stamp, pose))
    message = Odometry()
    message.header.stamp = bench.stamp(1.5)
    message.pose.pose.position.x = 4.0
    bench.publishers["wheel_odometry"].publish(message)
    bench.wait(lambda: heard, "the odometry")
    assert heard[0][0] == pytest.approx(START + 1.5) and heard[0][1][0, 3] == 4.0
    show(bench, room[:1])
    bench.wait_for_told("scale", "1 (assumed, waiting for odometry)")


# ---------------------------------------------------------------------------------------------------------------- maps


def test_static_map_lies_on_the_room_and_is_latched(make_bench, room):
    bench = make_bench(every_frame=True, static_map__always=True, static_map__rate=10.0, static_map__voxel_size=0.1)
    bench.start("pose")
    show(bench, room)
    bench.wait_for("pose", len(room))
    bench.listen("static_map")  # afterwards
    cloud = bench.wait_for("static_map")
    assert cloud.header.frame_id == "map" and [field.name for field in cloud.fields] == ["x", "y", "z", "rgb"]
    points = np.stack([read_points(cloud)[axis] for axis in "xyz"], -1)
    assert len(points) > 200 and bench.told["static map (points)"] != "0"
    # The truth: every pixel of every frame, in the world of the first camera turned to REP 103.
    rows, columns = np.mgrid[:48, :64]
    rays = np.stack([columns, rows, np.ones((48, 64))], -1) @ np.linalg.inv(room[0].intrinsics).T
    surface = []
    for frame in room[::4]:
        pose = poses.world_pose(np.linalg.inv(room[0].pose) @ frame.pose)
        surface.append((frame.depth[..., None] * rays).reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3])
    surface = np.concatenate(surface)
    distance = np.array([np.linalg.norm(surface - point, axis=1).min() for point in points[::7]])
    assert np.median(distance) < 0.25  # metres, in a room of some six: what this network is good for


def test_map_is_forgotten_with_the_world(make_bench, room, monkeypatch):
    maps = []  # by world, the frames that each has integrated

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
    show(bench, room[:10])
    before = bench.wait_for("static_map")
    bench.reset()
    show(bench, room[10:18], start=10)
    # Five frames without a mask and three with one: the map of the new world holds these alone.
    bench.wait(lambda: bench.messages["static_map"][-1].header.stamp != before.header.stamp, "a map of the new world")
    assert 0 < bench.messages["static_map"][-1].width <= 3 * 48 * 64
    assert len(maps) == 2 and maps[1].frames <= 3


def test_map_is_forgotten_with_the_image_after_a_memory_that_is_not_aligned(make_bench, stand_in):
    bench = make_bench(every_frame=True, reset_alignment="off", static_map__rate=30.0, static_map__voxel_size=0.05)
    bench.start("static_map")
    stream = stand_in(bench)

    def look(index, depth, reason=""):
        """How far ahead the points of the map are when a wall at this depth has joined it."""
        stream.tell(np.eye(4), wall(depth), WALL_FOCAL, reason)
        return ahead(wait_for_map(bench, bench.send(index, size=WALL_SIZE)))

    for index in range(UNKNOWN):
        stream.tell(np.eye(4), wall(2.0), WALL_FOCAL)
        bench.send(index, size=WALL_SIZE)
    assert look(UNKNOWN, 2.0) == look(UNKNOWN + 1, 2.0) == {2.0}
    assert look(UNKNOWN + 2, 1.5, "interval") == {1.5, 2.0}  # still in the old memory, and nearer: nothing is carved
    # Seen through once, a wall that was seen twice would still stand.
    assert look(UNKNOWN + 3, 4.0) == {4.0}


def test_who_listens_is_told_that_the_map_of_the_old_world_is_gone(make_bench, stand_in):
    bench = make_bench(every_frame=True, static_map__rate=30.0, static_map__voxel_size=0.05, occupancy__enabled=True)
    bench.start("pose", "static_map", "occupancy")
    stream = stand_in(bench)

    def send(first, count):
        for index in range(first, first + count):
            stream.tell(np.eye(4), wall(2.0), WALL_FOCAL)
            sent = bench.send(index, size=WALL_SIZE)
        bench.wait_for("pose", first + count)
        return sent

    send(0, UNKNOWN)  # nothing that could be mapped, and so nothing that could be gone
    sent = send(UNKNOWN, 1)
    assert wait_for_map(bench, sent).width > 0
    assert all(cloud.width > 0 for cloud in bench.messages["static_map"])
    assert len(bench.wait_for("occupancy").data) > 1
    before = len(bench.messages["static_map"])
    assert bench.reset().success
    send(UNKNOWN + 1, 1)  # of the new world's first images none joins a map
    empty = bench.wait_for("static_map", before + 1)
    assert (empty.width, len(empty.data), empty.header.frame_id) == (0, 0, "map")
    bench.wait(lambda: len(bench.messages["occupancy"][-1].data) == 1, "the smallest grid")
    grid = bench.messages["occupancy"][-1]
    assert (grid.data[0], grid.header) == (-1, empty.header)
    bench.listen("static_map")  # who comes late is told the same by DDS
    assert bench.wait_for("static_map", before + 2) == empty


def test_map_takes_every_image_of_a_camera_of_10_hz(make_bench, stand_in, monkeypatch):
    """However its stamps waver; of a faster camera every second or third will do."""
    random = np.random.default_rng(0)
    bench = make_bench(every_frame=True, static_map__always=True)
    bench.start("pose")
    stream, joined = stand_in(bench), []
    integrate = MapPublisher.integrate

    def spy(self, result, stamp, placement):
        joined.append(stamp)
        integrate(self, result, stamp, placement)

    monkeypatch.setattr(MapPublisher, "integrate", spy)
    expected, sent, start = [], 0, 0.0
    for rate in (10, 20, 30):
        times = start + np.arange(UNKNOWN + rate) / rate + random.uniform(-0.0035, 0.0035, UNKNOWN + rate)
        for time in times:
            stream.tell(np.eye(4), wall(2.0), WALL_FOCAL)
            bench.send(time=time, size=WALL_SIZE)
        expected += [bench.stamp(time) for time in times[UNKNOWN :: rate // 10]]
        start = times[-1] + 10.0  # a jump: a new world, and a new map
        sent += len(times)
        bench.wait_for("pose", sent)
    assert bench.change_state("deactivate")  # the last image has then joined too
    assert joined == expected and len(joined) == 30


def test_large_map_takes_in_fewer_frames(make_bench, room, monkeypatch):
    publishers = []
    integrate = MapPublisher.integrate

    def spy(self, result, stamp, placement):
        publishers.append(self)
        integrate(self, result, stamp, placement)

    monkeypatch.setattr(MapPublisher, "integrate", spy)
    bench = make_bench(every_frame=True, static_map__always=True)
    bench.start("pose")
    show(bench, room[:8])
    maps, last = publishers[-1], START + 0.7
    assert not maps.wants(last + 0.05) and maps.wants(last + 0.15)
    monkeypatch.setattr(MapPublisher, "__len__", lambda _: 500_000)
    assert not maps.wants(last + 0.43) and maps.wants(last + 0.47)  # five times the points of a large one


def test_occupancy_is_there_when_it_is_asked_for(make_bench, room):
    assert "occupancy" not in {one.topic_name.rpartition("/")[2] for one in make_bench().node.publishers}
    bench = make_bench(every_frame=True, occupancy__enabled=True, static_map__rate=20.0, occupancy__resolution=0.1)
    bench.start("pose", "occupancy")
    show(bench, room)
    bench.wait(lambda: bench.messages["occupancy"], "a grid")
    grid = bench.messages["occupancy"][-1]
    assert grid.header.frame_id == "map" and grid.info.resolution >= 0.1
    cells = np.array(grid.data)
    assert len(cells) == grid.info.width * grid.info.height
    assert set(np.unique(cells)) <= {-1, 0, 100} and (cells == 100).any()


@pytest.mark.parametrize(
    ("owner", "name", "topic"),
    [(conversions, "map_message", "static_map"), (map_publisher, "occupancy_grid", "occupancy")],
)
def test_map_that_cannot_be_published_is_told_once_and_comes_later(
    make_bench, stand_in, monkeypatch, owner, name, topic
):
    bench = make_bench(every_frame=True, static_map__rate=30.0, occupancy__enabled=True)
    bench.start("static_map", "occupancy")
    stream, attempts = stand_in(bench), []
    monkeypatch.setattr(reporter, "THROTTLE", 1e6)  # however slow this machine is

    def fail(*arguments):
        attempts.append(arguments)
        raise RuntimeError("no memory, as a test")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for index in range(UNKNOWN + 1):
            stream.tell(np.eye(4), wall(2.0), WALL_FOCAL)
            sent = bench.send(index, size=WALL_SIZE)
        bench.wait(lambda: len(attempts) >= 3, "attempts")
        assert not bench.messages[topic]
    # Without another image.
    assert bench.wait_for(topic).header.stamp == sent.header.stamp
    line = bench.wait_for_log("static map not published: no memory, as a test", level=40)
    assert "Traceback" in line and bench.count_logs("not published") == 1
    bench.wait_for_told("last error", "static map not published: no memory, as a test")
    stream.tell(np.eye(4), wall(2.0), WALL_FOCAL)
    sent = bench.send(UNKNOWN + 1, size=WALL_SIZE)
    wait_for_map(bench, sent)
    assert len(bench.messages["static_map"]) == 2  # of each image one, whatever becomes of the grid


def test_what_nobody_listens_to_is_not_mapped(make_bench, room):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    show(bench, room[:8])
    bench.wait_for("pose", 8)
    assert "static map (points)" not in bench.facts()
    assert set(MAP_TOPICS) == {"static_map", "occupancy"}
