"""Blank images, as from a covered camera: black, or without any texture, such as a finger on the lens. Ours.

They show nothing, so they must not reach the network's memory.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

_DARK, _FLAT = 10.0, 4.0  # of 255: largest mean and standard deviation of a black image
# Of 255: largest standard deviation about a smooth surface (light that falls off, a vignette) of an image without
# texture. A finger with noise of 4 has less at 320x240, every rendered or recorded image of the tests has more.
_SMOOTH = 2.0
_UNSCALED = 64  # of 255: brighter values are not those of 14 bits in 16
_DEGREE = 4  # of the surface
_IN_DEGREE = np.add.outer(np.arange(_DEGREE + 1), np.arange(_DEGREE + 1)) <= _DEGREE  # of products of two polynomials
_SIZE = 96, 128  # rows and columns that are judged, at most; pixels of larger images are averaged, which removes noise
_SMALLEST = 16  # rows or columns of images whose texture is judged
_SAMPLED = 3  # times as many, of large images, because it takes less time


class Cover:
    """Watches the images of one camera.

    Attributes:
        frames: blank images so far.
        ended: the last image ends a long row of blank ones: the camera may be anywhere. After a short one, the memory
            still fits, as after a pause of the camera.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.ended = False
        self._covered = False  # the last image was blank
        self._seen: float | None = None  # stamp of the last image that was not

    def add(self, image: np.ndarray, stamp: float, max_gap: float) -> bool:
        """Add the next image (h, w, 3) uint8, and return whether it is blank.

        `stamp` in seconds; `max_gap`: longest time between two images with content that is no long cover.
        """
        blank = is_blank(image)
        self.ended = not blank and self._covered and self._seen is not None and stamp - self._seen > max_gap
        self._covered = blank
        self._seen = self._seen if blank else stamp
        self.frames += blank
        return blank


def is_blank(image: np.ndarray) -> bool:
    """Whether an image (h, w, 3) uint8 is black or has no texture."""
    rows, columns = (max(1, side // (_SAMPLED * most)) for side, most in zip(image.shape[:2], _SIZE, strict=True))
    some = np.ascontiguousarray(image[::rows, ::columns])
    height, width = (min(side, most) for side, most in zip(some.shape[:2], _SIZE, strict=True))
    small = cv2.resize(some, (width, height), interpolation=cv2.INTER_AREA)
    if small.mean() < _DARK and small.std() < _FLAT:
        return True
    if min(small.shape[:2]) < _SMALLEST:
        return False
    grey = small.mean(axis=2, dtype=np.float32)
    down, across = _polynomials(height), _polynomials(width)
    # Products of orthonormal polynomials are orthonormal: their coefficients are those of the least-squares surface.
    surface = (down.T @ grey @ across) * _IN_DEGREE
    return bool((grey - down @ surface @ across.T).std() < _SMOOTH)


def why_blank(image: np.ndarray) -> str:
    """Describe a blank image (h, w, 3) uint8, with the likely cause of a dark one that is not quite black."""
    highest = int(image.max(initial=0))
    if not 0 < highest < _UNSCALED:
        return "black, or without texture"
    return (
        f"black, or without texture; its highest value is {highest} of 255: values of 10 to 14 bits in images of 16 "
        "bits must be multiplied to fill these"
    )


@functools.lru_cache(maxsize=16)
def _polynomials(length: int) -> np.ndarray:
    """Orthonormal polynomials (length, _DEGREE + 1) float32, with increasing degrees."""
    basis, _ = np.linalg.qr(np.linspace(-1, 1, length)[:, None] ** np.arange(_DEGREE + 1))
    return basis.astype(np.float32)
