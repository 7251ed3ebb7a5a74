"""A calibrated camera with lens distortion turned into the pinhole camera that the network expects.

Pixel centres have integer coordinates throughout, as in OpenCV and ROS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from raymap3r_ros.errors import InputError

log = logging.getLogger(__name__)

# Names as in sensor_msgs/distortion_models.hpp. OpenCV's one polynomial takes more and more coefficients; thin_prism,
# not in that file, is what some drivers call it with 12.
BROWN_MODELS = ("plumb_bob", "rational_polynomial", "thin_prism")
BROWN_LENGTHS = (4, 5, 8, 12, 14)
FISHEYE_MODEL = "equidistant"

# Degrees across the longer side that an image without distortion may show by being zoomed out. Beyond, perspective
# stretches the border (by 1 / cos^2, 2.4 here) and leaves few pixels to the middle.
WIDEST = 100.0
MAX_ZOOM = 8.0  # where no image without unseen pixels is found up to here, the coefficients are nonsense
NEAR = 1e-5  # of a ray: distance to a neighbour
GRID = 33  # points a side at which a lens is asked where an image without distortion comes from


@dataclass(frozen=True)
class _Pinhole:
    """How images of one size are rectified."""

    size: tuple[int, int]  # width, height
    intrinsics: np.ndarray | None  # (3, 3) of the rectified image; None where the calibration does not fit
    maps: tuple[np.ndarray, np.ndarray] | None  # for cv2.remap; None where there is no distortion


class Calibration:
    """Intrinsics and distortion of one camera, ready to be applied to its images.

    `intrinsics`: (3, 3) pixels of an image of `size`, (width, height), in pixels of the whole sensor. `distortion`:
    coefficients of `model`, a name as in sensor_msgs/CameraInfo. `window`: (left, top, width, height), the part of
    the sensor that images show, in pixels of the whole sensor; None: all of it. `binning`: how many pixels across
    and down become one.

    What cannot be used is told to `report`, once, and then done without. One thread at a time may call `rectify`.
    """

    def __init__(
        self,
        intrinsics: np.ndarray,
        size: tuple[int, int],
        distortion: np.ndarray = (),
        model: str = "plumb_bob",
        *,
        window: tuple[int, int, int, int] | None = None,
        binning: tuple[int, int] = (1, 1),
        report: Callable[[str], None] = log.warning,
    ) -> None:
        self.intrinsics = np.array(intrinsics, np.float64).reshape(3, 3)
        self.size = size
        self._window = window or (0, 0, *size)
        self._binning = binning
        self._report = report
        self._distortion = np.array(distortion, np.float64).reshape(-1)
        self._fisheye = model == FISHEYE_MODEL
        self._pinhole: _Pinhole | None = None  # of the last image's size
        if not self._distortion.any():
            self._distortion = np.zeros(0)
        elif not (
            (model in BROWN_MODELS and self._distortion.size in BROWN_LENGTHS)
            or (self._fisheye and self._distortion.size == 4)
        ):
            report(
                f"lens distortion {model!r} with {self._distortion.size} coefficients is not known: left uncorrected; "
                f"known are {', '.join(BROWN_MODELS)} and {FISHEYE_MODEL}"
            )
            self._distortion = np.zeros(0)

    def rectify(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (h, w, 3) without distortion, and its intrinsics (3, 3) in its own pixels.

        An image that is a plain scaling of the calibrated size (a resized stream) is understood. Any other size makes
        the calibration useless: the image comes back as it was, with None.

        Every pixel of the result was seen by the camera: it is zoomed in or out until it shows as much as it can
        without a black border, which the network would take for a thing in the world (what OpenCV and ROS's
        camera_calibration call alpha 0, but with one zoom for both axes and the principal point kept).
        """
        size = image.shape[1], image.shape[0]
        if self._pinhole is None or self._pinhole.size != size:
            self._pinhole = self._pinhole_of(size)
        if self._pinhole.maps is not None:
            # Half a pixel at the border has no neighbour to be interpolated with.
            image = cv2.remap(image, *self._pinhole.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        intrinsics = self._pinhole.intrinsics
        return image, None if intrinsics is None else intrinsics.copy()

    def _pinhole_of(self, size: tuple[int, int]) -> _Pinhole:
        try:
            raw = self._intrinsics_of(size)
            if not self._distortion.size:
                return _Pinhole(size, raw, None)
            straight = raw.copy()
            straight[[0, 1], [0, 1]] *= self._zoom(raw, size)
        except InputError as error:
            self._report(str(error))
            return _Pinhole(size, None, None)
        make_maps = cv2.fisheye.initUndistortRectifyMap if self._fisheye else cv2.initUndistortRectifyMap
        return _Pinhole(size, straight, make_maps(raw, self._distortion, np.eye(3), straight, size, cv2.CV_16SC2))

    def _intrinsics_of(self, size: tuple[int, int]) -> np.ndarray:
        """(3, 3) of an image of `size`, with its distortion. Raises InputError where it is no plain scaling."""
        left, top, *shown = self._window
        expected = [max(length // bins, 1) for length, bins in zip(shown, self._binning, strict=True)]
        if size == tuple(expected):
            across, down = 1 / self._binning[0], 1 / self._binning[1]
        else:
            across, down = size[0] / shown[0], size[1] / shown[1]
            unequal = (across * self._binning[0]) / (down * self._binning[1])
            # Sizes are rounded to whole pixels, which in a small image is more than one percent.
            if abs(unequal - 1) > max(0.01, 1 / min(size)):
                raise InputError(
                    f"calibration is for {expected[0]}x{expected[1]}, the image is {size[0]}x{size[1]}, which is no "
                    "plain scaling: calibration ignored; give the calibration of this image, with its region of "
                    "interest if it shows a part of the sensor"
                )
        matrix = self.intrinsics.copy()
        matrix[:2, 2] -= left, top
        matrix = np.diag([across, down, 1.0]) @ matrix
        # The centre of the first pixel lies half a pixel from the border at any size.
        matrix[:2, 2] += (across - 1) / 2, (down - 1) / 2
        return matrix

    def _zoom(self, matrix: np.ndarray, size: tuple[int, int]) -> float:
        """The smallest factor on the focal length at which every pixel without distortion has been seen.

        Raises InputError where there is none.
        """
        across = max(length / focal for length, focal in zip(size, (matrix[0, 0], matrix[1, 1]), strict=True))
        low = min(1.0, across / 2 / math.tan(math.radians(WIDEST / 2)))
        high = MAX_ZOOM
        if self._is_seen(matrix, size, low):
            return low
        if not self._is_seen(matrix, size, high):
            raise InputError(
                f"lens distortion {self._distortion.tolist()} folds the image of {size[0]}x{size[1]} pixels: "
                "calibration ignored; calibrate the camera again"
            )
        while high / low > 1.0005:  # a third of a pixel at the border of an image of 1280
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._is_seen(matrix, size, middle) else (middle, high)
        return high

    def _is_seen(self, matrix: np.ndarray, size: tuple[int, int], zoom: float) -> bool:
        """Whether every pixel of the image without distortion comes from inside the image with it."""
        x, y = (
            (np.linspace(0, length - 1, GRID) - matrix[axis, 2]) / (zoom * matrix[axis, axis])
            for axis, length in enumerate(size)
        )
        rays = np.stack([*np.meshgrid(x, y), np.ones((GRID, GRID))], axis=-1).reshape(-1, 3)
        # Beside each ray one a little to the right and one a little below.
        rays = rays + NEAR * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)])[:, None]
        project = cv2.fisheye.projectPoints if self._fisheye else cv2.projectPoints
        source, _ = project(rays.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), matrix, self._distortion)
        source, right, below = source.reshape(3, -1, 2)
        inside = ((source >= -0.5) & (source <= np.array(size) - 0.5)).all()
        # A polynomial may fold back far from the middle, where nobody calibrated it: then neighbours swap places.
        (right_x, right_y), (below_x, below_y) = (right - source).T, (below - source).T
        return bool(inside and (right_x * below_y > right_y * below_x).all())


class CameraCalibration:
    """Keeps the last CameraInfo and applies it to images.

    `rectified`: see `read_camera_info`. `report` is told what cannot be used, once for each calibration and
    image size, from the thread that finds out; the calibration is then done without.
    """

    def __init__(self, report: Callable[[str], None], *, rectified: bool = False) -> None:
        self._report = report
        self._rectified = rectified
        self._content: tuple | None = None  # of the message that was read last
        self.current: Calibration | None = None  # None: there is none, or none that can be used

    def update(self, info: Any) -> None:
        """Take in a message. One that says what the last one said costs next to nothing."""
        content = camera_of(info)
        if content == self._content:
            return
        self._content = content
        try:
            self.current = read_camera_info(info, rectified=self._rectified, report=self._report)
        except InputError as error:
            self.current = None
            self._report(str(error))

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (h, w, 3) uint8 without distortion, and its intrinsics (3, 3), see `Calibration.rectify`.

        Without a calibration that fits: the image as it is, and None.
        """
        return (image, None) if self.current is None else self.current.rectify(image)


def camera_of(info: Any) -> tuple:
    """What a CameraInfo says about the camera, and nothing of when: two that are equal say the same. Quickly made."""
    roi = info.roi
    return (
        info.width,
        info.height,
        info.distortion_model,
        *(np.asarray(numbers).tobytes() for numbers in (info.k, info.p, info.d)),
        info.binning_x,
        info.binning_y,
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )


def names_rectified(topic: str) -> bool:
    """Whether an image topic's name says that its images carry no distortion: image_rect_color, rgb/rect/image."""
    *folders, name = topic.removesuffix("/compressed").split("/")
    return "rect" in folders or any(part.startswith("rect") for part in name.split("_"))


def read_camera_info(
    info: Any, *, rectified: bool = False, report: Callable[[str], None] = log.warning
) -> Calibration | None:
    """What a sensor_msgs/CameraInfo, of rclpy or of rosbags, says; None where the camera is not calibrated (K is 0).

    `rectified`: the images carry no distortion any more, so that P belongs to them, and K and D do not. `report`: see
    `Calibration`. Raises InputError where the message contradicts itself.
    """
    k, p = np.array(info.k, np.float64), np.array(info.p, np.float64)
    use_p = rectified and p[0] != 0  # who publishes straight images only may leave P empty
    matrix = p.reshape(3, 4)[:, :3] if use_p else k.reshape(3, 3)
    if k[0] == 0 and not use_p:  # CameraInfo.msg: uncalibrated
        return None
    distortion = np.zeros(0) if rectified else np.array(info.d, np.float64)
    width, height = int(info.width), int(info.height)
    (fx, _, cx), (_, fy, cy) = matrix[:2]
    problem = ""
    if not (np.isfinite(matrix).all() and np.isfinite(distortion).all()):
        problem = "not all numbers are finite"
    elif not (width and height):
        problem = f"it is of images of {width}x{height}"
    elif not (0.01 < fx / width < 1000 and 0.01 < fy / height < 1000):
        problem = f"focal lengths of {fx:g} and {fy:g} pixels do not belong to an image of {width}x{height}"
    elif not (0 < cx < width and 0 < cy < height):
        problem = f"the principal point ({cx:g}, {cy:g}) lies outside its image of {width}x{height}"
    left, top, shown = int(info.roi.x_offset), int(info.roi.y_offset), (int(info.roi.width), int(info.roi.height))
    # CameraInfo.msg: zeros are the whole image.
    window = left, top, shown[0] or width, shown[1] or height
    if not problem and (left + window[2] > width or top + window[3] > height):
        problem = f"the region of interest {window[2]}x{window[3]}+{left}+{top} exceeds its image of {width}x{height}"
    if problem:
        raise InputError(f"camera_info cannot be used: {problem}; it is ignored: calibrate the camera")
    return Calibration(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        (width, height),
        distortion,
        info.distortion_model,
        window=window,
        binning=(int(info.binning_x) or 1, int(info.binning_y) or 1),
        report=report,
    )
