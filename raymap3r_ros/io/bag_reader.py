"""Reading of ROS 2 and ROS 1 bags, without ROS."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.io.bag_child import MAX_MESSAGE
from raymap3r_ros.io.bag_files import zstd
from raymap3r_ros.io.bag_process import BagLoss, BagProcess
from raymap3r_ros.io.bag_types import CAMERA_INFO_TYPE, deserialize, matching_stores
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.signals import stop_requested
from raymap3r_ros.stamps import END

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted by a signal"


class BagTopic(NamedTuple):
    """A topic of a bag."""

    msgtype: str | None  # None if it has several
    msgcount: int


class BagReader:
    """A bag that is open for reading, in a child process. Raises InputError if it cannot be read.

    `loss`: why messages at the end are missing, empty if none is known to be. It is final when `messages` ends.
    """

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("rosbags") is None:
            raise InputError(f"{path}: reading bags needs: pip install rosbags rosbags-image")
        self._path = path
        self._process = BagProcess(path)
        opened = self._process.opened
        self._zstd = zstd() if opened["prepared"]["messages_compressed"] else None
        self.is_ros1 = opened["kind"] == 1
        self.loss: str = opened["loss"]
        self.topics = {name: BagTopic(*values) for name, values in opened["topics"].items()}
        self.listed: dict[str, int] = opened["prepared"]["counts"]  # messages by topic, according to metadata.yaml
        start, end = opened["times"]
        self.begin = start  # time of the first message, nanoseconds
        self.seconds = (end - start) * 1e-9 if 0 <= start <= end <= END else 0.0
        try:
            self._stores = matching_stores(path, opened["kind"], opened["defined"], opened["twice"])
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    def stored(self, topic: str) -> int:
        """Return how many messages of a topic the bag should contain, by its index and by metadata.yaml."""
        return max(self.topics[topic].msgcount, self.listed.get(topic, 0))

    def messages(self, topics: list[str], skip: int = 0) -> Iterator[tuple[str, int, Any]]:
        """Yield topic, recording time in nanoseconds and message, in order of time.

        `skip`: nanoseconds from the first message of the bag; the messages before are not read. The message is a
        BrokenFrame if it cannot be deserialised. Ends early, with a `loss`, at a stop signal.
        """
        for header, data in self._pass(topics, skip=skip):
            yield header["topic"], header["time"], self._message(header, data)

    def raw_messages(self, topics: list[str], decoded: str) -> Iterator[tuple[str, str, int, bytes | None, Any]]:
        """Yield topic, type, recording time, bytes and message, as `messages`.

        Only messages of the topic `decoded` are deserialised, for the others it is None. The bytes are None if they
        are too many or damaged.
        """
        for header, data in self._pass(topics, raw=True):
            message = self._message(header, data) if header["topic"] == decoded else None
            try:
                plain = None if data is None else self._unpacked(data)
            except Exception:  # of zstd, for damaged bytes
                plain = None
            yield header["topic"], header["type"], header["time"], plain, message

    def _pass(
        self, topics: list[str], raw: bool = False, skip: int = 0
    ) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        try:
            number = self._process.start(topics, raw, self.begin + skip if skip else None)
            while (item := self._process.next(number)) is not None:
                yield item
        except BagLoss as error:
            loss = f"damaged, cannot be read after this point: {error}"
            if loss != self.loss:  # `image_times` may have come to this point before
                log.warning("%s: %s", self._path.name, loss)
            self.loss = loss
        else:
            if stop_requested():
                self.loss = INTERRUPTED

    def definitions(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Return the text of the definition and its hash by topic and type; "" for both if the bag has none."""
        return {(topic, kind): (text, digest) for topic, kind, text, digest in self._process.definitions()}

    def _message(self, header: dict[str, Any], data: bytes | None) -> Any:
        kind, recorded = header["type"], header["time"]
        if not 0 <= recorded < END:
            return BrokenFrame(f"recorded at an impossible time, {recorded} ns")
        if data is None:
            return BrokenFrame(f"a {kind} of {header['size']} bytes is too large")
        try:
            message = self._deserialize(kind, data)
            if hasattr(message, "header") and not nanoseconds(message.header) < END:
                return BrokenFrame(f"its stamp is impossible: {message.header.stamp}")
        except Exception as error:  # generated code fails in many ways on damaged bytes
            return BrokenFrame(f"not a valid {kind}: {reason_of(error)}")
        if self.is_ros1 and kind == CAMERA_INFO_TYPE:  # its matrices are D, K, R and P there
            return SimpleNamespace(**{name.lower(): value for name, value in vars(message).items()})
        return message

    def _deserialize(self, kind: str, data: bytes) -> Any:
        return deserialize(self._stores[kind], kind, self._unpacked(data))

    def _unpacked(self, data: bytes) -> bytes:
        """Return a message without its compression. Raises ValueError."""
        if self._zstd is None:
            return data
        packed = self._zstd.ZstdDecompressor()
        data = packed.decompress(data, max_length=MAX_MESSAGE)
        if not packed.eof:
            raise ValueError(f"cut off, or unpacks to more than {MAX_MESSAGE} bytes")
        return data

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
