"""Reset alignment: similarity transforms between segments (arXiv 2603.20588)."""

from __future__ import annotations

import torch
from torch import Tensor

from raymap3r_ros.geometry.similarity import Similarity, weighted_umeyama
from raymap3r_ros.geometry.weighted_median import weighted_median
from raymap3r_ros.streaming.method import METHOD, Method


def align_segments(
    kind: str,
    after: Tensor,
    before: Tensor,
    weight: Tensor,
    after_pose: Tensor,
    before_pose: Tensor,
    last_scale: Tensor,
    method: Method = METHOD,
) -> tuple[Similarity, Tensor]:
    """The transform from a new segment's world to the stream's, from one frame that is in both.

    `after` and `before` are the same pixels' points (B, N, 3) in the new segment's and the stream's world, with
    weights (B, N). The poses (B, 4, 4) are that frame's camera in either world, and `last_scale` (B,) is the scale of
    the transform before. `kind` is `robust` (`robust_alignment`) or `published`, the weighted similarity fit of the
    most confident points.

    Returns the transform and its residual (B,): the weighted median of the points' distance after it, relative to
    their distance from the camera. Without usable points, the transform has the last scale and maps one pose to the
    other, and the residual is NaN.
    """
    usable = torch.isfinite(after).all(-1) & torch.isfinite(before).all(-1) & torch.isfinite(weight)
    weight = torch.where(usable, weight, 0.0)
    after, before = (torch.where(usable[..., None], cloud, 0.0) for cloud in (after, before))
    transform = robust_alignment(after, before, weight, after_pose, before_pose, last_scale)
    if kind == "published":
        keep = weight.topk(min(method.alignment_points, weight.shape[1]), dim=1).indices
        weight = weight.gather(1, keep)
        after, before = (cloud.gather(1, keep[..., None].expand(-1, -1, 3)) for cloud in (after, before))
        fit = weighted_umeyama(after, before, weight)
        good = torch.isfinite(fit.scale) & torch.isfinite(fit.translation).all(1)
        transform = Similarity(
            torch.where(good, fit.scale, transform.scale),
            torch.where(good[:, None, None], fit.rotation, transform.rotation),
            torch.where(good[:, None], fit.translation, transform.translation),
        )
    distance = (before - before_pose[:, None, :3, 3]).norm(dim=-1).clamp_min(1e-6)
    return transform, weighted_median((transform.apply(after) - before).norm(dim=-1) / distance, weight)


def robust_alignment(
    after: Tensor, before: Tensor, weight: Tensor, after_pose: Tensor, before_pose: Tensor, last_scale: Tensor
) -> Similarity:
    """Our alignment (`robust`); arguments as of `align_segments`, all finite.

    The camera's two poses determine rotation and translation up to the scale. The points add nothing to that: they
    are given relative to the same poses, and depth errors that differ between the two sides would only rotate and
    shift the world. The scale is the weighted median over pixels of the ratio of their distances from the camera. A
    scale that is fitted together with the rest depends on the spread of the clouds, shrinks with their noise, and
    would shrink further at every reset.
    """
    after_distance, distance = (
        (cloud - pose[:, None, :3, 3]).norm(dim=-1).clamp_min(1e-6)
        for cloud, pose in ((after, after_pose), (before, before_pose))
    )
    scale = weighted_median(distance / after_distance, weight)
    scale = torch.where(torch.isfinite(scale), scale, last_scale)
    rotation = before_pose[:, :3, :3] @ after_pose[:, :3, :3].mT
    translation = before_pose[:, :3, 3] - scale[:, None] * (rotation @ after_pose[:, :3, 3:])[..., 0]
    return Similarity(scale, rotation, translation)
