"""A ROS 2 bag: its folder, or one of its .mcap or .db3 files. ROS 1 bags are read too."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from raymap3r_ros.camera_mix import CameraMix
from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import CameraCalibration, names_rectified
from raymap3r_ros.io.bag_child import IMAGE_TYPES
from raymap3r_ros.io.bag_files import is_bag
from raymap3r_ros.io.bag_reader import BagReader, BagTopic, camera_info_topic, nanoseconds
from raymap3r_ros.io.decoding import decode_image
from raymap3r_ros.io.encoded import depth_encoding
from raymap3r_ros.io.recording import BrokenFrame, Format, Frame, ReadOptions, Recording
from raymap3r_ros.stamps import JumpDetector, StampClock
from raymap3r_ros.text import counted, listing, printable

log = logging.getLogger(__name__)

MAX_NAMED = 50  # topics in an error
_LOOK_AHEAD = 10  # damaged messages before the first image of a topic
# 16-bit depth in a CompressedImage message, with a header of its own before the PNG.
# Video of plugins of image_transport, and of Foxglove, by type of message
_VIDEO_TYPES = {
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": "video (H.264 or another codec of ffmpeg_image_transport)",
    "foxglove_msgs/msg/CompressedVideo": "video (H.264 or another codec of Foxglove)",
    "theora_image_transport/msg/Packet": "Theora video",
    "h264_msgs/msg/Packet": "H.264 video",
}
_COMPRESSED_DEPTH = "/compressedDepth"

MAX_RATE = 1000.0  # frames per second; no camera is faster


def _open(path: Path, options: ReadOptions) -> Recording:
    with closing(BagReader(path)) as bag:
        topic = _choose_topic(path, bag, options.topic)
        _refuse_depth(path, bag, topic)
        stored = bag.stored(topic)
        kind = "ROS 1 bag" if bag.is_ros1 else "bag"
        seconds = max(bag.seconds, stored / MAX_RATE)
        info_topic = None if options.intrinsics is not None else camera_info_topic(topic, bag.topics)
        # The index of a cut file counts only what is left. A metadata.yaml that lists less belongs to another bag.
        known = not bag.loss or bag.listed.get(topic, -1) >= bag.topics[topic].msgcount
        known = known and not options.is_part
    return Recording(
        path, kind, options.expected(stored) if known else None, options.stride, options.max_frames,
        rate=stored / seconds / options.stride, topic=topic,
        frames=lambda recording: _frames(recording, topic, info_topic, options),
    )  # fmt: skip


def _choose_topic(path: Path, bag: BagReader, topic: str | None) -> str:
    """Return the full name of the image topic to read. Raises InputError if it is missing or ambiguous."""
    images = _image_topics(bag)
    choices = "".join(
        f"\n  {printable(name, 200)}  ({info.msgtype.rpartition('/')[2]}, {counted(info.msgcount, 'message')})"
        for name, info in sorted(images.items())
    )
    if not images:
        if video := _video_topics(bag, bag.topics):
            raise InputError(f"{path}: no image topic with messages in this bag; {video}")
        topics = [f"{name} ({info.msgtype})" for name, info in sorted(bag.topics.items())]
        others = listing(topics, MAX_NAMED) or "none at all"
        loss = f"; {bag.loss}" if bag.loss else ""
        raise InputError(f"{path}: no image topic with messages in this bag; its topics: {others}{loss}")
    if topic is None:
        if len(images) > 1:
            raise InputError(f"{path}: several image topics; choose one with --topic:{choices}")
        (topic,) = images
    # Names in ROS 1 bags may lack the leading slash.
    for name in (topic, "/" + topic.lstrip("/"), topic.lstrip("/")):
        if name in images:
            return name
        if name in bag.topics and not bag.topics[name].msgcount:
            raise InputError(
                f"{path}: the topic {name} has no messages: nothing was sent while it was recorded; there are:"
                + choices
            )
    if video := _video_topics(bag, (topic, "/" + topic.lstrip("/"))):
        raise InputError(f"{path}: {video}; there are:{choices}")
    is_depth = topic.endswith(_COMPRESSED_DEPTH)
    problem = f"{topic} has depth images" if is_depth else f"no image topic /{topic.lstrip('/')}"
    raise InputError(f"{path}: {problem}; there are:{choices}")


def _video_topics(bag: BagReader, names: Iterable[str]) -> str:
    """Return which of these topics are video streams, and what to do; "" if none is."""
    found = [
        f"{printable(name, 200)} has {_VIDEO_TYPES[bag.topics[name].msgtype]}"
        for name in sorted(names)
        if name in bag.topics and bag.topics[name].msgtype in _VIDEO_TYPES
    ]
    cure = "play the bag, decode with image_transport's `republish`, and record the Image or CompressedImage topic"
    return f"{listing(found, MAX_NAMED)}, which cannot be read: {cure}" if found else ""


def _image_topics(bag: BagReader) -> dict[str, BagTopic]:
    """Return the image topics with messages."""
    return {
        name: info
        for name, info in bag.topics.items()
        if info.msgtype in IMAGE_TYPES and info.msgcount > 0 and not name.endswith(_COMPRESSED_DEPTH)
    }


def _refuse_depth(path: Path, bag: BagReader, topic: str) -> None:
    """Raise InputError, with the colour topics of the bag, if the images of a topic are depth images."""
    if encoding := _depth_encoding(bag, topic):
        others = [name for name in sorted(_image_topics(bag)) if name != topic and not _depth_encoding(bag, name)]
        cure = (
            f"choose a colour topic with --topic: {listing(others, MAX_NAMED)}" if others else "this bag has no others"
        )
        raise InputError(f"{path}: the images of {topic} are {encoding}, so probably depth images; {cure}")


def _depth_encoding(bag: BagReader, topic: str) -> str:
    """Return the encoding of the first image of a topic if that is one of depth images, else ""."""
    images = (one for _, _, one in islice(bag.messages([topic]), _LOOK_AHEAD) if not isinstance(one, BrokenFrame))
    return next(map(depth_encoding, images), "")


def _frames(recording: Recording, topic: str, info_topic: str | None, options: ReadOptions) -> Iterator[Frame]:
    """Yield the images of `topic`, rectified by the calibration on `info_topic` unless intrinsics are given."""
    with closing(BagReader(recording.path)) as bag:
        # The first calibration also applies to the images before it; later ones (a zoom) replace it from there on.
        camera = CameraCalibration(log.warning, rectified=names_rectified(topic))
        if info_topic:
            for _, _, first in islice(bag.messages([info_topic]), 1):
                _update(camera, first)
        stamp_clock, jump_detector = StampClock(_warner(recording), bag.image_times(topic)), JumpDetector()
        camera_mix, is_mixed = CameraMix(), False
        index = -1
        begin = round(options.start * 1e9)
        for name, recorded, message in bag.messages([topic, info_topic] if info_topic else [topic], begin):
            if options.is_over((recorded - bag.begin) / 1e9):
                return
            if name == info_topic:
                _update(camera, message)
                continue
            index += 1
            if not isinstance(message, BrokenFrame):
                stamp = stamp_clock.image(nanoseconds(message.header), recorded)
                jump_detector.check(stamp, options.max_gap)
                mixed = camera_mix.add(message.header.frame_id)
                if mixed and not is_mixed:
                    log.warning("%s: %s: %s", recording.path.name, topic, mixed)
                    is_mixed = True
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
            yield Frame(image, stamp // 10**9 + stamp % 10**9 * 1e-9, matrix, jump_detector.jumps, stamp)
        read, stored = index + 1, bag.stored(topic)
        if bag.loss:
            recording.ended = bag.loss
        elif read < stored and not options.is_part:
            recording.ended = f"{read} images of {topic} could be read; its index or metadata.yaml lists {stored}"
            log.warning("%s: %s", recording.path.name, recording.ended)


def _warner(recording: Recording) -> Callable[[str], None]:
    return lambda text: log.warning("%s: %s", recording.path.name, text)


def _update(camera: CameraCalibration, message: Any) -> None:
    if not isinstance(message, BrokenFrame):
        camera.update(message)


def _message_image(message: Any) -> np.ndarray:
    """Return the (h, w, 3) uint8 RGB image of an Image or CompressedImage message. Raises BrokenFrame."""
    if encoding := depth_encoding(message):
        raise BrokenFrame(f"encoding {encoding!r} is of depth images; choose a colour topic")
    if hasattr(message, "format"):
        try:
            return decode_image(io.BytesIO(message.data.tobytes()), upright=False)
        except BrokenFrame as error:
            raise BrokenFrame(f"{error} (format {message.format!r})") from error
    return _raw_image(message)


def _raw_image(message: Any) -> np.ndarray:
    from rosbags.image import ImageError, image_to_cvimage
    from rosbags.image.image import Format, to_cvtype

    try:
        depth, layout, dtype, channels = to_cvtype(message.encoding)
        if layout is Format.GENERIC:
            raise BrokenFrame(
                f"encoding {message.encoding!r} does not define its channels; allowed are those that do: rgb8, bgr8, "
                "mono8, ..."
            )
        if layout in (Format.YUV_NV12, Format.YUV_NV21) and (message.width % 2 or message.height % 2):
            raise BrokenFrame(f"{message.width}x{message.height} {message.encoding}: its sides must be even")
        if channels == 2 and message.width % 2:
            raise BrokenFrame(f"{message.width}x{message.height} {message.encoding}: its width must be even")
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


FORMAT = Format("bag", is_bag, _open, has_topics=True)
