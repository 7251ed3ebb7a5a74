"""The launch file, run by launch itself; skipped where no ROS distribution supplies it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution")

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

LIMIT = 60.0  # seconds
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [argument.split(":=") for argument in sys.argv[2:]]
service = LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


@pytest.fixture
def launch(root):
    try:
        executable = Path(get_package_prefix("raymap3r_ros"), "lib", "raymap3r_ros", "stream")
    except PackageNotFoundError:
        pytest.skip("the package is not installed as a ROS package")
    if not executable.exists():
        pytest.skip("installed by pip, which puts no executable where launch looks for it")
    started = []

    def make(*arguments):
        command = [sys.executable, "-c", LAUNCH, str(root / "launch" / "stream.launch.py"), *arguments]
        # A session of its own, so that it can be interrupted as a terminal does: the whole group at once.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield make
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT)


def lines_until(process, text):
    """What launch says up to a line with this text; launch is killed where it does not say it in time."""
    lines = []
    killer = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
    finally:
        killer.cancel()
    raise AssertionError(f"launch ended without {text!r}: {''.join(lines)}")


def test_launch_configures_and_activates(launch):
    process = launch("namespace:=launched", "image:=/eye/image_raw", "device:=cpu")
    lines_until(process, "active: newest frame of /eye/image_raw")
    os.killpg(process.pid, signal.SIGINT)
    # Not up to the end of launch, which now and then waits for something else for ever.
    assert "Traceback" not in lines_until(process, "process has finished cleanly")


def test_launch_tells_what_is_wrong(launch):
    process = launch("checkpoint:=/nowhere.pth")
    out = process.communicate(timeout=LIMIT)[0]
    assert "configure failed: checkpoint '/nowhere.pth' is not a file" in out
    assert "Traceback" not in out


def test_a_parameter_file_that_is_not_there_is_an_error(launch):
    out = launch("params_file:=/nowhere.yaml").communicate(timeout=LIMIT)[0]
    assert "params_file is '/nowhere.yaml', which is not a file" in out


def test_arguments_are_checked(launch):
    out = launch("autostart:=perhaps").communicate(timeout=LIMIT)[0]
    assert 'provided value "perhaps" is not valid' in out
