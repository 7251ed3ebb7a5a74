"""Plays a ROS 2 bag into the stream node, every frame of it and with /clock, and ends with a report.

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
    "bag": (None, "a bag: .mcap, .db3, or its folder"),
    "topic": ("", "topic of the images; empty: the only one in the bag"),
    "rate": ("1.0", "speed, 1 = as recorded; 0 = as fast as the node takes the frames"),
    "loop": ("1", "play the bag so many times"),
    "start": ("0.0", "begin so many seconds after the first message"),
    "duration": ("0.0", "play so many seconds of the bag; 0 = all"),
    "range": ("", "topic of the bag for scale.source range; empty: the only one of its type"),
    "wheel_odometry": ("", "topic of the bag for scale.source odometry; empty: the only one that is no truth"),
    "truth": ("", "odometry topic or TF frame of the bag to compare with; empty: what is called the truth in it"),
    "out": ("replay_out", "folder for the report"),
    "overwrite": ("false", "replace the report of an earlier replay in that folder"),
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a preset; empty: as the parameter file says"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as the parameter file says"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "namespace": ("", "namespace of the node and of its topics"),
    "name": ("raymap3r", "name of the node"),
}
# Handed on to `raymap3r replay`.
PLAYED = ("topic", "rate", "loop", "start", "duration", "range", "wheel_odometry", "truth", "out")


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node and the player made from them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=_processes)])


def _processes(context: LaunchContext) -> list[Action]:
    values = read(context, ARGUMENTS)
    for name in ("bag", "out"):
        values[name] = str(Path(values[name]).expanduser())  # the shell leaves ~ alone behind `bag:=`
    overwrite = is_true(values["overwrite"])
    # What the player would refuse is refused before the node has loaded its weights.
    topics = {name: values[name] for name in ("topic", "range", "wheel_odometry")}
    bag = open_bag(Path(values["bag"]), ReplayOptions(**topics))
    prepare_folder(Path(values["out"]), overwrite)
    chosen = {
        # As text, or YAML would make a number of a file called 7.
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
    """Neither is of use without the other. A launch that is ending already must not be ended once more."""
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} has ended")]
