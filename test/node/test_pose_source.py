"""Known poses from TF: their look-up, the options that exclude each other, and what the node publishes."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from camera_run import MOUNT, OtherPublishers, assert_close, base_poses, edges, matrix_of

from raymap3r_ros.errors import OptionError
from raymap3r_ros.geometry.poses import world_pose
from raymap3r_ros.mapping.scale import ScaleOptions
from raymap3r_ros.node import pose_source
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.pose_source import TfPoses
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.tf_frames import TransformError


class Log:
    """Keeps the warnings of a logger."""

    def __init__(self):
        self.lines = []
        self.warning = self.lines.append


def tf_poses(look_up, **options):
    log = Log()
    options = NodeOptions(pose_source="tf", tf_mode="map", odom_frame="odom", **options)
    return TfPoses(options, look_up, Reporter(log, Monitor())), log


# ----------------------------------------------------------------------------------------------------------- look-up


def test_the_pose_is_that_of_the_camera_in_odom():
    poses = base_poses(3)

    def look_up(parent, child, stamp, age):
        assert (parent, child, age) == ("odom", "camera", 0.0)
        return poses[stamp.sec] @ MOUNT

    source, log = tf_poses(look_up)
    for index in range(3):
        assert_close(world_pose(source.pose("camera", Time(sec=index))), poses[index] @ MOUNT)
    assert log.lines == []


def test_each_gap_without_transforms_is_one_warning():
    missing = {0, 1, 4, 5, 6}

    def look_up(parent, child, stamp, age):
        if stamp.sec in missing:
            raise TransformError("not yet published" if stamp.sec < 2 else "no longer published")
        return np.eye(4)

    source, log = tf_poses(look_up)
    known = [source.pose("camera", Time(sec=index)) is not None for index in range(9)]
    assert known == [index not in missing for index in range(9)]
    assert [line.rpartition(": ")[2] for line in log.lines] == ["not yet published", "no longer published"]


def test_a_transform_that_the_stream_cannot_use_is_no_pose():
    far = np.eye(4)
    far[0, 3] = 2e4
    source, log = tf_poses(lambda *_: far, every_frame=True)
    assert source.pose("camera", Time()) is None and source.pose("camera", Time()) is None
    (line,) = log.lines
    assert "20000 m from the origin" in line


def test_a_replay_waits_for_transforms_once_in_a_gap(monkeypatch):
    now, tries = [0.0], []
    monkeypatch.setattr(pose_source.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pose_source.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    late = [3, 1000, 1000, 0]  # failed look-ups of each image

    def look_up(parent, child, stamp, age):
        tries.append(stamp.sec)
        if tries.count(stamp.sec) <= late[stamp.sec]:
            raise TransformError("too late")
        return np.eye(4)

    source, log = tf_poses(look_up, every_frame=True)
    known = [source.pose("camera", Time(sec=index)) is not None for index in range(4)]
    assert known == [True, False, False, True]
    assert tries.count(0) == 4 and tries.count(1) > 100 and tries.count(2) == 1
    assert now[0] == pytest.approx(pose_source.REPLAY_PATIENCE, abs=0.02) and len(log.lines) == 1


# ----------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("mode", ["camera", "base", "odom"])
def test_transforms_that_would_be_looked_up_again_are_refused(mode):
    with pytest.raises(OptionError, match=f"tf_mode {mode} this node publishes the parent"):
        NodeOptions(pose_source="tf", tf_mode=mode)
    NodeOptions(pose_source="tf", tf_mode=mode, publish_tf=False)
    NodeOptions(pose_source="tf", tf_mode="map")


@pytest.mark.parametrize("scale", [{"source": "odometry"}, {"value": 2.0}])
def test_the_scale_of_given_poses_is_not_changed(scale):
    with pytest.raises(OptionError, match="the metric scale follows from the given poses"):
        NodeOptions(pose_source="tf", tf_mode="map", scale=ScaleOptions(**scale))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [({}, "would look up its own poses"), ({"tf_mode": "map", "reset_alignment": "off"}, "reset_alignment is off")],
)
def test_configure_refuses_them_with_one_error(make_bench, parameters, text):
    bench = make_bench(pose_source="tf", **parameters)
    assert not bench.change_state("configure")
    assert text in bench.wait_for_log("configure failed")


# ---------------------------------------------------------------------------------------------------------- the node


def test_known_poses_are_published_and_the_world_is_odom(make_bench):
    """With the shipped network: transforms that begin late, a gap, and a reset of the memory."""
    bench = make_bench(every_frame=True, tf_mode="map", pose_source="tf", reset_interval=5)
    bench.start("tf", "pose", "odometry")
    others = OtherPublishers(bench)
    others.publish_static("base_link", "camera", MOUNT)
    bases, unknown = base_poses(14), {0, 1, 9}
    for index in range(14):
        if index not in unknown:
            others.publish_moving("odom", "base_link", {index / 10: bases[index]})
        bench.send(index=index, time=index / 10)
        bench.wait_for("pose", index + 1)
    poses = [matrix_of(one.pose.position, one.pose.orientation) for one in bench.messages["pose"]]
    for index, pose in enumerate(poses):
        if index not in unknown:
            assert_close(pose, bases[index] @ MOUNT)
    # Before the first transform the world was another one.
    assert np.linalg.norm(poses[2][:3, 3] - poses[1][:3, 3]) > 0.1
    assert bench.count_logs("a new world starts (known poses begin)") == 1
    assert bench.count_logs("images have no known pose") == 2
    assert bench.count_logs("the pose jumps at frame 8, where it is known again") == 1  # of the new world: image 10
    bench.wait_for("odometry", 14)
    published = [edges(message).get(("map", "odom")) for message in bench.messages["tf"]]
    late = [one for one in published if one and one.header.stamp != bench.messages["pose"][0].header.stamp]
    corrections = [one.transform for one in late]
    assert len(corrections) == 12  # image 9 has no transform of its own: the last correction is published again
    for one in corrections:
        assert_close(matrix_of(one.translation, one.rotation), np.eye(4))
