"""From a camera image to the preprocessed image that the network receives, and its intrinsics."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raymap3r_ros.errors import InputError


@dataclass(frozen=True)
class Framing:
    """How an image is preprocessed: first resized, then cropped around its centre."""

    resized: tuple[int, int]  # width, height after the resize, pixels
    offset: tuple[int, int]  # left, top of the crop
    size: tuple[int, int]  # height, width of the crop


def frame_image(width: int, height: int, long_edge: int, patch: int) -> Framing:
    """Framing of a width x height image: long edge resized, sides cropped to multiples of the patch.

    A square image is cropped to 4:3, as in training. Raises InputError if less than one patch would remain.
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


def frame_images(images: np.ndarray, framing: Framing, device: torch.device) -> Tensor:
    """(B, h, w, 3) uint8 RGB -> (B, H, W, 3) uint8 RGB on a device. A GPU does the resize itself."""
    if device.type == "cpu":
        return torch.from_numpy(np.stack([apply_framing(image, framing) for image in images]))
    # The copy from pinned memory is asynchronous.
    pinned = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
    pinned.numpy()[...] = images
    return apply_framing_on_device(pinned.to(device, non_blocking=True), framing)


def visible_crop(array: np.ndarray, framing: Framing) -> np.ndarray:
    """Return the part of an image or map (h, w, ...) that the framing keeps, at the array's own resolution."""
    across, down = array.shape[1] / framing.resized[0], array.shape[0] / framing.resized[1]
    (left, top), (height, width) = framing.offset, framing.size
    rows = slice(round(top * down), round((top + height) * down))
    return array[rows, round(left * across) : round((left + width) * across)]


def apply_framing(image: np.ndarray, framing: Framing) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (H, W, 3) uint8 RGB: Lanczos when shrinking, bicubic when enlarging, then the crop."""
    height, width = image.shape[:2]
    if (width, height) != framing.resized:
        shrinks = max(width, height) > max(framing.resized)
        method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        # Images more than six times too large are averaged down first: half the time, no visible difference.
        image = np.asarray(Image.fromarray(image).resize(framing.resized, method, reducing_gap=3.0))
    (left, top), (crop_height, crop_width) = framing.offset, framing.size
    return image[top : top + crop_height, left : left + crop_width]


def apply_framing_on_device(images: Tensor, framing: Framing) -> Tensor:
    """As `apply_framing`, for (B, h, w, 3) on any device: the same filters as two matrix products.

    Unless the CPU averages first, the results differ by at most one of 255 levels.
    """
    height, width = images.shape[1:3]
    (left, top), (crop_height, crop_width) = framing.offset, framing.size
    if (width, height) == framing.resized:
        return images[:, top : top + crop_height, left : left + crop_width]
    shrinks = max(width, height) > max(framing.resized)
    across = _resampling(width, framing.resized[0], shrinks, images.device)[left : left + crop_width]
    down = _resampling(height, framing.resized[1], shrinks, images.device)[top : top + crop_height]
    # The rows are rounded to whole levels before the columns are filtered, as Pillow does.
    planes = _to_levels(images.permute(0, 3, 1, 2).float() @ across.T)
    return _to_levels(down @ planes).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _to_levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


@functools.lru_cache(maxsize=16)
def _resampling(length: int, resized: int, shrinks: bool, device: torch.device) -> Tensor:
    """(resized, length): weight of each old pixel in each new one, by Pillow's Lanczos or bicubic filter."""
    radius, kernel = (3.0, _lanczos) if shrinks else (2.0, _bicubic)
    scale = length / resized
    stretch = max(scale, 1.0)
    matrix = np.zeros((resized, length))
    for index in range(resized):
        centre = (index + 0.5) * scale
        first = max(0, int(centre - radius * stretch + 0.5))
        last = min(length, int(centre + radius * stretch + 0.5))
        weights = np.array([kernel((pixel + 0.5 - centre) / stretch) for pixel in range(first, last)])
        matrix[index, first:last] = weights / weights.sum()
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).float().to(device)


def _lanczos(x: float) -> float:
    if abs(x) >= 3:
        return 0.0
    return 1.0 if x == 0 else 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2


def _bicubic(x: float) -> float:
    """Keys' cubic convolution with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def frame_intrinsics(intrinsics: np.ndarray, width: int, height: int, framing: Framing) -> np.ndarray:
    """Pinhole matrices (..., 3, 3) of a width x height image -> those of the preprocessed image.

    Pixel centres have integer coordinates, so a resize scales around (-1/2, -1/2).
    """
    scale = np.array([framing.resized[0] / width, framing.resized[1] / height])
    framed = np.array(intrinsics, dtype=np.float64)
    framed[..., :2, :2] *= scale[:, None]
    framed[..., :2, 2] = (framed[..., :2, 2] + 0.5) * scale - 0.5 - framing.offset
    return framed
