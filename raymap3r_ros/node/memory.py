"""A saved world in which the node continues: keyframes, place and static map, as `~/save` has written them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry import poses
from raymap3r_ros.io.ply import read_ply
from raymap3r_ros.mapping.static_map import StaticMap
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.stream_options import check_search
from raymap3r_ros.streaming.world_files import Place, SavedWorld, load_world
from raymap3r_ros.text import counted

STATIC_MAP = "static_map.ply"  # beside the file of the world
WORLD = "world.safetensors"
WORLD_FROM_OPTICAL = poses.world_pose(np.eye(4))


@dataclass(frozen=True)
class Memory:
    """A world from files."""

    path: Path
    world: SavedWorld
    static_map: StaticMap | None  # in the stream's metres; None without one beside the world

    @property
    def contents(self) -> str:
        """A summary in one line."""
        keyframes = counted(self.world.keyframes.number.shape[1], "keyframe")
        points = "no static map" if self.static_map is None else f"{counted(len(self.static_map), 'point')} of the map"
        return f"{self.path}: {keyframes}, {points}"


def load_memory(file: str, network: Network, options: StreamOptions) -> Memory:
    """The saved world in a file, and the static map beside it.

    Raises InputError if one of the files cannot be used, and OptionError if the stream has no keyframes.
    """
    check_search(options)
    try:
        path = Path(file).expanduser()
    except RuntimeError as error:  # ~user, without such a user
        raise InputError(f"memory {file}: {error}; give the path without ~") from error
    world, static_map = load_world(path, network), None
    beside = path.with_name(STATIC_MAP)
    if world.place.voxel_size and beside.exists():
        points, colors = read_ply(beside)
        # From `world_frame` to the stream's world, in which the map is built
        placement = placement_of(world.place)
        local = (points - placement[:3, 3]) @ np.linalg.inv(placement[:3, :3]).T
        device = network.first_pose_token.device
        static_map = StaticMap.of_points(
            torch.from_numpy(local.astype(np.float32)).to(device),
            torch.from_numpy(colors).to(device),
            world.place.voxel_size / world.place.scale,
        )
    return Memory(path, world, static_map)


def placement_of(place: Place) -> np.ndarray:
    """(4, 4) similarity from the stream's world, in optical axes, to `world_frame`."""
    return place.world_from_stream @ np.diag([place.scale] * 3 + [1.0]) @ WORLD_FROM_OPTICAL
