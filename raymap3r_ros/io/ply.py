"""Point clouds in the PLY format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymap3r_ros.output_files import whole_file


def write_ply(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write binary little-endian PLY. `points`: (n, 3) metres, world; `colors`: (n, 3) uint8 RGB."""
    vertices = np.empty(
        len(points),
        dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)],  # packed: 15 bytes, the layout of PLY
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
