"""Ground truth poses of the camera, from the TF tree or the odometry of a recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.time import Time
from tf2_ros import Buffer, TransformException

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.conversions import nanoseconds, rigid_matrix
from raymap3r_ros.text import counted

TOPIC_NAMES = ("ground_truth", "groundtruth", "mocap", "vicon", "optitrack")  # parts of a topic's name
FRAME_NAMES = (*TOPIC_NAMES, "world")  # parts of the name of a tree's root
CACHE_TIME = Duration(seconds=1e9)  # of transforms; longer than any recording
# Seconds between two poses of a link of the tree that are interpolated. At 3 m/s^2, the acceleration of a hand-held
# camera, the error is up to 3 / 8 0.2^2 m = 15 mm; at 20 Hz, the usual rate of TF, three messages may be lost. The
# poses of files are inputs of the network, and have a tighter bound: `io.tum.LONGEST_REACH`.
LONGEST_STEP = 0.2
ODOMETRY_ROOT = "truth"  # parent frame of odometry in the buffer; its own header frame may be in the TF tree too


def is_ground_truth_name(topic: str) -> bool:
    """Whether a topic is ground truth by its name."""
    return any(part in topic.lower() for part in TOPIC_NAMES)


def add_parents(parents: dict[str, str], transforms: Iterable[Any]) -> None:
    """Add the parent of each child frame of some transforms, without leading slashes (tf of ROS 1 allowed them)."""
    for one in transforms:
        parents[one.child_frame_id.lstrip("/")] = one.header.frame_id.lstrip("/")


def ancestry(parents: dict[str, str], frame: str) -> list[str]:
    """A frame and all frames above it, the root last. `parents`: see `add_parents`."""
    line = [frame]
    while (parent := parents.get(line[-1])) is not None and parent not in line:
        line.append(parent)
    return line


@dataclass(frozen=True)
class GroundTruth:
    """Poses of the camera at some stamps."""

    source: str  # description of the topic or frames
    poses: dict[int, np.ndarray]  # (4, 4) camera to a fixed frame, metres, by stamp in nanoseconds


class GroundTruthCollector:
    """Collects transforms and odometry of a recording for the frame `camera`, given without a leading slash."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._transforms: list[tuple[TransformStamped, bool]] = []  # with whether it is static
        self._odometry: dict[str, list[TransformStamped]] = {}  # by topic
        self._parents: dict[str, str] = {}
        # Stamps (nanoseconds) at which the pose was lost (NaN or a zero quaternion), by child frame, or by topic for
        # odometry.
        self._lost: dict[str, list[int]] = {}

    def add_transforms(self, transforms: Sequence[TransformStamped], *, static: bool) -> None:
        """Add transforms of /tf or /tf_static."""
        for transform in transforms:
            transform.header.frame_id = transform.header.frame_id.lstrip("/")
            transform.child_frame_id = transform.child_frame_id.lstrip("/")
            if self._is_usable(transform.child_frame_id, transform):
                self._transforms.append((transform, static))
                add_parents(self._parents, [transform])

    def add_odometry(self, topic: str, message: Odometry) -> None:
        """Add a message of an odometry topic."""
        transform = TransformStamped(header=message.header, child_frame_id=message.child_frame_id.lstrip("/"))
        transform.header.frame_id = ODOMETRY_ROOT
        pose = message.pose.pose
        translation = transform.transform.translation
        translation.x, translation.y, translation.z = pose.position.x, pose.position.y, pose.position.z
        transform.transform.rotation = pose.orientation
        if self._is_usable(topic, transform):
            self._odometry.setdefault(topic, []).append(transform)

    def _is_usable(self, key: str, transform: TransformStamped) -> bool:
        """Whether a pose is known; otherwise its stamp is recorded as lost."""
        pose = rigid_matrix(transform.transform.translation, transform.transform.rotation)
        usable = bool(np.isfinite(pose).all())
        if not usable:
            self._lost.setdefault(key, []).append(nanoseconds(transform.header.stamp))
        return usable

    def _in_gaps(self, stamps: Sequence[int], key: str) -> set[int]:
        """The stamps in a step between two poses of a topic or child frame that is not interpolated.

        A pose was lost in it, or it is longer than LONGEST_STEP and the poses differ.
        """
        of_frame = (one for one, static in self._transforms if one.child_frame_id == key and not static)
        known = {nanoseconds(one.header.stamp): one.transform for one in self._odometry.get(key, of_frame)}
        times = np.array(sorted(known), np.int64)
        gaps = set(np.searchsorted(times, self._lost.get(key, [])).tolist())
        long = np.flatnonzero(np.diff(times) > LONGEST_STEP * 1e9)
        gaps |= {int(end) + 1 for end in long if known[int(times[end])] != known[int(times[end + 1])]}
        steps = np.searchsorted(times, stamps).tolist()
        return {stamp for stamp, step in zip(stamps, steps, strict=True) if step in gaps and stamp not in known}

    def poses(self, stamps: Sequence[int], selected: str = "") -> GroundTruth:
        """Interpolated poses at `stamps` (nanoseconds), without those before or after the recorded range.

        `selected`: an odometry topic or a frame; with a leading slash, of both with one name the topic. Empty: a
        topic, or the root of the TF tree above the camera, that is ground truth by its name. Raises InputError if it
        does not exist or is not connected to the camera.
        """
        topic, fixed = self._select(selected)
        buffer = Buffer(cache_time=CACHE_TIME)
        camera, source = self._camera, f"TF {fixed} -> {self._camera}"
        child = self._odometry[topic][0].child_frame_id if topic else ""
        for transform, static in self._transforms:
            if transform.child_frame_id == child:  # a frame has one parent
                continue
            (buffer.set_transform_static if static else buffer.set_transform)(transform, "recording")
        if topic:
            for transform in self._odometry[topic]:
                buffer.set_transform(transform, topic)
            source = f"odometry {topic} of {child}"
            if child != camera and child not in self._ancestry():
                source += f", used for the camera, because the pose of the camera in {child} is unknown"
                camera = child
        poses = {}
        failure: TransformException | None = None
        line = self._ancestry()
        top = child if topic else fixed  # the links above it are not used
        links = [topic] * bool(topic) + (line[: line.index(top)] if top in line else [] if topic else line)
        if lost := [key for key in links if key in self._lost]:
            count = sum(len(self._lost[key]) for key in lost)
            source += f", without {count} poses of {', '.join(lost)} that are lost (NaN or a zero quaternion)"
        gaps = set().union(*(self._in_gaps(stamps, key) for key in links))
        if gaps:
            source += f", without {counted(len(gaps), 'image')} in gaps"
        for stamp in (stamp for stamp in stamps if stamp not in gaps):
            try:
                found = buffer.lookup_transform(fixed, camera, Time(nanoseconds=stamp)).transform
            except TransformException as error:
                failure = error
                continue
            poses[stamp] = rigid_matrix(found.translation, found.rotation)
        if not poses:
            reason = f"there are gaps of more than {LONGEST_STEP:g} s, or of lost poses, around all of them"
            raise InputError(f"{source}: unknown at the time of every frame: {failure or reason}")
        return GroundTruth(source, poses)

    def _select(self, selected: str) -> tuple[str, str]:
        """Odometry topic (or none) and fixed frame."""
        topics = sorted(self._odometry)
        *_, root = ancestry = self._ancestry()
        # Robots have a frame odom and a topic /odom: the slash makes the difference.
        is_frame = selected in ancestry and not selected.startswith("/")
        if "/" + selected.lstrip("/") in topics and not is_frame:
            return "/" + selected.lstrip("/"), ODOMETRY_ROOT
        if selected:
            return "", selected.lstrip("/")
        for topic in topics:
            if is_ground_truth_name(topic):
                return topic, ODOMETRY_ROOT
        if root != self._camera and any(part in root.lower() for part in FRAME_NAMES):
            return "", root
        above = [frame for frame in ancestry if frame != self._camera]
        raise InputError(
            "no topic or frame of the bag is ground truth by its name; to compare with another one, select an "
            f"odometry topic ({', '.join(topics) or 'none'}) or a frame above the camera's "
            f"({', '.join(above) or 'none'}) with --truth"
        )

    def _ancestry(self) -> list[str]:
        """The camera's frame and all frames above it, the root last."""
        return ancestry(self._parents, self._camera)
