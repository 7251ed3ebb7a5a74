"""The launch files, run by ROS 2 launch; skipped if launch is not installed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS distribution")

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.launch_description_sources import get_launch_description_from_python_launch_file as load

from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.options import option_fields
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

LIMIT = 60.0  # seconds
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [argument.split(":=", 1) for argument in sys.argv[2:]]
service = LaunchService(argv=sys.argv[2:])
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

    def make(*arguments, file="stream.launch.py", prefix=None):
        command = [sys.executable, "-c", LAUNCH, str(root / "launch" / file), *arguments]
        environment = dict(os.environ)
        if prefix:  # before all others, so that its packages are found first
            environment["AMENT_PREFIX_PATH"] = f"{prefix}:{environment['AMENT_PREFIX_PATH']}"
        # A new session, so that a signal can go to the whole process group, as Ctrl-C in a terminal does.
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
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


def package_in(prefix, name, executable=None, script='echo "arguments: $*"'):
    """A ROS package in a folder; its executable prints its arguments and ends. None: the package has none."""
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True, exist_ok=True)
    (index / name).touch()
    if executable:
        file = prefix / "lib" / name / executable
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    return prefix


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


MAPPERS = {"rtabmap": ("rtabmap_slam", "rtabmap"), "nvblox": ("nvblox_ros", "nvblox_node")}
MAPPERS["octomap"] = ("octomap_server", "octomap_server_node")


@pytest.mark.parametrize("file", ["stream", *MAPPERS])
def test_launch_ends_with_an_error_if_the_node_fails(launch, tmp_path, file):
    """RViz or the mapper, which run on by themselves, end too."""
    package, executable = MAPPERS.get(file, ("rviz2", "rviz2"))
    prefix = package_in(tmp_path, package, executable, "exec sleep 1000")
    arguments = ["checkpoint:=/nowhere.pth", *(["rviz:=true"] if file == "stream" else [])]
    process = launch(*arguments, file=f"{file}.launch.py", prefix=prefix)
    out = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1, out
    assert "configure failed: checkpoint '/nowhere.pth' is not a file" in out
    assert re.search(r"stream-\d has failed with status 1, the launch ends; its own message is above", out)
    assert len(re.findall(r"process started with pid", out)) == 2


def test_launch_ends_with_an_error_if_the_mapper_fails(launch, tmp_path):
    prefix = package_in(tmp_path, "octomap_server", "octomap_server_node", "exit 3")
    process = launch("device:=cpu", file="octomap.launch.py", prefix=prefix)
    out = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1, out
    assert re.search(r"octomap_server_node-\d has failed with status 3, the launch ends", out)
    assert re.search(r"stream-\d\]: process has (finished|died)", out), "a node is left"


def test_a_failed_node_does_not_end_the_launch_of_another_package(launch, root, tmp_path):
    file = tmp_path / "robot.launch.py"
    file.write_text(f"""
from launch import LaunchDescription
from launch.actions import ExecuteProcess, IncludeLaunchDescription, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource

def generate_launch_description():
    source = PythonLaunchDescriptionSource({str(root / "launch" / "stream.launch.py")!r})
    stream = IncludeLaunchDescription(source, launch_arguments={{"checkpoint": "/nowhere.pth"}}.items())
    after = ExecuteProcess(cmd=["echo", "the robot", "continues"], output="screen")
    after = OnProcessExit(on_exit=[after], handle_once=True)
    return LaunchDescription([RegisterEventHandler(after), stream])
""")
    process = launch(file=file)
    out = process.communicate(timeout=LIMIT)[0]
    assert "configure failed" in out and "the robot continues" in out and "the launch ends" not in out
    assert process.returncode == 0


def test_missing_parameter_file_is_an_error(launch):
    out = launch("params_file:=/nowhere.yaml").communicate(timeout=LIMIT)[0]
    assert "params_file is '/nowhere.yaml', which is not a file" in out


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("autostart:=perhaps", 'Argument "autostart" provided value "perhaps" is not valid'),
        ("use_sim_time:=yes", 'Argument "use_sim_time" provided value "yes" is not valid'),
        ("points.static_only:=1", 'Argument "points.static_only" provided value "1" is not valid'),
        ("tf_mode:=robot", 'Argument "tf_mode" provided value "robot" is not valid'),
        ("points.stride:=two", "points.stride is 'two'; allowed: a whole number"),
        ("points.stride:=2.5", "points.stride is '2.5'; allowed: a whole number"),
        ("prefix:=nise -n 5", "prefix is 'nise -n 5': there is no command 'nise'"),
        ("prefix:=nice '-n", 'prefix is "nice \'-n": No closing quotation'),
    ],
)
@pytest.mark.parametrize("file", ["stream.launch.py", "octomap.launch.py"])
def test_arguments_are_checked_before_anything_starts(launch, tmp_path, file, argument, error):
    prefix = package_in(tmp_path, "octomap_server", "octomap_server_node")
    out = launch(argument, file=file, prefix=prefix).communicate(timeout=LIMIT)[0]
    assert error in out and "process started" not in out


@pytest.mark.parametrize(
    "arguments",
    [["cameras:=front,re-ar"], ["cameras:=front,front"], ["cameras:=front", "namespace:=my-robot"], ["cameras:=vörn"]],
)
def test_names_of_cameras_are_checked_before_anything_starts(launch, arguments):
    out = launch(*arguments).communicate(timeout=LIMIT)[0]
    assert "cameras: '" in out and "allowed: different names of" in out and "process started" not in out


@pytest.mark.parametrize(
    ("file", "argument", "package", "error"),
    [
        ("stream", "rviz:=true", "rviz2", "rviz is 'true', but the executable rviz2 of the ROS package rviz2 is not"),
        ("octomap", "rviz:=true", "rviz2", "rviz is 'true', but the executable rviz2 of the ROS package rviz2 is not"),
        ("rtabmap", "", "rtabmap_slam", "rtabmap of the ROS package rtabmap_slam is not"),
        ("nvblox", "", "nvblox_ros", "nvblox_node of the ROS package nvblox_ros is not"),
        (
            "octomap",
            "",
            "octomap_server",
            "octomap_server_node of the ROS package octomap_server is not",
        ),
        ("octomap", "cameras:=front,rear", "none", "cameras is 'front,rear'; allowed beside a mapper: none"),
    ],
)
def test_nothing_starts_if_another_program_is_missing(launch, tmp_path, file, argument, package, error):
    prefix = package_in(tmp_path, package)
    if package != "octomap_server":
        package_in(prefix, "octomap_server", "octomap_server_node")
    process = launch(*filter(None, [argument]), "device:=cpu", file=f"{file}.launch.py", prefix=prefix)
    out = process.communicate(timeout=LIMIT)[0]
    assert error in out and "process started" not in out


def test_other_programs_start_beside_the_node(launch, tmp_path):
    prefix = package_in(tmp_path, "octomap_server", "octomap_server_node")
    package_in(prefix, "rviz2", "rviz2")
    process = launch("rviz:=true", "image:=/eye/image_raw", "device:=cpu", file="octomap.launch.py", prefix=prefix)
    out = lines_until(process, "active: newest frame of /eye/image_raw")
    assert "cloud_in:=/raymap3r/points" in out and "rviz2-2]: process has finished cleanly" in out


def test_unknown_arguments_are_warnings_with_the_nearest_name(launch, tmp_path):
    prefix = package_in(tmp_path, "octomap_server")
    arguments = ("imagee:=/a", "frame_id:=base", "checkpiont:=mini", "launch-prefix:=nice", "zzz:=1")
    out = launch(*arguments, file="octomap.launch.py", prefix=prefix).communicate(timeout=LIMIT)[0]
    warnings = [line for line in out.splitlines() if "WARNING" in line]
    assert len(warnings) == 3
    for warning, text in zip(
        warnings,
        (
            "argument 'imagee' is not one of octomap.launch.py and has no effect; nearest: image;",
            "argument 'checkpiont' is not one of octomap.launch.py and has no effect; nearest: checkpoint;",
            "argument 'zzz' is not one of octomap.launch.py and has no effect; --show-args lists all",
        ),
        strict=True,
    ):
        assert text in warning


def test_prefix_starts_the_node(launch):
    process = launch("prefix:=nice -n 3", "image:=/eye/image_raw", "device:=cpu")
    out = lines_until(process, "active: newest frame of /eye/image_raw")
    pid = int(re.search(r"process started with pid \[(\d+)\]", out)[1])
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3


def test_prefix_starts_the_node_of_a_replay(launch, bag, tmp_path):
    process = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path}", "device:=cpu", "loop:=1000",
        "prefix:=nice -n 3", file="replay.launch.py",
    )  # fmt: skip
    out = lines_until(process, "a new world starts")
    nice = {
        name: os.getpriority(os.PRIO_PROCESS, int(pid))
        for name, pid in re.findall(r"\[(\w+)-\d\]: process started with pid \[(\d+)\]", out)
    }
    assert nice["stream"] == nice["replay"] + 3


@pytest.mark.parametrize("file", ["rtabmap", "nvblox", "octomap"])
def test_arguments_with_another_default_keep_their_descriptions(root, file):
    stream, mapper = (
        {item.name: item for item in load(str(root / "launch" / f"{name}.launch.py")).get_launch_arguments()}
        for name in ("stream", file)
    )
    assert mapper.keys() == stream.keys() | {"frame_id"}
    assert {name: mapper[name].description for name in stream} == {
        name: item.description for name, item in stream.items()
    }
    assert all(mapper[name].description not in ("", "no description given") for name in mapper)


def test_choices_are_those_of_the_parameters(root):
    options = dict(option_fields(NodeOptions))
    for item in load(str(root / "launch" / "stream.launch.py")).get_launch_arguments():
        if item.name in options:
            default, allowed = options[item.name].default, options[item.name].metadata["choices"]
            expected = ["true", "false", "True", "False"] if isinstance(default, bool) else list(allowed)
            assert (item.choices or [""]) == ["", *expected], item.name


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    sequence = suite_sequence("light", 0, world="one_room", size=(96, 128))
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


def test_warnings_about_a_bag_are_escaped(launch, bag, tmp_path):
    """The launch file opens the bag itself, and launch replaces the handlers of Python's logging."""
    copy = shutil.copytree(bag, tmp_path / "cam\x1b[31m")
    (copy / "metadata.yaml").write_text("\0\x1b[2J")
    out = launch(f"bag:={copy}", "topic:=/none", f"out:={tmp_path / 'out'}", file="replay.launch.py")
    text = out.communicate(timeout=LIMIT)[0]
    assert r"metadata.yaml: damaged, not used" in text and "process started" not in text
    assert "\x1b[31m" not in text and "\x1b[2J" not in text


def test_replay_ends_if_the_node_cannot_start(launch, bag, tmp_path):
    process = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path}", "checkpoint:=/nowhere.pth",
        file="replay.launch.py",
    )  # fmt: skip
    out = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1 and "stream-1 has failed with status 1, the launch ends" in out
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
        (["prefix:=nise"], "prefix is 'nise': there is no command 'nise'"),
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
    sequence = suite_sequence("light", 0, world="one_room", size=(96, 128))
    bag = export_sequence(sequence, tmp_path, "bag", max_frames=2, progress=False) / "bag"
    process = launch(
        f"bag:={bag}", "topic:=/camera/image_raw", f"out:={tmp_path / 'out'}", f"params_file:={parameters}",
        "device:=cpu", file="replay.launch.py",
    )  # fmt: skip
    text = lines_until(process, "raymap3r: error")
    assert "select its topic with range:=;" in text and "--" not in text
