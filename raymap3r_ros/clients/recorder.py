"""The recorder of the demo: subscribes to every output of the node, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from raymap3r_ros.node import conversions
from raymap3r_ros.node.publishers import RELIABLE, TOPICS

DEPTH = 200  # messages that may wait: the recorder must not be what loses them
IDLE_LIMIT = 30.0  # seconds without any message after which the rest is given up
PICTURES = ("rgb", "depth", "dynamic_map", "dynamic_mask")
MAX_PICTURES = 300  # frames kept for the preview


@dataclass
class Recorded:
    """All that came out of the node. Stamps in nanoseconds, latencies in seconds."""

    stamps: dict[str, list[int]] = field(default_factory=dict)  # by topic
    latencies: dict[str, list[float]] = field(default_factory=dict)  # by topic
    poses: dict[int, conversions.Numbers] = field(default_factory=dict)  # by stamp
    transforms: dict[int, conversions.Numbers] = field(default_factory=dict)  # by stamp
    not_finite: int = 0  # pixels of ~/depth
    # rgb, depth, dynamic map, mask; the last two None where nobody knows what moves, as in the first frames
    pictures: list[tuple[np.ndarray | None, ...]] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)  # the node's diagnostics


def record(pipe: Connection, node_name: str, image_topic: str, child_frame: str) -> None:
    """Record until the frame of the stamp that is received through `pipe` is there; answers with a Recorded.

    Before that it answers once with an empty one, as soon as the node serves every one of its subscriptions and
    hears a publisher of `image_topic`.
    """
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    recorder = _Recorder(rclpy.create_node("recorder"), node_name, image_topic, child_frame)
    try:
        while not recorder.served():
            recorder.spin()
            if pipe.poll():  # nobody says anything yet: the other end is closed
                return
        pipe.send(Recorded())
        while not pipe.poll():
            recorder.spin()
        last = pipe.recv()
        while not recorder.complete(last) and recorder.idle() < IDLE_LIMIT:
            recorder.spin()
        pipe.send(recorder.finish())
    except (EOFError, BrokenPipeError):
        pass  # the demo was interrupted
    finally:
        rclpy.shutdown()


class _Recorder:
    def __init__(self, node: Node, node_name: str, image_topic: str, child_frame: str) -> None:
        self._node, self._child_frame, self._image_topic = node, child_frame, image_topic
        self._recorded = Recorded()
        self._heard = time.monotonic()
        self._pictures: dict[int, dict[str, np.ndarray]] = {}
        best_effort = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        reliable = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        for topic, (kind, qos) in TOPICS.items():
            own = reliable if qos.reliability == RELIABLE.reliability else best_effort
            node.create_subscription(kind, f"{node_name}/{topic}", partial(self._take, topic), own)
            self._recorded.stamps[topic], self._recorded.latencies[topic] = [], []
        node.create_subscription(TFMessage, "/tf", self._take_transforms, reliable)
        self._recorded.stamps["tf"], self._recorded.latencies["tf"] = [], []
        self._status_name = f"{node_name}: stream"
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, 10)

    def spin(self) -> None:
        rclpy.spin_once(self._node, timeout_sec=0.1)

    def served(self) -> bool:
        """Whether the node itself knows of the camera and of every subscription: to be matched on this side alone is
        too early."""
        told = self._recorded.told
        outputs = set(told.get("subscribed outputs", "").split(", "))
        heard = int(told.get(f"publishers of {self._image_topic}", 0))
        return heard > 0 and outputs.issuperset(self._recorded.stamps)

    def idle(self) -> float:
        """Seconds since the last message."""
        return time.monotonic() - self._heard

    def complete(self, last: int) -> bool:
        """Whether every topic has come up to this stamp, and the diagnostics count all that came."""
        stamps = self._recorded.stamps
        counted = int(self._recorded.told.get("frames out", 0)) >= len(stamps["pose"])
        return counted and all(values and values[-1] == last for values in stamps.values())

    def finish(self) -> Recorded:
        """Everything, with the pictures in order that have an image and its depth."""
        seen = [maps for _, maps in sorted(self._pictures.items()) if {"rgb", "depth"} <= maps.keys()]
        self._recorded.pictures = [tuple(maps.get(topic) for topic in PICTURES) for maps in seen]
        return self._recorded

    def _note(self, topic: str, stamp: Any) -> int:
        self._heard = time.monotonic()
        nanoseconds = conversions.nanoseconds(stamp)
        self._recorded.stamps[topic].append(nanoseconds)
        self._recorded.latencies[topic].append((self._node.get_clock().now().nanoseconds - nanoseconds) * 1e-9)
        return nanoseconds

    def _take(self, topic: str, message: Any) -> None:
        stamp = self._note(topic, message.header.stamp)
        if topic == "pose":
            self._recorded.poses[stamp] = conversions.pose_numbers(message.pose.position, message.pose.orientation)
        if topic == "depth":
            self._recorded.not_finite += int((~np.isfinite(_array(message))).sum())
        if topic in PICTURES and (stamp in self._pictures or len(self._pictures) < MAX_PICTURES):
            self._pictures.setdefault(stamp, {})[topic] = _array(message)

    def _take_transforms(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._child_frame:
                stamp = self._note("tf", transform.header.stamp)
                pose = transform.transform
                self._recorded.transforms[stamp] = conversions.pose_numbers(pose.translation, pose.rotation)

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._status_name:
                self._recorded.told = {item.key: item.value for item in status.values}


_DECODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "32FC1": lambda data: data.view(np.float32),
    "mono8": lambda data: data > 0,
    "rgb8": lambda data: data.reshape(*data.shape[:1], -1, 3),
}


def _array(message: Image) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return _DECODERS[message.encoding](data)
