"""Videos whose pixels are not square: DV, DVDs, capture cards, anamorphic lenses."""

from __future__ import annotations

import logging
import math

import cv2
import numpy as np

log = logging.getLogger(__name__)

LARGEST = 4.0  # ratio of the sides of a pixel; anamorphic video has up to 2
_SQUARE = 1e-3  # smallest deviation from 1 that matters


def pixel_ratio(capture: cv2.VideoCapture, name: str, *, given_intrinsics: bool) -> float:
    """Return width divided by height of a pixel of the images of an open video, 1 if its header does not state it.

    A warning with `name` of the video states that its images are stretched.
    """
    across, down = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    ratio = across / down if across > 0 and down > 0 else 1.0
    if round(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90:  # OpenCV turns the images, not the ratio
        ratio = 1 / ratio
    if not 1 / LARGEST <= ratio <= LARGEST:
        log.warning("%s: its header states pixels %g times as wide as high: read as square ones", name, ratio)
        return 1.0
    if abs(math.log(ratio)) < _SQUARE:
        return 1.0
    given = "; the given intrinsics must be those of the stretched images" if given_intrinsics else ""
    log.warning(
        "%s: its pixels are %.4g times as wide as high: the images are stretched to square pixels%s",
        name,
        ratio,
        given,
    )
    return ratio


def square_pixels(image: np.ndarray, ratio: float) -> np.ndarray:
    """Return an image whose pixels have the `ratio` of `pixel_ratio` with square ones. No side becomes shorter."""
    if ratio == 1:
        return image
    height, width = image.shape[:2]
    size = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
