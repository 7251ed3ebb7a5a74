"""Similarity transforms and their least-squares fit."""

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
    """Return the similarity from source (B, N, 3) to target with the least weighted squared error, in float32.

    See `fit_similarity`, which computes it in float64.
    """
    fit = fit_similarity(source.double(), target.double(), weight.double(), reflect_scale=reflect_scale)
    return Similarity(fit.scale.float(), fit.rotation.float(), fit.translation.float())


def fit_similarity(source: Tensor, target: Tensor, weight: Tensor, *, reflect_scale: bool = True) -> Similarity:
    """Return the similarity from source (B, N, 3) to target with the least weighted squared error (Umeyama 1991).

    `weight` (B, N) is at least 0. If the clouds are mirror images, the best proper rotation has a smaller scale;
    with `reflect_scale=False` it is the scale of the best reflection, as in the published code. NaN if there is
    nothing to fit.
    """
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    source_mean, target_mean = (weight * source).sum(1), (weight * target).sum(1)
    a, b = source - source_mean[:, None], target - target_mean[:, None]
    # Without finite points the decomposition would raise; the means are NaN then, and so is the result.
    u, singular, vt = torch.linalg.svd(((weight * b).mT @ a).nan_to_num())
    sign = torch.ones_like(singular)
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = u * sign[:, None] @ vt
    factor = (singular * (sign if reflect_scale else 1)).sum(1) / (weight * a.square()).sum((1, 2))
    translation = target_mean - factor[:, None] * (rotation @ source_mean[..., None])[..., 0]
    return Similarity(factor, rotation, translation)
