"""Black images, as from a covered camera. They show nothing, so they must not reach the network's memory. Ours."""

from __future__ import annotations

import numpy as np

_DARK, _FLAT = 10.0, 4.0  # of 255: largest mean and standard deviation of a black image
_SAMPLES = 32  # rows and columns that are judged, about
_LONG = 5  # black images in a row during which the camera may have been carried anywhere


class Cover:
    """Watches the images of one camera.

    Attributes:
        frames: black images so far.
        ended: the last image follows at least five black ones: the camera may be anywhere.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.ended = False
        self._row = 0  # black images up to the last one

    def add(self, image: np.ndarray) -> bool:
        """Add the next image (h, w, 3) uint8, and return whether it is black."""
        rows, columns = (max(1, side // _SAMPLES) for side in image.shape[:2])
        some = image[::rows, ::columns]
        black = bool(some.mean() < _DARK and some.std() < _FLAT)
        self.ended = not black and self._row >= _LONG
        self._row = self._row + 1 if black else 0
        self.frames += black
        return black
