"""Sends transforms that change to /tf."""

from __future__ import annotations

from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage


class TransformBroadcaster:
    """Publishes to /tf. `qos`: a profile or a history depth; reliable with depth 100 by default."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None):
        self.pub_tf = node.create_publisher(TFMessage, "/tf", qos if qos is not None else QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        """Send one transform, or several in one message."""
        self.pub_tf.publish(TFMessage(transforms=as_list(transform)))


def as_list(transform: TransformStamped | Iterable[TransformStamped]) -> list[TransformStamped]:
    """One transform or several, as a list."""
    return [transform] if isinstance(transform, TransformStamped) else list(transform)
