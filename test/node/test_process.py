"""The node as a process of its own: how it starts and how it ends."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from raymap3r_ros.node.conversions import image_message

LIMIT = 60.0


class Process:
    """The executable, with the lines that it prints."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "raymap3r_ros.node", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def wait_for(self, text):
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in line for line in self.lines), LIMIT), self.lines

    def end(self, number=None):
        """Send a signal, if one is given; the exit status."""
        if number is not None:
            self._process.send_signal(number)
        try:
            status = self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._reader.join(LIMIT)
        return status


@pytest.fixture
def start():
    started = []

    def make(*arguments):
        started.append(Process(*arguments))
        return started[-1]

    yield make
    for process in started:
        process.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly_in_the_middle_of_a_stream(start, ros, root, number):
    parameters = str(root / "config" / "stream.yaml")
    process = start("--autostart", "--ros-args", "-r", "__ns:=/ending", "--params-file", parameters)
    node = rclpy.create_node("camera")
    poses = []
    node.create_subscription(PoseStamped, "/ending/raymap3r/pose", poses.append, 10)
    camera = node.create_publisher(Image, "/ending/image", QoSProfile(depth=1))
    process.wait_for("active: newest frame of /ending/image")
    while len(poses) < 3:
        now = node.get_clock().now().to_msg()
        camera.publish(image_message(Header(stamp=now), np.full((48, 64, 3), 100, np.uint8), "rgb8"))
        rclpy.spin_once(node, timeout_sec=0.1)
    assert process.end(number) == 0
    node.destroy_node()
    text = "\n".join(process.lines)
    assert "Traceback" not in text and "exception" not in text.lower(), text
    assert "[ERROR]" not in text, text


def test_autostart_that_fails_is_one_line_and_an_exit_status(start):
    process = start("--autostart", "--ros-args", "-p", "checkpoint:=/nowhere/weights.safetensors")
    assert process.end() == 1
    errors = [line for line in process.lines if "[ERROR]" in line]
    assert len(errors) == 1
    assert "configure failed: checkpoint '/nowhere/weights.safetensors' is not a file" in errors[0]
    assert not any("Traceback" in line for line in process.lines)


def test_parameter_file_that_is_not_there_is_told_without_a_traceback(start):
    process = start("--ros-args", "--params-file", "/nowhere/stream.yaml")
    assert process.end() == 2
    assert "/nowhere/stream.yaml" in process.lines[-1]
    assert not any("Traceback" in line for line in process.lines)
