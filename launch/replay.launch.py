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
from raymap3r_ros.clients.graph import GLOBAL_TOPICS
from raymap3r_ros.clients.replay import PRIVATE_NAMESPACE, launch_words, node_parameters, prepare_folder
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.node.dds_profile import config_file
from raymap3r_ros.node.launching import PREFIX, command_prefix, declare, end_if_failed, full_name, is_true, read
from raymap3r_ros.options import build_options
from raymap3r_ros.text import LONGEST_ERROR, printable

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
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a name; empty: from the parameter file"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: from the parameter file"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "global_topics": (
        "false",
        "exchange /tf, /tf_static, /clock and /diagnostics with all nodes of the ROS domain, for RViz; false: these "
        "topics are in the node's namespace",
    ),
    "prefix": PREFIX,
    "namespace": (
        "",
        f"namespace of the node and its topics; empty: {PRIVATE_NAMESPACE}, or none if global_topics",
    ),
    "name": ("raymap3r", "name of the node"),
}
# Passed on to `raymap3r replay`.
PLAYED = ("topic", "rate", "loop", "start", "duration", "range", "wheel_odometry", "truth", "out")


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node and the player."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=_processes)])


def _processes(context: LaunchContext) -> list[Action]:
    values = read(context, ARGUMENTS)
    prefix = command_prefix(values["prefix"])
    for name in ("bag", "out"):
        values[name] = str(Path(values[name]).expanduser())  # the shell does not expand ~ after `bag:=`
    overwrite, global_topics = is_true(values["overwrite"]), is_true(values["global_topics"])
    namespace = values["namespace"] or ("" if global_topics else PRIVATE_NAMESPACE)
    # Report invalid arguments of the player before anything starts.
    try:
        options = build_options(ReplayOptions, lambda name, item: _value(name, type(item.default), values[name]))
        bag = open_bag(Path(values["bag"]), options)
        prepare_folder(Path(values["out"]), overwrite)
    except (InputError, OptionError) as error:
        raise RuntimeError(printable(launch_words(str(error)), LONGEST_ERROR, lines=True)) from error
    name = full_name(context, namespace, values["name"])
    private = [] if global_topics else [(topic, name.rpartition("/")[0] + topic) for topic in GLOBAL_TOPICS]
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
        namespace=namespace,
        remappings=private,
        parameters=[values["params_file"], node_parameters(bag, chosen)],
        arguments=["--autostart"],
        output="screen",
        on_exit=_end,
        **prefix,
    )
    player = ExecuteProcess(
        cmd=[
            *(sys.executable, "-m", "raymap3r_ros.cli", "replay", values["bag"], "--node", name, "--launched"),
            "--global-topics" if global_topics else "--no-global-topics",
            *(f"--{name.replace('_', '-')}={values[name]}" for name in PLAYED),
            *(["--overwrite"] if overwrite else []),
        ],
        name="replay",
        output="screen",
        on_exit=_end,
    )
    return [node, player]


def _value(name: str, kind: type, text: str) -> object:
    try:
        return kind(text)
    except ValueError:
        what = {float: "a number", int: "a whole number"}[kind]
        raise OptionError(f"{name} is {text!r}; allowed: {what}") from None


def _end(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """Shut down with either process, with an error if it failed, unless the launch is shutting down already."""
    end_if_failed(event, context)
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} has ended")]
