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
from raymap3r_ros.streaming.state import Rehearsal, Sight, StepPlan, StreamState


def start_segment(
    network: Network,
    look: rehearsal.Look,
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
    again, memory = look((tokens, torch.ones_like(fresh.fresh)), fresh if rehearsed is None else rehearsed.memory)
    if record is not None:
        record.update(view_after_reset=again, cloud_after=_cloud(again))
    aligns, alignment, error = options.reset_alignment != "off", fresh.alignment, None
    if aligns:
        alignment, error = _align(plan, rehearsed, again, seen, after)
    # The tied smoother works in the stream's world, which is continuous if the segments are aligned and if no given
    # pose corrects it.
    keep = (known.count == 0) if options.smoothing == "tied" and aligns else torch.zeros_like(after.fresh)
    known = known_poses.begin_segment(known, alignment, aligned=aligns)
    if pose is not None and aligns:
        known = known_poses.observe(known, alignment, pose, again.pose, method)
    started = dataclasses.replace(
        memory,
        alignment=alignment,
        known=known,
        smoother=engine.choose(keep, after.smoother, fresh.smoother),
        router=after.router,
        keyframes=None,
        rehearsal=None,
    )
    healthy = seen.healthy & again.healthy
    before = dataclasses.replace(after, keyframes=None, rehearsal=None, past=(), search=None)
    kept = {name: getattr(after, name) for name in ("keyframes", "past", "search", "world", "frame")}
    return dataclasses.replace(engine.choose(healthy, started, before), **kept), error


def _align(
    plan: StepPlan, rehearsed: Rehearsal | None, again: Sight, seen: Estimate, after: StreamState
) -> tuple[Similarity, Tensor]:
    """The alignment of the new memory and its error (B,), from the current frame and the keyframes of a rehearsal."""
    kind, known = plan.options.reset_alignment, after.known
    weight = rehearsal.static_confidence(seen) if kind == "robust" else seen.confidence
    pose_before = known.correction @ seen.pose_raw  # the given pose if there is one
    cloud_before = cameras.transform_points(pose_before, seen.points).flatten(1, 2)
    clouds = _cloud(again), cloud_before, weight.flatten(1)
    alone, error_alone = align_segments(kind, *clouds, again.pose, pose_before, known.scale, plan.method)
    if rehearsed is None:
        return alone, error_alone
    stored, here = after.keyframes.at(rehearsed.slot), rehearsal.view_of(seen, after)
    together, error = align_keyframes(
        torch.cat((rehearsed.points, rehearsal.sampled(again.points, seen)[:, None]), 1),
        torch.cat((stored.points, here.points), 1),
        torch.cat((torch.where(rehearsed.valid[..., None], stored.weight, 0.0), here.weight), 1),
        torch.cat((rehearsed.pose, again.pose[:, None]), 1),
        torch.cat((stored.pose, here.pose), 1),
        known.scale,
        plan.method,
    )
    posed = known.count > 0  # a known pose of the current frame is more certain than its predictions for keyframes
    return engine.choose(posed, alone, together), torch.where(posed, error_alone, error)


def _cloud(view: Sight) -> Tensor:
    """The points (B, H W, 3) of a view in its segment's world."""
    return cameras.transform_points(view.pose, view.points).flatten(1, 2)
