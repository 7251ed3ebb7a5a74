"""Transforms over real DDS, in all modes: a stand-in says where the camera is, and what comes out is closed form."""

import itertools
from functools import partial

import numpy as np
import pytest
from rides import JUMP, MOUNT, ODOM, STEP, UNKNOWN, Others, Ride, close, drive, matrix, scaled, start_ride
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from raymap3r_ros.node import conversions
from raymap3r_ros.synthetic import suite_sequence


@pytest.fixture
def ride(make_bench, stand_in):
    return partial(start_ride, make_bench, stand_in)


# --------------------------------------------------------------------------------------------------------- corrections


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
    bench.wait(lambda: not bench.publishers["image"].get_subscription_count(), "the node's leave")
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
