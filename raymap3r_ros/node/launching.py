"""Functions of the launch files. Only they import this module: `launch` is part of a ROS distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.action import Action
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import prefix_namespace

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.node.dds_profile import profile_environment

BOOLEANS = ["true", "false", "True", "False"]


def declare(arguments: Mapping[str, tuple[str | None, str]]) -> list[Action]:
    """Declare arguments by name, with default (None: required) and description; set the Fast DDS profile.

    The profile is not set if the user has chosen a transport.
    """
    declared = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            choices=BOOLEANS if default in BOOLEANS else None,
        )
        for name, (default, description) in arguments.items()
    ]
    return [*declared, OpaqueFunction(function=_set_profile)]


def _set_profile(context: LaunchContext) -> list[Action]:
    return [SetEnvironmentVariable(name, value) for name, value in profile_environment(context.environment).items()]


def read(context: LaunchContext, arguments: Iterable[str]) -> dict[str, str]:
    """The arguments as text. Raises FileNotFoundError if `params_file` is one of them and is not a file."""
    values = {name: LaunchConfiguration(name).perform(context) for name in arguments}
    if "params_file" in values:
        file = Path(values["params_file"]).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"params_file is {values['params_file']!r}, which is not a file")
        values["params_file"] = str(file)
    return values


def is_true(text: str) -> bool:
    """Whether an argument with one of the values of BOOLEANS is true."""
    return text.lower() == "true"


def sim_time(text: str) -> list[dict[str, bool]]:
    """Parameters of a node for the argument `use_sim_time`.

    None if it is empty, so that the value of a parameter file or of an including launch file is used.
    """
    return [{"use_sim_time": is_true(text)}] if text else []


def full_name(context: LaunchContext, namespace: str, name: str) -> str:
    """The full name of a node in a namespace, below the namespace that PushRosNamespace has set."""
    pushed = prefix_namespace(context.launch_configurations.get("ros_namespace"), namespace) or ""
    return "/".join(["", *filter(None, (pushed.strip("/"), name))])


def mapper_beside(
    stream: Path,
    defaults: Mapping[str, str],
    *,
    package: str,
    executable: str,
    name: str,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    frames: Sequence[str],
    frame_description: str,
    worlds: Sequence[str] = (),
) -> LaunchDescription:
    """The launch file `stream` with other `defaults` of its arguments, and a mapper that uses its outputs.

    Args:
        inputs: by topic of the mapper, the topic of the stream node that it is remapped to.
        frames: parameters of the mapper for the frame of argument `frame_id`, by default the camera's.
        frame_description: description of that argument.
        worlds: parameters of the mapper for the frame of argument `world_frame`.
    """

    def mapper(context: LaunchContext) -> list[Action]:
        values = read(context, ("cameras", "namespace", "name", "world_frame", "frame_id", "use_sim_time"))
        if values["cameras"]:
            raise ValueError(
                f"cameras is {values['cameras']!r}; allowed beside a mapper: none, because it supports one camera"
            )
        stream_node = full_name(context, values["namespace"], values["name"])
        return [
            Node(
                package=package,
                executable=executable,
                name=name,
                parameters=[
                    dict(parameters),
                    dict.fromkeys(frames, values["frame_id"]),
                    dict.fromkeys(worlds, values["world_frame"]),
                    *sim_time(values["use_sim_time"]),
                ],
                remappings=[(name, f"{stream_node}/{topic}") for name, topic in inputs.items()],
                output="screen",
            )
        ]

    return LaunchDescription(
        [
            *(DeclareLaunchArgument(key, default_value=value) for key, value in defaults.items()),
            DeclareLaunchArgument(
                "frame_id", default_value=LaunchConfiguration("child_frame"), description=frame_description
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(stream))),
            OpaqueFunction(function=mapper),
        ]
    )
