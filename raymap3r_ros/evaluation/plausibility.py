"""Limits within which weights fit images, measured on images that they fit, and what the check finds in others.

Used by `raymap3r evaluate plausibility`. See `streaming/plausibility.py` for the check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.sequences import PosedSequence
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.streaming.plausibility import MIN_FRAMES, WINDOW, PlausibilityCheck, PlausibilityLimits
from raymap3r_ros.tables import markdown_table

MARGIN = 0.1  # of the distance from the median to the worst window, by which a limit lies beyond that window
_SIGNIFICANT = 3  # decimals of a limit


@dataclass(frozen=True)
class MeasuredSequence:
    """The numbers of each frame of a sequence."""

    group: str  # suite or recording
    values: np.ndarray  # (N, 3), see `streaming.plausibility`

    @property
    def windows(self) -> np.ndarray:
        """(M, 3) means that the check compares with its limits."""
        ends = range(MIN_FRAMES, len(self.values) + 1)
        return np.array([self.values[max(0, end - WINDOW) : end].mean(axis=0) for end in ends]).reshape(-1, 3)


def measure_sequences(
    network: Network,
    parts: Sequence[tuple[str, Sequence[PosedSequence]]],
    options: StreamOptions,
    *,
    frames: int,
    workers: int = 1,
    on_frame: Callable[[int], None] = lambda count: None,
) -> list[MeasuredSequence]:
    """Stream the first `frames` of all sequences (suite, sequences of one size).

    Every second one gets its true intrinsics, the others are estimated, as in practice.
    """
    jobs = [(group, of_suite[start::2], start == 0) for group, of_suite in parts for start in (0, 1)]

    def run(job: tuple[str, Sequence[PosedSequence], bool]) -> list[MeasuredSequence]:
        group, sequences, known = job
        stream, rows = Stream(network, options), []
        for together in zip(*(islice(one.frames(), frames) for one in sequences), strict=True):
            intrinsics = np.stack([frame.intrinsics for frame in together]) if known else None
            result = stream.step(np.stack([frame.image for frame in together]), intrinsics=intrinsics)
            if result.plausibility is not None:
                rows.append(result.plausibility.double().cpu().numpy())
            on_frame(len(together))
        return [MeasuredSequence(group, values) for values in np.stack(rows, axis=1)]

    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(run, (job for job in jobs if job[1])))
    return [one for measured in done for one in measured]


def measure_recording(network: Network, path: Path, options: StreamOptions, frames: int | None) -> MeasuredSequence:
    """Stream a recording, with its own intrinsics if it has any. Raises InputError if it is too short."""
    stream, rows = Stream(network, options), []
    for frame in open_recording(path, max_frames=frames):
        result = stream.step(frame.image, frame.stamp, frame.intrinsics)
        if result.plausibility is not None:
            rows.append(result.plausibility.double().cpu().numpy())
    if len(rows) < MIN_FRAMES:
        raise InputError(f"{path}: has {len(rows)} frames with the ray branch; needed: {MIN_FRAMES} and more")
    return MeasuredSequence(path.name, np.stack(rows))


def split(sequences: Sequence[MeasuredSequence]) -> tuple[list[MeasuredSequence], list[MeasuredSequence]]:
    """Sequences to set limits on, and others to evaluate them on; the only one of a group is cut into halves."""
    fitted, evaluated = [], []
    for group in dict.fromkeys(one.group for one in sequences):
        chosen = [one for one in sequences if one.group == group]
        if len(chosen) == 1:
            chosen = [MeasuredSequence(group, half) for half in np.array_split(chosen[0].values, 2)]
        fitted += chosen[::2]
        evaluated += chosen[1::2]
    return fitted, evaluated


def fit_limits(sequences: Iterable[MeasuredSequence]) -> PlausibilityLimits:
    """Limits that lie beyond all windows of these sequences by MARGIN. Raises InputError without any window."""
    windows = np.concatenate([one.windows for one in sequences])
    windows = windows[np.isfinite(windows).all(axis=1)]
    if not len(windows):
        raise InputError(f"no sequence has {MIN_FRAMES} frames with the ray branch; use longer ones")
    worst = np.concatenate((windows[:, :2].min(axis=0), windows[:, 2:].max(axis=0)))
    limits = np.maximum(worst + MARGIN * (worst - np.median(windows, axis=0)), 0.0)
    return PlausibilityLimits(*(round(float(value), _SIGNIFICANT) for value in limits))


def report(
    limits: PlausibilityLimits, fitting: Sequence[MeasuredSequence], foreign: Sequence[MeasuredSequence]
) -> str:
    """A Markdown table with a row per group of sequences: those that the weights fit, then the others."""
    rows = [["images", "fit", "sequences", "confidence", "of the rays", "depth ratio", "implausible", "warnings"]]
    for fits, sequences in (("yes", fitting), ("no", foreign)):
        for group in dict.fromkeys(one.group for one in sequences):
            chosen = [one for one in sequences if one.group == group]
            checks = [_checked(limits, one) for one in chosen]
            judged, implausible = sum(check.judged for check in checks), sum(check.implausible for check in checks)
            windows = np.exp(np.concatenate([one.windows for one in chosen]))
            ranges = [
                f"{low:.2f} to {high:.2f}" for low, high in zip(windows.min(axis=0), windows.max(axis=0), strict=True)
            ]
            warned = sum(check.implausible > 0 for check in checks)
            share = f"{implausible} of {judged} frames"
            rows.append([group, fits, str(len(chosen)), *ranges, share, f"{warned} of {len(chosen)}"])
    return markdown_table(rows)


def _checked(limits: PlausibilityLimits, sequence: MeasuredSequence) -> PlausibilityCheck:
    check = PlausibilityCheck(limits)
    for values in sequence.values:
        check.add(values)
    return check
