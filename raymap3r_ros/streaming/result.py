"""The result of one step of a stream."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.streaming.gates import rule_name
from raymap3r_ros.streaming.timing import StageTimer


class WorldChange(enum.Enum):
    """How the world of a frame's pose relates to the world of the frame before."""

    NONE = "none"  # the same world
    ALIGNED = "aligned"  # the first frame of a new segment, aligned without a jump
    CORRECTED = (
        "corrected"  # the first frame of a new segment, aligned with keyframes: drift is corrected by a small jump
    )
    KNOWN = "known"  # the same world, in which the pose jumps from a predicted one to a known one
    JUMPED = "jumped"  # the first frame of a new segment, aligned with a jump of unknown size
    RETURNED = "returned"  # the camera was found in an earlier world, see `StepResult.world`, which continues
    NEW = "new"  # unrelated to the world before: earlier poses, points and scale do not apply


@dataclass(frozen=True)
class Estimate:
    """The prediction for one frame, as tensors on the network's device.

    H x W is the size of the preprocessed image; every map is aligned with that image, pixel for pixel. The world is
    the camera frame of the stream's first image: x right, y down, z forward, in metres as estimated by the network. If
    a pose was given with that image, the world is the frame of the given poses.
    For a batch of B cameras every tensor has a leading B.
    """

    pose: Tensor  # (4, 4) camera to world: given, or predicted and smoothed, see `StreamOptions.published_pose`
    pose_raw: Tensor  # (4, 4) camera to world as predicted (after alignment, before smoothing)
    depth: Tensor  # (H, W) metres along z
    points: Tensor  # (H, W, 3) metres, in the camera frame
    confidence: Tensor  # (H, W) at least 1
    staticness: Tensor  # (H, W) 0..1, relative to the rest of the image; 1 if motion was not estimated
    dynamic_mask: Tensor  # (H, W) bool: True on moving objects; False if motion was not estimated
    intrinsics: Tensor  # (3, 3) pixels of the H x W image: as given, else estimated from the points
    gate: Tensor  # (S,) share of its candidate in each new state token
    scale: Tensor  # () factor from the segment's own metres to the stream's
    healthy: Tensor  # () bool: every network output is finite; if not, the state was not updated
    intrinsics_known: Tensor  # () bool: given or estimated; False: a field of view was assumed
    rule_index: Tensor  # () position in `gates.RULES` of the rule in force
    image_tokens: Tensor  # (N, C_e) of the image, row by row
    static_weight: Tensor | None  # (H, W) 0..1, see `mask.static_weight`; None if no alignment may need it
    plausibility: Tensor | None  # (3,) whether the weights fit the image, see `plausibility`; None without rays


@dataclass(frozen=True)
class StepResult(Estimate):
    """The `Estimate` of one frame, and the frame that it belongs to."""

    image: Tensor  # (H, W, 3) uint8 RGB, preprocessed
    frame: int  # index in the stream, from 0
    segment: int  # number of resets before this frame
    stamp: float | None  # as given to `step`
    motion: bool  # whether staticness and dynamic mask were wanted and computed for this frame
    reset: bool  # the stream started or was reset at this frame
    reset_reason: str  # "start", "interval", "size", "found" or ""
    timer: StageTimer  # see `timings`
    # () median relative residual of the reset alignment at this frame; NaN: no usable points, the last scale was kept.
    # None at other frames, and without alignment.
    alignment_error: Tensor | None = None
    world_change: WorldChange = WorldChange.NONE
    world: int = 0  # number of the world of the pose; an earlier one comes back if the camera is found in it
    past_worlds: tuple[int, ...] = ()  # earlier worlds that may still come back
    pose_given: bool = False  # a pose was given to `step`

    @property
    def dynamic_map(self) -> Tensor:
        """(H, W) 1 - staticness: per-pixel dynamic score, relative to the rest of the image."""
        return 1 - self.staticness

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds per stage. On a GPU this waits until the frame is finished."""
        return self.timer.milliseconds()

    @property
    def rule(self) -> str | list[str]:
        """Name of the update rule in force; a list of names for a batch."""
        names = [rule_name(index) for index in self.rule_index.reshape(-1).tolist()]
        return names if self.rule_index.ndim else names[0]

    def numpy(self, *names: str) -> dict[str, np.ndarray]:
        """The named tensors as arrays in host memory (`dynamic_map` too), from a GPU in a single copy."""
        return dict(zip(names, to_host([getattr(self, name) for name in names]), strict=True))

    def camera(self, index: int) -> StepResult:
        """The result of one camera of a batch."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return StepResult(**{k: v[index] if isinstance(v, Tensor) else v for k, v in values.items()})


def to_host(tensors: list[Tensor]) -> list[np.ndarray]:
    """Tensors of one device as arrays in host memory; from a GPU in a single copy with one synchronisation."""
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    packed = pack(tensors)
    host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(packed.device).synchronize()
    return unpack(host.numpy(), tensors)


def pack(tensors: list[Tensor]) -> Tensor:
    """The bytes of all tensors, concatenated. The widest number types come first, so that each is aligned."""
    order = sorted(tensors, key=lambda tensor: -tensor.element_size())
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in order])


def unpack(packed: np.ndarray, tensors: list[Tensor]) -> list[np.ndarray]:
    """The reverse of `pack`: arrays that share the memory of `packed`."""
    arrays: dict[int, np.ndarray] = {}
    start = 0
    for index in sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size()):
        tensor = tensors[index]
        end = start + tensor.numel() * tensor.element_size()
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays[index] = packed[start:end].view(kind).reshape(tensor.shape)
        start = end
    return [arrays[index] for index in range(len(tensors))]
