"""Random changes of recorded images: the camera's place and view, and colours, exposure, blur and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import assemble_pose

_PLAIN = 0.25  # share of the sequences with the recorded views
_ZOOM = 1.6  # largest factor on the focal length
_ROLL = math.radians(75)  # largest angle about the optical axis
_MOVED = 0.08  # metres along each axis, at most
_UNBLURRED = 0.5  # share of the sequences


def random_views(
    generator: torch.Generator, camera: Tensor, count: int, length: int, *, augmented: bool
) -> tuple[Tensor, Tensor]:
    """Cameras (B, 4) and motions (B, F, 4, 4) for `Recording.look`.

    A narrower camera with the same principal point sees random parts of what was recorded, from places nearby: the
    motions between the frames of a sequence are others than those of the recording, in which the place of a camera and
    its direction belong together.
    """
    still = torch.eye(4).repeat(count, length, 1, 1)
    if not augmented:
        return camera.expand(count, 4), still
    changed = torch.rand(count, 1, generator=generator) >= _PLAIN
    zoom = 1 + (_ZOOM - 1) * torch.rand(count, 1, generator=generator) * changed
    amount = 2 * torch.rand(count, length, 6, generator=generator) - 1
    amount = amount * torch.rand(count, 1, 6, generator=generator) * changed[:, None]  # some sequences hardly move
    # Half of the recorded field of view, less half of the narrower one.
    slack = torch.atan(0.5 / camera[:2]) - torch.atan(0.5 / (camera[:2] * zoom))
    yaw, pitch = (amount[..., :2] * slack[:, None]).unbind(-1)
    turn = _turn(yaw, 0, 2) @ _turn(pitch, 1, 2) @ _turn(_ROLL * amount[..., 2], 0, 1)
    motion = assemble_pose(turn, _MOVED * amount[..., 3:])
    return torch.cat((camera[:2] * zoom, (camera[2:] - 0.5) * zoom + 0.5), dim=1), motion


def _turn(angle: Tensor, one: int, other: int) -> Tensor:
    """Rotations (..., 3, 3) in the plane of two axes."""
    matrix = torch.eye(3).repeat(*angle.shape, 1, 1)
    cos, sin = angle.cos(), angle.sin()
    matrix[..., one, one], matrix[..., one, other] = cos, -sin
    matrix[..., other, one], matrix[..., other, other] = sin, cos
    return matrix


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
