"""Rehearsal: before the memory is reset, a fresh one sees keyframes again, one per frame. Ours.

First it takes them in, oldest first; then each is decoded once more without taking it in, to read where the new memory
places it. So no frame takes much longer than the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from raymap3r_ros.network import Network
from raymap3r_ros.streaming import engine
from raymap3r_ros.streaming.keyframes import Keyframes, choose, overlaps, store
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.result import Estimate
from raymap3r_ros.streaming.state import Rehearsal, Sight, StepPlan, StreamState
from raymap3r_ros.streaming.stream_options import StreamOptions, uses_keyframes

# `engine.look` of a network: its inputs, the state -> what is seen, the state after it
Look = Callable[[tuple[Tensor, Tensor], StreamState], tuple[Sight, StreamState]]


def rehearsed(options: StreamOptions, method: Method) -> int:
    """The number K of keyframes that are rehearsed in the 2 K frames before a reset, at most half of all frames."""
    if not uses_keyframes(options):
        return 0
    return min(method.rehearsed_keyframes, options.keyframes.size, options.reset_interval // 4)


def spacing(options: StreamOptions, method: Method) -> int:
    """Frames between two that may become keyframes. They have a ray branch, which finds moving objects, anyway."""
    return options.ray_interval * math.ceil(method.keyframe_interval / options.ray_interval)


def task_at(options: StreamOptions, method: Method, frame: int) -> str:
    """What follows the frame with this index: `reset`, `rehearse`, `store` (a keyframe), or nothing."""
    interval = options.reset_interval
    left = -frame % interval if interval else frame + 1
    if frame and not left:
        return "reset"
    if not uses_keyframes(options) or frame < method.warmup_frames:
        return ""
    if left <= 2 * rehearsed(options, method):
        return "rehearse"
    return "store" if frame % spacing(options, method) == 0 else ""


def view_of(seen: Estimate, after: StreamState) -> Keyframes:
    """The current frame as a keyframe in one slot; its estimate is in the stream's world."""
    points = sampled(seen.points, seen)
    weight = sampled(static_confidence(seen)[..., None], seen)[..., 0]
    batch, device = len(points), points.device
    number = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    if after.keyframes is not None:
        number = after.keyframes.number.amax(1, keepdim=True) + 1
    slots = {
        "tokens": seen.image_tokens,
        "intrinsics": seen.intrinsics,
        "pose": after.known.correction @ seen.pose_raw,  # the given pose if there is one
        "points": points,
        "weight": weight,
    }
    return Keyframes(
        number=number,
        overlap=torch.zeros(batch, 1, 1, device=device),
        **{name: value[:, None] for name, value in slots.items()},
    )


def static_confidence(seen: Estimate) -> Tensor:
    """(B, H, W): confidence, near 0 where a pixel may move, as far as the frame's motion is known."""
    if seen.static_weight is None:
        return seen.confidence
    return seen.confidence * seen.staticness * seen.static_weight


def remember(plan: StepPlan, seen: Estimate, after: StreamState) -> StreamState:
    """The state after a frame, which becomes a keyframe if it shows something new."""
    view = view_of(seen, after)
    known = after.keyframes or Keyframes.empty(plan.options.keyframes.size, view)
    return dataclasses.replace(after, keyframes=store(known, view, after.size, plan.method))


def rehearse(network: Network, look: Look, plan: StepPlan, seen: Estimate, after: StreamState) -> StreamState:
    """The state after one more step of the rehearsal."""
    count = rehearsed(plan.options, plan.method)
    step = 2 * count - (-after.frame % plan.options.reset_interval)
    keyframes, rehearsal = after.keyframes, after.rehearsal
    if keyframes is None:
        return after
    if step == 0:
        rehearsal = _begin(network, plan, keyframes, seen, after, count)
    elif rehearsal is None or rehearsal.step != step:  # the options have changed in between
        return dataclasses.replace(after, rehearsal=None)
    return dataclasses.replace(after, rehearsal=next_step(look, keyframes, rehearsal))


def next_step(look: Look, keyframes: Keyframes, rehearsal: Rehearsal) -> Rehearsal:
    """The rehearsal after one more keyframe is taken in, or read again."""
    step, count = rehearsal.step, rehearsal.slot.shape[1]
    index, takes_in = step % count, step < count
    tokens = keyframes.at(rehearsal.slot[:, index : index + 1]).tokens[:, 0]
    sight, memory = look((tokens, rehearsal.valid[:, index] & takes_in), rehearsal.memory)
    here = torch.arange(count, device=tokens.device)[:, None, None] == index
    return dataclasses.replace(
        rehearsal,
        memory=memory,
        # Those of the first half are replaced in the second one.
        pose=torch.where(here, sight.pose[:, None], rehearsal.pose),
        points=torch.where(here, coarse(sight.points, tokens.shape[1])[:, None], rehearsal.points),
        step=step + 1,
    )


def is_complete(rehearsal: Rehearsal | None) -> bool:
    """Whether every keyframe has been taken in and read."""
    return rehearsal is not None and rehearsal.step == 2 * rehearsal.slot.shape[1]


def _begin(
    network: Network, plan: StepPlan, keyframes: Keyframes, seen: Estimate, after: StreamState, count: int
) -> Rehearsal:
    """A rehearsal of `count` keyframes that suit the current view, before its first step."""
    here = overlaps(keyframes, view_of(seen, after), after.size)
    slot, valid = choose(keyframes, here, count, plan.method)
    chosen = keyframes.at(slot)
    memory = engine.initial_state(network, plan.options, plan.method, len(slot), after.size, after.image_size, "")
    return Rehearsal(memory, slot, valid, chosen.pose, chosen.points, step=0)


def sampled(values: Tensor, seen: Estimate) -> Tensor:
    """The values (B, H, W, C) at the centre of each image token of the frame: (B, N, C)."""
    return coarse(values, seen.image_tokens.shape[1])


def coarse(values: Tensor, count: int) -> Tensor:
    """The values (B, H, W, C) at the centre of each of N = `count` image tokens: (B, N, C)."""
    height, width = values.shape[1:3]
    patch = math.isqrt(height * width // count)
    return values[:, patch // 2 :: patch, patch // 2 :: patch].flatten(1, 2)
