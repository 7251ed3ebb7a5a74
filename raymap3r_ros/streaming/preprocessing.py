"""From a camera image to the image that the network sees, intrinsics with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from raymap3r_ros.errors import InputError


@dataclass(frozen=True)
class Framing:
    """How an image is brought to the network's size: first resized, then cropped about its centre."""

    resized: tuple[int, int]  # width, height after the resize, pixels
    offset: tuple[int, int]  # left, top of the crop
    size: tuple[int, int]  # height, width of the crop: what the network sees


def frame_image(width: int, height: int, long_edge: int, patch: int) -> Framing:
    """Framing of a width x height image: long edge resized, sides cropped down to multiples of the patch.

    A square image is cropped to 4:3, as in training. Raises InputError where less than one patch would be left.
    """
    factor = long_edge / max(width, height)
    resized = round(width * factor), round(height * factor)
    centre = resized[0] // 2, resized[1] // 2
    crop_width, crop_height = (2 * c // patch * patch for c in centre)
    if resized[0] == resized[1]:
        crop_height = crop_width * 3 // 4 // patch * patch
    if crop_width < patch or crop_height < patch:
        raise InputError(
            f"an image of {width} x {height} pixels becomes {resized[0]} x {resized[1]}, smaller than one "
            f"{patch}-pixel patch; use a larger or less elongated image, or a larger image_size"
        )
    return Framing(resized, (centre[0] - crop_width // 2, centre[1] - crop_height // 2), (crop_height, crop_width))


def apply_framing(image: np.ndarray, framing: Framing) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (H, W, 3) uint8 RGB: Lanczos when shrinking, bicubic when enlarging, then the crop."""
    height, width = image.shape[:2]
    if (width, height) != framing.resized:
        shrinks = max(width, height) > max(framing.resized)
        method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        # Images more than six times too large are first averaged down: half the time, and no visible difference.
        image = np.asarray(Image.fromarray(image).resize(framing.resized, method, reducing_gap=3.0))
    (left, top), (crop_height, crop_width) = framing.offset, framing.size
    return image[top : top + crop_height, left : left + crop_width]


def frame_intrinsics(intrinsics: np.ndarray, width: int, height: int, framing: Framing) -> np.ndarray:
    """Pinhole matrices (..., 3, 3) of a width x height image -> those of the framed image.

    Pixel centres have integer coordinates, so a resize scales about (-1/2, -1/2).
    """
    scale = np.array([framing.resized[0] / width, framing.resized[1] / height])
    framed = np.array(intrinsics, dtype=np.float64)
    framed[..., :2, :2] *= scale[:, None]
    framed[..., :2, 2] = (framed[..., :2, 2] + 0.5) * scale - 0.5 - framing.offset
    return framed
