"""The node's output topics: what a result becomes, and only for those who listen."""

from __future__ import annotations

import threading

import numpy as np
import torch
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster

from raymap3r_ros.node import conversions, geometry
from raymap3r_ros.node.options import NodeOptions
from raymap3r_ros.node.trajectory import Trajectory
from raymap3r_ros.streaming import StepResult

RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

TOPICS = {
    "pose": (PoseStamped, RELIABLE),
    "odometry": (Odometry, RELIABLE),
    "trajectory": (Path, LATCHED),
    "trajectory_raw": (Path, LATCHED),
    "depth": (Image, qos_profile_sensor_data),
    "depth_static": (Image, qos_profile_sensor_data),
    "confidence": (Image, qos_profile_sensor_data),
    "dynamic_mask": (Image, qos_profile_sensor_data),
    "dynamic_map": (Image, qos_profile_sensor_data),
    "rgb": (Image, qos_profile_sensor_data),
    "camera_info": (CameraInfo, qos_profile_sensor_data),
    "points": (PointCloud2, qos_profile_sensor_data),
}
# Of these the ray branch is needed, which costs a second pass through the decoder.
MOTION_TOPICS = frozenset({"depth_static", "dynamic_mask", "dynamic_map", "points"})
# The maps of a result that an image topic shows.
MAPS = {
    "depth": ("depth",),
    "depth_static": ("depth", "dynamic_mask"),
    "confidence": ("confidence",),
    "dynamic_mask": ("dynamic_mask",),
    "dynamic_map": ("dynamic_map",),
    "rgb": ("image",),
    "camera_info": ("intrinsics",),
}


class Outputs:
    """The publishers of a configured node, and the little that is remembered from frame to frame."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos) for name, (kind, qos) in TOPICS.items()
        }
        self._broadcaster = TransformBroadcaster(node)
        self._lock = threading.Lock()  # of the trajectories, which a timer publishes too
        self._trajectories = {"trajectory": Trajectory(), "trajectory_raw": Trajectory()}
        self._unsent: dict[str, Header] = {}  # headers of trajectories that have grown since they were last published
        self._last: tuple[np.ndarray, float] | None = None  # pose and stamp of the last frame

    def destroy(self) -> None:
        """Take the topics back."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._broadcaster.pub_tf)

    def restart(self) -> None:
        """A new world: nothing of the old one may be joined to it."""
        with self._lock:
            for trajectory in self._trajectories.values():
                trajectory.clear()
        self._last = None

    def wanted(self) -> set[str]:
        """Names of the outputs that somebody has subscribed to."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def listeners(self) -> str:
        """Names of the outputs in use, for the diagnostics."""
        names = self.wanted()
        if self._broadcaster.pub_tf.get_subscription_count():
            names.add("tf")
        return ", ".join(sorted(names))

    def publish(
        self, result: StepResult, stamp: Time, child_frame: str, wanted: set[str], options: NodeOptions
    ) -> None:
        """Publish what is `wanted` of a result. Raises nothing of its own."""
        matrices = result.numpy("pose", "pose_raw")
        matrix = geometry.world_pose(matrices["pose"])
        in_world = Header(stamp=stamp, frame_id=options.world_frame)
        in_camera = Header(stamp=stamp, frame_id=child_frame)
        pose = PoseStamped(header=in_world, pose=conversions.pose_message(matrix))
        raw = conversions.pose_message(geometry.world_pose(matrices["pose_raw"]))

        # Transform and pose first: whoever gets an image or a cloud will ask where it was taken.
        if options.publish_tf:
            self._broadcaster.sendTransform(conversions.transform_message(in_world, child_frame, pose.pose))
        if "pose" in wanted:
            self._publishers["pose"].publish(pose)
        seconds = conversions.seconds(stamp)
        if "odometry" in wanted:
            odometry = self._odometry(result, in_world, child_frame, matrix, pose.pose, seconds)
            self._publishers["odometry"].publish(odometry)
        self._last = matrix, seconds

        with self._lock:
            self._trajectories["trajectory"].append(pose)
            self._trajectories["trajectory_raw"].append(PoseStamped(header=in_world, pose=raw))
            self._unsent = dict.fromkeys(self._trajectories, in_world)
        self.publish_trajectories(wanted)

        self._publish_maps(result, in_camera, wanted)
        if "points" in wanted:
            self._publishers["points"].publish(_cloud(result, in_camera, options))

    def publish_trajectories(self, wanted: set[str]) -> None:
        """Publish the trajectories that have grown; for those who subscribe after the last frame as well."""
        with self._lock:
            for name in wanted & self._unsent.keys():
                header = self._unsent.pop(name)
                self._publishers[name].publish(Path(header=header, poses=self._trajectories[name].poses))

    def _odometry(
        self, result: StepResult, header: Header, child_frame: str, matrix: np.ndarray, pose: Pose, seconds: float
    ) -> Odometry:
        medians = torch.stack([result.confidence.float().median(), result.depth.float().median()]).tolist()
        interval = seconds - self._last[1] if self._last else 0.0
        velocity = geometry.twist(self._last[0], matrix, interval) if interval > 0 else None
        variances = geometry.pose_variances(*medians)
        return conversions.odometry_message(header, child_frame, pose, variances, velocity, interval)

    def _publish_maps(self, result: StepResult, header: Header, wanted: set[str]) -> None:
        topics = [name for name in MAPS if name in wanted]
        maps = result.numpy(*{name for topic in topics for name in MAPS[topic]})
        for topic in topics:
            values = [maps[name] for name in MAPS[topic]]
            if topic == "camera_info":
                height, width = result.depth.shape
                message = conversions.camera_info_message(header, values[0], width, height)
            elif topic == "rgb":
                message = conversions.image_message(header, values[0], "rgb8")
            elif topic == "dynamic_mask":
                message = conversions.image_message(header, values[0].astype(np.uint8) * np.uint8(255), "mono8")
            elif topic == "depth_static":
                depth, mask = values
                static = np.where(mask, np.float32(np.nan), depth.astype(np.float32))
                message = conversions.image_message(header, static, "32FC1")
            else:
                message = conversions.image_message(header, values[0].astype(np.float32), "32FC1")
            self._publishers[topic].publish(message)


def _cloud(result: StepResult, header: Header, options: NodeOptions) -> PointCloud2:
    # Strided and filtered on the device, so that only what is published is copied.
    every = slice(None, None, options.points.stride)
    points, confidence = result.points[every, every], result.confidence[every, every]
    keep = (confidence >= options.confidence_threshold) & points.isfinite().all(-1)
    chosen = [points, result.image[every, every], confidence, result.dynamic_mask[every, every]]
    return conversions.cloud_message(header, *(values[keep].cpu().numpy() for values in chosen))
