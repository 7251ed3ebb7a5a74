#!/usr/bin/env python3
"""The stream node and a node of your own in one process, with one executor.

    python3 examples/two_nodes_one_process.py --ros-args -r image:=/camera/image_raw

Arguments after `--ros-args` apply to both nodes. Ctrl-C ends both in order.
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

UNKNOWN = 1e6  # variance of an unknown twist, such as that at the first image


class Watcher(Node):
    """Logs the distance to the nearest static object ahead and the speed of the camera."""

    def __init__(self) -> None:
        super().__init__("watcher")
        self._speed = math.nan
        self.create_subscription(Odometry, "raymap3r/odometry", self._on_odometry, 10)
        # Images are published best effort: a reliable subscription receives none.
        self.create_subscription(Image, "raymap3r/depth_static", self._on_depth, qos_profile_sensor_data)

    def _on_odometry(self, message: Odometry) -> None:
        velocity = message.twist.twist.linear
        known = message.twist.covariance[0] < UNKNOWN
        self._speed = math.hypot(velocity.x, velocity.y, velocity.z) if known else math.nan

    def _on_depth(self, message: Image) -> None:
        depth = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        rows, columns = message.height // 3, message.width // 3
        ahead = depth[rows : 2 * rows, columns : 2 * columns]
        static = ahead[np.isfinite(ahead)]  # NaN: moving or unknown
        text = f"{np.percentile(static, 5):.3f} m to the nearest static object" if len(static) else "no static object"
        self.get_logger().info(f"{text}, at {self._speed:.2f} m/s", throttle_duration_sec=1.0)


def main() -> int:
    """Run both nodes until SIGINT or SIGTERM; return 1 if the stream cannot start."""
    # rclpy's own handlers shut the context down while the stream still publishes.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # For RViz and other processes: without the profile, Fast DDS loses large messages between processes.
    os.environ.update(profile_environment(os.environ))
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    stream, watcher = StreamNode(), Watcher()
    # A stream uses up to four threads; add one for each long callback of your own nodes.
    executor = Executor(num_threads=5)
    for node in (stream, watcher):
        executor.add_node(node)

    started = stream.autostart()  # instead of the launch file or the lifecycle services
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
