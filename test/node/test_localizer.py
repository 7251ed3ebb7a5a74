"""The localizer: metric scale, placement and world changes, also at frames that are not finite."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="the node needs ROS 2")

import torch
from builtin_interfaces.msg import Time

from raymap3r_ros.mapping.scale import MetricScale, RangeReading, ScaleEstimate, ScaleOptions
from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.localizer import Localizer
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.summary import FrameSummary
from raymap3r_ros.node.tf_frames import TransformError
from raymap3r_ros.streaming import WorldChange
from raymap3r_ros.streaming.world_files import Place

NONE, ALIGNED, JUMPED, NEW = WorldChange.NONE, WorldChange.ALIGNED, WorldChange.JUMPED, WorldChange.NEW
RETURNED = WorldChange.RETURNED


class Log:
    """Keeps the lines of a logger."""

    def __init__(self):
        self.lines = []
        self.info = self.warning = self.error = self.lines.append
        self.debug = lambda text: None


class Bench:
    """A localizer of a camera that moves 1 m along z of its first frame with each image."""

    def __init__(self, look_up=None, **options):
        self.log, self.monitor = Log(), Monitor()
        self.localizer = Localizer(NodeOptions(**options), look_up, Reporter(self.log, self.monitor))
        self.frames = 0  # sent

    def observe(self, change=NONE, frame=1, reset_reason="", reason="", world=0, past=()):
        result = SimpleNamespace(
            world_change=change,
            frame=frame,
            reset_reason=reset_reason,
            depth=torch.ones(6, 8),
            motion=False,
            world=world,
            past_worlds=past,
        )
        self.localizer.observe(result, reason)
        return result

    def place(self, result, healthy=True):
        pose = np.eye(4)
        pose[0, 3] = self.frames
        self.frames += 1
        summary = FrameSummary(healthy, True, "raymap3r", pose, pose, None, 0, None, None)
        return self.localizer.place(result, summary, Time(sec=self.frames), "camera")

    def send(self, change=NONE, frame=1, healthy=True, **arguments):
        """The world change of the placed frame; None if it is not placed."""
        placed = self.place(self.observe(change, frame, **arguments), healthy)
        return None if placed is None else placed.world_change

    def resets(self):
        values = self.monitor.status("node", "active", {}).values
        return int(next(item.value for item in values if item.key == "resets"))


def test_world_changes_are_logged_and_counted_after_the_first():
    bench = Bench()
    assert bench.send(NEW, 0, reset_reason="start") is NEW and bench.resets() == 0
    assert bench.send(NONE, 1) is NONE
    assert bench.send(ALIGNED, 2) is ALIGNED and bench.resets() == 1
    assert bench.send(JUMPED, 3) is JUMPED and bench.resets() == 2
    assert bench.send(NEW, 4) is NEW and bench.resets() == 3
    assert bench.send(NEW, 0, reset_reason="start", reason="time jump") is NEW and bench.resets() == 4
    assert bench.log.lines == [
        "a new world starts (start); the network's input is 8x6",
        "frame 3 is the first of a new segment, aligned with the last one, with a jump",
        "a new world starts (memory not aligned); the network's input is 8x6",
        "a new world starts (time jump); the network's input is 8x6",
    ]


@pytest.mark.parametrize("change", [ALIGNED, JUMPED, NEW])
def test_reset_at_a_frame_that_is_not_finite_is_ignored(change):
    bench = Bench()
    bench.send(NEW, 0)
    assert bench.send(NONE, 4, healthy=False) is None  # the stream would reset its memory here
    assert bench.send(change, 5) is NONE and bench.resets() == 0
    assert bench.send(change, 9) is change and bench.resets() == 1  # after the next reset, at a healthy frame


def test_reset_at_the_second_of_two_frames_that_are_not_finite_is_ignored():
    bench = Bench()
    bench.send(NEW, 0)
    assert bench.send(NONE, 3, healthy=False) is None
    assert bench.send(NONE, 4, healthy=False) is None
    assert bench.send(NEW, 5) is NONE


@pytest.mark.parametrize("change", [ALIGNED, JUMPED, NEW])
def test_change_at_frames_that_are_not_finite_applies_to_the_first_healthy_frame(change):
    bench = Bench()
    bench.send(NEW, 0)
    assert bench.send(change, 5, healthy=False) is None
    assert bench.send(NONE, 6, healthy=False) is None
    assert bench.resets() == 0
    assert bench.send(NONE, 7) is change and bench.resets() == 1
    assert bench.send(NONE, 8) is NONE


def test_new_world_whose_first_frames_are_not_finite_keeps_its_reason():
    bench = Bench()
    bench.send(NEW, 0, reset_reason="start")
    assert bench.send(NEW, 0, healthy=False, reset_reason="start", reason="reset") is None
    assert bench.send(NONE, 1, healthy=False) is None
    assert bench.send(NONE, 2) is NEW and bench.resets() == 1
    assert bench.log.lines[-1].startswith("a new world starts (reset)")


def test_stream_that_is_reset_after_a_frame_that_is_not_finite_starts_a_new_world():
    bench = Bench()
    bench.send(NEW, 0)
    assert bench.send(NONE, 4, healthy=False) is None
    assert bench.send(NEW, 0, reason="reset") is NEW


def test_change_is_kept_if_a_frame_is_lost_after_the_step():
    """For example, because copying its summary runs out of memory."""
    bench = Bench()
    bench.send(NEW, 0)
    bench.observe(NEW, 5)
    assert bench.send(ALIGNED, 6) is NEW


def test_scale_multiplies_the_pose_and_can_change():
    bench = Bench()
    bench.send(NEW, 0)
    bench.localizer.use(NodeOptions(scale=type(NodeOptions().scale)(value=3.0)))
    placed = bench.place(bench.observe())
    assert placed.scale == 3.0 and bench.localizer.estimate.factor == 3.0
    np.testing.assert_allclose(placed.placement.camera[:3, 3], [3, 0, 0])
    np.testing.assert_allclose(placed.world_from_stream, np.diag([3, 3, 3, 1]))
    assert bench.localizer.facts() == {"scale": "3 (fixed)"}


@pytest.mark.parametrize(("factor", "named"), [(0.5, False), (99.0, False), (963.0, True), (0.001, True)])
def test_a_scale_in_other_units_than_metres_is_named_once(factor, named, monkeypatch):
    bench = Bench(lambda *_: np.eye(4), scale=type(NodeOptions().scale)(source="range"))
    estimate = ScaleEstimate(factor, True, 0.9, 20, 0.1)
    monkeypatch.setattr(MetricScale, "update", lambda *_: estimate)
    for index in range(3):
        bench.send(NEW if index == 0 else NONE, index)
    lines = [line for line in bench.log.lines if "are its values in metres?" in line]
    assert len(lines) == named and all(f"from range is {factor:.2g}" in line for line in lines)
    waiting = dataclasses.replace(estimate, known=False)  # scale.value, which the user has set
    other = Bench(lambda *_: np.eye(4), scale=type(NodeOptions().scale)(source="range"))
    monkeypatch.setattr(MetricScale, "update", lambda *_: waiting)
    other.send(NEW, 0)
    assert not [line for line in other.log.lines if "metres?" in line]


def test_motion_is_not_measured_across_a_jump_or_a_new_world():
    bench = Bench()
    placements = [
        bench.place(bench.observe(change, frame)).placement
        for frame, change in enumerate([NEW, NONE, ALIGNED, JUMPED, NONE, NEW, NONE])
    ]
    measured = [placement.motion is not None for placement in placements]
    assert measured == [False, True, True, False, True, False, True]


def test_an_earlier_world_continues_where_it_was():
    bench = Bench(lambda *_: np.eye(4), tf_mode="base")
    first = bench.place(bench.observe(NEW, 0)).placement
    other = bench.place(bench.observe(NEW, 0, world=1, past=(0,))).placement
    assert (other.odometry == np.eye(4)).all()  # the world starts where the robot is
    back = bench.place(bench.observe(RETURNED, 7, world=0)).placement
    assert (back.world_from_stream == first.world_from_stream).all()
    assert (back.world_from_stream != other.world_from_stream).any()
    np.testing.assert_allclose(back.odometry[:3, 3], [2, 0, 0])  # its third frame, one metre after the other
    assert back.motion is None and bench.log.lines[-1] == (
        "frame 7: the camera is found again in an earlier world, which continues"
    )


@pytest.mark.parametrize(("changes", "last"), [((NEW, RETURNED), RETURNED), ((RETURNED, NEW), NEW)])
def test_of_two_worlds_in_frames_that_are_not_finite_the_later_one_holds(changes, last):
    bench = Bench()
    bench.send(NEW, 0)
    for world, change in enumerate(changes, 1):
        bench.send(change, 0 if change is NEW else 7, healthy=False, world=world)
    assert bench.send(NONE, 9, world=2) is last


def test_scale_of_an_earlier_world_comes_back():
    bench = Bench(scale=ScaleOptions(source="range"))
    bench.place(bench.observe(NEW, 0))
    estimator = bench.localizer._scale.estimator
    bench.place(bench.observe(NEW, 0, world=1, past=(0,)))
    assert bench.localizer._scale.estimator is not estimator
    bench.place(bench.observe(RETURNED, 9, world=0))
    assert bench.localizer._scale.estimator is estimator


@pytest.mark.parametrize("known", [True, False])
def test_a_saved_world_continues_at_its_place_and_scale(known):
    bench = Bench(lambda *_: np.eye(4), tf_mode="base", scale=ScaleOptions(source="range", value=3.0))
    world_from_stream = np.diag((-1.0, -1.0, 1.0, 1.0))
    bench.localizer.add_world(5, Place(world_from_stream, 2.0, known))
    lost = bench.place(bench.observe(NEW, 0, world=6, past=(5,)))
    assert (lost.scale, lost.world_change) == (3.0, NEW) and (lost.placement.world_from_stream == np.eye(4)).all()
    back = bench.place(bench.observe(RETURNED, 6, world=5))
    assert (back.placement.world_from_stream == world_from_stream).all()
    assert back.scale == (2.0 if known else 3.0) and bench.localizer.estimate.known is known
    number, place = bench.localizer.place_of_world
    assert (number, place.scale, place.scale_known) == (5, back.scale, known)
    assert (place.world_from_stream == world_from_stream).all()


def test_a_fixed_scale_is_that_of_the_parameter():
    bench = Bench(scale=ScaleOptions(value=3.0))
    bench.localizer.add_world(0, Place(np.eye(4), 2.0, True))
    bench.place(bench.observe(NEW, 0, world=1, past=(0,)))
    assert bench.place(bench.observe(RETURNED, 6, world=0)).scale == 3.0
    assert not bench.localizer.place_of_world[1].scale_known


def test_unknown_mount_leaves_the_frame_without_a_placement():
    def look_up(parent, child, stamp, age):
        raise TransformError(f"no transform {parent} -> {child}")

    bench = Bench(look_up, tf_mode="base")
    placed = bench.place(bench.observe(NEW, 0))
    assert placed.placement is None and placed.world_change is NEW
    assert bench.log.lines[0] == "nothing is published in the world: no transform base_link -> camera"


def test_mounts_of_the_scale_source_are_looked_up():
    requests = []

    def look_up(parent, child, stamp, age):
        requests.append((parent, child))
        raise TransformError("unknown")

    scale = type(NodeOptions().scale)
    bench = Bench(look_up, scale=scale(source="range"))
    bench.send(NEW, 0)
    assert requests == []  # the sensor's frame is not known yet
    bench.localizer.add_range(RangeReading(1.0, 2.0, 0.1, 10.0, 0.1), "ranger")
    bench.send()
    assert requests == [("camera", "ranger")]
    requests.clear()
    Bench(look_up, scale=scale(source="odometry")).send(NEW, 0)
    assert requests == [("base_link", "camera")]
    assert [
        Bench(look_up, scale=scale(source=source, camera_height=1.0)).localizer.needs_motion
        for source in ("fixed", "odometry", "range", "height")
    ] == [False, False, True, True]
