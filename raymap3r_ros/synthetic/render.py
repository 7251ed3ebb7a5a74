"""Images of random worlds with exact depth, motion and poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raymap3r_ros.synthetic import raycast
from raymap3r_ros.synthetic.raycast import Solids
from raymap3r_ros.synthetic.textures import colour
from raymap3r_ros.synthetic.worlds import Scenes, camera_poses, moving_solids, static_solids

_ROOM_FACES = 6


@dataclass(frozen=True)
class Rendering:
    """B sequences of F frames of H x W pixels. World frame: z up; camera frame: optical; metres."""

    image: Tensor  # (B, F, H, W, 3) uint8 RGB
    depth: Tensor  # (B, F, H, W) along z
    static_depth: Tensor  # (B, F, H, W) of the world without movable objects
    moving: Tensor  # (B, F, H, W) bool: moving at this time
    pose: Tensor  # (B, F, 4, 4) c2w
    intrinsics: Tensor  # (B, 3, 3) pixels, pixel centres integer


def intrinsics_of(scenes: Scenes, size: tuple[int, int]) -> Tensor:
    """Pinhole matrices (B, 3, 3) of H x W pixels."""
    height, width = size
    matrix = torch.zeros(len(scenes.room), 3, 3, device=scenes.room.device)
    focal = width / 2 / (scenes.field_of_view / 2).tan()
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = width / 2, height / 2, 1
    return matrix


@torch.no_grad()
def render(
    scenes: Scenes, time: Tensor, size: tuple[int, int], noise: torch.Generator, *, with_images: bool = True
) -> Rendering:
    """Render scenes at times (B, F) on their device; `noise` is a generator of that device.

    Without `with_images` only the geometry is computed and the images are black.
    """
    height, width = size
    pose, matrix = camera_poses(scenes, time), intrinsics_of(scenes, size)
    rows, columns = torch.meshgrid(
        torch.arange(height, device=time.device), torch.arange(width, device=time.device), indexing="ij"
    )
    pixels = torch.stack((columns, rows), dim=-1).flatten(0, 1) - torch.tensor(
        (width / 2, height / 2), device=time.device
    )
    rays = torch.cat((pixels / matrix[:, None, :1, 0], pixels.new_ones(len(matrix), len(pixels), 1)), dim=-1)
    direction = rays[:, None] @ pose[..., :3, :3].mT  # (B, F, P, 3), depth 1
    origin = pose[..., :3, 3]

    static = static_solids(scenes)
    moving, active = moving_solids(scenes, time)
    static_depth, static_group, static_index = _nearest(static, origin, direction)
    mover_depth, mover_group, mover_index = _nearest(moving, origin, direction, first_is_room=False)
    in_front = mover_depth < static_depth
    depth = torch.where(in_front, mover_depth, static_depth)
    group = torch.where(in_front, mover_group + len(static), static_group)
    index = torch.where(in_front, mover_index, static_index)
    moves = torch.zeros_like(in_front)
    for number, now in enumerate(active):
        here = in_front & (mover_group == number)
        moves |= here & now.gather(2, mover_index.clamp(max=now.shape[2] - 1))

    if with_images:
        image = _shade(scenes, static + moving, depth, group, index, origin, direction, matrix, time, noise)
    else:
        image = torch.zeros(*depth.shape, 3, dtype=torch.uint8, device=depth.device)

    def as_map(flat: Tensor) -> Tensor:
        return flat.unflatten(2, size)

    return Rendering(as_map(image), as_map(depth), as_map(static_depth), as_map(moves), pose, matrix)


def _nearest(
    groups: list[Solids], origin: Tensor, direction: Tensor, first_is_room: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, group and index in the group (B, F, P) of the first solid that each ray hits."""
    depth = torch.full_like(direction[..., 0], raycast.FAR)
    group, index = torch.zeros_like(depth, dtype=torch.long), torch.zeros_like(depth, dtype=torch.long)
    for number, solids in enumerate(groups):
        t, which = raycast.hit(solids, origin, direction, inside=first_is_room and number == 0)
        nearer = t < depth
        depth = torch.where(nearer, t, depth)
        group, index = torch.where(nearer, number, group), torch.where(nearer, which, index)
    return depth, group, index


def _shade(
    scenes: Scenes,
    groups: list[Solids],
    depth: Tensor,
    group: Tensor,
    index: Tensor,
    origin: Tensor,
    direction: Tensor,
    matrix: Tensor,
    time: Tensor,
    noise: torch.Generator,
) -> Tensor:
    """(B, F, P, 3) uint8."""
    frames = depth.shape[1]
    surface = _surface(groups, depth, group, index, origin, direction, has_room=True)
    number = surface.number
    material = torch.where(number == 0, surface.face, number + _ROOM_FACES - 1)
    materials = scenes.materials[:, None].expand(-1, frames, -1, -1).gather(
        2, material[..., None].expand(-1, -1, -1, scenes.materials.shape[-1])
    )  # fmt: skip
    albedo = colour(materials, surface.position, depth / matrix[:, None, None, 0, 0])
    shade = _shading(surface.normal, scenes.light, scenes.brightness)
    gain = scenes.exposure.at(time).exp()
    value = albedo * (shade * gain[..., None])[..., None]
    grain = torch.randn(value.shape, generator=noise, device=value.device)
    value = value + scenes.noise[:, None, None, None] * grain
    return (value.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def render_solids(
    solids: list[Solids],
    light: Tensor,
    brightness: Tensor,
    pose: Tensor,
    rays: Tensor,
    albedo: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Depth (B, F, H, W), `raycast.FAR` without a solid, and colour (B, F, H, W, 3) of solids without surroundings.

    Cameras: c2w `pose` (B, F, 4, 4) and `rays` (B, H, W, 3) with z = 1. Lights (B, 2, 3) and brightness (B, 3) as in
    `Scenes`. `albedo` returns colours (P, 3) from sequence and solid (P, 2), position on the solid (P, 3) in metres,
    and depth (P,), of the P pixels that show a solid.
    """
    size = rays.shape[1:3]
    direction = rays.flatten(1, 2)[:, None] @ pose[..., :3, :3].mT
    origin = pose[..., :3, 3]
    depth, group, index = _nearest(solids, origin, direction, first_is_room=False)
    surface = _surface(solids, depth, group, index, origin, direction, has_room=False)
    hit = depth < raycast.FAR
    sequence = torch.arange(len(depth), device=depth.device)[:, None, None].expand(depth.shape)
    which = torch.stack((sequence[hit], surface.number[hit]), dim=-1)
    value = torch.zeros_like(direction)
    shade = _shading(surface.normal, light, brightness)
    value[hit] = albedo(which, surface.position[hit], depth[hit]) * shade[hit][:, None]
    return depth.unflatten(2, size), value.unflatten(2, size)


class _Surface(NamedTuple):
    """What P rays hit; the number counts the solids of all groups."""

    number: Tensor  # (B, F, P)
    face: Tensor  # (B, F, P) of a box, 0 elsewhere
    position: Tensor  # (B, F, P, 3) for the texture, in metres
    normal: Tensor  # (B, F, P, 3) in the world


def _surface(
    groups: list[Solids],
    depth: Tensor,
    group: Tensor,
    index: Tensor,
    origin: Tensor,
    direction: Tensor,
    *,
    has_room: bool,
) -> _Surface:
    """The surface at depth (B, F, P) of solid `index` in `group`; with `has_room` the first solid is a room."""
    batch, frames, _ = depth.shape
    point = origin[:, :, None] + depth[..., None] * direction
    table = _solid_table(groups, batch, frames)
    counts = [solids.half.shape[1] for solids in groups]
    first = torch.tensor([sum(counts[:number]) for number in range(len(counts))], device=depth.device)
    number = first[group] + index
    rows = table.gather(2, number[..., None].expand(-1, -1, -1, table.shape[-1]))
    rotation, centre, half = rows[..., :9].unflatten(-1, (3, 3)), rows[..., 9:12], rows[..., 12:]
    own = ((point - centre)[..., None, :] @ rotation)[..., 0, :]  # metres along the axes of the solid
    unit = own / half.clamp_min(1e-6)
    outward = torch.zeros_like(unit)
    face = torch.zeros_like(number)
    for shape in {solids.shape for solids in groups}:
        of_shape = torch.isin(
            group, torch.tensor([i for i, g in enumerate(groups) if g.shape == shape], device=group.device)
        )
        shape_normal, shape_face = raycast.normal(shape, unit)
        outward = torch.where(of_shape[..., None], shape_normal, outward)
        face = torch.where(of_shape, shape_face, face)
    # A room is seen from inside.
    inwards = torch.where(number[..., None] == 0, -1.0, 1.0) if has_room else 1.0
    outward = torch.nn.functional.normalize(outward / half.clamp_min(1e-6), dim=-1) * inwards
    normal = (rotation @ outward[..., None])[..., 0]
    # Slightly below the surface, so that patches do not flicker where it coincides with their border; faces differ.
    position = own - 0.013 * outward * inwards + 1.7 * face[..., None]
    return _Surface(number, face, position, normal)


def _shading(normal: Tensor, light: Tensor, brightness: Tensor) -> Tensor:
    """Brightness (B, F, P) of surfaces with these normals under the lights."""
    lit = (normal[..., None, :] * light[:, None, None]).sum(-1).clamp_min(0)
    bright = brightness[:, None, None]
    return bright[..., 0] + (bright[..., 1:] * lit).sum(-1)


def _solid_table(groups: list[Solids], batch: int, frames: int) -> Tensor:
    """(B, F, K, 15) rows of rotation, centre and half size of all solids."""
    return torch.cat(
        [
            torch.cat(
                (
                    solids.rotation.expand(batch, frames, -1, 3, 3).flatten(-2),
                    solids.centre.expand(batch, frames, -1, 3),
                    solids.half[:, None].expand(-1, frames, -1, 3),
                ),
                dim=-1,
            )
            for solids in groups
        ],
        dim=2,
    )
