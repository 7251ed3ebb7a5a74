#!/usr/bin/env python3
"""Measure the dynamic mask on a real video, with depths of both branches from the public weights.

    python benchmarks/longboard_mask.py [--clips DIR] [--stride N] [--picture FILE]

DIR/longboard contains the DAVIS 2017 sequence of that name as videos: image, true dynamic mask, and the published
method's two depths and their contrast as colours. The colours are converted to depths without the true mask (see
`fit_offset`). Prints IoU and false alarms, averaged over frames, of our mask, the published mask and controls. A
second table shows how they depend on the unknown offset of the depths. The exit status is 0 if the clip is missing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.metrics import MotionScore, motion_metrics, sequence_motion
from raymap3r_ros.io.preview import overlay_mask
from raymap3r_ros.io.recording import open_recording
from raymap3r_ros.streaming import METHOD, MaskOptions, staticness
from raymap3r_ros.streaming.mask import dynamic_mask
from raymap3r_ros.tables import text_table

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
OFFSETS = np.geomspace(1, 256, 97)  # candidates, in levels; the pictures have levels 0 to 255
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # on the fitted offset, for the second table
CLIPPED = 5  # levels at either end that may be clipped values, after compression
ROUNDING = 4  # levels: smaller differences are compression noise
COLUMNS = 6  # frames in the picture
PANEL = (256, 144)  # width and height of each panel of the picture


@dataclass(frozen=True)
class Clip:
    """F frames of H x W pixels. Levels run from 0 (darkest colour) to 255 (brightest)."""

    rgb: np.ndarray  # (F, H, W, 3) uint8
    main: np.ndarray  # (F, H, W) float32, levels of the main branch's depth; far is bright
    rays: np.ndarray  # (F, H, W) float32, levels of the ray branch's depth
    contrast: np.ndarray  # (F, H, W) float32, levels of the published contrast of both depths
    moving: np.ndarray  # (F, H, W) bool, ground truth
    depth_pictures: tuple[np.ndarray, np.ndarray]  # (F, H, W, 3) uint8, source of `main` and `rays`


def read_clip(folder: Path, stride: int = 1) -> Clip:
    """Read every `stride`-th frame of the videos in `folder`. Raises InputError if their sizes differ."""
    names = ("rgb", "depth_main", "depth_raymap", "delta", "gt_mask")
    videos = [np.stack([f.image for f in open_recording(folder / f"{name}.mp4", stride=stride)]) for name in names]
    for name, video in zip(names, videos, strict=True):
        if video.shape != videos[0].shape:
            raise InputError(f"{folder / name}.mp4 is {video.shape}, rgb.mp4 {videos[0].shape}; expected the same")
    rgb, main, rays, contrast, truth = videos
    return Clip(
        rgb=rgb,
        main=color_levels(main, cv2.COLORMAP_INFERNO),
        rays=color_levels(rays, cv2.COLORMAP_INFERNO),
        contrast=color_levels(contrast, cv2.COLORMAP_MAGMA),
        moving=truth[..., 0] > 127,
        depth_pictures=(main, rays),
    )


def color_levels(pictures: np.ndarray, colormap: int) -> np.ndarray:
    """RGB pictures (F, H, W, 3) -> the index (F, H, W) float32 of the nearest colour of an OpenCV colour map."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    colors = cv2.cvtColor(cv2.applyColorMap(ramp, colormap), cv2.COLOR_BGR2RGB)[:, 0].astype(np.float32)
    levels = np.empty(pictures.shape[:3], np.float32)
    for picture, row in zip(
        pictures.reshape(-1, *pictures.shape[2:]), levels.reshape(-1, levels.shape[2]), strict=True
    ):
        # |p - c|^2 without |p|^2, which is the same for all colours
        row[:] = (np.square(colors).sum(axis=1) - 2 * picture.astype(np.float32) @ colors.T).argmin(axis=1)
    return levels


def fit_offset(main: np.ndarray, rays: np.ndarray, contrast: np.ndarray) -> tuple[float, float]:
    """Return the offset that converts the levels (H, W) of one frame to depths, and its misfit, both in levels.

    Both depths are drawn with one range per frame: depth = scale (level + offset), the same for both branches. The
    scale cancels in a contrast, the offset does not. The offset is fitted to the published contrast,
    |main - rays| / main, which is drawn with its own factor: the smallest mean error over pixels wins.
    """
    known = np.minimum(main, rays) > CLIPPED
    known &= np.max((main, rays, contrast), axis=0) < 255 - CLIPPED
    main, rays, contrast = main[known], rays[known], contrast[known]
    differs = np.abs(main - rays) > ROUNDING
    if not differs.any():
        raise InputError("the two depths of a frame do not differ, so the offset cannot be fitted to its contrast")
    misfits = []
    for offset in OFFSETS:
        ours = np.abs(main - rays) / (main + offset)
        factor = np.median(contrast[differs] / ours[differs])
        misfits.append(float(np.abs(factor * ours - contrast).mean()))
    best = int(np.argmin(misfits))
    return float(OFFSETS[best]), misfits[best]


def our_masks(clip: Clip, offsets: np.ndarray) -> np.ndarray:
    """(F, H, W) bool from `streaming.mask`, with an offset for each frame.

    All pixels are trusted: the clip has no confidence, and clipping only reduces the contrast of a moving object.
    """
    masks = []
    for depth, ray_depth in _depths(clip, offsets):
        masks.append(dynamic_mask(depth, ray_depth, torch.ones_like(depth, dtype=torch.bool), MaskOptions())[0])
    return torch.stack(masks).numpy()


def published_masks(clip: Clip, offsets: np.ndarray) -> np.ndarray:
    """(F, H, W) bool: staticness below 0.5, as in a stream with `MaskOptions(kind="published")`.

    All pixels have full confidence. This favours the published mask, which marks too many pixels: lower confidence
    would reduce the staticness further.
    """
    masks = []
    for depth, ray_depth in _depths(clip, offsets):
        confidence = torch.ones_like(depth)
        delta = staticness.discrepancy(depth, ray_depth, confidence, METHOD)
        masks.append(staticness.pixel_staticness(delta, confidence, METHOD)[0] < 0.5)
    return torch.stack(masks).numpy()


def _depths(clip: Clip, offsets: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Depth (1, H, W) of main branch and ray branch for each frame, up to one scale per frame."""
    return [
        (torch.from_numpy(main + offset)[None].float(), torch.from_numpy(rays + offset)[None].float())
        for main, rays, offset in zip(clip.main, clip.rays, offsets, strict=True)
    ]


def best_threshold_masks(values: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """(F, H, W) bool: values (F, H, W) below the threshold with the highest IoU, chosen with the ground truth."""
    levels = np.unique(np.quantile(values, np.linspace(0, 1, 65)))

    def mean_iou(level: float) -> float:
        masks = values < level
        both, either = (masks & moving).sum(axis=(1, 2)), (masks | moving).sum(axis=(1, 2))
        return float((both / np.maximum(either, 1)).mean())

    return values < max(levels, key=mean_iou)


def score(masks: np.ndarray, moving: np.ndarray) -> list[MotionScore]:
    """Score masks (F, H, W) against the ground truth, frame by frame."""
    return [motion_metrics(mask, mask, truth) for mask, truth in zip(masks, moving, strict=True)]


def draw(clip: Clip, ours: np.ndarray, published: np.ndarray, path: Path) -> None:
    """Write a picture with a column per frame: image, both depths, our mask, published mask, ground truth."""
    frames = np.unique(np.linspace(0, len(clip.rgb) - 1, COLUMNS).round().astype(int))
    rows = [
        ("image", clip.rgb),
        ("depth, main branch", clip.depth_pictures[0]),
        ("depth, ray branch", clip.depth_pictures[1]),
        ("our mask", [overlay_mask(image, mask) for image, mask in zip(clip.rgb, ours, strict=True)]),
        ("published mask", [overlay_mask(image, mask) for image, mask in zip(clip.rgb, published, strict=True)]),
        ("ground truth", [overlay_mask(image, mask) for image, mask in zip(clip.rgb, clip.moving, strict=True)]),
    ]
    strips = []
    for title, pictures in rows:
        strip = np.hstack([cv2.resize(pictures[f], PANEL, interpolation=cv2.INTER_AREA) for f in frames])
        for thickness, color in ((3, (0, 0, 0)), (1, (255, 255, 255))):  # legible on any background
            cv2.putText(strip, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)
        strips.append(strip)
    try:  # not by the name: OpenCV ends the process on one that is not UTF-8
        path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(np.vstack(strips), cv2.COLOR_RGB2BGR))[1])
    except (cv2.error, OSError) as error:
        raise InputError(f"{path}: the picture cannot be written: {error}") from error


def report(clip: Clip, picture: Path | None = None) -> None:
    """Print all tables; write the picture if a path is given."""
    fits = [fit_offset(*frame) for frame in zip(clip.main, clip.rays, clip.contrast, strict=True)]
    offsets, misfits = np.array(fits).T
    frames, height, width = clip.moving.shape
    print(f"{frames} frames of {width} x {height}, {100 * clip.moving.mean():.1f} % moving")
    print(
        f"depth = level + offset; offset {np.median(offsets):.0f} of 255 levels ({offsets.min():.0f} to "
        f"{offsets.max():.0f}), misfit of the published contrast {misfits.mean():.1f} levels"
    )
    ours, published = our_masks(clip, offsets), published_masks(clip, offsets)
    gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.rgb])
    rows = {
        "ours": ours,
        "published": published,
        "control: everything moves": np.ones_like(clip.moving),
        "control: darker than the best threshold": best_threshold_masks(gray, clip.moving),
        "control: nearer than the best threshold": best_threshold_masks(clip.main, clip.moving),
    }
    _print_table("mask", rows, clip.moving)
    rows = {}
    for factor in FACTORS:
        rows[f"ours, {factor:g} x the offset"] = our_masks(clip, factor * offsets)
        rows[f"published, {factor:g} x the offset"] = published_masks(clip, factor * offsets)
    _print_table("effect of the offset", rows, clip.moving)
    if picture:
        draw(clip, ours, published, picture)


def _print_table(title: str, rows: dict[str, np.ndarray], moving: np.ndarray) -> None:
    lines = [[title, "IoU", "worst frame", "false alarm %"]]
    for name, masks in rows.items():
        scores = score(masks, moving)
        mean, worst = sequence_motion(scores), min(one.iou for one in scores)
        lines.append([name, f"{mean.iou:.3f}", f"{worst:.3f}", f"{100 * mean.false_alarm:.2f}"])
    print(f"\n{text_table(lines, right=(1, 2, 3))}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--clips",
        type=Path,
        default=CLIPS,
        metavar="DIR",
        help="folder that contains longboard/ (default: %(default)s)",
    )
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="read every N-th frame (default: %(default)s)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write images, depths and masks, .png or .jpg")
    options = parser.parse_args(arguments)
    folder = options.clips / "longboard"
    if not folder.is_dir():
        print(f"skipped: {folder} does not exist; pass the folder of the clips with --clips DIR")
        return 0
    try:
        report(read_clip(folder, options.stride), options.picture)
    except InputError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
