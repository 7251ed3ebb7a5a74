"""The TF tree in all modes and the camera's mount, over real DDS."""

from functools import partial

import numpy as np
import pytest
import tf2_ros
from camera_run import (
    MOUNT,
    ODOM,
    OPTICAL,
    STEP,
    OtherPublishers,
    assert_close,
    base_poses,
    matrix,
    matrix_of,
    start_run,
)
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage


@pytest.fixture
def start(make_bench, fake_stream):
    return partial(start_run, make_bench, fake_stream)


# ---------------------------------------------------------------------------------------------------------------- tree

NAMES = dict(world_frame="site/map", odom_frame="bot/odom", base_frame="bot/base")
EDGES = {
    "camera": [("site/map", "camera")],
    "base": [("site/map", "bot/base")],
    "odom": [("site/map", "bot/odom"), ("bot/odom", "bot/base")],
    "map": [("site/map", "bot/odom")],
}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("mode", EDGES)
def test_transforms_form_one_tree_that_agrees_with_the_pose(start, mode, inverted):
    run = start("tf", "pose", tf_mode=mode, invert_tf=inverted, **NAMES)
    bench, others = run.bench, OtherPublishers(run.bench)
    static = []
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.probe.create_subscription(
        TFMessage, "/tf_static", lambda message: static.extend(message.transforms), latched
    )
    if mode != "camera":
        others.publish_static("bot/base", "mast", matrix((0, 0, 0.5)))
        others.publish_static("mast", "camera", np.linalg.inv(matrix((0, 0, 0.5))) @ MOUNT)
        bench.wait(lambda: len({one.child_frame_id for one in static}) == 2, "the robot's parts")
    if mode == "map":
        turn = Rotation.from_euler("z", 0.4)
        others.publish_moving(
            "bot/odom", "bot/base", {time: matrix((time, 2, 0), turn) for time in np.arange(14) / 20}
        )
    bases = base_poses(6)
    times = [0.1 * index + 0.000123457 for index in range(6)]
    for index, base in enumerate(bases):
        if index in (3, 5):  # parameter change between two images
            run.wait_for_all("pose")
            assert bench.set_parameter("publish_tf", index == 5).successful
        run.send(times[index], base @ MOUNT)
    run.wait_for_all("pose")
    assert [(one.header.stamp.sec, one.header.stamp.nanosec) for one in bench.messages["pose"]] == run.stamps(times)

    node_edges = [(child, parent) if inverted else (parent, child) for parent, child in EDGES[mode]]
    sent = [index for index in range(6) if index not in (3, 4)]
    seen = run.transforms(len(sent), *node_edges)
    assert [stamp for stamp, _ in seen] == run.stamps(times[index] for index in sent)
    # /tf contains only these and the transforms of other publishers.
    assert run.sent() == {**dict.fromkeys(node_edges, len(sent)), **others.sent}
    # Each child has one parent.
    children = [child for _, child in {*run.sent(), *((one.header.frame_id, one.child_frame_id) for one in static)}]
    assert len(children) == len(set(children))

    buffer = tf2_ros.Buffer()
    for one in static:
        buffer.set_transform_static(one, "others")
    for message in bench.messages["tf"]:
        for one in message.transforms:
            buffer.set_transform(one, "tf")
    origin = MOUNT if mode != "camera" else matrix(rotation=OPTICAL)
    for index in sent:
        found = buffer.lookup_transform("site/map", "camera", bench.stamp(times[index])).transform
        found = matrix_of(found.translation, found.rotation)
        assert_close(found, run.poses()[index])
        assert_close(found, origin @ np.linalg.inv(bases[0] @ MOUNT) @ bases[index] @ MOUNT)
    if mode == "odom" and not inverted:
        assert_close(seen[-1][1]["bot/odom", "bot/base"], np.linalg.matrix_power(STEP, 5))


# -------------------------------------------------------------------------------------------------------- camera mount


def test_pose_of_a_panning_head_is_looked_up_at_the_stamp_of_the_image(start):
    """The base is stationary and the head pans: with the mount of any other time the base would appear to turn."""
    run = start("tf", "pose", tf_mode="base")
    others = OtherPublishers(run.bench)
    others.publish_static("head", "camera", matrix((0.1, 0, 0), OPTICAL))
    key_times = np.arange(21) / 20
    angles = 0.8 * np.sin(7 * key_times)

    def head(angle):
        return matrix((0.2, 0, 0.5), Rotation.from_euler("z", angle))

    others.publish_moving(
        "base_link", "head", {time: head(angle) for time, angle in zip(key_times, angles, strict=True)}
    )
    times = (0.0, 0.11, 0.237, 0.35, 0.499, 0.72, 0.9)
    cameras = [head(np.interp(time, key_times, angles)) @ matrix((0.1, 0, 0), OPTICAL) for time in times]
    for time, camera in zip(times, cameras, strict=True):
        run.send(time, camera)
    run.wait_for_all("pose")
    for (stamp, one), time in zip(run.transforms(len(times), ("map", "base_link")), times, strict=True):
        assert [stamp] == run.stamps([time])
        assert_close(one["map", "base_link"], np.eye(4))
    for pose, camera in zip(run.poses(), cameras, strict=True):
        assert_close(pose, camera)


@pytest.mark.parametrize("topic", ["/tf", "/tf_static"])
@pytest.mark.parametrize("length", [np.inf, 1e300])
def test_mount_that_is_no_pose_is_reported_and_affects_no_other_image(start, topic, length):
    run = start("tf", "pose", "odometry", tf_mode="base")
    bench, others = run.bench, OtherPublishers(run.bench)
    infinite = MOUNT.copy()
    infinite[0, 3] = length
    bases = base_poses(6)

    def is_known_finite():
        return bench.node.tf_buffer.lookup_transform("base_link", "camera", Time()).transform.translation.x < 1e8

    def send(index, mount):
        if topic == "/tf":
            others.publish_moving("base_link", "camera", {index / 10: mount})
        else:
            others.publish_static("base_link", "camera", mount)
            bench.wait(lambda: is_known_finite() == (mount is MOUNT), "the mount")  # not the previous one
        run.send(index / 10, bases[index] @ MOUNT)

    for index, mount in enumerate([infinite, MOUNT, MOUNT, infinite, MOUNT, MOUNT]):
        send(index, mount)
    line = bench.wait_for_log("the transform base_link -> camera is not finite", level=30)
    assert line.startswith("nothing is published in the world") and bench.count_logs("not finite") == 1
    placed = [1, 2, 4, 5]
    for seen in ("pose", "odometry"):
        bench.wait_for(seen, len(placed))
        assert bench.times(seen) == [index / 10 for index in placed]
    seen = run.transforms(len(placed), ("map", "base_link"))
    for index, pose, odometry, (_, one) in zip(placed, run.poses(), run.odometry(), seen, strict=True):
        world = np.linalg.inv(bases[1]) @ bases[index]
        assert_close(one["map", "base_link"], world)
        assert_close(odometry, world)
        assert_close(pose, world @ MOUNT)
    assert bench.state() == "active"


def test_mount_that_is_published_slowly_is_used_for_a_second(start):
    run = start("tf", "pose", "odometry", "points", "confidence", tf_mode="odom")
    bench, others = run.bench, OtherPublishers(run.bench)
    bases = base_poses(30)
    others.publish_moving("base_link", "camera", {1.0: MOUNT})

    def send(*times):
        for time in times:
            run.send(time, bases[round(10 * (time - 1))] @ MOUNT)

    send(1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 1.99)
    assert not bench.count_logs("no transform")
    send(2.1, 2.4)
    line = bench.wait_for_log("no transform base_link -> camera at the image's stamp, the newest is 1.100 s", level=30)
    assert line.startswith("nothing is published in the world")
    others.publish_moving("base_link", "camera", {2.5: MOUNT})
    send(2.6, 2.7)
    placed = [time for time in run.times if time not in (2.1, 2.4)]
    for topic in ("pose", "odometry"):
        bench.wait_for(topic, len(placed))
        assert bench.times(topic) == pytest.approx(placed)
    run.wait_for_all("confidence")
    for topic in ("depth", "confidence"):
        assert bench.times(topic) == pytest.approx(run.times)
    bench.wait(lambda: 2.7 in bench.times("points"), "the last cloud")
    assert {2.1, 2.4} <= set(bench.times("points"))
    seen = run.transforms(len(placed), *ODOM)
    assert [stamp for stamp, _ in seen] == run.stamps(placed)
    for time, (_, one) in zip(placed, seen, strict=True):
        assert_close(
            one["map", "odom"] @ one["odom", "base_link"], np.linalg.inv(bases[0]) @ bases[round(10 * (time - 1))]
        )
        assert_close(one["map", "odom"], np.eye(4))  # no correction
    assert bench.reset().success
    send(2.8)
    bench.wait_for_log("a new world starts (reset)")
    assert bench.count_logs("no transform") == 1
