"""What the node has published, compared with the ground truth of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from raymap3r_ros.clients.recorder import Recorded
from raymap3r_ros.evaluation.metrics import DepthScore, depth_metrics, motion_metrics
from raymap3r_ros.evaluation.scorer import MANY_MOVING, motion_values
from raymap3r_ros.evaluation.sequences import Frame
from raymap3r_ros.evaluation.trajectory import trajectory_metrics
from raymap3r_ros.geometry.cameras import quaternion, rotation_angle
from raymap3r_ros.io.tum import matrices
from raymap3r_ros.streaming.preprocessing import Framing, visible_crop
from raymap3r_ros.tables import text_table
from raymap3r_ros.text import counted

UNDEFINED = "-"


@dataclass(frozen=True)
class PoseScore:
    """Errors of the published poses, and of two baselines."""

    frames: int
    position: float  # metres, RMSE after SE(3) alignment
    position_at_rest: float  # of a camera that never moves
    position_nearest: float | None  # of the trained position next to each true one; None: no such positions
    rotation: float  # degrees, mean of the frames after the first; relative to the first camera
    rotation_at_rest: float


@dataclass(frozen=True)
class TruthScore:
    """Comparison of the published outputs with the ground truth; None or empty where it is not known."""

    poses: PoseScore | None
    depths: dict[str, tuple[DepthScore, DepthScore]]  # by pixels: metric, and with one factor for the clip
    masks: int  # number of compared masks
    motion: dict[str, float]  # see `motion_values`


def score(sent: Mapping[int, Frame], recorded: Recorded, trained: np.ndarray | None = None) -> TruthScore:
    """Compare with the frames that were sent, by stamp in nanoseconds.

    `trained` (N, 4, 4): c2w of training images, in the world of the frames. Raises InputError for outputs that are
    not finite, and Raymap3rError if a library of the evaluation is not installed.
    """
    depths: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"all pixels": [], "static pixels": []}
    motion = []
    moves = any(frame.moving is not None and frame.moving.any() for frame in sent.values())
    for stamp, (_, depth, dynamic_map, mask) in zip(recorded.picture_stamps, recorded.pictures, strict=True):
        frame = sent.get(stamp)
        if frame is None or frame.intrinsics is None or recorded.intrinsics is None:
            continue
        framing = published_framing(frame, recorded.intrinsics, depth.shape)
        true_depth, moving = (
            None if array is None else visible_crop(array, framing) for array in (frame.depth, frame.moving)
        )
        if true_depth is not None:
            depths["all pixels"].append((depth, true_depth))
            if moves:
                depths["static pixels"].append((depth, np.where(moving, 0, true_depth)))
        if moving is not None and mask is not None and dynamic_map is not None:
            motion.append(motion_metrics(dynamic_map, mask, moving))
    scores = {}
    for pixels, pairs in depths.items():
        if pairs:
            predicted, truth = zip(*pairs, strict=True)
            scores[pixels] = (
                depth_metrics(predicted, truth, align="metric"),
                depth_metrics(predicted, truth, align="sequence"),
            )
    return TruthScore(_score_poses(sent, recorded, trained), scores, len(motion), motion_values(motion))


def published_framing(frame: Frame, published: np.ndarray, shape: tuple[int, int]) -> Framing:
    """The part of an image that the node's maps (H, W) show, from its camera_info: intrinsics (3, 3) `published`.

    `frame` has the intrinsics of the whole image. Inverse of `frame_intrinsics`.
    """
    height, width = frame.image.shape[:2]
    scale = published[[0, 1], [0, 1]] / frame.intrinsics[[0, 1], [0, 1]]
    offset = (frame.intrinsics[:2, 2] + 0.5) * scale - 0.5 - published[:2, 2]
    across, down = (round(float(length)) for length in (width, height) * scale)
    left, top = (round(float(value)) for value in offset)
    return Framing((across, down), (left, top), shape)


def _score_poses(sent: Mapping[int, Frame], recorded: Recorded, trained: np.ndarray | None) -> PoseScore | None:
    stamps = [stamp for stamp in sorted(recorded.poses) if stamp in sent and sent[stamp].pose is not None]
    if len(stamps) < 2:
        return None
    poses = matrices(np.array([recorded.poses[stamp] for stamp in stamps]))
    truth = np.stack([sent[stamp].pose for stamp in stamps])
    # Relative to the first stamp: seconds since 1970 leave too few digits for differences.
    seconds = np.array([(stamp - stamps[0]) * 1e-9 for stamp in stamps])
    positions = trajectory_metrics(poses, truth, seconds)
    nearest = None
    if trained is not None:
        distance = np.linalg.norm(truth[:, None, :3, 3] - trained[None, :, :3, 3], axis=-1)
        nearest = trajectory_metrics(trained[distance.argmin(axis=1)], truth, seconds).ate_se3
    turned, true_turned = _turns(poses), _turns(truth)
    at_rest = torch.zeros_like(true_turned)
    at_rest[:, 0] = 1
    return PoseScore(
        len(stamps),
        positions.ate_se3,
        positions.ate_constant,
        nearest,
        float(rotation_angle(turned, true_turned).mean()),
        float(rotation_angle(at_rest, true_turned).mean()),
    )


def _turns(poses: np.ndarray) -> torch.Tensor:
    """Quaternions (T - 1, 4), w first, of poses (T, 4, 4) after the first, relative to the first."""
    return quaternion(torch.from_numpy(poses[0, :3, :3].T @ poses[1:, :3, :3]))


def truth_lines(result: TruthScore) -> str:
    """The comparison as tables for a terminal; empty if nothing could be compared."""
    tables = []
    if result.poses is not None:
        tables.append(_pose_lines(result.poses))
    if result.depths:
        lines = [["depth", "Abs Rel", "delta < 1.25", "with one factor:", "Abs Rel", "delta < 1.25"]]
        for pixels, (metric, scaled) in result.depths.items():
            lines.append(
                [
                    pixels, f"{metric.abs_rel:.3f}", f"{metric.delta1:.3f}",
                    f"{scaled.scale:.3f}", f"{scaled.abs_rel:.3f}", f"{scaled.delta1:.3f}",
                ]
            )  # fmt: skip
        tables.append(lines)
    if result.motion:
        keys = ("mask_iou", "mask_iou_5", "false_alarm")
        lines = [["moving mask", "IoU", f"IoU, > {100 * MANY_MOVING:g} % moving", "false alarms"]]
        values = (result.motion[key] for key in keys)
        cells = [UNDEFINED if np.isnan(value) else f"{value:.3f}" for value in values]
        tables.append([*lines, [counted(result.masks, "frame"), *cells]])
    return "\n\n".join(text_table(lines, right=range(1, len(lines[0]))) for lines in tables)


def _pose_lines(poses: PoseScore) -> list[list[str]]:
    lines = [
        [f"pose, {counted(poses.frames, 'frame')}", "node", "camera at rest"],
        ["position, RMSE, m", f"{poses.position:.3f}", f"{poses.position_at_rest:.3f}"],
        ["rotation, mean, deg", f"{poses.rotation:.1f}", f"{poses.rotation_at_rest:.1f}"],
    ]
    if poses.position_nearest is not None:
        for line, cell in zip(
            lines, ("nearest trained position", f"{poses.position_nearest:.3f}", UNDEFINED), strict=True
        ):
            line.append(cell)
    return lines
