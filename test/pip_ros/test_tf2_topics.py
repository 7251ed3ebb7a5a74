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
        # The static transforms were sent before the subscription. The later of two for the same frame is valid.
        found = buffer.lookup_transform("map", "camera", Time(nanoseconds=1_500_000_000), WAIT)
        assert found.transform.translation.x == 301.5
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
