"""Where a camera truly was, as a recording's TF tree or its odometry tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.time import Time
from tf2_ros import Buffer, TransformException

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.conversions import rigid_matrix

TRUE_TOPICS = ("ground_truth", "groundtruth", "mocap", "vicon", "optitrack")  # parts of a topic's name
TRUE_FRAMES = (*TRUE_TOPICS, "world")  # parts of the name of a tree's root
FOR_EVER = Duration(seconds=1e9)  # that transforms are kept
TRUE_FRAME = "truth"  # of an odometry topic: its own frame may be part of the TF tree too


def is_called_truth(topic: str) -> bool:
    """Whether the name of a topic says that it is the truth."""
    return any(part in topic.lower() for part in TRUE_TOPICS)


@dataclass(frozen=True)
class TruePoses:
    """The camera's true way, as far as it is known."""

    source: str  # what it is taken from
    poses: dict[int, np.ndarray]  # (4, 4) camera to a fixed frame, metres, by stamp in nanoseconds


class Truth:
    """Collects what a recording tells of the frame `camera`; names of frames without a slash in front."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._transforms: list[tuple[TransformStamped, bool]] = []  # and whether it is static
        self._odometry: dict[str, list[TransformStamped]] = {}  # by topic

    def add_transforms(self, transforms: Sequence[TransformStamped], *, static: bool) -> None:
        """What came on /tf or /tf_static."""
        for transform in transforms:
            transform.header.frame_id = transform.header.frame_id.lstrip("/")
            transform.child_frame_id = transform.child_frame_id.lstrip("/")
            self._transforms.append((transform, static))

    def add_odometry(self, topic: str, message: Odometry) -> None:
        """What came on a topic of odometry."""
        transform = TransformStamped(header=message.header, child_frame_id=message.child_frame_id.lstrip("/"))
        transform.header.frame_id = TRUE_FRAME
        pose = message.pose.pose
        place = transform.transform.translation
        place.x, place.y, place.z = pose.position.x, pose.position.y, pose.position.z
        transform.transform.rotation = pose.orientation
        self._odometry.setdefault(topic, []).append(transform)

    def poses(self, stamps: Sequence[int], wanted: str = "") -> TruePoses:
        """The camera at `stamps`, nanoseconds, interpolated; stamps before or after what is known are left out.

        `wanted`: a topic of odometry or a frame; empty: the topic or the root of the TF tree above the camera whose
        name says that it is the truth. Raises InputError where there is no such thing, or it leads nowhere.
        """
        topic, fixed = self._choose(wanted)
        buffer = Buffer(cache_time=FOR_EVER)
        camera, source = self._camera, f"TF {fixed} -> {self._camera}"
        carrier = self._odometry[topic][0].child_frame_id if topic else ""
        for transform, static in self._transforms:
            if transform.child_frame_id == carrier:  # a frame has one parent
                continue
            (buffer.set_transform_static if static else buffer.set_transform)(transform, "recording")
        if topic:
            for transform in self._odometry[topic]:
                buffer.set_transform(transform, topic)
            source = f"odometry {topic} of {carrier}"
            if carrier != camera and not self._is_above(carrier):
                source += f", taken for the camera, whose place on {carrier} is not known"
                camera = carrier
        poses = {}
        failure: TransformException | None = None
        for stamp in stamps:
            try:
                found = buffer.lookup_transform(fixed, camera, Time(nanoseconds=stamp)).transform
            except TransformException as error:
                failure = error
                continue
            poses[stamp] = rigid_matrix(found.translation, found.rotation)
        if not poses:
            raise InputError(f"{source}: not known at any frame's time: {failure}")
        return TruePoses(source, poses)

    def _choose(self, wanted: str) -> tuple[str, str]:
        """Topic of odometry (or none) and fixed frame."""
        topics = sorted(self._odometry)
        root = self._line()[-1]
        if "/" + wanted.lstrip("/") in topics:
            return "/" + wanted.lstrip("/"), TRUE_FRAME
        if wanted:
            return "", wanted.lstrip("/")
        for topic in topics:
            if is_called_truth(topic):
                return topic, TRUE_FRAME
        if root != self._camera and any(part in root.lower() for part in TRUE_FRAMES):
            return "", root
        above = [frame for frame in self._line() if frame != self._camera]
        raise InputError(
            "nothing in the bag is called the truth; to compare with something else name one of its odometry topics "
            f"({', '.join(topics) or 'none'}) or of the frames above the camera's ({', '.join(above) or 'none'}) "
            "with --truth"
        )

    def _line(self) -> list[str]:
        """The camera's frame and all above it, the root last."""
        parents = {transform.child_frame_id: transform.header.frame_id for transform, _ in self._transforms}
        line = [self._camera]
        while (parent := parents.get(line[-1])) is not None and parent not in line:
            line.append(parent)
        return line

    def _is_above(self, frame: str) -> bool:
        return frame in self._line()
