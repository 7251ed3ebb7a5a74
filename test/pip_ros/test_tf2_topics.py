"""tf2_ros over DDS: /tf and /tf_static between two nodes, and the message type of other ROS 2 machines."""

import time

import pytest
import tf2_ros
from ament_index_python.packages import get_package_share_directory
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.time import Time

# Hash of the upstream tf2_msgs/msg/TFMessage. With another hash, other ROS 2 machines would not receive the messages.
TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
WAIT = Duration(seconds=20)


def transform(parent, child, stamp, x):
    msg = TransformStamped()
    msg.header.frame_id, msg.child_frame_id = parent, child
    msg.header.stamp = Time(nanoseconds=round(stamp * 1e9)).to_msg()
    msg.transform.translation.x = float(x)
    return msg


def wait_for(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within 20 s"
        time.sleep(0.01)


@pytest.fixture
def nodes(ros):
    pair = ros.create_node("sender"), ros.create_node("receiver")
    yield pair
    for node in pair:
        node.destroy_node()


def test_round_trip(nodes):
    sender, receiver = nodes
    static = tf2_ros.StaticTransformBroadcaster(sender)
    static.sendTransform(transform("base", "camera", 0, 100))
    static.sendTransform([transform("base", "lidar", 0, 200), transform("base", "camera", 0, 300)])
    moving = tf2_ros.TransformBroadcaster(sender)
    buffer = tf2_ros.Buffer(node=receiver)
    transforms = tf2_ros.TransformListener(buffer, receiver, spin_thread=True)
    try:
        wait_for(lambda: moving.pub_tf.get_subscription_count() > 0, "subscriber of /tf")
        moving.sendTransform(transform("map", "base", 1, 1))
        moving.sendTransform((transform("map", "base", 2, 2), transform("map", "person", 2, -5)))
        # The static transforms were sent before the subscription. As in tf2_ros, the first of two stays.
        found = buffer.lookup_transform("map", "camera", Time(nanoseconds=1_500_000_000), WAIT)
        assert found.transform.translation.x == 101.5
        assert buffer.lookup_transform("lidar", "person", Time(), WAIT).transform.translation.x == -207
    finally:
        transforms.unregister()


def test_shutdown_while_a_transform_listener_spins(ros):
    node = ros.create_node("receiver")
    transforms = tf2_ros.TransformListener(tf2_ros.Buffer(), node, spin_thread=True)
    ros.shutdown()
    transforms.dedicated_listener_thread.join(20)
    assert not transforms.dedicated_listener_thread.is_alive()


def test_type_hash_is_upstreams(nodes):
    sender, receiver = nodes
    broadcaster = tf2_ros.TransformBroadcaster(sender)
    wait_for(lambda: receiver.get_publishers_info_by_topic("/tf"), "publisher of /tf")
    (info,) = receiver.get_publishers_info_by_topic("/tf")
    assert info.topic_type == "tf2_msgs/msg/TFMessage"
    assert str(info.topic_type_hash) == TYPE_HASH or info.topic_type_hash.value.hex() == TYPE_HASH[7:]
    assert broadcaster.pub_tf.topic_name == "/tf"


def test_ament_index_needs_no_variable_from_the_user():
    assert get_package_share_directory("tf2_msgs").endswith("share/tf2_msgs")


def test_a_flood_of_hostile_transforms_is_logged_in_few_short_lines(capfd):
    buffer = tf2_ros.Buffer()
    for index in range(3000):
        message = transform(f"a\x1b[2J\n{index}", f"b{index}{'x' * 200}", 5, float("nan"))
        buffer.set_transform(message, "peer")
        buffer.set_transform(transform("map", "c" * 10**5, 5, 1), "peer")
        buffer.set_transform(transform("map", "base", 100 - index % 90, 1), "peer")
    output = "".join(capfd.readouterr())
    lines = [line for line in output.splitlines() if "tf2" in line]
    assert 3 <= len(lines) <= 12 and max(map(len, lines)) < 1200
    assert "\x1b[2J" not in output and r"a\x1b[2J\n0" in output
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("map", "c" * 10**5, Time())


def test_the_buffer_keeps_a_bounded_number_of_frames_and_transforms(monkeypatch):
    monkeypatch.setattr(tf2_ros.buffer_core, "MAX_FRAMES", 50)
    monkeypatch.setattr(tf2_ros.buffer_core, "MAX_SAMPLES", 100)
    buffer = tf2_ros.Buffer()
    for index in range(200):
        buffer.set_transform(transform("map", f"f{index}", 5, index), "peer")
    assert buffer.lookup_transform("map", "f48", Time()).transform.translation.x == 48
    with pytest.raises(tf2_ros.LookupException):
        buffer.lookup_transform("map", "f49", Time())
    for index in range(500):  # frames that exist are still updated
        buffer.set_transform(transform("map", "f0", 6 + index * 1e-3, index), "peer")
    assert buffer.lookup_transform("map", "f0", Time()).transform.translation.x == 499
    assert not buffer.can_transform("map", "f0", Time(nanoseconds=6_300_000_000))


def test_static_transforms_are_sent_together_and_never_replaced(nodes):
    static = tf2_ros.StaticTransformBroadcaster(nodes[0])
    static.sendTransform(iter([transform("base", "camera", 0, 1), transform("base", "camera", 0, 2)]))
    static.sendTransform(transform("other", "camera", 0, 3))
    static.sendTransform(transform("base", "lidar", 0, 4))
    sent = [
        (one.header.frame_id, one.child_frame_id, one.transform.translation.x) for one in static.net_message.transforms
    ]
    assert sent == [("base", "camera", 1.0), ("base", "lidar", 4.0)]
