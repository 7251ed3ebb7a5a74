"""Runs the stream node and RTAB-Map beside it, which closes loops and keeps its map in a database (docs/slam.md).

ros2 launch raymap3r_ros rtabmap.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from pathlib import Path

from launch import LaunchDescription
from raymap3r_ros.node.launching import mapper_beside

# Arguments of stream.launch.py that have another default here; all its others may be given too. The frame `map` is
# RTAB-Map's: it publishes map -> odom. Millimetres keep its database small.
STREAM = {"world_frame": "odom", "child_frame": "camera_optical_frame", "depth_encoding": "16UC1"}
# Topics of RTAB-Map, and the node's that they are taken from.
INPUTS = {
    "rgb/image": "rgb",
    "depth/image": "depth_static",
    "rgb/camera_info": "camera_info",
    "odom": "odometry",
}
PARAMETERS = {
    "subscribe_depth": True,
    "approx_sync": False,  # all four carry the stamp of the image that they come from
    "qos_image": 2,  # best effort
    "qos_camera_info": 2,
    "qos_odom": 1,  # reliable
    "map_frame_id": "map",
    "publish_tf": True,
}
FRAMES = ("frame_id",)  # parameters that name the frame of the robot, or of the camera where it is on its own


def generate_launch_description() -> LaunchDescription:
    """The arguments, the stream node and RTAB-Map."""
    return mapper_beside(
        Path(__file__).with_name("stream.launch.py"),
        STREAM,
        package="rtabmap_slam",
        executable="rtabmap",
        name="rtabmap",
        inputs=INPUTS,
        parameters=PARAMETERS,
        frames=FRAMES,
        frame_description="frame that is localised: the camera's, or with tf_mode:=base the robot's",
    )
