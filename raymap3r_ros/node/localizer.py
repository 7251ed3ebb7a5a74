"""Where the camera is: metric scale, TF placement, and what follows from a change of the stream's world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from builtin_interfaces.msg import Time
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale import MetricScale, RangeReading, ScaleEstimate, ScaleEstimator
from raymap3r_ros.node import conversions
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.node.rangers import Rangers
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.node.summary import FrameSummary
from raymap3r_ros.node.tf_frames import MOUNT_AGE, FrameNames, Frames, LookUp, Placement, TransformError
from raymap3r_ros.node.worlds import Worlds
from raymap3r_ros.streaming import StepResult, WorldChange
from raymap3r_ros.streaming.world_files import Place

PLAUSIBLE_SCALE = 100.0  # and its inverse: limits of a factor between a network's metres and true ones

# From the least to the greatest: of several changes before a healthy frame the greatest holds.
_CHANGES = (
    WorldChange.NONE,
    WorldChange.KNOWN,
    WorldChange.ALIGNED,
    WorldChange.CORRECTED,
    WorldChange.JUMPED,
    WorldChange.RETURNED,
    WorldChange.NEW,
)
OTHER_WORLD = (WorldChange.RETURNED, WorldChange.NEW)
_ALIGNED = {
    WorldChange.ALIGNED: "aligned with the last one",
    WorldChange.CORRECTED: "aligned with the keyframes",
    WorldChange.JUMPED: "aligned with the last one, with a jump",
}


@dataclass(frozen=True)
class PlacedFrame:
    """Where a frame was taken, and how long the stream's metre is."""

    stamp: Time
    camera_frame: str
    scale: float  # metres per metre of the stream
    placement: Placement | None  # None if the camera's pose on the robot is not known: no pose can be published
    world_change: WorldChange = WorldChange.NONE  # since the last placed frame

    @property
    def world_from_stream(self) -> np.ndarray:
        """(4, 4) similarity: the stream's world in REP 103 axes to `world_frame`."""
        return self.placement.world_from_stream @ np.diag([self.scale] * 3 + [1.0])


class Localizer:
    """Turns the poses of one stream into metric poses in the node's TF frames.

    For each frame, in this order: `observe(result)` directly after the step, `scale_input(result)`, and
    `place(result, summary, ...)`. `add_range` and `add_odometry` may be called from any thread; everything else
    belongs to the thread of the frames.
    """

    def __init__(
        self,
        options: NodeOptions,
        look_up: LookUp,
        reporter: Reporter,
        other_owner: Callable[[str], str] = lambda frame: "",
    ) -> None:
        """
        Args:
            options: replaced by `use` when live parameters change.
            look_up: returns the pose of a child frame in a parent frame, see `tf_frames.look_up`.
            other_owner: returns the name of another node that publishes the parent of a frame, or "".
        """
        self.estimate: ScaleEstimate | None = None  # at the last placed frame
        self._missing = ""  # why the last frame without a place had none
        self.place_of_world: tuple[int, Place] | None = None  # of the last placed frame, with the world's number
        self._options = options
        self._look_up = look_up
        self._reporter = reporter
        self._other_owner = other_owner
        self._scale = MetricScale(options.scale)
        self._frames = Frames(
            FrameNames(**{field.name: getattr(options, field.name) for field in fields(FrameNames)}), look_up
        )
        self._worlds: Worlds[tuple[ScaleEstimator, np.ndarray | None]] = Worlds()
        self._rangers = Rangers(self._scale, look_up, reporter)
        self._change = WorldChange.NONE  # since the last placed frame
        self._reason = ""  # of that change, for the log
        self._change_is_void = False  # the change that the stream reports with the next frame did not happen
        self._has_world = False

    @property
    def needs_motion(self) -> bool:
        """Whether the metric scale needs the dynamic mask."""
        return self._options.scale.source in ("range", "height")

    def use(self, options: NodeOptions) -> None:
        """Use these options from the next frame on."""
        self._options = options
        self._scale.options = options.scale

    def add_range(self, reading: RangeReading, frame: str) -> None:
        """Add a reading of the range sensor, whose TF frame is `frame`."""
        self._rangers.add(reading, frame)

    def add_odometry(self, stamp: float, pose: np.ndarray) -> None:
        """Add a pose (4, 4) of the base in the frame of the wheel odometry, metres, at `stamp` seconds."""
        self._scale.add_odometry(stamp, pose)

    def add_world(self, number: int, place: Place) -> None:
        """Continue at the `place` of a saved world when the camera is found in it; `number` is its in the stream."""
        estimator = ScaleEstimator(place.scale) if place.scale_known else ScaleEstimator()
        self._worlds.add(number, (estimator, place.world_from_stream))

    def observe(self, result: StepResult, reason: str = "") -> None:
        """Record how the world changed with this frame. The change is kept until a frame can be placed.

        Args:
            reason: why the caller has reset the stream before this frame, for the log; "" if it has not.
        """
        change = result.world_change
        # Frame 0 follows no other frame: its world is new in any case. And a camera is found with another memory.
        if self._change_is_void and result.frame > 0 and change is not WorldChange.RETURNED:
            change = WorldChange.NONE
        self._change_is_void = False
        # Of two changes to another world the later one holds.
        if change in OTHER_WORLD or _CHANGES.index(change) > _CHANGES.index(self._change):
            self._change = change
            self._reason = reason or result.reset_reason or "memory not aligned"

    def scale_input(self, result: StepResult) -> Tensor | None:
        """(2,) on the network's device: what the metric scale needs of this frame; None if it needs nothing."""
        return self._scale.look(result, self._options.confidence_threshold)

    def place(
        self, result: StepResult, summary: FrameSummary, stamp: Time, camera_frame: str, *, in_odom: bool = False
    ) -> PlacedFrame | None:
        """Apply the metric scale and place the frame in TF; None if the network's output is not finite.

        Args:
            summary: of `result`.
            stamp: of the image.
            camera_frame: TF frame of the image.
            in_odom: the stream's world is `odom_frame`, the frame of the known poses.
        """
        if not summary.healthy:
            # The stream keeps its memory as it was before this frame. A reset at this frame, which shows in the world
            # change of the next one, has not happened.
            self._change_is_void = True
            return None
        change = self._change
        estimator = world_from_stream = None
        if change in OTHER_WORLD:
            kept = self._worlds.enter(result, (self._scale.estimator, self._frames.world_from_stream))
            estimator, world_from_stream = kept or (None, None)
            self._scale.reset(estimator)
        if self._options.scale.source != "fixed":
            self._look_up_mounts(camera_frame, stamp)
        seconds = conversions.seconds(stamp)
        self.estimate = self._scale.update(seconds, summary.pose, summary.scale_input)
        scale = self.estimate.factor
        if self.estimate.known and not 1 / PLAUSIBLE_SCALE <= scale <= PLAUSIBLE_SCALE:
            source = self._options.scale.source
            self._reporter.warn(
                f"the scale from {source} is {scale:.2g}, which no network needs: are its values in metres?", once=True
            )
        pose = summary.pose.copy()
        pose[:3, 3] *= scale
        try:
            placement = self._frames.place(
                pose,
                stamp,
                camera_frame,
                scale=scale,
                new_world=change in OTHER_WORLD,
                world_from_stream=world_from_stream,
                corrected=change in (WorldChange.KNOWN, WorldChange.CORRECTED, WorldChange.JUMPED),
                in_odom=in_odom,
            )
            if placement.problem:
                self._reporter.warn(placement.problem)
            placement = self._with_one_parent(placement)
            known = self.estimate.known and self._options.scale.source != "fixed"
            self.place_of_world = result.world, Place(placement.world_from_stream, scale, known)
        except InputError as error:
            self._reporter.warn(f"nothing is published in the world: {error}")
            self._missing, placement = str(error), None
        self._report_change(result)
        self._change, self._reason = WorldChange.NONE, ""
        return PlacedFrame(stamp, camera_frame, scale, placement, change)

    def _with_one_parent(self, placement: Placement) -> Placement:
        """In mode camera, whose frame is known with the image: no transforms if another node publishes its parent."""
        options, text = self._options, ""
        if options.tf_mode == "camera" and options.publish_tf and not options.invert_tf:
            frame = placement.odometry_child
            if owner := self._other_owner(frame):
                text = (
                    f"{owner} publishes the parent of {frame} already, and a frame has one parent: this camera is not "
                    "in TF; give each camera's driver its own frame_id, or this node a child_frame"
                )
                placement = dataclasses.replace(placement, transforms=())
        self._reporter.stand("parent", text)
        return placement

    def facts(self) -> dict[str, object]:
        """The metric scale, and the transform that was missing last, for diagnostics."""
        facts = {} if self.estimate is None else self.estimate.facts(self._options.scale.source)
        return {**facts, "missing transform": self._missing} if self._missing else facts

    def _look_up_mounts(self, camera_frame: str, stamp: Time) -> None:
        """Look up the mounting pose of the scale source. Without one the scale is less accurate, see docs/scale.md."""
        source = self._options.scale.source
        try:
            if source in ("odometry", "height"):
                self._scale.mount_camera(self._look_up(self._options.base_frame, camera_frame, stamp, MOUNT_AGE))
            elif source == "range":
                self._rangers.mount(camera_frame, stamp)
        except TransformError:
            pass  # the last known mount stays in use
        except InputError as error:
            self._reporter.fail(f"scale.source is {source}, but {error}", throttle=True)

    def _report_change(self, result: StepResult) -> None:
        change = self._change
        if change is WorldChange.NONE:
            return
        if change is WorldChange.KNOWN:
            self._reporter.info(f"the pose jumps at frame {result.frame}, where it is known again")
            return
        if change is WorldChange.NEW:
            height, width = result.depth.shape
            text = f"a new world starts ({self._reason}); the network's input is {width}x{height}"
        elif change is WorldChange.RETURNED:
            text = f"frame {result.frame}: the camera is found again in an earlier world, which continues"
        else:
            text = f"frame {result.frame} is the first of a new segment, {_ALIGNED[change]}"
        if self._has_world:
            self._reporter.count("resets")
        self._has_world = True
        usual = change in (WorldChange.ALIGNED, WorldChange.CORRECTED)  # every 100th frame
        report = self._reporter.debug if usual else self._reporter.info
        report(text)
