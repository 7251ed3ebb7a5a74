"""Runs the stream node, configured and active unless autostart:=false.

ros2 launch raymap3r_ros stream.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
ros2 launch raymap3r_ros stream.launch.py cameras:=front,rear image:=image_raw
"""

from launch.action import Action
from launch.actions import OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from raymap3r_ros.node.dds_profile import config_file
from raymap3r_ros.node.launching import declare, full_name, is_true, read, sim_time

ARGUMENTS = {
    "image": ("image", "topic of the images; with image_transport:=compressed, /compressed is added"),
    "camera_info": ("camera_info", "topic of the camera's calibration; nothing needs to be there"),
    "range": ("range", "topic of the range sensor, with scale.source range"),
    "wheel_odometry": ("wheel_odometry", "topic of the wheels' odometry, with scale.source odometry"),
    "image_transport": ("", "raw or compressed; empty: as the parameter file says"),
    "checkpoint": ("", "weights: a .safetensors or .pth file, or a preset; empty: as the parameter file says"),
    "device": ("", "auto, cpu, cuda or cuda:N; empty: as the parameter file says"),
    "tf_mode": ("", "camera, base, odom or map; empty: as the parameter file says"),
    "world_frame": ("", "frame of all poses; empty: as the parameter file says"),
    "child_frame": ("", "the camera's optical frame; empty: as the parameter file says"),
    "depth_encoding": ("", "32FC1 or 16UC1; empty: as the parameter file says"),
    "points.static_only": ("", "true: ~/points leaves out what moves; empty: as the parameter file says"),
    "points.stride": ("", "rows and columns of ~/points; empty: as the parameter file says"),
    "cameras": (
        "",
        "names of several cameras, front,rear: one process, a node for each, in a namespace of its name",
    ),
    "rviz": ("false", "show everything in RViz; the layout is for the node /raymap3r"),
    "params_file": (str(config_file("stream.yaml")), "YAML file with the node's parameters"),
    "autostart": ("true", "configure and activate the node at once"),
    "use_sim_time": ("", "true: take the time from /clock; empty: as the parameter file says"),
    "namespace": ("", "namespace of the node and of its topics"),
    "name": ("raymap3r", "name of the node"),
}
# Of these the parameters that are handed on where they are given, and their types.
OVERRIDES = {
    **dict.fromkeys(
        ("checkpoint", "device", "image_transport", "tf_mode", "world_frame", "child_frame", "depth_encoding"), str
    ),
    "points.static_only": bool,
    "points.stride": int,
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node made from them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[Action]:
    values = read(context, ARGUMENTS)
    overrides = {
        # With their types, or YAML would make a number of a file called 7.
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in OVERRIDES.items()
        if values[name]
    }
    clock = sim_time(values["use_sim_time"])
    common = {
        "package": "raymap3r_ros",
        "executable": "stream",
        "parameters": [values["params_file"], overrides, *clock],
        "remappings": [
            ("image", values["image"]),
            ("image/compressed", values["image"] + "/compressed"),
            ("camera_info", values["camera_info"]),
            ("range", values["range"]),
            ("wheel_odometry", values["wheel_odometry"]),
        ],
        "output": "screen",
    }
    # The node starts itself: there is no moment at which a transition could get lost on its way.
    arguments = ["--autostart"] if is_true(values["autostart"]) else []
    if values["cameras"]:
        # Name and namespace would be given to every node of the process: each has its camera's.
        if values["name"] != ARGUMENTS["name"][0]:
            raise ValueError(f"name is {values['name']!r}; with cameras each node is {ARGUMENTS['name'][0]!r}")
        cameras = (name.strip() for name in values["cameras"].split(","))
        names = ",".join(full_name(context, values["namespace"], name)[1:] for name in cameras)
        actions = [Node(**common, namespace="/", arguments=[*arguments, "--cameras", names])]
    else:
        actions = [LifecycleNode(**common, name=values["name"], namespace=values["namespace"], arguments=arguments)]
    if is_true(values["rviz"]):
        layout = str(config_file("raymap3r.rviz"))
        actions.append(
            Node(package="rviz2", executable="rviz2", arguments=["-d", layout], parameters=clock, output="log")
        )
    return actions
