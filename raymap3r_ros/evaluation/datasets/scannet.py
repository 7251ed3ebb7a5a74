"""ScanNet (Dai et al. 2017), as exported by its SensReader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    MILLIMETRES,
    numbered_files,
    read_depth,
    read_image,
    read_matrix,
    standard_folders,
    warn_of_unposed,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence

SCENES = [f"scene{number:04d}_00" for number in range(707, 807)]


def load_scannet(root: Path) -> list[PosedSequence]:
    """scene0707_00 to scene0806_00, frames 0:270:3."""
    return _scenes(root, slice(0, 270, 3))


def load_scannet_long(root: Path) -> list[PosedSequence]:
    """scene0707_00 to scene0806_00, every 3rd frame, at most 1000."""
    return _scenes(root, slice(0, 3000, 3))


def _scenes(root: Path, chosen: slice) -> list[PosedSequence]:
    return [_sequence(folder, chosen) for folder in standard_folders(root, SCENES)]


def _sequence(folder: Path, chosen: slice) -> PosedSequence:
    """Colour images shrunk to the size of the depth maps, 30 frames/s. Frames without a valid pose are skipped."""
    images = numbered_files(folder / "color", "*.jpg")[chosen]
    poses = [read_matrix(folder / "pose" / f"{path.stem}.txt", (4, 4)) for path in images]
    tracked = [(path, pose) for path, pose in zip(images, poses, strict=True) if np.isfinite(pose).all()]
    if not tracked:
        raise InputError(f"{folder / 'pose'}: no finite pose for any of {len(images)} frames")
    warn_of_unposed(folder, len(images) - len(tracked), len(images))
    camera = folder / "intrinsic" / "intrinsic_color.txt"
    colour = read_matrix(camera, (4, 4))[:3, :3] if camera.is_file() else None

    def frames() -> Iterator[Frame]:
        for path, pose in tracked:
            image = read_image(path)
            depth = read_depth(folder / "depth" / f"{path.stem}.png", MILLIMETRES)
            scale = np.array((depth.shape[1] / image.shape[1], depth.shape[0] / image.shape[0]))
            intrinsics = None
            if colour is not None:
                intrinsics = colour.copy()
                intrinsics[:2, :2] *= scale[:, None]
                # Pixel centres are integer, so images scale about (-1/2, -1/2).
                intrinsics[:2, 2] = (colour[:2, 2] + 0.5) * scale - 0.5
            image = cv2.resize(image, depth.shape[::-1], interpolation=cv2.INTER_AREA)
            yield Frame(image, int(path.stem) / 30, depth, None, None, pose, intrinsics)

    return PosedSequence(folder.name, len(tracked), frames, len(images) - len(tracked))


SCANNET = Dataset(
    "scannet",
    "ScanNet: scene0707_00 to scene0806_00, each with color, depth, pose, intrinsic",
    load_scannet,
    has_depth=True,
    has_pose=True,
    load_long=load_scannet_long,
)
