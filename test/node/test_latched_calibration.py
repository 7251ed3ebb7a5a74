"""Calibrations from drivers that publish camera_info once and latch it, over real DDS."""

from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from raymap3r_ros.node.diagnostics import Monitor

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
VOLATILE = QoSProfile(depth=1)


def info(bench, focal, time=0.0):
    k = [focal, 0.0, 33.0, 0.0, focal, 22.0, 0.0, 0.0, 1.0]
    return CameraInfo(k=k, width=64, height=48, header=Header(stamp=bench.stamp(time)))


def driver(bench, qos, focal):
    """A publisher of camera_info that has published this focal length."""
    publisher = bench.probe.create_publisher(CameraInfo, "camera_info", qos)
    publisher.publish(info(bench, focal))
    return publisher


def wait_for_drivers(bench, count):
    topic = f"{bench.namespace}/camera_info"
    bench.wait(lambda: bench.node.count_publishers(topic) == count, f"discovery of {count} drivers")


def wait_for_focal_length(bench, focal):
    bench.wait(
        lambda: bench.node.camera_info is not None and bench.node.camera_info.k[0] == focal, f"focal {focal}", 10
    )


def test_calibration_published_once_before_the_node_starts_is_used(make_bench):
    bench = make_bench(image_size=64, every_frame=True, update_rule="cut3r")
    driver(bench, LATCHED, 60.0)
    wait_for_drivers(bench, 1)
    bench.start("camera_info")
    wait_for_focal_length(bench, 60.0)
    bench.send(0)
    assert bench.wait_for("camera_info").k[0] == 60.0


def test_drivers_of_both_kinds_may_follow_each_other(make_bench):
    bench = make_bench()
    bench.start()
    for qos, focal in ((LATCHED, 60.0), (VOLATILE, 70.0), (LATCHED, 80.0)):
        one = driver(bench, qos, focal)  # published before the node discovers it
        if qos is VOLATILE:
            bench.wait(one.get_subscription_count, "match of the driver")
            one.publish(info(bench, focal))
        wait_for_focal_length(bench, focal)
        bench.probe.destroy_publisher(one)
        wait_for_drivers(bench, 0)


def test_each_message_is_received_once_from_drivers_of_both_kinds_at_once(make_bench, monkeypatch):
    received = []
    bench = make_bench()
    start = bench.stamp(0).sec
    monkeypatch.setattr(Monitor, "camera_info", lambda self, stamp: received.append(round(stamp - start)))
    latched = driver(bench, LATCHED, 60.0)
    wait_for_drivers(bench, 1)
    bench.start()
    wait_for_focal_length(bench, 60.0)
    for number in range(1, 4):
        latched.publish(info(bench, 60.0 + number, number))
        wait_for_focal_length(bench, 60.0 + number)
    other = bench.probe.create_publisher(CameraInfo, "camera_info", VOLATILE)
    bench.wait(other.get_subscription_count, "match of the other driver")
    bench.wait(latched.get_subscription_count, "match of the first driver")
    for number, publisher in ((4, other), (5, latched)):
        publisher.publish(info(bench, 60.0 + number, number))
        wait_for_focal_length(bench, 60.0 + number)
    assert received == [0, 1, 2, 3, 4, 5]
