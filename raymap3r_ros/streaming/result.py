"""What one step of a stream gives."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.streaming.stream_options import UPDATE_RULES
from raymap3r_ros.streaming.timing import StageTimer


class WorldChange(enum.Enum):
    """How the world of a frame's pose relates to the world of the frame before."""

    NONE = "none"  # the same world
    ALIGNED = "aligned"  # the first frame of a new segment, aligned without a jump
    JUMPED = "jumped"  # the first frame of a new segment, aligned with a jump of unknown size
    NEW = "new"  # a world of its own: earlier poses, points and scale say nothing about it


@dataclass(frozen=True)
class Estimate:
    """What one frame says, as tensors on the network's device.

    H x W is the size at which the network sees the image; every map is aligned with that image, pixel for pixel. The
    world is the camera frame of the stream's first image: x right, y down, z forward, metres as the network believes
    them. For a batch of B cameras every tensor has a leading B.
    """

    pose: Tensor  # (4, 4) camera to world, smoothed where smoothing is on
    pose_raw: Tensor  # (4, 4) camera to world as predicted (after alignment, before smoothing)
    depth: Tensor  # (H, W) metres along z
    points: Tensor  # (H, W, 3) metres, in the camera frame
    confidence: Tensor  # (H, W) at least 1
    staticness: Tensor  # (H, W) 0..1, relative to the rest of the image; 1 where nobody asked what moves
    dynamic_mask: Tensor  # (H, W) bool: moves; False where nobody asked
    intrinsics: Tensor  # (3, 3) pixels of the H x W image: the given ones, else estimated from the points
    gate: Tensor  # (S,) share of its candidate that each state token took in
    scale: Tensor  # () factor from the segment's own metres to the stream's
    healthy: Tensor  # () bool: every network output is finite; if not, the memory was left as it was
    intrinsics_known: Tensor  # () bool: given or well estimated; False: a field of view had to be assumed
    rule_index: Tensor  # () position in UPDATE_RULES of the rule in force
    # () median relative residual of the reset alignment at this frame; NaN: no point told the scale and the last one
    # was kept. None at other frames, and without alignment.
    alignment_error: Tensor | None


@dataclass(frozen=True)
class StepResult(Estimate):
    """Everything known after one frame: an `Estimate`, and what it belongs to."""

    image: Tensor  # (H, W, 3) uint8 RGB, as the network saw it
    frame: int  # index in the stream, from 0
    segment: int  # how many times the memory was started anew
    stamp: float | None  # as given to `step`
    motion: bool  # whether staticness and mask were made for this frame
    reset: bool  # the memory was started anew at this frame
    reset_reason: str  # "start", "interval", "size" or ""
    timer: StageTimer  # see `timings`
    world_change: WorldChange = WorldChange.NONE

    @property
    def dynamic_map(self) -> Tensor:
        """(H, W) 1 - staticness: how much a pixel moves, relative to the rest of the image."""
        return 1 - self.staticness

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds per stage. On a GPU this waits for the frame to be finished."""
        return self.timer.milliseconds()

    @property
    def rule(self) -> str | list[str]:
        """Name of the update rule in force; a list of names for a batch."""
        names = [UPDATE_RULES[index] for index in self.rule_index.reshape(-1).tolist()]
        return names if self.rule_index.ndim else names[0]

    def numpy(self, *names: str) -> dict[str, np.ndarray]:
        """The named tensors as arrays in host memory (`dynamic_map` too), from a GPU in a single copy."""
        return dict(zip(names, to_host([getattr(self, name) for name in names]), strict=True))

    def camera(self, index: int) -> StepResult:
        """The result of one camera of a batch."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return StepResult(**{k: v[index] if isinstance(v, Tensor) else v for k, v in values.items()})


def to_host(tensors: list[Tensor]) -> list[np.ndarray]:
    """Tensors of one device as arrays in host memory; from a GPU packed into a single copy, waited for once."""
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    packed = pack(tensors)
    host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(packed.device).synchronize()
    return unpack(host.numpy(), tensors)


def pack(tensors: list[Tensor]) -> Tensor:
    """The bytes of all tensors, one after the other: those of the widest numbers first, so that each is aligned."""
    order = sorted(tensors, key=lambda tensor: -tensor.element_size())
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in order])


def unpack(packed: np.ndarray, tensors: list[Tensor]) -> list[np.ndarray]:
    """What `pack` has packed, as arrays that share the memory of `packed`."""
    arrays: dict[int, np.ndarray] = {}
    start = 0
    for index in sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size()):
        tensor = tensors[index]
        end = start + tensor.numel() * tensor.element_size()
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays[index] = packed[start:end].view(kind).reshape(tensor.shape)
        start = end
    return [arrays[index] for index in range(len(tensors))]
