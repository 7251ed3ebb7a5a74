"""PNG files: images, masks, and depth in 16 bits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from raymap3r_ros.output_files import whole_file

DEPTH_UNIT = 1000  # values of a depth PNG per metre
DEPTH_LIMIT = 65535 / DEPTH_UNIT  # metres; the largest depth in 16 bits


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an 8-bit or 16-bit array (h, w), or (h, w, 3) in the order BGR, as OpenCV expects it."""
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise RuntimeError(f"OpenCV cannot encode a {image.dtype} image of shape {image.shape} as PNG")
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write `image` (h, w, 3) uint8 RGB."""
    write_png(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write `mask` (H, W) bool in 8 bits, 255 where it is true."""
    write_png(path, mask_image(mask))


def mask_image(mask: np.ndarray) -> np.ndarray:
    """Return (H, W) uint8 of `mask` (H, W) bool: 255 where it is true, else 0."""
    return np.where(mask, np.uint8(255), np.uint8(0))


def quantise_depth(depth: np.ndarray, unit: int = DEPTH_UNIT) -> np.ndarray:
    """Return (H, W) uint16 of `depth` (H, W) metres, `unit` values per metre; 0 where unknown or beyond 65535."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(depth) & (depth > 0) & (depth <= 65535 / unit)
    values = np.zeros(depth.shape, np.uint16)
    values[known] = np.rint(depth[known].astype(np.float64) * unit)
    return values
