"""Resets: a new segment begins, with a memory that is fresh (arXiv 2603.20588) or has been rehearsed (ours)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import engine, known_poses, rehearsal
from raymap3r_ros.streaming.alignment import align_keyframes, align_segments
from raymap3r_ros.streaming.result import Estimate
from raymap3r_ros.streaming.state import Rehearsal, StepPlan, StreamState, View


def start_segment(
    network: Network,
    plan: StepPlan,
    pose: Tensor | None,
    seen: Estimate,
    after: StreamState,
    record: dict[str, Any] | None = None,
) -> tuple[StreamState, Tensor | None]:
    """A reset after a frame: the state of a new segment that begins with it, aligned with the stream's world.

    `pose` (B, 4, 4) is the known camera, or None; `seen` and `after` are the frame's estimate and the state after it.
    Returns the new state and the error of the alignment (B,), see `align_segments`; None without alignment. The
    published alignment, whose decomposition synchronises, is the only one that makes the host wait for a GPU.
    """
    options, method, known, tokens = plan.options, plan.method, after.known, seen.image_tokens
    rehearsed = after.rehearsal if rehearsal.is_complete(after.rehearsal) else None
    fresh = engine.initial_state(network, options, method, len(tokens), after.size, after.image_size, "")
    memory = fresh if rehearsed is None else rehearsed.memory
    again = engine.run_main_branch(network, plan, tokens, tokens, memory, want_attention=plan.rule.needs_attention)
    if record is not None:
        record.update(view_after_reset=again, cloud_after=_cloud(again))
    kind, alignment, error = options.reset_alignment, fresh.alignment, None
    if rehearsed is not None:
        alignment, error = _align_with_keyframes(network, plan, rehearsed, again, seen, after)
    elif kind != "off":
        weight = rehearsal.static_confidence(seen) if kind == "robust" else seen.confidence
        pose_before = known.correction @ seen.pose_raw  # the given pose if there is one
        cloud_before = cameras.transform_points(pose_before, seen.points).flatten(1, 2)
        clouds = _cloud(again), cloud_before, weight.flatten(1)
        alignment, error = align_segments(kind, *clouds, again.pose, pose_before, known.scale, method)
    # The tied smoother works in the stream's world, which is continuous if the segments are aligned and if no given
    # pose corrects it.
    keep = (known.count == 0) if options.smoothing == "tied" and kind != "off" else torch.zeros_like(after.fresh)
    known = known_poses.begin_segment(known, alignment, aligned=kind != "off")
    if pose is not None and kind != "off":
        known = known_poses.observe(known, alignment, pose, again.pose, method)
    started = dataclasses.replace(
        engine.take_in(network, plan, again, memory),
        alignment=alignment,
        known=known,
        smoother=engine.choose(keep, after.smoother, fresh.smoother),
        router=after.router,
        keyframes=None,
        rehearsal=None,
    )
    healthy = seen.healthy & engine.all_finite(started.state, started.memory, again.pose, again.points)
    before = dataclasses.replace(after, keyframes=None, rehearsal=None)
    chosen = engine.choose(healthy, started, before)
    return dataclasses.replace(chosen, keyframes=after.keyframes if kind != "off" else None), error


def _align_with_keyframes(
    network: Network, plan: StepPlan, rehearsed: Rehearsal, again: View, seen: Estimate, after: StreamState
) -> tuple[Similarity, Tensor]:
    """The alignment of a rehearsed memory, from its keyframes and the current frame."""
    stored = after.keyframes.at(rehearsed.slot)
    weight = torch.where(rehearsed.valid[..., None], stored.weight, 0.0)
    here = rehearsal.view_of(network, seen, after)
    points = rehearsal.sampled(network, again.points).flatten(1, 2)
    return align_keyframes(
        torch.cat((rehearsed.points, points[:, None]), 1),
        torch.cat((stored.points, here.points), 1),
        torch.cat((weight, here.weight), 1),
        torch.cat((rehearsed.pose, again.pose[:, None]), 1),
        torch.cat((stored.pose, here.pose), 1),
        after.known.scale,
        plan.method,
    )


def _cloud(view: View) -> Tensor:
    """The points (B, H W, 3) of a view in its segment's world."""
    return cameras.transform_points(view.pose, view.points).flatten(1, 2)
