"""Metric scale over real DDS: a fake stream of known scale, scale sensors, and the scaled outputs."""

import inspect
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

LIMIT = 60.0  # seconds; only a failing test waits this long
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


# A camera half a metre above the base and 0.2 m ahead of it, pitched 20 degrees down.
MOUNT = matrix((0.2, 0, 0.5), Rotation.from_euler("y", 20, degrees=True) * OPTICAL)


def pose_of(position, orientation):
    q = orientation
    return matrix((position.x, position.y, position.z), Rotation.from_quat([q.x, q.y, q.z, q.w]))


@pytest.fixture
def start(make_bench, fake_stream):
    """Starts a bench with these topics and parameters, with a FakeStream and diagnostics at 20 Hz."""

    def make(*topics, **parameters):
        bench = make_bench(every_frame=True, **parameters)
        bench.start(*topics)
        (report,) = (timer for timer in bench.node.timers if inspect.unwrap(timer.callback).__self__ is bench.node)
        report.timer_period_ns = 50_000_000
        report.reset()
        return bench, fake_stream(bench, warm_up=0)

    return make


def publish_static(bench, parent, child, pose):
    """Publish a transform on /tf_static; returns when the node has received it."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(value) for value in pose[:3, 3])
    r.x, r.y, r.z, r.w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat())
    broadcaster = tf2_ros.StaticTransformBroadcaster(bench.probe)
    broadcaster.sendTransform(message)
    bench.wait_for_transform(parent, child)
    return broadcaster  # must exist until the end of the test


def sensor_publisher(bench, kind, topic, method):
    """A function that publishes a message and returns after the node has passed it to this method of the localizer."""
    bench.advertise(kind, topic, QoSProfile(depth=10))
    original, received = getattr(bench.node.localizer, method), threading.Semaphore(0)

    def spy(*arguments):
        original(*arguments)
        received.release()

    setattr(bench.node.localizer, method, spy)

    def publish(message, time):
        message.header.stamp = bench.stamp(time)
        bench.publishers[topic].publish(message)
        assert received.acquire(timeout=LIMIT), topic

    return publish


def send_image(bench, stream, time, camera, points, **options):
    """Send one image with these predicted camera and points; returns when its depth has arrived."""
    number = len(bench.messages["depth"]) + 1
    stream.enqueue(camera, points, FOCAL, **options)
    bench.send(time=time, size=(WIDTH, HEIGHT))
    bench.wait_for("depth", number)


def factors(bench, depths):
    """The factor by which the depth of each image so far was multiplied."""
    found = []
    for message, depth in zip(bench.messages["depth"], depths, strict=True):
        ratio = np.frombuffer(message.data, np.float32).reshape(HEIGHT, WIDTH) / depth
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
        found.append(float(ratio.mean()))
    return found


# ------------------------------------------------------------------------------------------------------------ height

UNIT = 0.4  # metres per unit of the network


def corridor(camera, wall):
    """Points (h, w, 3) of the floor z = 0 and a wall x = `wall`, in the axes of a camera (4, 4)."""
    rays = RAYS @ camera[:3, :3].T
    x, _, z = camera[:3, 3]
    floor = np.where(rays[..., 2] < 0, -z / np.minimum(rays[..., 2], -1e-9), np.inf)
    return RAYS * np.minimum(floor, (wall - x) / rays[..., 0])[..., None]


def in_units(camera):
    """A camera pose (4, 4) in the units of the network."""
    result = camera.copy()
    result[:3, 3] /= UNIT
    return result


def test_scale_from_height_applies_to_all_outputs(start):
    """A robot drives towards a wall; its camera's height above the floor gives the scale."""
    assumed = 1.5
    bench, stream = start(
        *("depth", "pose", "odometry", "tf", "points", "static_map"),
        **dict(tf_mode="odom", scale__source="height", scale__camera_height=0.5, scale__value=assumed),
        **dict(static_map__rate=20.0, static_map__voxel_size=0.1),
    )
    broadcaster = publish_static(bench, "base_link", "camera", MOUNT)
    bases = [matrix((0.3 * index, 0, 0)) for index in range(11)]
    cameras = [base @ MOUNT for base in bases]
    scenes = [corridor(camera, 8.0) / UNIT for camera in cameras]
    for index in range(9):
        reason = "interval" if index == 7 else ""  # aligned: the scale is kept
        send_image(bench, stream, index, in_units(cameras[index]), scenes[index], reason=reason)
    assert broadcaster is not None
    bench.wait_for_diagnostics("frames out", 9)
    reported, _, source = bench.diagnostics["scale"].partition(" ")
    assert source == "(from height)"
    assert 0.8 <= float(bench.diagnostics["scale confidence"]) <= 1
    assert bench.diagnostics["scale observations"] == "9"
    assert 0 <= float(bench.diagnostics["scale spread of one"]) < 0.05
    bench.wait(lambda: 8.0 in bench.times("static_map"), "the map with the last image")
    surface = np.stack([read_points(bench.messages["static_map"][-1])[axis] for axis in "xyz"], axis=-1)

    assert bench.reset().success  # the new world may have another scale
    send_image(bench, stream, 9, in_units(cameras[9]), scenes[9])
    bench.wait_for_diagnostics("frames out", 10)
    assert bench.diagnostics["scale"] == f"{assumed} (assumed, waiting for height)"
    assert bench.diagnostics["scale observations"] == "1"

    found = factors(bench, [scene[..., 2] for scene in scenes[:10]])
    known = next(index for index, factor in enumerate(found) if factor < 1)
    assert 5 <= known <= 6  # five independent observations; observations within a second count as one
    np.testing.assert_allclose(found[:known] + found[9:], assumed, rtol=1e-5)
    np.testing.assert_allclose(found[known:9], UNIT, rtol=0.03)
    assert float(reported) == pytest.approx(found[8], rel=1e-3)

    bench.wait_for("pose", 10)
    bench.wait_for("tf", 10)
    odom = []
    for index, factor in enumerate(found):
        first = 0 if index < 9 else 9
        motion = factor / UNIT * (bases[index] - bases[first])[:3, 3]
        pose = bench.messages["pose"][index].pose
        np.testing.assert_allclose(
            pose_of(pose.position, pose.orientation), MOUNT + matrix(motion) - np.eye(4), atol=1e-5
        )
        tf = {
            (one.header.frame_id, one.child_frame_id): pose_of(one.transform.translation, one.transform.rotation)
            for one in bench.messages["tf"][index].transforms
        }
        odom.append(tf["odom", "base_link"])
        np.testing.assert_allclose(tf["map", "odom"] @ odom[-1], matrix(motion), atol=1e-5)
    # In odom the new scale changes the length of the steps and nothing else.
    steps = [after[0, 3] - before[0, 3] for before, after in itertools.pairwise(odom)]
    np.testing.assert_allclose(steps[:8], [0.3 * factor / UNIT for factor in found[1:9]], rtol=1e-4)
    for message in bench.messages["points"]:
        index = round(message.header.stamp.sec - bench.stamp(0).sec)
        cloud = np.stack([read_points(message)[axis] for axis in "xyz"], axis=-1)
        np.testing.assert_allclose(cloud, found[index] * scenes[index].reshape(-1, 3), rtol=1e-4, atol=1e-4)
    assert len(surface) > 200
    # Floor and wall relative to the first camera; where they meet, a voxel contains points of both.
    floor, wall = (start + found[8] / UNIT * motion for start, motion in ((0.5, -0.5), (0.2, 7.8)))
    distance = np.minimum(np.abs(surface[:, 2] - floor), np.abs(surface[:, 0] - wall))
    assert np.quantile(distance, 0.9) < 1e-3 and distance.max() < 0.1
    assert np.ptp(surface[:, 0]) > 5


def test_height_without_a_robot_base(start):
    bench, stream = start("depth", scale__source="height", scale__camera_height=0.5)
    scene = corridor(MOUNT, 2.0) / UNIT
    for time in range(7):
        send_image(bench, stream, time, np.eye(4), scene)
    found = factors(bench, [scene[..., 2]] * 7)
    assert found[:5] == pytest.approx([1.0] * 5) and found[6] == pytest.approx(UNIT, rel=0.03)


# ---------------------------------------------------------------------------------------------------------- odometry

FACTOR = 2.5
LEVER = matrix((1.0, 0.3, 0.5), OPTICAL)  # far ahead of the base: the camera swings out when the robot turns
FAR = RAYS * 4.0


def drive(bench, stream, publish, bases, start=0, lever=LEVER):
    """Send images one second apart; in between, the base (4, 4) moves evenly and sends four odometry messages."""
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
        send_image(bench, stream, time + 1, camera, FAR)


def powers(step, count, start=None):
    start = matrix((3, -2, 0), Rotation.from_euler("z", 1.0)) if start is None else start
    return [start @ np.linalg.matrix_power(step, index) for index in range(count)]


CURVE = matrix((0.6, 0, 0), Rotation.from_euler("z", 0.6))
STRAIGHT = matrix((0.6, 0, 0))


def test_wheel_odometry_gives_the_scale_in_curves_if_the_lever_is_known(start):
    """The camera swings out: it travels about 25 % farther than the base."""
    bench, stream = start(*("depth", "pose"), tf_mode="base", scale__source="odometry", scale__value=1.5)
    broadcaster = publish_static(bench, "base_link", "camera", LEVER)
    publish = sensor_publisher(bench, Odometry, "wheel_odometry", "add_odometry")
    bases = powers(CURVE, 10)
    drive(bench, stream, publish, bases)
    assert broadcaster is not None
    found = factors(bench, [FAR[..., 2]] * 9)
    assert found[:5] == pytest.approx([1.5] * 5) and found[8] == pytest.approx(FACTOR, rel=1e-3)
    bench.wait_for_diagnostics("frames out", 9)
    assert bench.diagnostics["scale"] == "2.5 (from odometry)"
    # Intervals between nine images; the first may be lost before the lever is known.
    assert bench.diagnostics["scale observations"] in ("7", "8")
    assert float(bench.diagnostics["scale confidence"]) >= 0.8
    bench.wait_for("pose", 9)
    motion = (np.linalg.inv(bases[1]) @ bases[9] @ LEVER)[:3, 3]  # in metres, by wheel odometry
    place = bench.messages["pose"][-1].pose.position
    np.testing.assert_allclose((place.x, place.y, place.z), motion, rtol=2e-3, atol=1e-3)


def test_wheel_odometry_ignores_curves_if_the_lever_is_not_known(start):
    bench, stream = start("depth", scale__source="odometry")
    publish = sensor_publisher(bench, Odometry, "wheel_odometry", "add_odometry")
    curve = powers(CURVE, 8)
    drive(bench, stream, publish, curve)
    bench.wait_for_diagnostics("frames out", 7)
    assert bench.diagnostics["scale"] == "1 (assumed, waiting for odometry)"
    assert (bench.diagnostics["scale observations"], bench.diagnostics["scale confidence"]) == ("0", "0.0")
    drive(bench, stream, publish, powers(STRAIGHT, 8, curve[-1]), start=7)
    bench.wait_for_diagnostics("scale", "2.5 (from odometry)")
    found = factors(bench, [FAR[..., 2]] * 14)
    assert found[:12] == pytest.approx([1.0] * 12) and found[13] == pytest.approx(FACTOR, rel=1e-3)


@pytest.mark.parametrize("known", [False, True], ids=["before the scale is known", "after"])
def test_one_absurd_wheel_odometry_does_not_end_the_scale(start, known):
    bench, stream = start(*("depth", "pose"), scale__source="odometry")
    publish = sensor_publisher(bench, Odometry, "wheel_odometry", "add_odometry")
    bases = powers(STRAIGHT, 20)
    if known:
        drive(bench, stream, publish, bases[:10])
    for number, position in enumerate((1e300, -1e300, 1e9, 1.7e308)):
        message = Odometry()
        message.pose.pose.position.x = position
        message.header.stamp = bench.stamp(20 + number)
        bench.publishers["wheel_odometry"].publish(message)
    bench.wait_for_log("wheel odometry ignored: its position is", level=30)
    drive(bench, stream, publish, bases, start=40)
    bench.wait_for_diagnostics("scale", "2.5 (from odometry)")
    for message in bench.messages["depth"]:
        assert np.isfinite(np.frombuffer(message.data, np.float32)).all()
    place = bench.messages["pose"][-1].pose.position
    assert np.isfinite((place.x, place.y, place.z)).all()


# ------------------------------------------------------------------------------------------------------------- range


def reading(distance, field_of_view=0.05, frame_id="ranger"):
    message = Range(range=distance, field_of_view=field_of_view, min_range=0.2, max_range=9.0)
    message.header.frame_id = frame_id
    return message


def test_range_readings_without_a_measurement_are_ignored(start):
    """The sensor's mount is not known: the node assumes that it equals the camera's."""
    bench, stream = start("depth", scale__source="range", scale__value=1.5)
    publish = sensor_publisher(bench, Range, "range", "add_range")
    invalid = (math.inf, -math.inf, math.nan, 9.0, 20.0, 0.2, 0.05, 0.0, -8.0)
    for time in range(8):
        for number, distance in enumerate(invalid):
            publish(reading(distance), time + number * 1e-3)
        publish(reading(8.0), time + 0.5)  # matches no image
        send_image(bench, stream, time, np.eye(4), FAR)
    bench.wait_for_diagnostics("frames out", 8)
    assert bench.diagnostics["scale"] == "1.5 (assumed, waiting for range)"
    assert (bench.diagnostics["scale observations"], bench.diagnostics["scale confidence"]) == ("0", "0.0")
    bench.publishers["range"].publish(reading(8.0, field_of_view=4.0))
    bench.wait_for_log("range ignored: field_of_view is 4 rad", level=30)
    for time in range(8, 16):
        publish(reading(8.0), time - 0.02)
        for number, distance in enumerate(invalid):
            publish(reading(distance), time + number * 1e-3)
        publish(reading(8.0), time + 0.05)
        send_image(bench, stream, time, np.eye(4), FAR)
    found = factors(bench, [FAR[..., 2]] * 16)
    assert found[:13] == pytest.approx([1.5] * 13) and found[15] == pytest.approx(8 / 4, rel=1e-3)
    bench.wait_for_diagnostics("frames out", 16)
    assert (bench.diagnostics["scale"], bench.diagnostics["scale observations"]) == ("2 (from range)", "8")


@pytest.mark.parametrize("degrees", [8, 30])
def test_range_sensor_that_points_elsewhere_is_refused_with_one_log_line(start, degrees):
    bench, stream = start("depth", scale__source="range")
    mount = matrix((0, 0.1, 0.5), Rotation.from_euler("y", degrees, degrees=True) * OPTICAL.inv())
    broadcaster = publish_static(bench, "camera", "ranger", mount)
    publish = sensor_publisher(bench, Range, "range", "add_range")
    for time in range(8):
        publish(reading(7.5), time)
        send_image(bench, stream, time, np.eye(4), FAR)
    assert broadcaster is not None
    factor = factors(bench, [FAR[..., 2]] * 8)[7]
    bench.wait_for_diagnostics("frames out", 8)
    if degrees < 10:
        assert factor == pytest.approx((7.5 + 0.5) / 4, rel=1e-3) and bench.diagnostics["scale"] == "2 (from range)"
        return
    line = bench.wait_for_log("scale.source is range, but", level=40)
    assert "points 30 degrees away from the camera's axis" in line and "allowed: up to 10" in line
    assert factor == 1.0 and bench.diagnostics["scale"] == "1 (assumed, waiting for range)"
    # The sensor's frame is unknown until its first message, so the first image may still be used.
    assert int(bench.diagnostics["scale observations"]) <= 1
    assert bench.reset().success
    send_image(bench, stream, 8, np.eye(4), FAR)
    bench.wait_for_log("a new world starts (reset)")  # all earlier log lines have arrived too
    assert bench.count_logs("scale.source is range, but") == 1


def test_range_sensor_whose_frame_id_has_a_leading_slash_is_found_in_tf(start):
    """Frame names of tf in ROS 1 bags have a leading slash, which tf2 does not allow."""
    bench, stream = start("depth", scale__source="range")
    broadcaster = publish_static(bench, "camera", "ranger", matrix((0, 0, 0.5), OPTICAL.inv()))
    publish = sensor_publisher(bench, Range, "range", "add_range")
    for time in range(8):
        publish(reading(7.5, frame_id="/ranger"), time)
        send_image(bench, stream, time, np.eye(4), FAR)
    assert broadcaster is not None
    assert factors(bench, [FAR[..., 2]] * 8)[7] == pytest.approx((7.5 + 0.5) / 4, rel=1e-3)


@pytest.mark.parametrize("known", [True, False], ids=["mounted", "unknown"])
def test_of_several_sensors_on_one_topic_the_one_ahead_is_used(start, known):
    """Ultrasonic sensors that take turns. Where their mounts are unknown, the first one is used."""
    bench, stream = start("depth", scale__source="range")
    angles = {"right": 90, "front": 0, "left": -90}
    broadcasters = [
        publish_static(bench, "camera", name, matrix((0, 0, 0), Rotation.from_euler("y", angle, True) * OPTICAL.inv()))
        for name, angle in angles.items()
        if known
    ]
    publish = sensor_publisher(bench, Range, "range", "add_range")
    for time in range(12):
        for number, (name, distance) in enumerate({"right": 3.0, "front": 8.0, "left": 5.0}.items()):
            publish(reading(distance, frame_id=name), time + (number - 1) * 1e-3)
        send_image(bench, stream, time, np.eye(4), FAR)
    assert len(broadcasters) == (3 if known else 0)
    expected = 8 / 4 if known else 3 / 4
    assert factors(bench, [FAR[..., 2]] * 12)[11] == pytest.approx(expected, rel=1e-3)
    used = "front" if known else "right"
    line = bench.wait_for_log("come from several sensors", level=30)
    assert "front, left, right: only those of" in line
    bench.wait(lambda: f"only those of {used} are used" in bench.statuses[-1][1], "the sensor in the diagnostics")
    assert bench.count_logs("points 90 degrees away") == 0
