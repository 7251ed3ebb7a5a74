"""The TF tree in all modes, and the mount of the camera in it, over real DDS."""

from functools import partial

import numpy as np
import pytest
import tf2_ros
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from rides import MOUNT, ODOM, OPTICAL, STEP, Others, close, drive, matrix, matrix_of, start_ride
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage


@pytest.fixture
def ride(make_bench, stand_in):
    return partial(start_ride, make_bench, stand_in)


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
def test_one_tree_in_which_the_camera_is_where_the_pose_says(ride, mode, inverted):
    ride = ride("tf", "pose", tf_mode=mode, invert_tf=inverted, **NAMES)
    bench, others = ride.bench, Others(ride.bench)
    static = []
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.probe.create_subscription(
        TFMessage, "/tf_static", lambda message: static.extend(message.transforms), latched
    )
    if mode != "camera":
        others.fix("bot/base", "mast", matrix((0, 0, 0.5)))
        others.fix("mast", "camera", np.linalg.inv(matrix((0, 0, 0.5))) @ MOUNT)
        bench.wait(lambda: len({one.child_frame_id for one in static}) == 2, "the robot's parts")
    if mode == "map":
        turn = Rotation.from_euler("z", 0.4)
        others.move("bot/odom", "bot/base", {time: matrix((time, 2, 0), turn) for time in np.arange(14) / 20})
    bases = drive(6)
    times = [0.1 * index + 0.000123457 for index in range(6)]
    for index, base in enumerate(bases):
        if index in (3, 5):  # live, between two images
            ride.done("pose")
            assert bench.set_parameter("publish_tf", index == 5).successful
        ride.go(times[index], base @ MOUNT)
    ride.done("pose")
    assert [(one.header.stamp.sec, one.header.stamp.nanosec) for one in bench.messages["pose"]] == ride.stamps(times)

    ours = [(child, parent) if inverted else (parent, child) for parent, child in EDGES[mode]]
    sent = [index for index in range(6) if index not in (3, 4)]
    seen = ride.transforms(len(sent), *ours)
    assert [stamp for stamp, _ in seen] == ride.stamps(times[index] for index in sent)
    # Nothing else is on /tf but what others have sent.
    assert ride.sent() == {**dict.fromkeys(ours, len(sent)), **others.sent}
    # One parent each.
    children = [child for _, child in {*ride.sent(), *((one.header.frame_id, one.child_frame_id) for one in static)}]
    assert len(children) == len(set(children))

    buffer = tf2_ros.Buffer()
    for one in static:
        buffer.set_transform_static(one, "others")
    for message in bench.messages["tf"]:
        for one in message.transforms:
            buffer.set_transform(one, "tf")
    start = MOUNT if mode != "camera" else matrix(rotation=OPTICAL)
    for index in sent:
        found = buffer.lookup_transform("site/map", "camera", bench.stamp(times[index])).transform
        found = matrix_of(found.translation, found.rotation)
        close(found, ride.poses()[index])
        close(found, start @ np.linalg.inv(bases[0] @ MOUNT) @ bases[index] @ MOUNT)
    if mode == "odom" and not inverted:
        close(seen[-1][1]["bot/odom", "bot/base"], np.linalg.matrix_power(STEP, 5))


# ------------------------------------------------------------------------------------------------------ camera's mount


def test_panning_head_is_where_it_was_when_the_image_was_taken(ride):
    """The base stands, the head pans to and fro: with any other moment's mount the base would turn."""
    ride = ride("tf", "pose", tf_mode="base")
    others = Others(ride.bench)
    others.fix("head", "camera", matrix((0.1, 0, 0), OPTICAL))
    knots = np.arange(21) / 20
    angles = 0.8 * np.sin(7 * knots)

    def head(angle):
        return matrix((0.2, 0, 0.5), Rotation.from_euler("z", angle))

    others.move("base_link", "head", {time: head(angle) for time, angle in zip(knots, angles, strict=True)})
    times = (0.0, 0.11, 0.237, 0.35, 0.499, 0.72, 0.9)
    cameras = [head(np.interp(time, knots, angles)) @ matrix((0.1, 0, 0), OPTICAL) for time in times]
    for time, camera in zip(times, cameras, strict=True):
        ride.go(time, camera)
    ride.done("pose")
    for (stamp, one), time in zip(ride.transforms(len(times), ("map", "base_link")), times, strict=True):
        assert [stamp] == ride.stamps([time])
        close(one["map", "base_link"], np.eye(4))
    for pose, camera in zip(ride.poses(), cameras, strict=True):
        close(pose, camera)


@pytest.mark.parametrize("topic", ["/tf", "/tf_static"])
def test_mount_that_is_not_finite_is_told_and_harms_no_other_image(ride, topic):
    ride = ride("tf", "pose", "odometry", tf_mode="base")
    bench, others = ride.bench, Others(ride.bench)
    endless = MOUNT.copy()
    endless[0, 3] = np.inf
    bases = drive(6)

    def is_known_finite():
        return np.isfinite(
            bench.node.tf_buffer.lookup_transform("base_link", "camera", Time()).transform.translation.x
        )

    def go(index, mount):
        if topic == "/tf":
            others.move("base_link", "camera", {index / 10: mount})
        else:
            others.fix("base_link", "camera", mount)
            bench.wait(lambda: is_known_finite() == np.isfinite(mount).all(), "the mount")  # not the one before it
        ride.go(index / 10, bases[index] @ MOUNT)

    for index, mount in enumerate([endless, MOUNT, MOUNT, endless, MOUNT, MOUNT]):
        go(index, mount)
    line = bench.wait_for_log("the transform base_link -> camera is not finite", level=30)
    assert line.startswith("nothing is published in the world") and bench.count_logs("not finite") == 1
    placed = [1, 2, 4, 5]
    for seen in ("pose", "odometry"):
        bench.wait_for(seen, len(placed))
        assert bench.times(seen) == [index / 10 for index in placed]
    seen = ride.transforms(len(placed), ("map", "base_link"))
    for index, pose, odometry, (_, one) in zip(placed, ride.poses(), ride.odometry(), seen, strict=True):
        world = np.linalg.inv(bases[1]) @ bases[index]
        close(one["map", "base_link"], world)
        close(odometry, world)
        close(pose, world @ MOUNT)
    assert bench.state() == "active"


def test_mount_that_is_repeated_slowly_will_do_for_a_second(ride):
    ride = ride("tf", "pose", "odometry", "points", "confidence", tf_mode="odom")
    bench, others = ride.bench, Others(ride.bench)
    bases = drive(30)
    others.move("base_link", "camera", {1.0: MOUNT})

    def go(*times):
        for time in times:
            ride.go(time, bases[round(10 * (time - 1))] @ MOUNT)

    go(1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 1.99)
    assert not bench.count_logs("no transform")
    go(2.1, 2.4)
    line = bench.wait_for_log("no transform base_link -> camera at the image's stamp, the newest is 1.100 s", level=30)
    assert line.startswith("nothing is published in the world")
    others.move("base_link", "camera", {2.5: MOUNT})
    go(2.6, 2.7)
    placed = [time for time in ride.times if time not in (2.1, 2.4)]
    for topic in ("pose", "odometry"):
        bench.wait_for(topic, len(placed))
        assert bench.times(topic) == pytest.approx(placed)
    ride.done("confidence")
    for topic in ("depth", "confidence"):
        assert bench.times(topic) == pytest.approx(ride.times)
    bench.wait(lambda: 2.7 in bench.times("points"), "the last cloud")
    assert {2.1, 2.4} <= set(bench.times("points"))
    seen = ride.transforms(len(placed), *ODOM)
    assert [stamp for stamp, _ in seen] == ride.stamps(placed)
    for time, (_, one) in zip(placed, seen, strict=True):
        close(one["map", "odom"] @ one["odom", "base_link"], np.linalg.inv(bases[0]) @ bases[round(10 * (time - 1))])
        close(one["map", "odom"], np.eye(4))  # nothing was corrected
    assert bench.reset().success
    go(2.8)
    bench.wait_for_log("a new world starts (reset)")
    assert bench.count_logs("no transform") == 1
