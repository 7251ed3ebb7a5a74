"""What the node publishes, value by value over real DDS: a stand-in for the stream says what each image shows."""

import itertools
import math
import time

import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.time import Time
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from sensor_msgs_py.point_cloud2 import read_points
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from tf2_ros import StaticTransformBroadcaster

from raymap3r_ros.mapping.uncertainty import DEFAULT
from raymap3r_ros.node import conversions, publishers
from raymap3r_ros.node.map_publisher import MAP_TOPICS
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.publishers import TOPICS
from raymap3r_ros.streaming import METHOD, RULES, StepResult, Stream
from raymap3r_ros.streaming.timing import StageTimer

START = 1_700_000_000  # seconds; the stamps of a bench begin here
WIDTH, HEIGHT = 64, 48
FOCAL = 50.0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAYS = np.stack([(COLUMNS - 31.5) / FOCAL, (ROWS - 23.5) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
# x right, y down, z forward in x forward, y left, z up.
ROS_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def script(bench, show):
    """Replace a started bench's stream by a stand-in: its image number n shows `show(n)`, fields of StepResult.

    What is not told is a wall at 2 m before a camera at the origin, of which the network is sure. The mask is known
    from the first image on.
    """
    numbers = itertools.count()
    asked = []  # for every image, whether what moves was asked for

    def step(image, stamp, intrinsics=None, *, motion=True):
        index = next(numbers)
        asked.append(motion)
        told = {"pose": np.eye(4), "depth": np.full(image.shape[:2], 2.0), **show(index)}
        depth = told["depth"]
        matrix = np.array([[FOCAL, 0, 31.5], [0, FOCAL, 23.5], [0, 0, 1]])
        values = {
            "pose_raw": told["pose"], "points": RAYS[: len(depth), : len(depth[0])] * depth[..., None],
            "confidence": np.full(depth.shape, 5.0), "staticness": np.ones(depth.shape), "intrinsics": matrix,
            "gate": np.ones(4), "scale": np.array(1.0), **told,
        }  # fmt: skip
        moves = values.pop("dynamic_mask", np.zeros(depth.shape, bool))
        return StepResult(
            **{name: torch.tensor(value, dtype=torch.float32) for name, value in values.items() if name != "rule"},
            dynamic_mask=torch.tensor(moves & motion),
            healthy=torch.tensor(True), intrinsics_known=torch.tensor(True), alignment_error=None,
            rule_index=torch.tensor(list(RULES).index(values.get("rule", "raymap3r"))),
            image=torch.from_numpy(image.copy()), frame=METHOD.warmup_frames + index, segment=0, stamp=stamp,
            motion=motion, reset=index == 0, reset_reason="" if index else "start",
            timer=StageTimer(torch.device("cpu")),
        )  # fmt: skip

    bench.node._stream.step = step
    return asked


def start(make_bench, show, *topics, **parameters):
    """A bench that takes every image, with a stand-in."""
    bench = make_bench(every_frame=True, **parameters)
    bench.start(*topics)
    script(bench, show)
    return bench


def paint(*patches):
    """An image message of a grey wall with patches of (rows and columns, color)."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    for where, color in patches:
        pixels[where] = color
    return conversions.image_message(Header(), pixels, "rgb8")


def filled(value, *patches):
    """(h, w) of a value but for patches of (rows and columns, value)."""
    array = np.full((HEIGHT, WIDTH), value)
    for where, other in patches:
        array[where] = other
    return array


def wait_for_stamp(bench, topic, sent):
    """Wait for the message of a topic that is made of this image."""
    bench.wait(
        lambda: bench.messages[topic] and bench.messages[topic][-1].header.stamp == sent.header.stamp,
        f"{topic} of the image at {sent.header.stamp}",
    )
    return bench.messages[topic][-1]


def assert_latched(bench, topic):
    """Who subscribes after the last message gets it too, of DDS and not because it is published again."""
    count = len(bench.messages[topic])
    bench.listen(topic)
    assert bench.wait_for(topic, count + 1) == bench.messages[topic][count - 1]


def turned(axis, angle, translation=(0, 0, 0)):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.multiply(axis, angle)).as_matrix()
    pose[:3, 3] = translation
    return pose


# ----------------------------------------------------------------------------------------------------------- odometry

TIMES = (0.0, 0.1, 0.3, 0.35, 0.6)  # the same step takes 0.1, 0.2, 0.05 and 0.25 s
# The camera sits 0.2 m before and 0.5 m above the base, looking forward and 20 degrees down.
MOUNT = turned((0, 1, 0), math.radians(20), (0.2, 0, 0.5)) @ ROS_FROM_OPTICAL


def variances(growths, confidence, travel):
    """(6,) as docs/odometry.md writes them."""
    return np.concatenate(
        [
            (np.array(g.axes) / confidence**g.power) ** 2
            * (g.start**2 + g.settled**2 * (1 - math.exp(-travel / g.reach)) + g.creep**2 * travel)
            for g in growths
        ]
    )


def spread(camera, mount, of_camera):
    """(6, 6) covariance of the pose of a body that carries a camera at `mount`: by trying each error of the camera."""
    columns = []
    for axis, variance in enumerate(of_camera):
        off = np.zeros(6)
        off[axis] = 1e-4
        one, other = (
            camera @ turned(sign * off[3:], 1.0, sign * off[:3]) @ np.linalg.inv(mount) for sign in (0.5, -0.5)
        )
        turn = Rotation.from_matrix(one[:3, :3] @ other[:3, :3].T).as_rotvec()
        columns.append(np.concatenate([one[:3, 3] - other[:3, 3], turn]) / 1e-4 * math.sqrt(variance))
    return np.array(columns).T @ np.array(columns)


@pytest.mark.parametrize(
    ("mode", "mount", "step", "linear", "angular"),
    [
        # Half a decimetre ahead and 0.1 rad to the left: in optical axes, and in those of the robot.
        ("camera", np.eye(4), turned((0, -1, 0), 0.1, (0, 0, 0.05)), (math.sin(0.1), 0, math.cos(0.1)), (0, -0.1, 0)),
        ("map", MOUNT, turned((0, 0, 1), 0.1, (0.05, 0, 0)), (math.cos(0.1), -math.sin(0.1), 0), (0, 0, 0.1)),
    ],
)
def test_odometry_of_a_known_way(make_bench, mode, mount, step, linear, angular):
    scale, confidence = 2.0, 3.0
    body = [turned((0, 0, 1), 1.0, (3, -2, 0)) @ np.linalg.matrix_power(step, index) for index in range(len(TIMES))]
    cameras = [np.linalg.inv(body[0] @ mount) @ pose @ mount for pose in body]  # the first one is the stream's world
    for pose in cameras:
        pose[:3, 3] /= scale  # of which the node is told below
    bench = start(
        make_bench,
        # The median of these, not the mean.
        lambda index: {"pose": cameras[index], "confidence": filled(confidence, (np.s_[:, :20], 50.0))},
        "odometry",
        tf_mode=mode,
        scale__value=scale,
    )
    if mode == "map":
        keep = StaticTransformBroadcaster(bench.probe)
        places = {("base_link", "camera"): MOUNT, ("odom", "base_link"): turned((0, 0, 1), 0.3, (5, 0, 0))}
        keep.sendTransform(
            [conversions.transform_message(Header(frame_id=parent), child, m) for (parent, child), m in places.items()]
        )
        tree = bench.node._look_up.args[0]
        bench.wait(lambda: tree.can_transform("odom", "camera", Time()), "the robot's transforms")
    for index, moment in enumerate(TIMES):
        bench.send(index, time=moment)
    bench.wait_for("odometry", len(TIMES))

    world_from_first = ROS_FROM_OPTICAL if mode == "camera" else mount  # whose axes the world has at the first image
    apart = np.linalg.inv(cameras[0]) @ cameras[1]
    travel = np.linalg.norm(apart[:3, 3]) + 2 * Rotation.from_matrix(apart[:3, :3]).magnitude()
    metric = np.array([scale**2] * 3 + [1] * 3)
    traces = []
    for index, message in enumerate(bench.messages["odometry"]):
        assert message.header.frame_id == "map"
        assert message.child_frame_id == ("camera" if mode == "camera" else "base_link")
        camera = cameras[index].copy()
        camera[:3, 3] *= scale
        camera = world_from_first @ camera
        np.testing.assert_allclose(
            conversions.pose_matrix(message.pose.pose), camera @ np.linalg.inv(mount), atol=1e-5
        )
        covariance = message.pose.covariance.reshape(6, 6)
        of_camera = metric * variances((DEFAULT.position, DEFAULT.rotation), confidence, index * travel)
        np.testing.assert_allclose(covariance, spread(camera, mount, of_camera), rtol=1e-3, atol=1e-9)
        traces.append(np.trace(covariance))
        twist = message.twist.twist
        velocity = [twist.linear.x, twist.linear.y, twist.linear.z]
        turning = [twist.angular.x, twist.angular.y, twist.angular.z]
        if index == 0:
            assert velocity == turning == [0.0] * 3
            np.testing.assert_array_equal(message.twist.covariance.reshape(6, 6), 1e6 * np.eye(6))
            continue
        seconds = TIMES[index] - TIMES[index - 1]
        np.testing.assert_allclose(velocity, 0.05 * np.array(linear) / seconds, atol=1e-4)
        np.testing.assert_allclose(turning, np.array(angular) / seconds, atol=1e-4)
        of_step = metric * variances((DEFAULT.step, DEFAULT.turn), confidence, travel)
        np.testing.assert_allclose(
            message.twist.covariance.reshape(6, 6), spread(mount, mount, of_step) / seconds**2, rtol=1e-3, atol=1e-9
        )
    assert (np.diff(traces) > 0).all()


# ------------------------------------------------------------------------------------------------------- trajectories


def way(path):
    return np.array([conversions.pose_matrix(stamped.pose) for stamped in path.poses])


def test_trajectories_are_those_of_the_stream_alone_smoothed_and_raw(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory", "trajectory_raw")
    sent = [bench.send(index, time=index / 2) for index in range(6)]  # a trajectory is due with each
    wait_for_stamp(bench, "trajectory_raw", sent[-1])
    bench.wait_for("pose", len(sent))
    stream = Stream(bench.node._stream.network)
    images = [np.frombuffer(message.data, np.uint8).reshape(HEIGHT, WIDTH, 3) for message in sent]
    alone = [stream.step(image, motion=False).numpy("pose", "pose_raw") for image in images]
    smoothed, raw = (ROS_FROM_OPTICAL @ [one[name] for one in alone] for name in ("pose", "pose_raw"))
    assert np.abs(smoothed - raw).max() > 0.01
    for topic, expected in {"trajectory": smoothed, "trajectory_raw": raw}.items():
        path = wait_for_stamp(bench, topic, sent[-1])
        assert {path.header.frame_id, *(pose.header.frame_id for pose in path.poses)} == {"map"}
        np.testing.assert_allclose(way(path), expected, atol=1e-5)
    np.testing.assert_allclose(
        [conversions.pose_matrix(one.pose) for one in bench.messages["pose"]], smoothed, atol=1e-5
    )
    assert_latched(bench, "trajectory")


def test_long_trajectory_is_thinned_out(make_bench, monkeypatch):
    assert publishers.SHOWN_POSES == 1000
    monkeypatch.setattr(publishers, "SHOWN_POSES", 20)  # which takes less time
    period = 0.125  # seconds of stamps: every fourth frame a trajectory is due

    def show(index):
        smoothed, raw = np.eye(4), np.eye(4)
        smoothed[:3, 3], raw[:3, 3] = (0, 0, index * period), (1, 0, index * period)
        return {"pose": smoothed, "pose_raw": raw, "depth": np.full((6, 8), 2.0)}

    bench = start(make_bench, show, "trajectory", "trajectory_raw")
    topics = {"trajectory": 0, "trajectory_raw": -1}  # and y of their poses
    lengths = []
    for index in range(45):
        sent = bench.send(index, time=index * period, size=(8, 6))
        if index in (16, 36, 44):  # of those between, which are latched, some may be overtaken
            lengths.append({len(wait_for_stamp(bench, topic, sent).poses) for topic in topics})
    assert lengths == [{17}, {19}, {12}]  # all of 17, every second of 37, every fourth of 45
    for topic, y in topics.items():
        assert max(len(path.poses) for path in bench.messages[topic]) <= 21
        for path in bench.messages[topic]:
            stamps = np.array([Time.from_msg(pose.header.stamp).nanoseconds for pose in path.poses])
            indices = np.rint((stamps * 1e-9 - START) / period).astype(int)
            assert indices[0] == 0 and len(set(np.diff(indices[:-1]))) <= 1
            assert path.poses[-1].header.stamp == path.header.stamp
            places = [[pose.pose.position.x, pose.pose.position.y] for pose in path.poses]
            np.testing.assert_allclose(places, [(index * period, y) for index in indices], atol=1e-5)


# --------------------------------------------------------------------------------------------------------- static map

VOXEL = 0.05
MOVER, UNSURE, BOX = np.s_[10:20, 20:30], np.s_[30:40, 5:15], np.s_[25:40, 35:50]
RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)
LOOKS_RIGHT = np.array([[0, 0, 1, 0.3], [0, 1, 0, 0.2], [-1, 0, 0, 0.1], [0, 0, 0, 1.0]])  # along x of the stream


def cloud_of(message):
    """Points (n, 3) and colors (n, 3)."""
    points = read_points(message)
    bits = points["rgb"].copy().view(np.uint32)
    return np.stack([points[axis] for axis in "xyz"], -1), np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1)


def static_wall(index):
    """A wall at 1.97 m, of which one part is said to move and the network is not sure of another."""
    return {
        "pose": LOOKS_RIGHT, "depth": filled(1.97), "confidence": filled(5.0, (UNSURE, 1.4)),
        "dynamic_mask": filled(False, (MOVER, True)),
    }  # fmt: skip


def expected_map(voxel=VOXEL):
    """Points (n, 3) in `map`, of the means of all pixels in a voxel."""
    keep = filled(True, (UNSURE, False), (np.s_[9:21, 19:31], False))  # around what moves a pixel more
    stream = (RAYS * 1.97)[keep] @ LOOKS_RIGHT[:3, :3].T + LOOKS_RIGHT[:3, 3]
    voxels = {}
    for key, point in zip(np.floor(stream / voxel).astype(int), stream, strict=True):
        voxels.setdefault(tuple(key), []).append(point)
    return np.array([np.mean(points, axis=0) for points in voxels.values()]) @ ROS_FROM_OPTICAL[:3, :3].T


def test_static_map_holds_what_stands_still_and_is_sure(make_bench):
    bench = start(make_bench, static_wall, "static_map", static_map__voxel_size=VOXEL, static_map__rate=30.0)
    sent = [bench.send(time=index / 5, message=paint((MOVER, RED), (UNSURE, GREEN))) for index in range(3)]
    cloud = wait_for_stamp(bench, "static_map", sent[-1])
    assert cloud.header.frame_id == "map"
    points, colors = cloud_of(cloud)
    expected = expected_map()
    assert 1000 < len(expected) < 2500
    off, which = cKDTree(points).query(expected)
    assert off.max() < 1e-4 and len(set(which)) == len(points) == len(expected)
    assert (colors == 120).all()
    assert_latched(bench, "static_map")


def test_voxels_keep_their_size_in_metres_when_the_scale_changes_much(make_bench):
    bench = start(make_bench, static_wall, "static_map", static_map__voxel_size=VOXEL, static_map__rate=30.0)
    # A tenth is let pass; at half the scale, two of the stream's voxels make one of the size that was asked for.
    for index, (scale, voxel) in enumerate([(1.0, VOXEL), (1.08, VOXEL), (0.93, VOXEL), (0.5, 2 * VOXEL)]):
        assert bench.set_parameter("scale.value", scale).successful
        sent = bench.send(time=index / 5, message=paint((MOVER, RED), (UNSURE, GREEN)))
        points, _ = cloud_of(wait_for_stamp(bench, "static_map", sent))
        expected = scale * expected_map(voxel)
        off, which = cKDTree(points).query(expected)
        assert off.max() < 1e-4 and len(set(which)) == len(points) == len(expected), scale


def test_static_map_follows_what_is_seen_and_what_is_set(make_bench):
    def show(index):
        return {"pose": LOOKS_RIGHT, "depth": filled(1.97, (BOX, 1.2)) if index < 2 else filled(1.97)}

    bench = start(make_bench, show, "static_map", static_map__voxel_size=VOXEL, static_map__rate=2.0)

    def look(index):
        sent = bench.send(time=index / 5, message=paint((BOX, BLUE)) if index < 2 else paint())
        return cloud_of(wait_for_stamp(bench, "static_map", sent))

    # A box at y = -(0.3 + 1.2) that was seen twice goes when the wall behind it has been seen as often.
    bench.send(message=paint((BOX, BLUE)))
    points, colors = look(1)
    box = (colors == BLUE).all(1)
    assert box.sum() > 30 and (~box).sum() > 1000
    np.testing.assert_allclose(points[:, 1], np.where(box, -1.5, -2.27), atol=1e-4)
    assert bench.set_parameter("static_map.rate", 30.0).successful
    look(2)
    before = time.monotonic()
    points, colors = look(3)
    assert len(points) > 1000 and (colors == 120).all()
    np.testing.assert_allclose(points[:, 1], -2.27, atol=1e-4)
    assert bench.set_parameter("static_map.max_points", 1000).successful
    assert all(900 <= len(look(index)[0]) <= 1000 for index in range(4, 8))
    assert bench.set_parameter("static_map.max_points", 2000).successful
    assert all(1000 < len(look(index)[0]) <= 2000 for index in range(8, 12))
    assert time.monotonic() - before < 3.0  # twice a second, as before, it would have taken 4.5 s


# ---------------------------------------------------------------------------------------------------------- occupancy

WALL_AHEAD, WALL_LEFT, FLOOR = 4.03, 1.03, 1.02  # metres from the camera


def room():
    """Depth of a room, open to the right, as a level camera sees it: in it a board under the ceiling and a kerb."""
    slope_left, slope_up = -RAYS[..., 0], -RAYS[..., 1]
    with np.errstate(divide="ignore"):
        depth = np.full((HEIGHT, WIDTH), WALL_AHEAD)
        depth = np.where(slope_left > 0, np.minimum(depth, WALL_LEFT / slope_left), depth)
        depth = np.where(slope_up < 0, np.minimum(depth, -FLOOR / slope_up), depth)
        kerb = -(FLOOR - 0.1) / slope_up  # 0.1 m high
    y = slope_left * kerb
    depth = np.where((slope_up < 0) & (kerb > 2.6) & (kerb < 3.6) & (y > -0.8) & (y < -0.3), kerb, depth)
    y, z = slope_left * 2.03, slope_up * 2.03
    return np.where((y > -1.1) & (y < -0.5) & (z > 0.6) & (z < 0.9), 2.03, depth)


def test_occupancy_lies_as_the_room_does(make_bench):
    depth = room()
    bench = start(
        make_bench, lambda index: {"depth": depth}, "occupancy", occupancy__enabled=True, occupancy__resolution=0.1,
        static_map__voxel_size=VOXEL, static_map__rate=30.0,
    )  # fmt: skip

    def look(index):
        grid = wait_for_stamp(bench, "occupancy", bench.send(time=index / 5))
        cells, origin = np.reshape(grid.data, (grid.info.height, grid.info.width)), grid.info.origin.position

        def cell(x, y):
            return cells[int((y - origin.y) / grid.info.resolution), int((x - origin.x) / grid.info.resolution)]

        return grid, cells, cell

    grid, cells, cell = look(0)
    assert grid.header.frame_id == "map" and grid.info.resolution == pytest.approx(0.1)
    position, turn = grid.info.origin.position, grid.info.origin.orientation
    # From where the left wall comes into view to the wall ahead; from that wall's right end to the left wall.
    nearest, right = WALL_LEFT / (31.5 / FOCAL), -WALL_AHEAD * 31.5 / FOCAL
    assert (position.x, position.y) == pytest.approx((math.floor(nearest * 10) / 10, math.floor(right * 10) / 10))
    assert position.z == pytest.approx(-FLOOR, abs=1e-3) and (turn.x, turn.y, turn.z, turn.w) == (0, 0, 0, 1)
    assert (grid.info.width, grid.info.height) == (25, 37)
    wall_left, wall_ahead = cells[-1], cells[:, -1]
    assert (wall_left == 100).mean() > 0.6 and (wall_ahead == 100).all()
    assert not (cells[:-1, :-1] == 100).any()
    kerb, under_board, hidden = (2.95, -0.55), (2.15, -0.85), (1.75, -2.35)
    assert [cell(*place) for place in (kerb, under_board, (2.55, 0.55), hidden)] == [0, 0, 0, -1]
    assert_latched(bench, "occupancy")

    assert bench.set_parameter("occupancy.min_height", 0.05).successful
    _, cells, cell = look(1)
    assert cell(*kerb) == 100 and cell(2.95, 0.55) == cell(*under_board) == 0
    assert (cells[:-1, :-1] == 100).sum() < 60  # a metre by half a metre
    for name, value in {"min_height": 0.15, "max_height": 2.0, "resolution": 0.2}.items():
        assert bench.set_parameter(f"occupancy.{name}", value).successful
    grid, cells, cell = look(2)
    assert grid.info.resolution == pytest.approx(0.2) and cells.shape == (19, 13)
    assert cell(*kerb) == 0 and cell(2.05, -0.85) == 100


# ------------------------------------------------------------------------------------------------------------- points


def test_points_are_the_chosen_pixels_in_the_optical_frame(make_bench):
    random = np.random.default_rng(0)
    depth, confidence = random.uniform(1, 4, (HEIGHT, WIDTH)), random.uniform(1, 4, (HEIGHT, WIDTH))
    pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    moves = filled(False, (MOVER, True))
    bench = start(
        make_bench,
        lambda index: {"pose": LOOKS_RIGHT, "depth": depth, "confidence": confidence, "dynamic_mask": moves},
        "points",
    )

    def look(index):
        bench.send(index, message=conversions.image_message(Header(), pixels, "rgb8"))
        message = bench.wait_for("points", index + 1)
        assert message.header.frame_id == "camera" and not message.is_bigendian
        assert [(field.name, field.offset, field.datatype) for field in message.fields] == [
            ("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("rgb", 12, 7), ("confidence", 16, 7), ("dynamic", 20, 7),
        ]  # fmt: skip
        return message

    def check(message, stride, chosen):
        rows, columns = np.nonzero(chosen & (ROWS % stride == 0) & (COLUMNS % stride == 0))
        assert (message.height, message.width, message.point_step) == (1, len(rows), 24) and len(rows) > 50
        raw = np.frombuffer(message.data, np.float32).reshape(-1, 6)
        z = depth[rows, columns]
        expected = np.stack([(columns - 31.5) / FOCAL * z, (rows - 23.5) / FOCAL * z, z], -1)
        np.testing.assert_allclose(raw[:, :3], expected, atol=1e-5)
        blue_green_red = np.frombuffer(message.data, np.uint8).reshape(-1, 24)[:, 12:15]
        np.testing.assert_array_equal(blue_green_red, pixels[rows, columns][:, ::-1])
        np.testing.assert_allclose(raw[:, 4], confidence[rows, columns], atol=1e-6)
        np.testing.assert_array_equal(raw[:, 5], moves[rows, columns])

    check(look(0), 1, confidence >= 1.5)
    for index, (name, value) in enumerate(
        {"points.stride": 3, "confidence_threshold": 2.5, "points.static_only": True}.items(), 1
    ):
        assert bench.set_parameter(name, value).successful
        check(look(index), 3, (confidence >= (1.5 if index == 1 else 2.5)) & ~(moves & (index == 3)))


# -------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_come_every_second_and_tell_latency_and_rule(make_bench, hold):
    told = []
    bench = start(make_bench, lambda index: {"rule": "cut3r"}, "pose")
    bench.probe.create_subscription(DiagnosticArray, "/diagnostics", lambda _: told.append(time.monotonic()), 10)
    held = hold(bench)
    message = paint()
    age = 5.0  # seconds since the image was taken
    sent = time.monotonic()
    message.header.stamp = Time(nanoseconds=time.time_ns() - round(age * 1e9)).to_msg()
    bench.publish(message)
    held.wait_until_inside()
    inside = time.monotonic()
    bench.wait(lambda: told, "diagnostics")
    assert "latency from stamp, median (ms)" not in bench.told
    let_go = time.monotonic()
    held.let_go()
    bench.wait_for_told("frames out", 1)
    longest = time.monotonic() - sent
    for what in ("median", "p95"):
        from_stamp, from_arrival = (
            float(bench.told[f"latency from {start}, {what} (ms)"]) / 1e3 for start in ("stamp", "arrival")
        )
        assert let_go - inside < from_arrival + 1e-3 and from_arrival < longest
        assert from_arrival + age < from_stamp + 1e-3 and from_stamp < longest + age
    assert bench.told["update rule"] == "cut3r"  # as the frame has it, whatever the parameter says
    assert bench.statuses[-1] == (b"\x00", "active")
    assert 0.5 < (told[-1] - told[0]) / (len(told) - 1) < 2.0


# ------------------------------------------------------------------------------------------------ who listens to what


def test_each_output_is_computed_while_somebody_listens_to_it(make_bench, monkeypatch):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    asked = script(bench, lambda index: {})
    copied = []
    to_host = publishers.to_host

    def spy(tensors):
        arrays = to_host(tensors)
        copied.append(sum(array.nbytes for array in arrays))
        return arrays

    monkeypatch.setattr(publishers, "to_host", spy)
    pixels = WIDTH * HEIGHT
    costs = {  # bytes of a pixel's values, and whether what moves has to be known
        "depth": (4, False), "confidence": (4, False), "rgb": (3, False), "camera_info": (36 / pixels, False),
        "depth_static": (4, True), "dynamic_mask": (1, True), "dynamic_map": (4, True), "points": (24, True),
        "static_map": (0, True), "trajectory": (0, False), "odometry": (0, False),
    }  # fmt: skip
    assert costs.keys() | {"pose", "trajectory_raw", "occupancy"} == TOPICS.keys() | MAP_TOPICS.keys()
    listener = rclpy.create_node("listener", namespace=bench.namespace, context=bench.context)  # that nobody spins
    for index, (topic, (cost, motion)) in enumerate(costs.items()):
        kind, qos = {**TOPICS, **MAP_TOPICS}[topic]
        publisher = next(one for one in bench.node.publishers if one.topic_name == f"{bench.name}/{topic}")
        subscription = listener.create_subscription(kind, publisher.topic_name, lambda message: None, qos)
        bench.wait(lambda publisher=publisher: publisher.get_subscription_count() == 1, f"match of {topic}")
        bench.send(time=index / 5)
        bench.wait(lambda index=index: len(copied) == 2 * index + 2, "a frame")  # a few numbers, and the rest
        assert copied[-1] == round(cost * pixels), topic
        assert asked[-1] is motion, topic
        listener.destroy_subscription(subscription)
        bench.wait(lambda publisher=publisher: publisher.get_subscription_count() == 0, f"end of {topic}")
    listener.destroy_node()


# ------------------------------------------------------------------------------------------------------- many cameras


def test_each_camera_has_services_and_intrinsics_of_its_own(make_bench):
    shared = NetworkPool(2)
    front, rear = cameras = [make_bench(shared=shared, every_frame=True) for _ in range(2)]
    for bench in cameras:
        bench.start("pose", "trajectory", "camera_info")
    assert front.node._stream.network is rear.node._stream.network
    for bench, focal in ((front, 50.0), (rear, 70.0)):
        bench.send_camera_info(width=64, height=48, k=[focal, 0.0, 31.5, 0.0, focal, 23.5, 0.0, 0.0, 1.0])
        bench.wait_for_camera_info()

    def look(bench, index):
        """Poses in the trajectory with an image."""
        sent = bench.send(index, time=index / 2)
        return len(wait_for_stamp(bench, "trajectory", sent).poses)

    for index in range(2):
        assert [look(bench, index) for bench in cameras] == [index + 1] * 2
    for bench, focal in ((front, 50.0), (rear, 70.0)):
        bench.wait_for("camera_info", 2)
        assert {(info.k[0], info.k[4]) for info in bench.messages["camera_info"]} == {(focal, focal)}
    assert front.reset().success
    assert (look(rear, 2), look(front, 2)) == (3, 1)
    assert rear.set_parameter("points.stride", 2).successful
    assert [bench.node.get_parameter("points.stride").value for bench in cameras] == [1, 2]
    assert front.call(SetBool, "set_paused", SetBool.Request(data=True)).success
    front.send(3)
    assert look(rear, 3) == 4
    front.wait_for_told("frames paused", 1)
    rear.wait_for_told("frames out", 4)
    assert (front.told["resets"], rear.told["resets"], rear.told["frames paused"]) == ("1", "0", "0")
    assert front.change_state("deactivate") and front.change_state("cleanup")
    assert (front.state(), rear.state()) == ("unconfigured", "active")
    assert look(rear, 4) == 5
