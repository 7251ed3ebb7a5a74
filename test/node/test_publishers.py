"""Values of the outputs over real DDS, for a scripted stream."""

import math

import numpy as np
import pytest
import rclpy
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from scripted import (
    COLUMNS,
    FACING_RIGHT,
    FOCAL,
    HEIGHT,
    MOVER,
    ROS_FROM_OPTICAL,
    ROWS,
    START,
    WIDTH,
    assert_latched,
    filled,
    make_pose,
    script,
    start,
    wait_for_stamp,
)
from std_msgs.msg import Header
from tf2_ros import StaticTransformBroadcaster

from raymap3r_ros.mapping.uncertainty import DEFAULT
from raymap3r_ros.node import conversions, publishers, summary
from raymap3r_ros.node.map_publisher import MAP_TOPICS
from raymap3r_ros.node.publishers import TOPICS
from raymap3r_ros.streaming import Stream

# ------------------------------------------------------------------------------------------------------------ odometry

TIMES = (0.0, 0.1, 0.3, 0.35, 0.6)  # seconds; the same step takes 0.1, 0.2, 0.05 and 0.25 s
# The camera is 0.2 m in front of and 0.5 m above the base and faces forward, pitched 20 degrees down.
MOUNT = make_pose((0, 1, 0), math.radians(20), (0.2, 0, 0.5)) @ ROS_FROM_OPTICAL


def variances(growths, confidence, travel):
    """(6,) variances by the formula in docs/odometry.md."""
    return np.concatenate(
        [
            (np.array(g.axes) / confidence**g.power) ** 2
            * (g.start**2 + g.settled**2 * (1 - math.exp(-travel / g.reach)) + g.creep**2 * travel)
            for g in growths
        ]
    )


def propagate(camera, mount, of_camera):
    """(6, 6) covariance of the pose of a body with a camera at `mount`, by numerical differentiation."""
    columns = []
    for axis, variance in enumerate(of_camera):
        error = np.zeros(6)
        error[axis] = 1e-4
        plus, minus = (
            camera @ make_pose(sign * error[3:], 1.0, sign * error[:3]) @ np.linalg.inv(mount) for sign in (0.5, -0.5)
        )
        turn = Rotation.from_matrix(plus[:3, :3] @ minus[:3, :3].T).as_rotvec()
        columns.append(np.concatenate([plus[:3, 3] - minus[:3, 3], turn]) / 1e-4 * math.sqrt(variance))
    return np.array(columns).T @ np.array(columns)


@pytest.mark.parametrize(
    ("mode", "mount", "step", "linear", "angular"),
    [
        # 0.05 m forward and 0.1 rad to the left: in optical axes and in the robot's axes.
        (
            "camera",
            np.eye(4),
            make_pose((0, -1, 0), 0.1, (0, 0, 0.05)),
            (math.sin(0.1), 0, math.cos(0.1)),
            (0, -0.1, 0),
        ),
        ("map", MOUNT, make_pose((0, 0, 1), 0.1, (0.05, 0, 0)), (math.cos(0.1), -math.sin(0.1), 0), (0, 0, 0.1)),
    ],
)
def test_odometry_of_a_known_path(make_bench, mode, mount, step, linear, angular):
    scale, confidence = 2.0, 3.0
    body = [make_pose((0, 0, 1), 1.0, (3, -2, 0)) @ np.linalg.matrix_power(step, index) for index in range(len(TIMES))]
    cameras = [np.linalg.inv(body[0] @ mount) @ pose @ mount for pose in body]  # relative to the first camera
    for pose in cameras:
        pose[:3, 3] /= scale  # the node gets the scale as a parameter below
    bench = start(
        make_bench,
        # The node uses the median confidence, not the mean.
        lambda index: {"pose": cameras[index], "confidence": filled(confidence, (np.s_[:, :20], 50.0))},
        "odometry",
        tf_mode=mode,
        scale__value=scale,
    )
    if mode == "map":
        broadcaster = StaticTransformBroadcaster(bench.probe)
        places = {("base_link", "camera"): MOUNT, ("odom", "base_link"): make_pose((0, 0, 1), 0.3, (5, 0, 0))}
        broadcaster.sendTransform(
            [conversions.transform_message(Header(frame_id=parent), child, m) for (parent, child), m in places.items()]
        )
        bench.wait_for_transform("odom", "camera")
    for index, moment in enumerate(TIMES):
        bench.send(index, time=moment)
    bench.wait_for("odometry", len(TIMES))

    world_from_first = ROS_FROM_OPTICAL if mode == "camera" else mount  # axes of the world at the first image
    step_between = np.linalg.inv(cameras[0]) @ cameras[1]
    travel = np.linalg.norm(step_between[:3, 3]) + 2 * Rotation.from_matrix(step_between[:3, :3]).magnitude()
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
        np.testing.assert_allclose(covariance, propagate(camera, mount, of_camera), rtol=1e-3, atol=1e-9)
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
            message.twist.covariance.reshape(6, 6), propagate(mount, mount, of_step) / seconds**2, rtol=1e-3, atol=1e-9
        )
    assert (np.diff(traces) > 0).all()


# -------------------------------------------------------------------------------------------------------- trajectories


def path_poses(path):
    return np.array([conversions.pose_matrix(stamped.pose) for stamped in path.poses])


def test_trajectories_match_the_smoothed_and_raw_poses_of_the_stream(make_bench):
    bench = make_bench(every_frame=True)
    bench.start("pose", "trajectory", "trajectory_raw")
    sent = [bench.send(index, time=index / 2) for index in range(6)]  # a trajectory is published with each
    wait_for_stamp(bench, "trajectory_raw", sent[-1])
    bench.wait_for("pose", len(sent))
    stream = Stream(bench.node.stream.network)
    images = [np.frombuffer(message.data, np.uint8).reshape(HEIGHT, WIDTH, 3) for message in sent]
    alone = [stream.step(image, motion=False).numpy("pose", "pose_raw") for image in images]
    smoothed, raw = (ROS_FROM_OPTICAL @ [one[name] for one in alone] for name in ("pose", "pose_raw"))
    assert np.abs(smoothed - raw).max() > 0.01
    for topic, expected in {"trajectory": smoothed, "trajectory_raw": raw}.items():
        path = wait_for_stamp(bench, topic, sent[-1])
        assert {path.header.frame_id, *(pose.header.frame_id for pose in path.poses)} == {"map"}
        np.testing.assert_allclose(path_poses(path), expected, atol=1e-5)
    np.testing.assert_allclose(
        [conversions.pose_matrix(one.pose) for one in bench.messages["pose"]], smoothed, atol=1e-5
    )
    assert_latched(bench, "trajectory")


def test_long_trajectory_is_subsampled(make_bench, monkeypatch):
    assert publishers.SHOWN_POSES == 1000
    monkeypatch.setattr(publishers, "SHOWN_POSES", 20)  # a smaller limit, for a faster test
    period = 0.125  # seconds between stamps: a trajectory is published with every fourth frame

    def show(index):
        smoothed, raw = np.eye(4), np.eye(4)
        smoothed[:3, 3], raw[:3, 3] = (0, 0, index * period), (1, 0, index * period)
        return {"pose": smoothed, "pose_raw": raw, "depth": np.full((6, 8), 2.0)}

    bench = start(make_bench, show, "trajectory", "trajectory_raw")
    topics = {"trajectory": 0, "trajectory_raw": -1}  # topic and y of its poses
    lengths = []
    for index in range(45):
        sent = bench.send(index, time=index * period, size=(8, 6))
        if index in (16, 36, 44):  # intermediate latched messages may be replaced before they are sent
            lengths.append({len(wait_for_stamp(bench, topic, sent).poses) for topic in topics})
    assert lengths == [{17}, {19}, {12}]  # all 17, every second of 37, every fourth of 45
    for topic, y in topics.items():
        assert max(len(path.poses) for path in bench.messages[topic]) <= 21
        for path in bench.messages[topic]:
            stamps = np.array([Time.from_msg(pose.header.stamp).nanoseconds for pose in path.poses])
            indices = np.rint((stamps * 1e-9 - START) / period).astype(int)
            assert indices[0] == 0 and len(set(np.diff(indices[:-1]))) <= 1
            assert path.poses[-1].header.stamp == path.header.stamp
            places = [[pose.pose.position.x, pose.pose.position.y] for pose in path.poses]
            np.testing.assert_allclose(places, [(index * period, y) for index in indices], atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- points


def test_points_are_the_selected_pixels_in_the_optical_frame(make_bench):
    random = np.random.default_rng(0)
    depth, confidence = random.uniform(1, 4, (HEIGHT, WIDTH)), random.uniform(1, 4, (HEIGHT, WIDTH))
    pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    dynamic = filled(False, (MOVER, True))
    bench = start(
        make_bench,
        lambda index: {"pose": FACING_RIGHT, "depth": depth, "confidence": confidence, "dynamic_mask": dynamic},
        "points",
    )

    def points_after(index):
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
        np.testing.assert_array_equal(raw[:, 5], dynamic[rows, columns])

    check(points_after(0), 1, confidence >= 1.5)
    for index, (name, value) in enumerate(
        {"points.stride": 3, "confidence_threshold": 2.5, "points.static_only": True}.items(), 1
    ):
        assert bench.set_parameter(name, value).successful
        check(points_after(index), 3, (confidence >= (1.5 if index == 1 else 2.5)) & ~(dynamic & (index == 3)))


# --------------------------------------------------------------------------------------------------------- subscribers


def test_each_output_is_computed_only_while_it_has_subscribers(make_bench, monkeypatch):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    motion_requested = script(bench, lambda index: {})
    copied = []
    to_host = publishers.to_host

    def spy(tensors):
        arrays = to_host(tensors)
        copied.append(sum(array.nbytes for array in arrays))
        return arrays

    for module in (summary, publishers):
        monkeypatch.setattr(module, "to_host", spy)
    pixels = WIDTH * HEIGHT
    costs = {  # bytes per pixel, and whether motion has to be estimated
        "depth": (4, False), "confidence": (4, False), "rgb": (3, False), "camera_info": (36 / pixels, False),
        "depth_static": (4, True), "dynamic_mask": (1, True), "dynamic_map": (4, True), "points": (24, True),
        "static_map": (0, True), "trajectory": (0, False), "odometry": (0, False),
    }  # fmt: skip
    assert costs.keys() | {"pose", "trajectory_raw", "occupancy"} == TOPICS.keys() | MAP_TOPICS.keys()
    subscriber = rclpy.create_node("subscriber", namespace=bench.namespace, context=bench.context)  # never spins
    for index, (topic, (cost, motion)) in enumerate(costs.items()):
        kind, qos = {**TOPICS, **MAP_TOPICS}[topic]
        publisher = next(one for one in bench.node.publishers if one.topic_name == f"{bench.name}/{topic}")
        subscription = subscriber.create_subscription(kind, publisher.topic_name, lambda message: None, qos)
        bench.wait(lambda publisher=publisher: publisher.get_subscription_count() == 1, f"match of {topic}")
        bench.send(time=index / 5)
        bench.wait(lambda index=index: len(copied) == 2 * index + 2, "a frame")  # the summary, and the outputs
        assert copied[-1] == round(cost * pixels), topic
        assert motion_requested[-1] is motion, topic
        subscriber.destroy_subscription(subscription)
        bench.wait(lambda publisher=publisher: publisher.get_subscription_count() == 0, f"end of {topic}")
    subscriber.destroy_node()
