#!/usr/bin/env python3
"""The stream node and a node of one's own in one process, with one executor.

    python3 examples/two_nodes_one_process.py --ros-args -r image:=/camera/image_raw

What follows `--ros-args` holds for both nodes. Ctrl-C ends both in order.
"""

import math
import os
import signal
import sys
import threading

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from raymap3r_ros.node.dds_profile import profile_environment
from raymap3r_ros.node.executable import Executor
from raymap3r_ros.node.stream_node import StreamNode

UNKNOWN = 1e6  # variance of a twist with nothing behind it, as of the first image


class Watcher(Node):
    """Tells how far away the nearest thing ahead is that stands still, and how fast the camera moves."""

    def __init__(self) -> None:
        super().__init__("watcher")
        self._speed = math.nan
        self.create_subscription(Odometry, "raymap3r/odometry", self._on_odometry, 10)
        # Images come best effort: who asks for reliable ones gets none.
        self.create_subscription(Image, "raymap3r/depth_static", self._on_depth, qos_profile_sensor_data)

    def _on_odometry(self, message: Odometry) -> None:
        velocity = message.twist.twist.linear
        known = message.twist.covariance[0] < UNKNOWN
        self._speed = math.hypot(velocity.x, velocity.y, velocity.z) if known else math.nan

    def _on_depth(self, message: Image) -> None:
        depth = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        rows, columns = message.height // 3, message.width // 3
        ahead = depth[rows : 2 * rows, columns : 2 * columns]
        still = ahead[np.isfinite(ahead)]  # NaN: something moves there
        text = f"{np.percentile(still, 5):.3f} m to what stands still" if len(still) else "nothing ahead stands still"
        self.get_logger().info(f"{text}, at {self._speed:.2f} m/s", throttle_duration_sec=1.0)


def main() -> int:
    """Run both nodes until SIGINT or SIGTERM; 1 where the stream cannot start."""
    # rclpy's own handlers would take the context away while the stream still publishes.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # For RViz and others outside: Fast DDS loses large messages between processes otherwise.
    os.environ.update(profile_environment(os.environ))
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    stream, watcher = StreamNode(), Watcher()
    # A stream keeps up to four threads busy; what takes long in a node of one's own needs one more.
    executor = Executor(num_threads=5)
    for node in (stream, watcher):
        executor.add_node(node)

    started = stream.autostart()  # what the launch file or the life cycle's services do otherwise
    while started and not stop.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    stream.close()
    for node in (stream, watcher):
        node.destroy_node()
    rclpy.shutdown()
    return 0 if started else 1


if __name__ == "__main__":
    sys.exit(main())
