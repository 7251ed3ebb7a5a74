"""Trajectories in the TUM format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from raymap3r_ros.geometry.cameras import pose_encoding
from raymap3r_ros.output_files import whole_file


def write_tum(path: Path, stamps: Sequence[int] | np.ndarray, poses: np.ndarray) -> None:
    """Write one line `timestamp tx ty tz qx qy qz qw` per pose, with all digits.

    `stamps`: (n,) nanoseconds; `poses`: (n, 7) metres and a quaternion x y z w.
    """
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("# timestamp tx ty tz qx qy qz qw\n")
        for stamp, pose in zip(stamps, poses.tolist(), strict=True):
            file.write(f"{seconds_text(stamp)} {' '.join(map(repr, pose))}\n")


def write_trajectory(path: Path, stamps: Sequence[int], poses: np.ndarray) -> None:
    """Write `poses` (n, 4, 4), camera to world, metres, at `stamps` in nanoseconds, see `write_tum`."""
    encodings = pose_encoding(torch.from_numpy(np.asarray(poses, np.float64))).numpy()
    write_tum(path, stamps, encodings[:, [0, 1, 2, 4, 5, 6, 3]])


def seconds_text(stamp: int) -> str:
    """Return a stamp in nanoseconds as seconds, with all digits."""
    seconds, nanoseconds = divmod(int(stamp), 1_000_000_000)
    return f"{seconds}.{nanoseconds:09d}"
