"""The method for one frame: tensors in, tensors out (arXiv 2603.20588).

Nothing here reads a tensor's values on the host, so the host never waits for a GPU and the operations can be recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor

from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Decoded, Network
from raymap3r_ros.streaming import gates, known_poses, staticness
from raymap3r_ros.streaming.known_poses import KnownPoses
from raymap3r_ros.streaming.mask import dynamic_mask, static_weight
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.plausibility import plausibility
from raymap3r_ros.streaming.result import Estimate, WorldChange
from raymap3r_ros.streaming.router import RouterState, route_adaptive, route_published
from raymap3r_ros.streaming.smoothing import SmootherState, smooth
from raymap3r_ros.streaming.state import Motion, Sight, StepPlan, StreamState, Track, View
from raymap3r_ros.streaming.stream_options import StreamOptions
from raymap3r_ros.streaming.tensors import map_tensors
from raymap3r_ros.streaming.timing import StageTimer

PLAIN_RULE = "cut3r"  # what the router falls back to


def initial_state(
    network: Network,
    options: StreamOptions,
    method: Method,
    batch: int,
    size: tuple[int, int],
    image_size: tuple[int, int],
    reason: str,
) -> StreamState:
    """The state of B streams before their first frame.

    `size` (H, W) is the size of the preprocessed images, `image_size` (h, w) of the camera images, `reason` the
    `reset_reason` of the first frame.
    """
    config, device = network.config, network.first_pose_token.device
    with _autocast(options, device):
        state = network.initial_state(batch).float()
    image_tokens = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    return StreamState(
        state=state,
        memory=network.initial_memory(batch),
        staticness=torch.ones_like(state[..., :1]),
        staticness_known=torch.zeros(batch, dtype=torch.bool, device=device),
        gate_memory=gates.GateMemory.empty(state, image_tokens, config.encoder_width, method),
        fresh=torch.ones(batch, dtype=torch.bool, device=device),
        alignment=Similarity.identity(batch, device),
        known=KnownPoses.empty(batch, size, device),
        smoother=SmootherState.empty(batch, device, method),
        router=RouterState.empty(batch, device, options.router, method),
        keyframes=None,
        rehearsal=None,
        past=(),
        search=None,
        world=0,
        frame=0,
        segment=0,
        reset_reason=reason,
        world_change=WorldChange.NEW,
        posed_frame=-1,
        size=size,
        image_size=image_size,
    )


def advance(
    network: Network,
    plan: StepPlan,
    inputs: tuple[Tensor, Tensor | None, Tensor | None],
    before: StreamState,
    timer: StageTimer | None = None,
    record: dict[str, Any] | None = None,
) -> tuple[Estimate, StreamState]:
    """One frame: the estimate, and the state after it.

    `inputs` are pixels (B, H, W, 3) uint8, intrinsics (B, 3, 3), or None to estimate them, and known camera poses
    (B, 4, 4) in the stream's world, or None. A `record` receives intermediate results for inspection. Fields of the
    state that are not tensors are left to the caller.
    """
    pixels, given, pose = inputs
    mark = timer.mark if timer is not None else _ignore
    state_before, rays = before, None
    image_tokens = tokens = _encode(network, plan, pixels)
    if pose is not None:
        before, rays, tokens = _add_known_rays(network, plan, before, image_tokens, pose, given)
    mark("encode")
    want_attention = plan.rule.needs_attention or record is not None
    main = run_main_branch(network, plan, image_tokens, tokens, before, want_attention=want_attention)
    mark("decode")
    intrinsics, intrinsics_known = _intrinsics(given, main.points, plan.method)
    track, known = _track(plan, before, main, pose)
    known = dataclasses.replace(known, intrinsics=intrinsics)
    mark("pose")

    motion = None
    if plan.run_ray_branch:
        if rays is None:
            rays = _encode_own_rays(network, plan, before, known.scale, track.pose, intrinsics)
        predicted = _run_ray_branch(network, plan, before, rays)
        mark("ray_branch")
        motion = _compare_branches(plan, main, *predicted, want_tokens=plan.rule.needs_motion or record is not None)
        mark("motion")

    gate, rule_index, after = _update_state(network, plan, before, main, track, motion)
    after = dataclasses.replace(after, known=known)
    mark("update")
    if record is not None:
        record.update(view=main, track=track, motion=motion, after=after)
    healthy = all_finite(main.decoded.state, main.pose, main.points, main.confidence, after.state, after.memory)
    estimate = Estimate(
        **_maps(plan, main, motion, known.scale),
        pose=_published_pose(plan, known, pose, track),
        pose_raw=track.pose_raw,
        intrinsics=intrinsics,
        gate=gate[..., 0],
        healthy=healthy,
        intrinsics_known=intrinsics_known,
        rule_index=rule_index,
        image_tokens=image_tokens,
        static_weight=motion.static_weight if plan.weighs else None,
        plausibility=None if motion is None else motion.plausibility,
    )
    after = choose(healthy, after, state_before)
    mark("outputs")
    return estimate, after


def _encode(network: Network, plan: StepPlan, pixels: Tensor) -> Tensor:
    """Tokens (B, N, C_e) of images (B, H, W, 3) uint8."""
    with _autocast(plan.options, pixels.device):
        return network.encode_image((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()


def _add_known_rays(
    network: Network, plan: StepPlan, before: StreamState, image_tokens: Tensor, pose: Tensor, given: Tensor | None
) -> tuple[StreamState, Tensor, Tensor]:
    """The state of a frame with given poses (B, 4, 4), the tokens (B, N, C_e) of their rays, and those of both inputs.

    Without `given` intrinsics (B, 3, 3), the rays have those of the last frame.
    """
    known, alignment = known_poses.anchor(before.known, before.alignment, before.fresh, pose)
    before = dataclasses.replace(before, known=known, alignment=alignment)
    intrinsics = known.intrinsics if given is None else given
    rays = _encode_rays(network, plan, before, alignment.invert_on_pose(pose), intrinsics)
    # As the network was trained: the first view of a segment never comes with rays.
    return before, rays, image_tokens + torch.where(before.fresh[:, None, None], 0.0, rays)


def _encode_own_rays(
    network: Network, plan: StepPlan, before: StreamState, scale: Tensor, pose: Tensor, intrinsics: Tensor
) -> Tensor:
    """Tokens (B, N, C_e) of the rays of predicted cameras (B, 4, 4) in the stream's world; its scale (B,) is known."""
    # State and pose memory are in the segment's world, the pose is in the stream's.
    from_segment = dataclasses.replace(before.alignment, scale=scale)
    return _encode_rays(network, plan, before, from_segment.invert_on_pose(pose), intrinsics)


def _encode_rays(network: Network, plan: StepPlan, before: StreamState, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Tokens (B, N, C_e) of the rays of cameras (B, 4, 4) in the segment's world."""
    rays = cameras.ray_map(pose, intrinsics, before.size)
    with _autocast(plan.options, rays.device):
        return network.encode_rays(rays).float()


def run_main_branch(
    network: Network,
    plan: StepPlan,
    image_tokens: Tensor,
    tokens: Tensor,
    before: StreamState,
    *,
    want_attention: bool,
) -> View:
    """The main branch: decode `tokens` (B, N, C_e) with the state, and read pose and points.

    `image_tokens` (B, N, C_e) are those of the image alone.
    """
    with _autocast(plan.options, tokens.device):
        pose_token = network.read_memory(before.memory, tokens)
        pose_token = torch.where(before.fresh[:, None, None], network.first_pose_token, pose_token)
        decoded = network.decode(
            tokens, _grid(network, before), pose_token, before.state, want_attention=want_attention
        )
    decoded = _in_float32(decoded)
    points, confidence = network.self_points(decoded, before.size)
    return View(decoded, image_tokens, tokens, cameras.pose_matrix(network.pose(decoded)), points, confidence)


def _run_ray_branch(network: Network, plan: StepPlan, before: StreamState, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The ray branch: points (B, H, W, 3) and confidence (B, H, W) from the state and tokens of rays only."""
    with _autocast(plan.options, tokens.device):
        pose_token = network.read_memory(before.memory, tokens)
        decoded = network.decode(tokens, _grid(network, before), pose_token, before.state, want_state=False)
    return network.self_points(_in_float32(decoded), before.size)


def _track(plan: StepPlan, before: StreamState, main: View, given: Tensor | None) -> tuple[Track, KnownPoses]:
    """The predicted camera in the stream's world, smoothed if smoothing is on; and what a `given` pose determines."""
    smoothing, known = plan.options.smoothing, before.known
    if given is not None:
        known = known_poses.observe(known, before.alignment, given, main.pose, plan.method)
    pose_raw = dataclasses.replace(before.alignment, scale=known.scale).apply_to_pose(main.pose)
    if given is not None:
        known = known_poses.correct(known, given, pose_raw)
    state_change = (main.decoded.state - before.state).norm(dim=-1).mean(1)
    smoothed = smooth(before.smoother, pose_raw[:, :3, 3], state_change, tied=smoothing == "tied", method=plan.method)
    use = torch.zeros_like(before.fresh) if smoothing == "off" else torch.ones_like(before.fresh)
    if plan.routed:
        # Smoothing is on while the gate is, as the router decided after the last frame.
        use = use & before.router.gated
    position = torch.where(use[:, None], smoothed.state.position, pose_raw[:, :3, 3])
    smoother = dataclasses.replace(smoothed.state, started=use)
    pose = cameras.assemble_pose(pose_raw[:, :3, :3], position)
    return Track(pose, pose_raw, smoothed, state_change, smoother), known


def _maps(plan: StepPlan, main: View, motion: Motion | None, scale: Tensor) -> dict[str, Tensor]:
    """The maps of an estimate, in metres of the stream, and the scale (B,) from those of the segment."""
    return {
        "depth": main.points[..., 2] * scale[:, None, None],
        "points": main.points * scale[:, None, None, None],
        "confidence": main.confidence,
        "staticness": motion.pixel_staticness if plan.motion else torch.ones_like(main.confidence),
        "dynamic_mask": motion.mask if plan.motion else torch.zeros_like(main.confidence, dtype=torch.bool),
        "scale": scale.clone(),  # a recorded graph overwrites the state
    }


def _published_pose(plan: StepPlan, known: KnownPoses, given: Tensor | None, track: Track) -> Tensor:
    """(B, 4, 4) in the stream's world: given, or predicted and in `given` mode continued from the last given one."""
    if plan.options.published_pose == "network":
        return track.pose
    return known.correction @ track.pose if given is None else given


def _intrinsics(given: Tensor | None, points: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Intrinsics (B, 3, 3), given or from predicted points (B, H, W, 3), and (B,) bool: False if they are assumed."""
    if given is not None:
        return given, torch.ones(len(given), dtype=torch.bool, device=given.device)
    size = points.shape[1], points.shape[2]
    focal = cameras.focal_from_points(points, method.focal_iterations)
    low, high = method.focal_low * max(size), method.focal_high * max(size)
    coarse = cameras.median_focal_from_points(points, method.focal_votes)
    focal = torch.where((focal > low) & (focal < high), focal, coarse)
    known = (focal > low) & (focal < high)
    assumed = cameras.assumed_intrinsics(size, points.device)
    estimated = cameras.pinhole(torch.where(known, focal, 1.0), size)
    return torch.where(known[:, None, None], estimated, assumed), known


def _compare_branches(
    plan: StepPlan, main: View, ray_points: Tensor, ray_confidence: Tensor, *, want_tokens: bool
) -> Motion:
    """Staticness, dynamic mask and static weight, as far as the plan needs them; `want_tokens`: token staticness."""
    method, options = plan.method, plan.options
    depth, ray_depth = main.points[..., 2], ray_points[..., 2]
    delta = staticness.discrepancy(depth, ray_depth, ray_confidence, method)
    weight = staticness.confidence_weight(main.confidence, ray_confidence)
    from_mask = want_tokens and plan.rule.absolute_staticness
    trusted = ray_confidence >= method.min_ray_confidence
    pixel_staticness = mask = static = token_delta = token_staticness = None
    if plan.motion or from_mask:
        pixel_staticness = staticness.pixel_staticness(delta, weight, method)
    if plan.motion or from_mask:
        if options.mask.kind == "published":
            mask = pixel_staticness < method.published_mask_staticness
        else:
            mask = dynamic_mask(depth, ray_depth, trusted, options.mask, method)
    if plan.weighs:
        static = static_weight(depth, ray_depth, trusted, options.mask, method)
    if want_tokens:
        grid, attention = main.decoded.grid, main.decoded.attention
        token_delta = staticness.pool_to_tokens(delta, weight, grid, options.token_pooling)
        if from_mask:
            token_staticness = staticness.static_share(attention, mask, grid)
        else:
            projection = staticness.project_on_state(attention, token_delta)
            token_staticness = staticness.token_staticness(projection, method)
    plausible = plausibility(main.confidence, ray_confidence, depth, ray_depth, method)
    return Motion(ray_points, pixel_staticness, mask, static, token_delta, token_staticness, plausible)


def _update_state(
    network: Network,
    plan: StepPlan,
    before: StreamState,
    main: View,
    track: Track,
    motion: Motion | None,
) -> tuple[Tensor, Tensor, StreamState]:
    """Gate (B, S, 1), index of the rule in force (B,), and the state after the frame."""
    options, method = plan.options, plan.method
    router = before.router
    if plan.routed:
        route = route_published if options.router == "published" else route_adaptive
        router = route(before.router, cameras.quaternion(track.pose[:, :3, :3]), before.frame, method)

    static, known = before.staticness, before.staticness_known
    if plan.rule.needs_motion and motion is not None and before.frame >= method.gate_from_frame:
        # With the published router, staticness counts only after the router has decided.
        published = plan.routed and options.router == "published"
        take = router.decided if published else torch.ones_like(known)
        mixed = gates.accumulate_staticness(static, known, motion.token_staticness, method)
        static = torch.where(take[:, None, None], mixed, static)
        known = known | take

    gate, gate_memory = gates.decide(
        plan.rule, before.gate_memory, before.fresh, main.image_tokens, main.decoded, static, method
    )
    rule_index = torch.full_like(router.count, gates.rule_index(options.update_rule))
    if plan.routed:
        plain = torch.ones_like(gate)
        if options.router == "published":
            # The published code applies the motion gate to the plain rule, too.
            plain = plain * gates.motion_gate(static, method)
        gate = torch.where(router.gated[:, None, None], gate, plain)
        rule_index = torch.where(router.gated, rule_index, gates.rule_index(PLAIN_RULE))
    # The first frame replaces the initial state.
    gate = torch.where(before.fresh[:, None, None], 1.0, gate)

    after = dataclasses.replace(
        _take_in(network, plan, main, before, gate),
        staticness=static,
        staticness_known=known,
        gate_memory=gate_memory,
        smoother=track.smoother,
        router=router,
    )
    return gate, rule_index, after


def look(
    network: Network, plan: StepPlan, inputs: tuple[Tensor, Tensor], before: StreamState
) -> tuple[Sight, StreamState]:
    """Decode an image again, of which nothing is known but its tokens: what is seen, and the state after it.

    `inputs` are the image tokens (B, N, C_e), and which streams take the image in (B,) bool; the state of the others
    stays as it is.
    """
    tokens, takes = inputs
    view = run_main_branch(network, plan, tokens, tokens, before, want_attention=plan.rule.needs_attention)
    healthy = all_finite(view.decoded.state, view.pose, view.points)
    after = choose(takes & healthy, _take_in_still(network, plan, view, before), before)
    return Sight(view.pose, view.points, healthy), after


def _take_in_still(network: Network, plan: StepPlan, view: View, before: StreamState) -> StreamState:
    """State and pose memory after a view, as if nothing moved in it."""
    gate, gate_memory = gates.decide(
        plan.rule, before.gate_memory, before.fresh, view.image_tokens, view.decoded, before.staticness, plan.method
    )
    gate = torch.where(before.fresh[:, None, None], 1.0, gate)
    return dataclasses.replace(_take_in(network, plan, view, before, gate), gate_memory=gate_memory)


def _take_in(network: Network, plan: StepPlan, view: View, before: StreamState, gate: Tensor) -> StreamState:
    with _autocast(plan.options, gate.device):
        memory = network.write_memory(before.memory, view.tokens, view.decoded.pose_token).float()
    return dataclasses.replace(
        before,
        state=gate * view.decoded.state + (1 - gate) * before.state,
        memory=memory,
        fresh=torch.zeros_like(before.fresh),
    )


def _grid(network: Network, state: StreamState) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    patch = network.config.patch_size
    return state.size[0] // patch, state.size[1] // patch


def _autocast(options: StreamOptions, device: torch.device) -> contextlib.AbstractContextManager:
    """The context for encoders, decoder and pose memory."""
    if options.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, options.precision))


def _ignore(stage: str) -> None:
    """Stands in for `StageTimer.mark`."""


def _in_float32(decoded: Decoded) -> Decoded:
    """Heads, gates and the state are float32, whatever the precision of the decoder."""
    return dataclasses.replace(
        decoded,
        levels=tuple(level.float() for level in decoded.levels),
        pose_token=decoded.pose_token.float(),
        state=None if decoded.state is None else decoded.state.float(),
    )


def all_finite(*tensors: Tensor) -> Tensor:
    """(B,) whether every element of every tensor is finite."""
    return torch.stack([torch.isfinite(tensor).flatten(1).all(1) for tensor in tensors]).all(0)


def choose(first: Tensor, one: Any, other: Any) -> Any:
    """Dataclasses of one structure: `one` for the streams with `first` (B,), `other` for the rest."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return a if a is b else torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

    return map_tensors(choose, one, other)
