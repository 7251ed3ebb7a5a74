"""ROS messages to arrays and arrays to ROS messages."""

from __future__ import annotations

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Vector3
from nav_msgs.msg import OccupancyGrid as OccupancyGridMessage
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.poses import quaternion, twist
from raymap3r_ros.io.bag_messages import packed_colors
from raymap3r_ros.io.decoding import decode_message
from raymap3r_ros.io.encoded import MAX_SIDE, depth_encoding
from raymap3r_ros.mapping.occupancy import OccupancyGrid
from raymap3r_ros.mapping.uncertainty import UNKNOWN_VARIANCE

Numbers = tuple[float, ...]  # position x y z, orientation x y z w

# Bytes per pixel of each supported encoding (of the luma in SEMIPLANAR ones), and its name in cv_bridge.
ENCODINGS: dict[str, tuple[int, str]] = {
    "rgb8": (3, "rgb8"),
    "bgr8": (3, "bgr8"),
    "rgba8": (4, "rgba8"),
    "bgra8": (4, "bgra8"),
    "mono8": (1, "mono8"),
    "mono16": (2, "mono16"),
    "yuv422": (2, "yuv422"),
    "uyvy": (2, "yuv422"),
    "yuv422_yuy2": (2, "yuv422_yuy2"),
    "yuyv": (2, "yuv422_yuy2"),
    "nv12": (1, "nv12"),
    "nv21": (1, "nv21"),
    **{f"bayer_{order}8": (1, f"bayer_{order}8") for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{order}16": (2, f"bayer_{order}16") for order in ("rggb", "bggr", "gbrg", "grbg")},
}
# Those that OpenCV converts to RGB from the message's own memory, with or without padding; None: already RGB.
DIRECT: dict[str, int | None] = {
    "rgb8": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
}
# Below the rows of luma follow half as many rows of chroma. cv_bridge has no name for these.
SEMIPLANAR: dict[str, int] = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
MAX_NAME = 256  # characters of a frame_id, which is part of every output

POINT_FIELDS = [
    PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
    for index, name in enumerate(("x", "y", "z", "rgb", "confidence", "dynamic"))
]

_bridge = CvBridge()


class EncodingError(InputError):
    """An image encoding that is not supported."""


class DepthError(EncodingError):
    """An encoding of depth images."""


# ------------------------------------------------------------------------------------------------ messages to arrays


def check_stamp(stamp: Time) -> None:
    """Raise InputError if a stamp is not a valid time."""
    if stamp.sec < 0 or stamp.nanosec >= 1_000_000_000:
        raise InputError(f"stamp of {stamp.sec} s and {stamp.nanosec} ns is not a valid time")


def check_image(message: Image | CompressedImage) -> None:
    """Raise InputError (EncodingError) if a message is not a valid image, without reading its pixels."""
    name = message.header.frame_id
    check_stamp(message.header.stamp)
    if len(name) > MAX_NAME:
        raise InputError(f"frame_id of {len(name)} characters, more than {MAX_NAME}")
    if encoding := depth_encoding(message):
        raise DepthError(
            f"encoding {encoding!r} is not supported: probably a depth image; remap `image` to the colour topic"
        )
    if isinstance(message, CompressedImage):
        if not message.data:
            raise InputError("compressed image without data")
        return
    if message.encoding not in ENCODINGS:
        raise EncodingError(
            f"encoding {message.encoding[:MAX_NAME]!r} is not supported; supported: {', '.join(ENCODINGS)}"
        )
    size = f"{message.width}x{message.height} image"
    if not (message.width and message.height):
        raise InputError(f"{size}: has no pixels")
    if max(message.width, message.height) > MAX_SIDE:
        raise InputError(f"{size}: is larger than any camera's ({MAX_SIDE} pixels a side)")
    if message.width % 2 and ENCODINGS[message.encoding][1].startswith("yuv422"):
        raise InputError(f"{size}: {message.encoding} holds pixels in pairs, the width must be even")
    semiplanar = message.encoding in SEMIPLANAR
    if semiplanar and (message.width % 2 or message.height % 2):
        raise InputError(f"{size}: {message.encoding} holds chroma of 2x2 pixels, width and height must be even")
    row, rows = message.width * ENCODINGS[message.encoding][0], message.height * (3 if semiplanar else 2) // 2
    if message.step < row:
        raise InputError(f"{size}: step is {message.step} bytes, but a row of {message.encoding} takes {row}")
    if len(message.data) < message.step * rows:
        raise InputError(
            f"{size}: data is cut short, {len(message.data)} bytes where {rows} rows of {message.step} bytes are "
            f"{message.step * rows}"
        )


def image_array(message: Image | CompressedImage) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a message. Raises InputError if it is malformed or damaged.

    The pixels of an rgb8 message without padding are not copied: the array shares the message's memory.
    """
    check_image(message)
    if isinstance(message, CompressedImage):
        return decode_message(bytes(message.data))
    if message.encoding in DIRECT:
        size = ENCODINGS[message.encoding][0]
        pixels = np.ndarray(
            (message.height, message.width, size), np.uint8, message.data, strides=(message.step, size, 1)
        )
        code = DIRECT[message.encoding]
        return np.ascontiguousarray(pixels) if code is None else cv2.cvtColor(pixels, code)
    if message.encoding in SEMIPLANAR:
        shape = message.height * 3 // 2, message.width
        planes = np.ndarray(shape, np.uint8, message.data, strides=(message.step, 1))
        return cv2.cvtColor(np.ascontiguousarray(planes), SEMIPLANAR[message.encoding])
    try:
        return _bridge.imgmsg_to_cv2(_tight(message), "rgb8")
    except CvBridgeError as error:
        raise InputError(f"{message.width}x{message.height} {message.encoding} image: {error}") from error


def _tight(message: Image) -> Image:
    """The message without padding, little-endian, in an encoding of cv_bridge.

    cv_bridge supports no padding, and its byte swap fails with NumPy 2, even for single bytes.
    """
    size, encoding = ENCODINGS[message.encoding]
    row = message.width * size
    whole = message.step == row and len(message.data) == row * message.height
    if whole and not message.is_bigendian and encoding == message.encoding:
        return message
    rows = np.frombuffer(message.data, np.uint8)[: message.step * message.height].reshape(message.height, -1)
    pixels = np.ascontiguousarray(rows[:, :row])
    if message.is_bigendian and message.encoding.endswith("16"):
        pixels = pixels.view(np.uint16).byteswap()
    tight = Image(height=message.height, width=message.width, encoding=encoding, step=row)
    _fill(tight.data, pixels)
    return tight


def pose_matrix(pose: Pose) -> np.ndarray:
    """(4, 4) of a pose message, see `rigid_matrix`."""
    return rigid_matrix(pose.position, pose.orientation)


def rigid_matrix(position: Point | Vector3, orientation: Quaternion) -> np.ndarray:
    """(4, 4) of a position and a quaternion of any length; not finite if the length is 0 or infinite."""
    q = orientation
    with np.errstate(all="ignore"):
        x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / np.linalg.norm([q.x, q.y, q.z, q.w])
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = position.x, position.y, position.z
    return matrix


def pose_numbers(position: Point | Vector3, orientation: Quaternion) -> Numbers:
    """The numbers of a pose message, unchanged."""
    p, q = position, orientation
    return p.x, p.y, p.z, q.x, q.y, q.z, q.w


def seconds(stamp: Time) -> float:
    """A stamp in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9


def nanoseconds(stamp: Time) -> int:
    """A stamp in nanoseconds, exactly."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


# ------------------------------------------------------------------------------------------------ arrays to messages


def _fill(data: array.array, values: np.ndarray) -> None:
    # One copy, into the message's own array. The constructor and the assignment of a field each copy once more, and
    # check anything but an array.array byte by byte.
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def image_message(header: Header, values: np.ndarray, encoding: str) -> Image:
    """(h, w) float32 as 32FC1, (h, w) uint16 as 16UC1, (h, w) uint8 as mono8, (h, w, 3) uint8 as rgb8."""
    height, width = values.shape[:2]
    message = Image(
        header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=values.nbytes // height
    )
    _fill(message.data, values)
    return message


def camera_info_message(header: Header, matrix: np.ndarray, width: int, height: int) -> CameraInfo:
    """Calibration of an image without distortion. `matrix`: (3, 3) pixels."""
    k = [float(value) for value in matrix.ravel()]
    p = [float(value) for row in matrix for value in (*row, 0.0)]
    identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    return CameraInfo(
        header=header, width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5, k=k, r=identity, p=p
    )


def cloud_message(header: Header, rows: np.ndarray) -> PointCloud2:
    """Cloud of rows (n, 6) float32: x y z (metres), rgb, confidence, dynamic (1 if it moves).

    rgb: PCL's and RViz's convention, the bits of a float are 0x00RRGGBB.
    """
    return _cloud(header, rows, POINT_FIELDS, is_dense=False)


def map_message(header: Header, points: np.ndarray, colors: np.ndarray) -> PointCloud2:
    """Cloud of points (n, 3) float32, metres, with colors (n, 3) uint8: x y z rgb."""
    rows = np.empty((len(points), 4), np.float32)
    rows[:, :3] = points
    rows[:, 3] = packed_colors(colors)
    return _cloud(header, rows, POINT_FIELDS[:4], is_dense=True)


def _cloud(header: Header, rows: np.ndarray, fields: list[PointField], is_dense: bool) -> PointCloud2:
    size = 4 * len(fields)
    message = PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=fields,
        is_bigendian=False,
        point_step=size,
        row_step=size * len(rows),
        is_dense=is_dense,
    )
    _fill(message.data, rows)
    return message


def grid_message(header: Header, grid: OccupancyGrid) -> OccupancyGridMessage:
    """An occupancy grid at the height of the floor."""
    rows, columns = grid.cells.shape
    message = OccupancyGridMessage(header=header)
    message.info.map_load_time = header.stamp
    message.info.resolution, message.info.width, message.info.height = grid.resolution, columns, rows
    message.info.origin.position = Point(x=grid.origin[0], y=grid.origin[1], z=grid.floor)
    message.data.frombytes(grid.cells.tobytes())
    return message


def pose_message(pose: np.ndarray) -> Pose:
    """Pose of a (4, 4) matrix."""
    x, y, z = (float(value) for value in pose[:3, 3])
    qx, qy, qz, qw = quaternion(pose[:3, :3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def stamped_pose(frame: str, stamp: int, numbers: list[float]) -> PoseStamped:
    """Pose from x y z and a quaternion x y z w, at a stamp in nanoseconds."""
    x, y, z, qx, qy, qz, qw = numbers
    seconds, nanoseconds = divmod(stamp, 1_000_000_000)
    return PoseStamped(
        header=Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=frame),
        pose=Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw)),
    )


def transform_message(header: Header, child_frame: str, pose: np.ndarray) -> TransformStamped:
    """Transform from the header's frame to `child_frame`; `pose` (4, 4) is the child's pose in the header's frame."""
    x, y, z = (float(value) for value in pose[:3, 3])
    qx, qy, qz, qw = quaternion(pose[:3, :3])
    return TransformStamped(
        header=header,
        child_frame_id=child_frame,
        transform=Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw)),
    )


def odometry_message(
    header: Header,
    child_frame: str,
    pose: np.ndarray,
    covariance: np.ndarray,
    motion: np.ndarray | None,
    interval: float,
    twist_covariance: np.ndarray | None,
) -> Odometry:
    """Odometry of `child_frame`, at `pose` (4, 4) in the header's frame.

    Args:
        covariance: (6, 6) of the pose, see `mapping.uncertainty`.
        motion: pose (4, 4) of the child frame relative to its pose `interval` seconds ago; None if not known.
        twist_covariance: (6, 6), see `mapping.uncertainty`; None without a motion.
    """
    message = Odometry(header=header, child_frame_id=child_frame)
    message.pose.pose = pose_message(pose)
    message.pose.covariance = covariance.ravel()
    if motion is None:
        message.twist.covariance = np.diag([UNKNOWN_VARIANCE] * 6).ravel()
    else:
        velocity = twist(np.eye(4), motion, interval)
        for field, values in zip((message.twist.twist.linear, message.twist.twist.angular), velocity, strict=True):
            field.x, field.y, field.z = (float(value) for value in values)
        message.twist.covariance = twist_covariance.ravel()
    return message
