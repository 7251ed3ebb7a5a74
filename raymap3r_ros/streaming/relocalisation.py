"""Relocalisation: where a frame was taken among stored keyframes, or that they do not show its place. Ours.

A fresh memory takes in the keyframes most alike to a frame, reads them again, and then decodes the frame without
taking it in. The pose that it predicts is accepted if points and tokens of the frame agree with those of a keyframe
where they overlap. Each call runs the decoder once, so that a search can be spread over frames. `Stream` does not use
it yet.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.streaming.alignment import align_keyframes
from raymap3r_ros.streaming.keyframes import NEAREST, Keyframes
from raymap3r_ros.streaming.method import METHOD, Method
from raymap3r_ros.streaming.rehearsal import Look, coarse
from raymap3r_ros.streaming.state import Rehearsal, StreamState


@dataclass(frozen=True)
class Location:
    """Where a frame of B streams was taken, as far as keyframes show it."""

    pose: Tensor  # (B, 4, 4) camera to world, in the keyframes' world
    scale: Tensor  # (B,) metres of the keyframes' world per metre of the memory that has seen them
    likeness: Tensor  # (B,) cosine of the descriptors of the frame and of the keyframe most alike
    visible: Tensor  # (B,) share of the frame's points that the best keyframe sees
    depth: Tensor  # (B,) share of these whose distance agrees
    appearance: Tensor  # (B,) mean cosine of the tokens at the same points

    def accepted(self, method: Method = METHOD) -> Tensor:
        """(B,) bool: the pose can be used."""
        return (
            (self.visible >= method.relocalised_visible)
            & (self.depth >= method.relocalised_depth)
            & (self.appearance >= method.relocalised_appearance)
            & (self.likeness >= method.relocalised_likeness)
        )


def likeness(keyframes: Keyframes, tokens: Tensor) -> Tensor:
    """Cosine (B, M) of the descriptor, the mean image token, of each slot and of `tokens` (B, N, C); -1 if empty."""
    stored, here = keyframes.tokens.mean(2), tokens.mean(1, keepdim=True)
    return torch.where(keyframes.number >= 0, F.cosine_similarity(stored, here, dim=-1), -1.0)


def candidates(keyframes: Keyframes, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Slots (B, K) of up to `count` keyframes to see again, oldest first, and (B, K) whether there is one.

    The first half is most alike to `tokens` (B, N, C), the other half overlaps most with the very first of them.
    """
    alike = likeness(keyframes, tokens)
    count = min(count, alike.shape[1])
    half = (count + 1) // 2
    first = alike.topk(half, dim=1).indices
    taken = torch.zeros_like(alike, dtype=torch.bool).scatter(1, first, value=True)
    rows = torch.arange(len(alike), device=alike.device)
    beside = torch.where(keyframes.number < 0, -1.0, keyframes.overlap[rows, first[:, 0]])
    beside = torch.where(taken, -2.0, beside)  # not twice, even if only empty slots are left
    slot = torch.cat((first, beside.topk(count - half, dim=1).indices), 1)
    number = keyframes.number.gather(1, slot)
    order = torch.where(number >= 0, number, torch.iinfo(number.dtype).max).argsort(dim=1)
    return slot.gather(1, order), number.gather(1, order) >= 0


def begin(fresh: StreamState, keyframes: Keyframes, tokens: Tensor, method: Method = METHOD) -> Rehearsal:
    """The start of a search for the frame with image `tokens` (B, N, C); `fresh` is an initial state.

    Continue with `rehearsal.next_step` until `rehearsal.is_complete`, then call `locate`.
    """
    slot, valid = candidates(keyframes, tokens, method.rehearsed_keyframes)
    chosen = keyframes.at(slot)
    return Rehearsal(fresh, slot, valid, chosen.pose, chosen.points, step=0)


def locate(look: Look, keyframes: Keyframes, search: Rehearsal, view: Keyframes, method: Method = METHOD) -> Location:
    """Where the frame `view` (one slot; its pose and points are not used) was taken, after a complete `search`.

    It need not be the frame that the search began with.
    """
    tokens, chosen = view.tokens[:, 0], keyframes.at(search.slot)
    here, _ = look((tokens, torch.zeros_like(search.valid[:, 0])), search.memory)
    weight = torch.where(search.valid[..., None], chosen.weight, 0.0)
    # The last one takes part in any case. In reverse order it is the oldest, which exists if any does.
    reverse = (values.flip(1) for values in (search.points, chosen.points, weight, search.pose, chosen.pose))
    transform, _ = align_keyframes(*reverse, torch.ones_like(weight[:, 0, 0]), method)
    location = verify(chosen, search.valid, transform, here.pose, coarse(here.points, tokens.shape[1]), tokens, method)
    return dataclasses.replace(location, visible=torch.where(here.healthy, location.visible, 0.0))


def verify(
    chosen: Keyframes,
    valid: Tensor,
    transform: Similarity,
    pose: Tensor,
    points: Tensor,
    tokens: Tensor,
    method: Method = METHOD,
) -> Location:
    """Compare a frame with K keyframes that are `valid` (B, K).

    `pose` (B, 4, 4) and `points` (B, P, 3), in the camera frame, are those of the frame in the memory's world, and
    `transform` leads from there to the keyframes' world. The frame has image `tokens` (B, P, C), one for each point.
    """
    camera = transform.apply_to_pose(pose)
    size = chosen.points.shape[2]
    world = from_cameras(camera[:, None], (points * transform.scale[:, None, None])[:, None])
    local = (world - chosen.pose[..., None, :3, 3]) @ chosen.pose[..., :3, :3]  # (B, K, P, 3)
    nearest, inside = nearest_points(local, chosen)
    stored = chosen.points.gather(2, nearest[..., None].expand(-1, -1, -1, 3))
    ratio = local.norm(dim=-1).clamp_min(NEAREST) / stored.norm(dim=-1).clamp_min(NEAREST)
    agrees = inside & (ratio.log().abs() < method.relocalised_tolerance)
    width = chosen.tokens.shape[-1]
    there = chosen.tokens.gather(2, nearest[..., None].expand(-1, -1, -1, width))
    # What all tokens share shows nothing about the place.
    known = valid.to(chosen.tokens)[..., None, None]
    common = (known * chosen.tokens).mean(2, keepdim=True).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(
        1
    )
    cosine = F.cosine_similarity(there - common, tokens[:, None] - common, dim=-1)
    count = inside.float().sum(-1)
    visible = torch.where(valid, count / size, 0.0)
    depth = agrees.float().sum(-1) / count.clamp_min(1)
    appearance = torch.where(inside, cosine, 0.0).sum(-1) / count.clamp_min(1)
    best = (visible * depth).argmax(1, keepdim=True)
    alike = likeness(chosen, tokens).amax(1)
    picked = (value.gather(1, best)[:, 0] for value in (visible, depth, appearance))
    return Location(camera, transform.scale, alike, *picked)


def nearest_points(local: Tensor, chosen: Keyframes) -> tuple[Tensor, Tensor]:
    """The stored points (B, K, P) whose line of sight is closest to points `local` (B, K, P, 3) of that camera.

    Also (B, K, P) whether the camera sees them: that line is not farther than the spacing of the stored ones.
    """
    ray, stored = F.normalize(local, dim=-1), F.normalize(chosen.points, dim=-1)
    cosine, nearest = (ray @ stored.mT).max(-1)
    among = stored @ stored.mT - 2 * torch.eye(stored.shape[2], device=stored.device)
    return nearest, cosine >= among.amax(-1).amin(-1, keepdim=True)
