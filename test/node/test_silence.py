"""Warnings while nothing arrives: topic, publishers, likely cause."""

import re
import time

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from raymap3r_ros.node import inputs, silence, stoppage
from raymap3r_ros.node.namesakes import LEASE, PublisherWatch

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1)
WARN = DiagnosticStatus.WARN


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(silence, "SILENCE", 0.0)


def activate(bench):
    assert bench.change_state("configure") and bench.change_state("activate")


def wait_for_publisher(bench, kind, topic, qos):
    publisher = bench.probe.create_publisher(kind, topic, qos)
    bench.wait(lambda: bench.node.count_publishers(publisher.topic_name), f"discovery of {topic}")
    return publisher


def test_no_publisher(make_bench):
    bench = make_bench()
    wait_for_publisher(bench, Image, "front/image_raw", RELIABLE)
    activate(bench)
    line = bench.wait_for_log("nothing has arrived on", level=30)
    assert f"{bench.namespace}/image (sensor_msgs/msg/Image, best effort)" in line
    assert (
        "no publisher of it was discovered; remap it to the topic of the driver, such as " in line
        and "/front/image_raw" in line
    )


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_camera_with_the_other_transport(make_bench, transport):
    remapped = "image:=cam/image_raw", "image/compressed:=cam/image_raw/compressed"
    bench = make_bench("-r", remapped[0], "-r", remapped[1], image_transport=transport)
    kind, name = (CompressedImage, "cam/image_raw/compressed") if transport == "raw" else (Image, "cam/image_raw")
    camera = wait_for_publisher(bench, kind, name, RELIABLE)
    activate(bench)
    line = bench.wait_for_log("nothing has arrived on", level=30)
    other = "compressed" if transport == "raw" else "raw"
    assert f"{camera.topic_name} is published: set image_transport to {other}" in line


def test_a_camera_with_the_other_transport_and_another_name(make_bench):
    bench = make_bench(image_transport="compressed")
    camera = wait_for_publisher(bench, Image, "front/image_raw", RELIABLE)
    activate(bench)
    line = bench.wait_for_log("nothing has arrived on", level=30)
    assert camera.topic_name in line and "set image_transport to raw, and remap `image`" in line


def test_another_node_of_the_same_name(make_bench):
    bench = make_bench()
    activate(bench)
    other = rclpy.create_node("raymap3r", namespace=bench.namespace, context=bench.context)
    line = bench.wait_for_log("nodes are named", level=30)
    other.destroy_node()
    assert f"2 nodes are named {bench.name}: they publish to the same topics" in line and "rename them" in line


def test_publisher_of_another_type(make_bench):
    bench = make_bench()
    context = Context()  # within one participant, Fast DDS allows one type for each topic
    rclpy.init(context=context)
    driver = rclpy.create_node("driver", namespace=bench.namespace, context=context)
    driver.create_publisher(CompressedImage, "image", RELIABLE)
    bench.wait(lambda: bench.node.count_publishers(f"{bench.namespace}/image"), "discovery")
    activate(bench)
    line = bench.wait_for_log("nothing has arrived on", level=30)
    assert "another type; set image_transport, or remap `image` to a topic of the type sensor_msgs/msg/Image" in line
    assert f"{bench.namespace}/driver publishes sensor_msgs/msg/CompressedImage, reliable" in line
    driver.destroy_node()
    rclpy.shutdown(context=context)


def test_best_effort_publisher_for_every_frame(make_bench):
    bench = make_bench(every_frame=True)
    wait_for_publisher(bench, Image, "image", BEST_EFFORT)
    activate(bench)
    line = bench.wait_for_log("nothing has arrived on", level=30)
    assert "incompatible" in line and "set every_frame to false" in line
    assert "probe publishes sensor_msgs/msg/Image, best effort" in line


def test_name_that_ends_in_compressed_twice(make_bench):
    bench = make_bench("-r", "image/compressed:=cam/compressed/compressed", image_transport="compressed")
    activate(bench)
    assert "without /compressed" in bench.wait_for_log("ends in compressed twice", level=30)


def test_publisher_that_sends_nothing(make_bench):
    bench = make_bench(scale__source="odometry")
    wait_for_publisher(bench, Image, "image", RELIABLE)
    wait_for_publisher(bench, Odometry, "wheel_odometry", RELIABLE)
    activate(bench)
    line = bench.wait_for_log(f"nothing has arrived on {bench.namespace}/image", level=30)
    assert "its publishers send nothing, or large messages are lost" in line and "fastdds.xml" in line
    assert "nav_msgs/msg/Odometry" in bench.wait_for_log(f"on {bench.namespace}/wheel_odometry", level=30)


def test_long_names_leave_the_remedy_readable(make_bench):
    long = "a_long_name_of_a_topic_or_node_" * 7  # near the limit of 255 characters
    bench = make_bench("-r", f"image:={long}")
    drivers = [rclpy.create_node(f"{long}{index}", context=bench.context) for index in range(5)]
    publishers = [driver.create_publisher(Image, f"{bench.namespace}/{long}", RELIABLE) for driver in drivers]
    bench.wait(lambda: bench.node.count_publishers(publishers[0].topic_name) == len(drivers), "discovery")
    activate(bench)
    bench.wait(lambda: bench.statuses and "nothing has arrived" in bench.statuses[-1][1], "diagnostics")
    line = bench.statuses[-1][1]
    assert "check its rate with `ros2 topic hz`, use the Fast DDS profile of config/fastdds.xml" in line
    assert "on the publisher's side above all. Publishers: /a_long_name" in line and "; and 2 more" in line
    for driver in drivers:
        driver.destroy_node()


LOCAL = ("-r", "/clock:=clock")  # not to other tests


def test_simulated_time_without_a_clock(make_bench):
    bench = make_bench(*LOCAL, use_sim_time=True)
    activate(bench)
    line = bench.wait_for_log(f"nothing has arrived on {bench.namespace}/clock (rosgraph_msgs/msg/Clock", level=30)
    assert (
        "no publisher of it was discovered; publish it (ros2 bag play --clock, or the simulator), or set use_sim_time"
        in line
    )
    assert bench.count_logs("nothing has arrived on") == 2  # and on the images' topic


def test_clock_that_stops(make_bench, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE", 3600.0)
    bench = make_bench(*LOCAL, use_sim_time=True)
    clock = wait_for_publisher(bench, Clock, "clock", RELIABLE)
    bench.wait(clock.get_subscription_count, "the node's subscription")
    activate(bench)
    clock.publish(Clock(clock=bench.stamp(0)))
    bench.wait(lambda: bench.node.get_clock().now().nanoseconds > 0, "the clock")
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert bench.count_logs("nothing has arrived") == 0
    monkeypatch.setattr(silence, "SILENCE", 0.0)
    assert "its publishers send nothing; publish it" in bench.wait_for_log(f"{bench.namespace}/clock", level=30)


def test_the_clock_is_not_watched_on_wall_time(make_bench):
    bench = make_bench(*LOCAL)
    activate(bench)
    bench.wait_for_log("nothing has arrived on", level=30)
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert bench.count_logs("/clock") == 0


def test_quiet_while_images_arrive_and_one_line_otherwise(make_bench, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE", 3600.0)
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert bench.count_logs("nothing has arrived") == 0
    monkeypatch.setattr(silence, "SILENCE", 0.0)
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 4, "diagnostics")
    assert bench.count_logs("nothing has arrived") == 1


def test_the_diagnostics_name_the_present_cause(make_bench, monkeypatch):
    """Not "no publisher" beside "2 publishers", while the last warning of the log is not yet old."""
    bench = make_bench(*LOCAL, use_sim_time=True)
    activate(bench)

    def texts():
        return [one for one in bench.statuses[-1][1].split("nothing has arrived on ") if "/clock (" in one]

    bench.wait(lambda: bench.statuses and texts(), "a warning about the clock")
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 7, "more than the time for which an event is shown")
    assert "no publisher of it was discovered" in texts()[0] and bench.count_logs("/clock (rosgraph_msgs") == 1
    clock = wait_for_publisher(bench, Clock, "clock", RELIABLE)
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert "publishers send nothing" in texts()[0] and "no publisher" not in texts()[0]
    monkeypatch.setattr(silence, "SILENCE", 3600.0)
    clock.publish(Clock(clock=bench.stamp(0)))
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert not texts()


def test_a_topic_on_which_nothing_has_arrived_yet_gets_twice_as_long(make_bench, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE", 3600.0)
    bench = make_bench(*LOCAL, scale__source="odometry")
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    silent = f"nothing has arrived on {bench.namespace}/"
    clocks = Clocks()
    monkeypatch.setattr(silence, "time", clocks)
    clocks.jump = 5000.0
    bench.wait_for_log(f"{silent}image", level=30)
    assert bench.count_logs(f"{silent}wheel_odometry") == 0
    clocks.jump = 8000.0
    bench.wait_for_log(f"{silent}wheel_odometry", level=30)


@pytest.mark.parametrize("every_frame", [True, False])
def test_a_camera_that_waits_for_a_slow_node_is_not_silent(make_bench, hold, monkeypatch, every_frame):
    monkeypatch.setattr(silence, "SILENCE", 3600.0)
    bench = make_bench(*LOCAL, every_frame=every_frame, use_sim_time=True, scale__source="odometry")
    for kind, topic in ((Clock, "clock"), (Odometry, "wheel_odometry")):
        wait_for_publisher(bench, kind, topic, RELIABLE)
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    monkeypatch.setattr(silence, "SILENCE", 0.2)
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 3, "diagnostics")
    assert bench.count_logs(f"nothing has arrived on {bench.namespace}/image") == 0
    # Sensors of a live robot do not wait.
    assert bench.count_logs("nothing has arrived on") == (0 if every_frame else 2)
    held.release()
    bench.wait_for("pose")
    line = bench.wait_for_log(f"nothing has arrived on {bench.namespace}/image", level=30)
    assert int(re.search(r"for (\d+) s", line)[1]) < 3, "counted from the end of the work"


class Losses:
    def __init__(self, total, change):
        self.total_count, self.total_count_change = total, change


@pytest.mark.parametrize("garbage", [18446744071562067968, 2**31, -1, 0])
def test_lost_messages_are_counted_without_numbers_that_cannot_be_true(make_bench, garbage, monkeypatch):
    """Some versions of the middleware report uninitialised numbers."""
    events = {}
    original = inputs.SubscriptionEventCallbacks

    def keep(**callbacks):
        events.update(callbacks)
        return original(**callbacks)

    monkeypatch.setattr(inputs, "SubscriptionEventCallbacks", keep)
    bench = make_bench()
    activate(bench)
    events["message_lost"](Losses(garbage, garbage))
    events["message_lost"](Losses(garbage, 3))
    assert bench.wait_for_log("images lost", level=30).startswith("3 images lost on the way")
    assert bench.current_diagnostics()["frames lost"] == "3"


class Clocks:
    """Both clocks of a process: they jump when it was stopped."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self):
        self.jump = 0.0

    def monotonic(self):
        return time.monotonic() + self.jump

    def clock_gettime(self, which):
        return time.clock_gettime(which) + self.jump


def test_a_node_that_was_stopped_does_not_blame_the_network(make_bench, monkeypatch):
    events, clocks = {}, Clocks()
    original = inputs.SubscriptionEventCallbacks
    monkeypatch.setattr(silence, "SILENCE", 5.0)
    monkeypatch.setattr(silence, "time", clocks)
    monkeypatch.setattr(stoppage, "time", clocks)
    monkeypatch.setattr(
        inputs, "SubscriptionEventCallbacks", lambda **callbacks: events.update(callbacks) or original(**callbacks)
    )
    bench = make_bench()
    activate(bench)
    bench.wait(lambda: len(bench.statuses) >= 2, "diagnostics")
    clocks.jump = 60.0
    events["message_lost"](Losses(40, 40))
    assert re.match(r"the node did not run for 6\d s: it was stopped", bench.wait_for_log("did not run for", level=30))
    assert bench.wait_for_log("images lost", level=30) == "40 images lost while the node did not run"
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    assert bench.count_logs("nothing has arrived") == bench.count_logs("Fast DDS") == 0
    assert bench.current_diagnostics()["frames lost"] == "40"
    monkeypatch.setattr(silence, "SILENCE", 0.0)
    bench.wait_for_log("nothing has arrived on", level=30)  # silence after it is reported as ever


def test_outputs_of_the_node_are_not_named_as_its_input(make_bench):
    bench = make_bench()
    activate(bench)
    bench.wait(lambda: bench.node.count_publishers(f"{bench.name}/depth"), "discovery")
    line = bench.wait_for_log("nothing has arrived on", level=30)
    assert "/depth" not in line and "no topic of this ROS domain has the type sensor_msgs/msg/Image" in line


def test_outputs_of_another_camera_are_not_named_and_drivers_come_first(make_bench):
    rear = make_bench()
    assert rear.change_state("configure")
    bench = make_bench()
    names = [f"{bench.namespace}/{name}" for name in ("a/view", "b/image_rect", "c/image_raw")]
    drivers = [rclpy.create_node("driver", namespace=name, context=bench.context) for name in names]
    for driver, name in zip(drivers, names, strict=True):
        driver.create_publisher(Image, name, RELIABLE)
    topics = (f"{rear.name}/confidence", *names)
    bench.wait(lambda: all(bench.node.count_publishers(topic) for topic in topics), "discovery")
    found = silence.other_topics(bench.node, f"{bench.namespace}/image", "sensor_msgs/msg/Image")
    for driver in drivers:
        driver.destroy_node()
    assert [topic for topic in found if topic in topics] == names[::-1]
    wheels = bench.probe.create_publisher(Odometry, "odometry", RELIABLE)  # also the name of one of our outputs
    bench.wait(lambda: bench.node.count_publishers(wheels.topic_name), "discovery")
    odometry = silence.other_topics(bench.node, "/wheel_odometry", "nav_msgs/msg/Odometry")
    assert wheels.topic_name in odometry and f"{rear.name}/odometry" not in odometry


def test_a_driver_that_has_ended_and_images_of_a_replay(make_bench, monkeypatch):
    monkeypatch.setattr(silence, "REPEAT", 0.0)
    bench = make_bench()
    bench.start("pose")
    bench.send(0)
    bench.wait_for("pose")
    others = ("rear/image_raw", "/raymap3r_replay/image")
    rear, played = (wait_for_publisher(bench, Image, name, RELIABLE).topic_name for name in others)
    bench.probe.destroy_publisher(bench.publishers["image"])
    line = bench.wait_for_log("its publisher has ended or is out of reach: start it again", level=30)
    assert f"nothing has arrived on {bench.namespace}/image" in line and "remap" not in line
    found = silence.other_topics(bench.node, f"{bench.namespace}/image", "sensor_msgs/msg/Image")
    assert rear in found and played not in found


def test_several_publishers_of_an_input_are_named(make_bench):
    bench = make_bench()
    drivers = [rclpy.create_node(name, namespace=bench.namespace, context=bench.context) for name in ("front", "rear")]
    for driver in drivers:
        driver.create_publisher(Image, "image", RELIABLE)
    bench.wait(lambda: bench.node.count_publishers(f"{bench.namespace}/image") == 2, "discovery")
    activate(bench)
    text = f"{bench.namespace}/image has 2 publishers: {bench.namespace}/front, {bench.namespace}/rear"
    assert "their messages are mixed; end all but one" in bench.wait_for_log(text, level=30)
    # As long as it holds, also after the time for which other warnings are shown.
    bench.wait(lambda: sum(text in line and level == WARN for level, line in bench.statuses) > 1, "diagnostics")
    drivers.pop().destroy_node()
    bench.wait(lambda: bench.node.count_publishers(f"{bench.namespace}/image") == 1, "discovery")
    assert not PublisherWatch(bench.node).mixed(bench.node.subscriptions)
    drivers.pop().destroy_node()


def test_a_driver_that_was_started_again_is_one_publisher(make_bench):
    # Its predecessor, which was killed, is in the graph until its lease ends.
    bench = make_bench()
    drivers = [rclpy.create_node("driver", namespace=bench.namespace, context=bench.context) for _ in range(2)]
    for driver in drivers:
        driver.create_publisher(Image, "image", RELIABLE)
    bench.wait(lambda: bench.node.count_publishers(f"{bench.namespace}/image") == 2, "discovery")
    activate(bench)
    watch = PublisherWatch(bench.node)

    def mixed(now):
        return watch.mixed(bench.node.subscriptions, now)

    assert not mixed(0.0) and not mixed(LEASE - 1)
    assert f"{bench.namespace}/image has 2 publishers" in mixed(LEASE)
    other = rclpy.create_node("other", namespace=bench.namespace, context=bench.context)
    other.create_publisher(Image, "image", RELIABLE)
    bench.wait(lambda: bench.node.count_publishers(f"{bench.namespace}/image") == 3, "discovery")
    assert "has 2 publishers" in PublisherWatch(bench.node).mixed(bench.node.subscriptions, 0.0)
    for driver in (*drivers, other):
        driver.destroy_node()


def test_images_of_two_cameras_on_one_topic_are_reported_once(make_bench):
    bench = make_bench()
    bench.start("pose")
    for index in range(12):
        bench.send(index / 10, frame_id=f"camera{index % 2}")
        bench.wait_for("pose", index + 1)
    text = "the images alternate between the frame_ids 'camera0' (64x48), 'camera1' (64x48)"
    bench.wait_for_log(text, level=30)
    bench.wait(lambda: any(text in line and level == WARN for level, line in bench.statuses), "diagnostics")
    assert sum(text in line for _, line in bench.logs) == 1
