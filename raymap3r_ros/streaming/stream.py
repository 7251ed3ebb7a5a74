"""One stream: images in, results out. The state of a stream is one `StreamState`; the network itself keeps none, so
any number of streams can share it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.geometry.calibration import intrinsics_problem
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import engine, rehearsal, relocalisation
from raymap3r_ros.streaming.cuda_graphs import Capture
from raymap3r_ros.streaming.gates import RULES
from raymap3r_ros.streaming.known_poses import checked_pose
from raymap3r_ros.streaming.method import METHOD, Method
from raymap3r_ros.streaming.preprocessing import Framing, frame_image, frame_images, frame_intrinsics
from raymap3r_ros.streaming.recordings import Recordings, Work, recordings
from raymap3r_ros.streaming.result import Estimate, StepResult, WorldChange
from raymap3r_ros.streaming.segments import start_segment
from raymap3r_ros.streaming.state import PreparedFrame, StepPlan, StreamState, World, WorldNumbers
from raymap3r_ros.streaming.stream_options import StreamOptions, check_known_poses, check_search, searches
from raymap3r_ros.streaming.tensors import copy_of, tensors_of
from raymap3r_ros.streaming.timing import StageTimer
from raymap3r_ros.streaming.world_files import SavedWorld, in_slots

log = logging.getLogger(__name__)

_ANY_SIZE = (0, 0)  # `image_size` of a state whose first image has not come yet

# The frame at which the state is reset still belongs to the old segment; the change shows at the next one.
_AFTER_ALIGNMENT = {"robust": WorldChange.ALIGNED, "published": WorldChange.JUMPED, "off": WorldChange.NEW}


class Stream:
    """B cameras of one image size, processed frame by frame in constant memory.

    `options` may be replaced between steps. Not thread-safe: one caller at a time.
    """

    def __init__(
        self,
        network: Network,
        options: StreamOptions | None = None,
        method: Method = METHOD,
        *,
        capture: Capture | None = None,
        numbers: WorldNumbers | None = None,
    ) -> None:
        """`capture` replaces the recording of CUDA graphs, see `record_graph`; without it, only a GPU records them.

        Streams that `share` their worlds need the same `numbers`.

        Raises OptionError if the network or its device cannot be used with the options.
        """
        self.network = network
        self.options = options or StreamOptions()
        self.method = method
        self.device = next(network.parameters()).device
        self._state: StreamState | None = None
        self._numbers = numbers or WorldNumbers()
        if network.precision not in ("float32", self.options.precision):
            raise OptionError(
                f"precision is {self.options.precision}, but the network's weights are {network.precision}"
            )
        self._recordings = recordings(network, self.options, capture)
        if self.options.execution == "compile":
            network.compile_hot_parts()

    @property
    def records(self) -> bool:
        """Whether steady frames are recorded once and then repeated, so that `warm_up` is worthwhile."""
        return self._recordings is not None

    @property
    def takes_poses(self) -> bool:
        """Whether the world is the frame of the given poses, or has not begun.

        If it is False and the caller's poses are not relative to the first camera, call `reset` before the first
        frame with a pose: it then starts a new world in their frame.
        """
        return self._state is None or self._state.frame == 0 or bool(self._state.known.anchored.all())

    def reset(self, *, relocalize: bool = False) -> None:
        """Clear the state: the next frame starts a new world.

        With `relocalize`, and if the options have `keyframes.relocalize`, the stream of a single camera searches for
        it among the keyframes of earlier worlds: in the first frames, and ever more rarely after them. If it is
        found, the earlier world continues, see `WorldChange.RETURNED`. A known pose ends the search.
        """
        before, self._state = self._state, None
        if relocalize and before is not None and searches(self.options):
            past = relocalisation.past_worlds(before, self.method)
            fresh = self._initial_state(len(before.state), before.size, before.image_size, "start")
            self._state = dataclasses.replace(fresh, past=past)

    def current_world(self) -> SavedWorld | None:
        """The keyframes of the current world, for `save_world`; None without any, and for more than one camera.

        May be called from any thread.
        """
        state = self._state  # read once: keyframes are replaced, not changed
        if state is None or state.frame == 0 or state.keyframes is None or len(state.state) > 1:
            return None
        return SavedWorld(state.keyframes, state.size, number=state.world)

    def add_world(self, world: SavedWorld) -> int:
        """Search for the camera in a saved world from the first frame on; returns the number of that world.

        If the camera is found, the saved world continues, see `WorldChange.RETURNED`. The search ends like one after
        `reset`. Images whose preprocessed size is another one cannot be compared: the world is dropped then, with a
        warning.

        Raises OptionError without keyframes or `keyframes.relocalize`, and after the first frame since a reset.
        """
        check_search(self.options)
        if self._state is not None:
            raise OptionError("a saved world can be added before the first frame only; reset the stream before")
        number = self._numbers.take()
        keyframes = in_slots(world.keyframes, self.options.keyframes.size)
        fresh = self._initial_state(1, world.size, _ANY_SIZE, "start")
        self._state = dataclasses.replace(fresh, past=(World(number, keyframes, fresh.known.anchored),))
        return number

    @property
    def search_begins(self) -> bool:
        """Whether a search for the camera may begin with the next frame: the time to `share` worlds."""
        state, slots = self._state, self.options.keyframes.size
        return state is not None and relocalisation.begins(state.frame, slots, self.method)

    def share(self, worlds: Sequence[SavedWorld]) -> list[SavedWorld]:
        """Search for the camera in the current `worlds` of other streams too; they replace those of the last call.

        Returns those in which it can be found: not the stream's own ones, nor those of other image sizes. Only worlds
        that have begun before its own are searched. If the camera is found, that world continues, see
        `WorldChange.RETURNED`: with the keyframes of now, and from then on for itself. Nothing is searched before the
        first frame, with known poses, without `keyframes.relocalize`, and for several cameras in one stream.
        """
        state = self._state
        if state is None or not searches(self.options) or len(state.state) > 1 or state.posed_frame >= 0:
            return []
        own = tuple(one for one in state.past if not one.shared)
        numbers = {state.world, *(one.number for one in own)}
        usable = [world for world in worlds if world.number not in numbers and world.size == state.size]
        anchored = torch.zeros_like(state.known.anchored)
        shared = (
            World(world.number, in_slots(world.keyframes, self.options.keyframes.size), anchored, shared=True)
            for world in usable
        )
        self._state = dataclasses.replace(state, past=(*own, *shared))
        return usable

    @property
    def kept_bytes(self) -> int:
        """Memory of all that the stream keeps between frames, for each of its cameras; without the network."""
        state = self._state
        if state is None:
            return 0
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state)) // len(state.state)

    def snapshot(self) -> StreamState | None:
        """A copy of the state, for `restore`; None before the first frame."""
        return copy_of(self._state)

    def restore(self, snapshot: StreamState | None) -> None:
        """Continue from a `snapshot` of any stream with the same network. The snapshot can be used again."""
        self._state = copy_of(snapshot)
        if snapshot is not None:
            self._numbers.skip(snapshot.world)

    @torch.inference_mode()
    def step(
        self,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        pose: np.ndarray | Tensor | None = None,
        motion: bool = True,
        record: dict[str, Any] | None = None,
    ) -> StepResult:
        """Process one frame.

        `image` is RGB uint8 (h, w, 3), or (B, h, w, 3) for B cameras, of any size; it is resized and cropped here. A
        change of its size starts a new world. `intrinsics` (3, 3) or (B, 3, 3) are in pixels of that image, with
        integer pixel centres; without them the focal length is estimated. `stamp` is copied to the result.

        `pose` (4, 4) or (B, 4, 4) is the known pose of the camera (x right, y down, z forward) in the stream's world,
        metres, if there is one for this frame. If the first frame has a pose, the world is the frame of the given
        poses; otherwise it is the first camera, see `takes_poses`.

        Without `motion` the ray branch runs only if the update rule or an alignment needs it. In frames without the
        ray branch, as those between two of `ray_interval`, `motion` of the result is False. A `record` receives
        intermediate results for inspection.

        Raises InputError if image, intrinsics or pose cannot be used, and OptionError for a pose if the segments are
        not aligned; the state is unchanged then.
        """
        frame = self.prepare(image, stamp, intrinsics, pose=pose, motion=motion)
        return self.finish(frame, *self.advance(frame, self._recordings, record), record)

    def prepare(
        self,
        image: np.ndarray | Tensor,
        stamp: float | None = None,
        intrinsics: np.ndarray | Tensor | None = None,
        *,
        pose: np.ndarray | Tensor | None = None,
        motion: bool = True,
    ) -> PreparedFrame:
        """The first part of `step`, with its arguments: everything before the network. The state is unchanged.

        Like `advance` and `finish` it is called in inference mode. Raises what `step` raises.
        """
        timer = StageTimer(self.device)
        options, config = self.options, self.network.config
        images, single = _image_batch(image)
        batch, height, width = images.shape[:3]
        framing = frame_image(width, height, options.image_size or config.image_size, config.patch_size)
        given = self._framed_intrinsics(intrinsics, batch, width, height, framing)
        camera = self._checked_pose(pose, batch)
        pixels = frame_images(images, framing, self.device)
        kept = self._state
        if kept is not None and kept.image_size == _ANY_SIZE:
            kept = self._state = self._with_image_size(kept, batch, framing.size, (height, width))
        if kept is None:
            kept = self._initial_state(batch, framing.size, (height, width), "start")
        elif (kept.size, kept.image_size) != (framing.size, (height, width)) or len(kept.state) != batch:
            kept = self._initial_state(batch, framing.size, (height, width), "size")
        before = dataclasses.replace(kept, keyframes=None, rehearsal=None, past=(), search=None)
        timer.mark("preprocess")
        plan = self.plan(before.frame, motion=motion)
        task = rehearsal.task_at(options, self.method, before.frame)
        steady = before.frame > self.method.router_last_frame
        return PreparedFrame((pixels, given, camera), before, kept, plan, motion, task, steady, single, stamp, timer)

    def advance(
        self, frame: PreparedFrame, recordings: Recordings | None = None, record: dict[str, Any] | None = None
    ) -> tuple[Estimate, StreamState]:
        """The second part of `step`: the network. Steady frames use the `recordings`, unless execution is plain."""
        inputs, before, plan = frame.inputs, frame.before, frame.plan
        if recordings is None or not frame.steady or plan.options.execution == "plain" or record is not None:
            return engine.advance(self.network, plan, inputs, before, frame.timer, record)
        estimate, after = recordings.run(Work(engine.advance, self.network, plan, before.size), inputs, before)
        frame.timer.mark("network")
        return estimate, after

    def finish(
        self, frame: PreparedFrame, estimate: Estimate, after: StreamState, record: dict[str, Any] | None = None
    ) -> StepResult:
        """The last part of `step`: what follows the network, store the state, and assemble the result."""
        before, kept, plan = frame.before, frame.kept, frame.plan
        pose, resets = frame.inputs[2], frame.task == "reset"
        world = self._numbers.take() if before.frame == 0 else kept.world
        # From a batch or a graph, all values that are not tensors may belong to another frame.
        own = {name: getattr(kept, name) for name in ("frame", "size", "image_size", "past", "search")}
        after = dataclasses.replace(after, keyframes=kept.keyframes, rehearsal=kept.rehearsal, world=world, **own)
        if pose is not None:  # the world is the frame of the given poses
            after = dataclasses.replace(after, past=(), search=None)
        alignment_error = None
        aligned_by_keyframes = resets and rehearsal.is_complete(after.rehearsal)
        look = self._look(before.size, record)
        if resets:
            after, alignment_error = start_segment(self.network, look, plan, pose, estimate, after, record)
            frame.timer.mark("reset")
        elif frame.task == "rehearse":
            after = rehearsal.rehearse(self.network, look, plan, estimate, after)
            frame.timer.mark("keyframes")
        elif frame.task == "store":
            after = rehearsal.remember(plan, estimate, after)
            frame.timer.mark("keyframes")
        returned = False
        if relocalisation.searched(after):
            fresh = partial(self._initial_state, len(after.state), before.size, before.image_size, "")
            after, returned = relocalisation.seek(look, fresh, estimate, after, self.method)
            frame.timer.mark("search")
        world_change = _change_after(frame, aligned_by_keyframes=aligned_by_keyframes)
        self._state = dataclasses.replace(
            after,
            frame=before.frame + 1,
            segment=before.segment + (resets or returned),
            reset_reason="",
            world_change=WorldChange.RETURNED if returned else world_change,
            posed_frame=before.posed_frame if pose is None else before.frame,
            size=before.size,
            image_size=before.image_size,
        )
        result = StepResult(
            **vars(estimate),
            image=frame.inputs[0],
            frame=before.frame,
            segment=before.segment,
            world=world,
            past_worlds=tuple(world.number for world in self._state.past),
            stamp=frame.stamp,
            motion=plan.motion and frame.motion,
            reset=before.frame == 0 or resets or returned,
            reset_reason="found" if returned else "interval" if resets else before.reset_reason,
            alignment_error=alignment_error,
            world_change=_change_at(frame),
            pose_given=pose is not None,
            timer=frame.timer,
        )
        return result.camera(0) if frame.single else result

    def _look(self, size: tuple[int, int], record: dict[str, Any] | None = None) -> rehearsal.Look:
        """`engine.look` at images of `size` (H, W), recorded like the frames."""
        plan = StepPlan(self.options, self.method, RULES[self.options.update_rule], run_ray_branch=False, motion=False)
        work = Work(engine.look, self.network, plan, size)
        if self._recordings is None or self.options.execution == "plain" or record is not None:
            return work
        return partial(self._recordings.run, work)

    @torch.inference_mode()
    def warm_up_reset(self) -> None:
        """Record what a reset needs. The stream must have been stepped; its state is unchanged."""
        state = self._initial_state(len(self._state.state), self._state.size, self._state.image_size, "")
        tokens = torch.zeros_like(state.gate_memory.tokens)
        self._look(state.size)((tokens, torch.zeros_like(state.fresh)), state)

    def plan(self, frame: int, *, motion: bool = True) -> StepPlan:
        """How the network runs for the frame with this index; `motion` as in `step`."""
        options, rule = self.options, RULES[self.options.update_rule]
        task = rehearsal.task_at(options, self.method, frame)
        # Moving objects take no part in alignments.
        needed = task == "store" or (task == "reset" and options.reset_alignment == "robust")
        due = frame % options.ray_interval == 0 and (motion or rule.needs_motion)
        run_ray_branch = (needed or due) and frame >= self.method.warmup_frames
        return StepPlan(options, self.method, rule, run_ray_branch, motion=(motion or needed) and run_ray_branch)

    def _initial_state(
        self, batch: int, size: tuple[int, int], image_size: tuple[int, int], reason: str
    ) -> StreamState:
        return engine.initial_state(self.network, self.options, self.method, batch, size, image_size, reason)

    def _with_image_size(
        self, waiting: StreamState, batch: int, size: tuple[int, int], image_size: tuple[int, int]
    ) -> StreamState | None:
        """The state that was `waiting` for its first image, which has come; None if its world cannot be used."""
        if (batch, size) == (1, waiting.size):
            return dataclasses.replace(waiting, image_size=image_size)
        (height, width), (old_height, old_width) = size, waiting.size
        log.warning(
            "the saved world is not used: its images have %dx%d pixels after preprocessing, those of this stream "
            "%dx%d%s; use the same camera and image_size", old_width, old_height, width, height,
            "" if batch == 1 else f" for each of {batch} cameras",
        )  # fmt: skip
        return None

    def _checked_pose(self, pose: np.ndarray | Tensor | None, batch: int) -> Tensor | None:
        """A given pose as (B, 4, 4) on the device. Raises InputError, and OptionError if segments are not aligned."""
        if pose is None:
            return None
        check_known_poses(self.options)
        return torch.from_numpy(checked_pose(pose, batch)).float().to(self.device)

    def _framed_intrinsics(
        self, intrinsics: np.ndarray | Tensor | None, batch: int, width: int, height: int, framing: Framing
    ) -> Tensor | None:
        """Given intrinsics as (B, 3, 3) of the preprocessed image on the device. Raises InputError."""
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
        for one in matrix.reshape(-1, 3, 3):
            if problem := intrinsics_problem(one, (width, height), cropped=True):
                raise InputError(f"intrinsics cannot be used: {problem}; give those of the images passed here")
        framed = frame_intrinsics(np.broadcast_to(matrix, (batch, 3, 3)), width, height, framing)
        return torch.from_numpy(framed).float().to(self.device)


def _change_at(frame: PreparedFrame) -> WorldChange:
    """How the world of a frame relates to the world of the frame before."""
    before, change = frame.before, frame.before.world_change
    posed, given = frame.inputs[2] is not None, frame.plan.options.published_pose == "given"
    if not (posed and given) or change is WorldChange.NEW:
        return change
    if before.posed_frame == before.frame - 1:  # both poses are given: no alignment affects them
        return WorldChange.ALIGNED if change in (WorldChange.CORRECTED, WorldChange.JUMPED) else change
    return WorldChange.KNOWN if change is WorldChange.NONE else WorldChange.JUMPED


def _change_after(frame: PreparedFrame, *, aligned_by_keyframes: bool) -> WorldChange:
    """How the world of the next frame relates to the world of this one."""
    if frame.task != "reset":
        return WorldChange.NONE
    change = _AFTER_ALIGNMENT[frame.plan.options.reset_alignment]
    if aligned_by_keyframes:
        change = WorldChange.CORRECTED
    posed = frame.inputs[2] is not None or frame.before.posed_frame >= 0
    if (
        posed
        and frame.plan.options.published_pose == "network"
        and change in (WorldChange.ALIGNED, WorldChange.CORRECTED)
    ):
        return WorldChange.JUMPED  # the new segment is aligned with the given poses, not with the predicted ones
    return change


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
