"""Cameras of one process that share a world, over real DDS."""

import numpy as np
import pytest
from std_srvs.srv import Trigger
from test_saved_world import show
from test_world import camera_poses

from raymap3r_ros.errors import OptionError
from raymap3r_ros.evaluation.kidnap import FAR, WITHIN
from raymap3r_ros.node import conversions
from raymap3r_ros.node.network_pool import NetworkPool
from raymap3r_ros.node.node_options import NodeOptions

SCALE = 2.0
FIRST, SECOND = slice(0, 40), slice(20, 40)


@pytest.fixture
def cameras(make_bench):
    """The benches of two cameras; the world of the first one is the older one."""
    pool = NetworkPool(2)
    options = {"shared_world": True, "every_frame": True, "confidence_threshold": 1.0}
    left = make_bench(pool=pool, world_frame="left/map", scale__value=SCALE, **options)
    right = make_bench(pool=pool, world_frame="right/map", child_frame="right", scale__value=SCALE, **options)
    for bench in (left, right):
        bench.start("pose")
    return left, right


def frame_of_find(bench):
    """Index of the first frame in the world of the other camera."""
    found = bench.wait_for_logs("found again", 1)
    return int(found.removeprefix("frame ").partition(":")[0])


def links(bench):
    """Transforms between worlds, with their stamps in seconds."""
    transforms = [one for message in bench.messages["tf"] for one in message.transforms]
    return [one for one in transforms if one.child_frame_id.endswith("/map")]


def test_a_camera_continues_in_the_world_of_another_one(cameras, stays):
    left, right = cameras
    right.subscribe("tf")
    show(left, stays[0][FIRST])
    left.wait_for("pose", 40)
    show(right, stays[0][SECOND], start=100)
    right.wait_for("pose", 20)
    frame = frame_of_find(right)
    assert 6 <= frame <= 6 + WITHIN
    before, after = (np.stack(camera_poses(one))[:, :3, 3] for one in (left, right))
    assert np.linalg.norm(after[frame:] - before[SECOND][frame:], axis=1).max() < FAR * SCALE
    assert np.linalg.norm(after[:frame] - before[SECOND][:frame], axis=1).max() > FAR * SCALE
    # One tree from then on: the two worlds are the same place.
    right.wait(lambda: len(links(right)) == 20 - frame, "a link for each frame")
    assert {(one.header.frame_id, one.child_frame_id) for one in links(right)} == {("left/map", "right/map")}
    for one, pose in zip(links(right), right.messages["pose"][frame:], strict=True):
        assert one.header.stamp == pose.header.stamp
        np.testing.assert_array_equal(
            conversions.rigid_matrix(one.transform.translation, one.transform.rotation), np.eye(4)
        )
    right.wait_for_logs("a new world starts", 1)
    assert left.count_logs("found again") == 0


def test_another_room_is_another_world(cameras, stays):
    left, right = cameras
    right.subscribe("tf")
    show(left, stays[0][FIRST])
    show(right, stays[1], start=100)
    right.wait_for("pose", 40)
    right.wait_for_logs("a new world starts", 1)
    assert right.count_logs("found again") == 0 and not links(right)


def test_a_world_that_was_reset_is_left_to_the_others(cameras, stays):
    """Otherwise a camera would return to it, and a user could never begin a new one."""
    left, right = cameras
    show(left, stays[0][FIRST])
    show(right, stays[0][SECOND], start=100)
    frame_of_find(right)
    for bench in (left, right):
        assert bench.call(Trigger, "reset", Trigger.Request()).success
        show(bench, stays[0][SECOND], start=200)
    left.wait_for_logs("a new world starts (reset)", 1)
    assert left.count_logs("found again") == 0
    right.wait_for_logs("found again", 2)  # in the first camera's new world


def test_a_camera_alone_is_told(make_bench):
    bench = make_bench(shared_world=True)
    assert bench.change_state("configure")
    bench.wait_for_log("shared_world has no effect with one camera in a process")


def test_what_a_shared_world_needs(make_bench):
    bench = make_bench(pool=NetworkPool(2), shared_world=True, keyframes__relocalize=False)
    assert not bench.change_state("configure")
    bench.wait_for_log("keyframes.relocalize is false, but the camera is to be searched for in another world")
    with pytest.raises(OptionError, match="root of a TF tree"):
        NodeOptions(shared_world=True, invert_tf=True)
