"""The calibration of the camera whose images the node takes, as its camera_info topic tells it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sensor_msgs.msg import CameraInfo

from raymap3r_ros.errors import InputError
from raymap3r_ros.recording.rectify import Calibration, read_camera_info


class CameraCalibration:
    """Keeps the last CameraInfo and applies it to images.

    `rectified`: see `rectify.read_camera_info`. `report` is told what cannot be used, once for each calibration and
    image size, from the thread that finds out; the calibration is then done without. `update` may be called while
    another thread, always the same, is in `apply`.
    """

    def __init__(self, report: Callable[[str], None], *, rectified: bool = False) -> None:
        self._report = report
        self._rectified = rectified
        self._content: tuple | None = None  # of the message that was read last
        self._calibration: Calibration | None = None

    def update(self, info: CameraInfo) -> None:
        """Take in a message. One that says what the last one said costs next to nothing."""
        content = _content(info)
        if content == self._content:
            return
        self._content = content
        try:
            self._calibration = read_camera_info(info, rectified=self._rectified, report=self._report)
        except InputError as error:
            self._calibration = None
            self._report(str(error))

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (h, w, 3) uint8 without distortion, and its intrinsics (3, 3), see `Calibration.rectify`.

        Without a calibration that fits: the image as it is, and None.
        """
        calibration = self._calibration  # read once: the other thread may replace it
        return (image, None) if calibration is None else calibration.rectify(image)


def _content(info: CameraInfo) -> tuple:
    """What a message says about the camera, and nothing of when, quickly compared."""
    roi = info.roi
    return (
        info.width,
        info.height,
        info.distortion_model,
        *(numbers.tobytes() for numbers in (info.k, info.p, info.d)),
        info.binning_x,
        info.binning_y,
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )
