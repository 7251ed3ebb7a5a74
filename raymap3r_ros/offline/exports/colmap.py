"""A COLMAP reconstruction in text and binary, with images and masks; COLMAP's documentation describes the files.

Poses are world to camera. Points have no tracks: they are means of many frames, not measured pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from raymap3r_ros.geometry.poses import quaternion
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.exports.reconstruction import image_name, pinhole, write_images
from raymap3r_ros.offline.results import Results, World
from raymap3r_ros.output_files import whole_file

MODEL = "sparse/0/"
_PINHOLE = 1  # number of the camera model
_UNKNOWN = -1.0  # reprojection error of a point without tracks
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])


def _write(results: Results, new_file: NewFile) -> None:
    (world,) = results.worlds
    cameras, camera_of = _cameras(world)
    views = list(_views(world, camera_of))
    points, colors = world.scene()
    width, height = results.size
    texts = {
        "cameras": (f"{number} PINHOLE {width} {height} {_numbers(values)}" for number, values in cameras.items()),
        # The second line of an image has its points, of which there are none.
        "images": (f"{number} {_numbers(pose)} {camera} {name}\n" for number, pose, camera, name in views),
        "points3D": (
            f"{number} {_numbers(point)} {' '.join(map(str, color))} {_UNKNOWN}"
            for number, (point, color) in enumerate(zip(points.tolist(), colors.tolist(), strict=True), 1)
        ),
    }
    binaries = {
        "cameras": (struct.pack("<IiQQ4d", number, _PINHOLE, width, height, *v) for number, v in cameras.items()),
        "images": (
            struct.pack("<I7dI", number, *pose, camera) + name.encode() + b"\0" + struct.pack("<Q", 0)
            for number, pose, camera, name in views
        ),
        "points3D": [_packed(points, colors)],
    }
    counts = {"cameras": len(cameras), "images": len(views), "points3D": len(points)}
    for name, count in counts.items():
        with whole_file(new_file(f"{MODEL}{name}.txt")) as partial, partial.open("w") as file:
            file.writelines(f"{line}\n" for line in texts[name])
        with whole_file(new_file(f"{MODEL}{name}.bin")) as partial, partial.open("wb") as file:
            file.write(struct.pack("<Q", count))
            file.writelines(binaries[name])
    write_images(results, new_file, ".png")


def _cameras(world: World) -> tuple[dict[int, list[float]], list[int]]:
    """The different intrinsics by number from 1, and the number for each frame."""
    different, of_frames = np.unique(world.intrinsics, axis=0, return_inverse=True)
    return {number: pinhole(one) for number, one in enumerate(different, 1)}, (of_frames.ravel() + 1).tolist()


def _views(world: World, camera_of: list[int]) -> Iterator[tuple[int, list[float], int, str]]:
    """Number, quaternion w x y z and translation world to camera, camera and name of each image."""
    for number, (index, pose, camera) in enumerate(zip(world.frames, world.poses, camera_of, strict=True), 1):
        rotation = pose[:3, :3].T
        x, y, z, w = quaternion(rotation)
        yield number, [w, x, y, z, *(-rotation @ pose[:3, 3]).tolist()], camera, image_name(index)


def _packed(points: np.ndarray, colors: np.ndarray) -> bytes:
    rows = np.zeros(len(points), _POINT)
    rows["id"], rows["xyz"], rows["rgb"], rows["error"] = np.arange(1, len(points) + 1), points, colors, _UNKNOWN
    return rows.tobytes()


def _numbers(values: list[float]) -> str:
    return " ".join(map(repr, values))


FORMAT = ExportFormat("colmap", "COLMAP: sparse/0 in text and binary, images/ and masks/", _write)
