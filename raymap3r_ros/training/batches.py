"""Training batches: images of a source and the targets of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.geometry.cameras import assemble_pose, pixel_rays
from raymap3r_ros.synthetic import Rendering
from raymap3r_ros.training.sources import Source, concatenate

_FAR = 0.5  # share of the windows that begin with the farthest frame


@dataclass(frozen=True)
class Batch:
    """B sequences of T frames. Metres. Points of unknown depth are 0."""

    image: Tensor  # (B, T, 3, H, W) in -1..1
    points: Tensor  # (B, T, H, W, 3) in the camera frame
    static_points: Tensor  # (B, T, H, W, 3) of the static world
    moving: Tensor  # (B, T, H, W) bool
    world_pose: Tensor  # (B, T, 4, 4) c2w in the world of the source
    intrinsics: Tensor  # (B, 3, 3) pixels

    @property
    def pose(self) -> Tensor:
        """c2w (B, T, 4, 4) in the frame of each sequence's first camera."""
        rotation, position = self.world_pose[:, :1, :3, :3].mT, self.world_pose[..., :3, 3:]
        return assemble_pose(
            rotation @ self.world_pose[..., :3, :3], (rotation @ (position - position[:, :1]))[..., 0]
        )


def image_size(long_edge: int, patch: int) -> tuple[int, int]:
    """H, W of 4:3 images with this long edge, rounded down to whole patches."""
    return long_edge * 3 // 4 // patch * patch, long_edge // patch * patch


def make_batch(
    source: Source, seed: int, count: int, length: int, size: tuple[int, int], device: torch.device
) -> Batch:
    """All frames that the source returns for this seed, in order."""
    return to_batch(source(seed, count, length, size, device))


def make_pool(
    source: Source, seeds: list[int], count: int, length: int, size: tuple[int, int], device: torch.device
) -> Rendering:
    """`count` sequences of each seed, to draw batches from. They are made in turn, which limits the memory needed."""
    return concatenate([source(seed, count, length, size, device) for seed in seeds])


def draw(pool: Rendering, count: int, length: int, generator: torch.Generator) -> Batch:
    """`count` windows of `length` consecutive frames from a pool, each in random order. The generator is on the CPU.

    No sequence is drawn again before all others have been drawn. Half of the windows begin with the frame that is
    farthest from the others: a camera gets farther away from its first place than it does within a window.
    """
    sequences, frames = pool.depth.shape[:2]
    rows = torch.randperm(max(sequences, count), generator=generator)[:count, None] % sequences
    begin = torch.randint(frames - length + 1, (count, 1), generator=generator)
    position = pool.pose[rows, begin + torch.arange(length)][..., :3, 3].cpu()
    farthest = (position - position.mean(dim=1, keepdim=True)).norm(dim=-1).argmax(dim=1, keepdim=True)
    order = torch.rand(count, length, generator=generator)
    first = torch.where(torch.rand(count, 1, generator=generator) < _FAR, -1.0, order.gather(1, farthest))
    columns = begin + order.scatter(1, farthest, first).argsort(dim=1)
    rows, columns = rows.to(pool.depth.device), columns.to(pool.depth.device)
    chosen = {
        name: getattr(pool, name)[rows, columns] for name in ("image", "depth", "static_depth", "moving", "pose")
    }
    return to_batch(Rendering(**chosen, intrinsics=pool.intrinsics[rows[:, 0]]))


def to_batch(seen: Rendering) -> Batch:
    """The input and the targets of the network for all frames of a rendering."""
    # One plane per coordinate, because the losses compute with whole planes.
    rays = pixel_rays(seen.intrinsics, (seen.depth.shape[-2], seen.depth.shape[-1])).movedim(-1, 1)[:, None]
    return Batch(
        image=(seen.image.movedim(-1, 2).float() / 255 - 0.5) / 0.5,
        points=(rays * seen.depth[:, :, None]).movedim(2, -1),
        static_points=(rays * seen.static_depth[:, :, None]).movedim(2, -1),
        moving=seen.moving,
        world_pose=seen.pose,
        intrinsics=seen.intrinsics,
    )
