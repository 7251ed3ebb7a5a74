"""Camera intrinsics as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymap3r_ros.io.tum import seconds_text
from raymap3r_ros.output_files import whole_file


def write_intrinsics(
    path: Path, stamps: Sequence[int], intrinsics: np.ndarray, known: Sequence[bool], size: tuple[int, int]
) -> None:
    """Write one line `timestamp fx fy cx cy width height known` per frame.

    `stamps`: nanoseconds; `intrinsics`: (n, 3, 3) pixels of depth maps of `size` = (width, height); `known` is
    written as 0 where the field of view was assumed.
    """
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("# timestamp fx fy cx cy width height known\n")
        for stamp, matrix, sure in zip(stamps, intrinsics, known, strict=True):
            values = " ".join(f"{matrix[index]:.4f}" for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
            file.write(f"{seconds_text(stamp)} {values} {size[0]} {size[1]} {int(sure)}\n")
