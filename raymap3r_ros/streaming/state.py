"""The recurrent state of a stream, and the data of a frame on its way through it. Tensors lead with the batch B."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import Tensor

from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.network import Decoded
from raymap3r_ros.streaming.gates import GateMemory, Rule
from raymap3r_ros.streaming.keyframes import Keyframes
from raymap3r_ros.streaming.known_poses import KnownPoses
from raymap3r_ros.streaming.method import Method
from raymap3r_ros.streaming.result import WorldChange
from raymap3r_ros.streaming.router import RouterState
from raymap3r_ros.streaming.smoothing import Smoothed, SmootherState
from raymap3r_ros.streaming.stream_options import StreamOptions
from raymap3r_ros.streaming.timing import StageTimer


@dataclass
class StreamState:
    """Everything that B streams keep between frames: of fixed shape, and all of it is here."""

    state: Tensor  # (B, S, C_d) state tokens
    memory: Tensor  # (B, M, 2 C_d) pose memory
    staticness: Tensor  # (B, S, 1) token staticness, smoothed over time
    staticness_known: Tensor  # (B,) bool
    gate_memory: GateMemory
    fresh: Tensor  # (B,) bool: state and pose memory are initial, no image has been processed
    alignment: Similarity  # from the segment's world to the stream's; `known.scale` replaces its scale in results
    known: KnownPoses
    smoother: SmootherState
    router: RouterState
    # What only follows the network, which runs without it: None there, and as long as there is nothing
    keyframes: Keyframes | None
    rehearsal: Rehearsal | None
    past: tuple[World, ...]  # worlds in which the camera may be found again, newest last
    search: Search | None
    world: int  # number of the current world, from its first frame on
    frame: int  # index of the next frame
    segment: int  # number of resets so far
    reset_reason: str  # why the next frame starts a new world; "" if it does not
    world_change: WorldChange  # of the next frame
    posed_frame: int  # index of the last frame with a given pose, -1 if there was none
    size: tuple[int, int]  # H, W of the preprocessed images
    image_size: tuple[int, int]  # h, w of the camera images


@dataclass
class Rehearsal:
    """A fresh memory that sees K keyframes again before it replaces the memory of B streams, see `rehearsal`."""

    memory: StreamState  # its world is the camera of the first of these keyframes
    slot: Tensor  # (B, K) of the keyframes, oldest first
    valid: Tensor  # (B, K) bool: there is such a keyframe
    pose: Tensor  # (B, K, 4, 4) where the new memory places them: camera to its world
    points: Tensor  # (B, K, P, 3) in the camera frame, metres of the new memory
    step: int  # number of steps done, of 2 K


@dataclass
class World:
    """The keyframes of a world that the camera has left."""

    number: int
    keyframes: Keyframes
    anchored: Tensor  # (1,) bool: it is the frame of given poses
    shared: bool = False  # the world of another stream


class WorldNumbers:
    """Numbers worlds in the order in which they begin, for one stream or for several. Thread-safe."""

    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """The number of a world that begins now."""
        with self._lock:
            self._next += 1
            return self._next - 1

    def skip(self, number: int) -> None:
        """Worlds that begin from now on have larger numbers than this one."""
        with self._lock:
            self._next = max(self._next, number + 1)


@dataclass
class Search:
    """A search for the camera among the keyframes of a past world, see `relocalisation`."""

    world: int  # its number
    rehearsal: Rehearsal  # of the keyframes most alike to the frame with which the search has begun
    accepted: bool  # the last frame was found there


@dataclass(frozen=True)
class View:
    """The main branch's prediction for one image, in the segment's world."""

    decoded: Decoded
    image_tokens: Tensor  # (B, N, C_e)
    tokens: Tensor  # (B, N, C_e) those decoded: plus the tokens of the rays if the pose is given
    pose: Tensor  # (B, 4, 4) c2w
    points: Tensor  # (B, H, W, 3) in the camera frame
    confidence: Tensor  # (B, H, W)


@dataclass(frozen=True)
class Sight:
    """What the main branch predicts for an image that it decodes again."""

    pose: Tensor  # (B, 4, 4) c2w in the segment's world
    points: Tensor  # (B, H, W, 3) in the camera frame, metres of the segment
    healthy: Tensor  # (B,) bool: all is finite


@dataclass(frozen=True)
class Track:
    """The camera's pose in the stream's world, as the network predicts it."""

    pose: Tensor  # (B, 4, 4) c2w, smoothed if smoothing is on
    pose_raw: Tensor  # (B, 4, 4) c2w as predicted, also if a pose is given
    smoothed: Smoothed
    state_change: Tensor  # (B,) mean length of the state tokens' proposed change
    smoother: SmootherState  # for the next frame


@dataclass(frozen=True)
class Motion:
    """The comparison of main and ray branch. Fields that are not needed are None."""

    ray_points: Tensor  # (B, H, W, 3) prediction of the ray branch, in the camera frame
    pixel_staticness: Tensor | None  # (B, H, W)
    mask: Tensor | None  # (B, H, W) bool, the dynamic mask
    static_weight: Tensor | None  # (B, H, W) 0..1, see `mask.static_weight`
    token_delta: Tensor | None  # (B, N) discrepancy of image tokens
    token_staticness: Tensor | None  # (B, S, 1)
    plausibility: Tensor  # (B, 3), see `plausibility`


@dataclass(frozen=True)
class StepPlan:
    """How a frame is processed: everything that is decided on the host. Equal plans run the same operations."""

    options: StreamOptions
    method: Method
    rule: Rule
    run_ray_branch: bool
    motion: bool  # staticness and dynamic mask are computed

    @property
    def routed(self) -> bool:
        """Whether a router may switch the rule. It is part of RayMap3R and exists for no other rule."""
        return self.options.router != "off" and self.options.update_rule == "raymap3r"

    @property
    def weighs(self) -> bool:
        """Whether motion includes `Motion.static_weight`, which keeps moving objects out of alignments."""
        return self.motion and self.options.reset_alignment == "robust" and self.options.reset_interval > 0


@dataclass(frozen=True)
class PreparedFrame:
    """A preprocessed frame, ready for the network."""

    # (B, H, W, 3) uint8 pixels; their intrinsics (B, 3, 3) and camera poses (B, 4, 4), each if given
    inputs: tuple[Tensor, Tensor | None, Tensor | None]
    before: StreamState  # without what only follows the network
    kept: StreamState  # with it
    plan: StepPlan
    motion: bool  # the caller wants staticness and dynamic mask
    task: str  # what follows the network, see `rehearsal.task_at`
    # Whether the plan and the shapes alone determine the operations of the network. This is not so for the first
    # frames of a stream.
    steady: bool
    single: bool  # one image, not a batch of one
    stamp: float | None
    timer: StageTimer
