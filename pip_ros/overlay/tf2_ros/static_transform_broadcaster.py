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
        self.net_message = TFMessage()
        self._child_frame_ids: set[str] = set()

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        """Send one transform or several, together with all that were sent before: only the last message is kept.

        As in tf2_ros, a transform that was sent is never replaced: a second one for the same child is ignored.
        """
        for item in as_list(transform):
            if item.child_frame_id not in self._child_frame_ids:
                self._child_frame_ids.add(item.child_frame_id)
                self.net_message.transforms.append(item)
        self.pub_tf.publish(self.net_message)
