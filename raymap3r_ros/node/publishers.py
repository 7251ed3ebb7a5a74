"""The node's output topics: what a result becomes, and only for those who listen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster
from torch import Tensor

from raymap3r_ros.geometry import cameras, poses
from raymap3r_ros.mapping import uncertainty
from raymap3r_ros.mapping.scale import MetricScale
from raymap3r_ros.node import conversions
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.tf_frames import Placement
from raymap3r_ros.node.trajectory import Trajectory
from raymap3r_ros.streaming import StepResult
from raymap3r_ros.streaming.gates import rule_name
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
# What every image topic shows, made on the network's device.
IMAGES: dict[str, Callable[[StepResult], Tensor]] = {
    "depth": lambda result: result.depth.masked_fill(result.depth <= 0, torch.nan),
    "depth_static": lambda result: result.depth.masked_fill((result.depth <= 0) | result.dynamic_mask, torch.nan),
    "confidence": lambda result: result.confidence,
    "dynamic_mask": lambda result: result.dynamic_mask.to(torch.uint8) * 255,
    "dynamic_map": lambda result: result.dynamic_map,
    "rgb": lambda result: result.image,
}
ENCODINGS = {  # by type and number of dimensions
    (np.dtype(np.float32), 2): "32FC1",
    (np.dtype(np.uint16), 2): "16UC1",
    (np.dtype(np.uint8), 2): "mono8",
    (np.dtype(np.uint8), 3): "rgb8",
}
# Seconds of the images' stamps between two messages of a trajectory: one of 1000 poses takes rclpy milliseconds, and
# who plots the way of the camera needs it a few times a second. ~/pose tells the newest pose with every frame.
TRAJECTORY_PERIOD = 0.5
SHOWN_POSES = 1000  # of a published trajectory, besides the newest
MEDIAN_STRIDE = 4  # rows and columns: a sixteenth of the pixels gives as good a median for the covariance


@dataclass(frozen=True)
class FrameSummary:
    """The few numbers of a frame, in host memory, that decide what is published of it."""

    healthy: bool  # see StepResult; nothing may be published of a frame that is not
    intrinsics_known: bool
    rule: str
    pose: np.ndarray  # (4, 4) camera to the stream's world turned to REP 103 axes, in the stream's metres, float64
    pose_raw: np.ndarray  # the same without smoothing
    confidence: float | None  # median over the image; None where nobody wants odometry
    points: int  # how many the cloud has; 0 where nobody wants it
    seen_scale: np.ndarray | None  # what `MetricScale.update` asks of the frame


@dataclass(frozen=True)
class PlacedFrame:
    """Where a frame was taken, and how long the stream's metre is."""

    stamp: Time
    camera_frame: str
    scale: float  # metres per metre of the stream
    placement: Placement | None  # None: the camera's place in the robot is not known, so nothing is known of the world

    @property
    def world_from_stream(self) -> np.ndarray:
        """(4, 4) similarity: the stream's world of REP 103 axes to `world_frame`."""
        return self.placement.world_from_stream @ np.diag([self.scale] * 3 + [1.0])


class Publishers:
    """The publishers of a configured node, and the little that is remembered from frame to frame."""

    def __init__(self, node: LifecycleNode, error_model: uncertainty.ErrorModel) -> None:
        self._node = node
        self._error_model = error_model  # of the weights
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos) for name, (kind, qos) in TOPICS.items()
        }
        self._broadcaster = TransformBroadcaster(node)
        self._lock = threading.Lock()  # of the trajectories, which a timer publishes too
        self._trajectories = {"trajectory": Trajectory(), "trajectory_raw": Trajectory()}
        self._messages: dict[str, dict[int, PoseStamped]] = {name: {} for name in self._trajectories}  # by stamp
        self._sight: PlacedFrame | None = None  # the last with a placement
        self._unsent: set[str] = set()  # trajectories that have grown since they were last published
        self._trajectories_sent: float | None = None  # stamp at which they were last due
        self._last_pose: np.ndarray | None = None  # of the last frame, as in Glance
        self._travelled = 0.0  # since the odometry's frame began, see `uncertainty.travel`

    def destroy(self) -> None:
        """Take the topics back."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._broadcaster.pub_tf)

    def restart(self, options: NodeOptions) -> None:
        """A new world: nothing of the old one may be joined to it."""
        with self._lock:
            for name, trajectory in self._trajectories.items():
                trajectory.clear()
                self._messages[name].clear()
            self._unsent.clear()
            self._sight = None
        self._trajectories_sent = self._last_pose = None
        if options.tf_mode != "odom":  # there the odometry goes on, and with it what it may be off by
            self._travelled = 0.0

    def wanted(self) -> set[str]:
        """Names of the outputs that somebody has subscribed to."""
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def listeners(self) -> set[str]:
        """Names of the outputs in use, the transforms among them."""
        names = self.wanted()
        if self._broadcaster.pub_tf.get_subscription_count():
            names.add("tf")
        return names

    def look(self, result: StepResult, wanted: set[str], options: NodeOptions, scale: MetricScale) -> FrameSummary:
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
        if "points" in wanted:
            tensors["points"] = _is_chosen(result, options).sum()
        seen_scale = scale.look(result, options.confidence_threshold)
        if seen_scale is not None:
            tensors["seen_scale"] = seen_scale
        numbers = dict(zip(tensors, to_host(list(tensors.values())), strict=True))
        return FrameSummary(
            healthy=bool(numbers["healthy"]),
            intrinsics_known=bool(numbers["intrinsics_known"]),
            rule=rule_name(int(numbers["rule_index"])),
            pose=poses.world_pose(numbers["pose"]),
            pose_raw=poses.world_pose(numbers["pose_raw"]),
            confidence=float(numbers["confidence"]) if "odometry" in wanted else None,
            points=int(numbers["points"]) if "points" in wanted else 0,
            seen_scale=numbers.get("seen_scale"),
        )

    def publish(
        self, result: StepResult, glance: FrameSummary, sight: PlacedFrame, wanted: set[str], options: NodeOptions
    ) -> None:
        """Publish what is `wanted` of a healthy result, at which `look` has looked. Raises nothing of its own."""
        # Transform and pose first: whoever gets an image or a cloud will ask where it was taken.
        if sight.placement is not None:
            self._publish_pose(glance, sight, sight.placement, wanted, options)
        header = Header(stamp=sight.stamp, frame_id=sight.camera_frame)
        self._publish_maps(result, glance, header, sight.scale, wanted, options)
        # Last, because they take longest and nobody waits for them. After a pause the stamps may lie before the last.
        seconds = conversions.seconds(sight.stamp)
        if self._trajectories_sent is None or abs(seconds - self._trajectories_sent) >= TRAJECTORY_PERIOD:
            self._trajectories_sent = seconds
            self.publish_trajectories(wanted, options)

    def publish_trajectories(self, wanted: set[str], options: NodeOptions) -> None:
        """Publish the trajectories that have grown: when they are due, and from time to time for their ends, and for
        those who subscribe after the last frame."""
        with self._lock:
            for name in wanted & self._unsent:
                self._unsent.remove(name)
                header = Header(stamp=self._sight.stamp, frame_id=options.world_frame)
                self._publishers[name].publish(Path(header=header, poses=self._path(name, options.world_frame)))

    def trajectories(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: stamps (n,) in nanoseconds, and poses (n, 7) x y z and quaternion x y z w in `world_frame`."""
        with self._lock:  # no longer than for the copies: the next frame waits
            samples, sight = {name: one.sample() for name, one in self._trajectories.items()}, self._sight
        return {name: (stamps, _numbers(poses, sight)) for name, (stamps, poses) in samples.items()}

    def _publish_pose(
        self, glance: FrameSummary, sight: PlacedFrame, placement: Placement, wanted: set[str], options: NodeOptions
    ) -> None:
        stamp = sight.stamp
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
        step = 0.0 if self._last_pose is None else uncertainty.travel(self._last_pose, glance.pose)
        self._last_pose = glance.pose
        self._travelled += step
        if glance.confidence is not None:
            self._publishers["odometry"].publish(self._odometry(glance.confidence, sight, placement, step))
        nanoseconds = conversions.nanoseconds(stamp)
        with self._lock:
            self._trajectories["trajectory"].append(nanoseconds, glance.pose)
            self._trajectories["trajectory_raw"].append(nanoseconds, glance.pose_raw)
            self._unsent = set(self._trajectories)
            if self._sight is None or (sight.world_from_stream != self._sight.world_from_stream).any():
                for messages in self._messages.values():
                    messages.clear()  # they stand elsewhere now
            self._sight = sight

    def _odometry(self, confidence: float, sight: PlacedFrame, placement: Placement, step: float) -> Odometry:
        mount, scale = placement.child_from_camera, sight.scale
        twist_covariance = None
        if placement.motion is not None:
            twist_covariance = uncertainty.twist_covariance(
                self._error_model, mount, confidence, step, placement.interval, scale
            )
        return conversions.odometry_message(
            Header(stamp=sight.stamp, frame_id=placement.odometry_frame),
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
        """The messages of a trajectory, of which those that are new are made."""
        stamps, poses = self._trajectories[name].sample(SHOWN_POSES)
        before, now = self._messages[name], {}
        fresh = [index for index, stamp in enumerate(stamps.tolist()) if stamp not in before]
        made = dict(zip(fresh, _numbers(poses[fresh], self._sight).tolist(), strict=True))
        for index, stamp in enumerate(stamps.tolist()):
            now[stamp] = before.get(stamp) or conversions.stamped_pose(world_frame, stamp, made[index])
        self._messages[name] = now
        return list(now.values())

    def _publish_maps(
        self,
        result: StepResult,
        glance: FrameSummary,
        header: Header,
        scale: float,
        wanted: set[str],
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
            tensors["points"] = _cloud_rows(result, options, scale, glance.points)
        for topic, values in zip(tensors, to_host(list(tensors.values())), strict=True):
            if topic == "points":
                message = conversions.cloud_message(header, values)
            elif topic == "camera_info":
                height, width = result.depth.shape
                message = conversions.camera_info_message(header, values, width, height)
            else:
                message = conversions.image_message(header, values, ENCODINGS[values.dtype, values.ndim])
            self._publishers[topic].publish(message)


def _numbers(poses: np.ndarray, sight: PlacedFrame | None) -> np.ndarray:
    """Poses (n, 4, 4) in the stream's world as x y z and quaternion x y z w, (n, 7), in `world_frame`."""
    if len(poses) == 0 or sight is None:
        return np.empty((0, 7))
    world_from_stream = sight.world_from_stream
    positions = poses[:, :3, 3] @ world_from_stream[:3, :3].T + world_from_stream[:3, 3]
    rotations = sight.placement.world_from_stream[:3, :3] @ poses[:, :3, :3]
    quaternions = cameras.quaternion(torch.from_numpy(rotations)).numpy()
    return np.concatenate((positions, quaternions[:, [1, 2, 3, 0]]), axis=1)


def _millimetres(depth: Tensor) -> Tensor:
    """(h, w) uint16 millimetres of depth in metres; 0 where it is unknown or does not fit (REP 118)."""
    millimetres = (depth * 1000).round().nan_to_num(0.0)
    fits = (millimetres > 0) & (millimetres < 2**16)
    # By way of int16, whose bits are the same: few operations take uint16.
    return torch.where(fits, millimetres, 0.0).int().to(torch.int16).view(torch.uint16)


def _is_chosen(result: StepResult, options: NodeOptions) -> Tensor:
    """(h, w) bool, strided: points for the cloud. The points of a healthy result are finite; behind the camera lies
    what the network makes of a depth that it does not know."""
    every = slice(None, None, options.points.stride)
    chosen = (result.confidence[every, every] >= options.confidence_threshold) & (result.depth[every, every] > 0)
    return chosen & ~result.dynamic_mask[every, every] if options.points.static_only else chosen


def _cloud_rows(result: StepResult, options: NodeOptions, scale: float, count: int) -> Tensor:
    """(count, 6) float32, the rows of `conversions.cloud_message`; `count`: how many points are chosen."""
    every = slice(None, None, options.points.stride)
    red, green, blue = result.image[every, every].int().unbind(-1)
    rows = torch.stack(
        (
            *(result.points[every, every] * scale).unbind(-1),
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
