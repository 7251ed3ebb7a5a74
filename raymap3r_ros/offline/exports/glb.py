"""The static scene and the path of the camera as binary glTF 2.0, for browsers and 3D programs.

glTF's world has y up and is right-handed: x right, y up, z towards the viewer.
"""

from __future__ import annotations

import json
import struct

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.results import Results
from raymap3r_ros.output_files import whole_file

FROM_WORLD = np.diag([1.0, -1.0, -1.0])  # from x right, y down, z forward
PATH_COLOR = (255, 170, 0)
_POINTS, _LINES = 0, 1  # modes of a primitive
_FLOAT = 5126  # type of components
_ARRAY_BUFFER = 34962
_MAGIC, _JSON, _BINARY = 0x46546C67, 0x4E4F534A, 0x004E4942


def _write(results: Results, new_file: NewFile) -> None:
    (world,) = results.worlds
    points, colors = world.scene()
    if not len(points):
        raise InputError(
            f"{results.folder}: its static scene has no points, which glb shows; run it with a lower "
            "--confidence-threshold"
        )
    turn = np.eye(3) if world.is_given else FROM_WORLD
    # Pairs of successive positions: few programs read line strips.
    path = np.repeat(world.poses[:, :3, 3], 2, axis=0)[1:-1]
    parts = [("static_scene", _POINTS, points @ turn.T, colors)]
    if len(path):
        parts.append(("camera_path", _LINES, path @ turn.T, np.full((len(path), 3), PATH_COLOR)))
    with whole_file(new_file("scene.glb")) as partial:
        partial.write_bytes(_encode(parts))


def _linear(colors: np.ndarray) -> np.ndarray:
    """Colours of vertices as glTF defines them, in proportion to light, from those of an image (sRGB), 0..1."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def _encode(parts: list[tuple[str, int, np.ndarray, np.ndarray]]) -> bytes:
    """A GLB file of meshes: name, mode, positions (n, 3) and colors (n, 3) 0..255."""
    accessors, views, meshes, arrays = [], [], [], []
    for name, mode, positions, colors in parts:
        places = np.ascontiguousarray(positions, "<f4")
        light = _linear(colors / 255).astype("<f4")  # eight bits would not resolve dark colours
        limits = {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
        for array, more in ((places, limits), (light, {})):
            kind = {"componentType": _FLOAT, "type": "VEC3"}
            accessors.append({"bufferView": len(views), "count": len(array), **kind, **more})
            start = sum(one.nbytes for one in arrays)
            views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": _ARRAY_BUFFER})
            arrays.append(array)
        attributes = {"POSITION": len(accessors) - 2, "COLOR_0": len(accessors) - 1}
        meshes.append({"name": name, "primitives": [{"attributes": attributes, "mode": mode, "material": 0}]})
    binary = b"".join(one.tobytes() for one in arrays)
    document = {
        "asset": {"version": "2.0", "generator": "raymap3r_ros"},
        "extensionsUsed": ["KHR_materials_unlit"],  # colours as they are, without lamps
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"name": mesh["name"], "mesh": index} for index, mesh in enumerate(meshes)],
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = b"".join(struct.pack("<II", len(data), kind) + data for data, kind in ((text, _JSON), (binary, _BINARY)))
    return struct.pack("<III", _MAGIC, 2, 12 + len(chunks)) + chunks


FORMAT = ExportFormat(
    "glb", "scene.glb, static scene and camera path as binary glTF", _write, needs_images=False, needs_cloud=True
)
