"""A ROS 2 bag: its folder, or one of its .mcap or .db3 files."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import CameraCalibration, names_rectified
from raymap3r_ros.io.bag_reader import BAG_SUFFIXES, IMAGE_TYPES, BagReader, camera_info_topic, nanoseconds
from raymap3r_ros.io.decoding import decode_image
from raymap3r_ros.io.recording import BrokenFrame, Format, Frame, ReadOptions, Recording
from raymap3r_ros.stamps import JumpDetector, StampClock

log = logging.getLogger(__name__)

MAX_RATE = 1000.0  # frames per second; no camera is faster


def _matches(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in BAG_SUFFIXES
    if any(item.suffix in BAG_SUFFIXES for item in path.iterdir()):
        return True
    metadata = path / "metadata.yaml"  # compressed data files have other suffixes
    return metadata.is_file() and b"rosbag2_bagfile_information" in metadata.read_bytes()


def _open(path: Path, options: ReadOptions) -> Recording:
    with closing(BagReader(path)) as bag:
        topic = _choose_topic(path, bag, options.topic)
        stored = bag.topics[topic].msgcount
        seconds = max(bag.seconds, stored / MAX_RATE)
        info_topic = None if options.intrinsics is not None else camera_info_topic(topic, bag.topics)
    return Recording(
        path, "bag", options.expected(stored), options.stride, options.max_frames,
        rate=stored / seconds / options.stride, topic=topic,
        frames=lambda recording: _frames(recording, topic, info_topic, options),
    )  # fmt: skip


def _choose_topic(path: Path, bag: BagReader, topic: str | None) -> str:
    """Return the full name of the image topic to read. Raises InputError if it is missing or ambiguous."""
    images = {
        name: info
        for name, info in bag.topics.items()
        if info.msgtype in IMAGE_TYPES
        and info.msgcount > 0
        # 16-bit depth in a CompressedImage message, with a header of its own before the PNG.
        and not name.endswith("/compressedDepth")
    }
    listing = "".join(
        f"\n  {name}  ({info.msgtype.rpartition('/')[2]}, {info.msgcount} messages)"
        for name, info in sorted(images.items())
    )
    if not images:
        others = ", ".join(sorted(bag.topics)) or "none at all"
        raise InputError(f"{path}: no image topic with messages in this bag; its topics: {others}")
    if topic is None:
        if len(images) > 1:
            raise InputError(f"{path}: several image topics; choose one with --topic:{listing}")
        (topic,) = images
    topic = "/" + topic.lstrip("/")
    if topic not in images:
        raise InputError(f"{path}: no image topic {topic}; there are:{listing}")
    return topic


def _frames(recording: Recording, topic: str, info_topic: str | None, options: ReadOptions) -> Iterator[Frame]:
    """Yield the images of `topic`, rectified by the calibration on `info_topic` unless intrinsics are given."""
    with closing(BagReader(recording.path)) as bag:
        # The first calibration also applies to the images before it; later ones (a zoom) replace it from there on.
        camera = CameraCalibration(log.warning, rectified=names_rectified(topic))
        if info_topic:
            for _, _, first in islice(bag.messages([info_topic]), 1):
                _update(camera, first)
        stamp_clock, jump_detector = StampClock(_warner(recording), bag.image_times(topic)), JumpDetector()
        index = -1
        for name, recorded, message in bag.messages([topic, info_topic] if info_topic else [topic]):
            if name == info_topic:
                _update(camera, message)
                continue
            index += 1
            if not isinstance(message, BrokenFrame):
                stamp = stamp_clock.image(nanoseconds(message.header), recorded)
                jump_detector.check(stamp, options.max_gap)
            if index % options.stride:
                continue
            try:
                if isinstance(message, BrokenFrame):
                    raise message
                image = _message_image(message)
            except BrokenFrame as error:
                recording.skip(f"message {index} of {topic}", error)
                continue
            matrix = options.intrinsics
            if matrix is None:
                image, matrix = camera.apply(image)
            yield Frame(image, stamp // 10**9 + stamp % 10**9 * 1e-9, matrix, jump_detector.jumps)


def _warner(recording: Recording) -> Callable[[str], None]:
    return lambda text: log.warning("%s: %s", recording.path.name, text)


def _update(camera: CameraCalibration, message: Any) -> None:
    if not isinstance(message, BrokenFrame):
        camera.update(message)


def _message_image(message: Any) -> np.ndarray:
    """Return the (h, w, 3) uint8 RGB image of an Image or CompressedImage message. Raises BrokenFrame."""
    if hasattr(message, "format"):
        return decode_image(io.BytesIO(message.data.tobytes()), upright=False)
    return _raw_image(message)


def _raw_image(message: Any) -> np.ndarray:
    from rosbags.image import ImageError, image_to_cvimage
    from rosbags.image.image import Format, to_cvtype

    try:
        depth, layout, dtype, channels = to_cvtype(message.encoding)
        if layout is Format.GENERIC:
            raise BrokenFrame(f"encoding {message.encoding!r} does not define its channels")
        # The library expects rows without padding, and counts the chroma rows of NV12 and NV21 as height.
        row = message.width * channels * np.dtype(dtype).itemsize
        height = message.height * 3 // 2 if layout in (Format.YUV_NV12, Format.YUV_NV21) else message.height
        if row == 0 or height == 0 or message.step < row or len(message.data) < message.step * height:
            raise BrokenFrame(
                f"{message.width}x{message.height} {message.encoding} with a step of {message.step} bytes does not "
                f"fit {len(message.data)} bytes of data"
            )
        data = np.ascontiguousarray(message.data[: message.step * height].reshape(height, message.step)[:, :row])
        packed = SimpleNamespace(
            encoding=message.encoding, height=height, width=message.width, is_bigendian=message.is_bigendian, data=data
        )
        image = np.ascontiguousarray(image_to_cvimage(packed, f"rgb{depth}"))
        # Rounded, as cv_bridge does for the node; the library would truncate.
        return image if depth == 8 else cv2.convertScaleAbs(image, alpha=255 / 65535)
    except (ImageError, cv2.error) as error:
        raise BrokenFrame(error) from error


FORMAT = Format("bag", _matches, _open, has_topics=True)
