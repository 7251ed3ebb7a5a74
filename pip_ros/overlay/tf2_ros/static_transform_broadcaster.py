"""Sends transforms that never change to /tf_static."""

from __future__ import annotations

from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from tf2_ros.transform_broadcaster import as_list


class StaticTransformBroadcaster:
    """Publishes to /tf_static, kept for late subscribers. `qos`: a profile or a history depth."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None):
        if qos is None:
            qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, history=HistoryPolicy.KEEP_LAST)
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", qos)
        self._transforms: dict[str, TransformStamped] = {}  # by child frame

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        """Send one transform or several, together with all that were sent before: only the last message is kept."""
        self._transforms.update((item.child_frame_id, item) for item in as_list(transform))
        self.pub_tf.publish(TFMessage(transforms=list(self._transforms.values())))
