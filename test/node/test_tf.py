"""Transforms over real DDS, in all modes: a stand-in says where the camera is, and what comes out is closed form."""

import itertools
from collections import Counter

import numpy as np
import pytest
import tf2_ros
from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.node import conversions
from raymap3r_ros.synthetic import suite_sequence

OPTICAL = Rotation.from_quat([-0.5, 0.5, -0.5, 0.5])  # x right, y down, z forward, in x forward, y left, z up
UNKNOWN = 1e6  # variance of a twist that was not measured
SIZE = (8, 6)  # of the images
FOCAL = 8.0
WALL = np.stack([*np.meshgrid((np.arange(8) - 4) / FOCAL, (np.arange(6) - 3) / FOCAL), np.ones((6, 8))], -1) * 2.0


def matrix(translation=(0, 0, 0), rotation=None):
    result = np.eye(4)
    result[:3, 3] = translation
    if rotation is not None:
        result[:3, :3] = rotation.as_matrix()
    return result


# A camera half a metre above the base, looking 20 degrees down.
MOUNT = matrix((0.2, 0.05, 0.5), Rotation.from_euler("y", 20, degrees=True) * OPTICAL)
STEP = matrix((0.05, 0.01, 0), Rotation.from_euler("xyz", [0.002, -0.003, 0.03]))  # of the base between two images
JUMP = matrix((0.7, -0.4, 0.3), Rotation.from_euler("xyz", [0.3, -0.2, 0.5]))


def drive(count, start=3):
    """Poses (4, 4) of a base that goes on at one speed."""
    return [np.linalg.matrix_power(STEP, start + index) for index in range(count)]


def scaled(pose, factor):
    result = pose.copy()
    result[:3, 3] *= factor
    return result


def transform(bench, parent, child, pose, time=0.0):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, bench.stamp(time)
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(value) for value in pose[:3, 3])
    r.x, r.y, r.z, r.w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat())
    return message


def matrix_of(position, orientation):
    q = orientation
    return matrix((position.x, position.y, position.z), Rotation.from_quat([q.x, q.y, q.z, q.w]))


MEETING = ("others", "meeting")


class Others:
    """What publishes the transforms that are not the node's."""

    def __init__(self, bench):
        self._bench = bench
        self._moving = tf2_ros.TransformBroadcaster(bench.probe)
        self._fixed = tf2_ros.StaticTransformBroadcaster(bench.probe)
        self.sent = Counter()  # by parent and child

    def fix(self, parent, child, pose):
        """On /tf_static; comes back when the node knows it."""
        self._fixed.sendTransform(transform(self._bench, parent, child, pose))
        self._bench.wait_for_transform(parent, child)

    def move(self, parent, child, poses):
        """On /tf, {time: pose}; comes back when the node knows the last. `listen` to it before."""
        if not self.sent:
            self._meet()
        for time, pose in poses.items():
            self._moving.sendTransform(transform(self._bench, parent, child, pose, time))
            self.sent[parent, child] += 1
        self._bench.wait_for_transform(parent, child, max(poses))

    def _meet(self):
        """Say something on /tf until node and probe hear it, so that nothing that counts is lost."""
        buffer, heard = self._bench.node.tf_buffer, self._bench.messages["tf"]

        def met():
            self._moving.sendTransform(transform(self._bench, *MEETING, np.eye(4)))
            return buffer.can_transform(*MEETING, Time()) and any(MEETING in edges(message) for message in list(heard))

        self._bench.wait(met, "the others' match of /tf")


def edges(message):
    """{(parent, child): transform} of a TFMessage."""
    return {(one.header.frame_id, one.child_frame_id): one for one in message.transforms}


class Ride:
    """A bench whose camera is where the test says."""

    def __init__(self, bench, stream):
        self.bench, self._stream = bench, stream
        self.times = []

    def go(self, time, camera, **told):
        """One image at `time`, taken by a camera at (4, 4) `camera`; comes back when its depth is there."""
        self._stream.tell(camera, WALL, FOCAL, **told)
        self.times.append(time)
        self.bench.send(time=time, size=SIZE)
        self.done("depth")

    def done(self, *topics):
        """Wait until these have a message of every image."""
        for topic in topics:
            self.bench.wait_for(topic, len(self.times))

    def poses(self):
        return [matrix_of(one.pose.position, one.pose.orientation) for one in self.bench.messages["pose"]]

    def odometry(self):
        return [
            matrix_of(one.pose.pose.position, one.pose.pose.orientation) for one in self.bench.messages["odometry"]
        ]

    def sent(self):
        """How often each (parent, child) was on /tf, from whomever."""
        found = [one for message in list(self.bench.messages["tf"]) for one in message.transforms]
        counts = Counter((one.header.frame_id, one.child_frame_id) for one in found)
        del counts[MEETING]
        return counts

    def transforms(self, count, *wanted):
        """[(stamp, {(parent, child): matrix})] of the messages on /tf that are of these; there must be `count`."""

        def look():
            return [
                found for message in list(self.bench.messages["tf"]) if set(found := edges(message)) == set(wanted)
            ]

        self.bench.wait(lambda: len(look()) >= count, f"{count} of {wanted}")
        result = []
        for found in look():
            (stamp,) = {(one.header.stamp.sec, one.header.stamp.nanosec) for one in found.values()}
            poses = {edge: matrix_of(one.transform.translation, one.transform.rotation) for edge, one in found.items()}
            result.append((stamp, poses))
        assert len(result) == count
        return result

    def stamps(self, times):
        return [(one.sec, one.nanosec) for one in map(self.bench.stamp, times)]


@pytest.fixture
def ride(make_bench, stand_in):
    """Starts a bench with a stand-in and these parameters, and listens to these topics besides depth."""

    def make(*topics, **parameters):
        bench = make_bench(every_frame=True, **parameters)
        bench.start("depth", *topics)
        return Ride(bench, stand_in(bench))

    return make


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol)


# ------------------------------------------------------------------------------------------------------- corrections

ODOM = (("map", "odom"), ("odom", "base_link"))


def test_odom_goes_on_through_every_correction(ride):
    """The base moves at one speed, so that a motion that is carried on is the true one: odom shows no correction."""
    ride = ride("tf", "pose", "odometry", tf_mode="odom", reset_alignment="published")
    bench = ride.bench
    Others(bench).fix("base_link", "camera", MOUNT)
    cameras = [base @ MOUNT for base in drive(14)]
    worlds, odom = [], [np.eye(4)]  # closed form: the base in the world and in odom, image by image
    last, first, scale, segment = 0, 0, 1.0, np.eye(4)

    def go(time, index, still=False, **told):
        nonlocal last
        way, step = (scaled(np.linalg.inv(cameras[since]) @ cameras[index], scale) for since in (first, last))
        worlds.append(MOUNT @ scaled(segment, scale) @ way @ np.linalg.inv(MOUNT))
        if ride.times:
            odom.append(odom[-1] if still else odom[-1] @ MOUNT @ step @ np.linalg.inv(MOUNT))
        last = index
        ride.go(time, cameras[index], segment=segment, **told)

    for index in range(4):
        go(index / 10, index)
    go(0.4, 4, reason="interval")  # still in the old memory
    segment = JUMP
    go(0.5, 5)
    go(0.6, 6)
    scale = 1.5
    assert bench.set_parameter("scale.value", scale).successful
    go(0.7, 7)
    go(0.8, 8)
    # The bag begins again: how the robot came back nobody knows, so in odom it stays.
    first, segment = 0, np.eye(4)
    go(0.0, 0, still=True)
    go(0.1, 1)
    assert bench.change_state("deactivate")
    bench.wait(lambda: not bench._publishers["image"].get_subscription_count(), "the node's leave")
    assert bench.change_state("activate")
    bench.wait_for_match()
    go(5.0, 10)  # no jump of the stamps, as the node was not there: what it sees is the way since
    go(5.1, 11)
    assert bench.reset().success
    first = 12
    go(5.2, 12)
    go(5.3, 13)
    ride.done("pose", "odometry")
    seen = ride.transforms(len(ride.times), *ODOM)

    assert [stamp for stamp, _ in seen] == ride.stamps(ride.times)
    joints = [one["map", "odom"] for _, one in seen]
    for index, (_, one) in enumerate(seen):
        close(one["odom", "base_link"], odom[index])
        close(one["map", "odom"] @ one["odom", "base_link"], worlds[index])
        close(ride.poses()[index], worlds[index] @ MOUNT)
        close(ride.odometry()[index], odom[index])
    steps = [np.linalg.norm(after[:3, 3] - before[:3, 3]) for before, after in itertools.pairwise(worlds)]
    moved = [index for index in range(1, len(seen)) if np.abs(joints[index] - joints[index - 1]).max() > 1e-4]
    corrected = {"interval": 5, "scale": 7, "loop": 9, "reset": 13}
    assert moved == list(corrected.values())
    assert min(steps[corrected[name] - 1] for name in ("interval", "loop", "reset")) > 0.3
    close(joints[0], np.eye(4))

    # The twist is that of the motion, and unknown where a correction hides it. A change of scale hides nothing.
    for index, message in enumerate(bench.messages["odometry"]):
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        unknown = index in (0, corrected["interval"], corrected["loop"], corrected["reset"])
        assert (message.twist.covariance[0] == UNKNOWN) == unknown
        if not unknown:
            step = np.linalg.inv(odom[index]) @ odom[index - 1]
            seconds = ride.times[index] - ride.times[index - 1]
            linear, angular = message.twist.twist.linear, message.twist.twist.angular
            close((linear.x, linear.y, linear.z), -step[:3, 3] / seconds, atol=1e-4)
            turn = -Rotation.from_matrix(step[:3, :3]).as_rotvec() / seconds
            close((angular.x, angular.y, angular.z), turn, atol=1e-4)


@pytest.mark.parametrize("alignment", ["robust", "published", "off"])
def test_only_an_alignment_by_the_cameras_poses_is_no_jump(ride, alignment):
    """At the seam the base doubles its speed: where the poses go on it is measured, else nobody can know."""
    ride = ride("tf", "odometry", tf_mode="odom", reset_alignment=alignment)
    Others(ride.bench).fix("base_link", "camera", MOUNT)
    bases = drive(5)
    bases += [bases[-1] @ STEP @ STEP, bases[-1] @ STEP @ STEP @ STEP]
    for index, base in enumerate(bases):
        jump = JUMP if index > 4 and alignment != "robust" else None
        ride.go(index / 10, base @ MOUNT, reason="interval" if index == 4 else "", segment=jump)
    ride.done("odometry")
    seen = [one for _, one in ride.transforms(7, *ODOM)]
    way = np.linalg.matrix_power(STEP, 6 if alignment == "robust" else 5)
    close(seen[5]["odom", "base_link"], way)
    close(seen[6]["odom", "base_link"], way @ STEP)
    jumped = [
        np.abs(after["map", "odom"] - before["map", "odom"]).max() > 1e-4 for before, after in itertools.pairwise(seen)
    ]
    assert jumped == [False] * 4 + [alignment != "robust", False]
    twists = [message.twist.covariance[0] == UNKNOWN for message in ride.bench.messages["odometry"]]
    assert twists == [True] + [False] * 4 + [alignment != "robust", False]


@pytest.mark.parametrize("alignment", ["robust", "off"])
def test_seam_of_the_real_stream(make_bench, alignment):
    """Where the memory of the shipped network begins anew: not aligned, the world jumps at the image after it."""
    bench = make_bench(every_frame=True, tf_mode="odom", reset_alignment=alignment, reset_interval=6)
    bench.start("tf", "pose", "depth")
    Others(bench).fix("base_link", "camera", MOUNT)
    ride = Ride(bench, None)
    sequence = suite_sequence("static", 0, world="one_room", size=(48, 64))
    for index, frame in enumerate(itertools.islice(sequence.frames(), 9)):
        bench.send(time=index / 10, message=conversions.image_message(Header(), frame.image, "rgb8"))
        bench.wait_for("depth", index + 1)
    bench.wait_for("pose", 9)
    seen = [one for _, one in ride.transforms(9, *ODOM)]
    moved = [np.abs(b["map", "odom"] - a["map", "odom"]).max() > 1e-4 for a, b in itertools.pairwise(seen)]
    assert moved == [False] * 6 + [alignment == "off", False]
    bases = [one["odom", "base_link"] for one in seen]
    odom, world = (
        [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in itertools.pairwise(poses)] for poses in (bases, ride.poses())
    )
    others = odom[:6] + odom[7:]
    assert odom[6] < 1.5 * max(others)
    assert (world[6] > 2 * max(others)) == (alignment == "off")


# -------------------------------------------------------------------------------------------------- odometry of others


def test_mode_map_lives_with_odometry_that_is_missing_slow_or_gone(ride):
    ride = ride("tf", "pose", "odometry", tf_mode="map")
    bench, others = ride.bench, Others(ride.bench)
    others.fix("base_link", "camera", MOUNT)
    bases = drive(40)

    def wheels(time):
        """The base as wheels see it that slip: along a straight line, so that tf2 interpolates it truly."""
        return matrix((0.4 * time + 1, 2 - 0.1 * time, 0), Rotation.from_euler("z", 0.7))

    def go(*times):
        for time in times:
            ride.go(time, bases[round(10 * time)] @ MOUNT)
        ride.done("pose", "odometry")

    go(0.0, 0.1)
    missing = bench.wait_for_log("no transform odom -> base_link", level=30)
    assert "newest" not in missing and "odometry by its source" in missing
    others.move("odom", "base_link", {time: wheels(time) for time in np.arange(2, 9) / 20 + 0.02})  # to 0.42
    go(0.2, 0.3, 0.4)
    go(0.5, 0.9, 1.39)  # slow: world -> odom holds for a second
    go(1.5, 1.8)  # gone
    gone = bench.wait_for_log("no transform odom -> base_link at the image's stamp, the newest is", level=30)
    assert "1.080 s older" in gone
    others.move("odom", "base_link", {time: wheels(time) for time in (2.0, 2.3)})
    go(2.1, 2.2)
    assert bench.reset().success
    go(2.25)
    bench.wait_for_log("a new world starts (reset)")  # whatever was told before is here too
    assert bench.count_logs("no transform") == 2

    known = (0.2, 0.3, 0.4, 2.1, 2.2, 2.25)
    held = (0.5, 0.9, 1.39)
    seen = ride.transforms(len(known + held), ("map", "odom"))
    assert [stamp for stamp, _ in seen] == ride.stamps(sorted(known + held))
    world = {time: np.linalg.inv(bases[0]) @ bases[round(10 * time)] for time in ride.times}
    world[2.25] = np.eye(4)
    by_time = dict(zip(sorted(known + held), (one["map", "odom"] for _, one in seen), strict=True))
    for time in known:
        close(by_time[time] @ wheels(time), world[time])
    for time in held:
        np.testing.assert_array_equal(by_time[time], by_time[0.4])
    # Pose and odometry have no gap.
    for time, pose, odometry in zip(ride.times, ride.poses(), ride.odometry(), strict=True):
        close(pose, world[time] @ MOUNT)
        close(odometry, world[time])
    frames = {(one.header.frame_id, one.child_frame_id) for one in bench.messages["odometry"]}
    assert frames == {("map", "base_link")}
    assert ride.sent() == {("map", "odom"): len(seen), **others.sent}
    assert all(message.transforms for message in bench.messages["tf"])  # where there is none, no message either


# ------------------------------------------------------------------------------------------------------------- tree

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
