"""The node as a separate process: start and shutdown."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import GetState
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from raymap3r_ros.node.conversions import image_message

LIMIT = 60.0


class Process:
    """A process that runs the executable, and the lines that it prints."""

    def __init__(self, *arguments, run=("-m", "raymap3r_ros.node")):
        # Recording frames takes seconds.
        command = [sys.executable, *run, *arguments, "--ros-args", "-p", "execution:=plain"]
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

    def is_running(self):
        return self._process.poll() is None

    def end(self, number=None):
        """Send a signal, if one is given; returns the exit status."""
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

    def make(*arguments, **options):
        started.append(Process(*arguments, **options))
        return started[-1]

    yield make
    for process in started:
        process.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_the_middle_of_a_stream_ends_the_process_cleanly(start, ros, root, number):
    parameters = str(root / "config" / "stream.yaml")
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored in tests under nohup
    process = start("--autostart", "--ros-args", "-r", "__ns:=/ending", "--params-file", parameters)
    signal.signal(signal.SIGHUP, hangup)
    node = rclpy.create_node("camera")
    poses = []
    node.create_subscription(PoseStamped, "/ending/raymap3r/pose", poses.append, 10)
    camera = node.create_publisher(Image, "/ending/image", QoSProfile(depth=1))
    process.wait_for("active: newest frame of /ending/image")
    deadline = time.monotonic() + LIMIT
    while len(poses) < 3:
        assert time.monotonic() < deadline, process.lines
        now = node.get_clock().now().to_msg()
        camera.publish(image_message(Header(stamp=now), np.resize(np.uint8([80, 140]), (48, 64, 3)), "rgb8"))
        rclpy.spin_once(node, timeout_sec=0.1)
    assert process.end(number) == 0
    node.destroy_node()
    text = "\n".join(process.lines)
    assert "Traceback" not in text and "exception" not in text.lower(), text
    assert "[ERROR]" not in text, text


def test_failed_autostart_prints_one_line_and_exits_with_status_1(start):
    process = start("--autostart", "--ros-args", "-p", "checkpoint:=/nowhere/weights.safetensors")
    assert process.end() == 1
    errors = [line for line in process.lines if "[ERROR]" in line]
    assert len(errors) == 1
    assert "configure failed: checkpoint '/nowhere/weights.safetensors' is not a file" in errors[0]
    assert not any("Traceback" in line for line in process.lines)


def test_missing_parameter_file_is_reported_without_a_traceback(start):
    process = start("--ros-args", "--params-file", "/nowhere/stream.yaml")
    assert process.end() == 2
    assert "/nowhere/stream.yaml" in process.lines[-1]
    assert not any("Traceback" in line for line in process.lines)


def test_parameter_file_for_another_node_is_one_warning(start, tmp_path):
    file = tmp_path / "stream.yaml"
    file.write_text("raymap3:\n  ros__parameters:\n    checkpoint: mini\n")
    process = start("--autostart", "--ros-args", "--params-file", str(file), "-p", "checkpoint:=/nowhere")
    assert process.end() == 1
    (line,) = (line for line in process.lines if "[WARN]" in line)
    assert f"{file} has no effect" in line and line.endswith("rename /raymap3 to /raymap3r, or to /**")


@pytest.mark.parametrize("text", ["raymap3r:\n  rate: 1\n", "raymap3r:\n  ros_parameters:\n    rate: 1\n"])
def test_parameter_file_of_another_form_is_an_error_with_the_form(start, tmp_path, text):
    file = tmp_path / "stream.yaml"
    file.write_text(text)
    process = start("--ros-args", "--params-file", str(file))
    assert process.end() == 2
    assert str(file) in process.lines[-2] and "below it ros__parameters with the parameters" in process.lines[-1]
    assert not any("Traceback" in line for line in process.lines)


BROKEN = """
import sys
from raymap3r_ros.node import conversions, executable

def break_down(message):
    raise ZeroDivisionError("as a test")

conversions.check_image = break_down
sys.exit(executable.main())
"""


def test_error_in_a_callback_is_logged_once_and_the_process_continues(start, ros):
    process = start("--autostart", "--ros-args", "-r", "__ns:=/broken", run=("-c", BROKEN))
    process.wait_for("active: newest frame of /broken/image")
    node = rclpy.create_node("camera")
    camera = node.create_publisher(Image, "/broken/image", QoSProfile(depth=1))
    deadline = time.monotonic() + LIMIT
    while not any("as a test" in line for line in process.lines) and time.monotonic() < deadline:
        camera.publish(Image())  # the first may be sent before discovery
        rclpy.spin_once(node, timeout_sec=0.1)
    camera.publish(Image())
    client = node.create_client(GetState, "/broken/raymap3r/get_state")
    assert client.wait_for_service(LIMIT)
    future = client.call_async(GetState.Request())
    rclpy.spin_until_future_complete(node, future, timeout_sec=LIMIT)
    assert future.result().current_state.label == "active"
    node.destroy_node()
    assert process.end(signal.SIGINT) == 0
    text = "\n".join(process.lines)
    assert "the callback of image failed: ZeroDivisionError: as a test" in text
    assert text.count("Traceback") == 1 and ", in break_down" in text, text


def test_cameras_keep_their_namespaces_under_a_remapping_of_the_process(start, ros):
    """PushRosNamespace of launch adds such a remapping, which would give all cameras the same namespace."""
    process = start(
        "--autostart", "--cameras", "front,rear", "--ros-args", "-r", "__ns:=/robot", "-p", "checkpoint:=mini"
    )
    node = rclpy.create_node("caller")
    for name in ("front", "rear"):
        process.wait_for(f"active: newest frame of /{name}/image")
        client = node.create_client(GetState, f"/{name}/raymap3r/get_state")
        assert client.wait_for_service(LIMIT)
        for _ in range(6):  # a response that is sent before the node has discovered the client is lost
            future = client.call_async(GetState.Request())
            rclpy.spin_until_future_complete(node, future, timeout_sec=LIMIT / 6)
            if future.done():
                break
        assert future.result().current_state.label == "active"
    assert not [one for one in node.get_node_names_and_namespaces() if one[1].startswith("/robot")]
    node.destroy_node()
    assert process.end(signal.SIGINT) == 0
