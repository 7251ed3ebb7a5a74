"""One stream: an image in, what is known of the world out (method of arXiv 2603.20588).

All that a stream remembers is one `StreamState` of fixed shape; the network itself remembers nothing, so any number
of streams can share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Decoded, Network
from raymap3r_ros.streaming import gates, staticness
from raymap3r_ros.streaming.alignment import align_segments
from raymap3r_ros.streaming.cuda_graphs import Graphs, copy_of, map_tensors
from raymap3r_ros.streaming.mask import moving_mask, stillness
from raymap3r_ros.streaming.preprocessing import Framing, frame_image, frame_images, frame_intrinsics
from raymap3r_ros.streaming.result import Estimate, StepResult, WorldChange
from raymap3r_ros.streaming.router import RouterState, route_adaptive, route_published
from raymap3r_ros.streaming.smoothing import Smoothed, SmootherState, smooth
from raymap3r_ros.streaming.stream_options import METHOD, UPDATE_RULES, Method, StreamOptions
from raymap3r_ros.streaming.timing import StageTimer

# The frame at which the memory is reset still belongs to the old segment; the change shows at the next one.
_AFTER_ALIGNMENT = {"robust": WorldChange.ALIGNED, "published": WorldChange.JUMPED, "off": WorldChange.NEW}


@dataclass
class StreamState:
    """Everything that B streams remember between frames. Tensors lead with B."""

    state: Tensor  # (B, S, C_d) what the network knows of the scene
    memory: Tensor  # (B, M, 2 C_d) what it knows of past views
    staticness: Tensor  # (B, S, 1) token staticness, smoothed over time
    staticness_known: Tensor  # (B,) bool
    gate_memory: gates.GateMemory
    fresh: Tensor  # (B,) bool: this memory has seen no image yet
    anchor: Similarity  # the segment's own world -> the stream's
    smoother: SmootherState
    router: RouterState
    frame: int  # index of the next frame
    segment: int  # how many times the memory was started anew
    reset_reason: str  # why the next frame starts a new world; "" where it does not
    world_change: WorldChange  # of the next frame
    size: tuple[int, int]  # H, W of the images that the network sees
    image_size: tuple[int, int]  # and of those that come


@dataclass(frozen=True)
class View:
    """What the network says of one image, in the segment's own world."""

    decoded: Decoded
    pose: Tensor  # (B, 4, 4) c2w
    points: Tensor  # (B, H, W, 3) in the camera frame
    confidence: Tensor  # (B, H, W)


@dataclass(frozen=True)
class Track:
    """Where the camera is, in the stream's world."""

    pose: Tensor  # (B, 4, 4) c2w, smoothed where smoothing is on
    pose_raw: Tensor  # (B, 4, 4) c2w as predicted
    smoothed: Smoothed
    state_change: Tensor  # (B,) mean length of the change that the frame proposes to the state tokens
    smoother: SmootherState  # for the next frame


@dataclass(frozen=True)
class Motion:
    """What moves. Maps are None where nobody asked for them."""

    ray_points: Tensor  # (B, H, W, 3) the static scene's answer, in the camera frame
    pixel_staticness: Tensor | None  # (B, H, W)
    mask: Tensor | None  # (B, H, W) bool
    stillness: Tensor | None  # (B, H, W) 0..1, see `mask.stillness`
    token_delta: Tensor | None  # (B, N) discrepancy of image tokens
    token_staticness: Tensor | None  # (B, S, 1)


@dataclass(frozen=True)
class Plan:
    """What is done with a frame: all that is decided on the host."""

    options: StreamOptions
    method: Method
    ask_rays: bool  # the ray branch is run
    motion: bool  # staticness and mask are made
    reset: bool  # the memory starts anew with this frame


@dataclass(frozen=True)
class Frame:
    """A frame on its way through a stream: ready for the network."""

    inputs: tuple[Tensor, Tensor | None]  # (B, H, W, 3) uint8 pixels, and (B, 3, 3) their intrinsics if they are given
    before: StreamState
    plan: Plan
    # The first frames of a stream differ from each other, and those that start the memory anew from the rest. All
    # others are of one kind: what is done with them depends on the plan and on shapes alone.
    steady: bool
    single: bool  # one image, not a batch of one
    stamp: float | None
    timer: StageTimer


class Stream:
    """B cameras of one size looked at frame by frame, with constant memory.

    `options` may be replaced between steps. Not thread-safe: one caller at a time.
    """

    def __init__(self, network: Network, options: StreamOptions | None = None, method: Method = METHOD) -> None:
        self.network = network
        self.options = options or StreamOptions()
        self.method = method
        self.device = next(network.parameters()).device
        self._state: StreamState | None = None
        self._graphs = Graphs() if self.device.type == "cuda" else None
        if network.precision not in ("float32", self.options.precision):
            raise OptionError(
                f"precision is {self.options.precision}, but the network's weights are {network.precision}"
            )
        if self.options.execution == "graph" and self._graphs is None:
            raise OptionError(f"execution is graph, which needs a GPU; the network is on {self.device}")
        if self.options.execution == "compile":
            network.compile_hot_parts()

    @property
    def records_graphs(self) -> bool:
        """Whether steady frames are recorded once and then replayed, as on a GPU: `warm_up` is worth its time."""
        return self._graphs is not None

    def reset(self) -> None:
        """Forget everything: the next frame starts a new world."""
        self._state = None

    def snapshot(self) -> StreamState | None:
        """A copy of all that is remembered, for `restore`; None before the first frame."""
        return copy_of(self._state)

    def restore(self, snapshot: StreamState | None) -> None:
        """Go on from a `snapshot` of this stream, or of another with the same network. The snapshot stays whole."""
        self._state = copy_of(snapshot)

    @torch.inference_mode()
    def step(
        self,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        motion: bool = True,
        record: dict[str, Any] | None = None,
    ) -> StepResult:
        """Take in one frame.

        `image` is RGB uint8 (h, w, 3), or (B, h, w, 3) for B cameras; any size, resized and cropped here. A change
        of its size starts a new world. `intrinsics` (3, 3) or (B, 3, 3) are in pixels of that image, pixel centres
        integer; without them the focal length is estimated. `stamp` is handed through. Without `motion` the ray
        branch is asked only where the update rule or an alignment needs it. Where it was not asked, as in frames
        between those of `ray_interval`, the result's own `motion` is False. What happens inside is put into `record`
        where it is given, for inspection.

        Raises InputError where image or intrinsics cannot be used; nothing is forgotten then.
        """
        frame = self.prepare(image, stamp, intrinsics, motion=motion)
        return self.finish(frame, *self.advance(frame, self._graphs, record))

    def prepare(
        self,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        motion: bool = True,
    ) -> Frame:
        """The first part of `step`, with its arguments: all that comes before the network. The stream stays as it is.

        Like `advance` and `finish` it is called in inference mode. Raises InputError where image or intrinsics cannot
        be used.
        """
        timer = StageTimer(self.device)
        options, config = self.options, self.network.config
        images, single = _image_batch(image)
        batch, height, width = images.shape[:3]
        framing = frame_image(width, height, options.image_size or config.image_size, config.patch_size)
        given = self._framed_intrinsics(intrinsics, batch, width, height, framing)
        pixels = frame_images(images, framing, self.device)
        before = self._state
        if before is None:
            before = self._begin(batch, framing.size, (height, width), "start")
        elif (before.size, before.image_size) != (framing.size, (height, width)) or len(before.state) != batch:
            before = self._begin(batch, framing.size, (height, width), "size")
        timer.mark("preprocess")
        plan = self._plan(before.frame, motion)
        steady = before.frame > self.method.router_last_frame and not plan.reset
        return Frame((pixels, given), before, plan, steady, single, stamp, timer)

    def advance(
        self, frame: Frame, graphs: Graphs | None = None, record: dict[str, Any] | None = None
    ) -> tuple[Estimate, StreamState]:
        """The second part of `step`: ask the network. Steady frames go through `graphs` where they may."""
        inputs, before, plan = frame.inputs, frame.before, frame.plan
        if graphs is None or not frame.steady or plan.options.execution == "plain" or record is not None:
            return self._advance(plan, inputs, before, frame.timer, record)
        estimate, after = graphs.run(self._advance, plan, inputs, before)
        frame.timer.mark("network")
        return estimate, after

    def finish(self, frame: Frame, estimate: Estimate, after: StreamState) -> StepResult:
        """The last part of `step`: remember, and tell."""
        before, plan = frame.before, frame.plan
        # What is no tensor came through a batch, or a graph, with what it had there.
        self._state = dataclasses.replace(
            after,
            frame=before.frame + 1,
            segment=before.segment + plan.reset,
            reset_reason="",
            world_change=_AFTER_ALIGNMENT[plan.options.reset_alignment] if plan.reset else WorldChange.NONE,
            image_size=before.image_size,
        )
        result = StepResult(
            **vars(estimate),
            image=frame.inputs[0],
            frame=before.frame,
            segment=before.segment,
            stamp=frame.stamp,
            motion=plan.motion,
            reset=before.frame == 0 or plan.reset,
            reset_reason="interval" if plan.reset else before.reset_reason,
            world_change=before.world_change,
            timer=frame.timer,
        )
        return result.camera(0) if frame.single else result

    def _plan(self, frame: int, motion: bool) -> Plan:
        options = self.options
        reset = bool(frame and options.reset_interval and frame % options.reset_interval == 0)
        # What moves must not take part in an alignment, whether anybody looks at the mask or not.
        align = reset and options.reset_alignment == "robust"
        due = frame % options.ray_interval == 0 and (motion or options.update_rule in gates.MOTION_RULES)
        ask_rays = (align or due) and frame >= self.method.warmup_frames
        return Plan(options, self.method, ask_rays, motion and ask_rays, reset)

    def _advance(
        self,
        plan: Plan,
        inputs: tuple[Tensor, Tensor | None],
        before: StreamState,
        timer: StageTimer | None = None,
        record: dict[str, Any] | None = None,
    ) -> tuple[Estimate, StreamState]:
        """One frame, pixels (B, H, W, 3) uint8 and intrinsics (B, 3, 3) if they are given: tensors in, tensors out.

        Nothing here looks at a tensor's values on the host, so that a GPU is never waited for; but for the frames
        at which the published alignment is asked for.
        """
        options, network = plan.options, self.network
        pixels, given = inputs
        mark = timer.mark if timer is not None else _no_mark
        with self._precision():
            tokens = network.encode_image((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()
        mark("encode")
        want_attention = options.update_rule in gates.ATTENTION_RULES or record is not None
        main = self._look(tokens, before, want_attention=want_attention)
        mark("decode")
        track = self._track(before, main)
        if given is None:
            matrix, known = self._estimate_intrinsics(main.points)
        else:
            matrix, known = given, torch.ones_like(before.fresh)
        mark("pose")

        moving = None
        if plan.ask_rays:
            ray_points, ray_confidence = self._ask_rays(before, track.pose, matrix)
            mark("ray_branch")
            moving = self._find_motion(
                main,
                ray_points,
                ray_confidence,
                want_maps=plan.motion,
                want_stillness=plan.reset and options.reset_alignment == "robust",
                want_tokens=options.update_rule in gates.MOTION_RULES or record is not None,
            )
            mark("motion")

        gate, rule_index, after = self._remember(before, tokens, main, track, moving)
        mark("update")
        if record is not None:
            record.update(view=main, track=track, motion=moving, after=after)
        alignment_error = None
        if plan.reset:
            after, alignment_error = self._start_segment(after, tokens, main, track, moving, record)
            mark("reset")
        outputs = main.decoded.state, main.pose, main.points, main.confidence
        healthy = _all_finite(*outputs, after.state, after.memory)

        scale = before.anchor.scale
        estimate = Estimate(
            pose=track.pose,
            pose_raw=track.pose_raw,
            depth=main.points[..., 2] * scale[:, None, None],
            points=main.points * scale[:, None, None, None],
            confidence=main.confidence,
            staticness=moving.pixel_staticness if plan.motion else torch.ones_like(main.confidence),
            dynamic_mask=moving.mask if plan.motion else torch.zeros_like(main.confidence, dtype=torch.bool),
            intrinsics=matrix,
            gate=gate[..., 0],
            scale=scale.clone(),  # what is remembered may be overwritten
            healthy=healthy,
            intrinsics_known=known,
            rule_index=rule_index,
            alignment_error=alignment_error,
        )
        after = _choose(healthy, after, before)
        mark("outputs")
        return estimate, after

    def _begin(self, batch: int, size: tuple[int, int], image_size: tuple[int, int], reason: str) -> StreamState:
        """The state of streams that have seen nothing."""
        config = self.network.config
        with self._precision():
            state = self.network.initial_state(batch).float()
        image_tokens = (size[0] // config.patch_size) * (size[1] // config.patch_size)
        return StreamState(
            state=state,
            memory=self.network.initial_memory(batch),
            staticness=torch.ones_like(state[..., :1]),
            staticness_known=torch.zeros(batch, dtype=torch.bool, device=self.device),
            gate_memory=gates.GateMemory.empty(state, image_tokens, config.encoder_width, self.method),
            fresh=torch.ones(batch, dtype=torch.bool, device=self.device),
            anchor=Similarity.identity(batch, self.device),
            smoother=SmootherState.empty(batch, self.device, self.method),
            router=RouterState.empty(batch, self.device, self.options.router),
            frame=0,
            segment=0,
            reset_reason=reason,
            world_change=WorldChange.NEW,
            size=size,
            image_size=image_size,
        )

    def _look(self, tokens: Tensor, before: StreamState, *, want_attention: bool) -> View:
        """Decode an image's tokens against what is remembered, and read pose and points."""
        network = self.network
        with self._precision():
            remembered = network.read_memory(before.memory, tokens)
            pose_token = torch.where(before.fresh[:, None, None], network.first_pose_token, remembered)
            decoded = network.decode(
                tokens, self._grid(before), pose_token, before.state, want_attention=want_attention
            )
        decoded = _in_float32(decoded)
        points, confidence = network.self_points(decoded, before.size)
        return View(decoded, cameras.pose_matrix(network.pose(decoded)), points, confidence)

    def _track(self, before: StreamState, main: View) -> Track:
        """The camera in the stream's world, smoothed if that is wanted."""
        options = self.options
        pose_raw = before.anchor.apply_to_pose(main.pose)
        state_change = (main.decoded.state - before.state).norm(dim=-1).mean(1)
        tied = options.smoothing == "tied"
        smoothed = smooth(before.smoother, pose_raw[:, :3, 3], state_change, tied=tied, method=self.method)
        use = torch.full_like(before.fresh, options.smoothing != "off")
        if self._routed:
            # Smoothing goes with the gate, as the router left it after the last frame.
            use = use & before.router.gated
        position = torch.where(use[:, None], smoothed.state.position, pose_raw[:, :3, 3])
        smoother = dataclasses.replace(smoothed.state, started=use)
        pose = cameras.assemble_pose(pose_raw[:, :3, :3], position)
        return Track(pose, pose_raw, smoothed, state_change, smoother)

    def _estimate_intrinsics(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Intrinsics (B, 3, 3) from the network's own points, and (B,) whether they could be found there."""
        size = points.shape[1], points.shape[2]
        focal = cameras.focal_from_points(points, self.method.focal_iterations)
        # Outside these limits (3 to 168 degrees of view) a point map is no picture of anything.
        low, high = 0.05 * max(size), 20 * max(size)
        focal = torch.where((focal > low) & (focal < high), focal, cameras.median_focal_from_points(points))
        known = (focal > low) & (focal < high)
        assumed = cameras.assumed_intrinsics(size, self.device)
        estimated = cameras.pinhole(torch.where(known, focal, 1.0), size)
        return torch.where(known[:, None, None], estimated, assumed), known

    def _ask_rays(self, before: StreamState, pose: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, H, W, 3) and confidence (B, H, W) that memory alone gives for a camera at `pose`."""
        network = self.network
        # State and memory live in the segment's own world, the pose in the stream's.
        rays = cameras.ray_map(before.anchor.invert_on_pose(pose), intrinsics, before.size)
        with self._precision():
            tokens = network.encode_rays(rays).float()
            pose_token = network.read_memory(before.memory, tokens)
            decoded = network.decode(tokens, self._grid(before), pose_token, before.state, want_state=False)
        return network.self_points(_in_float32(decoded), before.size)

    def _find_motion(
        self,
        main: View,
        ray_points: Tensor,
        ray_confidence: Tensor,
        *,
        want_maps: bool,
        want_stillness: bool,
        want_tokens: bool,
    ) -> Motion:
        """Compare the image's answer with the static scene's."""
        method, options = self.method, self.options
        depth, ray_depth = main.points[..., 2], ray_points[..., 2]
        delta = staticness.discrepancy(depth, ray_depth, ray_confidence, method)
        weight = staticness.confidence_weight(main.confidence, ray_confidence)
        absolute_tokens = want_tokens and options.update_rule == "motion_filter"
        trusted = ray_confidence >= method.min_ray_confidence
        pixel_staticness = mask = still = token_delta = token_staticness = None
        if want_maps or want_stillness or absolute_tokens:
            pixel_staticness = staticness.pixel_staticness(delta, weight, method)
        if want_maps or absolute_tokens:
            if options.mask.kind == "published":
                mask = pixel_staticness < 0.5
            else:
                mask = moving_mask(depth, ray_depth, trusted, options.mask)
        if want_stillness:
            still = stillness(depth, ray_depth, trusted, options.mask)
        if want_tokens:
            grid, attention = main.decoded.grid, main.decoded.attention
            token_delta = staticness.pool_to_tokens(delta, weight, grid, options.token_pooling)
            if absolute_tokens:
                token_staticness = staticness.static_share(attention, mask, grid)
            else:
                projection = staticness.project_on_state(attention, token_delta)
                token_staticness = staticness.token_staticness(projection, method)
        return Motion(ray_points, pixel_staticness, mask, still, token_delta, token_staticness)

    def _remember(
        self, before: StreamState, tokens: Tensor, main: View, track: Track, moving: Motion | None
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Write the frame into the memory.

        Returns the gate (B, S, 1), the index of the rule in force (B,), and what is remembered from now on.
        """
        options, method = self.options, self.method
        router = before.router
        if self._routed:
            route = route_published if options.router == "published" else route_adaptive
            router = route(before.router, cameras.quaternion(track.pose[:, :3, :3]), before.frame, method)

        static, known = before.staticness, before.staticness_known
        ready = moving is not None and before.frame >= method.gate_from_frame
        if options.update_rule in gates.MOTION_RULES and ready:
            # The published router looks at staticness only once it has decided.
            published = self._routed and options.router == "published"
            take = router.decided if published else torch.ones_like(known)
            mixed = gates.accumulate_staticness(static, known, moving.token_staticness, method)
            static = torch.where(take[:, None, None], mixed, static)
            known = known | take

        gate, gate_memory = gates.decide(
            options.update_rule, before.gate_memory, before.fresh, tokens, main.decoded, static, method
        )
        rule_index = torch.full_like(router.count, UPDATE_RULES.index(options.update_rule))
        if self._routed:
            plain = torch.ones_like(gate)
            if options.router == "published":
                # The published code multiplies the motion gate onto the plain rule as well.
                plain = plain * gates.motion_gate(static, method)
            gate = torch.where(router.gated[:, None, None], gate, plain)
            rule_index = torch.where(router.gated, rule_index, UPDATE_RULES.index("cut3r"))
        # A memory that has seen nothing takes in everything.
        gate = torch.where(before.fresh[:, None, None], 1.0, gate)

        with self._precision():
            memory = self.network.write_memory(before.memory, tokens, main.decoded.pose_token).float()
        after = dataclasses.replace(
            before,
            state=gate * main.decoded.state + (1 - gate) * before.state,
            memory=memory,
            staticness=static,
            staticness_known=known,
            gate_memory=gate_memory,
            fresh=torch.zeros_like(before.fresh),
            smoother=track.smoother,
            router=router,
        )
        return gate, rule_index, after

    def _start_segment(
        self,
        after: StreamState,
        tokens: Tensor,
        main: View,
        track: Track,
        moving: Motion | None,
        record: dict[str, Any] | None,
    ) -> tuple[StreamState, Tensor | None]:
        """Start the memory anew with this same frame, and tie the new segment's world to the stream's.

        Returns the new state and the error of the alignment (B,), see `align_segments`; None without alignment.
        """
        fresh = self._begin(len(tokens), after.size, after.image_size, "")
        rule = self.options.update_rule
        again = self._look(tokens, fresh, want_attention=rule in gates.ATTENTION_RULES)
        with self._precision():
            memory = self.network.write_memory(fresh.memory, tokens, again.decoded.pose_token).float()
        points = main.points * after.anchor.scale[:, None, None, None]
        cloud_before = cameras.transform_points(track.pose_raw, points).flatten(1, 2)
        cloud_after = cameras.transform_points(again.pose, again.points).flatten(1, 2)
        kind, anchor, error = self.options.reset_alignment, fresh.anchor, None
        if kind != "off":
            weight = main.confidence
            if kind == "robust" and moving is not None:
                weight = weight * moving.pixel_staticness * moving.stillness
            anchor, error = align_segments(
                kind,
                cloud_after,
                cloud_before,
                weight.flatten(1),
                again.pose,
                track.pose_raw,
                after.anchor.scale,
                self.method,
            )
        if record is not None:
            record.update(view_again=again, cloud_after=cloud_after)
        _, gate_memory = gates.decide(
            rule, fresh.gate_memory, fresh.fresh, tokens, again.decoded, fresh.staticness, self.method
        )
        started = dataclasses.replace(
            fresh,
            state=again.decoded.state,
            memory=memory,
            gate_memory=gate_memory,
            fresh=torch.zeros_like(fresh.fresh),
            anchor=anchor,
            # The tied smoother works in the stream's world, where nothing jumps, if it is held together.
            smoother=after.smoother if self.options.smoothing == "tied" and kind != "off" else fresh.smoother,
            router=after.router,
        )
        return started, error

    def _grid(self, state: StreamState) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        patch = self.network.config.patch_size
        return state.size[0] // patch, state.size[1] // patch

    @property
    def _routed(self) -> bool:
        """Whether a router may switch the rule; it knows only of the gated one."""
        return self.options.router != "off" and self.options.update_rule == "raymap3r"

    def _framed_intrinsics(
        self, intrinsics: np.ndarray | Tensor | None, batch: int, width: int, height: int, framing: Framing
    ) -> Tensor | None:
        """Given intrinsics as (B, 3, 3) of the framed image on the device. Raises InputError."""
        if intrinsics is None:
            return None
        matrix = np.asarray(intrinsics.cpu() if isinstance(intrinsics, Tensor) else intrinsics, dtype=np.float64)
        if matrix.shape not in ((3, 3), (batch, 3, 3)):
            raise InputError(f"intrinsics have shape {matrix.shape}; expected (3, 3) or ({batch}, 3, 3)")
        if not np.isfinite(matrix).all() or (matrix[..., 0, 0] <= 0).any() or (matrix[..., 1, 1] <= 0).any():
            raise InputError(
                "intrinsics need finite numbers and positive focal lengths fx, fy; is the camera calibrated?"
            )
        if matrix[..., 1, 0].any() or (matrix[..., 2, :] != (0, 0, 1)).any():
            raise InputError("intrinsics must have the form [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")
        framed = frame_intrinsics(np.broadcast_to(matrix, (batch, 3, 3)), width, height, framing)
        return torch.from_numpy(framed).float().to(self.device)

    def _precision(self) -> contextlib.AbstractContextManager:
        """Encoders, decoder and pose memory run in here."""
        if self.options.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.options.precision))


def _image_batch(image: np.ndarray | Tensor) -> tuple[np.ndarray, bool]:
    """(B, h, w, 3) uint8, and whether it was one image. Raises InputError."""
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (3, 4) or not image.size:
        what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"an image must be RGB uint8 of shape (h, w, 3), or (B, h, w, 3); got {what}")
    if image.shape[-1] != 3:
        raise InputError(f"an image must have 3 channels (RGB) in its last dimension; got shape {image.shape}")
    single = image.ndim == 3
    return image[None] if single else image, single


def _no_mark(stage: str) -> None:
    """Nobody measures."""


def _in_float32(decoded: Decoded) -> Decoded:
    """Heads, gates and the state are float32 whatever the decoder ran in."""
    return dataclasses.replace(
        decoded,
        levels=tuple(level.float() for level in decoded.levels),
        pose_token=decoded.pose_token.float(),
        state=None if decoded.state is None else decoded.state.float(),
    )


def _all_finite(*tensors: Tensor) -> Tensor:
    """(B,) whether every element of every tensor is finite."""
    return torch.stack([torch.isfinite(tensor).flatten(1).all(1) for tensor in tensors]).all(0)


def _choose(healthy: Tensor, after: StreamState, before: StreamState) -> StreamState:
    """`after` for the streams that are healthy (B,), what they remembered before for the others."""
    return map_tensors(lambda new, old: torch.where(healthy.view(-1, *[1] * (new.ndim - 1)), new, old), after, before)
