"""The folder that a run writes its results to: names of the files, and the files of single frames."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from raymap3r_ros.io.output_folder import MANIFEST, check_subfolder, claim, clear_folder, remove_empty, written_files
from raymap3r_ros.io.png import quantise_depth, write_mask, write_png
from raymap3r_ros.output_files import whole_file

TRAJECTORY = "trajectory.txt"
INTRINSICS = "intrinsics.txt"
CLOUD = "static_scene.ply"
SUMMARY = "summary.json"
WORLD = "world.safetensors"
SHEET = "preview.png"
VIDEO = "preview"  # .mp4, or .gif if OpenCV cannot write videos
DEPTH_FOLDER = "depth"
MASK_FOLDER = "masks"

_RESULTS = re.compile(
    "|".join(re.escape(name) for name in (TRAJECTORY, INTRINSICS, CLOUD, SUMMARY, WORLD, SHEET))
    + r"|trajectory_\d+\.txt|static_scene_\d+\.ply"
    + rf"|{VIDEO}\.(mp4|gif)|{DEPTH_FOLDER}/\d{{6,}}\.(png|npz)|{MASK_FOLDER}/\d{{6,}}\.png"
)


def numbered(name: str, world: int) -> str:
    """Return the name of a file for one of several worlds, counted from 1: trajectory_1.txt."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}_{world}.{suffix}"


def prepare_folder(
    folder: Path,
    overwrite: bool = False,
    subfolders: Collection[str] = (DEPTH_FOLDER, MASK_FOLDER),
    inputs: Collection[Path] = (),
) -> None:
    """Create or clear the output folder of a run, with the `subfolders` that it writes to; see `clear_folder`."""
    for name in subfolders:
        check_subfolder(folder / name)
    clear_folder(folder, _RESULTS, overwrite, inputs)
    for name in (DEPTH_FOLDER, MASK_FOLDER):
        if name in subfolders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            # An empty folder of an earlier run would look like a result of this one. One with other files stays.
            remove_empty(folder / name)


def discard_folder(folder: Path) -> None:
    """Delete what a run that ended before its first result has left in its output folder."""
    for file in written_files(folder):
        file.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in (DEPTH_FOLDER, MASK_FOLDER):
        remove_empty(folder / name)


def discard_frame(folder: Path, index: int) -> None:
    """Delete the files of frame `index`, some of which could not be written."""
    for name in (
        f"{DEPTH_FOLDER}/{index:06d}.png",
        f"{DEPTH_FOLDER}/{index:06d}.npz",
        f"{MASK_FOLDER}/{index:06d}.png",
    ):
        (folder / name).unlink(missing_ok=True)


def write_depth_files(folder: Path, index: int, depth: np.ndarray) -> None:
    """Write `depth` (H, W) metres of frame `index`: millimetres as a 16-bit PNG, and float32 as .npz."""
    write_png(claim(folder, f"{DEPTH_FOLDER}/{index:06d}.png"), quantise_depth(depth))
    # Not compressed: noise in the low bits leaves little to save.
    with whole_file(claim(folder, f"{DEPTH_FOLDER}/{index:06d}.npz")) as partial:
        np.savez(partial, depth=depth.astype(np.float32, copy=False))


def write_mask_file(folder: Path, index: int, mask: np.ndarray) -> None:
    """Write `mask` (H, W) bool of frame `index`: an 8-bit PNG, 255 where it is true."""
    write_mask(claim(folder, f"{MASK_FOLDER}/{index:06d}.png"), mask)
