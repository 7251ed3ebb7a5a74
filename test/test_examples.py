"""The examples in examples/ and docs/ros.md run as documented, in separate processes and over DDS."""

import itertools
import math
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import GetParameters
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from raymap3r_ros.clients.clips import rendered_room
from raymap3r_ros.node.conversions import image_message

LIMIT = 60.0  # seconds; only a failing test waits this long
EXAMPLE = "two_nodes_one_process.py"


class Process:
    """A Python process and its output."""

    def __init__(self, *command):
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._queue = queue.SimpleQueue()
        self._reader = threading.Thread(target=lambda: [self._queue.put(line) for line in self._process.stdout])
        self._reader.start()
        self._lines = []

    def lines(self, text=""):
        """The lines so far that contain this text."""
        while not self._queue.empty():
            self._lines.append(self._queue.get().rstrip())
        return [line for line in self._lines if text in line]

    def end(self, number=None):
        """Send a signal if one is given, wait for the end, and return the exit status."""
        if number is not None:
            self._process.send_signal(number)
        try:
            return self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._reader.join(LIMIT)


@pytest.fixture
def start():
    started = []

    def make(*command):
        started.append(Process(*command))
        return started[-1]

    yield make
    for process in started:
        process.end(signal.SIGKILL)


@pytest.fixture
def camera(ros):
    node = rclpy.create_node("camera")
    yield node
    node.destroy_node()


@pytest.fixture(scope="module")
def clip():
    return rendered_room(20, (48, 64))


def sender(node, clip, *namespaces):
    """Return a function that sends the next image of the clip to each namespace, stamped with the current time."""
    publishers = [node.create_publisher(Image, f"/{name}/image", QoSProfile(depth=1)) for name in namespaces]
    images = itertools.cycle(clip)

    def send():
        header = Header(stamp=node.get_clock().now().to_msg(), frame_id="eye")
        image = next(images)
        for publisher in publishers:
            publisher.publish(image_message(header, image, "rgb8"))

    return send


def wait(node, condition, what, otherwise=lambda: None):
    """Spin a node until the condition holds; `otherwise` is called in each turn until then."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT:.0f} s"
        otherwise()
        rclpy.spin_once(node, timeout_sec=0.05)


def assert_quiet(process):
    text = "\n".join(process.lines())
    assert "Traceback" not in text and "exception" not in text.lower() and "[ERROR]" not in text, text


def test_two_nodes_share_a_process_and_end_cleanly(start, camera, clip, root):
    process = start(root / "examples" / EXAMPLE, "--ros-args", "-r", "__ns:=/shared", "-p", "device:=cpu")
    depths, odometry = [], []
    camera.create_subscription(Image, "/shared/raymap3r/depth_static", depths.append, qos_profile_sensor_data)
    camera.create_subscription(Odometry, "/shared/raymap3r/odometry", odometry.append, 10)
    wait(camera, lambda: process.lines("active: newest frame of /shared/image"), "start")
    send = sender(camera, clip, "shared")
    wait(camera, lambda: len(process.lines(" m/s")) >= 3, "three lines of the watcher", send)
    assert process.end(signal.SIGINT) == 0
    assert_quiet(process)

    # The watcher logs the nearest static depth in the middle and the speed, both as received here.
    distances, speeds = set(), {"nan"}
    for depth in depths:
        middle = np.frombuffer(depth.data, np.float32).reshape(96, 128)[32:64, 42:85]
        distances.add(f"{np.nanpercentile(middle, 5):.3f}")
    for one in odometry:
        velocity = one.twist.twist.linear
        speeds.add(f"{math.sqrt(velocity.x**2 + velocity.y**2 + velocity.z**2):.2f}")
    pattern = r"watcher\]: (.+) m to the nearest static object, at (.+) m/s"
    logged = [re.search(pattern, line) for line in process.lines(" m/s")]
    assert all(logged)
    # The first frames may be published before the node discovers this test's subscriptions.
    assert any(one[1] in distances and one[2] in speeds - {"nan"} for one in logged)


def test_a_stream_that_cannot_start_ends_with_an_exit_status(start, root):
    process = start(root / "examples" / EXAMPLE, "--ros-args", "-p", "checkpoint:=/nowhere/weights.safetensors")
    assert process.end() == 1
    assert process.lines("configure failed: checkpoint '/nowhere/weights.safetensors' is not a file")
    assert not process.lines("Traceback")


def test_two_cameras_in_one_process_with_the_parameter_file_of_the_docs(start, camera, clip, root, tmp_path):
    section = (root / "docs" / "ros.md").read_text().partition("## Many cameras")[2].partition("\n## ")[0]
    file = tmp_path / "my.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
    process = start(
        "-m", "raymap3r_ros.node", "--autostart", "--cameras", "front,rear", "--ros-args", "--params-file", file,
        "-p", "device:=cpu",
    )  # fmt: skip
    depths = {name: [] for name in ("front", "rear")}
    for name, received in depths.items():
        camera.create_subscription(Image, f"/{name}/raymap3r/depth", received.append, qos_profile_sensor_data)
    wait(camera, lambda: len(process.lines("active: newest frame of /")) == 2, "start")
    send = sender(camera, clip, *depths)
    wait(camera, lambda: all(depths.values()), "depth of both", send)

    names = ["publish_tf", "tf_mode"]
    for name, publishes in (("front", True), ("rear", False)):
        client = camera.create_client(GetParameters, f"/{name}/raymap3r/get_parameters")
        assert client.wait_for_service(LIMIT)
        response = client.call_async(GetParameters.Request(names=names))
        wait(camera, response.done, "response")
        publish_tf, tf_mode = response.result().values
        assert (publish_tf.bool_value, tf_mode.string_value) == (publishes, "base")
    assert process.end(signal.SIGINT) == 0
    assert_quiet(process)
