"""KITTI's depth benchmark (Uhrig et al. 2017) with the images of the raw data (Geiger et al. 2013)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    existing_file,
    numbered_files,
    read_depth,
    read_image,
    read_text,
    same_size,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence

DEPTH_UNIT = 256  # values of a depth PNG per metre


def load_kitti(root: Path) -> list[PosedSequence]:
    """The drives of the depth benchmark's `val`, first 110 frames with depth, left colour camera, 10 frames/s."""
    drives = sorted((root / "val").glob("*_sync/proj_depth/groundtruth/image_02"))
    if not drives:
        raise InputError(f"{root}: no folder val/<drive>_sync/proj_depth/groundtruth/image_02; expected KITTI's depth")
    return [_sequence(root, folder) for folder in drives]


def _sequence(root: Path, folder: Path) -> PosedSequence:
    drive = folder.parents[2].name
    depths = numbered_files(folder, "*.png")[:110]
    day = root / drive[: len("2011_09_26")]
    images = [existing_file(day / drive / "image_02" / "data" / path.name) for path in depths]
    intrinsics = _read_camera(day / "calib_cam_to_cam.txt")

    def frames() -> Iterator[Frame]:
        for path, depth in zip(images, depths, strict=True):
            image = read_image(path)
            metres = same_size(read_depth(depth, DEPTH_UNIT), image, depth)
            yield Frame(image, int(path.stem) / 10, metres, intrinsics=intrinsics)

    return PosedSequence(drive, len(images), frames)


def _read_camera(path: Path) -> np.ndarray | None:
    """Intrinsics (3, 3) of the rectified left colour camera; None if the file is missing."""
    if not path.is_file():
        return None
    match = re.search(r"^P_rect_02:(.*)$", read_text(path), re.MULTILINE)
    try:
        values = np.array(match[1].split(), np.float64) if match else np.empty(0)
    except ValueError as error:
        raise InputError(f"{path}: P_rect_02: {error}") from error
    if len(values) != 12:
        raise InputError(f"{path}: no line `P_rect_02:` with twelve numbers")
    return values.reshape(3, 4)[:, :3].copy()


KITTI = Dataset(
    "kitti",
    "KITTI: val/<drive>_sync/proj_depth/groundtruth/image_02 and <date>/<drive>_sync/image_02/data",
    load_kitti,
    has_depth=True,
)
