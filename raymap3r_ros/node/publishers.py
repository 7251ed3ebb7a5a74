"""The output topics of the node: results become messages, for topics that have subscribers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import numpy as np
import torch
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster
from torch import Tensor

from raymap3r_ros.geometry import cameras
from raymap3r_ros.mapping import uncertainty
from raymap3r_ros.node import conversions
from raymap3r_ros.node.localizer import PlacedFrame
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.summary import FrameSummary, select_points
from raymap3r_ros.node.tf_frames import Placement
from raymap3r_ros.node.trajectory import Trajectory
from raymap3r_ros.node.worlds import Worlds
from raymap3r_ros.streaming import StepResult
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
# These need the ray branch, which costs a second pass through the decoder.
MOTION_TOPICS = frozenset({"depth_static", "dynamic_mask", "dynamic_map", "points"})
# The content of each image topic, computed on the network's device.
IMAGES: dict[str, Callable[[StepResult], Tensor]] = {
    "depth": lambda result: result.depth.masked_fill(result.depth <= 0, torch.nan),
    "depth_static": lambda result: result.depth.masked_fill((result.depth <= 0) | result.dynamic_mask, torch.nan),
    "confidence": lambda result: result.confidence,
    "dynamic_mask": lambda result: result.dynamic_mask.to(torch.uint8) * 255,
    "dynamic_map": lambda result: result.dynamic_map,
    "rgb": lambda result: result.image,
}
ENCODINGS = {  # by dtype and number of dimensions
    (np.dtype(np.float32), 2): "32FC1",
    (np.dtype(np.uint16), 2): "16UC1",
    (np.dtype(np.uint8), 2): "mono8",
    (np.dtype(np.uint8), 3): "rgb8",
}
# Seconds of the images' stamps between two messages of a trajectory. A message of 1000 poses takes rclpy milliseconds,
# and a plot needs it a few times a second. ~/pose carries the newest pose of every frame.
TRAJECTORY_PERIOD = 0.5
SHOWN_POSES = 1000  # of a published trajectory, besides the newest


class Publishers:
    """The publishers of a configured node, and what they keep from frame to frame."""

    def __init__(self, node: LifecycleNode, error_model: uncertainty.ErrorModel) -> None:
        self._node = node
        self._error_model = error_model  # of the weights
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos) for name, (kind, qos) in TOPICS.items()
        }
        self._broadcaster = TransformBroadcaster(node)
        self._lock = threading.Lock()  # for the trajectories, which a timer publishes too
        self._trajectories = _no_trajectories()
        self._worlds: Worlds[tuple[dict[str, Trajectory], float]] = Worlds()  # and the distance travelled
        self._messages: dict[str, dict[int, PoseStamped]] = {name: {} for name in self._trajectories}  # by stamp
        self._placed: PlacedFrame | None = None  # the last one with a placement
        self._unsent: set[str] = set()  # trajectories that have grown since they were last published
        self._trajectories_sent: float | None = None  # stamp at which they were last due, seconds
        self._last_pose: np.ndarray | None = None  # of the last frame, as in FrameSummary
        self._travelled = 0.0  # since the start of the odometry frame, see `uncertainty.travel`

    def destroy(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._broadcaster.pub_tf)

    def enter_world(self, result: StepResult, options: NodeOptions) -> None:
        """Start with empty trajectories in a new world, or continue the ones of an earlier world."""
        with self._lock:
            kept = self._worlds.enter(result, (self._trajectories, self._travelled))
            self._trajectories, travelled = kept or (_no_trajectories(), 0.0)
            for messages in self._messages.values():
                messages.clear()
            self._unsent.clear()
            self._placed = None
        self._trajectories_sent = self._last_pose = None
        if options.tf_mode != "odom":  # there the odometry continues, and its drift with it
            self._travelled = travelled

    def wanted(self) -> set[str]:
        """Names of the outputs that have subscribers."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def subscribed_topics(self) -> set[str]:
        """Names of the outputs that have subscribers, including "tf"."""
        names = self.wanted()
        if self._broadcaster.pub_tf.get_subscription_count():
            names.add("tf")
        return names

    def publish(
        self,
        result: StepResult,
        summary: FrameSummary,
        placed: PlacedFrame,
        wanted: Collection[str],
        options: NodeOptions,
    ) -> None:
        """Publish the `wanted` outputs of a healthy result."""
        # Transform and pose first: subscribers of images and clouds look up where they were taken.
        if placed.placement is not None:
            self._publish_pose(summary, placed, placed.placement, wanted, options)
        header = Header(stamp=placed.stamp, frame_id=placed.camera_frame)
        self._publish_maps(result, summary, header, placed.scale, wanted, options)
        # Last, because they take longest and are least urgent. After a pause the stamps may lie before the last one.
        seconds = conversions.seconds(placed.stamp)
        if self._trajectories_sent is None or abs(seconds - self._trajectories_sent) >= TRAJECTORY_PERIOD:
            self._trajectories_sent = seconds
            self.publish_trajectories(wanted, options)

    def publish_trajectories(self, wanted: Collection[str], options: NodeOptions) -> None:
        """Publish the wanted trajectories that have grown.

        Called when they are due, and from time to time, for their last poses and for late subscribers.
        """
        with self._lock:
            for name in self._unsent.intersection(wanted):
                self._unsent.remove(name)
                header = Header(stamp=self._placed.stamp, frame_id=options.world_frame)
                self._publishers[name].publish(Path(header=header, poses=self._path(name, options.world_frame)))

    def trajectories(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: stamps (n,) in nanoseconds, and poses (n, 7) x y z and quaternion x y z w in `world_frame`."""
        with self._lock:  # only for the copies: the next frame waits
            samples, placed = {name: one.sample() for name, one in self._trajectories.items()}, self._placed
        return {name: (stamps, _numbers(poses, placed)) for name, (stamps, poses) in samples.items()}

    def _publish_pose(
        self,
        summary: FrameSummary,
        placed: PlacedFrame,
        placement: Placement,
        wanted: Collection[str],
        options: NodeOptions,
    ) -> None:
        stamp = placed.stamp
        if options.publish_tf and placement.transforms:
            self._broadcaster.sendTransform(
                [
                    conversions.transform_message(Header(stamp=stamp, frame_id=parent), child, matrix)
                    for parent, child, matrix in placement.transforms
                ]
            )
        if "pose" in wanted:
            header = Header(stamp=stamp, frame_id=options.world_frame)
            self._publishers["pose"].publish(
                PoseStamped(header=header, pose=conversions.pose_message(placement.camera))
            )
        step = 0.0 if self._last_pose is None else uncertainty.travel(self._last_pose, summary.pose)
        self._last_pose = summary.pose
        self._travelled += step
        if summary.confidence is not None:
            self._publishers["odometry"].publish(self._odometry(summary.confidence, placed, placement, step))
        nanoseconds = conversions.nanoseconds(stamp)
        with self._lock:
            self._trajectories["trajectory"].append(nanoseconds, summary.pose)
            self._trajectories["trajectory_raw"].append(nanoseconds, summary.pose_raw)
            self._unsent = set(self._trajectories)
            if self._placed is None or (placed.world_from_stream != self._placed.world_from_stream).any():
                for messages in self._messages.values():
                    messages.clear()  # the world has moved under them
            self._placed = placed

    def _odometry(self, confidence: float, placed: PlacedFrame, placement: Placement, step: float) -> Odometry:
        mount, scale = placement.child_from_camera, placed.scale
        twist_covariance = None
        if placement.motion is not None:
            twist_covariance = uncertainty.twist_covariance(
                self._error_model, mount, confidence, step, placement.interval, scale
            )
        return conversions.odometry_message(
            Header(stamp=placed.stamp, frame_id=placement.odometry_frame),
            placement.odometry_child,
            placement.odometry,
            uncertainty.pose_covariance(
                self._error_model, placement.odometry, mount, confidence, self._travelled, scale
            ),
            placement.motion,
            placement.interval,
            twist_covariance,
        )

    def _path(self, name: str, world_frame: str) -> list[PoseStamped]:
        """The pose messages of a trajectory. Those of the last call are used again."""
        stamps, poses = self._trajectories[name].sample(SHOWN_POSES)
        before, now = self._messages[name], {}
        new = [index for index, stamp in enumerate(stamps.tolist()) if stamp not in before]
        numbers = dict(zip(new, _numbers(poses[new], self._placed).tolist(), strict=True))
        for index, stamp in enumerate(stamps.tolist()):
            now[stamp] = before.get(stamp) or conversions.stamped_pose(world_frame, stamp, numbers[index])
        self._messages[name] = now
        return list(now.values())

    def _publish_maps(
        self,
        result: StepResult,
        summary: FrameSummary,
        header: Header,
        scale: float,
        wanted: Collection[str],
        options: NodeOptions,
    ) -> None:
        tensors = {topic: make(result) for topic, make in IMAGES.items() if topic in wanted}
        for topic in tensors.keys() & {"depth", "depth_static"}:
            if scale != 1:
                tensors[topic] = tensors[topic] * scale
            if options.depth_encoding == "16UC1":
                tensors[topic] = _millimetres(tensors[topic])
        if "camera_info" in wanted:
            tensors["camera_info"] = result.intrinsics
        if "points" in wanted:
            tensors["points"] = _cloud_rows(result, options, scale, summary.points)
        for topic, values in zip(tensors, to_host(list(tensors.values())), strict=True):
            if topic == "points":
                message = conversions.cloud_message(header, values)
            elif topic == "camera_info":
                height, width = result.depth.shape
                message = conversions.camera_info_message(header, values, width, height)
            else:
                message = conversions.image_message(header, values, ENCODINGS[values.dtype, values.ndim])
            self._publishers[topic].publish(message)


def _numbers(poses: np.ndarray, placed: PlacedFrame | None) -> np.ndarray:
    """Poses (n, 4, 4) in the stream's world as x y z and quaternion x y z w, (n, 7), in `world_frame`."""
    if len(poses) == 0 or placed is None:
        return np.empty((0, 7))
    world_from_stream = placed.world_from_stream
    positions = poses[:, :3, 3] @ world_from_stream[:3, :3].T + world_from_stream[:3, 3]
    rotations = placed.placement.world_from_stream[:3, :3] @ poses[:, :3, :3]
    quaternions = cameras.quaternion(torch.from_numpy(rotations)).numpy()
    return np.concatenate((positions, quaternions[:, [1, 2, 3, 0]]), axis=1)


def _no_trajectories() -> dict[str, Trajectory]:
    return {"trajectory": Trajectory(), "trajectory_raw": Trajectory()}


def _millimetres(depth: Tensor) -> Tensor:
    """(h, w) uint16 millimetres from depth in metres; 0 where it is unknown or out of range (REP 118)."""
    millimetres = (depth * 1000).round().nan_to_num(0.0)
    fits = (millimetres > 0) & (millimetres < 2**16)
    # Through int16, which has the same bits: few operations support uint16.
    return torch.where(fits, millimetres, 0.0).int().to(torch.int16).view(torch.uint16)


def _cloud_rows(result: StepResult, options: NodeOptions, scale: float, count: int) -> Tensor:
    """(count, 6) float32, the rows of `conversions.cloud_message`; `count`: number of selected points."""
    strided = slice(None, None, options.points.stride)
    red, green, blue = result.image[strided, strided].int().unbind(-1)
    rows = torch.stack(
        (
            *(result.points[strided, strided] * scale).unbind(-1),
            (red << 16 | green << 8 | blue).view(torch.float32),
            result.confidence[strided, strided],
            result.dynamic_mask[strided, strided].float(),
        ),
        dim=-1,
    )
    # A stable sort moves the selected points to the front, in their order. Boolean indexing would wait for the GPU.
    order = (~select_points(result, options)).flatten().to(torch.uint8).argsort(stable=True)
    return rows.flatten(0, 1).index_select(0, order[:count])
