"""Random changes of recorded images: the camera's view, and colours, exposure, blur and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN = 0.25  # share of the sequences with the recorded view
_ZOOM = 1.3  # largest factor on the focal length
_ROLL = math.radians(6)  # largest angle about the optical axis
_UNBLURRED = 0.5  # share of the sequences


def random_views(
    generator: torch.Generator, camera: Tensor, count: int, length: int, *, augmented: bool
) -> tuple[Tensor, Tensor]:
    """Cameras (B, 4) and angles of roll (B, F) for `Recording.look`: crops of the recorded images, and turns."""
    if not augmented:
        return camera.expand(count, 4), torch.zeros(count, length)
    changed = torch.rand(count, 1, generator=generator) >= _PLAIN
    zoom = 1 + (_ZOOM - 1) * torch.rand(count, 1, generator=generator) * changed
    corner = (zoom - 1) * torch.rand(count, 2, generator=generator)  # of the crop, as a share of its size
    roll = _ROLL * (2 * torch.rand(count, length, generator=generator) - 1) * changed
    return torch.cat((camera[:2] * zoom, camera[2:] * zoom - corner), dim=1), roll


def change_colours(generator: torch.Generator, image: Tensor) -> Tensor:
    """Images (B, F, 3, H, W) in 0..1 with another exposure, white balance and contrast, and with blur and noise."""
    count, length = image.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand(count, *shape, generator=generator)
        return values[(...,) + (None,) * (4 - len(shape))]

    gain = uniform(-0.25, 0.25, 1) + uniform(-0.06, 0.06, length) + uniform(-0.06, 0.06, 1, 3)
    image = (image * gain.exp()).clamp(1e-3, 1) ** uniform(0.85, 1.2)
    image = blur(image, uniform(0.0, 0.8) * (uniform(0, 1) > _UNBLURRED))
    noise = torch.randn(image.shape, generator=generator) * uniform(0.0, 0.02)
    return (image + noise).clamp(0, 1)


def blur(image: Tensor, amount: Tensor) -> Tensor:
    """Images (B, F, C, H, W) mixed with the mean of 3 x 3 pixels; `amount` 0..1 is broadcast to them."""
    padded = F.pad(image.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    mean = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return torch.lerp(image, mean.view_as(image), amount)
