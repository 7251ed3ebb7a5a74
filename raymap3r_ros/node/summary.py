"""The numbers of a frame that decide what is published, copied to host memory before the images and clouds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raymap3r_ros.geometry import poses
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.streaming import StepResult
from raymap3r_ros.streaming.gates import rule_name
from raymap3r_ros.streaming.result import to_host

MEDIAN_STRIDE = 4  # rows and columns: a sixteenth of the pixels gives as good a median for the covariance


@dataclass(frozen=True)
class FrameSummary:
    """A few numbers of one frame, in host memory."""

    healthy: bool  # see StepResult; a frame that is not healthy must not be published
    intrinsics_known: bool
    rule: str  # update rule in force
    pose: np.ndarray  # (4, 4) camera to the stream's world, both in REP 103 axes, in the stream's metres, float64
    pose_raw: np.ndarray  # the same without smoothing
    confidence: float | None  # median over the image; None without a subscriber to ~/odometry
    points: int  # points of the cloud; 0 without a subscriber to ~/points
    scale_input: np.ndarray | None  # see `Localizer.scale_input`
    plausibility: np.ndarray | None  # see StepResult


def summarize(
    result: StepResult, wanted: Collection[str], options: NodeOptions, scale_input: Tensor | None
) -> FrameSummary:
    """Copy what the transform needs and what decides about the other outputs. On a GPU this waits for the frame.

    It is a separate copy of about a hundred bytes, so that the transform does not wait for megabytes of images.

    Args:
        wanted: names of the outputs with subscribers.
        scale_input: what `Localizer.scale_input` returned for this result.
    """
    tensors = {
        name: getattr(result, name) for name in ("healthy", "intrinsics_known", "rule_index", "pose", "pose_raw")
    }
    if "odometry" in wanted:
        strided = slice(None, None, MEDIAN_STRIDE)
        tensors["confidence"] = result.confidence[strided, strided].median()
    if "points" in wanted:
        tensors["points"] = select_points(result, options).sum()
    if scale_input is not None:
        tensors["scale_input"] = scale_input
    if result.plausibility is not None:
        tensors["plausibility"] = result.plausibility
    numbers = dict(zip(tensors, to_host(list(tensors.values())), strict=True))
    return FrameSummary(
        healthy=bool(numbers["healthy"]),
        intrinsics_known=bool(numbers["intrinsics_known"]),
        rule=rule_name(int(numbers["rule_index"])),
        pose=poses.world_pose(numbers["pose"]),
        pose_raw=poses.world_pose(numbers["pose_raw"]),
        confidence=float(numbers["confidence"]) if "odometry" in wanted else None,
        points=int(numbers["points"]) if "points" in wanted else 0,
        scale_input=numbers.get("scale_input"),
        plausibility=numbers.get("plausibility"),
    )


def select_points(result: StepResult, options: NodeOptions) -> Tensor:
    """(h, w) bool, strided: pixels that become points of the cloud.

    The points of a healthy result are finite. A depth that the network does not know lies behind the camera.
    """
    strided = slice(None, None, options.points.stride)
    selected = (result.confidence[strided, strided] >= options.confidence_threshold) & (
        result.depth[strided, strided] > 0
    )
    return selected & ~result.dynamic_mask[strided, strided] if options.points.static_only else selected
