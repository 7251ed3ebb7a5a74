"""Functions of the launch files. Only they import this module: `launch` is part of a ROS distribution."""

from __future__ import annotations

import difflib
import logging
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.action import Action
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, SetEnvironmentVariable
from launch.events.process import ProcessExited
from launch.launch_description_sources import (
    PythonLaunchDescriptionSource,
    get_launch_description_from_python_launch_file,
)
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import prefix_namespace

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.dds_profile import config_file, profile_environment, profile_problem
from raymap3r_ros.text import PrintableFormatter

# launch creates all loggers without a path to the root's handlers, so warnings of this package get the last resort.
logging.lastResort.setFormatter(PrintableFormatter("raymap3r: %(levelname)s: %(message)s"))

BOOLEANS = ["true", "false", "True", "False"]
ADDED_BY_LAUNCH = ("launch-prefix", "launch-prefix-filter")  # by options of `ros2 launch`
PREFIX = ("", "command that starts the node's process, such as nice -n -5; see docs/troubleshooting.md")


def declare(
    arguments: Mapping[str, tuple[str | None, str]], choices: Mapping[str, Sequence[str]] | None = None
) -> list[Action]:
    """Declare arguments by name, with default (None: required) and description; set the Fast DDS profile.

    The profile is not set if the user has chosen a transport.

    Args:
        choices: allowed values of arguments; an argument whose default is true or false has these two.
    """
    choices = {name: BOOLEANS for name, (default, _) in arguments.items() if default in BOOLEANS} | dict(choices or {})
    declared = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            # An optional argument is empty by default.
            choices=[*([""] if default == "" else []), *choices[name]] if name in choices else None,
        )
        for name, (default, description) in arguments.items()
    ]
    return [_warn_of_unknown(arguments), *declared, OpaqueFunction(function=_set_profile)]


def _warn_of_unknown(known: Collection[str]) -> Action:
    """A warning for each argument that the launch file on the command line does not know.

    If another launch file includes it, the arguments of the command line are those of the other file.
    """

    def warn(context: LaunchContext) -> None:
        file = Path(getattr(context.locals, "current_launch_file_path", "")).name  # absent without `ros2 launch`
        if file not in (Path(word).name for word in sys.argv):
            return
        for name in dict.fromkeys(word.partition(":=")[0] for word in context.argv if ":=" in word):
            if name not in known and name not in ADDED_BY_LAUNCH:
                near = difflib.get_close_matches(name, known, n=1)
                nearest = f"nearest: {near[0]}; " if near else ""
                get_logger(file).warning(
                    f"argument {name!r} is not one of {file} and has no effect; {nearest}--show-args lists all"
                )

    return OpaqueFunction(function=warn)


def _set_profile(context: LaunchContext) -> list[Action]:
    if problem := profile_problem(context.environment):
        get_logger("raymap3r").warning(problem)
    return [SetEnvironmentVariable(name, value) for name, value in profile_environment(context.environment).items()]


def read(
    context: LaunchContext, arguments: Collection[str], kinds: Mapping[str, type] | None = None
) -> dict[str, str]:
    """The arguments as text.

    Args:
        kinds: types of arguments; int is checked here, bool by the choices of `declare`.

    Raises FileNotFoundError if `params_file` is one of the arguments and is not a file, OptionError for other values
    that cannot be used.
    """
    values = {name: LaunchConfiguration(name).perform(context) for name in arguments}
    if "params_file" in values:
        file = Path(values["params_file"]).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"params_file is {values['params_file']!r}, which is not a file")
        values["params_file"] = str(file)
    for name, kind in (kinds or {}).items():
        if kind is int and values[name]:
            try:
                int(values[name])
            except ValueError:
                raise OptionError(f"{name} is {values[name]!r}; allowed: a whole number") from None
    return values


def command_prefix(text: str) -> dict[str, str]:
    """The keyword arguments of the stream node for a prefix; none if `text` is empty, so `--launch-prefix` has effect.

    Without `exec_name` launch would call the process after the prefix.

    Raises OptionError if it is not a command that exists.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise OptionError(f"prefix is {text!r}: {error}") from None
    if words and not shutil.which(words[0]):
        raise OptionError(f"prefix is {text!r}: there is no command {words[0]!r}; install it, or correct its name")
    return {"prefix": text, "exec_name": "stream"} if words else {}


def end_if_failed(event: ProcessExited, context: LaunchContext) -> None:
    """End the launch with status 1 if a process fails: what is left over would wait for it, or run without a purpose.

    If the launch file of another package includes ours, launch only reports the process: the rest is not ours to end.
    """
    if context.is_shutdown or not event.returncode or not _is_own_launch():
        return
    # launch prints an exception, ends all processes and exits with status 1.
    raise RuntimeError(
        f"{event.process_name} has failed with status {event.returncode}, the launch ends; its own message is above"
    )


def _is_own_launch() -> bool:
    """Whether the launch file on the command line is one of this package."""
    own = (config_file("stream.yaml").parents[1] / "launch").glob("*.launch.py")
    return not {file.name for file in own}.isdisjoint(Path(word).name for word in sys.argv)


def require(package: str, executable: str, why: str, remedy: str) -> None:
    """Raise FileNotFoundError with `why` and `remedy` if a ROS package with this executable is not installed.

    launch itself finds out only when it starts the program, while others are running already.
    """
    try:
        folder = Path(get_package_prefix(package), "lib", package)
    except PackageNotFoundError:
        folder = None
    if not folder or not shutil.which(executable, path=str(folder)):
        raise FileNotFoundError(
            f"{why}, but the executable {executable} of the ROS package {package} is not installed in this "
            f"environment; {remedy}"
        )


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
    arguments = {
        item.name: item for item in get_launch_description_from_python_launch_file(str(stream)).get_launch_arguments()
    }

    def check(context: LaunchContext) -> None:
        cameras = LaunchConfiguration("cameras", default="").perform(context)
        if cameras:
            raise ValueError(f"cameras is {cameras!r}; allowed beside a mapper: none, because it supports one camera")
        remedy = "install it (see docs/slam.md) and source its workspace, or use stream.launch.py"
        require(package, executable, f"the mapper of this launch file is {package}", remedy)

    def mapper(context: LaunchContext) -> list[Action]:
        values = read(context, ("namespace", "name", "world_frame", "frame_id", "use_sim_time"))
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
                on_exit=end_if_failed,
            )
        ]

    return LaunchDescription(
        [
            _warn_of_unknown([*arguments, "frame_id"]),
            *(
                DeclareLaunchArgument(key, default_value=value, description=arguments[key].description)
                for key, value in defaults.items()
            ),
            DeclareLaunchArgument(
                "frame_id", default_value=LaunchConfiguration("child_frame"), description=frame_description
            ),
            OpaqueFunction(function=check),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(stream))),
            OpaqueFunction(function=mapper),
        ]
    )
