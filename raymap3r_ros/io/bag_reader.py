"""Reading of ROS 2 and ROS 1 bags, without ROS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.bag_files import ROS1, data_files, prepare, zstd
from raymap3r_ros.io.recording import BrokenFrame

log = logging.getLogger(__name__)

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
KNOWN_TYPES = (  # whose fields this package reads
    *IMAGE_TYPES, CAMERA_INFO_TYPE, "sensor_msgs/msg/RegionOfInterest", "std_msgs/msg/Header",
    "builtin_interfaces/msg/Time",
)  # fmt: skip
_CURES = {  # parts of messages of the reading library, and what to do
    "not indexed": "repair it with: rosbag reindex",
    "malformed": "repair it with: sqlite3 FILE .recover",
    "not a database": "repair it with: sqlite3 FILE .recover",
    "Profile is not ros2": "convert it to a ROS 2 bag with: rosbags-convert",
    "summary offset": "repair it with: mcap recover",
    "MCAP footer": "repair it with: mcap recover",
    "missing tables": "an SQLite database, but not a bag",
    "magic is invalid": "not an MCAP file by its first bytes; was it copied completely?",
    "Bag version": "only version 2.0 is read; convert it with ROS 1: rosbag fix",
    "could not be read from file": "cut off or damaged; repair it with ROS 1: rosbag reindex",
    "Could not read": "cut off or damaged; repair it with ROS 1: rosbag reindex",
}


class BagReader:
    """A bag that is open for reading. Errors of the reading library are raised as InputError.

    `loss`: why messages at the end are missing, empty if none is known to be. It is final when `messages` ends.
    """

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise InputError(f"{path}: reading bags needs: pip install rosbags rosbags-image") from error
        self._path = path
        found, metadata = data_files(path)
        # Files that were repaired or unpacked exist as long as this list.
        self._files = [prepare(file) for file in found]
        self._zstd = zstd() if metadata.messages_compressed else None
        self.is_ros1 = any(file.kind == ROS1 for file in self._files)
        self.loss = "; ".join(file.loss for file in self._files if file.loss)
        what = "a ROS 1 bag" if self.is_ros1 else "a ROS 2 bag"
        if all(file.empty for file in self._files):
            raise InputError(f"{path}: cannot be read as {what}: {self.loss}")
        try:
            # sqlite3 bags from before ROS 2 Iron contain no message definitions.
            known = get_typestore(Stores.ROS1_NOETIC if self.is_ros1 else Stores.ROS2_HUMBLE)
            self._reader = AnyReader([file.path for file in self._files if not file.empty], default_typestore=known)
            self._reader.open()
            self.topics = self._reader.topics
            self.seconds = self._reader.duration * 1e-9
            defined = self._reader.typestore.fielddefs
        except Exception as error:  # the library passes on struct, sqlite and decompression errors
            cure = "".join(f"; {cure}" for part, cure in _CURES.items() if part in str(error))
            raise InputError(f"{path}: cannot be read as {what}: {reason_of(error)}{cure}") from error
        self.listed = metadata.counts or {}  # messages by topic, according to metadata.yaml
        for name in KNOWN_TYPES:
            # A bag contains the definitions of its messages, which may be anything.
            if name in defined and defined[name][1] != known.fielddefs[name][1]:
                self.close()
                raise InputError(f"{path}: {name} is defined with other fields than in ROS {1 if self.is_ros1 else 2}")

    def close(self) -> None:
        """Close its files."""
        self._reader.close()

    def stored(self, topic: str) -> int:
        """Return how many messages of a topic the bag should contain, by its index and by metadata.yaml."""
        return max(self.topics[topic].msgcount, self.listed.get(topic, 0))

    def messages(self, topics: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Yield topic, recording time in nanoseconds and message, in order of time.

        The message is a BrokenFrame if it cannot be deserialised.
        """
        chosen = [connection for connection in self._reader.connections if connection.topic in topics]
        source = self._reader.messages(chosen)
        while True:
            try:
                connection, recorded, data = next(source)
            except StopIteration:
                return
            except Exception as error:  # as above: a damaged file cannot be read any further
                loss = f"damaged, cannot be read after this point: {reason_of(error)}"
                if loss != self.loss:  # `image_times` may have come to this point before
                    log.warning("%s: %s", self._path.name, loss)
                self.loss = loss
                return
            yield connection.topic, recorded, self._message(connection.msgtype, data)

    def _message(self, kind: str, data: bytes) -> Any:
        try:
            if self._zstd is not None:
                data = self._zstd.decompress(data)
            message = self._reader.deserialize(data, kind)
        except Exception as error:  # generated code fails in many ways on damaged bytes
            return BrokenFrame(f"not a valid {kind}: {reason_of(error)}")
        if self.is_ros1 and kind == CAMERA_INFO_TYPE:  # its matrices are D, K, R and P there
            return SimpleNamespace(**{name.lower(): value for name, value in vars(message).items()})
        return message

    def image_times(self, topic: str) -> Iterator[tuple[int, int]]:
        """Yield stamp and recording time in nanoseconds of each image of a topic, for `StampClock`."""
        for _, recorded, message in self.messages([topic]):
            if not isinstance(message, BrokenFrame):
                yield nanoseconds(message.header), recorded


def nanoseconds(header: Any) -> int:
    """Return the stamp of a header."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def camera_info_topic(topic: str, topics: dict[str, Any]) -> str | None:
    """Return the camera_info topic of an image topic by image_transport's conventions; None if there is none."""
    base = topic.removesuffix("/compressed")
    for name in (base.rpartition("/")[0] + "/camera_info", base + "/camera_info"):
        if name in topics and topics[name].msgtype == CAMERA_INFO_TYPE and topics[name].msgcount > 0:
            return name
    return None
