"""A ROS 2 bag (MCAP) with the messages of the input and those that the node would have published, for Foxglove.

Topics, types and TF frames are those of a node `raymap3r` in TF mode `camera`. What the results do not contain is left
out: ~/trajectory_raw, ~/confidence, ~/dynamic_map, ~/occupancy and diagnostics. The covariances are those of the
lowest confidence and the default error model.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.poses import ROS_FROM_OPTICAL, quaternion, twist, world_pose
from raymap3r_ros.io import bag_messages
from raymap3r_ros.io.bag_reader import BagReader, nanoseconds
from raymap3r_ros.io.png import mask_image
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.mapping import uncertainty
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.results import STAMP_TOLERANCE, Results, World
from raymap3r_ros.stamps import END, StampClock
from raymap3r_ros.text import listing

log = logging.getLogger(__name__)

OWN = "/raymap3r/"
TF, TF_STATIC = "/tf", "/tf_static"
TOPICS = (  # besides /tf, in the order of one frame's messages
    "pose", "odometry", "rgb", "camera_info", "depth", "depth_static", "dynamic_mask", "points", "trajectory",
    "static_map",
)  # fmt: skip
LATCHED = {TF_STATIC, f"{OWN}trajectory", f"{OWN}static_map"}
CAMERA, CAMERA_INFO = "/camera/image_raw/compressed", "/camera/camera_info"  # of an input that is not a bag
CAMERA_FRAME, WORLD_FRAME = "camera_optical_frame", "map"
JPEG_QUALITY = 95
TRAJECTORY_PERIOD, SHOWN_POSES = 500_000_000, 1000  # nanoseconds between two paths, and poses of each
POINT_FIELDS = ("x", "y", "z", "rgb", "confidence", "dynamic")
POINT_STRIDE = 2  # rows and columns
# Added to the stamps of a recording without a clock: they begin at 0, which means "no time" in ROS.
START = 1_000_000_000
_TF_MESSAGES = 20_000  # messages in which the frames of the input are looked for


class Item(NamedTuple):
    """A message of the input; or, with `frame`, the place of the messages of a frame of the results."""

    topic: str
    kind: str
    time: int  # of recording, nanoseconds
    data: bytes
    frame: int | None = None
    camera: str = ""  # TF frame of the image


@dataclass(frozen=True)
class Tree:
    """TF frames, those of the input kept apart."""

    world: str = WORLD_FRAME
    children: frozenset[str] = frozenset()  # frames that have a parent in the input


def _write(results: Results, new_file: NewFile) -> None:
    new_file("bag/metadata.yaml")
    folder = new_file("bag/bag.mcap").parent
    folder.rmdir()  # the library makes it
    images, is_bag = results.images(), results.summary["input_kind"] == "bag"
    with bag_messages.new_bag(folder, compressed=True) as bag:
        if is_bag:
            with closing(BagReader(results.recording.path)) as reader:
                writer = _Writer(bag, reader.definitions())
                frames = _Frames(results, _tree(reader), 0)
                _write_all(_bag_items(results, reader), images, writer, frames)
        else:
            writer = _Writer(bag, {})
            shift = START if results.stamps[0] < START else 0
            frames = _Frames(results, Tree(), shift)
            for index, image in images:
                stamp = int(results.stamps[index]) + shift
                for topic, message in _camera(results, stamp, image):
                    writer.write(topic, stamp, message)
                for topic, message in frames.messages(index, image, CAMERA_FRAME):
                    writer.write(topic, stamp, message)


def _write_all(
    items: Iterator[Item], images: Iterator[tuple[int, np.ndarray]], writer: _Writer, frames: _Frames
) -> None:
    for item in items:
        writer.copy(item)
        if item.frame is not None:
            index, image = next(images)
            for topic, message in frames.messages(index, image, item.camera):
                writer.write(topic, item.time, message)


class _Writer:
    """Adds topics to a bag when they get their first message."""

    def __init__(self, bag: Any, definitions: dict[tuple[str, str], tuple[str, str]]) -> None:
        """`definitions`: of the input, see `BagReader.definitions`."""
        self._bag = bag
        self._definitions = definitions
        self._connections: dict[tuple[str, str], Any] = {}
        self._store = bag_messages.message_store()

    def write(self, topic: str, time: int, message: Any) -> None:
        kind = message.__msgtype__
        self._bag.write(self._connection(topic, kind), time, self._store.serialize_cdr(message, kind))

    def copy(self, item: Item) -> None:
        self._bag.write(self._connection(item.topic, item.kind), item.time, item.data)

    def _connection(self, topic: str, kind: str) -> Any:
        if (topic, kind) not in self._connections:
            text, digest = self._definitions.get((topic, kind), ("", ""))
            profiles = [_latched()] if topic in LATCHED else []
            if not (text and digest) and kind not in self._store.fielddefs:
                log.warning(
                    "%s is copied without the definition of its type, %s, which the bag does not have: programs that "
                    "need it cannot show the topic; to add it, convert the bag first, where the package of the type "
                    "is installed: ros2 bag convert", topic, kind,
                )  # fmt: skip
                added = bag_messages.add_undefined(self._bag, topic, kind, profiles)
            else:
                given = {"msgdef": text, "rihs01": digest} if text and digest else {"typestore": self._store}
                added = self._bag.add_connection(topic, kind, **given, offered_qos_profiles=profiles)
            self._connections[topic, kind] = added
        return self._connections[topic, kind]


def _latched() -> Any:
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    never = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, never, never,
        QosLiveliness.AUTOMATIC, never, False,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- input


def _bag_items(results: Results, reader: BagReader) -> Iterator[Item]:
    """Yield the messages of a bag, each image of the results with its frame."""
    topic = results.recording.topic
    copied = [name for name in reader.topics if not name.startswith(OWN)]
    if left_out := sorted(reader.topics.keys() - set(copied)):
        log.warning("the input's own messages of %s are replaced", listing(left_out, 3))
    clock = StampClock(lambda _: None, reader.image_times(topic))
    index, damaged = 0, Counter()
    frames = sorted(index for world in results.worlds for index in world.frames.tolist())
    for name, kind, time, data, message in reader.raw_messages(copied, topic):
        if data is None or not 0 <= time < END:
            damaged[name] += 1
            continue
        item = Item(name, kind, time, data)
        if name == topic and not isinstance(message, BrokenFrame) and index < len(frames):
            stamp = clock.image(nanoseconds(message.header), time)
            if abs(stamp - int(results.stamps[frames[index]])) <= STAMP_TOLERANCE:
                camera = message.header.frame_id.removeprefix("/") or CAMERA_FRAME
                item = item._replace(frame=frames[index], camera=camera)
                index += 1
        yield item
    for name, count in damaged.items():
        log.warning("%s: %d messages are left out, which are too large or damaged", name, count)


def _tree(reader: BagReader) -> Tree:
    """The frames of a bag."""
    topics = [name for name in (TF, TF_STATIC) if name in reader.topics]
    parents: dict[str, str] = {}
    for _, _, message in itertools.islice(reader.messages(topics), _TF_MESSAGES) if topics else ():
        if not isinstance(message, BrokenFrame):
            for one in message.transforms:
                parents[one.child_frame_id.removeprefix("/")] = one.header.frame_id.removeprefix("/")
    taken = {*parents, *parents.values()}
    # An earlier export may have added a frame of ours: a child of the same name would have two transforms.
    own = (f"raymap3r_{WORLD_FRAME}" + (f"_{number}" if number > 1 else "") for number in itertools.count(1))
    world = next(name for name in itertools.chain([WORLD_FRAME], own) if name not in taken)
    return Tree(world, frozenset(parents))


def _camera(results: Results, stamp: int, image: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The messages of an image of another input."""
    header = bag_messages.header(stamp, CAMERA_FRAME)
    matrix = results.summary["reading"]["intrinsics"]
    if matrix is not None:
        yield CAMERA_INFO, bag_messages.camera_info_message(header, matrix, image.shape[1], image.shape[0])
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    yield CAMERA, bag_messages.messages().CompressedImage(header=header, format="jpeg", data=data.reshape(-1))


# ---------------------------------------------------------------------------------------------------------- frames


class _Frames:
    """Makes the messages of the frames of the results, one after the other."""

    def __init__(self, results: Results, tree: Tree, shift: int) -> None:
        """`shift`: nanoseconds to add to all stamps."""
        self._results, self._tree, self._shift = results, tree, shift
        self._places = {
            index: (world, position)
            for world in results.worlds
            for position, index in enumerate(world.frames.tolist())
        }
        self._world: World | None = None  # of the last frame
        self._path_stamp = 0  # of the last path
        self._travelled: Counter[int] = Counter()  # by world, see `uncertainty.travel`

    def messages(self, index: int, image: np.ndarray, camera: str) -> Iterator[tuple[str, Any]]:
        """Yield topic and message of each output. `image` as recorded; `camera`: its TF frame."""
        world, position = self._places[index]
        stamp = int(self._results.stamps[index]) + self._shift
        in_world, in_camera = bag_messages.header(stamp, self._tree.world), bag_messages.header(stamp, camera)
        pose, begins = self._pose(world, position), self._world is not world
        place = pose[:3, 3], quaternion(pose[:3, :3])
        yield TF, self._transform(in_world, in_camera, pose)
        own = {
            "pose": bag_messages.messages().PoseStamped(header=in_world, pose=bag_messages.pose_message(*place)),
            "odometry": self._odometry(world, position, in_world, camera, moved=not begins),
            **self._maps(index, world.intrinsics[position], image, in_camera),
        }
        if begins or position + 1 == len(world.frames) or abs(stamp - self._path_stamp) >= TRAJECTORY_PERIOD:
            own["trajectory"], self._path_stamp = self._path(world, position, in_world), stamp
        if begins and world.cloud is not None:
            own["static_map"] = self._static_map(world, in_world)
        self._world = world
        for name in TOPICS:
            if name in own:
                yield OWN + name, own[name]

    def _pose(self, world: World, position: int) -> np.ndarray:
        """(4, 4) in the axes of ROS."""
        pose = world.poses[position]
        return pose if world.is_given else world_pose(pose)

    def _transform(self, in_world: Any, in_camera: Any, pose: np.ndarray) -> Any:
        parent, child = in_world, in_camera
        if child.frame_id in self._tree.children:  # it has a parent: the world becomes its child
            parent, child, pose = child, parent, np.linalg.inv(pose)
        place = pose[:3, 3], quaternion(pose[:3, :3])
        one = bag_messages.transform_message(parent, child.frame_id, *place)
        return bag_messages.messages().TFMessage(transforms=[one])

    def _odometry(self, world: World, position: int, in_world: Any, camera: str, moved: bool) -> Any:
        """`moved`: the last frame is of the same world."""
        model, here, pose = uncertainty.DEFAULT, np.eye(4), self._pose(world, position)
        velocity, covariance = (np.zeros(3), np.zeros(3)), uncertainty.UNKNOWN_VARIANCE * np.eye(6)
        seconds = float(world.stamps[position] - world.stamps[position - 1]) * 1e-9
        if moved and position and seconds > 0:
            before = self._pose(world, position - 1)
            travel = uncertainty.travel(before, pose)
            self._travelled[world.number] += travel
            velocity = twist(before, pose, seconds)
            covariance = uncertainty.twist_covariance(model, here, 1.0, travel, seconds)
        return bag_messages.odometry_message(
            in_world, camera, bag_messages.pose_message(pose[:3, 3], quaternion(pose[:3, :3])),
            uncertainty.pose_covariance(model, pose, here, 1.0, self._travelled[world.number]), velocity, covariance,
        )  # fmt: skip

    def _maps(self, index: int, intrinsics: np.ndarray, image: np.ndarray, header: Any) -> dict[str, Any]:
        results = self._results
        width, height = results.size
        rgb = results.crop(image)
        found = {
            "rgb": bag_messages.image_message(header, rgb),
            "camera_info": bag_messages.camera_info_message(header, intrinsics, width, height),
        }
        depth = mask = None
        if results.has_depth:
            depth = results.depth(index)
            depth = np.where(depth > 0, depth, np.float32(np.nan))
            found["depth"] = bag_messages.image_message(header, depth)
        if results.has_masks:
            mask = results.mask(index)
            found["dynamic_mask"] = bag_messages.image_message(header, mask_image(mask))
        if depth is not None and mask is not None:
            found["depth_static"] = bag_messages.image_message(header, np.where(mask, np.float32(np.nan), depth))
            found["points"] = bag_messages.cloud_message(
                header, _cloud_rows(depth, rgb, mask, intrinsics), POINT_FIELDS, is_dense=False
            )
        return found

    def _path(self, world: World, position: int, in_world: Any) -> Any:
        step = 1 + position // SHOWN_POSES
        shown = [*range(0, position, step), position]
        poses = []
        for one in shown:
            pose = self._pose(world, one)
            header = bag_messages.header(int(world.stamps[one]) + self._shift, self._tree.world)
            message = bag_messages.pose_message(pose[:3, 3], quaternion(pose[:3, :3]))
            poses.append(bag_messages.messages().PoseStamped(header=header, pose=message))
        return bag_messages.messages().Path(header=in_world, poses=poses)

    def _static_map(self, world: World, in_world: Any) -> Any:
        points, colors = world.scene()
        turn = np.eye(3) if world.is_given else ROS_FROM_OPTICAL
        rows = np.column_stack((points @ turn.T, bag_messages.packed_colors(colors))).astype(np.float32)
        return bag_messages.cloud_message(in_world, rows, POINT_FIELDS[:4], is_dense=True)


def _cloud_rows(depth: np.ndarray, image: np.ndarray, mask: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(n, 6) float32 of the pixels with known depth, by POINT_FIELDS. The results contain no confidence."""
    points = cameras.back_project(torch.from_numpy(depth)[None], torch.from_numpy(intrinsics).float()[None])[0].numpy()
    strided = slice(None, None, POINT_STRIDE), slice(None, None, POINT_STRIDE)
    known = np.isfinite(depth[strided])
    cloud = np.empty((known.sum(), len(POINT_FIELDS)), np.float32)
    cloud[:, :3] = points[strided][known]
    cloud[:, 3] = bag_messages.packed_colors(image[strided][known])
    cloud[:, 4], cloud[:, 5] = np.nan, mask[strided][known]
    return cloud


FORMAT = ExportFormat(
    "mcap", "bag/, a ROS 2 bag of the input's messages and those of the node", _write, ("rosbags",), per_world=False
)
