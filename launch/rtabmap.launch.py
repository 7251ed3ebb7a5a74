"""Run the stream node with RTAB-Map, which closes loops and stores its map in a database (docs/slam.md).

ros2 launch raymap3r_ros rtabmap.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from pathlib import Path

from launch import LaunchDescription
from raymap3r_ros.node.launching import mapper_beside

# Arguments of stream.launch.py with another default here; all others are accepted too. RTAB-Map owns
# the frame `map`: it publishes map -> odom. Millimetres keep its database small.
STREAM = {"world_frame": "odom", "child_frame": "camera_optical_frame", "depth_encoding": "16UC1"}
# Topics of RTAB-Map, and the node's outputs that they are remapped to.
INPUTS = {
    "rgb/image": "rgb",
    "depth/image": "depth_static",
    "rgb/camera_info": "camera_info",
    "odom": "odometry",
}
PARAMETERS = {
    "subscribe_depth": True,
    "approx_sync": False,  # all four carry the stamp of their image
    "qos_image": 2,  # best effort
    "qos_camera_info": 2,
    "qos_odom": 1,  # reliable
    "map_frame_id": "map",
    "publish_tf": True,
}
FRAMES = ("frame_id",)  # parameters with the frame of the robot, or of the camera if there is no robot


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the stream node and RTAB-Map."""
    return mapper_beside(
        Path(__file__).with_name("stream.launch.py"),
        STREAM,
        package="rtabmap_slam",
        executable="rtabmap",
        name="rtabmap",
        inputs=INPUTS,
        parameters=PARAMETERS,
        frames=FRAMES,
        frame_description="frame that RTAB-Map localises: the camera's, or with tf_mode:=base the robot's",
    )
