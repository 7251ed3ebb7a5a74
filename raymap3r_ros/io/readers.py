"""Recordings as a stream of frames: a video, a folder of images, a ROS 2 bag.

One frame is in memory at a time. A frame that cannot be decoded is skipped, warned about and counted.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raymap3r_ros.errors import InputError, reason_of
from raymap3r_ros.geometry.calibration import CameraCalibration, names_rectified

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Pillow knows many more, one of which it hands to Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 2**26  # of an image: a few kilobytes can say that they are gigabytes of pixels
BAG_SUFFIXES = (".mcap", ".db3")
MAX_RATE = 1000.0  # frames per second; no camera is faster
GIVE_UP = 10  # frames of a video that cannot be decoded one after the other: this is its end
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
KNOWN_TYPES = (  # whose fields are read here
    *IMAGE_TYPES, CAMERA_INFO_TYPE, "sensor_msgs/msg/RegionOfInterest", "std_msgs/msg/Header",
    "builtin_interfaces/msg/Time",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One image of a recording."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    stamp: float  # seconds, as the recording tells them
    intrinsics: np.ndarray | None  # (3, 3) pixels of `image`


class BrokenFrame(Exception):
    """One frame, or message of a bag, that cannot be decoded; no user sees it."""


@dataclass
class Recording:
    """Frames of one recording, in order; iterate over it, as often as needed.

    Iterating raises InputError where no frame can be read at all, or where the size of the images changes.
    """

    path: Path
    kind: str  # "video", "images" or "bag"
    length: int | None  # frames to expect, after `stride` and `max_frames`; None where the file does not tell
    stride: int
    max_frames: int | None
    rate: float  # frames per second, about, after `stride`
    topic: str = ""  # of a bag
    skipped: int = 0  # frames of the last iteration that could not be decoded
    frames: Callable[[Recording], Iterator[Frame]] = field(repr=False, kw_only=True)  # one pass, in order

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = 0
        size = None
        with closing(self.frames(self)) as source:
            for frame in islice(source, self.max_frames):
                height, width = frame.image.shape[:2]
                if size is None:
                    size = width, height
                elif size != (width, height):
                    raise InputError(
                        f"{self.path}: the image at {frame.stamp:.3f} s is {width}x{height}, those before it are "
                        f"{size[0]}x{size[1]}; give one recording per image size"
                    )
                yield frame
        if size is None:
            broken = f" ({self.skipped} could not be decoded, see the warnings)" if self.skipped else ""
            raise InputError(f"{self.path}: not one frame could be read{broken}")

    def skip(self, what: str, why: object) -> None:
        """Warn about a frame that cannot be used, and count it."""
        self.skipped += 1
        log.warning("%s: skipped %s: %s", self.path.name, what, why)


def open_recording(
    path: str | Path,
    *,
    topic: str | None = None,
    rate: float = 30.0,
    stride: int = 1,
    max_frames: int | None = None,
    intrinsics: np.ndarray | None = None,
) -> Recording:
    """Look at what `path` is and get ready to read it.

    `path`: a video; a folder of images (in natural order of their names); a ROS 2 bag, its folder or one .mcap or
    .db3 file of it. `topic`: the image topic of a bag that has several. `rate`: frames per second of a folder of
    images, and of a video that does not tell its own. `stride`: only every so-many-th frame. `intrinsics`: (3, 3)
    pixels of the recorded images; wins over what a bag says.

    Raises InputError where nothing can be read, saying what was found.
    """
    path = Path(path)
    if stride < 1:
        raise InputError(f"stride is {stride}; allowed: 1 and more")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames is {max_frames}; allowed: 1 and more")
    if not rate > 0:
        raise InputError(f"rate is {rate}; allowed: above 0 frames per second")
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")

    limits = {"stride": stride, "max_frames": max_frames}
    if path.is_dir():
        if _is_bag(path):
            return _open_bag(path, topic, intrinsics, limits)
        _refuse_topic(path, topic)
        return _open_images(path, rate, intrinsics, limits)
    if path.suffix in BAG_SUFFIXES:
        return _open_bag(path, topic, intrinsics, limits)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{path}: is one image; give a folder of images, a video or a bag")
    _refuse_topic(path, topic)
    return _open_video(path, rate, intrinsics, limits)


def _is_bag(folder: Path) -> bool:
    if any(item.suffix in BAG_SUFFIXES for item in folder.iterdir()):
        return True
    metadata = folder / "metadata.yaml"  # beside files with other endings where the bag is compressed
    return metadata.is_file() and b"rosbag2_bagfile_information" in metadata.read_bytes()


def _refuse_topic(path: Path, topic: str | None) -> None:
    if topic is not None:
        raise InputError(f"{path}: is no bag, so it has no topic {topic!r}")


def _expected(count: int | None, stride: int, max_frames: int | None) -> int | None:
    """Frames that come out of `count` stored ones."""
    if count is None:
        return None
    count = math.ceil(count / stride)
    return count if max_frames is None else min(count, max_frames)


def decode_image(source: Path | io.BytesIO, upright: bool = True) -> np.ndarray:
    """An encoded picture as (h, w, 3) uint8 RGB: grey and palette spread to colour, alpha dropped.

    With `upright` it is turned as its EXIF orientation says; a calibrated camera's pixels must stay where they are.
    Raises BrokenFrame where the data are damaged, cut short or in no known format.
    """
    try:
        with Image.open(source, formats=IMAGE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenFrame(f"{picture.width}x{picture.height} pixels are more than any camera's ({MAX_PIXELS})")
            if picture.mode.startswith(("I", "F")):
                # Pillow would clip 16-bit grey to 255 instead of scaling it.
                values = np.asarray(picture)
                if picture.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
                    raise BrokenFrame(f"pixel type {picture.mode!r} has no known brightness range")
                return np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray((ImageOps.exif_transpose(picture) if upright else picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise all of these on damaged files.
        why = "not a known image format" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenFrame(why) from error


# ---------------------------------------------------------------------------------------------------------- images


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which frame2 comes before frame10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.findall(r"\d+|\D+", name)]


def _open_images(path: Path, rate: float, intrinsics: np.ndarray | None, limits: dict) -> Recording:
    files = [
        item
        for item in path.iterdir()
        # macOS leaves ._name.jpg files beside copied pictures.
        if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".") and item.is_file()
    ]
    if not files:
        raise InputError(f"{path}: no images ({' '.join(IMAGE_SUFFIXES)}) and no bag in this folder")
    files.sort(key=lambda item: natural_key(item.name))
    files = files[:: limits["stride"]]
    _check_same_size(files if limits["max_frames"] is None else files[: limits["max_frames"]])

    def frames(recording: Recording) -> Iterator[Frame]:
        for position, file in enumerate(files):
            try:
                image = decode_image(file)
            except BrokenFrame as error:
                recording.skip(file.name, error)
                continue
            yield Frame(image, position * limits["stride"] / rate, intrinsics)

    return Recording(
        path, "images", _expected(len(files), 1, limits["max_frames"]), **limits,
        rate=rate / limits["stride"], frames=frames,
    )  # fmt: skip


def _check_same_size(files: list[Path]) -> None:
    """Read the headers only, so that a folder of mixed sizes is refused before any work is done."""
    first = None
    for file in files:
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as picture:
                width, height = picture.size
                if picture.getexif().get(0x0112, 1) >= 5:  # orientation: lying on its side
                    width, height = height, width
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # reported when its turn comes
        if first is None:
            first = file, width, height
        elif first[1:] != (width, height):
            raise InputError(
                f"{file.parent}: images of different sizes: {first[0].name} is {first[1]}x{first[2]}, "
                f"{file.name} is {width}x{height}"
            )


# ----------------------------------------------------------------------------------------------------------- video


def _open_video(path: Path, rate: float, intrinsics: np.ndarray | None, limits: dict) -> Recording:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.grab():
            raise InputError(f"{path}: is no video that OpenCV can read (and no folder of images, .mcap or .db3 file)")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    if not (math.isfinite(fps) and fps > 0):
        fps = rate
    stored = count if count > 0 else None

    def frames(recording: Recording) -> Iterator[Frame]:
        capture = cv2.VideoCapture(str(path))
        try:
            stamp = None
            index = failed = 0
            while failed < GIVE_UP:
                # OpenCV reports a broken frame as it does the end; only after a broken one more frames come.
                if not capture.grab():
                    failed += 1
                    continue
                for broken in range(index, index + failed):
                    recording.skip(f"frame {broken}", "it cannot be decoded")
                index, failed = index + failed, 0
                container = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # Some containers carry no times of their own: OpenCV then reports 0 or repeats itself.
                stamp = container if stamp is None or container > stamp else stamp + 1 / fps
                if index % limits["stride"] == 0:
                    decoded, image = capture.retrieve()
                    if decoded:
                        yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp, intrinsics)
                    else:
                        recording.skip(f"frame {index}", "it cannot be decoded")
                index += 1
            if stored is not None and index < stored:
                log.warning("%s: ended after %d frames; its header says %d", path.name, index, stored)
        finally:
            capture.release()

    return Recording(path, "video", _expected(stored, **limits), **limits, rate=fps / limits["stride"], frames=frames)


# ------------------------------------------------------------------------------------------------------------- bag


def _open_bag(path: Path, topic: str | None, intrinsics: np.ndarray | None, limits: dict) -> Recording:
    with closing(BagReader(path)) as bag:
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
        stored = images[topic].msgcount
        seconds = max(bag.seconds, stored / MAX_RATE)
        info_topic = None if intrinsics is not None else camera_info_topic(topic, bag.topics)

    def frames(recording: Recording) -> Iterator[Frame]:
        with closing(BagReader(path)) as bag:
            # The first calibration serves the images before it too; later ones (a zoom) replace it from there on.
            camera = CameraCalibration(log.warning, rectified=names_rectified(topic))
            if info_topic:
                for _, _, first in islice(bag.messages([info_topic]), 1):
                    _take_calibration(camera, first)
            index = -1
            for name, recorded, message in bag.messages([topic, info_topic] if info_topic else [topic]):
                if name == info_topic:
                    _take_calibration(camera, message)
                    continue
                index += 1
                if index % limits["stride"]:
                    continue
                try:
                    if isinstance(message, BrokenFrame):
                        raise message
                    image = _message_image(message)
                    matrix = intrinsics
                    if matrix is None:
                        image, matrix = camera.apply(image)
                except BrokenFrame as error:
                    recording.skip(f"message {index} of {topic}", error)
                    continue
                stamp = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
                # Drivers without a clock leave the stamp at zero; the recorder's time is the next best.
                yield Frame(image, stamp if stamp > 0 else recorded * 1e-9, matrix)

    return Recording(
        path, "bag", _expected(stored, **limits), **limits, rate=stored / seconds / limits["stride"], topic=topic,
        frames=frames,
    )  # fmt: skip


def camera_info_topic(topic: str, topics: dict[str, Any]) -> str | None:
    """Where image_transport's conventions put the calibration of an image topic."""
    base = topic.removesuffix("/compressed")
    for name in (base.rpartition("/")[0] + "/camera_info", base + "/camera_info"):
        if name in topics and topics[name].msgtype == CAMERA_INFO_TYPE and topics[name].msgcount > 0:
            return name
    return None


def _take_calibration(camera: CameraCalibration, message: Any) -> None:
    if not isinstance(message, BrokenFrame):
        camera.update(message)


class BagReader:
    """The few things asked of a bag; errors of the reading library come out as InputError."""

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise InputError(f"{path}: reading bags needs: pip install rosbags rosbags-image") from error
        # A recorder that was killed leaves no metadata.yaml; the files themselves can still be read.
        paths = [path]
        if path.is_dir() and not (path / "metadata.yaml").is_file():
            paths = sorted(item for item in path.iterdir() if item.suffix in BAG_SUFFIXES)
        self._path = path
        try:
            # Bags recorded before ROS 2 Iron as sqlite3 carry no message definitions.
            known = get_typestore(Stores.ROS2_HUMBLE)
            self._reader = AnyReader(paths, default_typestore=known)
            self._reader.open()
            self.topics = self._reader.topics
            self.seconds = self._reader.duration * 1e-9
            told = self._reader.typestore.fielddefs
        except Exception as error:  # the library lets struct, sqlite and decompression errors through
            raise InputError(f"{path}: cannot be read as a ROS 2 bag: {reason_of(error)}") from error
        for name in KNOWN_TYPES:
            # A bag brings the definitions of its messages with it, and may say anything.
            if name in told and told[name][1] != known.fielddefs[name][1]:
                self.close()
                raise InputError(f"{path}: {name} is defined in it with other fields than in ROS 2")

    def close(self) -> None:
        self._reader.close()

    def messages(self, topics: list[str]) -> Iterator[tuple[str, int, Any]]:
        """Topic, recording time in nanoseconds and message (BrokenFrame where it cannot be taken apart), in order."""
        chosen = [connection for connection in self._reader.connections if connection.topic in topics]
        source = self._reader.messages(chosen)
        while True:
            try:
                connection, recorded, data = next(source)
            except StopIteration:
                return
            except Exception as error:  # as above: damage in the file itself, after which nothing more can be read
                log.warning("%s: damaged, nothing can be read after this point: %s", self._path.name, reason_of(error))
                return
            try:
                message = self._reader.deserialize(data, connection.msgtype)
            except Exception as error:  # generated code, which fails in many ways on damaged bytes
                message = BrokenFrame(f"not a valid {connection.msgtype}: {reason_of(error)}")
            yield connection.topic, recorded, message


def _message_image(message: Any) -> np.ndarray:
    """(h, w, 3) uint8 RGB of an Image or CompressedImage message. Raises BrokenFrame."""
    if hasattr(message, "format"):
        return decode_image(io.BytesIO(message.data.tobytes()), upright=False)
    return _raw_image(message)


def _raw_image(message: Any) -> np.ndarray:
    from rosbags.image import ImageError, image_to_cvimage
    from rosbags.image.image import Format, to_cvtype

    try:
        depth, layout, dtype, channels = to_cvtype(message.encoding)
        if layout is Format.GENERIC:
            raise BrokenFrame(f"encoding {message.encoding!r} does not say what its channels are")
        # The library takes rows without padding, and the chroma rows of NV12 and NV21 as part of the height.
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
        # Rounded, as cv_bridge does it for the node: the library would cut the rest off.
        return image if depth == 8 else cv2.convertScaleAbs(image, alpha=255 / 65535)
    except (ImageError, cv2.error) as error:
        raise BrokenFrame(error) from error
