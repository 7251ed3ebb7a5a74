"""Rendered movers in recorded images: placed in free space, hidden behind nearer surfaces, coloured like the place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import pixel_rays
from raymap3r_ros.synthetic.raycast import Solids
from raymap3r_ros.synthetic.render import render_solids
from raymap3r_ros.synthetic.textures import colour, random_materials
from raymap3r_ros.synthetic.worlds import MOVERS, SumOfSines, mover_solids, turn_z
from raymap3r_ros.training.augmentation import blur

_SOLIDS = 9  # of the movers: box, cylinder, ball, six parts of the figure
_FIGURE_HALF = (0.25, 0.25, 0.85)  # metres
_PHOTO = 0.6  # share of the solids with pieces of recorded images as texture
_NEAREST = 0.4  # metres between the camera and the surface of a mover; twice that for a figure
_LARGEST = 0.35  # half size of a mover relative to its distance, at most
_BEFORE = 0.1  # metres between a mover and the surface behind it
_PIXELS = 2_000_000  # rendered together; a limit of the memory


@dataclass(frozen=True)
class _Kind:
    """Distribution of the movers of a sequence."""

    presence: float  # probability of each mover
    follow: float  # probability that a mover stays in the image
    size: float  # factor on the sizes
    share: tuple[float, float]  # distance from the camera relative to the surface behind


# As in the rendered scenes: half of the sequences have few movers or none, the other half has many.
_FEW, _MANY = _Kind(0.35, 0.3, 1.0, (0.45, 0.9)), _Kind(0.8, 0.7, 1.4, (0.35, 0.75))


def add_movers(
    generator: torch.Generator,
    image: Tensor,
    depth: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    time: Tensor,
    photos: Tensor,
    floor: float,
    *,
    many: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, F, 3, H, W), depth (B, F, H, W) and motion (B, F, H, W) bool with movers.

    `depth` is negative where it is unknown; its magnitude is then a guess. Cameras: c2w `pose` (B, F, 4, 4) and
    `intrinsics` (B, 3, 3). `time` (B, F) in seconds. Movers get their colours from `photos` (N, 3, h, w) uint8.
    `floor`: height of the ground in the world. `many` (B,) bool: whether a sequence has many movers; by default, the
    second half of the sequences has.
    """
    count, size = len(image), tuple(image.shape[-2:])
    if many is None:
        many = torch.arange(count) >= count - count // 2
    half, centre, yaw = _place(generator, many, depth.abs(), pose, intrinsics, time, floor)
    clock = time + 10 * torch.rand(count, 1, generator=generator)
    solids = mover_solids(half, centre, turn_z(yaw), clock)
    lights = F.normalize(torch.randn(count, 2, 3, generator=generator) + torch.tensor((0.0, 0.0, 1.2)), dim=-1)
    brightness = torch.rand(count, 3, generator=generator) * torch.tensor((0.4, 0.4, 0.3))
    brightness = brightness + torch.tensor((0.6, 0.35, 0.15))
    rays, albedo = pixel_rays(intrinsics, size), _paint(generator, intrinsics[:, 0, 0], photos)
    step = max(1, _PIXELS // (count * size[0] * size[1]))
    parts = [slice(start, start + step) for start in range(0, image.shape[1], step)]
    seen = [render_solids(_of(solids, part), lights, brightness, pose[:, part], rays, albedo) for part in parts]
    found, value = (torch.cat(column, dim=1) for column in zip(*seen, strict=True))
    moving = found < depth.abs()
    value = value.movedim(-1, 2)
    noise = 0.01 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    value = value + noise * torch.randn(value.shape, generator=generator)
    return _blend(generator, image, value, moving), torch.where(moving, found, depth), moving


def _of(solids: list[Solids], frames: slice) -> list[Solids]:
    """The solids at some of their frames."""
    return [dataclasses.replace(s, centre=s.centre[:, frames], rotation=s.rotation[:, frames]) for s in solids]


def _blend(generator: torch.Generator, image: Tensor, value: Tensor, moving: Tensor) -> Tensor:
    """The image with the movers' colours `value`; their outlines are soft towards their inside."""
    mask = moving[:, :, None].float()
    amount = 0.5 * torch.rand(len(image), image.shape[1], 1, 1, 1, generator=generator)
    value = blur(value * mask, amount) / blur(mask, amount).clamp_min(1e-3)
    opacity = blur(mask, torch.tensor(0.8)) * mask
    return torch.lerp(image, value.clamp(0, 1), opacity)


def _place(
    generator: torch.Generator,
    many: Tensor,
    depth: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    time: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Half sizes (B, V, 3; 0 = absent), centres (B, F, V, 3) and yaw (B, F, V) of the movers in the world."""
    count, length, height, width = depth.shape

    def uniform(low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def chosen(few: float, much: float) -> Tensor:
        return torch.where(many, much, few)[:, None]

    half = torch.cat((uniform(0.06, 0.2, MOVERS, 2), uniform(0.08, 0.3, MOVERS, 1)), dim=-1)
    half[:, 1, 1] = half[:, 1, 0]
    half[:, 2] = half[:, 2, :1]
    half = half * chosen(_FEW.size, _MANY.size)[..., None]
    half[:, 3] = torch.tensor(_FIGURE_HALF) * uniform(0.88, 1.12, 1)
    half = half * (uniform(0, 1, MOVERS) < chosen(_FEW.presence, _MANY.presence))[..., None]

    # Where a mover is seen, as shares of the image, and how far, as a share of the distance of what is behind it.
    motion = SumOfSines(
        torch.tensor((0.25, 0.25, 0.15, 0.25, 0.25, 0.06, 1.0))[:, None] * uniform(0.3, 1.0, MOVERS, 7, 2),
        uniform(0.08, 0.5, MOVERS, 7, 2),
        uniform(0, 2 * math.pi, MOVERS, 7, 2),
    ).at(time[..., None, None].expand(-1, -1, MOVERS, 7))
    seen = (uniform(0.1, 0.9, 1, MOVERS, 2) + motion[..., :2]).clamp(0.02, 0.98)
    low, high = (chosen(few, much)[:, None] for few, much in zip(_FEW.share, _MANY.share, strict=True))
    share = (uniform(0, 1, 1, MOVERS) * (high - low) + low + motion[..., 2]).clamp(0.3, 0.95)
    block = max(1, height // 8)
    free = F.avg_pool2d(depth, block, ceil_mode=True)
    column, row = (seen[..., 0] * (width - 1)).long(), (seen[..., 1] * (height - 1)).long()
    behind = free.flatten(2).gather(2, row // block * free.shape[-1] + column // block)
    # Small movers where there is little space, as on a desk; figures always have the size of a person.
    limit = (_LARGEST * (share * behind).amin(1)).clamp_max(half.amax(-1)) / half.amax(-1).clamp_min(1e-6)
    half[:, :3] = half[:, :3] * limit[:, :3, None]
    radius = half.amax(-1)[:, None]
    radius[..., 3] = _FIGURE_HALF[0] + _NEAREST
    away = torch.maximum(torch.minimum(share * behind, behind - _BEFORE - radius), _NEAREST + radius)
    fx, cx, fy, cy = (intrinsics[:, i, j, None, None] for i, j in ((0, 0), (0, 2), (1, 1), (1, 2)))
    ray = torch.stack(((column - cx) / fx, (row - cy) / fy, torch.ones_like(away)), dim=-1)
    in_image = (ray * away[..., None]) @ pose[..., :3, :3].mT + pose[..., None, :3, 3]

    # A mover either stays in the image, or moves around the place where one frame shows it.
    frame = torch.randint(length, (count, 1, MOVERS, 1), generator=generator).expand(-1, -1, -1, 3)
    around = in_image.gather(1, frame) + motion[..., 3:6]
    follows = uniform(0, 1, MOVERS) < chosen(_FEW.follow, _MANY.follow)
    centre = torch.where(follows[:, None, :, None], in_image, around)
    standing = centre[:, :, 3]
    standing[..., 2] = floor + half[:, None, 3, 2]
    return half, centre, uniform(-math.pi, math.pi, 1, MOVERS) + motion[..., 6]


def _paint(generator: torch.Generator, focal: Tensor, photos: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function `albedo` of `render_solids`: patterns in recorded colours, or pieces of recorded images."""
    shape = len(focal), _SOLIDS
    total, _, height, width = photos.shape

    def random(limit: int, *more: int) -> Tensor:
        return torch.randint(limit, (*shape, *more), generator=generator)

    frame = random(total)
    colours = photos[frame[..., None], :, random(height, 3), random(width, 3)].flatten(-2).float() / 255
    materials = random_materials(generator, shape, torch.tensor(0.35), colours)
    photo = torch.rand(shape, generator=generator) < _PHOTO
    axes = F.normalize(torch.randn(*shape, 2, 3, generator=generator), dim=-1)
    axes = axes * width / (0.4 + 1.6 * torch.rand(*shape, 1, 1, generator=generator))  # pixels per metre
    corner = torch.stack((random(width), random(height)), dim=-1)

    def albedo(which: Tensor, position: Tensor, depth: Tensor) -> Tensor:
        sequence, solid = which.unbind(-1)
        pattern = colour(materials[sequence, solid], position, depth / focal[sequence])
        place = (axes[sequence, solid] @ position[..., None])[..., 0].floor().long() + corner[sequence, solid]
        # Mirrored at the borders of the image.
        column, row = (
            torch.minimum(place[:, axis] % (2 * size), (-1 - place[:, axis]) % (2 * size))
            for axis, size in enumerate((width, height))
        )
        piece = photos[frame[sequence, solid], :, row, column].float() / 255
        return torch.where(photo[sequence, solid][:, None], piece, pattern)

    return albedo
