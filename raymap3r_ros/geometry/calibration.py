"""Rectification of a calibrated camera with lens distortion to the pinhole camera that the network expects.

Pixel centres have integer coordinates throughout, as in OpenCV and ROS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from raymap3r_ros.errors import InputError

log = logging.getLogger(__name__)

# Names as in sensor_msgs/distortion_models.hpp, for OpenCV's polynomial with different numbers of coefficients. Some
# drivers use thin_prism, which is not in that file, for 12 coefficients.
BROWN_MODELS = ("plumb_bob", "rational_polynomial", "thin_prism")
BROWN_LENGTHS = (4, 5, 8, 12, 14)
FISHEYE_MODEL = "equidistant"

# Maximum field of view in degrees, along the longer side, of a rectified image that is zoomed out. Beyond, perspective
# stretches the border (by 1 / cos^2, 2.4 here) and leaves few pixels for the centre.
WIDEST = 100.0
MAX_ZOOM = 8.0  # if there are unseen pixels even at this zoom, the coefficients are invalid
REACH = 0.75  # share of the way to the corners that a calibration covers; few have points near all corners
NEIGHBOUR = 1e-5  # offset between a ray and its neighbours in the test for folds
# Limits beyond which intrinsics are doubtful.
FAR_FROM_MIDDLE = 0.2  # distance of a principal point from the middle, in image sizes
AWAY_FROM_MIDDLE, NEAR_MIDDLE = 0.08, 0.03  # the same, if another image of the same camera has it near its middle
WIDEST_PINHOLE = 150.0  # degrees, without a fisheye model
NARROWEST = 0.5  # degrees; long zoom lenses have 1 to 2
MOST_UNEQUAL = 1.5  # ratio of the focal lengths; analogue video has up to 1.46
LARGEST_SKEW = 0.02  # of the focal length
GRID = 33  # points per side at which the distortion is evaluated


@dataclass(frozen=True)
class _Pinhole:
    """Rectification of images of one size."""

    size: tuple[int, int]  # width, height
    intrinsics: np.ndarray | None  # (3, 3) of the rectified image; None if the calibration does not fit
    maps: tuple[np.ndarray, np.ndarray] | None  # for cv2.remap; None without distortion


class Calibration:
    """Intrinsics and distortion of one camera, applied to its images.

    `intrinsics`: (3, 3) pixels of the whole sensor, whose `size` is (width, height). `distortion`: coefficients of
    `model`, a name as in sensor_msgs/CameraInfo. `window`: (left, top, width, height), the region of interest in
    pixels of the whole sensor; None: all of it. `binning`: number of pixels, horizontally and vertically, that are
    combined into one.

    An unusable part is reported to `report` once and then ignored. `rectify` is not thread-safe.
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
        model = model.lower()
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
        """Return the image (h, w, 3) without distortion, and its intrinsics (3, 3) in its own pixels.

        The image may be a plain scaling of the calibrated size (a resized stream). For any other size the calibration
        cannot be used: returns the unchanged image and None.

        The result is zoomed to show as much as possible without black borders, which the network would take for
        objects. This is alpha 0 of OpenCV and ROS's camera_calibration, but with one zoom for both axes and the
        principal point unchanged.
        """
        size = image.shape[1], image.shape[0]
        if self._pinhole is None or self._pinhole.size != size:
            self._pinhole = self._pinhole_of(size)
        if self._pinhole.maps is not None:
            # The outer half pixel at the border has no neighbour to interpolate with.
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
        """Return (3, 3) of an image of `size` before rectification. Raises InputError if it is not a plain scaling."""
        left, top, *shown = self._window
        expected = [max(length // bins, 1) for length, bins in zip(shown, self._binning, strict=True)]
        if size == tuple(expected):
            across, down = 1 / self._binning[0], 1 / self._binning[1]
        else:
            if list(size) == shown:
                self._report(
                    f"the calibration has a binning of {self._binning[0]}x{self._binning[1]} for images of "
                    f"{size[0]}x{size[1]}, but the image is not smaller: binning is not applied; if the calibration "
                    "already belongs to the binned image, set binning_x and binning_y to 0"
                )
            across, down = size[0] / shown[0], size[1] / shown[1]
            unequal = (across * self._binning[0]) / (down * self._binning[1])
            # Sizes are rounded to whole pixels, which can be more than one percent of a small image.
            if abs(unequal - 1) > max(0.01, 1 / min(size)):
                raise InputError(
                    f"calibration is for {expected[0]}x{expected[1]}, the image is {size[0]}x{size[1]}, which is not "
                    f"a plain scaling{_turned(size, expected)}: calibration ignored; give the calibration of this "
                    "image, with its region of interest if it shows a part of the sensor"
                )
        matrix = self.intrinsics.copy()
        matrix[:2, 2] -= left, top
        matrix = np.diag([across, down, 1.0]) @ matrix
        # The centre of the first pixel is half a pixel from the border at any size.
        matrix[:2, 2] += (across - 1) / 2, (down - 1) / 2
        return matrix

    def _zoom(self, matrix: np.ndarray, size: tuple[int, int]) -> float:
        """Return the smallest factor on the focal length at which the camera has seen every rectified pixel.

        Raises InputError if there is none.
        """
        across = max(length / focal for length, focal in zip(size, (matrix[0, 0], matrix[1, 1]), strict=True))
        low = min(1.0, across / 2 / math.tan(math.radians(WIDEST / 2)))
        high = MAX_ZOOM
        reach = self._reach(matrix, size)
        if reach < REACH or not self._is_seen(matrix, size, high):
            raise InputError(
                f"lens distortion {self._distortion.tolist()} folds the image of {size[0]}x{size[1]} pixels: "
                "calibration ignored; calibrate the camera again"
            )
        if reach < 1:
            self._report(
                f"lens distortion {self._distortion.tolist()} folds the image of {size[0]}x{size[1]} pixels near its "
                "corners, which are left out; calibrate the camera again, with points near the corners"
            )
        if self._is_seen(matrix, size, low):
            return low
        while high / low > 1.0005:  # a third of a pixel at the border of an image of 1280
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._is_seen(matrix, size, middle) else (middle, high)
        return high

    def _reach(self, matrix: np.ndarray, size: tuple[int, int]) -> float:
        """Return the share of the way from the principal point to the corners up to which the distorted radius rises.

        Every pixel of an image comes from some ray, so coefficients with less than 1 belong to another image or to
        none. A fisheye image may be dark outside a circle: there, the way to one of the borders counts.
        """
        focal, middle = matrix[[0, 1], [0, 1]], matrix[:2, 2]
        x, y = np.array([(-0.5 - middle) / focal, (np.array(size) - 0.5 - middle) / focal]).T
        targets = [(x[0], 0), (x[1], 0), (0, y[0]), (0, y[1])] if self._fisheye else [(a, b) for a in x for b in y]
        radii = np.tan(np.linspace(0, math.radians(89), 1000))
        project = cv2.fisheye.projectPoints if self._fisheye else cv2.projectPoints
        shares = []
        for target in np.array([target for target in targets if any(target)]):
            length = np.linalg.norm(target)
            rays = np.column_stack([radii[:, None] * target / length, np.ones(len(radii))])
            image, _ = project(rays.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), np.eye(3), self._distortion)
            along = image.reshape(-1, 2) @ target / length
            folds = np.flatnonzero(~(np.diff(along) > 0))
            shares.append(along[folds[0] if len(folds) else -1] / length)
        return max(shares) if self._fisheye else min(shares)

    def _is_seen(self, matrix: np.ndarray, size: tuple[int, int], zoom: float) -> bool:
        """Return whether every pixel of the rectified image comes from inside the recorded image."""
        x, y = (
            (np.linspace(0, length - 1, GRID) - matrix[axis, 2]) / (zoom * matrix[axis, axis])
            for axis, length in enumerate(size)
        )
        rays = np.stack([*np.meshgrid(x, y), np.ones((GRID, GRID))], axis=-1).reshape(-1, 3)
        # For each ray also a neighbour to the right and one below.
        rays = rays + NEIGHBOUR * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)])[:, None]
        project = cv2.fisheye.projectPoints if self._fisheye else cv2.projectPoints
        source, _ = project(rays.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), matrix, self._distortion)
        source, right, below = source.reshape(3, -1, 2)
        inside = ((source >= -0.5) & (source <= np.array(size) - 0.5)).all()
        # Far from the centre, outside the calibrated range, a polynomial may fold back: neighbours then swap places.
        (right_x, right_y), (below_x, below_y) = (right - source).T, (below - source).T
        return bool(inside and (right_x * below_y > right_y * below_x).all())


class CameraCalibration:
    """Keeps the last CameraInfo and applies it to images.

    `rectified`: see `read_camera_info`. `report` is called once for each unusable calibration and image size, from
    the thread that detects it; the calibration is then ignored.
    """

    def __init__(self, report: Callable[[str], None], *, rectified: bool = False) -> None:
        self._report = report
        self._rectified = rectified
        self._content: tuple | None = None  # of the message that was read last
        self.current: Calibration | None = None  # None: there is no usable one

    def update(self, info: Any) -> None:
        """Use a message from now on. One with the same content as the last is cheap."""
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
        """Return the image (h, w, 3) uint8 without distortion, and its intrinsics (3, 3), see `Calibration.rectify`.

        Without a calibration that fits: the unchanged image and None.
        """
        return (image, None) if self.current is None else self.current.rectify(image)


def camera_of(info: Any) -> tuple:
    """Return the content of a CameraInfo without its header, as a tuple that is cheap to build and to compare."""
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
    """Return whether a topic's name stands for rectified images, as in image_rect_color and rgb/rect/image."""
    *folders, name = topic.removesuffix("/compressed").split("/")
    return "rect" in folders or any(part.startswith("rect") for part in name.split("_"))


def intrinsics_problem(matrix: np.ndarray, size: tuple[int, int], *, cropped: bool = False) -> str:
    """Why a pinhole matrix (3, 3) cannot belong to images of `size` = (width, height); empty if it can.

    `cropped`: the image may be a part of the sensor, so that the principal point may lie outside.
    """
    width, height = size
    (fx, _, cx), (_, fy, cy) = matrix[:2].tolist()
    if not np.isfinite(matrix).all():
        return "not all numbers are finite"
    if not (width and height):
        return f"the image size is {width}x{height}"
    if not (0.01 < fx / width < 1000 and 0.01 < fy / height < 1000):
        return f"focal lengths of {fx:g} and {fy:g} pixels do not belong to an image of {width}x{height}{_unit(fx)}"
    # Some drivers leave the last number at 0.
    if matrix[1, 0] or matrix[2, :2].any() or matrix[2, 2] not in (0, 1):
        return "the matrix does not have the form [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] (is it transposed?)"
    if not cropped and not (0 < cx < width and 0 < cy < height):
        return f"the principal point ({cx:g}, {cy:g}) lies outside its image of {width}x{height}{_other_size(matrix)}"
    return ""


def intrinsics_doubt(
    matrix: np.ndarray, size: tuple[int, int], *, fisheye: bool = False, parts: Mapping[str, tuple[int, int]] = {}
) -> str:
    """Why a pinhole matrix probably belongs to other images, with the likely cause; empty if it is plausible.

    Arguments as in `intrinsics_problem`, which has found nothing. `fisheye`: any field of view is possible. `parts`:
    sizes of other images of the same camera to which the matrix may belong, each with the likely cause.
    """
    width, height = size
    (fx, skew, cx), (_, fy, cy) = matrix[:2].tolist()
    offset = _from_middle(cx, cy, size)
    for cause, other in {"is the image turned by 90 degrees": (height, width), **parts}.items():
        if offset > AWAY_FROM_MIDDLE and _from_middle(cx, cy, other) < NEAR_MIDDLE:
            return (
                f"the principal point ({cx:g}, {cy:g}) is not near the middle of its image of {width}x{height}, but "
                f"of {other[0]}x{other[1]}; {cause}?"
            )
    if offset > FAR_FROM_MIDDLE:
        return (
            f"the principal point ({cx:g}, {cy:g}) is far from the middle of its image of {width}x{height}"
            f"{_other_size(matrix)}; was the image resized, binned or cropped after the calibration?"
        )
    view = math.degrees(2 * math.atan(max(width / fx, height / fy) / 2))
    if not fisheye and view > WIDEST_PINHOLE:
        return (
            f"focal lengths of {fx:g} and {fy:g} pixels give an image of {width}x{height} a field of view of "
            f"{view:.0f} degrees, too wide for a lens of this model; is the calibration for smaller images, the "
            "lens a fisheye (equidistant), or the unit not pixels?"
        )
    if view < NARROWEST:
        return (
            f"focal lengths of {fx:g} and {fy:g} pixels give an image of {width}x{height} a field of view of "
            f"{view:.2g} degrees; is the calibration for larger images, or the unit not pixels?"
        )
    if max(fx / fy, fy / fx) > MOST_UNEQUAL:
        return (
            f"the focal lengths {fx:g} and {fy:g} differ, but cameras have square pixels; was the image resized to "
            "another aspect ratio after the calibration?"
        )
    if abs(skew) > LARGEST_SKEW * fx:
        return f"a skew of {skew:g} is not used, cameras have none; are the numbers in another order?"
    return ""


def _from_middle(x: float, y: float, size: tuple[int, int]) -> float:
    """Return the distance of a point from the middle of an image, in image sizes."""
    return max(abs(x / size[0] - 0.5), abs(y / size[1] - 0.5))


def _unit(focal: float) -> str:
    return " (are they in millimetres, or relative to the image size?)" if 0 < focal < 50 else ""


def _turned(size: Sequence[int], other: Sequence[int]) -> str:
    turned = (size[0] > size[1]) != (other[0] > other[1])
    return " (portrait and landscape: one is turned)" if turned and size[0] != size[1] else ""


def _other_size(matrix: np.ndarray) -> str:
    width, height = (round(2 * float(value)) for value in matrix[:2, 2])
    return f" (it would be the middle of {width}x{height})" if width > 0 and height > 0 else ""


def read_camera_info(
    info: Any, *, rectified: bool = False, report: Callable[[str], None] = log.warning
) -> Calibration | None:
    """Return the calibration in a sensor_msgs/CameraInfo of rclpy or rosbags; None if K is 0 (not calibrated).

    `rectified`: the images are rectified, so P applies to them instead of K and D. `report`: see `Calibration`.
    Raises InputError if the message is inconsistent.
    """
    k, p = np.array(info.k, np.float64), np.array(info.p, np.float64)
    use_p = rectified and p[0] != 0  # publishers of rectified images only may leave P empty
    matrix = p.reshape(3, 4)[:, :3] if use_p else k.reshape(3, 3)
    if k[0] == 0 and not use_p:  # CameraInfo.msg: uncalibrated
        return None
    distortion = np.zeros(0) if rectified else np.array(info.d, np.float64)
    width, height = int(info.width), int(info.height)
    (fx, _, cx), (_, fy, cy) = matrix[:2]
    problem = intrinsics_problem(matrix, (width, height))
    if not problem and not np.isfinite(distortion).all():
        problem = "not all numbers are finite"
    left, top, shown = int(info.roi.x_offset), int(info.roi.y_offset), (int(info.roi.width), int(info.roi.height))
    # CameraInfo.msg: zeros mean the whole image.
    window = left, top, shown[0] or width, shown[1] or height
    if not problem and (left + window[2] > width or top + window[3] > height):
        problem = (
            f"the region of interest {window[2]}x{window[3]}+{left}+{top} exceeds its image of {width}x{height} (if "
            "the calibration already belongs to the region, set roi to zeros)"
        )
    if problem:
        raise InputError(f"camera_info cannot be used: {problem}; it is ignored: calibrate the camera")
    binning = int(info.binning_x) or 1, int(info.binning_y) or 1
    parts = {}  # if K belongs to one of these, roi or binning would be applied twice
    if window[2:] != (width, height):
        parts["does it already belong to the region of interest (then set roi to zeros)"] = window[2:]
    if binning != (1, 1):
        binned = max(window[2] // binning[0], 1), max(window[3] // binning[1], 1)
        parts["does it already belong to the binned image (then set binning_x and binning_y to 0)"] = binned
    doubt = intrinsics_doubt(
        matrix, (width, height), fisheye=info.distortion_model.lower() == FISHEYE_MODEL, parts=parts
    )
    if doubt:
        report(f"camera_info is probably wrong: {doubt}")
    return Calibration(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        (width, height),
        distortion,
        info.distortion_model,
        window=window,
        binning=binning,
        report=report,
    )
