"""Rows of figures from the results of sequences, and their output as tables, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymap3r_ros.evaluation.plan import Variant
from raymap3r_ros.evaluation.scorer import SequenceRun
from raymap3r_ros.evaluation.statistics import bootstrap_mean, paired_bootstrap, spearman
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.output_files import whole_file
from raymap3r_ros.tables import text_table
from raymap3r_ros.text import counted

LESS, MORE, NEITHER = "less", "more", ""
CONTROL = "control"
ALL_SUITES = "all"
RANK_SAMPLES = 500  # resamplings for the interval of a rank correlation


@dataclass(frozen=True)
class Metric:
    """Name, unit and direction of a figure."""

    title: str
    unit: str
    better: str
    digits: int
    weight: str = ""  # metric that weights the sequences in the mean; "": equal weights


def _depth_metrics(suffix: str, what: str) -> dict[str, Metric]:
    weight = f"depth_pixels{suffix}"
    return {
        f"abs_rel{suffix}": Metric(f"Abs Rel{what}", "", LESS, 3, weight),
        f"delta1{suffix}": Metric(f"delta<1.25{what}", "", MORE, 3, weight),
        f"abs_rel_metric{suffix}": Metric(f"Abs Rel metric{what}", "", LESS, 3, weight),
        f"delta1_metric{suffix}": Metric(f"delta<1.25 metric{what}", "", MORE, 3, weight),
        f"depth_scale{suffix}": Metric(f"scale{what}", "", NEITHER, 3),
        weight: Metric(f"pixels{what}", "pixels", NEITHER, 0),
    }


METRICS: dict[str, Metric] = {
    "ate": Metric("ATE Sim(3)", "m", LESS, 3),
    "ate_se3": Metric("ATE SE(3)", "m", LESS, 3),
    "ate_relative": Metric("of constant", "", LESS, 2),  # ATE SE(3) / ATE of a camera at rest
    "ate_constant": Metric("ATE constant", "m", NEITHER, 3),
    "rpe_translation": Metric("RPE", "m", LESS, 4),
    "rpe_rotation": Metric("RPE rot.", "deg", LESS, 2),
    "trajectory_scale": Metric("Sim(3) scale", "", NEITHER, 2),
    "end_drift": Metric("end drift", "m", LESS, 2),
    "ate_growth": Metric("ATE, last/second tenth", "", LESS, 2),  # after one SE(3) alignment of the whole path
    "map_thickness": Metric("map thickness", "m", LESS, 3),  # after the same alignment
    "map_thickness_growth": Metric("map thickness, last/second tenth", "", LESS, 2),
    **_depth_metrics("", ""),
    **_depth_metrics("_static", " static"),
    **_depth_metrics("_ray", " rays"),
    "mask_iou": Metric("IoU", "", MORE, 3),
    "mask_iou_5": Metric("IoU, >5 %", "", MORE, 3),  # frames with more than 5 % moving pixels
    "false_alarm": Metric("false alarms", "", LESS, 4),
    "motion_auc": Metric("AUC", "", MORE, 3),
    "motion_ratio": Metric("ratio", "", MORE, 2),
    "moving_share": Metric("moving", "", NEITHER, 3),
    "iou_share_rho": Metric("rho IoU~share", "", MORE, 2),  # over sequences
    "accuracy": Metric("Acc", "m", LESS, 3),
    "completeness": Metric("Comp", "m", LESS, 3),
    "normal_consistency": Metric("NC", "", MORE, 3),
    "chamfer": Metric("Chamfer", "m", LESS, 3),
    "returns_found": Metric("found in 10 frames", "", MORE, 3, "returns"),
    "found_after": Metric("found after", "frames", LESS, 1),
    "wrong_finds": Metric("wrong place", "", LESS, 3, "finds"),
    "found_error": Metric("error of the first pose", "m", LESS, 3),
    "ate_returned": Metric("ATE after return", "m", LESS, 3),
    "ate_first_stay": Metric("ATE before", "m", LESS, 3),
    "returns": Metric("returns", "", NEITHER, 0),
    "finds": Metric("finds", "", NEITHER, 0),
    "passes": Metric("decoder passes a frame", "", LESS, 2),
    "most_passes": Metric("most in a frame", "", LESS, 0),
    "stream_memory": Metric("memory of the stream", "MB", LESS, 2),
    "unhealthy_frames": Metric("not finite", "frames", LESS, 0),
}

# Columns of each printed table; in the first one variants are compared with their baseline.
TABLES: dict[str, tuple[str, ...]] = {
    "trajectory": (
        "ate_se3", "ate_relative", "ate", "trajectory_scale", "rpe_translation", "rpe_rotation", "end_drift",
    ),
    "map": ("map_thickness", "map_thickness_growth", "ate_growth"),
    "depth": ("abs_rel", "delta1", "abs_rel_metric", "abs_rel_static", "abs_rel_ray"),
    "motion": ("mask_iou", "mask_iou_5", "false_alarm", "motion_auc", "motion_ratio", "iou_share_rho"),
    "kidnap": (
        "returns_found", "found_after", "wrong_finds", "found_error", "ate_returned", "ate_first_stay", "returns",
        "finds",
    ),
    "cost": ("passes", "most_passes", "stream_memory"),
    "reconstruction": ("chamfer", "accuracy", "completeness", "normal_consistency"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure of the tables: a mean over sequences with its 95 % interval. NaN if it is undefined."""

    suite: str
    world: str
    kind: str  # "rule", "ablation", "poses" or "control"
    rule: str  # rule, variant or control
    metric: str
    value: float
    low: float
    high: float
    n: int  # sequences
    unit: str
    baseline: str  # variant that `better` refers to
    better: float  # probability that it is better than its baseline, by resampling sequences
    settings: str  # key of the options in the settings of the run; "" for controls

    @classmethod
    def blank(cls, suite: str, world: str, rule: str, variant: Variant | None, settings: Mapping[str, str]) -> Row:
        """A row without a figure."""
        kind, baseline = (variant.kind, variant.baseline) if variant else (CONTROL, "")
        baseline = "" if baseline == rule else baseline
        nan = float("nan")
        return cls(suite, world, kind, rule, "", nan, nan, nan, 0, "", baseline, nan, settings.get(rule, ""))


def make_rows(runs: list[SequenceRun], variants: Sequence[Variant], settings: Mapping[str, str]) -> list[Row]:
    """The figures of all suites, and the correlation of IoU and share of moving pixels, also over all suites.

    `settings`: variant -> key of its options. Names with figures that are not variants are controls.
    """
    rows = []
    named = {variant.name: variant for variant in variants}
    groups = grouped(runs)
    for (world, suite), group in groups.items():
        for name in {name: None for run in group for name in run.values}:
            rows += _rows(Row.blank(suite, world, name, named.get(name), settings), group)
    for world in {world: None for world, _ in groups}:
        inside = {suite: group for (other, suite), group in groups.items() if other == world and _any_moves(group)}
        if len(inside) > 1:
            inside[ALL_SUITES] = [run for group in inside.values() for run in group]
        for suite, group in inside.items():
            for name in named:
                rows += _correlation(Row.blank(suite, world, name, named[name], settings), group)
    return rows


def grouped(runs: list[SequenceRun]) -> dict[tuple[str, str], list[SequenceRun]]:
    """(world, suite) -> its sequences, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[SequenceRun]] = {}
    for run in runs:
        groups.setdefault((run.world, run.suite), []).append(run)
    return groups


def _any_moves(group: list[SequenceRun]) -> bool:
    return any(values.get("moving_share", 0) > 0 for run in group for values in run.values.values())


def _rows(blank: Row, group: list[SequenceRun]) -> list[Row]:
    """All metrics of one variant or control over the sequences of a suite."""
    rows = []
    for name, metric in METRICS.items():
        values = _column(group, blank.rule, name)
        if np.isnan(values).all():
            continue
        weights = _column(group, blank.rule, metric.weight) if metric.weight else np.ones(len(values))
        interval = bootstrap_mean(_weighted(values, weights))
        baseline, better = "", np.nan
        others = _column(group, blank.baseline, name)
        if metric.better and not np.isnan(others).all():
            baseline = blank.baseline
            _, better = paired_bootstrap(_weighted(values, weights), _weighted(others, weights))
            better = better if metric.better == LESS else 1 - better
        rows.append(
            dataclasses.replace(
                blank,
                metric=name,
                value=interval.mean,
                low=interval.low,
                high=interval.high,
                n=int(np.count_nonzero(~np.isnan(values))),
                unit=metric.unit,
                baseline=baseline,
                better=better,
            )
        )
    return rows


def _correlation(blank: Row, group: list[SequenceRun]) -> list[Row]:
    """Spearman's rho of a variant's IoU with the share of moving pixels, over sequences with moving pixels."""
    share, iou = _column(group, blank.rule, "moving_share"), _column(group, blank.rule, "mask_iou")
    moving = (share > 0) & ~np.isnan(iou)
    share, iou = share[moving], iou[moving]
    rho = spearman(share, iou)
    if np.isnan(rho):
        return []
    drawn = np.random.default_rng(0).integers(len(share), size=(RANK_SAMPLES, len(share)))
    low, high = np.nanquantile([spearman(share[row], iou[row]) for row in drawn], (0.025, 0.975))
    return [
        dataclasses.replace(
            blank, metric="iou_share_rho", value=rho, low=float(low), high=float(high), n=len(share), baseline=""
        )
    ]


def _column(group: list[SequenceRun], name: str, metric: str) -> np.ndarray:
    """(n,) a metric of each sequence; NaN if it has none."""
    return np.array([run.values.get(name, {}).get(metric, np.nan) for run in group])


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values (n,) whose plain mean is the weighted mean, with the same variance to first order.

    They linearise the ratio of two sums.
    """
    known = ~np.isnan(values)
    share = weights / weights[known].mean()
    mean = (share * values)[known].mean()
    return mean + share * (values - mean)


# ---------------------------------------------------------------------------------------------------------- print


def format_tables(rows: Sequence[Row], runs: list[SequenceRun]) -> str:
    """Compact tables for a terminal: variants and controls down, metrics across, the mean and its 95 % interval.

    The headings contain the numbers of sequences and frames of `runs`.

    `*` marks the best rule and the best ablation. The last column is the probability that a line is better than its
    baseline in the first metric, by resampling the sequences.
    """
    pieces, groups = [], grouped(runs)
    groups |= {(world, ALL_SUITES): [run for run in runs if run.world == world] for world, _ in groups}
    for world, suite in {(row.world, row.suite): None for row in rows}:
        inside = [row for row in rows if (row.world, row.suite) == (world, suite)]
        for title, metrics in TABLES.items():
            shown = [metric for metric in metrics if any(row.metric == metric for row in inside)]
            if shown:
                pieces.append(f"{_heading(title, inside, groups[world, suite])}\n{_table(inside, shown)}")
    return "\n\n".join(pieces)


def _heading(title: str, rows: list[Row], runs: list[SequenceRun]) -> str:
    moving = [row.value for row in rows if row.metric == "moving_share" and row.kind != CONTROL]
    share = f", {100 * moving[0]:.1f} % of pixels move" if moving else ""
    place = " ".join(part for part in (rows[0].world, rows[0].suite) if part)
    frames, unposed = sum(run.frames for run in runs), sum(run.unposed for run in runs)
    left_out = f", {counted(unposed, 'image')} without a pose left out" if unposed else ""
    count = counted(max(row.n for row in rows), "sequence")
    return f"{place}: {title} ({count}, {counted(frames, 'frame')}{left_out}{share})"


def _table(rows: list[Row], metrics: list[str]) -> str:
    """Lines of text, one per variant or control with any of the metrics."""
    found = {(row.kind, row.rule, row.metric): row for row in rows}
    names = {(row.kind, row.rule): None for row in rows if row.metric in metrics}
    best = {
        (kind, metric): _best([row for row in rows if (row.kind, row.metric) == (kind, metric)])
        for kind in ("rule", "ablation", "poses")
        for metric in metrics
    }
    lines = [["", *(_column_head(metric) for metric in metrics), f"better in {METRICS[metrics[0]].title}"]]
    for number, (kind, name) in enumerate(names):
        if number and kind != list(names)[number - 1][0]:
            lines.append([])
        cells = [_cell(found.get((kind, name, metric)), best.get((kind, metric))) for metric in metrics]
        lines.append([name, *cells, _chance(found.get((kind, name, metrics[0])))])
    if not any(line[-1] for line in lines[1:] if line):
        lines = [line[:-1] for line in lines]
    return text_table(lines)


def _column_head(metric: str) -> str:
    meaning = METRICS[metric]
    arrow = {LESS: " ↓", MORE: " ↑", NEITHER: ""}[meaning.better]
    return f"{meaning.title}{arrow}{f' {meaning.unit}' if meaning.unit else ''}"


def _best(rows: list[Row]) -> str | None:
    """The value, as printed, of the best of several lines."""
    values = [row.value for row in rows if not math.isnan(row.value)]
    if len(values) < 2 or not METRICS[rows[0].metric].better:
        return None
    return _number(min(values) if METRICS[rows[0].metric].better == LESS else max(values), rows[0].metric)


def _cell(row: Row | None, best: str | None) -> str:
    if row is None or math.isnan(row.value):
        return "-"
    value, low, high = (_number(number, row.metric) for number in (row.value, row.low, row.high))
    interval = "" if math.isnan(row.low) else f" ({low}, {high})"
    return f"{value}{'*' if value == best else ' '}{interval}"


def _chance(row: Row | None) -> str:
    return "" if row is None or math.isnan(row.better) else f"{100 * row.better:.0f} % than {row.baseline}"


def _number(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].digits}f}"


# ---------------------------------------------------------------------------------------------------------- files


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row under a header of field names; empty if there is no number."""
    names = [field.name for field in dataclasses.fields(Row)]
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(["" if value is None else value for value in _plain(row).values()] for row in rows)


def write_tables(path: Path, settings: Mapping[str, Any], rows: Sequence[Row], runs: list[SequenceRun]) -> None:
    """JSON: the settings of the run, the rows, and the figures of every sequence. null if there is no number."""
    sequences = [
        {
            "suite": run.suite,
            "world": run.world,
            "sequence": run.name,
            "frames": run.frames,
            "rule": name,
            "values": {metric: _number_or_none(value) for metric, value in values.items()},
        }
        for run in runs
        for name, values in run.values.items()
    ]
    write_json(path, {"settings": dict(settings), "rows": [_plain(row) for row in rows], "sequences": sequences})


def settings_key(settings: Mapping[str, Any]) -> str:
    """A short hash of settings, see `Variant.settings`; equal for equal values."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(row: Row) -> dict[str, Any]:
    return {name: _number_or_none(value) for name, value in dataclasses.asdict(row).items()}


def _number_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
