"""The launch files, run by ROS 2 launch; skipped if launch is not installed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution")

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

LIMIT = 60.0  # seconds
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [argument.split(":=", 1) for argument in sys.argv[2:]]
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
        pytest.skip("installed by pip, which does not put the executable into lib/raymap3r_ros")
    started = []

    def make(*arguments, file="stream.launch.py"):
        command = [sys.executable, "-c", LAUNCH, str(root / "launch" / file), *arguments]
        # A new session, so that a signal can go to the whole process group, as Ctrl-C in a terminal does.
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
    """Output of launch up to a line with this text; kills launch if the line does not appear in time."""
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
    # Not up to the end of launch, which sometimes does not return.
    assert "Traceback" not in lines_until(process, "process has finished cleanly")


def test_launch_prints_the_error_of_the_node(launch):
    process = launch("checkpoint:=/nowhere.pth")
    out = process.communicate(timeout=LIMIT)[0]
    assert "configure failed: checkpoint '/nowhere.pth' is not a file" in out
    assert "Traceback" not in out


def test_missing_parameter_file_is_an_error(launch):
    out = launch("params_file:=/nowhere.yaml").communicate(timeout=LIMIT)[0]
    assert "params_file is '/nowhere.yaml', which is not a file" in out


def test_arguments_are_checked(launch):
    out = launch("autostart:=perhaps").communicate(timeout=LIMIT)[0]
    assert 'provided value "perhaps" is not valid' in out


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    sequence = suite_sequence("light", 0, world="one_room", size=(48, 64))
    folder = export_sequence(sequence, tmp_path_factory.mktemp("rendered"), "bag", max_frames=5, progress=False)
    return folder / "bag"


def test_replay_ends_by_itself_with_a_report(launch, bag, tmp_path):
    process = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", "rate:=0", "loop:=2", f"out:={tmp_path}", "namespace:=launched",
        "device:=cpu", file="replay.launch.py",
    )  # fmt: skip
    # Not up to the end of launch, for the same reason.
    text = lines_until(process, "process has finished cleanly") + lines_until(process, "process has finished cleanly")
    assert "playing /camera/image_raw" in text and "into /launched/raymap3r" in text
    assert "Traceback" not in text and "[ERROR]" not in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["complete"] and report["frames_processed"] == report["frames_sent"] == 10
    assert [world["frames"] for world in report["worlds"]] == [5, 5]


def test_replay_ends_if_the_node_cannot_start(launch, bag, tmp_path):
    out = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path}", "checkpoint:=/nowhere.pth",
        file="replay.launch.py",
    ).communicate(timeout=LIMIT)[0]  # fmt: skip
    assert "configure failed: checkpoint '/nowhere.pth' is not a file" in out
    assert "a new world starts" not in out


def test_replay_of_a_missing_bag_is_an_error(launch, tmp_path):
    out = launch("bag:=/nowhere", f"out:={tmp_path}", file="replay.launch.py").communicate(timeout=LIMIT)[0]
    assert "/nowhere: there is no such file or folder" in out and "process started" not in out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["rate:=fast"], "rate is 'fast'; allowed: a number"),
        (["rate:=-1"], "rate is -1.0; allowed range: 0.0 to 1000.0"),
        (["rate:=nan"], "rate is nan; allowed range"),
        (["loop:=1.5"], "loop is '1.5'; allowed: a whole number"),
        (["topic:="], "several image topics; choose one with topic:="),
        ([], "name another folder, or allow it with overwrite:=true"),
    ],
)
def test_replay_refuses_arguments_by_their_launch_names_before_anything_starts(
    launch, bag, tmp_path, arguments, error
):
    (tmp_path / "notes.txt").touch()
    arguments = [f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path}", *arguments]
    out = launch(*arguments, file="replay.launch.py").communicate(timeout=LIMIT)[0]
    assert error in out and "--" not in out and "process started" not in out


def test_errors_of_the_player_name_launch_arguments(launch, tmp_path):
    """For instance the topic for scale.source, which is known only when the node runs."""
    parameters = tmp_path / "stream.yaml"
    parameters.write_text('"/**":\n  ros__parameters:\n    checkpoint: mini\n    scale.source: range\n')
    sequence = suite_sequence("light", 0, world="one_room", size=(48, 64))
    bag = export_sequence(sequence, tmp_path, "bag", max_frames=2, progress=False) / "bag"
    process = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path / 'out'}", f"params_file:={parameters}",
        "device:=cpu", file="replay.launch.py",
    )  # fmt: skip
    text = lines_until(process, "raymap3r: error")
    assert "select its topic with range:=;" in text and "--" not in text
