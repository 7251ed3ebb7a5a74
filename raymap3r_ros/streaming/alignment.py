"""Reset alignment: similarity transforms between segments (arXiv 2603.20588)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras, mean_rotation, pose_matrix, quaternion, rotation_angle
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
    after, before, weight = _usable(after, before, weight)
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


def align_keyframes(
    after: Tensor,
    before: Tensor,
    weight: Tensor,
    after_pose: Tensor,
    before_pose: Tensor,
    last_scale: Tensor,
    method: Method = METHOD,
) -> tuple[Similarity, Tensor]:
    """The transform from a new segment's world to the stream's, from K frames that are in both.

    `after` and `before` (B, K, P, 3) are the same points in the cameras' frames, in metres of the segment and of the
    stream, with weights (B, K, P). The poses (B, K, 4, 4) are those cameras in either world. A frame without any
    weight takes no part.

    The scale is the weighted median of the ratios of distances, see `robust_alignment`. Rotation and translation are
    means over the frames, in which the weight falls with the residual (Cauchy). Residuals are relative to their
    median, so that agreeing frames outvote the others however large the disagreement is.

    Returns the transform and its residual, as `align_segments`.
    """
    after, before, weight = _usable(after, before, weight)
    after_distance, distance = (points.norm(dim=-1).clamp_min(1e-6) for points in (after, before))
    flat = weight.flatten(1)
    scale = weighted_median((distance / after_distance).flatten(1), flat)
    scale = torch.where(torch.isfinite(scale), scale, last_scale)
    # A frame without points still has a pose, and the current frame comes last: alone, it determines the transform.
    present = (flat.view_as(weight).amax(2) > 0).float()
    present = torch.cat((present[:, :-1], torch.ones_like(present[:, -1:])), dim=1)
    turns = quaternion(before_pose[..., :3, :3] @ after_pose[..., :3, :3].mT)
    typical = weighted_median(distance.flatten(1), flat).nan_to_num(1.0)
    share = present
    for _ in range(method.alignment_rounds):
        turn = mean_rotation(turns, share)
        rotation = pose_matrix(F.pad(turn, (3, 0)))[:, :3, :3]
        shifts = before_pose[..., :3, 3] - scale[:, None, None] * (after_pose[..., :3, 3] @ rotation.mT)
        translation = (share[..., None] * shifts).sum(1) / share.sum(1, keepdim=True)
        turned = rotation_angle(turns, turn[:, None])
        shifted = (shifts - translation[:, None]).norm(dim=-1)
        turned = _relative(turned, present, torch.full_like(typical, method.alignment_rotation_floor))
        shifted = _relative(shifted, present, method.alignment_distance_floor * typical)
        share = present / (1 + (turned.square() + shifted.square()) / method.alignment_outlier**2)
    transform = Similarity(scale, rotation, translation)
    placed = transform.apply(from_cameras(after_pose, after))
    error = (placed - from_cameras(before_pose, before)).norm(dim=-1) / distance
    return transform, weighted_median(error.flatten(1), flat)


def _usable(after: Tensor, before: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points (..., 3) in both worlds and their weights (...), with zeros where any of them is not finite."""
    usable = torch.isfinite(after).all(-1) & torch.isfinite(before).all(-1) & torch.isfinite(weight)
    after, before = (torch.where(usable[..., None], points, 0.0) for points in (after, before))
    return after, before, torch.where(usable, weight, 0.0)


def _relative(residual: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
    """Residuals (B, K) of at least 0 in units of their weighted median, or of its smallest value `floor` (B,)."""
    return residual / torch.maximum(weighted_median(residual, weight), floor)[:, None]


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
