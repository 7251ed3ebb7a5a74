"""Plays the images of a ROS 2 bag into a stream node, no faster than the node processes them, and records its output.

Ground truth in the bag is collected for the evaluation.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Range
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.clients.bag import (
    RANGE_TYPE,
    TF,
    TF_STATIC,
    Bag,
    ReplayOptions,
    absolute,
    scale_topic,
    without_slash,
)
from raymap3r_ros.clients.graph import FOREIGN, MIXED, refuse_other_publishers, refuse_shared_name, wait_for_node
from raymap3r_ros.clients.ground_truth import GroundTruthCollector
from raymap3r_ros.clients.harness import QUEUE_DEPTH, SPIN_TIME, START_LIMIT, Diagnostics, check_running
from raymap3r_ros.clients.played_worlds import PlayedWorlds
from raymap3r_ros.clients.transforms import PlayedTransforms
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.geometry.calibration import camera_of
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.node.conversions import Numbers, nanoseconds, pose_numbers
from raymap3r_ros.node.dds_profile import to_check
from raymap3r_ros.node.diagnostics import COUNTS
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import LATCHED
from raymap3r_ros.options import option_fields
from raymap3r_ros.stamps import JumpDetector, StampClock
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.text import counted

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 10  # frames: enough to keep the node busy, far below the 100 of its queue
LONGEST_PAUSE = 60.0  # seconds of a recording without messages, as it is played; of longer ones nothing
STALL_LIMIT = 60.0  # seconds without an outcome after which the frames in flight are given up
CONNECT_LIMIT = 20.0  # seconds for a node that is active to take the images of this player
OUTCOMES = tuple(
    name for name in COUNTS if name not in ("frames in", "frames without pose", "resets")
)  # diagnostics; one per frame

# Of ROS 2 Humble. Later distributions have the same messages, except Range.
_store = get_typestore(Stores.ROS2_HUMBLE)
_Time = _store.types["builtin_interfaces/msg/Time"]
_TFMessage = _store.types["tf2_msgs/msg/TFMessage"]


@dataclass(frozen=True)
class SentFrame:
    """An image that was sent."""

    stamp: int  # nanoseconds
    sent: float  # seconds of the monotonic clock


@dataclass
class Playback:
    """The images sent to the node and its output."""

    ground_truth: GroundTruthCollector
    frames: list[SentFrame] = field(default_factory=list)
    unreadable: int = 0  # damaged image messages of the bag, which were not sent
    poses: dict[int, Numbers] = field(default_factory=dict)  # ~/pose by index of the frame
    latencies: dict[int, float] = field(default_factory=dict)  # seconds from sending to ~/pose, by index of the frame
    # Where the frames of another world begin: index of the first one -> of the first frame of that world
    worlds: dict[int, int] = field(default_factory=dict)
    missing: int | None = 0  # images after an early end of the bag; None: the bag does not contain their number
    ended: str = ""  # why the bag ended early
    outside: int | None = 0  # images before `start` or after `duration`; None: the bag does not contain their number
    passes: int = 0  # started
    seconds: float = 0.0
    stopped: bool = False  # before the end
    counts: dict[str, int] = field(default_factory=dict)  # COUNTS of the node, since the first frame
    diagnostics: dict[str, str] = field(default_factory=dict)  # of the node, last values
    parameters: dict[str, Any] = field(default_factory=dict)  # of the node
    scale_topic: str = ""  # topic of the bag for scale.source; empty if the source needs none


def play(
    bag: Bag,
    options: ReplayOptions,
    camera: Node,
    node_name: str,
    process: subprocess.Popen | None = None,
    stop: threading.Event | None = None,
    *,
    beside_others: bool = True,
) -> Playback:
    """Play `bag` from the node `camera`, which is in the namespace of the stream node `node_name` (full name).

    Waits for the stream node first. It should run with every_frame and use_sim_time. `process`: of the stream node, if
    the caller has started it; setting `stop` ends the playback early. `beside_others`: play also if other nodes
    publish transforms or a clock on the topics that the camera uses.

    Raises Raymap3rError if the stream node does not respond, does not subscribe to the images of the bag, ends, or is
    not the only one of its name, or if others publish and may not; and InputError if the topic for its scale.source is
    ambiguous or missing.
    """
    player = _Player(bag, options, camera, node_name, process, stop or threading.Event())
    try:
        player.connect(beside_others)
        for _ in range(options.loop):
            player.play()
        return player.finish()
    finally:
        player.close()


class _Player:
    def __init__(
        self,
        bag: Bag,
        options: ReplayOptions,
        camera: Node,
        node_name: str,
        process: subprocess.Popen | None,
        stop: threading.Event,
    ) -> None:
        self._bag, self._options, self._camera, self._node_name = bag, options, camera, node_name
        self._process, self._stop = process, stop
        self._playback = Playback(GroundTruthCollector(bag.frame))
        self._first_pending = 0  # index of the first frame after the last pose
        self._given_up = 0  # index of the first frame after those given up
        self._worlds = PlayedWorlds(self._playback.worlds)
        self._jump_detector = JumpDetector()
        self._stamp_clock: StampClock | None = None  # of the current pass
        self._first_stamp: list[tuple[int, int]] = []  # stamp and time of the first image with a stamp
        self._first_camera_info: Any = None
        self._camera_info: Any = None  # last one that differed
        self._static: dict[str, Any] = {}  # transforms of /tf_static by child frame; late subscribers need all of them
        self._transforms = PlayedTransforms()
        self._counts_before: dict[str, int] = {}  # the node's counts before the first frame

        self._images = camera.create_publisher(
            CompressedImage if bag.compressed else Image, "image/compressed" if bag.compressed else "image",
            QoSProfile(depth=2 * MAX_IN_FLIGHT),
        )  # fmt: skip
        self._camera_infos = camera.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=10))
        self._sensor: Publisher | None = None  # for scale.source
        self._clock = camera.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._tf = camera.create_publisher(TFMessage, TF, QoSProfile(depth=100))
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._tf_static = camera.create_publisher(TFMessage, TF_STATIC, latched)
        poses = camera.create_subscription(PoseStamped, f"{node_name}/pose", self._on_pose, QoSProfile(depth=100))
        # Deeper than 1: the first path of a world may still be waiting when the next world begins.
        deep = copy.copy(LATCHED)
        deep.depth = QUEUE_DEPTH
        paths = camera.create_subscription(PathMessage, f"{node_name}/trajectory_raw", self._on_path, deep)
        self._results = poses, paths
        self._diagnostics = Diagnostics(camera, node_name)
        self._parameters = camera.create_client(GetParameters, f"{node_name}/get_parameters")
        self._executor = SingleThreadedExecutor(context=camera.context)
        self._executor.add_node(camera)

    def close(self) -> None:
        """Stop handling callbacks."""
        self._executor.remove_node(self._camera)
        self._executor.shutdown()

    # ----------------------------------------------------------------------------------------------------- playing

    def connect(self, beside_others: bool) -> None:
        """Wait until the node is connected to this player, check the graph, and read the node's parameters."""
        # Opening a bag takes a second. Meanwhile the node starts; once it is active, images follow at once.
        bag = self._bag
        self._first_stamp = list(islice((item for item in bag.image_times() if item[0] > 0), 1))
        if bag.camera_info:
            self._first_camera_info = next((message for _, _, message in bag.messages([bag.camera_info])), None)
        if self._process is None:
            wait_for_node(self._camera, self._node_name, self._wait)
        deadline = self._connection_limit()
        publishers = [self._images, *([self._camera_infos] if self._bag.camera_info else [])]
        if not self._wait(lambda: self._has_matched(*publishers) and self._outputs_are_matched(), deadline):
            self._raise_not_connected("images", self._images, "image_transport as in the bag")
            return
        refuse_shared_name(self._camera, self._node_name)
        refuse_other_publishers(self._camera, self._node_name, (self._images,), MIXED)
        refuse_other_publishers(self._camera, self._node_name, self._results, FOREIGN)
        if not beside_others:
            refuse_other_publishers(self._camera, self._node_name, (self._tf, self._tf_static, self._clock))
        names = [name for kind in (NodeOptions, StreamOptions) for name, _ in option_fields(kind)]
        future = self._parameters.call_async(GetParameters.Request(names=["use_sim_time", *names]))
        if not self._wait(future.done, deadline):
            return
        values = [parameter_value_to_python(value) for value in future.result().values]
        if len(values) != 1 + len(names):  # rclpy's response is empty if one of them is not declared
            raise Raymap3rError(
                f"the node {self._node_name} does not have all parameters of the stream node of this version; start "
                "it from the same installation as this command"
            )
        parameters = self._playback.parameters = dict(zip(names, values[1:], strict=True))
        for name, value in (("every_frame", parameters["every_frame"]), ("use_sim_time", values[0])):
            if not value:
                log.warning("%s of the node %s is false; set it to true for a replay", name, self._node_name)
        self._transforms.use({**parameters, "child_frame": parameters["child_frame"] or self._bag.frame})
        if self._diagnostics.values.get("state") == "paused":
            raise Raymap3rError(
                f"the node {self._node_name} is paused and takes no images; continue it: ros2 service call "
                f"{self._node_name}/set_paused std_srvs/srv/SetBool '{{data: false}}'"
            )
        self._advertise_sensor(parameters["scale.source"], deadline)
        self._counts_before = self._counts()

    def _connection_limit(self) -> float:
        """When to give up that the node takes the images: a node that is active already is subscribed to them."""
        start = time.monotonic()
        if self._process is None:
            self._wait(lambda: self._diagnostics.values.get("state") in ("active", "paused"), start + START_LIMIT)
            return time.monotonic() + CONNECT_LIMIT
        return start + START_LIMIT

    def _advertise_sensor(self, source: str, deadline: float) -> None:
        """Select the topic for scale.source, and wait until the node is subscribed to it."""
        options = self._options
        for chosen, its_source in ((options.range, "range"), (options.wheel_odometry, "odometry")):
            if chosen and its_source != source:
                log.warning("%s is not played: scale.source is %s, not %s", absolute(chosen), source, its_source)
        self._playback.scale_topic = scale_topic(self._bag, options, source)
        if not self._playback.scale_topic:
            return
        kind, name = (Range, "range") if source == "range" else (Odometry, "wheel_odometry")
        self._sensor = self._camera.create_publisher(kind, name, QoSProfile(depth=100))
        if not self._wait(lambda: self._has_matched(self._sensor), deadline):
            self._raise_not_connected(source, self._sensor, "without a remapping of it")

    def play(self) -> None:
        """One pass, up to the outcome of its last frame."""
        if self._stop.is_set():
            return
        bag, options, playback = self._bag, self._options, self._playback
        sensor = playback.scale_topic
        playback.passes += 1
        self._stamp_clock = StampClock(lambda text: log.warning("%s: %s", bag.path.name, text), self._first_stamp)
        end = options.start + options.duration if options.duration else math.inf
        if bag.camera_info:
            # The first calibration is used for the images before it too, as in `io.formats.bag`.
            self._send_camera_info(self._first_camera_info)
        topics = [bag.images, TF, TF_STATIC, *bag.odometry, *(name for name in (bag.camera_info, sensor) if name)]
        started = time.monotonic()
        first = begin = None
        seen = 0
        for topic, recorded, message in bag.messages(topics, self._on_loss):
            seen += topic == bag.images
            if isinstance(message, BrokenFrame):  # even its time may be impossible
                self._report_broken(topic, message)
                continue
            first = recorded if first is None else first
            offset = (recorded - first) * 1e-9
            if self._stop.is_set():
                break
            if offset >= end:
                self._count_outside(bag.image_count - seen + (topic == bag.images))
                break
            self._prepare(topic, message)
            if offset < options.start or topic == TF_STATIC or (topic in bag.odometry and topic != sensor):
                self._count_outside(topic == bag.images)
                continue
            begin = time.monotonic() if begin is None else begin
            if options.rate:
                begin = self._keep_pace(begin, (offset - options.start) / options.rate)
            held = time.monotonic()
            if topic == bag.images:
                self._wait_for_outcomes(MAX_IN_FLIGHT)
            elif topic == bag.camera_info:
                self._send_camera_info(message)
            begin += time.monotonic() - held  # the bag stands still while the node is busy
            if self._stop.is_set():
                break
            self._clock.publish(Clock(clock=rclpy.time.Time(nanoseconds=recorded).to_msg()))
            if topic == bag.images:
                self._send_image(message, recorded)
            elif topic == sensor:
                self._send_sensor(message, recorded)
            elif topic == TF and (transforms := self._transforms.of(message)):
                self._send(self._tf, _TFMessage(transforms=transforms))
        else:
            self._check_end(seen)
        self._wait_for_outcomes(1)
        playback.seconds += time.monotonic() - started

    def finish(self) -> Playback:
        """Everything, with diagnostics that include the outcome of the last frame."""
        playback, diagnostics = self._playback, self._diagnostics
        target = diagnostics.count + 2
        self._wait(
            lambda: self._counted() >= len(playback.frames) or diagnostics.count >= target,
            time.monotonic() + STALL_LIMIT,
        )
        refuse_other_publishers(self._camera, self._node_name, self._results, FOREIGN)  # also if they came later
        playback.stopped = self._stop.is_set()
        playback.diagnostics = diagnostics.values
        playback.counts = {name: value - self._counts_before.get(name, 0) for name, value in self._counts().items()}
        return playback

    def _count_outside(self, images: int) -> None:
        """Add images that are not played because of `start` and `duration`."""
        outside = self._playback.outside
        self._playback.outside = outside + max(images, 0) if self._bag.count_known else None

    def _check_end(self, seen: int) -> None:
        """Count the images that are missing at the end of a pass, after `seen` of them."""
        bag, playback = self._bag, self._playback
        if self._stop.is_set():
            return
        if not bag.count_known:
            playback.missing = None
        elif seen < bag.image_count:
            playback.missing = (playback.missing or 0) + bag.image_count - seen
            playback.ended = (
                playback.ended or f"{bag.image_count - seen} of {counted(bag.image_count, 'image')} missing"
            )

    def _on_loss(self, reason: str) -> None:
        if not self._stop.is_set():
            self._playback.ended = reason

    def _report_broken(self, topic: str, message: BrokenFrame) -> None:
        self._playback.unreadable += topic == self._bag.images
        log.warning("%s: skipped a message of %s: %s", self._bag.path.name, topic, message)

    def _prepare(self, topic: str, message: Any) -> None:
        """Handle what does not depend on the time of playback."""
        self._collect_ground_truth(topic, message)
        if topic == TF_STATIC:
            self._static.update({without_slash(one.child_frame_id): one for one in self._transforms.of(message)})
            self._send(self._tf_static, _TFMessage(transforms=list(self._static.values())))

    def _send_image(self, message: Any, recorded: int) -> None:
        stamp = _set_stamp(message, self._stamp_clock.image(nanoseconds(message.header.stamp), recorded))
        playback = self._playback
        jump = self._jump_detector.check(stamp, playback.parameters["max_gap"])
        self._worlds.add(stamp, jump != 0)  # by the same rule as in the node
        playback.frames.append(SentFrame(stamp, time.monotonic()))
        self._send(self._images, message)

    def _send_sensor(self, message: Any, recorded: int) -> None:
        stamp = _set_stamp(message, self._stamp_clock.other(nanoseconds(message.header.stamp), recorded))
        if message.__msgtype__ != RANGE_TYPE:
            self._send(self._sensor, message)
            return
        # Range has one more field since Iron, so the bag's message type may differ from this distribution's type.
        header = Header(stamp=rclpy.time.Time(nanoseconds=stamp).to_msg(), frame_id=message.header.frame_id)
        fields = ("radiation_type", "field_of_view", "min_range", "max_range", "range")
        self._sensor.publish(Range(header=header, **{name: getattr(message, name) for name in fields}))

    def _send_camera_info(self, message: Any) -> None:
        """Send a camera_info. A new calibration is sent between frames, and received before this returns."""
        if message is None or isinstance(message, BrokenFrame):
            return
        if self._camera_info is not None and camera_of(message) == camera_of(self._camera_info):
            self._send(self._camera_infos, message)
            return
        self._camera_info = message
        self._wait_for_outcomes(1)
        self._send(self._camera_infos, message)
        # The best-effort subscription of the node does not acknowledge, but two reports later it has been served.
        self._wait_for_diagnostics(2)

    def _collect_ground_truth(self, topic: str, message: Any) -> None:
        if self._playback.passes > 1:
            return
        if topic in (TF, TF_STATIC):
            transforms = deserialize_message(_serialized(message), TFMessage).transforms
            self._playback.ground_truth.add_transforms(transforms, static=topic == TF_STATIC)
        elif topic in self._bag.odometry:
            self._playback.ground_truth.add_odometry(topic, deserialize_message(_serialized(message), Odometry))

    @staticmethod
    def _send(publisher: Any, message: Any) -> None:
        publisher.publish(_serialized(message))

    # ----------------------------------------------------------------------------------------------------- waiting

    def _wait(self, condition: Callable[[], bool], deadline: float = math.inf) -> bool:
        """Handle callbacks until the condition holds; False if the deadline or a stop comes first."""
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or self._stop.is_set():
                return False
            if self._process is not None:
                check_running(self._process)
            self._diagnostics.check()
            self._executor.spin_once(timeout_sec=min(left, SPIN_TIME))
        return True

    def _keep_pace(self, begin: float, seconds: float) -> float:
        """Wait until `seconds` after `begin` or a stop; return `begin`, later by what is left out of a long pause."""
        pause = begin + seconds - time.monotonic()
        if pause > LONGEST_PAUSE:
            log.warning("%s: nothing was recorded for %.0f s: the pause is left out", self._bag.path.name, pause)
            begin -= pause
        self._wait(lambda: False, begin + seconds)
        return begin

    def _wait_for_outcomes(self, limit: int) -> None:
        """Wait until fewer than `limit` frames are in flight."""
        while self._in_flight() >= limit:
            known = self._outcomes()
            if self._wait(lambda known=known: self._outcomes() > known, time.monotonic() + STALL_LIMIT):
                continue
            if not self._stop.is_set():
                frames = counted(self._in_flight(), "frame")
                log.warning("%s without outcome for %.0f s: given up", frames, STALL_LIMIT)
                self._given_up = len(self._playback.frames)
            return

    def _wait_for_diagnostics(self, count: int) -> None:
        """Wait for `count` more diagnostics."""
        target = self._diagnostics.count + count
        self._wait(lambda: self._diagnostics.count >= target, time.monotonic() + STALL_LIMIT)

    def _in_flight(self) -> int:
        return len(self._playback.frames) - max(self._given_up, self._outcomes())

    def _outcomes(self) -> int:
        """Frames accounted for. A pose accounts for all frames before it; the diagnostics count frames without one."""
        return max(self._first_pending, self._counted())

    def _counted(self) -> int:
        counts = self._counts().items()
        return sum(value - self._counts_before.get(name, 0) for name, value in counts if name in OUTCOMES)

    def _counts(self) -> dict[str, int]:
        return {name: self._diagnostics.integer(name) for name in COUNTS}

    def _has_matched(self, *publishers: Publisher) -> bool:
        """Whether the node itself has matched these publishers; this side matches earlier."""
        return all(
            self._diagnostics.publishers_of(one.topic_name) > 0 and one.get_subscription_count() > 0
            for one in publishers
        )

    def _outputs_are_matched(self) -> bool:
        """Whether the node has matched the subscriptions of this player and its parameter service is ready."""
        matched = {"pose", "trajectory_raw"} <= self._diagnostics.subscribed_outputs
        return matched and self._parameters.service_is_ready()

    def _raise_not_connected(self, what: str, publisher: Publisher, condition: str) -> None:
        """Raise Raymap3rError because the node is not subscribed to a publisher; does nothing after a stop."""
        if self._stop.is_set():
            return
        inputs = [key for key in self._diagnostics.values if key.startswith("publishers of ")]
        found = f"its diagnostics list: {'; '.join(inputs)}" if inputs else "no diagnostics received"
        raise Raymap3rError(
            f"the node {self._node_name} does not take {what} from {publisher.topic_name} ({found}); is it active, in "
            f"this namespace, and {condition}? Check {to_check(os.environ)}"
        )

    # --------------------------------------------------------------------------------------------------- callbacks

    def _on_pose(self, message: PoseStamped) -> None:
        stamp = nanoseconds(message.header.stamp)
        frames = self._playback.frames
        index = next(
            (index for index in range(self._first_pending, len(frames)) if frames[index].stamp == stamp), None
        )
        if index is None:
            return
        self._playback.poses[index] = pose_numbers(message.pose.position, message.pose.orientation)
        self._playback.latencies[index] = time.monotonic() - frames[index].sent
        self._first_pending = index + 1

    def _on_path(self, message: PathMessage) -> None:
        stamps = [nanoseconds(pose.header.stamp) for pose in message.poses]
        self._worlds.add_trajectory(nanoseconds(message.header.stamp), stamps)


def _serialized(message: Any) -> bytes:
    return bytes(_store.serialize_cdr(message, message.__msgtype__))


def _set_stamp(message: Any, stamp: int) -> int:
    message.header.stamp = _Time(sec=stamp // 10**9, nanosec=stamp % 10**9)
    return stamp
