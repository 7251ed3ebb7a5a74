"""MPI Sintel (Butler et al. 2012) with its depth and camera files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    existing_file,
    numbered_files,
    read_image,
    read_mask,
    same_size,
    standard_folders,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence, known_depth

SEQUENCES = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6", "shaman_3",
    "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
TAG = 202021.25  # the float32 with which .cam and .dpt files begin
MASKS = "dynamic_label_perfect"  # next to `final`; derived from the data set by its users


def load_sintel(root: Path) -> list[PosedSequence]:
    """The 14 sequences of the trajectory tables, all frames of `training/final`, 24 frames/s."""
    training = root / "training"
    return [_sequence(training, folder) for folder in standard_folders(training / "final", SEQUENCES)]


def _sequence(training: Path, folder: Path) -> PosedSequence:
    images = numbered_files(folder, "*.png")

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(images):
            image = read_image(path)
            intrinsics, pose = _read_cam(training / "camdata_left" / folder.name / f"{path.stem}.cam")
            depth_path = training / "depth" / folder.name / f"{path.stem}.dpt"
            depth = same_size(_read_dpt(depth_path), image, depth_path)
            mask = training / MASKS / folder.name / path.name
            moving = same_size(read_mask(mask), image, mask) if mask.is_file() else None  # not for the last
            yield Frame(image, index / 24, depth, None, moving, pose, intrinsics)

    return PosedSequence(folder.name, len(images), frames)


def _read_cam(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) and camera to world (4, 4) from a .cam file: tag, 9 float64 K, 12 float64 world to camera."""
    data = _tagged(path)
    if len(data) != 21 * 8:
        raise InputError(f"{path}: {len(data) + 4} bytes; a .cam file has {21 * 8 + 4}")
    values = np.frombuffer(data, "<f8")
    to_camera = np.vstack((values[9:].reshape(3, 4), (0, 0, 0, 1)))
    try:
        return values[:9].reshape(3, 3).copy(), np.linalg.inv(to_camera)
    except np.linalg.LinAlgError as error:
        raise InputError(f"{path}: its pose cannot be inverted: {error}") from error


def _read_dpt(path: Path) -> np.ndarray:
    """Depth (h, w) metres from a .dpt file: tag, int32 width and height, float32 values."""
    data = _tagged(path)
    width, height = np.frombuffer(data[:8], "<i4") if len(data) >= 8 else (0, 0)
    if len(data) != 8 + 4 * int(width) * int(height):
        raise InputError(f"{path}: {len(data) + 4} bytes do not hold a depth map of {width} x {height}")
    return known_depth(np.frombuffer(data, "<f4", offset=8).reshape(height, width))


def _tagged(path: Path) -> bytes:
    """The bytes after the tag."""
    data = existing_file(path).read_bytes()
    if data[:4] != np.float32(TAG).tobytes():
        raise InputError(f"{path}: does not begin with the tag {TAG} of Sintel's files")
    return data[4:]


SINTEL = Dataset(
    "sintel",
    "MPI Sintel: training/{final,camdata_left,depth}",
    load_sintel,
    depth_cap=70.0,
    has_depth=True,
    has_pose=True,
    has_mask=True,
)
