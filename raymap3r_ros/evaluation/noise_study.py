"""The parts of the method without a network (`raymap3r evaluate simulated`): exact geometry with simulated errors.

Depth and poses come from rendered scenes and get the errors below. They are then processed with the functions of the
stream, in the published way and in ours. The errors:

- Depth has a relative error on the scales of walls, patches, small spots and single pixels. It is independent for the
  main and the ray branch, so their difference is noisier than either by a factor of the square root of 2.
- Edges are blurred, three times as much in the ray branch. The ray branch keeps a quarter of a moving object.
- The branches differ by a common factor that changes in every frame, like the drift within a segment.
- At a reset the old memory moves a moving object by a third towards its background. Each segment has its own scale.
- Poses have jitter, independent from frame to frame, and drift.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.evaluation.simulated_prediction import SimulatedPrediction, simulate_prediction
from raymap3r_ros.evaluation.statistics import bootstrap_mean, optional_module
from raymap3r_ros.geometry import cameras
from raymap3r_ros.geometry.similarity import Similarity
from raymap3r_ros.io.preview import DepthRange, color_depth, overlay_mask
from raymap3r_ros.output_files import whole_file
from raymap3r_ros.streaming import METHOD, MaskOptions, Method, gates, staticness
from raymap3r_ros.streaming.alignment import align_segments
from raymap3r_ros.streaming.mask import dynamic_mask, static_weight
from raymap3r_ros.streaming.smoothing import SmootherState, smooth
from raymap3r_ros.synthetic import RATE, SUITES, Rendering, Scenes, render, suite_sequence
from raymap3r_ros.synthetic.worlds import camera_poses
from raymap3r_ros.tables import markdown_table

SIZE = (120, 160)  # H, W of the simulated predictions
NOISES = (0.05, 0.10, 0.20)  # relative error of depth, one standard deviation
MASK_SUITES = ("static", "light", "heavy")
MASK_FRAMES = 6  # of a sequence
RESETS = 10
SMOOTH_FRAMES = 1000
JITTERS = (0.0, 0.003, 0.01, 0.03, 0.10)  # metres
DRIFTS = (0.0, 0.2)  # error of a step, correlated over about ten frames, in mean steps

_PULL = 0.3  # share by which an old memory moves a moving object's log depth to the static scene
_METRE = 0.3  # standard deviation of a segment's log scale
_TURN, _SHIFT = 0.3, 0.02  # jitter of a pose at a reset: degrees, metres; a third of it for the first frame
_STATE_CHANGE = 5.0  # input of the published smoother, mean over frames


@dataclass(frozen=True)
class SimulatedRow:
    """One figure: a mean over sequences with its 95 % interval. NaN if it is undefined."""

    part: str  # "mask", "gate", "alignment" or "smoothing"
    case: str  # suite and errors
    method: str
    metric: str
    value: float
    low: float
    high: float
    n: int  # sequences
    unit: str


def run_simulated(sequences: int = 12, world: str = "varied") -> list[SimulatedRow]:
    """All figures over `sequences` of each suite. The suite `tune`, on which thresholds were chosen, is not used."""
    rows = []
    scenes = {suite: render_suite(suite, sequences, world, _mask_times()) for suite in MASK_SUITES}
    rows += mask_rows(scenes)
    rows += gate_rows({suite: scenes[suite] for suite in ("static", "heavy")})
    resets = torch.arange(RESETS + 1) * 10.0
    rows += alignment_rows(render_suite("heavy", sequences, world, resets))
    rows += smoothing_rows(camera_paths(sequences, world))
    return rows


def render_suite(suite: str, sequences: int, world: str, times: Tensor) -> Rendering:
    """Evenly spaced sequences of a suite at times (F,) seconds, without images."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        render(scenes, times[None], SIZE, generator, with_images=False) for scenes in _scenes(suite, sequences, world)
    ]
    fields = [field.name for field in dataclasses.fields(Rendering)]
    return Rendering(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def _scenes(suite: str, sequences: int, world: str) -> Iterator[Scenes]:
    last = SUITES[suite].sequences - 1
    for index in np.linspace(0, last, sequences).round().astype(int).tolist():
        yield suite_sequence(suite, index, world=world, size=SIZE).scenes


def _mask_times() -> Tensor:
    return 0.5 + torch.arange(MASK_FRAMES).float()


# --------------------------------------------------------------------------------------------------------------- mask


def published_staticness(predicted: SimulatedPrediction, method: Method = METHOD) -> Tensor:
    """Pixel staticness (B, H, W): 1 - the published dynamic map."""
    delta = staticness.discrepancy(predicted.depth, predicted.ray_depth, predicted.ray_confidence, method)
    weight = staticness.confidence_weight(predicted.confidence, predicted.ray_confidence)
    return staticness.pixel_staticness(delta, weight, method)


def our_mask(predicted: SimulatedPrediction) -> Tensor:
    """Dynamic mask (B, H, W) of our decision."""
    trusted = predicted.ray_confidence >= METHOD.min_ray_confidence
    return dynamic_mask(predicted.depth, predicted.ray_depth, trusted, MaskOptions())


def mask_rows(scenes: dict[str, Rendering]) -> list[SimulatedRow]:
    """IoU and false alarms of the mask in each suite at each noise, beside controls.

    IoU is the mean over frames with more than 1 % moving pixels; false alarms are the share of static pixels in the
    mask. The best threshold is the factor between the branches with the highest IoU in the suite, found with the
    ground truth: an upper bound for decisions per pixel.
    """
    rows = []
    for suite, seen in scenes.items():
        truth = seen.moving
        for noise in NOISES:
            predicted = simulate_prediction(seen, noise, torch.Generator().manual_seed(1))
            masks = {
                "ours": our_mask(predicted),
                "published": published_staticness(predicted) < 0.5,
                "20 % nearer": predicted.ray_depth > 1.2 * predicted.depth,
                "nearer half": predicted.depth < predicted.depth.flatten(1).median(dim=1).values[:, None, None],
            }
            if truth.any():
                factors = torch.linspace(1.05, 2.5, 30)
                best = max(
                    factors, key=lambda f: _mask_figures(predicted.ray_depth > f * predicted.depth, truth)[0].mean()
                )
                masks["best threshold"] = predicted.ray_depth > best * predicted.depth
            for method, mask in masks.items():
                iou, alarms = _mask_figures(mask, truth)
                case = f"{suite}, noise {100 * noise:.0f} %"
                rows += [_row("mask", case, method, "IoU", iou), _row("mask", case, method, "false alarms", alarms)]
    return rows


def _mask_figures(mask: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and false alarms of masks (B F, H, W) against truth (B, F, H, W), one per sequence; NaN without movers."""
    mask = mask.view_as(truth)
    union = (mask | truth).sum((2, 3))
    iou = torch.where(truth.float().mean((2, 3)) > 0.01, (mask & truth).sum((2, 3)) / union.clamp_min(1), torch.nan)
    alarms = (mask & ~truth).sum((2, 3)) / (~truth).sum((2, 3)).clamp_min(1)
    return iou.nanmean(1), alarms.mean(1)


# --------------------------------------------------------------------------------------------------------------- gate


def gate_rows(scenes: dict[str, Rendering], noise: float = 0.10, state_tokens: int = 64) -> list[SimulatedRow]:
    """The factor that motion contributes to a token's gate, for tokens that attend to static or to moving regions.

    State tokens attend to random positions of the image. A gate is relative to the gate of the same rule without
    motion: `raymap3r` to `ttt3r`, `motion_filter` to `filt3r`; the filters are in their steady state.
    """
    rows = []
    for suite, seen in scenes.items():
        predicted = simulate_prediction(seen, noise, torch.Generator().manual_seed(1))
        grid = SIZE[0] // 8, SIZE[1] // 8
        attention = gaussian_attention(len(predicted.depth), grid, state_tokens)
        delta = staticness.discrepancy(predicted.depth, predicted.ray_depth, predicted.ray_confidence, METHOD)
        weight = staticness.confidence_weight(predicted.confidence, predicted.ray_confidence)
        pooled = staticness.pool_to_tokens(delta, weight, grid, "patch")
        relative = staticness.token_staticness(staticness.project_on_state(attention, pooled), METHOD)
        absolute = staticness.static_share(attention, our_mask(predicted), grid)
        moving = 1 - staticness.static_share(attention, seen.moving.flatten(0, 1), grid)[..., 0]
        kept = {
            "raymap3r": gates.motion_gate(relative)[..., 0],
            "motion_filter": (_steady_gain(gates.motion_noise(absolute)) / _steady_gain(torch.ones(1)))[..., 0],
        }
        for rule, share in kept.items():
            for metric, of in (("tokens on what is static", moving < 0.05), ("tokens on movers", moving > 0.5)):
                mean = torch.where(of, share, torch.nan).view(len(seen.depth), -1).nanmean(1)
                rows.append(_row("gate", f"{suite}, noise {100 * noise:.0f} %", rule, metric, mean))
    return rows


def gaussian_attention(count: int, grid: tuple[int, int], state_tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of state tokens that attend to image tokens within about 1.5 tokens of random positions.

    softmax(q . k / 2) with q = 2 (x, y, 1, 0) / s^2, k = (x', y', -(x'^2 + y'^2) / 2, 0) is a Gaussian about (x, y).
    """
    spread = 1.5
    place = torch.rand(count, 1, state_tokens, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor(grid)
    one, zero = torch.ones_like(place[..., :1]), torch.zeros_like(place[..., :1])
    query = 2 * torch.cat((place, one, zero), dim=-1) / spread**2
    at = torch.cartesian_prod(*(torch.arange(n) + 0.5 for n in grid))
    key = torch.cat((at, -at.square().sum(1, keepdim=True) / 2, torch.zeros(len(at), 1)), dim=1)
    key = torch.cat((torch.zeros(1, 4), key))  # the pose token's
    return [(query, key.expand(count, 1, -1, -1))]


def _steady_gain(noise: Tensor, method: Method = METHOD) -> Tensor:
    """The steady-state gain of a filter for this measurement noise, with the process noise of a usual frame."""
    variance = torch.full_like(noise, method.filter_start)
    for _ in range(200):
        prior = variance + method.filter_noise_low
        gain = gates.kalman_gain(prior, noise, method)
        variance = gates.posterior_variance(prior, gain, noise)
    return gain


# ---------------------------------------------------------------------------------------------------------- alignment


def alignment_rows(seen: Rendering) -> list[SimulatedRow]:
    """Errors of the world after ten resets, for frames (B, 1 + 10, H, W): a first one and ten resets.

    With the moving objects in view, and without them. Drift of the poses within a segment is not simulated, because it
    is the same for every alignment.
    """
    empty = dataclasses.replace(seen, depth=seen.static_depth, moving=torch.zeros_like(seen.moving))
    rows = []
    for view, frames in (("movers in view", seen), ("nothing moves", empty)):
        for noise in NOISES[:2]:
            for kind in ("robust", "published", "last scale", "off"):
                case = f"{view}, noise {100 * noise:.0f} %"
                errors = chain_errors(frames, kind, noise)
                for metric, unit, values in zip(
                    ("rotation", "position", "scale"), ("deg", "m", "%"), errors, strict=True
                ):
                    rows.append(_row("alignment", case, kind, metric, values, unit))
    return rows


def chain_errors(seen: Rendering, kind: str, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation (degrees), position (metres) and scale (per cent) errors (B,) of the last segment's world.

    `kind` is a reset alignment, or `last scale`: the poses are aligned and the scale is never changed.
    """
    generator = torch.Generator().manual_seed(3)
    batch = len(seen.depth)
    pose = torch.linalg.inv(seen.pose[:, :1]) @ seen.pose  # the stream's world is the first camera
    anchor = Similarity.identity(batch, pose.device)
    origin, metre = pose[:, 0], torch.ones(batch)
    for frame in range(1, seen.depth.shape[1]):
        now = Rendering(*(getattr(seen, f.name)[:, frame, None] for f in dataclasses.fields(Rendering)[:5]), None)
        drawn = now.depth * torch.where(now.moving, (now.static_depth / now.depth) ** _PULL, 1.0)
        old = simulate_prediction(dataclasses.replace(now, depth=drawn), noise, generator)
        new = simulate_prediction(now, noise, generator)
        next_metre = torch.exp(_METRE * torch.randn(batch, generator=generator))
        relative = torch.linalg.inv(origin) @ pose[:, frame]
        relative = cameras.assemble_pose(relative[:, :3, :3], relative[:, :3, 3] * metre[:, None])
        old_pose = anchor.apply_to_pose(relative @ _pose_jitter(batch, 1.0, generator))
        new_pose = _pose_jitter(batch, 1 / 3, generator)
        old_points = cameras.transform_points(
            old_pose, cameras.back_project(old.depth * (metre * anchor.scale)[:, None, None], seen.intrinsics)
        ).flatten(1, 2)
        new_points = cameras.transform_points(
            new_pose, cameras.back_project(new.depth * next_metre[:, None, None], seen.intrinsics)
        ).flatten(1, 2)
        weight = old.confidence
        if kind == "robust":
            trusted = old.ray_confidence >= METHOD.min_ray_confidence
            weight = weight * published_staticness(old)
            weight = weight * static_weight(old.depth, old.ray_depth, trusted, MaskOptions())
        if kind == "off":
            anchor = Similarity.identity(batch, pose.device)
        else:
            weight = torch.zeros_like(weight) if kind == "last scale" else weight
            alignment = "robust" if kind == "last scale" else kind
            anchor, _ = align_segments(
                alignment, new_points, old_points, weight.flatten(1), new_pose, old_pose, anchor.scale
            )
        origin, metre = pose[:, frame], next_metre
    turn = cameras.rotation_angle(cameras.quaternion(anchor.rotation), cameras.quaternion(origin[:, :3, :3]))
    position = (anchor.translation - origin[:, :3, 3]).norm(dim=-1)
    return turn, position, 100 * torch.expm1((anchor.scale * metre).log().abs())


def _pose_jitter(batch: int, size: float, generator: torch.Generator) -> Tensor:
    """(B, 4, 4) small random motions."""
    turn = math.radians(_TURN) * size / math.sqrt(3) * torch.randn(batch, 3, generator=generator)
    shift = _SHIFT * size / math.sqrt(3) * torch.randn(batch, 3, generator=generator)
    return cameras.pose_matrix(torch.cat((shift, torch.ones(batch, 1), turn / 2), dim=1))


# ---------------------------------------------------------------------------------------------------------- smoothing


def smoothing_rows(paths: Tensor) -> list[SimulatedRow]:
    """ATE and RPE of smoothed positions against true ones (B, T, 3), at each jitter, without and with drift.

    The fixed gain is a single tracker of constant velocity: unbiased, with the same gain for any jitter.
    """
    cases = [(drift, jitter) for drift in DRIFTS for jitter in JITTERS]
    raw = torch.cat([disturbed_path(paths, jitter, drift) for drift, jitter in cases])
    one_tracker = dataclasses.replace(METHOD, tracker_gains=(0.5,))
    smoothed = {
        "raw": raw,
        "tied (ours)": smoothed_path(raw, tied=True),
        "published": smoothed_path(raw, tied=False),
        "fixed gain": smoothed_path(raw, tied=True, method=one_tracker),
    }
    rows = []
    for place, (drift, jitter) in enumerate(cases):
        case = f"{'drift' if drift else 'no drift'}, jitter {100 * jitter:g} cm"
        for method, path in smoothed.items():
            found = path[place * len(paths) : (place + 1) * len(paths)]
            ate, rpe = path_errors(found, paths)
            rows += [
                _row("smoothing", case, method, "ATE", 100 * ate, "cm"),
                _row("smoothing", case, method, "RPE", 100 * rpe, "cm"),
            ]
    return rows


def disturbed_path(paths: Tensor, jitter: float, drift: float) -> Tensor:
    """True positions (B, T, 3) with jitter (metres) and step errors of `drift` mean steps over about ten frames."""
    generator = torch.Generator().manual_seed(4)
    kicks, noise = (torch.randn(paths.shape, generator=generator) for _ in range(2))
    off = torch.zeros_like(paths)
    keep = 0.95
    for frame in range(1, paths.shape[1]):
        off[:, frame] = keep * off[:, frame - 1] + math.sqrt(1 - keep**2) * kicks[:, frame]
    step = paths.diff(dim=1).norm(dim=-1).mean(1)[:, None, None]
    return paths + drift * (step * off).cumsum(1) + jitter / math.sqrt(3) * noise


def smoothed_path(raw: Tensor, *, tied: bool, method: Method = METHOD) -> Tensor:
    """Smoothed positions (B, T, 3), processed frame by frame."""
    generator = torch.Generator().manual_seed(5)
    state, out = SmootherState.empty(len(raw), raw.device, method), []
    for position in raw.unbind(1):
        change = _STATE_CHANGE * torch.exp(0.3 * torch.randn(len(raw), generator=generator))
        state = smooth(state, position, change, tied=tied, method=method).state
        out.append(state.position)
    return torch.stack(out, dim=1)


def path_errors(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """ATE after SE(3) alignment and RPE between consecutive frames (B,), metres RMSE, of positions (B, T, 3)."""
    ate = []
    for path, true in zip(found.double().numpy(), truth.double().numpy(), strict=True):
        _, rotation, translation = umeyama(path, true, scaled=False)
        ate.append(np.sqrt(np.square(path @ rotation.T + translation - true).sum(1).mean()))
    rpe = (found - truth).diff(dim=1).square().sum(-1).mean(1).sqrt()
    return torch.tensor(ate), rpe


def camera_paths(sequences: int, world: str) -> Tensor:
    """True positions (B, T, 3) of the cameras of the suite `long`, relative to the first frame."""
    times = torch.arange(SMOOTH_FRAMES) / RATE
    paths = torch.cat([camera_poses(scenes, times[None])[..., :3, 3] for scenes in _scenes("long", sequences, world)])
    return paths - paths[:, :1]


# -------------------------------------------------------------------------------------------------------------- print


def _row(part: str, case: str, method: str, metric: str, values: Tensor, unit: str = "") -> SimulatedRow:
    """A row from one value per sequence; NaN if a sequence has none."""
    numbers = values.double().numpy()
    interval = bootstrap_mean(numbers)
    n = int(np.count_nonzero(~np.isnan(numbers)))
    return SimulatedRow(part, case, method, metric, interval.mean, interval.low, interval.high, n, unit)


_DIGITS = {"IoU": 3, "false alarms": 4, "rotation": 2, "position": 3, "scale": 1, "ATE": 2, "RPE": 2}
_TITLES = {
    "mask": "Dynamic mask: IoU (higher is better) and false alarms (lower)",
    "gate": "Share of a token's gate that its motion leaves",
    "alignment": "The last world after ten resets: errors",
    "smoothing": "Positions over 1000 frames: errors in cm",
}


def format_rows(rows: list[SimulatedRow]) -> str:
    """Markdown tables per part and metric: a row per case, a column per method, means with 95 % intervals."""
    pieces = []
    for part, metric in dict.fromkeys((row.part, row.metric) for row in rows):
        inside = [row for row in rows if (row.part, row.metric) == (part, metric)]
        methods = list(dict.fromkeys(row.method for row in inside))
        cells = {(row.case, row.method): row for row in inside}
        lines = [[f"{metric}{f', {inside[0].unit}' if inside[0].unit else ''}", *methods]]
        for case in dict.fromkeys(row.case for row in inside):
            found = [cells.get((case, method)) for method in methods]
            if not all(row is None or math.isnan(row.value) for row in found):
                lines.append([case, *(_cell(row) for row in found)])
        pieces.append(f"{_TITLES[part]} ({max(row.n for row in inside)} sequences)\n\n{markdown_table(lines)}")
    return "\n\n".join(pieces)


def _cell(row: SimulatedRow | None) -> str:
    if row is None or math.isnan(row.value):
        return "-"
    digits = _DIGITS.get(row.metric, 2)
    interval = "" if math.isnan(row.low) else f" ({row.low:.{digits}f}, {row.high:.{digits}f})"
    return f"{row.value:.{digits}f}{interval}"


def draw_masks(path: Path, suite: str = "light", index: int = 18, world: str = "varied") -> None:
    """Draw one frame at each noise into a PNG: simulated depths, published mask, our mask and the true one."""
    scenes = suite_sequence(suite, index, world=world, size=SIZE).scenes
    seen = render(scenes, torch.tensor([[2.5]]), SIZE, torch.Generator().manual_seed(0))
    image, truth = seen.image[0, 0].numpy(), seen.moving[0, 0].numpy()
    near, far = DepthRange().update(seen.depth[0, 0].numpy())
    figure = optional_module("matplotlib.figure").Figure(figsize=(11, 2 * len(NOISES)), layout="constrained")
    axes = figure.subplots(len(NOISES), 5, squeeze=False)
    for row, noise in zip(axes, NOISES, strict=True):
        predicted = simulate_prediction(seen, noise, torch.Generator().manual_seed(1))
        masks = (published_staticness(predicted) < 0.5)[0].numpy(), our_mask(predicted)[0].numpy(), truth
        panels = [color_depth(depth[0].numpy(), near, far) for depth in (predicted.depth, predicted.ray_depth)]
        panels += [overlay_mask(*(array.repeat(4, 0).repeat(4, 1) for array in (image, mask))) for mask in masks]
        for axis, panel in zip(row, panels, strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"noise {100 * noise:.0f} %")
    for axis, title in zip(axes[0], ("depth by image", "by rays", "published mask", "ours", "truth"), strict=True):
        axis.set_title(title, fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=100)
