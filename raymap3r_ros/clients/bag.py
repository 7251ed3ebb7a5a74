"""A ROS 2 bag opened for playback into a stream node, and the options of the playback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from raymap3r_ros.clients.ground_truth import add_parents, ancestry, is_ground_truth_name
from raymap3r_ros.errors import InputError
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.bag_child import IMAGE_TYPES
from raymap3r_ros.io.bag_reader import BagReader, camera_info_topic
from raymap3r_ros.io.bag_types import ODOMETRY_TYPE, RANGE_TYPE
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.node.stream_node import DEFAULT_FRAME
from raymap3r_ros.options import check_options, option
from raymap3r_ros.signals import stop_requested
from raymap3r_ros.text import listing

log = logging.getLogger(__name__)

TF, TF_STATIC = "/tf", "/tf_static"
LOOKED_THROUGH = 20_000  # messages of TF in which a frame is looked for before a replay; some minutes of a robot


@dataclass(frozen=True)
class ReplayOptions:
    """The part of a bag to play, and how."""

    topic: str = option("", "image topic; empty: the only one of the bag")
    rate: float = option(
        1.0,
        "speed, 1 = as recorded; 0 = as fast as the node processes the frames, which is the limit for every speed",
        low=0.0,
        high=1000.0,
    )
    loop: int = option(1, "number of passes over the bag; each pass starts a new world", low=1, high=1_000_000)
    start: float = option(0.0, "start of playback, seconds after the first message", low=0.0, high=1e9)
    duration: float = option(0.0, "seconds of the bag to play; 0 = all", low=0.0, high=1e9)
    range: str = option("", "topic for scale.source range; empty: the only one of its type in the bag")
    wheel_odometry: str = option(
        "", "topic for scale.source odometry; empty: the only one of its type in the bag that is not ground truth"
    )
    truth: str = option(
        "",
        "ground truth: an odometry topic of the bag, or a frame of its TF tree; empty: a topic or root frame with a "
        "name such as ground_truth",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Bag:
    """The topics of a bag that are used in a replay."""

    path: Path
    images: str
    image_count: int  # images according to the bag's index
    count_known: bool  # False: the bag is cut off, and the index does not list what is missing
    compressed: bool
    camera_info: str | None
    frame: str  # frame_id of the images
    odometry: tuple[str, ...]  # all topics of nav_msgs/Odometry with messages
    ranges: tuple[str, ...]  # all topics of sensor_msgs/Range with messages

    def messages(
        self, topics: list[str], on_loss: Callable[[str], None] = lambda _: None
    ) -> Iterator[tuple[str, int, Any]]:
        """Topic, recording time in nanoseconds and message (BrokenFrame if it is damaged), in order.

        `on_loss` is called at the end with the reason if the bag ends early.
        """
        for reader in self._open():
            yield from reader.messages(topics)
            if reader.loss:
                on_loss(reader.loss)

    def image_times(self) -> Iterator[tuple[int, int]]:
        """Stamp and recording time in nanoseconds of each image."""
        for reader in self._open():
            yield from reader.image_times(self.images)

    def _open(self) -> Iterator[BagReader]:
        """A reader of the bag; none if a stop signal has arrived before it is open."""
        try:
            reader = BagReader(self.path)
        except KeyboardInterrupt:
            if stop_requested():
                return
            raise
        with closing(reader):
            yield reader


def open_bag(path: Path, options: ReplayOptions | None = None) -> Bag:
    """Read the topics of a bag.

    Raises InputError if it cannot be read or lacks a topic of the options; the message lists the existing topics.
    """
    options = options or ReplayOptions()
    recording = open_recording(path, topic=options.topic or None)
    if recording.kind == "ROS 1 bag":
        raise InputError(
            f"{path}: is a ROS 1 bag; convert it: pip install rosbags && rosbags-convert --src {path.name} --dst "
            f"{path.stem}_ros2; `raymap3r run` reads it as it is"
        )
    if recording.kind != "bag":
        raise InputError(
            f"{path}: is no ROS 2 bag (.mcap, .db3, or its folder); `raymap3r run` reads other recordings"
        )
    with closing(BagReader(path)) as reader:
        if 0 < reader.seconds < options.start:
            raise InputError(f"start is {options.start}, but {path} is only {reader.seconds:.2f} s long")
        count = reader.stored(recording.topic)
        types = {name: info.msgtype for name, info in reader.topics.items() if info.msgcount}
        images = (message for _, _, message in reader.messages([recording.topic]))
        frame = next((message.header.frame_id for message in images if not isinstance(message, BrokenFrame)), "")
        camera_info = camera_info_topic(recording.topic, reader.topics)
    odometry, ranges = (
        tuple(sorted(name for name, kind in types.items() if kind == wanted)) for wanted in (ODOMETRY_TYPE, RANGE_TYPE)
    )
    for topic, kind, existing in (
        (options.range, RANGE_TYPE, ranges),
        (options.wheel_odometry, ODOMETRY_TYPE, odometry),
    ):
        if topic and absolute(topic) not in existing:
            raise InputError(f"{path}: no topic {absolute(topic)} of type {kind}; the bag has: {_list(existing)}")
    compressed = types[recording.topic] == IMAGE_TYPES[1]
    frame = without_slash(frame) or DEFAULT_FRAME
    if options.truth and absolute(options.truth) not in odometry:
        _check_truth_frame(path, options.truth, frame, types, odometry)
    return Bag(
        Path(path),
        recording.topic,
        count,
        recording.length is not None,
        compressed,
        camera_info,
        frame,
        odometry,
        ranges,
    )


def _check_truth_frame(path: Path, truth: str, camera: str, types: dict[str, str], odometry: tuple[str, ...]) -> None:
    """Raise InputError, with what is allowed, if `truth` is no frame above the frame `camera` in the TF tree of a bag.

    Only a warning if the bag has more than LOOKED_THROUGH messages of TF: the frame may be in the others.
    `types` of the topics by name; `odometry`: the topics that are allowed.
    """
    parents: dict[str, str] = {}
    with closing(BagReader(path)) as reader:
        messages = reader.messages([topic for topic in (TF, TF_STATIC) if topic in types])
        for _, _, message in islice(messages, LOOKED_THROUGH):
            if isinstance(message, BrokenFrame):
                continue
            add_parents(parents, message.transforms)
            if without_slash(truth) in ancestry(parents, camera)[1:]:
                return
        is_whole = next(messages, None) is None
    if kind := types.get(absolute(truth)):
        problem = f"the topic {absolute(truth)} has the type {kind}"
    elif without_slash(truth) in {camera, *parents, *parents.values()}:
        problem = f"the frame {without_slash(truth)} is not above the frame of the camera, {camera}"
    else:
        problem = f"the bag has neither a topic nor a frame {truth}"
    above = _list(tuple(ancestry(parents, camera)[1:]))
    allowed = f"--truth allows topics of the type {ODOMETRY_TYPE} ({_list(odometry)}) and the frames above {camera}"
    if is_whole:
        raise InputError(f"{path}: {problem}; {allowed} ({above})")
    log.warning(
        "%s: according to its first %d messages of TF, %s; %s, there %s", path.name, LOOKED_THROUGH, problem,
        allowed, above,
    )  # fmt: skip


def scale_topic(bag: Bag, options: ReplayOptions, source: str) -> str:
    """The topic of the bag for `scale.source`; empty if the source needs none.

    Raises InputError if the options select none and the bag has none, or several.
    """
    if source == "range":
        chosen, argument, kind, existing = options.range, "--range", RANGE_TYPE, bag.ranges
        candidates = existing
    elif source == "odometry":
        chosen, argument, kind, existing = options.wheel_odometry, "--wheel-odometry", ODOMETRY_TYPE, bag.odometry
        candidates = [
            topic for topic in existing if topic != absolute(options.truth) and not is_ground_truth_name(topic)
        ]
    else:
        return ""
    if chosen:
        return absolute(chosen)
    if len(candidates) != 1:
        raise InputError(
            f"{bag.path}: scale.source is {source}: select its topic with {argument}; of type {kind} "
            f"the bag has: {_list(existing)}"
        )
    return candidates[0]


def absolute(topic: str) -> str:
    """A topic name with a leading slash."""
    return "/" + topic.lstrip("/")


def without_slash(frame: str) -> str:
    """A frame name without the leading slash that tf of ROS 1 allowed."""
    return frame.lstrip("/")


def _list(topics: tuple[str, ...]) -> str:
    return listing(topics, 50) or "none"
