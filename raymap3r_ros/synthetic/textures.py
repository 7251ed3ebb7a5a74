"""Procedural textures: solid patterns in the coordinates of an object, with one distribution for a whole world.

Moving and static objects draw from the same `random_materials`, so that colour or contrast does not reveal motion.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = 5  # clouds, stripes, checks, blots, patches
WAVES = 4
# A material is a row: kind weights, wave vectors (1/m), phases, three colours, patch size (m).
_SPLIT = (KINDS, WAVES * 3, WAVES, 9, 1)
MATERIAL_WIDTH = sum(_SPLIT)


def random_materials(
    generator: torch.Generator, shape: tuple[int, ...], coarseness: Tensor, colours: Tensor | None = None
) -> Tensor:
    """Materials (*shape, MATERIAL_WIDTH); `coarseness`, broadcast to shape, multiplies every length.

    `colours`: three RGB colours (*shape, 9) in 0..1 for each material; random ones by default.
    """
    coarseness = coarseness.expand(shape)[..., None]
    kind = torch.randint(KINDS, shape, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(*shape, WAVES, 3, generator=generator), dim=-1)
    # Wavelengths of 0.3 to 2 m, which are visible in a small image of a room.
    wavelength = 0.3 * (2 / 0.3) ** torch.rand(*shape, WAVES, 1, generator=generator) * coarseness[..., None]
    phase = torch.rand(*shape, WAVES, generator=generator) * 2 * math.pi
    if colours is None:
        colours = 0.05 + 0.9 * torch.rand(*shape, 9, generator=generator)
    patch = (0.2 + 0.5 * torch.rand(*shape, 1, generator=generator)) * coarseness
    waves = (2 * math.pi / wavelength * direction).flatten(-2)
    return torch.cat((torch.nn.functional.one_hot(kind, KINDS).float(), waves, phase, colours, patch), dim=-1)


def colour(materials: Tensor, position: Tensor, footprint: Tensor) -> Tensor:
    """Colour (..., 3) in 0..1 of materials (..., MATERIAL_WIDTH) at positions (..., 3) in metres.

    `footprint` (...) is the width of a pixel there in metres; finer detail is faded out.
    """
    weights, waves, phases, colours, patch = materials.split(_SPLIT, dim=-1)
    waves, colours = waves.unflatten(-1, (WAVES, 3)), colours.unflatten(-1, (3, 3))
    fade = torch.exp(-0.15 * (waves.norm(dim=-1) * footprint[..., None]).square())
    s = ((waves * position[..., None, :]).sum(-1) + phases).sin() * fade
    cell = (position / patch).floor()
    hashed = [
        ((cell * cell.new_tensor(numbers)).sum(-1).sin() * 437.585).frac().abs()
        for numbers in ((12.9, 78.2, 37.7), (26.6, 14.3, 91.1))
    ]
    sharp = 4.0
    first = torch.stack(
        (
            0.5 + 0.5 * (0.8 * s.sum(-1)).tanh(),
            0.5 + 0.5 * (sharp * s[..., 0]).tanh(),
            0.5 + 0.5 * (sharp * s[..., 0] * s[..., 1]).tanh(),
            0.5 + 0.5 * (sharp * (s[..., 0] + s[..., 1] + s[..., 2] - 0.7)).tanh(),
            hashed[0],
        ),
        dim=-1,
    )
    second = torch.stack(
        (
            0.5 + 0.5 * (s[..., 2] - s[..., 3]).tanh(),
            0.5 + 0.5 * s[..., 2],
            0.5 + 0.5 * s[..., 3],
            0.5 + 0.5 * (sharp * s[..., 3]).tanh(),
            hashed[1],
        ),
        dim=-1,
    )
    first, second = ((weights * value).sum(-1, keepdim=True) for value in (first, second))
    mixed = torch.lerp(colours[..., 0, :], colours[..., 1, :], first)
    return torch.lerp(mixed, colours[..., 2, :], 0.5 * second)
