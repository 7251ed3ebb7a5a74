"""Metric scale over real DDS: a stand-in whose metre is known, sensors beside it, and what becomes of the outputs."""

import itertools
import math
import threading

import numpy as np
import pytest
import tf2_ros
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Range
from sensor_msgs_py.point_cloud2 import read_points

LIMIT = 60.0  # seconds; only a failing test waits so long
OPTICAL = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5])  # x right, y down, z forward, in x forward, y left, z up
WIDTH, HEIGHT, FOCAL = 32, 24, 30.0
RAYS = np.stack(
    [
        *np.meshgrid((np.arange(WIDTH) - WIDTH / 2) / FOCAL, (np.arange(HEIGHT) - HEIGHT / 2) / FOCAL),
        np.ones((HEIGHT, WIDTH)),
    ],
    axis=-1,
)


def matrix(translation=(0, 0, 0), rotation=None):
    result = np.eye(4)
    result[:3, 3] = translation
    if rotation is not None:
        result[:3, :3] = rotation.as_matrix()
    return result


# A camera half a metre above the base, 0.2 m ahead of it, looking 20 degrees down.
MOUNT = matrix((0.2, 0, 0.5), Rotation.from_euler("y", 20, degrees=True) * OPTICAL)


def pose_of(position, orientation):
    q = orientation
    return matrix((position.x, position.y, position.z), Rotation.from_quat([q.x, q.y, q.z, q.w]))


@pytest.fixture
def start(make_bench, stand_in):
    """A bench with these topics and parameters, whose stream is a stand-in, and whose diagnostics come quickly."""

    def make(*topics, **parameters):
        bench = make_bench(every_frame=True, **parameters)
        bench.start(*topics)
        (report,) = (timer for timer in bench.node.timers if timer.callback.__self__ is bench.node)
        report.timer_period_ns = 50_000_000
        report.reset()
        return bench, stand_in(bench, warm_up=0)

    return make


def fix(bench, parent, child, pose):
    """Publish a transform on /tf_static; comes back when the node knows it."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(value) for value in pose[:3, 3])
    r.x, r.y, r.z, r.w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat())
    broadcaster = tf2_ros.StaticTransformBroadcaster(bench.probe)
    broadcaster.sendTransform(message)
    bench.wait_for_transform(parent, child)
    return broadcaster  # which must not go before the test


def sensor(bench, kind, topic, method):
    """Gives a function that publishes a message, and comes back when the node has handed it to this method."""
    bench.advertise(kind, topic, QoSProfile(depth=10))
    taken, heard = getattr(bench.node.localizer, method), threading.Semaphore(0)

    def take(*arguments):
        taken(*arguments)
        heard.release()

    setattr(bench.node.localizer, method, take)

    def publish(message, time):
        message.header.stamp = bench.stamp(time)
        bench.publishers[topic].publish(message)
        assert heard.acquire(timeout=LIMIT), topic

    return publish


def show(bench, stream, time, camera, points, **told):
    """One image, whose camera and points the network believes to be these; comes back when its depth is there."""
    number = len(bench.messages["depth"]) + 1
    stream.tell(camera, points, FOCAL, **told)
    bench.send(time=time, size=(WIDTH, HEIGHT))
    bench.wait_for("depth", number)


def factors(bench, depths):
    """By what the depths of the images so far were multiplied, one number each."""
    found = []
    for message, depth in zip(bench.messages["depth"], depths, strict=True):
        ratio = np.frombuffer(message.data, np.float32).reshape(HEIGHT, WIDTH) / depth
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
        found.append(float(ratio.mean()))
    return found


# ------------------------------------------------------------------------------------------------------------ height

UNIT = 0.4  # true metres in a metre of the network


def corridor(camera, wall):
    """Points (h, w, 3) that a camera (4, 4) sees of the floor z = 0 and of a wall x = `wall`, in its own axes."""
    rays = RAYS @ camera[:3, :3].T
    x, _, z = camera[:3, 3]
    floor = np.where(rays[..., 2] < 0, -z / np.minimum(rays[..., 2], -1e-9), np.inf)
    return RAYS * np.minimum(floor, (wall - x) / rays[..., 0])[..., None]


def in_units(camera):
    """A camera (4, 4) as the network has it."""
    result = camera.copy()
    result[:3, 3] /= UNIT
    return result


def test_height_above_the_floor_goes_to_everything_alike(start):
    """A robot drives towards a wall; from its camera's height above the floor all else follows."""
    assumed = 1.5
    bench, stream = start(
        *("depth", "pose", "odometry", "tf", "points", "static_map"),
        **dict(tf_mode="odom", scale__source="height", scale__camera_height=0.5, scale__value=assumed),
        **dict(static_map__rate=20.0, static_map__voxel_size=0.1),
    )
    keep = fix(bench, "base_link", "camera", MOUNT)
    bases = [matrix((0.3 * index, 0, 0)) for index in range(11)]
    cameras = [base @ MOUNT for base in bases]
    scenes = [corridor(camera, 8.0) / UNIT for camera in cameras]
    for index in range(9):
        reason = "interval" if index == 7 else ""  # aligned: its metre stays
        show(bench, stream, index, in_units(cameras[index]), scenes[index], reason=reason)
    assert keep is not None
    bench.wait_for_told("frames out", 9)
    told, _, source = bench.told["scale"].partition(" ")
    assert source == "(from height)"
    assert 0.8 <= float(bench.told["scale confidence"]) <= 1
    assert bench.told["scale observations"] == "9"
    assert 0 <= float(bench.told["scale spread of one"]) < 0.05
    bench.wait(lambda: 8.0 in bench.times("static_map"), "the map with the last image in it")
    surface = np.stack([read_points(bench.messages["static_map"][-1])[axis] for axis in "xyz"], axis=-1)

    assert bench.reset().success  # whose metre may be another
    show(bench, stream, 9, in_units(cameras[9]), scenes[9])
    bench.wait_for_told("frames out", 10)
    assert bench.told["scale"] == f"{assumed} (assumed, waiting for height)"
    assert bench.told["scale observations"] == "1"

    found = factors(bench, [scene[..., 2] for scene in scenes[:10]])
    known = next(index for index, factor in enumerate(found) if factor < 1)
    assert 5 <= known <= 6  # five independent observations, those within a second counting as one at most
    np.testing.assert_allclose(found[:known] + found[9:], assumed, rtol=1e-5)
    np.testing.assert_allclose(found[known:9], UNIT, rtol=0.03)
    assert float(told) == pytest.approx(found[8], rel=1e-3)

    bench.wait_for("pose", 10)
    bench.wait_for("tf", 10)
    odom = []
    for index, factor in enumerate(found):
        first = 0 if index < 9 else 9
        way = factor / UNIT * (bases[index] - bases[first])[:3, 3]
        pose = bench.messages["pose"][index].pose
        np.testing.assert_allclose(
            pose_of(pose.position, pose.orientation), MOUNT + matrix(way) - np.eye(4), atol=1e-5
        )
        tf = {
            (one.header.frame_id, one.child_frame_id): pose_of(one.transform.translation, one.transform.rotation)
            for one in bench.messages["tf"][index].transforms
        }
        odom.append(tf["odom", "base_link"])
        np.testing.assert_allclose(tf["map", "odom"] @ odom[-1], matrix(way), atol=1e-5)
    # Of the scale that is found odom shows nothing but a smaller step.
    steps = [after[0, 3] - before[0, 3] for before, after in itertools.pairwise(odom)]
    np.testing.assert_allclose(steps[:8], [0.3 * factor / UNIT for factor in found[1:9]], rtol=1e-4)
    for message in bench.messages["points"]:
        index = round(message.header.stamp.sec - bench.stamp(0).sec)
        cloud = np.stack([read_points(message)[axis] for axis in "xyz"], axis=-1)
        np.testing.assert_allclose(cloud, found[index] * scenes[index].reshape(-1, 3), rtol=1e-4, atol=1e-4)
    assert len(surface) > 200
    # Floor and wall, seen from the first camera; where they meet a voxel holds points of both.
    floor, wall = (start + found[8] / UNIT * way for start, way in ((0.5, -0.5), (0.2, 7.8)))
    off = np.minimum(np.abs(surface[:, 2] - floor), np.abs(surface[:, 0] - wall))
    assert np.quantile(off, 0.9) < 1e-3 and off.max() < 0.1
    assert np.ptp(surface[:, 0]) > 5


def test_height_without_a_robot_around_the_camera(start):
    bench, stream = start("depth", scale__source="height", scale__camera_height=0.5)
    scene = corridor(MOUNT, 2.0) / UNIT
    for time in range(7):
        show(bench, stream, time, np.eye(4), scene)
    found = factors(bench, [scene[..., 2]] * 7)
    assert found[:5] == pytest.approx([1.0] * 5) and found[6] == pytest.approx(UNIT, rel=0.03)


# ---------------------------------------------------------------------------------------------------------- odometry

FACTOR = 2.5
LEVER = matrix((1.0, 0.3, 0.5), OPTICAL)  # far ahead of the base: it swings out where the robot turns
FAR = RAYS * 4.0


def ride(bench, stream, publish, bases, start=0, lever=LEVER):
    """Images a second apart, between which a base (4, 4) moves evenly by four messages of its wheels."""
    for time, (before, after) in enumerate(itertools.pairwise(bases), start):
        step = Rotation.from_matrix((np.linalg.inv(before) @ after)[:3, :3]).as_rotvec()
        for part in (0.25, 0.5, 0.75, 1.0):
            base = matrix(before[:3, 3] + part * (after - before)[:3, 3])
            base[:3, :3] = before[:3, :3] @ Rotation.from_rotvec(part * step).as_matrix()
            message = Odometry()
            p, q = message.pose.pose.position, message.pose.pose.orientation
            p.x, p.y, p.z = (float(value) for value in base[:3, 3])
            q.x, q.y, q.z, q.w = (float(value) for value in Rotation.from_matrix(base[:3, :3]).as_quat())
            publish(message, time + part)
        camera = after @ lever
        camera[:3, 3] /= FACTOR
        show(bench, stream, time + 1, camera, FAR)


def powers(step, count, start=None):
    start = matrix((3, -2, 0), Rotation.from_euler("z", 1.0)) if start is None else start
    return [start @ np.linalg.matrix_power(step, index) for index in range(count)]


CURVE = matrix((0.6, 0, 0), Rotation.from_euler("z", 0.6))
STRAIGHT = matrix((0.6, 0, 0))


def test_wheel_odometry_finds_the_scale_in_curves_where_the_lever_is_known(start):
    """The camera swings out: it travels some 25 % farther than the base."""
    bench, stream = start(*("depth", "pose"), tf_mode="base", scale__source="odometry", scale__value=1.5)
    keep = fix(bench, "base_link", "camera", LEVER)
    publish = sensor(bench, Odometry, "wheel_odometry", "add_odometry")
    bases = powers(CURVE, 10)
    ride(bench, stream, publish, bases)
    assert keep is not None
    found = factors(bench, [FAR[..., 2]] * 9)
    assert found[:5] == pytest.approx([1.5] * 5) and found[8] == pytest.approx(FACTOR, rel=1e-3)
    bench.wait_for_told("frames out", 9)
    assert bench.told["scale"] == "2.5 (from odometry)"
    # Stretches between nine images; the first may be gone before the lever is known.
    assert bench.told["scale observations"] in ("7", "8")
    assert float(bench.told["scale confidence"]) >= 0.8
    bench.wait_for("pose", 9)
    way = (np.linalg.inv(bases[1]) @ bases[9] @ LEVER)[:3, 3]  # in metres, as the wheels have it
    place = bench.messages["pose"][-1].pose.position
    np.testing.assert_allclose((place.x, place.y, place.z), way, rtol=2e-3, atol=1e-3)


def test_wheel_odometry_leaves_curves_out_where_the_lever_is_not_known(start):
    bench, stream = start("depth", scale__source="odometry")
    publish = sensor(bench, Odometry, "wheel_odometry", "add_odometry")
    curve = powers(CURVE, 8)
    ride(bench, stream, publish, curve)
    bench.wait_for_told("frames out", 7)
    assert bench.told["scale"] == "1 (assumed, waiting for odometry)"
    assert (bench.told["scale observations"], bench.told["scale confidence"]) == ("0", "0.0")
    ride(bench, stream, publish, powers(STRAIGHT, 8, curve[-1]), start=7)
    bench.wait_for_told("scale", "2.5 (from odometry)")
    found = factors(bench, [FAR[..., 2]] * 14)
    assert found[:12] == pytest.approx([1.0] * 12) and found[13] == pytest.approx(FACTOR, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------- range


def reading(distance, field_of_view=0.05, frame_id="ranger"):
    message = Range(range=distance, field_of_view=field_of_view, min_range=0.2, max_range=9.0)
    message.header.frame_id = frame_id
    return message


def test_range_readings_that_measured_nothing_are_ignored(start):
    """The sensor's place is not known: it is taken to sit where the camera sits."""
    bench, stream = start("depth", scale__source="range", scale__value=1.5)
    publish = sensor(bench, Range, "range", "add_range")
    nothing = (math.inf, -math.inf, math.nan, 9.0, 20.0, 0.2, 0.05, 0.0, -8.0)
    for time in range(8):
        for number, distance in enumerate(nothing):
            publish(reading(distance), time + number * 1e-3)
        publish(reading(8.0), time + 0.5)  # of no image
        show(bench, stream, time, np.eye(4), FAR)
    bench.wait_for_told("frames out", 8)
    assert bench.told["scale"] == "1.5 (assumed, waiting for range)"
    assert (bench.told["scale observations"], bench.told["scale confidence"]) == ("0", "0.0")
    bench.publishers["range"].publish(reading(8.0, field_of_view=4.0))
    bench.wait_for_log("range ignored: field_of_view is 4 rad", level=30)
    for time in range(8, 16):
        publish(reading(8.0), time - 0.02)
        for number, distance in enumerate(nothing):
            publish(reading(distance), time + number * 1e-3)
        publish(reading(8.0), time + 0.05)
        show(bench, stream, time, np.eye(4), FAR)
    found = factors(bench, [FAR[..., 2]] * 16)
    assert found[:13] == pytest.approx([1.5] * 13) and found[15] == pytest.approx(8 / 4, rel=1e-3)
    bench.wait_for_told("frames out", 16)
    assert (bench.told["scale"], bench.told["scale observations"]) == ("2 (from range)", "8")


@pytest.mark.parametrize("degrees", [8, 30])
def test_range_sensor_that_looks_elsewhere_is_refused_with_a_line(start, degrees):
    bench, stream = start("depth", scale__source="range")
    mount = matrix((0, 0.1, 0.5), Rotation.from_euler("y", degrees, degrees=True) * OPTICAL.inv())
    keep = fix(bench, "camera", "ranger", mount)
    publish = sensor(bench, Range, "range", "add_range")
    for time in range(8):
        publish(reading(7.5), time)
        show(bench, stream, time, np.eye(4), FAR)
    assert keep is not None
    factor = factors(bench, [FAR[..., 2]] * 8)[7]
    bench.wait_for_told("frames out", 8)
    if degrees < 10:
        assert factor == pytest.approx((7.5 + 0.5) / 4, rel=1e-3) and bench.told["scale"] == "2 (from range)"
        return
    line = bench.wait_for_log("scale.source is range, but", level=40)
    assert "points 30 degrees away from the camera's axis" in line and "allowed: up to 10" in line
    assert factor == 1.0 and bench.told["scale"] == "1 (assumed, waiting for range)"
    # Before the sensor is heard its frame is not known, so the first image may still be looked at.
    assert int(bench.told["scale observations"]) <= 1
    assert bench.reset().success
    show(bench, stream, 8, np.eye(4), FAR)
    bench.wait_for_log("a new world starts (reset)")  # whatever was told before is here too
    assert bench.count_logs("scale.source is range, but") == 1


def test_range_sensor_is_found_in_tf_where_its_name_has_a_leading_slash(start):
    """As names of tf had, and those in bags of ROS 1 have: tf2 knows none of these."""
    bench, stream = start("depth", scale__source="range")
    keep = fix(bench, "camera", "ranger", matrix((0, 0, 0.5), OPTICAL.inv()))
    publish = sensor(bench, Range, "range", "add_range")
    for time in range(8):
        publish(reading(7.5, frame_id="/ranger"), time)
        show(bench, stream, time, np.eye(4), FAR)
    assert keep is not None
    assert factors(bench, [FAR[..., 2]] * 8)[7] == pytest.approx((7.5 + 0.5) / 4, rel=1e-3)
