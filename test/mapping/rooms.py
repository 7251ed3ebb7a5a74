"""A room of known shape with exact cameras: depth by ray casting, distances to its surfaces in closed form."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.mapping import PixelOptions, StaticMap
from raymap3r_ros.synthetic.raycast import Solids, hit

SIZE = (72, 96)  # H, W
FOCAL = 60.0
HALF = (2.5, 2.0, 1.25)  # half sizes of the room; the floor is z = 0
BOX = ((0.3, 0.3, 0.4), (1.2, 0.0, 0.4))  # half sizes and centre of an optional box
POLE = ((0.05, 0.05, 1.25), (1.0, 1.0, 1.25))
RED, GREY = (250, 20, 10), (120, 120, 120)


@dataclass(frozen=True)
class View:
    """One frame with the arguments of `StaticMap.integrate`. World: z up, metres."""

    points: Tensor
    image: Tensor
    confidence: Tensor
    dynamic_mask: Tensor
    intrinsics: Tensor
    pose: Tensor

    def into(self, static_map: StaticMap, pixels: PixelOptions | None = None) -> None:
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        static_map.integrate(*values, pixels)

    def but(self, **changes) -> View:
        return dataclasses.replace(self, **changes)

    @property
    def world(self) -> Tensor:
        """(H W, 3) points in the world."""
        return self.points.flatten(0, 1) @ self.pose[:3, :3].mT + self.pose[:3, 3]


def camera(eye, target) -> Tensor:
    """c2w (4, 4) of a level camera."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, (0, 0, 1)) / np.linalg.norm(np.cross(forward, (0, 0, 1)))
    pose = np.eye(4)
    pose[:3] = np.stack((right, np.cross(forward, right), forward, eye), axis=1)
    return torch.tensor(pose, dtype=torch.float32)


def rays() -> Tensor:
    """(H, W, 3) with z = 1, camera frame."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.stack(((columns - SIZE[1] // 2) / FOCAL, (rows - SIZE[0] // 2) / FOCAL, torch.ones(SIZE)), dim=-1)


def intrinsics() -> Tensor:
    return torch.tensor([[FOCAL, 0, SIZE[1] // 2], [0, FOCAL, SIZE[0] // 2], [0, 0, 1]])


def view(pose: Tensor, *, box: bool = False, pole: bool = False) -> View:
    """The view of the room from a pose. The box is red, the rest grey."""
    direction = (rays() @ pose[:3, :3].mT).reshape(1, 1, -1, 3)
    origin = pose[:3, 3].reshape(1, 1, 3)
    depth = hit(_solid("box", HALF, (0, 0, HALF[2])), origin, direction, inside=True)[0]
    is_box = torch.zeros_like(depth, dtype=torch.bool)
    for there, shape, solid in ((pole, "cylinder", POLE), (box, "box", BOX)):
        if there:
            front = hit(_solid(shape, *solid), origin, direction)[0]
            is_box = (front < depth) if solid is BOX else is_box
            depth = torch.minimum(depth, front)
    image = torch.where(is_box.reshape(*SIZE, 1), torch.tensor(RED), torch.tensor(GREY)).to(torch.uint8)
    return View(
        points=rays() * depth.reshape(*SIZE, 1),
        image=image,
        confidence=torch.full(SIZE, 5.0),
        dynamic_mask=torch.zeros(SIZE, dtype=torch.bool),
        intrinsics=intrinsics(),
        pose=pose,
    )


def _solid(shape: str, half, centre) -> Solids:
    return Solids(shape, torch.tensor([[half]]), torch.tensor([[[centre]]]), torch.eye(3).expand(1, 1, 1, 3, 3))


def walk(count: int, turns: float = 0.15) -> list[Tensor]:
    """Poses on an arc at the back of the room that point at the place of the box and beyond."""
    poses = []
    for step in range(count):
        angle = 2 * math.pi * turns * (step / max(count - 1, 1) - 0.5)
        eye = (1.2 - 2.6 * math.cos(angle), 2.0 * math.sin(angle), 1.3 + 0.1 * math.sin(7 * angle))
        poses.append(camera(eye, (1.2 + 0.3 * math.sin(3 * angle), 0.0, 0.5)))
    return poses


def distance_to_room(points: np.ndarray) -> np.ndarray:
    """(n,) metres to the nearest wall, floor or ceiling."""
    return np.abs(np.array(HALF) - np.abs(points - (0, 0, HALF[2]))).min(axis=1)


def distance_to_box(points: np.ndarray, half=BOX[0], centre=BOX[1]) -> np.ndarray:
    """(n,) metres to the surface of a box, from outside or inside."""
    q = np.abs(points - centre) - half
    return np.abs(np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0))


def distance_to_pole(points: np.ndarray) -> np.ndarray:
    """(n,) metres to the side of the pole."""
    return np.abs(np.linalg.norm(points[:, :2] - POLE[1][:2], axis=1) - POLE[0][0])
