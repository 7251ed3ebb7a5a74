"""Relocalisation: where a frame was taken among stored keyframes, or that they do not show its place. Ours.

A fresh memory takes in the keyframes most alike to a frame, reads them again, and then decodes two later frames
without taking them in. The camera is found if points and tokens of both agree with those of a keyframe where they
overlap. A search is spread over frames, in each of which the decoder runs two more times at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import from_cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.streaming import known_poses
from raymap3r_ros.streaming.alignment import align_keyframes
from raymap3r_ros.streaming.keyframes import NEAREST, Keyframes, oldest_first
from raymap3r_ros.streaming.method import METHOD, Method
from raymap3r_ros.streaming.rehearsal import Look, coarse, is_complete, next_step, view_of
from raymap3r_ros.streaming.result import Estimate
from raymap3r_ros.streaming.state import Rehearsal, Search, StreamState, World

_LOOKS = 2  # passes of the decoder in a frame of a search
_FOUND = 2  # successive frames that must be found


@dataclass(frozen=True)
class Location:
    """Where a frame of B streams was taken, as far as keyframes show it."""

    pose: Tensor  # (B, 4, 4) camera to world, in the keyframes' world
    transform: Similarity  # from the world of the memory that has seen the keyframes to the keyframes' world
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


def past_worlds(left: StreamState, method: Method = METHOD) -> tuple[World, ...]:
    """The worlds in which a camera may be found again after it has `left` one; none for more than one camera."""
    worlds = tuple(one for one in left.past if not one.shared)
    if left.frame > 0 and left.keyframes is not None and len(left.state) == 1:
        worlds = (*worlds, World(left.world, left.keyframes, left.known.anchored))
    return worlds[-method.past_worlds :]


def searched(state: StreamState) -> tuple[World, ...]:
    """The worlds in which the camera is searched for: those that have begun before its own.

    So of two worlds in one place the older one continues, and two cameras never change places.
    """
    return tuple(one for one in state.past if one.number < state.world)


def begins(frame: int, slots: int, method: Method = METHOD) -> bool:
    """Whether a search may begin with the frame of this index, among keyframes in `slots`.

    Each false find ends a good world, so there are searches in the first three attempts, and then ever more rarely:
    their number grows only with the logarithm of the length of a stream.
    """
    attempt, step = divmod(frame, _looking(slots, method) + _FOUND)
    return step == 0 and not attempt & (attempt - 1)


def _looking(slots: int, method: Method) -> int:
    """The number of frames in which a search reads keyframes."""
    return -(-2 * min(method.relocalised_keyframes, slots) // _LOOKS)


def seek(
    look: Look, fresh: Callable[[], StreamState], seen: Estimate, after: StreamState, method: Method = METHOD
) -> tuple[StreamState, bool]:
    """The state after one more step of the search for one camera, and whether the camera has been found.

    `fresh` makes an initial state; `seen` is the estimate of the frame, `after` the state after it. If the camera has
    been found, its state continues in the world in which it was found, with the memory that has seen the keyframes.
    Only the last two steps of a search make the host wait for a GPU.
    """
    worlds = searched(after)
    slots = max(one.keyframes.number.shape[1] for one in worlds)
    looking = _looking(slots, method)
    attempt, step = divmod(after.frame, looking + _FOUND)
    search = after.search
    if step == 0:
        due = begins(after.frame, slots, method)
        search = _begin_attempt(attempt, fresh, worlds, seen.image_tokens, method) if due else None
    world = next((one for one in worlds if search is not None and one.number == search.world), None)
    if world is None:  # no search, or its world is no longer shared
        return dataclasses.replace(after, search=None), False
    if step < looking:
        rehearsal = search.rehearsal
        for _ in range(_LOOKS):
            if not is_complete(rehearsal):
                rehearsal = next_step(look, world.keyframes, rehearsal)
        return dataclasses.replace(after, search=dataclasses.replace(search, rehearsal=rehearsal)), False
    view = view_of(seen, after)
    location = locate(look, world.keyframes, search.rehearsal, view, method)
    accepted = bool(location.accepted(method))
    if accepted and search.accepted:
        return _return_to(look, world, search, location, view, after), True
    ended = not accepted or step == looking + _FOUND - 1
    search = None if ended else dataclasses.replace(search, accepted=True)
    return dataclasses.replace(after, search=search), False


def _begin_attempt(
    attempt: int, fresh: Callable[[], StreamState], past: tuple[World, ...], tokens: Tensor, method: Method
) -> Search:
    """The start of a search in one of the `past` worlds."""
    world = past[0]
    if len(past) > 1:  # in turn, beginning with the most alike
        alike = [likeness(one.keyframes, tokens).amax().item() for one in past]
        order = sorted(range(len(past)), key=lambda index: -alike[index])
        world = past[order[attempt.bit_length() % len(past)]]
    return Search(world.number, begin(fresh(), world.keyframes, tokens, method), accepted=False)


def _return_to(
    look: Look,
    world: World,
    search: Search,
    location: Location,
    view: Keyframes,
    after: StreamState,
) -> StreamState:
    """The state in an earlier world, from the memory of the search and the last frame, which it takes in now."""
    searched = search.rehearsal.memory
    _, memory = look((view.tokens[:, 0], torch.ones_like(searched.fresh)), searched)
    known = dataclasses.replace(memory.known, anchored=world.anchored)
    return dataclasses.replace(
        memory,
        alignment=location.transform,
        known=known_poses.begin_segment(known, location.transform, aligned=True),
        router=after.router,
        keyframes=world.keyframes,
        rehearsal=None,
        past=tuple(one for one in after.past if one.number != world.number),
        search=None,
        world=world.number,
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
    return oldest_first(keyframes, slot, keyframes.number.gather(1, slot) >= 0)


def begin(fresh: StreamState, keyframes: Keyframes, tokens: Tensor, method: Method = METHOD) -> Rehearsal:
    """The start of a search for the frame with image `tokens` (B, N, C); `fresh` is an initial state.

    Continue with `next_step` until it `is_complete`, then call `locate`.
    """
    slot, valid = candidates(keyframes, tokens, method.relocalised_keyframes)
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
    return Location(camera, transform, alike, *picked)


def nearest_points(local: Tensor, chosen: Keyframes) -> tuple[Tensor, Tensor]:
    """The stored points (B, K, P) whose line of sight is closest to points `local` (B, K, P, 3) of that camera.

    Also (B, K, P) whether the camera sees them: that line is not farther than the spacing of the stored ones.
    """
    ray, stored = F.normalize(local, dim=-1), F.normalize(chosen.points, dim=-1)
    cosine, nearest = (ray @ stored.mT).max(-1)
    among = stored @ stored.mT - 2 * torch.eye(stored.shape[2], device=stored.device)
    return nearest, cosine >= among.amax(-1).amin(-1, keepdim=True)
