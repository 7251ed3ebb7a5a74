"""Run the stream node with nvblox, which builds a mesh and a distance map on the GPU (docs/slam.md).

ros2 launch raymap3r_ros nvblox.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from pathlib import Path

from launch import LaunchDescription
from raymap3r_ros.node.launching import mapper_beside

# Arguments of stream.launch.py with another default here; all others are accepted too. nvblox skips pixels
# of depth 0 and below, but not NaN.
STREAM = {"world_frame": "map", "child_frame": "camera_optical_frame", "depth_encoding": "16UC1"}
# Topics of nvblox, and the node's outputs that they are remapped to.
INPUTS = {
    "camera_0/depth/image": "depth_static",
    "camera_0/depth/camera_info": "camera_info",
    "camera_0/color/image": "rgb",
    "camera_0/color/camera_info": "camera_info",
}
PARAMETERS = {
    "num_cameras": 1,
    "use_depth": True,
    "use_color": True,
    "use_lidar": False,
    "input_qos": "SENSOR_DATA",
    "use_tf_transforms": True,
    "use_topic_transforms": False,
    "voxel_size": 0.05,
}
# Parameters with the frame of the robot, or of the camera if there is no robot.
FRAMES = (
    "map_clearing_frame_id",
    "esdf_slice_bounds_visualization_attachment_frame_id",
    "workspace_height_bounds_visualization_attachment_frame_id",
    "ground_plane_visualization_attachment_frame_id",
)
WORLDS = ("global_frame",)  # parameters with the frame of the world


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the stream node and nvblox."""
    return mapper_beside(
        Path(__file__).with_name("stream.launch.py"),
        STREAM,
        package="nvblox_ros",
        executable="nvblox_node",
        name="nvblox_node",
        inputs=INPUTS,
        parameters=PARAMETERS,
        frames=FRAMES,
        worlds=WORLDS,
        frame_description="frame at the centre of the map: the camera's, or with tf_mode:=base the robot's",
    )
