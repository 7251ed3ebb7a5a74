"""Pictures of an evaluation: trajectories from above, depth strips, IoU against the share of moving pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.evaluation.scorer import SampledFrame, SequenceRun
from raymap3r_ros.evaluation.statistics import optional_module, spearman
from raymap3r_ros.evaluation.tables import grouped
from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.io.preview import DepthRange, color_depth, overlay_mask
from raymap3r_ros.output_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = 6  # maximum number of trajectories per suite
STRIP_SEQUENCES = 2  # of a suite
STRIP_FRAMES = 3  # of each of them
# Names of the files that `draw_pictures` writes.
PICTURES = re.compile(r"(trajectories|strip)_\w+\.png|iou_and_share\.png")


def draw_pictures(folder: Path, runs: list[SequenceRun], variants: Sequence[str]) -> list[Path]:
    """Draw the results of these variants in all suites into an existing folder; returns the PNG files.

    Raises Raymap3rError if matplotlib is not installed.
    """
    pictures: dict[str, Figure] = {}
    for (world, suite), group in grouped(runs).items():
        title = " ".join(part for part in (world, suite) if part)
        if any(len(run.truth) > 1 for run in group):
            pictures[f"trajectories {title}"] = trajectory_figure(group, variants, title)
        if any(run.samples for run in group):
            pictures[f"strip {title}"] = strip_figure(group, title)
    if any(run.values[name].get("moving_share", 0) > 0 for run in runs for name in variants):
        pictures["iou and share"] = iou_figure(runs, variants)
    files = []
    for name, figure in pictures.items():
        files.append(claim(folder, f"{name.replace(' ', '_')}.png"))
        with whole_file(files[-1]) as partial:
            figure.savefig(partial, dpi=110)
    return files


def trajectory_figure(runs: list[SequenceRun], variants: Sequence[str], title: str) -> Figure:
    """Paths of the first sequences from above, each aligned to the ground truth by rotation and translation."""
    runs = [run for run in runs if len(run.truth) > 1][:PATHS]
    columns = min(3, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure = _figure(4 * columns, 3.6 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(runs) :]:
        axis.remove()
    for axis, run in zip(axes, runs, strict=False):
        plane = _ground_plane(run.truth)
        truth = run.truth[:, :3, 3]
        axis.plot(*(truth @ plane.T).T, color="black", linewidth=2.5, label="truth", zorder=1)
        axis.plot(*(truth[0] @ plane.T), "o", color="black", zorder=1)
        for name in variants:
            path = run.poses[name][:, :3, 3]
            _, rotation, translation = umeyama(path, truth, scaled=False)
            path = (path @ rotation.T + translation) @ plane.T
            axis.plot(*path.T, linewidth=1.2, label=name, zorder=2)
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_title(run.name, fontsize=9)
        axis.set_xlabel("m", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle(f"{title}: paths from above, after SE(3) alignment", fontsize=11)
    return figure


def strip_figure(runs: list[SequenceRun], title: str) -> Figure:
    """A few frames of the first sequences: image, depths and masks, predicted and true; one colour scale per row."""
    chosen = [(run, sample) for run in runs[:STRIP_SEQUENCES] for sample in _evenly_spaced(run.samples, STRIP_FRAMES)]
    height, width = chosen[0][1].depth.shape
    titles = ("image", "true depth", "depth", "depth of rays", "true static depth", "mask", "true mask")
    figure = _figure(2 * len(titles), len(chosen) * (2 * height / width + 0.1) + 0.8)
    axes = figure.subplots(len(chosen), len(titles), squeeze=False)
    for row, (run, sample) in zip(axes, chosen, strict=True):
        near, far = DepthRange().update(sample.depth if sample.true_depth is None else sample.true_depth)
        depths = (sample.true_depth, sample.depth, sample.ray_depth, sample.true_static)
        panels = [sample.image]
        panels += [None if depth is None else color_depth(depth, near, far) for depth in depths]
        panels += [None if mask is None else _overlay(sample.image, mask) for mask in (sample.mask, sample.moving)]
        for axis, panel in zip(row, panels, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if panel is not None:
                axis.imshow(panel, interpolation="nearest")
        row[0].set_ylabel(f"{run.name}\nframe {sample.frame}", fontsize=7)
        row[1].set_xlabel(f"{near:.1f} to {far:.1f} m", fontsize=7, labelpad=1)
    for axis, text in zip(axes[0], titles, strict=True):
        axis.set_title(text, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def iou_figure(runs: list[SequenceRun], variants: Sequence[str]) -> Figure:
    """IoU of the mask against the share of moving pixels, one dot per sequence, one panel per variant."""
    columns = min(3, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = _figure(4 * columns, 3.4 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(variants) :]:
        axis.remove()
    for axis, name in zip(axes, variants, strict=False):
        pooled = []
        for (world, suite), group in grouped(runs).items():
            pairs = [
                (values["moving_share"], values["mask_iou"])
                for values in (run.values[name] for run in group)
                if values.get("moving_share", 0) > 0
            ]
            if pairs:
                share, iou = np.array(pairs).T
                axis.plot(100 * share, iou, "o", markersize=5, alpha=0.7, label=f"{world} {suite}".strip())
                pooled += pairs
        rho = spearman(*np.array(pooled).T) if pooled else math.nan
        axis.set_title(name if math.isnan(rho) else f"{name}, Spearman {rho:.2f}", fontsize=9)
        axis.set_ylim(0, 1)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.set_xlabel("moving pixels, %", fontsize=8)
        axis.set_ylabel("IoU", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches; without pyplot, which would need a display."""
    return optional_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _ground_plane(poses: np.ndarray) -> np.ndarray:
    """(2, 3): world directions to the right of the first camera and ahead of it, seen from above.

    "Up" is the mean of the cameras' up directions, or the nearest axis of the world if it is within 30 degrees.
    """
    up = -poses[:, :3, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    axis = np.abs(up).argmax()
    if abs(up[axis]) > np.cos(np.deg2rad(30)):
        up = np.eye(3)[axis] * np.sign(up[axis])
    right = poses[0, :3, 0] - (poses[0, :3, 0] @ up) * up
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(up, right)))


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the mask drawn on it, enlarged so that the outline covers little."""
    image, mask = (array.repeat(4, axis=0).repeat(4, axis=1) for array in (image, mask))
    return overlay_mask(image, mask)


def _evenly_spaced(samples: list[SampledFrame], count: int) -> list[SampledFrame]:
    """`count` of the samples, or all of them if there are fewer."""
    if len(samples) <= count:
        return samples
    return [samples[place] for place in np.linspace(0, len(samples) - 1, count).round().astype(int)]
