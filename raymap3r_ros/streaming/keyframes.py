"""Keyframes: a bounded set of frames of one world that the network can see again. Ours."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras
from raymap3r_ros.streaming.method import METHOD, Method

NEAREST = 1e-3  # metres before a camera within which it sees nothing


@dataclass
class Keyframes:
    """Up to M frames of each of B streams, in slots. P points of a frame stand for its surfaces."""

    number: Tensor  # (B, M) rises with the age of the stream; -1: the slot is empty
    tokens: Tensor  # (B, M, N, C_e) image tokens
    intrinsics: Tensor  # (B, M, 3, 3) pixels of the preprocessed image
    pose: Tensor  # (B, M, 4, 4) camera to world, in the stream's world
    points: Tensor  # (B, M, P, 3) metres of the stream, in the camera frame
    weight: Tensor  # (B, M, P) confidence of the points, 0 on moving objects
    overlap: Tensor  # (B, M, M) of the slots' views, see `view_overlap`

    @classmethod
    def empty(cls, slots: int, like: Keyframes) -> Keyframes:
        """No keyframes, in `slots` slots for frames `like` these."""

        def blank(stored: Tensor) -> Tensor:
            return stored.new_zeros(len(stored), slots, *stored.shape[2:])

        blanks = {field.name: blank(getattr(like, field.name)) for field in dataclasses.fields(cls)}
        return cls(
            **{
                **blanks,
                "number": blanks["number"] - 1,
                "pose": torch.eye(4, device=like.pose.device).expand_as(blanks["pose"]),
                "overlap": like.overlap.new_zeros(len(like.overlap), slots, slots),
            }
        )

    def at(self, slot: Tensor) -> Keyframes:
        """The keyframes in slots (B, K)."""
        rows = torch.arange(len(slot), device=slot.device)[:, None]
        return Keyframes(**{field.name: getattr(self, field.name)[rows, slot] for field in dataclasses.fields(self)})


def view_overlap(one: Keyframes, other: Keyframes, size: tuple[int, int]) -> Tensor:
    """How much of the same surfaces two views show, and how similarly: (B, M), 0..1.

    `one` has K slots, `other` M, and one of K and M is 1 or both are equal. The images have `size` (H, W). The
    value is the mean over both directions of the share of points that the other camera sees, each weighted by the
    cosine of the angle between the two lines of sight, and by the ratio of the shorter to the longer distance.
    """
    return (_seen_share(one, other, size) + _seen_share(other, one, size)) / 2


def _seen_share(one: Keyframes, other: Keyframes, size: tuple[int, int]) -> Tensor:
    """The share of the points of `one` that the cameras of `other` see: (B, M)."""
    world = from_cameras(one.pose, one.points)
    ray, other_ray = (world - views.pose[..., None, :3, 3] for views in (one, other))
    local = other_ray @ other.pose[..., :3, :3]  # in the other camera's axes
    depth = local[..., 2].clamp_min(NEAREST)
    pixel = (local / depth[..., None]) @ other.intrinsics.mT
    inside = (pixel[..., 0] > -0.5) & (pixel[..., 0] < size[1] - 0.5)
    inside &= (pixel[..., 1] > -0.5) & (pixel[..., 1] < size[0] - 0.5) & (local[..., 2] > NEAREST)
    distance, other_distance = ray.norm(dim=-1), other_ray.norm(dim=-1)
    ratio = torch.minimum(distance, other_distance) / torch.maximum(distance, other_distance).clamp_min(NEAREST)
    alike = F.cosine_similarity(ray, other_ray, dim=-1).clamp_min(0) * ratio
    return torch.where(inside, alike, 0.0).mean(-1)


def overlaps(keyframes: Keyframes, view: Keyframes, size: tuple[int, int]) -> Tensor:
    """`view_overlap` (B, M) of each slot with a `view` of one slot; 0 for empty slots."""
    return torch.where(keyframes.number >= 0, view_overlap(view, keyframes, size), 0.0)


def store(keyframes: Keyframes, view: Keyframes, size: tuple[int, int], method: Method = METHOD) -> Keyframes:
    """The keyframes after a `view` of one slot, which becomes one of them if it shows something new.

    If all slots are taken, the most redundant frame leaves, that is the one with the largest overlap with an older
    one, which may be the view itself. So the first frames stay longest, and with them the world stays in place.
    """
    here = overlaps(keyframes, view, size)
    number, batch = keyframes.number, len(here)
    older = (number[:, None, :] < number[:, :, None]) & (number[:, None, :] >= 0)
    redundancy = torch.where(older, keyframes.overlap, 0.0).amax(2)
    redundancy = torch.where(number < 0, torch.inf, redundancy)
    most, slot = redundancy.max(1)
    nearest = here.amax(1)
    usable = torch.isfinite(view.points).flatten(1).all(1) & torch.isfinite(view.pose).flatten(1).all(1)
    take = usable & (nearest < method.keyframe_overlap) & (nearest < most)
    pick = F.one_hot(slot, number.shape[1]).bool() & take[:, None]

    def put(stored: Tensor, new: Tensor) -> Tensor:
        return torch.where(pick.view(*pick.shape, *[1] * (stored.ndim - 2)), new, stored)

    fields = ("number", "tokens", "intrinsics", "pose", "points", "weight")
    values = {name: put(getattr(keyframes, name), getattr(view, name)) for name in fields}
    row = torch.where(pick[:, :, None], here[:, None, :], keyframes.overlap)
    overlap = torch.where(pick[:, None, :], here[:, :, None], row)
    # A frame does not overlap with itself, nor with the one whose slot it took.
    same = torch.eye(number.shape[1], dtype=torch.bool, device=here.device).expand(batch, -1, -1)
    return Keyframes(**values, overlap=torch.where(same, 0.0, overlap))


def choose(keyframes: Keyframes, here: Tensor, count: int, method: Method = METHOD) -> tuple[Tensor, Tensor]:
    """Slots (B, K) of `count` keyframes, oldest first, and (B, K) whether there is one.

    The ones with the largest overlap `here` (B, M) with the current view, the oldest one, and then those with the
    least overlap with the ones already chosen, so that they cover the scene.
    """
    number, batch = keyframes.number, len(here)
    left = number >= 0
    covered = torch.zeros_like(here)
    slots, valid = [], []
    for index in range(count):
        if index < method.rehearsed_nearest:
            score = here
        elif index == method.rehearsed_nearest:
            score = -number.float()
        else:
            score = -covered
        slot = torch.where(left, score, -torch.inf).argmax(1)
        rows = torch.arange(batch, device=here.device)
        valid.append(left[rows, slot])
        slots.append(slot)
        left = left & ~F.one_hot(slot, left.shape[1]).bool()
        covered = torch.maximum(covered, keyframes.overlap[rows, slot])
    return oldest_first(keyframes, torch.stack(slots, 1), torch.stack(valid, 1))


def oldest_first(keyframes: Keyframes, slot: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Slots (B, K) in the order of age, and `valid` (B, K) in the same order; the ones that are not come last."""
    number = keyframes.number.gather(1, slot)
    order = torch.where(valid, number, torch.iinfo(number.dtype).max).argsort(dim=1)
    return slot.gather(1, order), valid.gather(1, order)
