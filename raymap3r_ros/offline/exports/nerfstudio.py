"""transforms.json of nerfstudio with images, masks, depth maps and the static scene.

Poses are camera to world with the camera axes of OpenGL: x right, y up, z backward. The world is the one of the run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.ply import write_ply
from raymap3r_ros.io.png import quantise_depth, write_png
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.exports.reconstruction import image_name, pinhole, write_images
from raymap3r_ros.offline.result_folder import CLOUD
from raymap3r_ros.offline.results import Results

FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def _write(results: Results, new_file: NewFile) -> None:
    (world,) = results.worlds
    frames, constant = [], bool((world.intrinsics == world.intrinsics[0]).all())
    for index, pose, matrix in zip(world.frames.tolist(), world.poses, world.intrinsics, strict=True):
        name = image_name(index)
        frame: dict[str, Any] = {"file_path": f"images/{name}", "transform_matrix": (pose @ FROM_OPENGL).tolist()}
        if not constant:
            frame |= _intrinsics(matrix)
        if results.has_masks:
            frame["mask_path"] = f"masks/{name}"
        if results.has_depth:
            frame["depth_file_path"] = f"depth/{name}"
            write_png(new_file(frame["depth_file_path"]), quantise_depth(results.depth(index)))
        frames.append(frame)
    width, height = results.size
    content: dict[str, Any] = {"camera_model": "PINHOLE", "w": width, "h": height}
    if constant:
        content |= _intrinsics(world.intrinsics[0])
    if world.cloud is not None:
        write_ply(new_file(CLOUD), *world.scene())
        content["ply_file_path"] = CLOUD
    write_images(results, new_file, "")
    write_json(new_file("transforms.json"), {**content, "frames": frames})


def _intrinsics(matrix: np.ndarray) -> dict[str, float]:
    return dict(zip(("fl_x", "fl_y", "cx", "cy"), pinhole(matrix), strict=True))


FORMAT = ExportFormat(
    "nerfstudio", "nerfstudio: transforms.json, images/, masks/, depth/ and static_scene.ply", _write
)
