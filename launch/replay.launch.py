"""Play every frame of a ROS 2 bag, with /clock, to the stream node, and write a report.

ros2 launch raymap3r_ros replay.launch.py bag:=recording topic:=/camera/image_raw out:=report
"""

import sys
from pathlib import Path

from launch.action import Action
from launch.actions import ExecuteProcess, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.clients.bag import ReplayOptions, open_bag
from raymap3r_ros.clients.replay import node_parameters, prepare_folder
from raymap3r_ros.node.dds_profile import config_file
from raymap3r_ros.node.launching import declare, full_name, is_true, read

ARGUMENTS = {
    "bag": (None, "the bag: .mcap, .db3, or its folder"),
    "topic": ("", "topic of the images; empty: the only one in the bag"),
    "rate": ("1.0", "speed, 1 = as recorded; 0 = as fast as the node takes the frames"),
    "loop": ("1", "number of passes through the bag"),
    "start": ("0.0", "start this many seconds after the first message"),
    "duration": ("0.0", "length to play, seconds; 0 = all"),
    "range": ("", "topic of the bag for scale.source range; empty: the only one of its type"),
    "wheel_odometry": ("", "topic of the bag for scale.source odometry; empty: the only one that is not ground truth"),
    "truth": ("", "odometry topic or TF frame with ground truth; empty: found by its name, see docs/bags.md"),
    "out": ("replay_out", "folder for the report"),
    "overwrite": ("false", "replace the report of an earlier replay in that folder"),
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a preset; empty: from the parameter file"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: from the parameter file"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "namespace": ("", "namespace of the node and of its topics"),
    "name": ("raymap3r", "name of the node"),
}
# Passed on to `raymap3r replay`.
PLAYED = ("topic", "rate", "loop", "start", "duration", "range", "wheel_odometry", "truth", "out")


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node and the player."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=_processes)])


def _processes(context: LaunchContext) -> list[Action]:
    values = read(context, ARGUMENTS)
    for name in ("bag", "out"):
        values[name] = str(Path(values[name]).expanduser())  # the shell does not expand ~ after `bag:=`
    overwrite = is_true(values["overwrite"])
    # Report invalid arguments of the player before the node loads its weights.
    topics = {name: values[name] for name in ("topic", "range", "wheel_odometry")}
    bag = open_bag(Path(values["bag"]), ReplayOptions(**topics))
    prepare_folder(Path(values["out"]), overwrite)
    chosen = {
        # As text; otherwise YAML would parse a file name such as 7 as a number.
        name: ParameterValue(values[name], value_type=str)
        for name in ("checkpoint", "device")
        if values[name]
    }
    node = LifecycleNode(
        package="raymap3r_ros",
        executable="stream",
        name=values["name"],
        namespace=values["namespace"],
        parameters=[values["params_file"], node_parameters(bag, chosen)],
        arguments=["--autostart"],
        output="screen",
        on_exit=_end,
    )
    name = full_name(context, values["namespace"], values["name"])
    player = ExecuteProcess(
        cmd=[
            *(sys.executable, "-m", "raymap3r_ros.cli", "replay", values["bag"], "--node", name),
            *(f"--{name.replace('_', '-')}={values[name]}" for name in PLAYED),
            *(["--overwrite"] if overwrite else []),
        ],
        name="replay",
        output="screen",
        on_exit=_end,
    )
    return [node, player]


def _end(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Shut down with either process, unless the launch is shutting down already."""
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} has ended")]
