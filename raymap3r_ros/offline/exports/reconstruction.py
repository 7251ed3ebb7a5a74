"""What COLMAP and nerfstudio have in common: images with masks of what to ignore, and the origin of pixels."""

from __future__ import annotations

import numpy as np

from raymap3r_ros.io.png import write_image, write_mask
from raymap3r_ros.offline.export import NewFile
from raymap3r_ros.offline.results import Results


def image_name(index: int) -> str:
    """Name of the image of a frame."""
    return f"{index:06d}.png"


def write_images(results: Results, new_file: NewFile, mask_suffix: str) -> None:
    """Write images/, the images as the network received them, and masks/, black where something moves."""
    for index, image in results.images():
        write_image(new_file(f"images/{image_name(index)}"), results.crop(image))
        if results.has_masks:
            write_mask(new_file(f"masks/{image_name(index)}{mask_suffix}"), ~results.mask(index))


def pinhole(intrinsics: np.ndarray) -> list[float]:
    """fx, fy, cx, cy of a matrix (3, 3), with the centre of the first pixel at (0.5, 0.5), not at (0, 0)."""
    values = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2] + 0.5, intrinsics[1, 2] + 0.5]
    return [float(value) for value in values]
