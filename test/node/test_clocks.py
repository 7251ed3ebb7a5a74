"""Stamps of another clock than the node's: a warning that names use_sim_time."""

import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from topic_helpers import image

from raymap3r_ros.node import reporter, stream_node
from raymap3r_ros.stamps import clock_problem

LOCAL = ("-r", "/clock:=clock")  # not to other tests
WALL = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "stamp", "simulated", "text"),
    [
        (WALL, WALL - 0.1, False, ""),
        (WALL, WALL + 0.5, False, ""),
        (WALL, WALL - 9.0, False, ""),
        (WALL, WALL - 300, False, "300 s behind the node's clock: set use_sim_time to true"),
        (WALL, 12.0, False, "behind the node's clock: set use_sim_time to true"),
        (WALL, WALL + 5, False, "5 s ahead of the node's clock: set use_sim_time to true"),
        (12.0, WALL, True, "ahead of the node's clock: set use_sim_time to false"),
        (0.0, WALL, True, "use_sim_time is true, but nothing arrives on /clock"),
        (12.0, 11.9, True, ""),
    ],
)
def test_problem(now, stamp, simulated, text):
    found = clock_problem(now, stamp, simulated)
    assert text in found and bool(found) == bool(text)


def send(bench, seconds):
    message = image()
    message.header.stamp = Time(nanoseconds=round(seconds * 1e9)).to_msg()
    count = len(bench.messages["pose"])
    bench.publish(message)
    bench.wait_for("pose", count + 1)


def test_simulated_stamps_on_wall_time(make_bench, monkeypatch):
    monkeypatch.setattr(reporter, "THROTTLE", 0.0)
    bench = make_bench(image_size=64, every_frame=True)
    bench.start("pose")
    for index in range(3):
        send(bench, 100 + index / 10)
    bench.wait_for_log("set use_sim_time to true", level=30)
    bench.wait(lambda: bench.statuses and "use_sim_time" in bench.statuses[-1][1], "diagnostics")
    assert bench.statuses[-1][0] == DiagnosticStatus.WARN
    send(bench, time.time())
    send(bench, 100)
    bench.wait(lambda: bench.count_logs("use_sim_time to true") == 2, "one line each time it begins")


def test_a_bag_played_without_clock_is_one_line_with_the_cure(make_bench, monkeypatch):
    """Also if it is looped, and if its images cannot be processed."""
    monkeypatch.setattr(reporter, "THROTTLE", 0.0)
    bench = make_bench(image_size=64, every_frame=True)
    bench.start("pose")
    for seconds in (100.0, 100.1, 1e6, 100.0, 100.1):
        send(bench, seconds)
    bench.wait_for_log("set use_sim_time to true if they come from a simulator or a bag (ros2 bag play --clock)")
    assert bench.count_logs("use_sim_time") == 1


def test_also_if_no_frame_is_published(make_bench, monkeypatch):
    bench = make_bench(image_size=64, every_frame=True)
    bench.start("pose")

    def fail(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(stream_node, "step_of", lambda *_: fail)
    message = image()
    message.header.stamp = Time(seconds=100).to_msg()
    bench.publish(message)
    bench.wait_for_log("set use_sim_time to true", level=30)
    assert not bench.messages["pose"] and bench.count_logs("no network")


@pytest.mark.parametrize(("clock", "text"), [(None, "nothing arrives on /clock"), (50, "use_sim_time to false")])
def test_wall_stamps_on_simulated_time(make_bench, monkeypatch, clock, text):
    monkeypatch.setattr(stream_node, "SILENCE", 0.0)
    bench = make_bench(*LOCAL, image_size=64, every_frame=True, use_sim_time=True)
    if clock:
        bench.advertise(Clock, "clock", QoSProfile(depth=1))
        message = Clock()
        message.clock.sec = clock
        bench.publishers["clock"].publish(message)
        bench.wait(lambda: bench.node.get_clock().now().nanoseconds > 0, "the clock")
    bench.start("pose")
    send(bench, WALL)
    bench.wait_for_log(text, level=30)


def test_a_clock_that_jumps_while_an_image_waits_is_no_problem(make_bench, hold):
    """As a bag whose recorder's clock was set forward by hours."""
    bench = make_bench(*LOCAL, image_size=64, every_frame=True, use_sim_time=True)
    bench.advertise(Clock, "clock", QoSProfile(depth=1))

    def set_clock(seconds):
        message = Clock()
        message.clock.sec = seconds
        bench.publishers["clock"].publish(message)
        bench.wait(lambda: bench.node.get_clock().now().nanoseconds == seconds * 10**9, "the clock")

    bench.start("pose")
    held = hold(bench)
    for seconds in (1000, 11_000):
        set_clock(seconds)
        message = image()
        message.header.stamp = Time(seconds=seconds).to_msg()
        bench.publish(message)
        if seconds == 1000:
            held.wait_until_inside()
    held.release()
    bench.wait_for("pose", 2)
    assert bench.count_logs("use_sim_time") == 0


def test_a_change_to_simulated_time_waits_for_the_first_clock_message(make_bench, monkeypatch):
    """As an operator does it who follows the warning: /clock may be published, but has not been received yet."""
    monkeypatch.setattr(reporter, "THROTTLE", 0.0)
    bench = make_bench(*LOCAL, image_size=64, every_frame=True)
    bench.start("pose")
    monkeypatch.setattr(bench.node, "clock_arrival", time.monotonic() - 1000)  # of an earlier subscription
    assert bench.set_parameter("use_sim_time", True).successful
    send(bench, WALL)
    send(bench, WALL + 0.1)
    assert not bench.count_logs("/clock")
    monkeypatch.setattr(bench.node, "clock_arrival", time.monotonic() - 1000)
    send(bench, WALL + 0.2)
    bench.wait_for_log("use_sim_time is true, but nothing arrives on /clock")
