"""The subscriber of the demo: records every output of the node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from raymap3r_ros.clients.harness import OutputSubscriber
from raymap3r_ros.node import conversions
from raymap3r_ros.node.publishers import TOPICS

FIRST_LIMIT = 300.0  # seconds until the first message: a frame of the public weights can take a minute on a CPU
IDLE_LIMIT = 30.0  # seconds until the next one, or three times the longest wait: then the recording ends
PICTURES = ("rgb", "depth", "dynamic_map", "dynamic_mask")
MAX_PICTURES = 300  # frames kept for the preview


@dataclass
class Recorded:
    """Everything received from the node. Stamps in nanoseconds, latencies in seconds."""

    stamps: dict[str, list[int]] = field(default_factory=dict)  # by topic
    latencies: dict[str, list[float]] = field(default_factory=dict)  # by topic
    poses: dict[int, conversions.Numbers] = field(default_factory=dict)  # by stamp
    transforms: dict[int, conversions.Numbers] = field(default_factory=dict)  # by stamp
    not_finite: int = 0  # pixels of ~/depth
    intrinsics: np.ndarray | None = None  # (3, 3) pixels of the last images of ~/rgb
    picture_stamps: list[int] = field(default_factory=list)  # of the pictures, nanoseconds
    # rgb, depth, dynamic map, mask; the last two are None if motion was not estimated, as in the first frames
    pictures: list[tuple[np.ndarray | None, ...]] = field(default_factory=list)
    diagnostics: dict[str, str] = field(default_factory=dict)  # values of the last message


class Recorder(OutputSubscriber):
    """Subscribes to every output; replies to the stamp of the last image with a Recorded, once its outputs arrived."""

    def __init__(
        self, node: Node, node_name: str, image_topic: str, child_frame: str, calibration_topic: str = ""
    ) -> None:
        """`child_frame`: frame of the transforms to record. `calibration_topic`: full name, if the camera has one."""
        self._child_frame = child_frame
        self._calibration_topic = calibration_topic
        outputs = (*TOPICS, "tf")
        self._recorded = Recorded({topic: [] for topic in outputs}, {topic: [] for topic in outputs})
        self._messages = 0
        self._pictures: dict[int, dict[str, np.ndarray]] = {}
        super().__init__(node, node_name, outputs, image_topic)

    def is_connected(self) -> bool:
        """Also whether the node has matched the calibration of the camera."""
        topic = self._calibration_topic
        return super().is_connected() and (not topic or self.diagnostics.publishers_of(topic) > 0)

    def receive(self, topic: str, message: Any) -> None:
        """Record a message."""
        if topic == "tf":
            self._receive_transforms(message)
            return
        stamp = self._add(topic, message.header.stamp)
        if topic == "pose":
            self._recorded.poses[stamp] = conversions.pose_numbers(message.pose.position, message.pose.orientation)
        if topic == "camera_info":
            self._recorded.intrinsics = np.array(message.k, np.float64).reshape(3, 3)
        if topic == "depth":
            self._recorded.not_finite += int((~np.isfinite(_array(message))).sum())
        if topic in PICTURES and (stamp in self._pictures or len(self._pictures) < MAX_PICTURES):
            self._pictures.setdefault(stamp, {})[topic] = _array(message)

    def reply(self, request: int) -> Recorded:
        """Everything, when all outputs of the image with this stamp have arrived, or a limit has passed."""
        since, seen, slowest = time.monotonic(), self._messages, 0.0
        while not self._is_complete(request):
            now = time.monotonic()
            if self._messages > seen:
                since, seen, slowest = now, self._messages, max(slowest, now - since)
            if now - since > (max(IDLE_LIMIT, 3 * slowest) if seen else FIRST_LIMIT):
                break
            self.spin()
        complete = {stamp: maps for stamp, maps in sorted(self._pictures.items()) if {"rgb", "depth"} <= maps.keys()}
        self._recorded.picture_stamps = list(complete)
        self._recorded.pictures = [tuple(maps.get(topic) for topic in PICTURES) for maps in complete.values()]
        self._recorded.diagnostics = self.diagnostics.values
        return self._recorded

    def _is_complete(self, last: int) -> bool:
        """Whether every topic has reached this stamp, and the diagnostics count all frames received."""
        stamps = self._recorded.stamps
        counted = self.diagnostics.integer("frames out") >= len(stamps["pose"])
        return counted and all(values and values[-1] == last for values in stamps.values())

    def _add(self, topic: str, stamp: Any) -> int:
        """Add stamp and latency of a message; the stamp in nanoseconds."""
        self._messages += 1
        nanoseconds = conversions.nanoseconds(stamp)
        self._recorded.stamps[topic].append(nanoseconds)
        self._recorded.latencies[topic].append((self.node.get_clock().now().nanoseconds - nanoseconds) * 1e-9)
        return nanoseconds

    def _receive_transforms(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._child_frame:
                stamp = self._add("tf", transform.header.stamp)
                pose = transform.transform
                self._recorded.transforms[stamp] = conversions.pose_numbers(pose.translation, pose.rotation)


_DECODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "32FC1": lambda data: data.view(np.float32),
    "mono8": lambda data: data > 0,
    "rgb8": lambda data: data.reshape(*data.shape[:1], -1, 3),
}


def _array(message: Image) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return _DECODERS[message.encoding](data)
