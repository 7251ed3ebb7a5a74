"""The node under load over real DDS: which images are processed, and how dropped images are reported."""

import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from topic_helpers import WIDTH, image

from raymap3r_ros.node.frame_queue import QUEUE_DEPTH


@pytest.fixture
def make_bench(make_bench):
    """A bench whose network input has the size of the images sent."""
    return lambda **parameters: make_bench(**{"image_size": WIDTH, **parameters})


def test_newest_frame_is_processed_and_dropped_frames_are_counted(make_bench, hold):
    bench = make_bench()
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for index in range(1, 6):
        bench.send(index)
        # One at a time, so that DDS, whose queue depth is 1 too, does not drop any itself.
        bench.wait_for_arrival()
    held.release()
    bench.wait_for("pose", 2)
    bench.wait_for_diagnostics("frames dropped", 4)
    bench.wait_for_diagnostics("frames out", 2)
    assert bench.times("pose") == [0.0, 0.5]


def test_dropped_frame_does_not_hide_a_jump(make_bench, hold):
    bench = make_bench()
    bench.start("trajectory")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for time in (50.0, 50.1):
        bench.send(1, time=time)
        bench.wait_for_arrival()
    held.release()
    assert len(bench.wait_for("trajectory", 2).poses) == 1


def test_every_frame_is_processed_in_order(make_bench, hold):
    bench = make_bench(every_frame=True)
    bench.start("pose")
    held = hold(bench)
    for index in range(20):
        bench.send(index)
    held.release()
    bench.wait_for("pose", 20)
    assert bench.times("pose") == [index / 10 for index in range(20)]
    bench.wait_for_diagnostics("frames out", 20)
    assert (bench.diagnostics["frames dropped"], bench.diagnostics["frames lost"]) == ("0", "0")


def test_full_queue_is_reported_as_an_error(make_bench, hold):
    bench = make_bench(every_frame=True, max_gap=1000.0)
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    for index in range(1, QUEUE_DEPTH + 4):
        bench.send(index)
    bench.wait_for_log("the queue of 100 frames is full: frames are lost", level=40)
    bench.wait_for_diagnostics("frames lost", 3)
    bench.wait(lambda: any(level == b"\x02" for level, _ in bench.statuses), "error in the diagnostics")
    # Deactivation does not process the waiting frames.
    held.release(1)
    assert bench.change_state("deactivate")
    bench.wait_for_log("100 waiting frames not processed", level=30)


def test_callbacks_do_not_wait_for_the_network(make_bench, hold):
    bench = make_bench()
    bench.start("pose")
    held = hold(bench)
    bench.send(0)
    held.wait_until_inside()
    assert bench.state() == "active"
    assert bench.set_parameter("mask.high", 7.0).successful
    assert bench.reset().success
    count = len(bench.statuses)
    bench.wait(lambda: len(bench.statuses) >= count + 2, "diagnostics")
    bench.send(1)
    bench.wait_for_diagnostics("frames in", 2)
    assert not bench.messages["pose"]
    held.release()
    bench.wait_for("pose", 2)


def test_images_of_a_best_effort_camera_are_received(make_bench):
    bench = make_bench()
    bench.start("pose")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    camera = bench.probe.create_publisher(Image, "image", qos)
    bench.wait(camera.get_subscription_count, "match of image")
    message = image()
    message.header.stamp.sec = 1
    bench.wait(lambda: camera.publish(message) or bench.messages["pose"], "pose from a best effort camera")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rclpy")
def test_best_effort_camera_with_every_frame_is_a_warning(make_bench):
    bench = make_bench(every_frame=True)
    bench.start()
    bench.probe.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    bench.wait_for_log("offering incompatible QoS", level=30)
