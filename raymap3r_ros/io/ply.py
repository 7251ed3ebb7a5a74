"""Point clouds in the PLY format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.output_files import kind_of, whole_file

MAX_POINTS = 10_000_000
# Packed: 15 bytes, the layout of PLY
_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_END = b"end_header\n"


def write_ply(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write binary little-endian PLY. `points`: (n, 3) metres, world; `colors`: (n, 3) uint8 RGB."""
    vertices = np.empty(len(points), _VERTEX)
    vertices["xyz"], vertices["rgb"] = points, colors
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(_header(len(points)))
        file.write(vertices.view(np.uint8))  # `tofile` does not report why it fails


def read_ply(path: Path, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) float32 and colors (n, 3) uint8 of a file that `write_ply` has written; n up to `limit`.

    Raises InputError for any other file, and for coordinates that are not finite.
    """
    if not path.is_file():
        raise InputError(f"{path} is {kind_of(path) or 'missing'}; name a point cloud of this package (.ply)")
    try:
        size, longest = path.stat().st_size, len(_header(limit))
        with path.open("rb") as file:
            start = file.read(longest)
            count = (size - start.find(_END) - len(_END)) // _VERTEX.itemsize
            header = _header(count)
            if count > limit or not start.startswith(header) or size != len(header) + count * _VERTEX.itemsize:
                raise InputError(
                    f"{path} is not a point cloud of this package, is damaged, or has more than {limit} points; "
                    "save it again"
                )
            file.seek(len(header))
            vertices = np.fromfile(file, _VERTEX, count)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(vertices) != count or not np.isfinite(vertices["xyz"]).all():
        raise InputError(f"{path} is damaged: not all of its coordinates are finite numbers; save it again")
    return vertices["xyz"].copy(), vertices["rgb"].copy()


def _header(count: int) -> bytes:
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *properties, "end_header", ""]
    return "\n".join(lines).encode("ascii")
