"""Run the stream node, configured and active unless autostart:=false.

ros2 launch raymap3r_ros stream.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
ros2 launch raymap3r_ros stream.launch.py cameras:=front,rear image:=image_raw
"""

from launch.action import Action
from launch.actions import OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.camera_names import camera_names
from raymap3r_ros.node.dds_profile import config_file
from raymap3r_ros.node.launching import (
    BOOLEANS,
    PREFIX,
    command_prefix,
    declare,
    end_if_failed,
    full_name,
    is_true,
    read,
    require,
    sim_time,
)

ARGUMENTS = {
    "image": ("image", "topic of the images; with image_transport:=compressed, /compressed is appended"),
    "camera_info": ("camera_info", "topic of the camera's calibration; optional"),
    "range": ("range", "topic of the range sensor, with scale.source range"),
    "wheel_odometry": ("wheel_odometry", "topic of the wheel odometry, with scale.source odometry"),
    "image_transport": ("", "raw or compressed; empty: from the parameter file"),
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a name; empty: from the parameter file"),
    "memory": ("", "world.safetensors of a saved world, in which to continue; empty: from the parameter file"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: from the parameter file"),
    "tf_mode": ("", "camera, base, odom or map; empty: from the parameter file"),
    "world_frame": ("", "frame of all poses; empty: from the parameter file"),
    "child_frame": ("", "the camera's optical frame; empty: from the parameter file"),
    "depth_encoding": ("", "32FC1 or 16UC1; empty: from the parameter file"),
    "points.static_only": ("", "true: ~/points leaves out moving points; empty: from the parameter file"),
    "points.stride": ("", "use every N-th row and column for ~/points; empty: from the parameter file"),
    "cameras": (
        "",
        "names of several cameras, such as front,rear: one process, one node per camera in a namespace of its name",
    ),
    "rviz": ("false", "show all outputs in RViz; the layout is for the node /raymap3r"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "autostart": ("true", "configure and activate the node at start"),
    "use_sim_time": ("", "true: use the time of /clock; empty: from the parameter file"),
    "prefix": PREFIX,
    "namespace": ("", "namespace of the node and of its topics"),
    "name": ("raymap3r", "name of the node"),
}
# Arguments that override parameters if they are given, with their types.
OVERRIDES = {
    **dict.fromkeys(
        (
            *("checkpoint", "memory", "device", "image_transport", "tf_mode", "world_frame", "child_frame"),
            "depth_encoding",
        ),
        str,
    ),
    "points.static_only": bool,
    "points.stride": int,
}
CHOICES = {
    "image_transport": ("raw", "compressed"),
    "tf_mode": ("camera", "base", "odom", "map"),
    "depth_encoding": ("32FC1", "16UC1"),
    "points.static_only": BOOLEANS,
    "use_sim_time": BOOLEANS,
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    return LaunchDescription([*declare(ARGUMENTS, CHOICES), OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[Action]:
    values = read(context, ARGUMENTS, OVERRIDES)
    if is_true(values["rviz"]):
        remedy = "install it (see docs/viewing.md), or leave out rviz"
        require("rviz2", "rviz2", f"rviz is {values['rviz']!r}", remedy)
    overrides = {
        # With types; otherwise YAML would parse a file name such as 7 as a number.
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in OVERRIDES.items()
        if values[name]
    }
    clock = sim_time(values["use_sim_time"])
    common = {
        "package": "raymap3r_ros",
        "executable": "stream",
        "parameters": [values["params_file"], *([overrides] if overrides else []), *clock],
        "remappings": [
            ("image", values["image"]),
            ("image/compressed", values["image"] + "/compressed"),
            ("camera_info", values["camera_info"]),
            ("range", values["range"]),
            ("wheel_odometry", values["wheel_odometry"]),
        ],
        "output": "screen",
        "on_exit": end_if_failed,
        **command_prefix(values["prefix"]),
    }
    # The node starts itself, so that no transition request can be lost.
    arguments = ["--autostart"] if is_true(values["autostart"]) else []
    if values["cameras"]:
        # Name and namespace would apply to every node of the process; each needs its camera's namespace.
        if values["name"] != ARGUMENTS["name"][0]:
            raise ValueError(f"name is {values['name']!r}; with cameras it must be {ARGUMENTS['name'][0]!r}")
        try:
            cameras = camera_names(values["cameras"])
            names = ",".join(full_name(context, values["namespace"], name)[1:] for name in cameras)
            camera_names(names)
        except OptionError as error:
            raise OptionError(f"cameras: {error}") from None
        actions = [Node(**common, namespace="/", arguments=[*arguments, "--cameras", names])]
    else:
        actions = [LifecycleNode(**common, name=values["name"], namespace=values["namespace"], arguments=arguments)]
    if is_true(values["rviz"]):
        layout = str(config_file("raymap3r.rviz"))
        actions.append(
            Node(package="rviz2", executable="rviz2", arguments=["-d", layout], parameters=clock, output="log")
        )
    return actions
