"""Known camera poses: what a stream keeps of them, and the metric scale that follows from them.

The *frame of the given poses* is the coordinate system that a caller gives poses in. If the first frame of a world has
a pose, the world is that frame; otherwise it is the first camera, and poses are given relative to that. The network's
own world begins at the first camera of each segment. `StreamState.alignment` maps it to the stream's world and is
constant within a segment, so that all rays that the network sees in a segment belong to one world and one unit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.cameras import assemble_pose, assumed_intrinsics
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.streaming.method import METHOD, Method

MAX_DISTANCE = 1e4  # metres from the origin: float32 resolves a millimetre there
ROTATION_TOLERANCE = 1e-3  # largest element of R^T R - 1


@dataclass
class KnownPoses:
    """What B streams keep of their given poses."""

    anchored: Tensor  # (B,) bool: the world is the frame of the given poses, not the first camera
    intrinsics: Tensor  # (B, 3, 3) of the last frame, for the rays of the next one
    scale: Tensor  # (B,) factor from the segment's own metres to the stream's
    correction: Tensor  # (B, 4, 4) from the predicted to the given camera, both in the stream's world, when last given
    # Over the frames of the segment that had a pose, in the axes of the segment's world:
    count: Tensor  # (B,)
    given: Tensor  # (B, 3) mean position, metres of the stream
    predicted: Tensor  # (B, 3) mean position, the segment's own metres
    products: Tensor  # (B, 3) sums of the products of deviations from the means: given^2, given predicted, predicted^2

    @classmethod
    def empty(cls, batch: int, size: tuple[int, int], device: torch.device) -> KnownPoses:
        """Before the first frame, for images of `size` (H, W)."""
        points = [torch.zeros(batch, 3, device=device) for _ in range(3)]
        return cls(
            torch.zeros(batch, dtype=torch.bool, device=device),
            assumed_intrinsics(size, device).repeat(batch, 1, 1),
            torch.ones(batch, device=device),
            torch.eye(4, device=device).repeat(batch, 1, 1),
            torch.zeros(batch, device=device),
            *points,
        )


def anchor(known: KnownPoses, alignment: Similarity, fresh: Tensor, pose: Tensor) -> tuple[KnownPoses, Similarity]:
    """The state of a frame with given poses (B, 4, 4): a stream that is `fresh` (B,) gets their frame as its world."""
    begin = Similarity(torch.ones_like(alignment.scale), pose[:, :3, :3], pose[:, :3, 3])
    alignment = Similarity(
        torch.where(fresh, begin.scale, alignment.scale),
        torch.where(fresh[:, None, None], begin.rotation, alignment.rotation),
        torch.where(fresh[:, None], begin.translation, alignment.translation),
    )
    return dataclasses.replace(known, anchored=known.anchored | fresh), alignment


def observe(
    known: KnownPoses, alignment: Similarity, pose: Tensor, predicted: Tensor, method: Method = METHOD
) -> KnownPoses:
    """`known` after a frame with a given pose (B, 4, 4), `predicted` by the network in the segment's world.

    The segment's alignment determines the scale until the given positions determine another one. A trained network
    that is uncertain predicts the mean of what is possible: its positions p are too near to each other, and their
    errors correlate with the given positions g, but not with p. So s is the slope of the regression of g on p. Its
    relative variance is (1 - r^2) / (r^2 n), with the correlation r and the number n of independent errors, which is
    below the number of frames. The result is the mean of both logarithms, weighted by their variances; the positions
    count only if one motion explains most of the other one.
    """
    here = Similarity(torch.ones_like(alignment.scale), alignment.rotation, alignment.translation).invert_on_pose(pose)
    given, own = here[:, :3, 3], predicted[:, :3, 3]
    count = known.count + 1
    new_given, new_own = given - known.given, own - known.predicted
    products = torch.stack((new_given * new_given, new_given * new_own, new_own * new_own), dim=-1).sum(1)
    products = known.products + (1 - 1 / count)[:, None] * products
    square, mixed, own_square = products.unbind(1)
    correlation = (mixed.clamp_min(0).square() / (square * own_square).clamp_min(1e-20)).clamp(max=1)
    independent = count / method.known_pose_memory
    variance = (1 - correlation) / (correlation * independent).clamp_min(1e-9)
    weight = method.known_scale_spread**2 / (method.known_scale_spread**2 + variance)
    limit = method.known_scale_limit
    ratio = (mixed / own_square.clamp_min(1e-20) / alignment.scale).clamp(1 / limit, limit)
    return dataclasses.replace(
        known,
        scale=alignment.scale * torch.where(correlation > method.known_motion_share, ratio.pow(weight), 1.0),
        count=count,
        given=known.given + new_given / count[:, None],
        predicted=known.predicted + new_own / count[:, None],
        products=products,
    )


def correct(known: KnownPoses, pose: Tensor, predicted: Tensor) -> KnownPoses:
    """`known` with the correction from the `predicted` camera (B, 4, 4) to the given `pose`, in the stream's world."""
    rotation = pose[:, :3, :3] @ predicted[:, :3, :3].mT
    translation = pose[:, :3, 3] - (rotation @ predicted[:, :3, 3:])[..., 0]
    return dataclasses.replace(known, correction=assemble_pose(rotation, translation))


def begin_segment(known: KnownPoses, alignment: Similarity, *, aligned: bool) -> KnownPoses:
    """`known` at the start of a segment with this alignment; not `aligned`: the first camera is a new world."""
    return dataclasses.replace(
        known,
        anchored=known.anchored if aligned else torch.zeros_like(known.anchored),
        scale=alignment.scale,
        correction=torch.eye(4, device=known.scale.device).expand_as(known.correction),
        count=torch.zeros_like(known.count),
        given=torch.zeros_like(known.given),
        predicted=torch.zeros_like(known.predicted),
        products=torch.zeros_like(known.products),
    )


def checked_pose(pose: np.ndarray | Tensor, batch: int) -> np.ndarray:
    """A given pose as float64 (B, 4, 4). Raises InputError if it is not a camera-to-world pose."""
    matrix = np.asarray(pose.cpu() if isinstance(pose, Tensor) else pose, dtype=np.float64)
    if matrix.shape not in ((4, 4), (batch, 4, 4)):
        raise InputError(f"a pose has the shape {matrix.shape}; expected (4, 4) or ({batch}, 4, 4), camera to world")
    if not np.isfinite(matrix).all():
        raise InputError("a pose has numbers that are not finite; leave the pose out for frames without one")
    matrix = np.array(np.broadcast_to(matrix, (batch, 4, 4)))
    if (matrix[:, 3] != (0, 0, 0, 1)).any():
        raise InputError(f"the last row of a pose is {matrix[0, 3].tolist()}; expected [0, 0, 0, 1]")
    rotation = matrix[:, :3, :3]
    error = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or (np.linalg.det(rotation) < 0).any():
        raise InputError(
            f"the upper left 3 x 3 of a pose is no rotation (error {error:.3g}, determinant "
            f"{np.linalg.det(rotation).min():.3g}); normalise its quaternion, and give poses camera to world"
        )
    if (distance := np.abs(matrix[:, :3, 3]).max()) > MAX_DISTANCE:
        raise InputError(
            f"the position of a pose is {distance:g} m from the origin; allowed: up to {MAX_DISTANCE:g} m: subtract "
            "the first position from all of them"
        )
    return matrix
