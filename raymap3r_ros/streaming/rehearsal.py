"""Rehearsal: before the memory is reset, a fresh one sees keyframes again, one per frame. Ours.

First it takes them in, oldest first; then each is decoded once more without taking it in, to read where the new memory
places it. So no frame takes much longer than the others.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from raymap3r_ros.network import Network
from raymap3r_ros.streaming import engine
from raymap3r_ros.streaming.keyframes import Keyframes, choose, overlaps, store
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.result import Estimate
from raymap3r_ros.streaming.state import Rehearsal, StepPlan, StreamState
from raymap3r_ros.streaming.stream_options import StreamOptions


def uses_keyframes(options: StreamOptions) -> bool:
    """Whether a stream with these options stores keyframes."""
    return options.keyframes.size > 0 and options.reset_interval > 0 and options.reset_alignment == "robust"


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


def view_of(network: Network, seen: Estimate, after: StreamState) -> Keyframes:
    """The current frame as a keyframe in one slot; its estimate is in the stream's world."""
    points = sampled(network, seen.points).flatten(1, 2)
    weight = sampled(network, static_confidence(seen)).flatten(1)
    batch, device = len(points), points.device
    slots = {
        "tokens": seen.image_tokens,
        "intrinsics": seen.intrinsics,
        "pose": after.known.correction @ seen.pose_raw,  # the given pose if there is one
        "points": points,
        "weight": weight,
    }
    return Keyframes(
        number=torch.full((batch, 1), after.frame, device=device),
        overlap=torch.zeros(batch, 1, 1, device=device),
        **{name: value[:, None] for name, value in slots.items()},
    )


def static_confidence(seen: Estimate) -> Tensor:
    """(B, H, W): confidence, near 0 where a pixel may move, as far as the frame's motion is known."""
    if seen.static_weight is None:
        return seen.confidence
    return seen.confidence * seen.staticness * seen.static_weight


def remember(network: Network, plan: StepPlan, seen: Estimate, after: StreamState) -> StreamState:
    """The state after a frame, which becomes a keyframe if it shows something new."""
    view = view_of(network, seen, after)
    known = after.keyframes or Keyframes.empty(plan.options.keyframes.size, view)
    return dataclasses.replace(after, keyframes=store(known, view, after.size, plan.method))


def rehearse(network: Network, plan: StepPlan, seen: Estimate, after: StreamState) -> StreamState:
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
    memory, index = rehearsal.memory, step % count
    tokens = keyframes.at(rehearsal.slot[:, index : index + 1]).tokens[:, 0]
    takes_in = step < count
    view = engine.run_main_branch(
        network, plan, tokens, tokens, memory, want_attention=takes_in and plan.rule.needs_attention
    )
    if takes_in:
        memory = engine.choose(rehearsal.valid[:, index], engine.take_in(network, plan, view, memory), memory)
        rehearsal = dataclasses.replace(rehearsal, memory=memory)
    else:
        here = torch.arange(count, device=tokens.device) == index
        pose = torch.where(here[:, None, None], view.pose[:, None], rehearsal.pose)
        points = sampled(network, view.points).flatten(1, 2)
        points = torch.where(here[:, None, None], points[:, None], rehearsal.points)
        rehearsal = dataclasses.replace(rehearsal, pose=pose, points=points)
    return dataclasses.replace(after, rehearsal=dataclasses.replace(rehearsal, step=step + 1))


def is_complete(rehearsal: Rehearsal | None) -> bool:
    """Whether every keyframe has been taken in and read."""
    return rehearsal is not None and rehearsal.step == 2 * rehearsal.slot.shape[1]


def _begin(
    network: Network, plan: StepPlan, keyframes: Keyframes, seen: Estimate, after: StreamState, count: int
) -> Rehearsal:
    """A rehearsal of `count` keyframes that suit the current view, before its first step."""
    here = overlaps(keyframes, view_of(network, seen, after), after.size)
    slot, valid = choose(keyframes, here, count, plan.method)
    chosen = keyframes.at(slot)
    memory = engine.initial_state(
        network, plan.options, plan.method, len(slot), after.size, after.image_size, reason=""
    )
    return Rehearsal(memory, slot, valid, chosen.pose, chosen.points, step=0)


def sampled(network: Network, values: Tensor) -> Tensor:
    """The values (B, H, W, ...) at the centre of each image token."""
    patch = network.config.patch_size
    return values[:, patch // 2 :: patch, patch // 2 :: patch]
