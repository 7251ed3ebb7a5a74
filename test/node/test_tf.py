"""Transforms over real DDS: the camera poses are scripted, and the expected transforms are in closed form."""

import itertools
from functools import partial

import numpy as np
import pytest
from camera_run import (
    JUMP,
    MOUNT,
    ODOM,
    STEP,
    UNKNOWN_VARIANCE,
    CameraRun,
    OtherPublishers,
    assert_close,
    base_poses,
    matrix,
    scaled,
    start_run,
)
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from raymap3r_ros.node import conversions
from raymap3r_ros.synthetic import suite_sequence


@pytest.fixture
def start(make_bench, fake_stream):
    return partial(start_run, make_bench, fake_stream)


# --------------------------------------------------------------------------------------------------------- corrections


def test_odom_is_continuous_across_every_correction(start):
    """The base moves at constant speed, so extrapolated motion is the true motion: odom shows no correction."""
    run = start("tf", "pose", "odometry", tf_mode="odom", reset_alignment="published")
    bench = run.bench
    OtherPublishers(bench).publish_static("base_link", "camera", MOUNT)
    cameras = [base @ MOUNT for base in base_poses(14)]
    worlds, odom = [], [np.eye(4)]  # closed form: the base in the world and in odom, for each image
    last, first, scale, segment = 0, 0, 1.0, np.eye(4)

    def send(time, index, stationary=False, **options):
        nonlocal last
        travel, step = (scaled(np.linalg.inv(cameras[since]) @ cameras[index], scale) for since in (first, last))
        worlds.append(MOUNT @ scaled(segment, scale) @ travel @ np.linalg.inv(MOUNT))
        if run.times:
            odom.append(odom[-1] if stationary else odom[-1] @ MOUNT @ step @ np.linalg.inv(MOUNT))
        last = index
        run.send(time, cameras[index], segment=segment, **options)

    for index in range(4):
        send(index / 10, index)
    send(0.4, 4, reason="interval")  # still processed with the old memory
    segment = JUMP
    send(0.5, 5)
    send(0.6, 6)
    scale = 1.5
    assert bench.set_parameter("scale.value", scale).successful
    send(0.7, 7)
    send(0.8, 8)
    # The bag starts again: the motion back to the start is unknown, so the base does not move in odom.
    first, segment = 0, np.eye(4)
    send(0.0, 0, stationary=True)
    send(0.1, 1)
    assert bench.change_state("deactivate")
    bench.wait(lambda: not bench.publishers["image"].get_subscription_count(), "end of the subscription")
    assert bench.change_state("activate")
    bench.wait_for_match()
    send(5.0, 10)  # not a jump of the stamps, as the node was inactive: the motion since then is measured
    send(5.1, 11)
    assert bench.reset().success
    first = 12
    send(5.2, 12)
    send(5.3, 13)
    run.wait_for_all("pose", "odometry")
    seen = run.transforms(len(run.times), *ODOM)

    assert [stamp for stamp, _ in seen] == run.stamps(run.times)
    map_from_odom = [one["map", "odom"] for _, one in seen]
    for index, (_, one) in enumerate(seen):
        assert_close(one["odom", "base_link"], odom[index])
        assert_close(one["map", "odom"] @ one["odom", "base_link"], worlds[index])
        assert_close(run.poses()[index], worlds[index] @ MOUNT)
        assert_close(run.odometry()[index], odom[index])
    steps = [np.linalg.norm(after[:3, 3] - before[:3, 3]) for before, after in itertools.pairwise(worlds)]
    moved = [
        index for index in range(1, len(seen)) if np.abs(map_from_odom[index] - map_from_odom[index - 1]).max() > 1e-4
    ]
    corrected = {"interval": 5, "scale": 7, "loop": 9, "reset": 13}
    assert moved == list(corrected.values())
    assert min(steps[corrected[name] - 1] for name in ("interval", "loop", "reset")) > 0.3
    assert_close(map_from_odom[0], np.eye(4))

    # The twist is unknown where a correction hides the motion. A change of scale does not hide it.
    for index, message in enumerate(bench.messages["odometry"]):
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        unknown = index in (0, corrected["interval"], corrected["loop"], corrected["reset"])
        assert (message.twist.covariance[0] == UNKNOWN_VARIANCE) == unknown
        if not unknown:
            step = np.linalg.inv(odom[index]) @ odom[index - 1]
            seconds = run.times[index] - run.times[index - 1]
            linear, angular = message.twist.twist.linear, message.twist.twist.angular
            assert_close((linear.x, linear.y, linear.z), -step[:3, 3] / seconds, atol=1e-4)
            turn = -Rotation.from_matrix(step[:3, :3]).as_rotvec() / seconds
            assert_close((angular.x, angular.y, angular.z), turn, atol=1e-4)


@pytest.mark.parametrize("alignment", ["robust", "published", "off"])
def test_only_alignment_by_camera_poses_is_not_a_jump(start, alignment):
    """The base doubles its speed at the reset: this is measured only if the poses of the two segments are aligned."""
    run = start("tf", "odometry", tf_mode="odom", reset_alignment=alignment)
    OtherPublishers(run.bench).publish_static("base_link", "camera", MOUNT)
    bases = base_poses(5)
    bases += [bases[-1] @ STEP @ STEP, bases[-1] @ STEP @ STEP @ STEP]
    for index, base in enumerate(bases):
        jump = JUMP if index > 4 and alignment != "robust" else None
        run.send(index / 10, base @ MOUNT, reason="interval" if index == 4 else "", segment=jump)
    run.wait_for_all("odometry")
    seen = [one for _, one in run.transforms(7, *ODOM)]
    travel = np.linalg.matrix_power(STEP, 6 if alignment == "robust" else 5)
    assert_close(seen[5]["odom", "base_link"], travel)
    assert_close(seen[6]["odom", "base_link"], travel @ STEP)
    jumped = [
        np.abs(after["map", "odom"] - before["map", "odom"]).max() > 1e-4 for before, after in itertools.pairwise(seen)
    ]
    assert jumped == [False] * 4 + [alignment != "robust", False]
    twists = [message.twist.covariance[0] == UNKNOWN_VARIANCE for message in run.bench.messages["odometry"]]
    assert twists == [True] + [False] * 4 + [alignment != "robust", False]


@pytest.mark.parametrize("alignment", ["robust", "off"])
def test_reset_of_the_real_stream(make_bench, alignment):
    """A memory reset with the shipped network: without alignment the world jumps at the next image."""
    bench = make_bench(every_frame=True, tf_mode="odom", reset_alignment=alignment, reset_interval=6)
    bench.start("tf", "pose", "depth")
    OtherPublishers(bench).publish_static("base_link", "camera", MOUNT)
    run = CameraRun(bench, None)
    sequence = suite_sequence("static", 0, world="one_room", size=(96, 128))
    for index, frame in enumerate(itertools.islice(sequence.frames(), 9)):
        bench.send(time=index / 10, message=conversions.image_message(Header(), frame.image, "rgb8"))
        bench.wait_for("depth", index + 1)
    bench.wait_for("pose", 9)
    seen = [one for _, one in run.transforms(9, *ODOM)]
    moved = [np.abs(b["map", "odom"] - a["map", "odom"]).max() > 1e-4 for a, b in itertools.pairwise(seen)]
    assert moved == [False] * 6 + [alignment == "off", False]
    bases = [one["odom", "base_link"] for one in seen]
    odom, world = (
        [np.linalg.norm(b[:3, 3] - a[:3, 3]) for a, b in itertools.pairwise(poses)] for poses in (bases, run.poses())
    )
    others = odom[:6] + odom[7:]
    assert odom[6] < 1.5 * max(others)
    assert (world[6] > 2 * max(others)) == (alignment == "off")


# --------------------------------------------------------------------------------------------------- external odometry


def test_mode_map_handles_odometry_that_is_missing_slow_or_lost(start):
    run = start("tf", "pose", "odometry", tf_mode="map")
    bench, others = run.bench, OtherPublishers(run.bench)
    others.publish_static("base_link", "camera", MOUNT)
    bases = base_poses(40)

    def wheels(time):
        """Pose of the base by slipping wheels: along a straight line, which tf2 interpolates exactly."""
        return matrix((0.4 * time + 1, 2 - 0.1 * time, 0), Rotation.from_euler("z", 0.7))

    def send(*times):
        for time in times:
            run.send(time, bases[round(10 * time)] @ MOUNT)
        run.wait_for_all("pose", "odometry")

    send(0.0, 0.1)
    missing = bench.wait_for_log("no transform odom -> base_link", level=30)
    assert "newest" not in missing and "odometry by its source" in missing
    others.publish_moving("odom", "base_link", {time: wheels(time) for time in np.arange(2, 9) / 20 + 0.02})  # to 0.42
    send(0.2, 0.3, 0.4)
    send(0.5, 0.9, 1.39)  # slow: world -> odom is kept for a second
    send(1.5, 1.8)  # lost
    lost = bench.wait_for_log("no transform odom -> base_link at the image's stamp, the newest is", level=30)
    assert "1.080 s older" in lost
    others.publish_moving("odom", "base_link", {time: wheels(time) for time in (2.0, 2.3)})
    send(2.1, 2.2)
    assert bench.reset().success
    send(2.25)
    bench.wait_for_log("a new world starts (reset)")  # all earlier log lines have arrived too
    assert bench.count_logs("no transform") == 2

    known = (0.2, 0.3, 0.4, 2.1, 2.2, 2.25)
    held = (0.5, 0.9, 1.39)
    seen = run.transforms(len(known + held), ("map", "odom"))
    assert [stamp for stamp, _ in seen] == run.stamps(sorted(known + held))
    world = {time: np.linalg.inv(bases[0]) @ bases[round(10 * time)] for time in run.times}
    world[2.25] = np.eye(4)
    by_time = dict(zip(sorted(known + held), (one["map", "odom"] for _, one in seen), strict=True))
    for time in known:
        assert_close(by_time[time] @ wheels(time), world[time])
    for time in held:
        np.testing.assert_array_equal(by_time[time], by_time[0.4])
    # Pose and odometry have no gap.
    for time, pose, odometry in zip(run.times, run.poses(), run.odometry(), strict=True):
        assert_close(pose, world[time] @ MOUNT)
        assert_close(odometry, world[time])
    frames = {(one.header.frame_id, one.child_frame_id) for one in bench.messages["odometry"]}
    assert frames == {("map", "base_link")}
    assert run.sent() == {("map", "odom"): len(seen), **others.sent}
    assert all(message.transforms for message in bench.messages["tf"])  # without transforms no message is published
