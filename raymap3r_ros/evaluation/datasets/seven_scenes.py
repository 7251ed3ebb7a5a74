"""7-Scenes (Shotton et al. 2013)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    MILLIMETRES,
    numbered_files,
    pinhole,
    read_depth,
    read_image,
    read_matrix,
    read_text,
    same_size,
    standard_folders,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence

SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
CAMERA = (525.0, 525.0, 320.0, 240.0)  # fx fy cx cy, pixels
INVALID = 65535  # of a depth PNG


def load_seven_scenes(root: Path) -> list[PosedSequence]:
    """The 18 test sequences, every 2nd frame, at most 200, 30 frames/s. `depth.proj` is depth in the colour camera."""
    return [
        _sequence(scene / f"seq-{int(number):02d}")
        for scene in standard_folders(root, SCENES)
        for number in re.findall(r"\d+", read_text(scene / "TestSplit.txt"))
    ]


def _sequence(folder: Path) -> PosedSequence:
    names = [path.name.removesuffix(".color.png") for path in numbered_files(folder, "frame-*.color.png")[0:400:2]]
    poses = [read_matrix(folder / f"{name}.pose.txt", (4, 4)) for name in names]

    def frames() -> Iterator[Frame]:
        for name, pose in zip(names, poses, strict=True):
            image = read_image(folder / f"{name}.color.png")
            path = folder / f"{name}.depth.proj.png"
            depth = same_size(read_depth(path, MILLIMETRES, invalid=INVALID), image, path)
            stamp = int(name.removeprefix("frame-")) / 30
            yield Frame(image, stamp, depth, pose=pose, intrinsics=pinhole(*CAMERA))

    return PosedSequence(f"{folder.parent.name}-{folder.name}", len(names), frames)


SEVEN_SCENES = Dataset(
    "7scenes",
    "7-Scenes: <scene>/TestSplit.txt and <scene>/seq-XX/frame-XXXXXX.{color,depth.proj}.png",
    load_seven_scenes,
    has_depth=True,
    has_pose=True,
)
