"""Reading of ROS 2 bags, without ROS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.recording import BrokenFrame

log = logging.getLogger(__name__)

BAG_SUFFIXES = (".mcap", ".db3")
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
KNOWN_TYPES = (  # whose fields this package reads
    *IMAGE_TYPES, CAMERA_INFO_TYPE, "sensor_msgs/msg/RegionOfInterest", "std_msgs/msg/Header",
    "builtin_interfaces/msg/Time",
)  # fmt: skip


class BagReader:
    """A bag that is open for reading. Errors of the reading library are raised as InputError."""

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise InputError(f"{path}: reading bags needs: pip install rosbags rosbags-image") from error
        # A killed recorder leaves no metadata.yaml; the data files can still be read.
        paths = [path]
        if path.is_dir() and not (path / "metadata.yaml").is_file():
            paths = sorted(item for item in path.iterdir() if item.suffix in BAG_SUFFIXES)
        self._path = path
        self.loss = ""  # why messages at the end are missing
        try:
            # sqlite3 bags from before ROS 2 Iron contain no message definitions.
            known = get_typestore(Stores.ROS2_HUMBLE)
            self._reader = AnyReader(paths, default_typestore=known)
            self._reader.open()
            self.topics = self._reader.topics
            self.seconds = self._reader.duration * 1e-9
            defined = self._reader.typestore.fielddefs
        except Exception as error:  # the library passes on struct, sqlite and decompression errors
            raise InputError(f"{path}: cannot be read as a ROS 2 bag: {reason_of(error)}") from error
        for name in KNOWN_TYPES:
            # A bag contains the definitions of its messages, which may be anything.
            if name in defined and defined[name][1] != known.fielddefs[name][1]:
                self.close()
                raise InputError(f"{path}: {name} is defined with other fields than in ROS 2")

    def close(self) -> None:
        """Close its files."""
        self._reader.close()

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
                self.loss = f"damaged, cannot be read after this point: {reason_of(error)}"
                log.warning("%s: %s", self._path.name, self.loss)
                return
            try:
                message = self._reader.deserialize(data, connection.msgtype)
            except Exception as error:  # generated code fails in many ways on damaged bytes
                message = BrokenFrame(f"not a valid {connection.msgtype}: {reason_of(error)}")
            yield connection.topic, recorded, message

    def stored(self, topic: str) -> int:
        """Return how many messages of a topic the bag should contain, by its index."""
        return self.topics[topic].msgcount

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
