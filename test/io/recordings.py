"""Recordings with known images, for the tests of the readers."""

from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPES = STORE.types
SIZE = 48, 32  # width, height


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red-to-dark ramp whose blue encodes the index: shows channel order, orientation and frame.

    A bar of green makes it an image with content, see `streaming.cover`.
    """
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[..., 0] = np.linspace(250, 20, size[0])
    image[size[1] // 2 :, :, 1] = 60
    image[..., 2] = 20 * index
    return image


def index_of(image: np.ndarray) -> int:
    return round(float(image[..., 2].mean()) / 20)


def assert_shows(image: np.ndarray, index: int, tolerance: float = 0) -> None:
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - picture(index)).max() <= tolerance


def write_video(path: Path, count: int = 10, fps: float = 20.0, code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, SIZE)
    for index in range(count):
        writer.write(picture(index)[..., ::-1])
    writer.release()
    return path


def header(seconds: float):
    whole = int(seconds)
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=whole, nanosec=round((seconds - whole) * 1e9))
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def image_message(seconds: float, data: np.ndarray, encoding: str, width: int = SIZE[0], step: int = 0, big: int = 0):
    data = np.ascontiguousarray(data)
    return TYPES["sensor_msgs/msg/Image"](
        header=header(seconds), height=data.shape[0], width=width, encoding=encoding, is_bigendian=big,
        step=step or data.nbytes // data.shape[0], data=data.view(np.uint8).reshape(-1),
    )  # fmt: skip


def compressed_message(seconds: float, image: np.ndarray, suffix: str = ".png"):
    encoded = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1]
    message = TYPES["sensor_msgs/msg/CompressedImage"]
    return message(header=header(seconds), format=suffix[1:], data=encoded.reshape(-1))


def info_message(seconds: float, matrix: np.ndarray, size=SIZE, distortion=(), model="plumb_bob", projection=None):
    projection = matrix if projection is None else projection
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header=header(seconds), height=size[1], width=size[0], distortion_model=model,
        d=np.array(distortion, np.float64), k=matrix.astype(np.float64).reshape(9), r=np.eye(3).reshape(9),
        p=np.hstack([projection, np.zeros((3, 1))]).reshape(12), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def write_bag(path: Path, messages, plugin=StoragePlugin.MCAP) -> Path:
    """`messages`: (topic, recording time in seconds, message or (type name, raw bytes))."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for topic, recorded, message in messages:
            kind, data = message if isinstance(message, tuple) else (message.__msgtype__, None)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind) if data is None else data
            writer.write(connections[topic], round(recorded * 1e9), data)
    return path


def camera_bag(path: Path, topic: str = "/cam/image_raw", plugin=StoragePlugin.MCAP, make=None, count=4) -> Path:
    make = make or (lambda seconds, image: image_message(seconds, image, "rgb8"))
    return write_bag(
        path, [(topic, 100 + index, make(50 + index / 10, picture(index))) for index in range(count)], plugin
    )
