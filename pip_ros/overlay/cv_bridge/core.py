"""OpenCV images to sensor_msgs/Image and back. Names and meaning are those of the public cv_bridge API."""

from __future__ import annotations

import functools
import re
import sys
from typing import NamedTuple

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

_DEPTHS = {
    "8U": np.uint8,
    "8S": np.int8,
    "16U": np.uint16,
    "16S": np.int16,
    "32S": np.int32,
    "32F": np.float32,
    "64F": np.float64,
}
_DEPTH_NAMES = {np.dtype(dtype): name for name, dtype in _DEPTHS.items()}
_COLORS = {"mono": ("GRAY", 1), "rgb": ("RGB", 3), "bgr": ("BGR", 3), "rgba": ("RGBA", 4), "bgra": ("BGRA", 4)}
_YUV = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUY2", "yuyv": "YUY2"}
# ROS names a Bayer pattern by its first two rows, OpenCV by the second and third pixel of the second row.
_BAYER = {"rggb": "BayerBG", "bggr": "BayerRG", "gbrg": "BayerGR", "grbg": "BayerGB"}


class CvBridgeError(TypeError):
    """An image cannot be converted."""


class Encoding(NamedTuple):
    """Meaning of an encoding's name. `color` is OpenCV's name of the colour space, "" if none exists."""

    dtype: np.dtype
    channels: int
    color: str


@functools.cache
def parse_encoding(name: str) -> Encoding:
    """What an encoding's name means. Raises CvBridgeError on one that does not exist or has no OpenCV type."""
    if name in _YUV:
        return Encoding(np.dtype(np.uint8), 2, _YUV[name])
    if match := re.fullmatch(r"(mono|rgb|bgr|rgba|bgra)(8|16)", name):
        color, channels = _COLORS[match[1]]
        return Encoding(np.dtype(f"u{int(match[2]) // 8}"), channels, color)
    if match := re.fullmatch(r"bayer_(rggb|bggr|gbrg|grbg)(8|16)", name):
        return Encoding(np.dtype(f"u{int(match[2]) // 8}"), 1, _BAYER[match[1]])
    if match := re.fullmatch(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([1-9][0-9]*))?", name):
        return Encoding(np.dtype(_DEPTHS[match[1]]), int(match[2] or 1), "")
    raise CvBridgeError(f"Unrecognized image encoding [{name}]")


def color_code(source: str, target: str) -> int | None:
    """OpenCV's number for the conversion between two colour spaces; None where there is no such conversion."""
    plain = [color for color, _ in _COLORS.values()]
    if target not in plain or (source.startswith("Bayer") and target.endswith("A")):
        return None
    name = f"COLOR_YUV2{target}_{source}" if source in _YUV.values() else f"COLOR_{source}2{target}"
    return getattr(cv2, name)


def convert_depth(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The image with another type of number. 8 and 16 bits are scaled to each other; integers saturate."""
    if dtype == image.dtype:
        return image
    sizes = image.dtype.itemsize, dtype.itemsize
    if image.dtype == np.uint16 and dtype == np.uint8:
        return cv2.convertScaleAbs(image, alpha=255 / 65535).reshape(image.shape)
    if image.dtype == np.uint8 and dtype == np.uint16:
        return image.astype(np.uint16) * np.uint16(257)
    values = image.astype(np.float64)
    if sizes in ((1, 2), (2, 1)):
        values *= 257.0 if sizes == (1, 2) else 1 / 257
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(np.nan_to_num(values, nan=limits.min)), limits.min, limits.max).astype(dtype)


def convert(image: np.ndarray, source_name: str, target_name: str) -> np.ndarray:
    """A copy of the image in another encoding. Raises CvBridgeError where there is no way between the two."""
    if source_name == target_name:
        return image.copy()
    source, target = parse_encoding(source_name), parse_encoding(target_name)
    if source.color and target.color:
        if source.color != target.color:
            code = color_code(source.color, target.color)
            if code is None:
                raise CvBridgeError(f"Unsupported conversion from [{source_name}] to [{target_name}]")
            try:
                image = cv2.cvtColor(image, code)
            except cv2.error as error:
                raise CvBridgeError(
                    f"cannot convert a {image.shape[1]} x {image.shape[0]} image from [{source_name}] to "
                    f"[{target_name}]: {error}"
                ) from error
    elif target.color:
        raise CvBridgeError(
            f"[{source_name}] is not a color format. but [{target_name}] is. The conversion does not make sense"
        )
    elif source.channels != target.channels:
        raise CvBridgeError(f"[{source_name}] and [{target_name}] do not have the same number of channel")
    result = convert_depth(image, target.dtype)
    return result.copy() if result is image else result


class CvBridge:
    """Converts between OpenCV images (NumPy arrays, BGR unless stated otherwise) and ROS image messages."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """A message's image, (H, W) for one channel, else (H, W, C), in the machine's byte order.

        With "passthrough" the image keeps the message's encoding and may share its memory; with any other name it is
        a converted copy. Raises CvBridgeError on an unknown encoding, a conversion that does not exist, or data that
        do not fill the image.
        """
        encoding = parse_encoding(img_msg.encoding)
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        pixel = encoding.dtype.itemsize * encoding.channels
        what = f"Image is wrongly formed ({width} x {height}, {img_msg.encoding})"
        if height == 0 or width == 0:
            raise CvBridgeError(f"{what}: it has no pixels")
        if step < width * pixel:
            raise CvBridgeError(f"{what}: step {step} is less than the {width * pixel} bytes of a row")
        if len(img_msg.data) < step * height:
            raise CvBridgeError(f"{what}: it has {len(img_msg.data)} bytes; height * step is {step * height}")
        data = img_msg.data
        image = np.ndarray(
            shape=(height, width, encoding.channels),
            dtype=encoding.dtype.newbyteorder(">" if img_msg.is_bigendian else "<"),
            buffer=bytes(data) if isinstance(data, list) else data,
            strides=(step, pixel, encoding.dtype.itemsize),
        )
        if encoding.channels == 1:
            image = image[..., 0]
        image = np.ascontiguousarray(image, dtype=encoding.dtype)
        if desired_encoding == "passthrough":
            return image
        return convert(image, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """An image, (H, W) or (H, W, C), as a message. Nothing is converted: `encoding` describes the numbers.

        "passthrough" names the OpenCV type, such as 8UC3. Raises CvBridgeError where the array's type or channels
        are not those of `encoding`, TypeError where it is no array.
        """
        if not isinstance(cvim, np.ndarray | np.generic):
            raise TypeError("Your input type is not a numpy array")
        native = cvim.dtype.newbyteorder("=")
        if cvim.ndim not in (2, 3) or native not in _DEPTH_NAMES or cvim.size == 0:
            raise CvBridgeError(f"an array of shape {cvim.shape} and type {cvim.dtype} is no image")
        channels = cvim.shape[2] if cvim.ndim == 3 else 1
        opencv_type = f"{_DEPTH_NAMES[native]}C{channels}"
        message = Image()
        message.height, message.width = cvim.shape[:2]
        message.step = cvim.shape[1] * channels * cvim.dtype.itemsize
        if header is not None:
            message.header = header
        if encoding == "passthrough":
            message.encoding = opencv_type
        else:
            expected = parse_encoding(encoding)
            if (expected.dtype, expected.channels) != (native, channels):
                raise CvBridgeError(f"encoding specified as {encoding}, but image has incompatible type {opencv_type}")
            message.encoding = encoding
        # "=" also stands for the machine's own order.
        order = cvim.dtype.byteorder
        message.is_bigendian = int(order == ">" or (order == "=" and sys.byteorder == "big"))
        message.data.frombytes(np.ascontiguousarray(cvim).reshape(-1).view(np.uint8).data)
        return message

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> np.ndarray:
        """A compressed message's image, as stored: (H, W) grey, (H, W, 3) BGR or (H, W, 4) BGRA.

        With a `desired_encoding` the image is taken for bgr8 and converted, which serves 8-bit colour images only,
        as in the distributions: for grey or 16-bit ones use "passthrough" and look at the array. Raises
        CvBridgeError where the data are no image or the conversion does not exist.
        """
        data = np.frombuffer(bytes(cmprs_img_msg.data), np.uint8)
        try:
            image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        except cv2.error as error:
            raise CvBridgeError(f"cannot decode the {data.size} bytes of [{cmprs_img_msg.format}]: {error}") from error
        if image is None:
            raise CvBridgeError(f"the {data.size} bytes of [{cmprs_img_msg.format}] are no image that OpenCV reads")
        if desired_encoding == "passthrough":
            return image
        if image.ndim != 3 or image.dtype != np.uint8:
            raise CvBridgeError(
                f"the decoded image is {image.shape}, {image.dtype}, not 8-bit colour: "
                'use "passthrough" and convert the array'
            )
        return convert(image, "bgr8" if image.shape[2] == 3 else "bgra8", desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """A grey, BGR or BGRA image as a compressed message. `dst_format`: jpg, png or another suffix OpenCV writes.

        Raises CvBridgeError where OpenCV cannot write the image so, TypeError where it is no array.
        """
        if not isinstance(cvim, np.ndarray | np.generic):
            raise TypeError("Your input type is not a numpy array")
        try:
            done, data = cv2.imencode(f".{dst_format}", cvim)
        except cv2.error as error:
            raise CvBridgeError(f"cannot write shape {cvim.shape}, {cvim.dtype} as {dst_format}: {error}") from error
        if not done:
            raise CvBridgeError(f"cannot write shape {cvim.shape}, {cvim.dtype} as {dst_format}")
        message = CompressedImage(format=dst_format)
        message.data.frombytes(data.tobytes())
        return message
