"""Result files in the field's usual formats. Each appears under its name only once it is whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.cameras import pose_encoding

DEPTH_UNIT = 1000  # values of a depth PNG per metre
DEPTH_LIMIT = 65535 / DEPTH_UNIT  # metres; what 16 bits hold

TRAJECTORY = "trajectory.txt"
INTRINSICS = "intrinsics.txt"
CLOUD = "static_scene.ply"
SUMMARY = "summary.json"
SHEET = "preview.png"
VIDEO = "preview"  # .mp4, or .gif where no video can be written
DEPTH_FOLDER = "depth"
MASK_FOLDER = "masks"

_OURS = re.compile(
    "|".join(re.escape(name) for name in (TRAJECTORY, INTRINSICS, CLOUD, SUMMARY, SHEET))
    + rf"|{VIDEO}\.(mp4|gif)|{DEPTH_FOLDER}/\d{{6}}\.(png|npz)|{MASK_FOLDER}/\d{{6}}\.png"
)


def partial_path(path: Path) -> Path:
    """Where to write a file that is to take the name `path` when it is whole; same folder, same suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name `path` at the end, or goes on any error."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def prepare_folder(
    folder: Path, overwrite: bool = False, subfolders: Collection[str] = (DEPTH_FOLDER, MASK_FOLDER)
) -> None:
    """Make the output folder of a run with the `subfolders` that it writes to, see `clear_folder`."""
    clear_folder(folder, _OURS, overwrite)
    for name in (DEPTH_FOLDER, MASK_FOLDER):
        if name in subfolders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            # An empty folder of an earlier run would look like a result of this one. One with other files stays.
            with suppress(OSError):
                (folder / name).rmdir()


def clear_folder(folder: Path, ours: re.Pattern[str], overwrite: bool = False) -> None:
    """Make an output folder.

    With `overwrite` the files of an earlier output go, so that two never mix: those whose path in the folder matches
    `ours`. All others stay. Raises InputError where `folder` is a file, or holds any file and `overwrite` is off.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the output needs a folder")
    if any(item.is_file() for item in folder.rglob("*")):
        if not overwrite:
            raise InputError(f"{folder}: holds files already; name another folder, or allow it with --overwrite")
        for file in [*folder.glob("*"), *folder.glob("*/*")]:
            if ours.fullmatch(file.relative_to(folder).as_posix()):
                file.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def write_tum(path: Path, stamps: Sequence[int] | np.ndarray, poses: np.ndarray) -> None:
    """TUM format, one line `timestamp tx ty tz qx qy qz qw` per pose, with every digit.

    `stamps`: (n,) nanoseconds; `poses`: (n, 7) metres and a quaternion x y z w.
    """
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("# timestamp tx ty tz qx qy qz qw\n")
        for stamp, pose in zip(stamps, poses.tolist(), strict=True):
            seconds, nanoseconds = divmod(stamp, 1_000_000_000)
            file.write(f"{seconds}.{nanoseconds:09d} {' '.join(map(repr, pose))}\n")


def write_trajectory(path: Path, stamps: Sequence[float], poses: np.ndarray) -> None:
    """`write_tum` of `poses` (n, 4, 4), camera to world, metres, at `stamps` in seconds."""
    encodings = pose_encoding(torch.from_numpy(np.asarray(poses, np.float64))).numpy()
    # Seconds since 1970 are good to a microsecond as a float.
    nanoseconds = [round(stamp * 1e6) * 1000 for stamp in stamps]
    write_tum(path, nanoseconds, encodings[:, [0, 1, 2, 4, 5, 6, 3]])


def write_intrinsics(
    path: Path, stamps: Sequence[float], intrinsics: np.ndarray, known: Sequence[bool], size: tuple[int, int]
) -> None:
    """One line `timestamp fx fy cx cy width height known` per frame.

    `intrinsics`: (n, 3, 3) pixels of the written depth maps, which are `size` = (width, height); `known` is 0 where a
    field of view had to be assumed.
    """
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("# timestamp fx fy cx cy width height known\n")
        for stamp, matrix, sure in zip(stamps, intrinsics, known, strict=True):
            values = " ".join(f"{matrix[index]:.4f}" for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
            file.write(f"{stamp:.6f} {values} {size[0]} {size[1]} {int(sure)}\n")


def _write_png(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise RuntimeError(f"OpenCV cannot encode a {image.dtype} image of shape {image.shape} as PNG")
    with whole_file(path) as partial:
        partial.write_bytes(data)


def millimetres(depth: np.ndarray) -> np.ndarray:
    """(H, W) uint16 of `depth` (H, W) metres; 0 where unknown or beyond 65.535 m."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(depth) & (depth > 0) & (depth <= DEPTH_LIMIT)
    values = np.zeros(depth.shape, np.uint16)
    values[known] = np.rint(depth[known].astype(np.float64) * DEPTH_UNIT)
    return values


def write_depth(folder: Path, index: int, depth: np.ndarray) -> None:
    """`depth` (H, W) metres: a 16-bit PNG of `millimetres`, and float32 as it is."""
    _write_png(folder / DEPTH_FOLDER / f"{index:06d}.png", millimetres(depth))
    # Not compressed: noise in the low bits leaves little to save.
    with whole_file(folder / DEPTH_FOLDER / f"{index:06d}.npz") as partial:
        np.savez(partial, depth=depth.astype(np.float32, copy=False))


def write_mask(folder: Path, index: int, mask: np.ndarray) -> None:
    """`mask` (H, W) bool: an 8-bit PNG, 255 where it moves."""
    _write_png(folder / MASK_FOLDER / f"{index:06d}.png", np.where(mask, np.uint8(255), np.uint8(0)))


def write_image(path: Path, image: np.ndarray) -> None:
    """`image` (h, w, 3) uint8 RGB as PNG."""
    _write_png(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_ply(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Binary little-endian PLY. `points`: (n, 3) metres, world; `colors`: (n, 3) uint8 RGB."""
    vertices = np.empty(
        len(points),
        dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)],  # packed: 15 bytes, as PLY lays them out
    )
    vertices["xyz"], vertices["rgb"] = points, colors
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    header = "\n".join(
        ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    )
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(header.encode("ascii"))
        vertices.tofile(file)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """`values` as indented JSON. Raises ValueError for numbers that JSON does not have (NaN, infinity)."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
