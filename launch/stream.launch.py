"""Runs the stream node, configured and active unless autostart:=false.

ros2 launch raymap3r_ros stream.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from pathlib import Path

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.node.transport import config_file, profile_environment

ARGUMENTS = {
    "image": ("image", "topic of the images; with image_transport:=compressed, /compressed is added"),
    "camera_info": ("camera_info", "topic of the camera's calibration; nothing needs to be there"),
    "image_transport": ("", "raw or compressed; empty: as the parameter file says"),
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a preset; empty: as the parameter file says"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as the parameter file says"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "autostart": ("true", "configure and activate the node at once"),
    "use_sim_time": ("false", "take the time from /clock"),
    "namespace": ("", "namespace of the node and of its topics"),
    "name": ("raymap3r", "name of the node"),
}
TRUTH = ["true", "false", "True", "False"]


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node made from them."""
    declared = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            choices=TRUTH if default in TRUTH else None,
        )
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_transport), OpaqueFunction(function=_node)])


def _transport(context: LaunchContext) -> list[Action]:
    return [SetEnvironmentVariable(name, value) for name, value in profile_environment(context.environment).items()]


def _node(context: LaunchContext) -> list[Action]:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not Path(values["params_file"]).is_file():
        raise FileNotFoundError(f"params_file is {values['params_file']!r}, which is not a file")
    overrides = {
        # As text, or YAML would make a number of a file called 7.
        name: ParameterValue(values[name], value_type=str)
        for name in ("checkpoint", "device", "image_transport")
        if values[name]
    }
    overrides["use_sim_time"] = _is_true(values["use_sim_time"])
    return [
        LifecycleNode(
            package="raymap3r_ros",
            executable="stream",
            name=values["name"],
            namespace=values["namespace"],
            parameters=[values["params_file"], overrides],
            remappings=[
                ("image", values["image"]),
                ("image/compressed", values["image"] + "/compressed"),
                ("camera_info", values["camera_info"]),
            ],
            # The node starts itself: there is no moment at which a transition could get lost on its way.
            arguments=["--autostart"] if _is_true(values["autostart"]) else [],
            output="screen",
        )
    ]


def _is_true(text: str) -> bool:
    return text.lower() == "true"
