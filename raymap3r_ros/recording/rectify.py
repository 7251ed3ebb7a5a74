"""A calibrated camera with lens distortion turned into the pinhole camera that the network expects."""

from __future__ import annotations

import logging

import cv2
import numpy as np

log = logging.getLogger(__name__)

# Names of sensor_msgs/distortion_models.hpp, and the numbers of coefficients that OpenCV takes for them.
BROWN_MODELS = ("plumb_bob", "rational_polynomial", "thin_prism_fisheye")
BROWN_LENGTHS = (4, 5, 8, 12, 14)
FISHEYE_MODEL = "equidistant"


class Calibration:
    """Intrinsics and distortion of one camera, ready to be applied to its images.

    `intrinsics`: (3, 3) pixels of an image of `size`, (width, height). `distortion`: coefficients of `model`, a name
    as in sensor_msgs/CameraInfo; a model that is not known is warned about and left uncorrected.
    """

    def __init__(
        self, intrinsics: np.ndarray, size: tuple[int, int], distortion: np.ndarray = (), model: str = "plumb_bob"
    ) -> None:
        self.intrinsics = np.asarray(intrinsics, np.float64).reshape(3, 3)
        self.size = size
        self._distortion = np.asarray(distortion, np.float64).reshape(-1)
        self._fisheye = model == FISHEYE_MODEL
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._mismatch_told = False
        if not self._distortion.any():
            self._distortion = np.zeros(0)
        elif not (
            (model in BROWN_MODELS and self._distortion.size in BROWN_LENGTHS)
            or (self._fisheye and self._distortion.size == 4)
        ):
            log.warning(
                "lens distortion %r with %d coefficients is not known: left uncorrected", model, self._distortion.size
            )
            self._distortion = np.zeros(0)

    def rectify(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The image (h, w, 3) without distortion, and its intrinsics (3, 3) in its own pixels.

        An image that is a plain scaling of the calibrated size (a binned or resized stream) is understood. Any other
        size makes the calibration useless: the image comes back as it was, with None.
        """
        height, width = image.shape[:2]
        across, down = width / self.size[0], height / self.size[1]
        if abs(across / down - 1) > 0.01:
            if not self._mismatch_told:
                log.warning(
                    "calibration is for %dx%d, the image is %dx%d, which is no plain scaling: calibration ignored",
                    *self.size,
                    width,
                    height,
                )
                self._mismatch_told = True
            return image, None
        intrinsics = np.diag([across, down, 1.0]) @ self.intrinsics
        # The centre of the first pixel lies half a pixel from the border at any size.
        intrinsics[0, 2] += (across - 1) / 2
        intrinsics[1, 2] += (down - 1) / 2
        if self._distortion.size:
            if self._maps is None or self._maps[0].shape[:2] != (height, width):
                make_maps = cv2.fisheye.initUndistortRectifyMap if self._fisheye else cv2.initUndistortRectifyMap
                self._maps = make_maps(
                    intrinsics, self._distortion, np.eye(3), intrinsics, (width, height), cv2.CV_16SC2
                )
            image = cv2.remap(image, *self._maps, cv2.INTER_LINEAR)
        return image, intrinsics
