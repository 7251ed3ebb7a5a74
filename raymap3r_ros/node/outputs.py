"""The node's output topics: what a result becomes, and only for those who listen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

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
from torch import Tensor

from raymap3r_ros.node import conversions, geometry
from raymap3r_ros.node.options import NodeOptions
from raymap3r_ros.node.trajectory import Trajectory
from raymap3r_ros.streaming import StepResult
from raymap3r_ros.streaming.options import UPDATE_RULES
from raymap3r_ros.streaming.result import to_host

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
# Encoding of every image topic, and what it shows, made on the network's device.
IMAGES: dict[str, tuple[str, Callable[[StepResult], Tensor]]] = {
    "depth": ("32FC1", lambda result: result.depth),
    "depth_static": ("32FC1", lambda result: result.depth.masked_fill(result.dynamic_mask, torch.nan)),
    "confidence": ("32FC1", lambda result: result.confidence),
    "dynamic_mask": ("mono8", lambda result: result.dynamic_mask.to(torch.uint8) * 255),
    "dynamic_map": ("32FC1", lambda result: result.dynamic_map),
    "rgb": ("rgb8", lambda result: result.image),
}
# Seconds of the images' stamps between two messages of a trajectory: one of 1000 poses takes rclpy milliseconds, and
# who plots the way of the camera needs it a few times a second. ~/pose tells the newest pose with every frame.
TRAJECTORY_PERIOD = 0.5
MEDIAN_STRIDE = 4  # rows and columns: a sixteenth of the pixels gives as good a median for a guess of variances


@dataclass(frozen=True)
class Glance:
    """The few numbers of a frame, in host memory, that decide what is published of it."""

    healthy: bool  # see StepResult; nothing may be published of a frame that is not
    intrinsics_known: bool
    rule: str
    pose: np.ndarray  # (4, 4) camera to the world of REP 103 axes, float64
    pose_raw: np.ndarray  # the same without smoothing
    variances: tuple[float, float] | None  # see `geometry.pose_variances`; None where nobody wants odometry
    points: int  # how many the cloud has; 0 where nobody wants it


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
        self._trajectories_sent: float | None = None  # stamp at which they were last due
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
            self._unsent.clear()
        self._trajectories_sent = self._last = None

    def wanted(self) -> set[str]:
        """Names of the outputs that somebody has subscribed to."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def listeners(self) -> str:
        """Names of the outputs in use, for the diagnostics."""
        names = self.wanted()
        if self._broadcaster.pub_tf.get_subscription_count():
            names.add("tf")
        return ", ".join(sorted(names))

    def look(self, result: StepResult, wanted: set[str], options: NodeOptions) -> Glance:
        """Bring over what the transform needs and what decides about the rest. On a GPU this waits for the frame.

        It is a copy of its own, so that the transform does not wait for that of the maps: a hundred bytes against
        megabytes.
        """
        tensors = {
            name: getattr(result, name) for name in ("healthy", "intrinsics_known", "rule_index", "pose", "pose_raw")
        }
        if "odometry" in wanted:
            some = slice(None, None, MEDIAN_STRIDE)
            tensors["confidence"] = result.confidence[some, some].median()
            tensors["depth"] = result.depth[some, some].median()
        if "points" in wanted:
            tensors["points"] = _is_chosen(result, options).sum()
        numbers = dict(zip(tensors, to_host(list(tensors.values())), strict=True))
        return Glance(
            healthy=bool(numbers["healthy"]),
            intrinsics_known=bool(numbers["intrinsics_known"]),
            rule=UPDATE_RULES[int(numbers["rule_index"])],
            pose=geometry.world_pose(numbers["pose"]),
            pose_raw=geometry.world_pose(numbers["pose_raw"]),
            variances=(
                geometry.pose_variances(float(numbers["confidence"]), float(numbers["depth"]))
                if "odometry" in wanted
                else None
            ),
            points=int(numbers["points"]) if "points" in wanted else 0,
        )

    def publish(
        self,
        result: StepResult,
        glance: Glance,
        stamp: Time,
        child_frame: str,
        wanted: set[str],
        options: NodeOptions,
    ) -> None:
        """Publish what is `wanted` of a healthy result, at which `look` has looked. Raises nothing of its own."""
        in_world = Header(stamp=stamp, frame_id=options.world_frame)
        pose = PoseStamped(header=in_world, pose=conversions.pose_message(glance.pose))

        # Transform and pose first: whoever gets an image or a cloud will ask where it was taken.
        if options.publish_tf:
            self._broadcaster.sendTransform(conversions.transform_message(in_world, child_frame, pose.pose))
        if "pose" in wanted:
            self._publishers["pose"].publish(pose)
        seconds = conversions.seconds(stamp)
        if glance.variances is not None:
            odometry = self._odometry(glance, glance.variances, in_world, child_frame, pose.pose, seconds)
            self._publishers["odometry"].publish(odometry)
        self._last = glance.pose, seconds

        raw = PoseStamped(header=in_world, pose=conversions.pose_message(glance.pose_raw))
        with self._lock:
            self._trajectories["trajectory"].append(pose)
            self._trajectories["trajectory_raw"].append(raw)
            self._unsent = dict.fromkeys(self._trajectories, in_world)
        self._publish_maps(result, glance, Header(stamp=stamp, frame_id=child_frame), wanted, options)
        # Last, because they take longest and nobody waits for them. After a pause the stamps may lie before the last.
        if self._trajectories_sent is None or abs(seconds - self._trajectories_sent) >= TRAJECTORY_PERIOD:
            self._trajectories_sent = seconds
            self.publish_trajectories(wanted)

    def publish_trajectories(self, wanted: set[str]) -> None:
        """Publish the trajectories that have grown: when they are due, and from time to time for their ends, and for
        those who subscribe after the last frame."""
        with self._lock:
            for name in wanted & self._unsent.keys():
                header = self._unsent.pop(name)
                self._publishers[name].publish(Path(header=header, poses=self._trajectories[name].poses))

    def _odometry(
        self,
        glance: Glance,
        variances: tuple[float, float],
        header: Header,
        child_frame: str,
        pose: Pose,
        seconds: float,
    ) -> Odometry:
        interval = seconds - self._last[1] if self._last else 0.0
        velocity = geometry.twist(self._last[0], glance.pose, interval) if interval > 0 else None
        return conversions.odometry_message(header, child_frame, pose, variances, velocity, interval)

    def _publish_maps(
        self, result: StepResult, glance: Glance, header: Header, wanted: set[str], options: NodeOptions
    ) -> None:
        tensors = {topic: make(result) for topic, (_, make) in IMAGES.items() if topic in wanted}
        if "camera_info" in wanted:
            tensors["camera_info"] = result.intrinsics
        if "points" in wanted:
            tensors["points"] = _cloud_rows(result, options, glance.points)
        for topic, values in zip(tensors, to_host(list(tensors.values())), strict=True):
            if topic == "points":
                message = conversions.cloud_message(header, values)
            elif topic == "camera_info":
                height, width = result.depth.shape
                message = conversions.camera_info_message(header, values, width, height)
            else:
                message = conversions.image_message(header, values, IMAGES[topic][0])
            self._publishers[topic].publish(message)


def _is_chosen(result: StepResult, options: NodeOptions) -> Tensor:
    """(h, w) bool, strided: points for the cloud. The points of a healthy result are finite."""
    every = slice(None, None, options.points.stride)
    return result.confidence[every, every] >= options.confidence_threshold


def _cloud_rows(result: StepResult, options: NodeOptions, count: int) -> Tensor:
    """(count, 6) float32, the rows of `conversions.cloud_message`; `count`: how many points are chosen."""
    every = slice(None, None, options.points.stride)
    red, green, blue = result.image[every, every].int().unbind(-1)
    rows = torch.stack(
        (
            *result.points[every, every].unbind(-1),
            (red << 16 | green << 8 | blue).view(torch.float32),
            result.confidence[every, every],
            result.dynamic_mask[every, every].float(),
        ),
        dim=-1,
    )
    # A stable sort brings the chosen ones to the front in their order. To ask where they are, or how many, would make
    # a GPU wait once more.
    order = (~_is_chosen(result, options)).flatten().to(torch.uint8).argsort(stable=True)
    return rows.flatten(0, 1).index_select(0, order[:count])
