"""ROS messages to arrays and arrays to ROS messages."""

from __future__ import annotations

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, Quaternion, Transform, TransformStamped, Vector3
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from raymap3r_ros.errors import InputError
from raymap3r_ros.node.geometry import UNKNOWN_VARIANCE, quaternion

# Bytes per pixel of every encoding that is taken, and the name under which cv_bridge knows it.
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
    **{f"bayer_{order}8": (1, f"bayer_{order}8") for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{order}16": (2, f"bayer_{order}16") for order in ("rggb", "bggr", "gbrg", "grbg")},
}
# Of these, the ones that OpenCV turns into RGB from the message's own memory, padding or not; None: they are RGB.
DIRECT: dict[str, int | None] = {
    "rgb8": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
}
MAX_SIDE = 16_384  # pixels; anything larger is a damaged message, not a camera

POINT_FIELDS = [
    PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
    for index, name in enumerate(("x", "y", "z", "rgb", "confidence", "dynamic"))
]

_bridge = CvBridge()


class EncodingError(InputError):
    """An image encoding that is not taken."""


# ------------------------------------------------------------------------------------------------ messages to arrays


def check_image(message: Image | CompressedImage) -> None:
    """Raise InputError (EncodingError) where a message cannot be an image, without looking at its pixels."""
    if isinstance(message, CompressedImage):
        if not message.data:
            raise InputError("compressed image without data")
        return
    if message.encoding not in ENCODINGS:
        raise EncodingError(f"encoding {message.encoding!r} is not supported; supported: {', '.join(ENCODINGS)}")
    size = f"{message.width}x{message.height} image"
    if not (message.width and message.height):
        raise InputError(f"{size}: has no pixels")
    if max(message.width, message.height) > MAX_SIDE:
        raise InputError(f"{size}: is larger than any camera's ({MAX_SIDE} pixels a side)")
    row = message.width * ENCODINGS[message.encoding][0]
    if message.step < row:
        raise InputError(f"{size}: step is {message.step} bytes, but a row of {message.encoding} takes {row}")
    if len(message.data) < message.step * message.height:
        raise InputError(
            f"{size}: data is cut short, {len(message.data)} bytes where step * height is "
            f"{message.step * message.height}"
        )


def image_array(message: Image | CompressedImage) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a message. Raises InputError where it is malformed or damaged.

    The pixels of an rgb8 message without padding are not copied: the array shares the message's memory.
    """
    check_image(message)
    if isinstance(message, CompressedImage):
        # The pixels as the sensor wrote them: calibration knows nothing of an EXIF orientation.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
        if image is None:
            raise InputError(f"compressed image of {len(message.data)} bytes cannot be decoded as jpeg or png")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding in DIRECT:
        size = ENCODINGS[message.encoding][0]
        pixels = np.ndarray(
            (message.height, message.width, size), np.uint8, message.data, strides=(message.step, size, 1)
        )
        code = DIRECT[message.encoding]
        return np.ascontiguousarray(pixels) if code is None else cv2.cvtColor(pixels, code)
    try:
        return _bridge.imgmsg_to_cv2(_tight(message), "rgb8")
    except CvBridgeError as error:
        raise InputError(f"{message.width}x{message.height} {message.encoding} image: {error}") from error


def _tight(message: Image) -> Image:
    """The message without padding, little-endian, in an encoding of cv_bridge: which takes rows of whole pixels only,
    and whose byte swap fails on NumPy 2."""
    size, encoding = ENCODINGS[message.encoding]
    row = message.width * size
    swap = bool(message.is_bigendian) and message.encoding.endswith("16")
    if message.step == row and len(message.data) == row * message.height and not swap and encoding == message.encoding:
        return message
    rows = np.frombuffer(message.data, np.uint8)[: message.step * message.height].reshape(message.height, -1)
    pixels = np.ascontiguousarray(rows[:, :row])
    if swap:
        pixels = pixels.view(np.uint16).byteswap()
    tight = Image(height=message.height, width=message.width, encoding=encoding, step=row)
    _fill(tight.data, pixels)
    return tight


def intrinsics(info: CameraInfo, width: int, height: int) -> np.ndarray | None:
    """(3, 3) matrix in pixels of a `width` x `height` image, or None for a camera that is not calibrated.

    Raises InputError where the calibration belongs to another image size or is not finite.
    """
    matrix = np.array(info.k, np.float64).reshape(3, 3)
    if not matrix.any():  # CameraInfo.msg: K[0] == 0 means uncalibrated
        return None
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(f"camera_info: K has no usable focal length: {matrix.ravel().tolist()}")
    if (info.width, info.height) != (width, height):
        raise InputError(
            f"camera_info is of {info.width}x{info.height} images, but the images are {width}x{height}; "
            "it is left aside"
        )
    return matrix


def seconds(stamp: Time) -> float:
    """A stamp as a number."""
    return stamp.sec + stamp.nanosec * 1e-9


# ------------------------------------------------------------------------------------------------ arrays to messages


def _fill(data: array.array, values: np.ndarray) -> None:
    # The message's own array grows in place, by one copy. One that is handed to the constructor or assigned is copied
    # once more by each, and anything but an array.array is looked at byte by byte.
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def image_message(header: Header, values: np.ndarray, encoding: str) -> Image:
    """(h, w) float32 as 32FC1, (h, w) uint8 as mono8, (h, w, 3) uint8 as rgb8."""
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
    """Cloud of rows (n, 6) float32: x y z (metres), rgb, confidence, dynamic (1 where it moves).

    rgb: PCL's and RViz's convention, the bits of a float are 0x00RRGGBB.
    """
    size = 4 * len(POINT_FIELDS)
    message = PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=POINT_FIELDS,
        is_bigendian=False,
        point_step=size,
        row_step=size * len(rows),
        is_dense=False,
    )
    _fill(message.data, rows)
    return message


def pose_message(pose: np.ndarray) -> Pose:
    """Pose of a (4, 4) matrix."""
    x, y, z = (float(value) for value in pose[:3, 3])
    qx, qy, qz, qw = quaternion(pose[:3, :3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def transform_message(header: Header, child_frame: str, pose: Pose) -> TransformStamped:
    """Transform from the header's frame to `child_frame`, whose pose it is."""
    origin = Vector3(x=pose.position.x, y=pose.position.y, z=pose.position.z)
    return TransformStamped(
        header=header, child_frame_id=child_frame, transform=Transform(translation=origin, rotation=pose.orientation)
    )


def odometry_message(
    header: Header,
    child_frame: str,
    pose: Pose,
    variances: tuple[float, float],
    velocity: tuple[np.ndarray, np.ndarray] | None,
    interval: float,
) -> Odometry:
    """Odometry of `child_frame` in the header's frame.

    variances: of position (m^2) and of rotation (rad^2), see `geometry.pose_variances`; velocity: linear (m/s) and
    angular (rad/s) in the child frame over the last `interval` seconds, None at the start.
    """
    message = Odometry(header=header, child_frame_id=child_frame)
    message.pose.pose = pose
    message.pose.covariance = _diagonal(*variances)
    if velocity is None:
        message.twist.covariance = _diagonal(UNKNOWN_VARIANCE, UNKNOWN_VARIANCE)
    else:
        for field, values in zip((message.twist.twist.linear, message.twist.twist.angular), velocity, strict=True):
            field.x, field.y, field.z = (float(value) for value in values)
        # The difference of two poses that are each uncertain by `variances`.
        message.twist.covariance = _diagonal(*(2 * variance / interval**2 for variance in variances))
    return message


def _diagonal(position: float, rotation: float) -> np.ndarray:
    return np.diag([position] * 3 + [rotation] * 3).ravel()
