"""Similarity transforms, and their least-squares fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.geometry.cameras import assemble_pose, transform_points


@dataclass
class Similarity:
    """x -> scale * rotation x + translation, for B streams."""

    scale: Tensor  # (B,)
    rotation: Tensor  # (B, 3, 3)
    translation: Tensor  # (B, 3)

    @classmethod
    def identity(cls, batch: int, device: torch.device) -> Similarity:
        """The identity transform."""
        return cls(
            torch.ones(batch, device=device),
            torch.eye(3, device=device).repeat(batch, 1, 1),
            torch.zeros(batch, 3, device=device),
        )

    def apply(self, points: Tensor) -> Tensor:
        """Points (B, ..., 3)."""
        scale = self.scale.view(-1, *[1] * (points.ndim - 1))
        return transform_points(assemble_pose(self.rotation, self.translation), points * scale)

    def apply_to_pose(self, pose: Tensor) -> Tensor:
        """A camera (B, 4, 4) of the source world, in the target world: (R R_c, s R t_c + t)."""
        return assemble_pose(self.rotation @ pose[:, :3, :3], self.apply(pose[:, None, :3, 3])[:, 0])

    def invert_on_pose(self, pose: Tensor) -> Tensor:
        """A camera (B, 4, 4) of the target world, in the source world."""
        rotation = self.rotation.mT @ pose[:, :3, :3]
        offset = (pose[:, :3, 3] - self.translation)[:, None] @ self.rotation
        return assemble_pose(rotation, offset[:, 0] / self.scale[:, None])


def weighted_umeyama(source: Tensor, target: Tensor, weight: Tensor, *, reflect_scale: bool = True) -> Similarity:
    """The similarity from source to target (B, N, 3) with the least weighted squared error, computed in float64.

    Umeyama 1991, with `weight` (B, N). If the clouds mirror each other, the best proper rotation has a smaller scale;
    the published code keeps the scale of the reflection, as does `reflect_scale=False`. The result is NaN if no point
    has a weight.
    """
    source, target, weight = source.double(), target.double(), weight.double()
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    source_mean, target_mean = (weight * source).sum(1), (weight * target).sum(1)
    a, b = source - source_mean[:, None], target - target_mean[:, None]
    # Without finite points the decomposition would raise. The means are NaN then, and so is the result.
    u, singular, vt = torch.linalg.svd(((weight * b).mT @ a).nan_to_num())
    sign = torch.ones_like(singular)
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = u * sign[:, None] @ vt
    factor = (singular * (sign if reflect_scale else 1)).sum(1) / (weight * a.square()).sum((1, 2))
    translation = target_mean - factor[:, None] * (rotation @ source_mean[..., None])[..., 0]
    return Similarity(factor.float(), rotation.float(), translation.float())
