"""Plays the images of a ROS 2 bag into a stream node, never faster than the node takes them, and notes what comes out.

What the bag says of the camera's true way is kept for `truth`.
"""

from __future__ import annotations

import logging
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
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

from raymap3r_ros.clients.ground_truth import Truth, is_called_truth
from raymap3r_ros.clients.processes import START_LIMIT, check_running
from raymap3r_ros.errors import InputError, Raymap3rError
from raymap3r_ros.geometry.calibration import camera_of
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.bag_reader import IMAGE_TYPES, BagReader, camera_info_topic
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.node.conversions import Numbers, nanoseconds, pose_numbers
from raymap3r_ros.node.diagnostics import COUNTS
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.publishers import LATCHED
from raymap3r_ros.node.stream_node import DEFAULT_FRAME
from raymap3r_ros.options import check_options, option, option_fields
from raymap3r_ros.streaming import StreamOptions

log = logging.getLogger(__name__)

WINDOW = 10  # frames sent and not yet answered: enough to keep the node busy, far from the 100 that its queue takes
STALL_LIMIT = 60.0  # seconds without any answer after which the frames under way are given up
TF, TF_STATIC = "/tf", "/tf_static"
ODOMETRY_TYPE, RANGE_TYPE = "nav_msgs/msg/Odometry", "sensor_msgs/msg/Range"
ANSWERS = tuple(name for name in COUNTS if name not in ("frames in", "resets"))  # what can become of a frame
# The frames of which the node publishes the parent, by tf_mode: as they are, and inverted.
NODE_FRAMES = {
    "camera": (("child_frame",), ("world_frame",)),
    "base": (("base_frame",), ("world_frame",)),
    "odom": (("base_frame", "odom_frame"), ("odom_frame", "world_frame")),
    "map": (("odom_frame",), ("world_frame",)),
}

# Of ROS 2 Humble; the messages that are played have not changed since, but for Range.
_store = get_typestore(Stores.ROS2_HUMBLE)
_Time = _store.types["builtin_interfaces/msg/Time"]
_TFMessage = _store.types["tf2_msgs/msg/TFMessage"]


@dataclass(frozen=True)
class ReplayOptions:
    """What of a bag is played, and how."""

    topic: str = option("", "image topic; empty: the only one of the bag")
    rate: float = option(
        1.0, "speed, 1 = as recorded; 0 = as fast as the node takes the frames; never faster", low=0.0, high=1000.0
    )
    loop: int = option(1, "play the bag so many times; each pass is a new scene", low=1, high=1_000_000)
    start: float = option(0.0, "begin so many seconds after the first message", low=0.0, high=1e9)
    duration: float = option(0.0, "play so many seconds of the bag; 0 = all", low=0.0, high=1e9)
    range: str = option("", "topic for scale.source range; empty: the only one of its type in the bag")
    wheel_odometry: str = option(
        "", "topic for scale.source odometry; empty: the only one of its type in the bag that is no truth"
    )
    truth: str = option(
        "",
        "what to compare with: an odometry topic of the bag, or a frame of its TF tree; empty: a topic or a root "
        "frame whose name says that it is the truth",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Bag:
    """The topics of a bag that matter here."""

    path: Path
    images: str
    compressed: bool
    camera_info: str | None
    frame: str  # frame_id of the images
    odometry: tuple[str, ...]  # all topics of nav_msgs/Odometry with messages
    ranges: tuple[str, ...]  # all topics of sensor_msgs/Range with messages

    def messages(self, topics: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Topic, recording time in nanoseconds and message (BrokenFrame where it is damaged), in order."""
        with closing(BagReader(self.path)) as reader:
            yield from reader.messages(topics)


@dataclass(frozen=True)
class SentFrame:
    """An image that was sent."""

    stamp: int  # nanoseconds
    sent: float  # seconds of the monotonic clock


@dataclass
class Played:
    """What went into the node, and what came back."""

    truth: Truth
    frames: list[SentFrame] = field(default_factory=list)
    unreadable: int = 0  # image messages of the bag that are damaged, and were not sent
    poses: dict[int, Numbers] = field(default_factory=dict)  # ~/pose by index of the frame
    latencies: dict[int, float] = field(default_factory=dict)  # seconds from sending to ~/pose, likewise
    worlds: set[int] = field(default_factory=set)  # indices of the frames with which a new world started
    passes: int = 0  # begun
    seconds: float = 0.0
    stopped: bool = False  # before the end
    counts: dict[str, int] = field(default_factory=dict)  # COUNTS of the node, since the first frame
    told: dict[str, str] = field(default_factory=dict)  # the node's last diagnostics
    parameters: dict[str, Any] = field(default_factory=dict)  # of the node
    scale_topic: str = ""  # of the bag, that the node's scale comes from


def open_bag(path: Path, options: ReplayOptions | None = None) -> Bag:
    """Look into a bag.

    Raises InputError where it cannot be read, or lacks a topic of the options; the message tells those that it has.
    """
    options = options or ReplayOptions()
    recording = open_recording(path, topic=options.topic or None)
    if recording.kind != "bag":
        raise InputError(
            f"{path}: is no ROS 2 bag (.mcap, .db3, or its folder); `raymap3r run` takes other recordings"
        )
    with closing(BagReader(path)) as reader:
        types = {name: info.msgtype for name, info in reader.topics.items() if info.msgcount}
        images = (message for _, _, message in reader.messages([recording.topic]))
        frame = next((message.header.frame_id for message in images if not isinstance(message, BrokenFrame)), "")
        camera_info = camera_info_topic(recording.topic, reader.topics)
    odometry, ranges = (
        tuple(sorted(name for name, kind in types.items() if kind == wanted)) for wanted in (ODOMETRY_TYPE, RANGE_TYPE)
    )
    for topic, kind, there in ((options.range, RANGE_TYPE, ranges), (options.wheel_odometry, ODOMETRY_TYPE, odometry)):
        if topic and _absolute(topic) not in there:
            raise InputError(f"{path}: no topic {_absolute(topic)} of type {kind}; the bag has: {_list(there)}")
    compressed = types[recording.topic] == IMAGE_TYPES[1]
    frame = _bare(frame) or DEFAULT_FRAME
    return Bag(Path(path), recording.topic, compressed, camera_info, frame, odometry, ranges)


def scale_topic(bag: Bag, options: ReplayOptions, source: str) -> str:
    """The topic of the bag that serves `scale.source`; empty where none is needed.

    Raises InputError where none was chosen and the bag has none, or several.
    """
    if source == "range":
        chosen, argument, kind, there = options.range, "--range", RANGE_TYPE, bag.ranges
        likely = there
    elif source == "odometry":
        chosen, argument, kind, there = options.wheel_odometry, "--wheel-odometry", ODOMETRY_TYPE, bag.odometry
        likely = [topic for topic in there if topic != _absolute(options.truth) and not is_called_truth(topic)]
    else:
        return ""
    if chosen:
        return _absolute(chosen)
    if len(likely) != 1:
        raise InputError(
            f"{bag.path}: scale.source is {source}: name the topic that it comes from with {argument}; of type {kind} "
            f"the bag has: {_list(there)}"
        )
    return likely[0]


def play(
    bag: Bag,
    options: ReplayOptions,
    camera: Node,
    node_name: str,
    process: subprocess.Popen | None = None,
    stop: threading.Event | None = None,
) -> Played:
    """Play `bag` from the node `camera`, in whose namespace the stream node `node_name` (full name) takes its images.

    Waits for the stream node first. `process`: where the node runs, if it is ours; setting `stop` ends early. The
    stream node should run in every-frame mode and use sim time.

    Raises Raymap3rError where nothing is heard of the stream node, it takes other images than the bag has or it ends,
    InputError where the bag does not tell what its scale comes from.
    """
    player = _Player(bag, options, camera, node_name, process, stop or threading.Event())
    try:
        player.meet()
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
        self._played = Played(Truth(bag.frame))
        self._next = 0  # index of the first frame of which nothing is known yet
        self._given_up = 0  # index of the first frame that is waited for
        self._sent: dict[int, int] = {}  # index of the last frame of a stamp
        self._info: Any = None  # the camera_info that the node has
        self._static: dict[str, Any] = {}  # transforms of /tf_static by child frame: who is late wants all of them
        self._withheld: set[str] = set()  # frames of which the node tells the parent, not the bag
        self._told: dict[str, str] = {}
        self._before: dict[str, int] = {}  # the node's counts before the first frame
        self._heard = 0  # diagnostics

        self._images = camera.create_publisher(
            CompressedImage if bag.compressed else Image, "image/compressed" if bag.compressed else "image",
            QoSProfile(depth=2 * WINDOW),
        )  # fmt: skip
        self._infos = camera.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=10))
        self._sensor: Publisher | None = None  # of what the node's scale comes from
        self._clock = camera.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._tf = camera.create_publisher(TFMessage, TF, QoSProfile(depth=100))
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._tf_static = camera.create_publisher(TFMessage, TF_STATIC, latched)
        camera.create_subscription(PoseStamped, f"{node_name}/pose", self._on_pose, QoSProfile(depth=100))
        camera.create_subscription(PathMessage, f"{node_name}/trajectory_raw", self._on_path, LATCHED)
        self._status_name = f"{node_name}: stream"
        camera.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._parameters = camera.create_client(GetParameters, f"{node_name}/get_parameters")
        self._executor = SingleThreadedExecutor(context=camera.context)
        self._executor.add_node(camera)

    def close(self) -> None:
        self._executor.remove_node(self._camera)
        self._executor.shutdown()

    # ----------------------------------------------------------------------------------------------------- playing

    def meet(self) -> None:
        """Wait until the node knows of this player, and learn how it is set up."""
        deadline = time.monotonic() + START_LIMIT
        publishers = [self._images, *([self._infos] if self._bag.camera_info else [])]
        if not self._wait(lambda: self._is_known(*publishers) and self._is_followed(), deadline):
            self._refuse("images", self._images, "image_transport as the bag has it")
            return
        names = [name for kind in (NodeOptions, StreamOptions) for name, _ in option_fields(kind)]
        future = self._parameters.call_async(GetParameters.Request(names=names))
        if not self._wait(future.done, deadline):
            return
        values = [parameter_value_to_python(value) for value in future.result().values]
        parameters = self._played.parameters = dict(zip(names, values, strict=True))
        if parameters["publish_tf"]:
            frames = {**parameters, "child_frame": parameters["child_frame"] or self._bag.frame}
            self._withheld = {frames[name] for name in NODE_FRAMES[parameters["tf_mode"]][parameters["invert_tf"]]}
        self._advertise_sensor(parameters["scale.source"], deadline)
        self._before = self._counts()

    def _advertise_sensor(self, source: str, deadline: float) -> None:
        """Choose the topic that the node's scale comes from, and wait until the node listens to it."""
        options = self._options
        for chosen, its_source in ((options.range, "range"), (options.wheel_odometry, "odometry")):
            if chosen and its_source != source:
                log.warning("%s is not played: scale.source is %s, not %s", _absolute(chosen), source, its_source)
        self._played.scale_topic = scale_topic(self._bag, options, source)
        if not self._played.scale_topic:
            return
        kind, name = (Range, "range") if source == "range" else (Odometry, "wheel_odometry")
        self._sensor = self._camera.create_publisher(kind, name, QoSProfile(depth=100))
        if not self._wait(lambda: self._is_known(self._sensor), deadline):
            self._refuse(source, self._sensor, "without a remapping of it")

    def play(self) -> None:
        """One pass, up to the last answer."""
        if self._stop.is_set():
            return
        bag, options, played = self._bag, self._options, self._played
        sensor = played.scale_topic
        played.passes += 1
        end = options.start + options.duration if options.duration else math.inf
        if bag.camera_info:
            # The first calibration serves the images before it too, as in `recording.readers`.
            self._calibrate(next((message for _, _, message in bag.messages([bag.camera_info])), None))
        topics = [bag.images, TF, TF_STATIC, *bag.odometry, *(name for name in (bag.camera_info, sensor) if name)]
        started = time.monotonic()
        first = begin = None
        for topic, recorded, message in bag.messages(topics):
            first = recorded if first is None else first
            offset = (recorded - first) * 1e-9
            if offset >= end or self._stop.is_set():
                break
            if isinstance(message, BrokenFrame):
                if topic == bag.images:
                    played.unreadable += 1
                log.warning("%s: skipped a message of %s: %s", bag.path.name, topic, message)
                continue
            self._learn(topic, message)
            if topic == TF_STATIC:
                self._static.update({_bare(one.child_frame_id): one for one in self._foreign(message)})
                self._send(self._tf_static, _TFMessage(transforms=list(self._static.values())))
            if offset < options.start or topic == TF_STATIC or (topic in bag.odometry and topic != sensor):
                continue
            begin = time.monotonic() if begin is None else begin
            if options.rate:
                self._wait_until(begin + (offset - options.start) / options.rate)
            held = time.monotonic()
            if topic == bag.images:
                self._wait_for_answers(WINDOW)
            elif topic == bag.camera_info:
                self._calibrate(message)
            begin += time.monotonic() - held  # while the node holds it up, the bag stands still
            if self._stop.is_set():
                break
            self._clock.publish(Clock(clock=rclpy.time.Time(nanoseconds=recorded).to_msg()))
            if topic == bag.images:
                self._send_image(message, recorded)
            elif topic == sensor:
                self._send_sensor(message, recorded)
            elif topic == TF and (transforms := self._foreign(message)):
                self._send(self._tf, _TFMessage(transforms=transforms))
        self._wait_for_answers(1)
        played.seconds += time.monotonic() - started

    def finish(self) -> Played:
        """Everything, with diagnostics that know of the last answer."""
        played = self._played
        heard = self._heard
        self._wait(
            lambda: self._counted() >= len(played.frames) or self._heard >= heard + 2, time.monotonic() + STALL_LIMIT
        )
        played.stopped = self._stop.is_set()
        played.told = self._told
        played.counts = {name: value - self._before.get(name, 0) for name, value in self._counts().items()}
        return played

    def _send_image(self, message: Any, recorded: int) -> None:
        stamp = _stamp(message, recorded)
        self._sent[stamp] = len(self._played.frames)
        self._played.frames.append(SentFrame(stamp, time.monotonic()))
        self._send(self._images, message)

    def _send_sensor(self, message: Any, recorded: int) -> None:
        stamp = _stamp(message, recorded)
        if message.__msgtype__ != RANGE_TYPE:
            self._send(self._sensor, message)
            return
        # Distributions since Iron have one field more, whatever the bag's has.
        header = Header(stamp=rclpy.time.Time(nanoseconds=stamp).to_msg(), frame_id=message.header.frame_id)
        fields = ("radiation_type", "field_of_view", "min_range", "max_range", "range")
        self._sensor.publish(Range(header=header, **{name: getattr(message, name) for name in fields}))

    def _calibrate(self, message: Any) -> None:
        """Send a camera_info; one that is new is known to the node before this returns, and no frame is under way."""
        if message is None or isinstance(message, BrokenFrame):
            return
        if self._info is not None and camera_of(message) == camera_of(self._info):
            self._send(self._infos, message)
            return
        self._info = message
        self._wait_for_answers(1)
        self._send(self._infos, message)
        # The node takes it in with best effort, which nobody acknowledges; but its callbacks have gone round since.
        self._hear(2)

    def _foreign(self, message: Any) -> list[Any]:
        """The transforms of a message to frames whose parents the node does not publish: a frame has one parent."""
        return [one for one in message.transforms if _bare(one.child_frame_id) not in self._withheld]

    def _learn(self, topic: str, message: Any) -> None:
        if self._played.passes > 1:
            return
        if topic in (TF, TF_STATIC):
            transforms = deserialize_message(_serialized(message), TFMessage).transforms
            self._played.truth.add_transforms(transforms, static=topic == TF_STATIC)
        elif topic in self._bag.odometry:
            self._played.truth.add_odometry(topic, deserialize_message(_serialized(message), Odometry))

    @staticmethod
    def _send(publisher: Any, message: Any) -> None:
        publisher.publish(_serialized(message))

    # ----------------------------------------------------------------------------------------------------- waiting

    def _wait(self, condition: Callable[[], bool], deadline: float = math.inf) -> bool:
        """Serve callbacks until the condition holds; False where the deadline or a stop comes first."""
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or self._stop.is_set():
                return False
            if self._process is not None:
                check_running(self._process)
            self._executor.spin_once(timeout_sec=min(left, 0.1))
        return True

    def _wait_until(self, moment: float) -> None:
        """Serve callbacks up to a time of the monotonic clock, or a stop."""
        self._wait(lambda: False, moment)

    def _wait_for_answers(self, limit: int) -> None:
        """Wait until fewer than `limit` frames are under way."""
        while self._under_way() >= limit:
            known = self._answers()
            if self._wait(lambda known=known: self._answers() > known, time.monotonic() + STALL_LIMIT):
                continue
            if not self._stop.is_set():
                log.warning("no answer to %d frames for %.0f s: they are given up", self._under_way(), STALL_LIMIT)
                self._given_up = len(self._played.frames)
            return

    def _hear(self, count: int) -> None:
        """Wait for so many more diagnostics."""
        target = self._heard + count
        self._wait(lambda: self._heard >= target, time.monotonic() + STALL_LIMIT)

    def _under_way(self) -> int:
        return len(self._played.frames) - max(self._given_up, self._answers())

    def _answers(self) -> int:
        """Frames of which it is known what became of them: each pose answers all frames before it too; frames that
        never get a pose are counted in the diagnostics."""
        return max(self._next, self._counted())

    def _counted(self) -> int:
        return sum(value - self._before.get(name, 0) for name, value in self._counts().items() if name in ANSWERS)

    def _counts(self) -> dict[str, int]:
        return {name: int(self._told.get(name, 0)) for name in COUNTS}

    def _is_known(self, *publishers: Publisher) -> bool:
        """Whether the node itself knows of these publishers: to be matched on this side alone is too early."""
        return all(
            int(self._told.get(f"publishers of {one.topic_name}", 0)) > 0 and one.get_subscription_count() > 0
            for one in publishers
        )

    def _is_followed(self) -> bool:
        """Whether the node knows who listens to it, and answers."""
        outputs = set(self._told.get("subscribed outputs", "").split(", "))
        return {"pose", "trajectory_raw"} <= outputs and self._parameters.service_is_ready()

    def _refuse(self, what: str, publisher: Publisher, otherwise: str) -> None:
        """Raise what explains that the node does not take from a publisher; nothing where a stop came first."""
        if self._stop.is_set():
            return
        others = [key for key in self._told if key.startswith("publishers of ")]
        heard = f"it says: {'; '.join(others)}" if others else "nothing is heard of it"
        raise Raymap3rError(
            f"the node {self._node_name} does not take {what} from {publisher.topic_name} ({heard}); is it active, in "
            f"this namespace, and {otherwise}?"
        )

    # --------------------------------------------------------------------------------------------------- callbacks

    def _on_pose(self, message: PoseStamped) -> None:
        stamp = nanoseconds(message.header.stamp)
        frames = self._played.frames
        index = next((index for index in range(self._next, len(frames)) if frames[index].stamp == stamp), None)
        if index is None:
            return
        self._played.poses[index] = pose_numbers(message.pose.position, message.pose.orientation)
        self._played.latencies[index] = time.monotonic() - frames[index].sent
        self._next = index + 1

    def _on_path(self, message: PathMessage) -> None:
        """The way in the present world begins with the frame that this world began with."""
        index = self._sent.get(nanoseconds(message.poses[0].header.stamp)) if message.poses else None
        if index is not None:
            self._played.worlds.add(index)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._status_name:
                self._told = {item.key: item.value for item in status.values}
                self._heard += 1


def _serialized(message: Any) -> bytes:
    return bytes(_store.serialize_cdr(message, message.__msgtype__))


def _stamp(message: Any, recorded: int) -> int:
    """The stamp of a message in nanoseconds, which gets that of its recording where it has none.

    Drivers without a clock leave the stamp at zero; the recorder's time is the next best.
    """
    stamp = nanoseconds(message.header.stamp)
    if stamp > 0:
        return stamp
    message.header.stamp = _Time(sec=recorded // 10**9, nanosec=recorded % 10**9)
    return recorded


def _absolute(topic: str) -> str:
    return "/" + topic.lstrip("/")


def _list(topics: tuple[str, ...]) -> str:
    return ", ".join(topics) or "none"


def _bare(frame: str) -> str:
    """Frame names of tf had a slash in front."""
    return frame.lstrip("/")
