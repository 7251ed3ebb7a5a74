"""Run the stream node with octomap_server, which builds an octree of occupied and free space (docs/slam.md).

ros2 launch raymap3r_ros octomap.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from pathlib import Path

from launch import LaunchDescription
from raymap3r_ros.node.launching import mapper_beside

# Arguments of stream.launch.py with another default here; all others are accepted too. octomap_server treats
# every point as an obstacle and casts a ray for each.
STREAM = {
    "world_frame": "map",
    "child_frame": "camera_optical_frame",
    "points.static_only": "true",
    "points.stride": "4",
}
# Topics of octomap_server, and the node's outputs that they are remapped to. It subscribes with sensor-data QoS.
INPUTS = {"cloud_in": "points"}
PARAMETERS = {"resolution": 0.05, "sensor_model.max_range": 5.0}
FRAMES = ("base_frame_id",)  # parameters with the frame of the robot, or of the camera if there is no robot
WORLDS = ("frame_id",)  # parameters with the frame of the world


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the stream node and octomap_server."""
    return mapper_beside(
        Path(__file__).with_name("stream.launch.py"),
        STREAM,
        package="octomap_server",
        executable="octomap_server_node",
        name="octomap_server",
        inputs=INPUTS,
        parameters=PARAMETERS,
        frames=FRAMES,
        worlds=WORLDS,
        frame_description="frame for the ground filter: the camera's, or with tf_mode:=base the robot's",
    )
