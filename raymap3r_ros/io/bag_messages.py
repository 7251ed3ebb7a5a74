"""Messages of ROS 2 for bags, from arrays, without ROS. The node has the same in `node.conversions`."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from raymap3r_ros.errors import InputError

ENCODINGS = {("f4", 2): "32FC1", ("u1", 2): "mono8", ("u1", 3): "rgb8"}  # by dtype and number of dimensions
_FLOAT32 = 7  # datatype of a PointField
Position = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # x y z w


@functools.cache
def message_store() -> Any:
    """The definitions of the messages. Raises ImportError without rosbags."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE)


@functools.cache
def messages() -> SimpleNamespace:
    """The message classes by their short names."""
    return SimpleNamespace(**{kind.rpartition("/")[2]: one for kind, one in message_store().types.items()})


def new_bag(folder: Path, compressed: bool = False) -> Any:
    """A writer of a new MCAP bag, to be used in a `with` block. `compressed`: its chunks, with zstd.

    Raises InputError without rosbags.
    """
    try:
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    except ImportError as error:
        raise InputError(f"{folder}: writing bags needs: pip install rosbags") from error

    class GroupWriter(Writer):
        """Gives the folder the permissions of its files: the library ignores the umask of a group's shared folder."""

        def open(self) -> None:
            super().open()
            own, file = (path.stat().st_mode for path in (self.path, next(self.path.iterdir())))
            self.path.chmod(own & 0o7000 | file & 0o666 | (file & 0o444) >> 2)

    writer = GroupWriter(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    if compressed:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    return writer


def add_undefined(bag: Any, topic: str, kind: str, profiles: list[Any]) -> Any:
    """Add a topic to a bag of `new_bag` whose type has no known definition, and return its connection.

    The encoding of its schema is empty, which means "no definition" in MCAP: an empty definition would be a message
    without fields. The library has no call for that.
    """
    from rosbags.rosbag2.storage_mcap import Schema, write_schema

    storage = bag.storage
    if kind not in bag.added_types:
        storage.schemas.append(Schema(len(storage.schemas) + 1, kind, "", ""))
        write_schema(storage.chunk.bio, storage.schemas[-1])
        bag.added_types.add(kind)
    added = bag.add_connection(topic, kind, msgdef="", rihs01="unknown", offered_qos_profiles=profiles)
    bag.connections[-1] = added._replace(digest="")  # in metadata.yaml
    return bag.connections[-1]


def header(nanoseconds: int, frame: str) -> Any:
    """The header of a message at a stamp."""
    stamp = messages().Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
    return messages().Header(stamp=stamp, frame_id=frame)


def image_message(header: Any, pixels: np.ndarray) -> Any:
    """(h, w) float32 as 32FC1, (h, w) uint8 as mono8, (h, w, 3) uint8 as rgb8."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    return messages().Image(
        header=header, height=height, width=width, encoding=ENCODINGS[pixels.dtype.str[1:], pixels.ndim],
        is_bigendian=0, step=rows.shape[1], data=rows.reshape(-1),
    )  # fmt: skip


def camera_info_message(header: Any, intrinsics: np.ndarray, width: int, height: int) -> Any:
    """Calibration of an image without distortion. `intrinsics`: (3, 3) pixels."""
    matrix = np.asarray(intrinsics, np.float64)
    return messages().CameraInfo(
        header=header, height=height, width=width, distortion_model="plumb_bob", d=np.zeros(5),
        k=matrix.reshape(9), r=np.eye(3).reshape(9), p=np.hstack([matrix, np.zeros((3, 1))]).reshape(12),
        binning_x=0, binning_y=0,
        roi=messages().RegionOfInterest(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )  # fmt: skip


def cloud_message(header: Any, rows: np.ndarray, names: tuple[str, ...], is_dense: bool) -> Any:
    """Cloud of rows (n, k) float32 with a name for each column."""
    make = messages()
    fields = [
        make.PointField(name=name, offset=4 * index, datatype=_FLOAT32, count=1) for index, name in enumerate(names)
    ]
    return make.PointCloud2(
        header=header, height=1, width=len(rows), fields=fields, is_bigendian=False, point_step=4 * len(names),
        row_step=4 * len(names) * len(rows), data=np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(-1),
        is_dense=is_dense,
    )  # fmt: skip


def packed_colors(colors: np.ndarray) -> np.ndarray:
    """(n,) float32 of colors (n, 3) uint8: the convention of PCL and RViz, whose bits are 0x00RRGGBB."""
    red, green, blue = colors.astype(np.uint32).T
    return (red << 16 | green << 8 | blue).view(np.float32)


def pose_message(position: Position, quaternion: Quaternion) -> Any:
    """A pose."""
    return messages().Pose(position=_xyz("Point", position), orientation=_orientation(quaternion))


def transform_message(header: Any, child: str, position: Position, quaternion: Quaternion) -> Any:
    """The transform from the header's frame to `child`: the child's pose in the header's frame."""
    transform = messages().Transform(translation=_xyz("Vector3", position), rotation=_orientation(quaternion))
    return messages().TransformStamped(header=header, child_frame_id=child, transform=transform)


def odometry_message(
    header: Any,
    child: str,
    pose: Any,
    covariance: np.ndarray,
    velocity: tuple[np.ndarray, np.ndarray],
    velocity_covariance: np.ndarray,
) -> Any:
    """Odometry of `child`. Covariances (6, 6); `velocity`: linear m/s and angular rad/s, each (3,)."""
    make = messages()
    linear, angular = (_xyz("Vector3", one) for one in velocity)
    return make.Odometry(
        header=header, child_frame_id=child,
        pose=make.PoseWithCovariance(pose=pose, covariance=covariance.reshape(36)),
        twist=make.TwistWithCovariance(
            twist=make.Twist(linear=linear, angular=angular), covariance=velocity_covariance.reshape(36)
        ),
    )  # fmt: skip


def _xyz(kind: str, values: Any) -> Any:
    x, y, z = (float(value) for value in values)
    return getattr(messages(), kind)(x=x, y=y, z=z)


def _orientation(quaternion: Quaternion) -> Any:
    x, y, z, w = quaternion
    return messages().Quaternion(x=x, y=y, z=z, w=w)
