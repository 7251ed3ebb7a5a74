"""Training batches: sequences and the targets of the network; rendered ones, or those of a recording."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.geometry.cameras import assemble_pose, back_project
from raymap3r_ros.synthetic import Recipe, random_scenes, render

_LONGEST_TIME = 60.0  # seconds; latest start of a sequence
_STRIDES = (0.1, 8.0)  # seconds between frames


@dataclass(frozen=True)
class Batch:
    """B sequences of T frames. Metres."""

    image: Tensor  # (B, T, 3, H, W) in -1..1
    points: Tensor  # (B, T, H, W, 3) in the camera frame; z not above 0: unknown
    static_points: Tensor  # (B, T, H, W, 3) of the static world; z not above 0: unknown
    moving: Tensor  # (B, T, H, W) bool
    world_pose: Tensor  # (B, T, 4, 4) c2w in the world of the scene
    intrinsics: Tensor  # (B, 3, 3) pixels

    @property
    def known(self) -> Tensor:
        """Pixels (B, T, H, W) with a known depth; the points of the others are not used."""
        return self.points[..., 2] > 0

    @property
    def pose(self) -> Tensor:
        """c2w (B, T, 4, 4) in the frame of each sequence's first camera."""
        rotation, position = self.world_pose[:, :1, :3, :3].mT, self.world_pose[..., :3, 3:]
        return assemble_pose(
            rotation @ self.world_pose[..., :3, :3], (rotation @ (position - position[:, :1]))[..., 0]
        )

    def in_order(self, order: Tensor) -> Batch:
        """The same frames in another order (T,), and therefore with another first camera."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: value if name == "intrinsics" else value[:, order] for name, value in columns.items()})


def image_size(long_edge: int, patch: int) -> tuple[int, int]:
    """H, W of 4:3 images with this long edge, rounded down to whole patches."""
    return long_edge * 3 // 4 // patch * patch, long_edge // patch * patch


def make_batch(world: str, seed: int, count: int, length: int, size: tuple[int, int], device: torch.device) -> Batch:
    """Sequences that depend only on the seed (below `EVALUATION_SEEDS`), for one device."""
    generator = torch.Generator().manual_seed(seed)
    # Half of the sequences have few movers or none, the other half has many.
    recipes = (Recipe(world, presence=0.35), Recipe(world, presence=0.8, follow=0.7, size=1.4, nearness=(0.8, 2.2)))
    parts = []
    for recipe, share in zip(recipes, (count - count // 2, count // 2), strict=True):
        if share:
            parts.append(_render_part(recipe, generator, share, length, size, device))
    columns = [torch.cat(column) for column in zip(*(dataclasses.astuple(part) for part in parts), strict=True)]
    return Batch(*columns)


def _render_part(
    recipe: Recipe, generator: torch.Generator, count: int, length: int, size: tuple[int, int], device: torch.device
) -> Batch:
    scenes = random_scenes(generator, count, recipe)
    begin = torch.rand(count, 1, generator=generator) * _LONGEST_TIME
    low, high = _STRIDES
    stride = low * (high / low) ** torch.rand(count, 1, generator=generator)
    time = begin + stride * torch.arange(length)
    noise = torch.Generator(device).manual_seed(int(torch.randint(1 << 40, (), generator=generator)))
    seen = render(scenes.to(device), time.to(device), size, noise)
    return Batch(
        image=(seen.image.movedim(-1, 2).float() / 255 - 0.5) / 0.5,
        points=back_project(seen.depth, seen.intrinsics),
        static_points=back_project(seen.static_depth, seen.intrinsics),
        moving=seen.moving,
        world_pose=seen.pose,
        intrinsics=seen.intrinsics,
    )
