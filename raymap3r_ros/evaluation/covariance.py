"""Errors of poses and steps, measured on rendered suites, and the error model fitted to them.

Used by `raymap3r evaluate covariance`. The error of a pose is the camera's error in the world of the stream's first
camera, in the network's metres, without alignment and without a fitted scale. The error of a step is the error of
the motion from one frame to the next. Both are given in the axes of the camera (x right, y down, z forward):
positions in metres, rotations as axis times angle in radians.

Errors grow with *travel*: the metres moved so far, plus TURN_LENGTH metres for each radian turned. The error of a pose
grows quickly at first, then saturates because the network compares the image with its memory of the room, and then
grows slowly with the square root of the travel. Errors are larger in frames of low confidence. See docs/odometry.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence, checked_frames
from raymap3r_ros.evaluation.statistics import bootstrap_mean, optional_module
from raymap3r_ros.mapping.uncertainty import DEFAULT, ErrorModel, VarianceModel, travels
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.tables import markdown_table
from raymap3r_ros.text import counted

SMALLEST = 1e-3  # metres, radians: lower limit of fitted standard deviations
SIGNIFICANT_DIGITS = 3  # of fitted coefficients
MEDIAN_STRIDE = 4  # medians use every fourth row and column of a map, as in the node
GROUPS = ("position", "rotation", "step", "turn")  # of a pose, and of the motion between two frames


# ------------------------------------------------------------------------------------------------------ measurement


@dataclass(frozen=True)
class Errors:
    """N errors of one kind, with the quantities that their variances depend on."""

    values: np.ndarray  # (N, 6) metres and radians, in the camera's axes
    travel: np.ndarray  # (N,) total travel, or travel of the step
    confidence: np.ndarray  # (N,) median of the frame
    depth: np.ndarray  # (N,) median of the frame, metres


@dataclass(frozen=True)
class EvaluatedSequence:
    """Errors of one sequence against its ground truth."""

    suite: str
    name: str
    poses: Errors
    steps: Errors


def evaluate_sequences(
    network: Network,
    parts: Sequence[tuple[str, Sequence[PosedSequence]]],
    options: StreamOptions,
    *,
    frames: int = 0,
    batch: int = 6,
    workers: int = 1,
    on_frame: Callable[[int], None] = lambda count: None,
) -> list[EvaluatedSequence]:
    """Stream all sequences of all parts (suite, sequences of one length and size), `batch` of them side by side.

    Of each sequence the first `frames` are used (0: all). `on_frame` is called with the number of frames processed
    since the last call. Raises InputError if a frame has no true pose or intrinsics, or if the network's output is
    finite for fewer than two frames of a sequence.
    """
    batches = [(suite, all_[at : at + batch]) for suite, all_ in parts for at in range(0, len(all_), batch)]
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda job: _run_batch(network, *job, options, frames or None, on_frame), batches)
        return [sequence for sequences in done for sequence in sequences]


def _run_batch(
    network: Network,
    suite: str,
    sequences: Sequence[PosedSequence],
    options: StreamOptions,
    length: int | None,
    on_frame: Callable[[int], None],
) -> list[EvaluatedSequence]:
    stream = Stream(network, options)
    truth, columns = [], []
    for frames in zip(*(islice(checked_frames(sequence), length) for sequence in sequences), strict=True):
        truth.append(np.stack([_true_pose(frame) for frame in frames]))
        images = np.stack([frame.image for frame in frames])
        columns.append(_summary(stream.step(images, intrinsics=_intrinsics(frames), motion=False)))
        on_frame(len(frames))
    true_poses = np.stack(truth, axis=1)
    healthy, poses, confidence, depth = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return [
        score_sequence(
            suite, sequence.name, *(array[at][healthy[at]] for array in (poses, true_poses, confidence, depth))
        )
        for at, sequence in enumerate(sequences)
    ]


def _true_pose(frame: Frame) -> np.ndarray:
    if frame.pose is None or frame.intrinsics is None:
        raise InputError(f"the frame at {frame.stamp:.3f} s has no true pose or no intrinsics; errors need both")
    return frame.pose


def _intrinsics(frames: Sequence[Frame]) -> np.ndarray:
    return np.stack([frame.intrinsics for frame in frames])


def _summary(result: StepResult) -> tuple[np.ndarray, ...]:
    """Health (B,), poses (B, 4, 4), and median confidence and depth (B,) of a frame, computed as in the node."""
    return (
        result.healthy.cpu().numpy(),
        result.pose.double().cpu().numpy(),
        _median(result.confidence),
        _median(result.depth),
    )


def _median(maps: Tensor) -> np.ndarray:
    return maps[:, ::MEDIAN_STRIDE, ::MEDIAN_STRIDE].flatten(1).median(dim=1).values.double().cpu().numpy()


def score_sequence(
    suite: str, name: str, poses: np.ndarray, truth: np.ndarray, confidence: np.ndarray, depth: np.ndarray
) -> EvaluatedSequence:
    """Errors of poses (T, 4, 4) against `truth` (T, 4, 4), which may be given in any world.

    `confidence` and `depth` (T,) are the medians of the frames. Raises InputError for fewer than two frames.
    """
    if len(poses) < 2:
        raise InputError(f"{name}: {counted(len(poses), 'frame')} with finite output; errors of steps need two")
    truth = np.linalg.inv(truth[0]) @ truth
    travel = travels(poses)
    steps, true_steps = (np.linalg.inv(path[:-1]) @ path[1:] for path in (poses, truth))
    return EvaluatedSequence(
        suite,
        name,
        Errors(_errors(poses, truth), np.concatenate(([0.0], np.cumsum(travel))), confidence, depth),
        Errors(_errors(steps, true_steps), travel, confidence[1:], depth[1:]),
    )


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N, 6) errors of transforms (N, 4, 4): translation and rotation, in the target axes of `found`."""
    back = found[:, :3, :3].transpose(0, 2, 1)
    shift = back @ (found[:, :3, 3:] - truth[:, :3, 3:])
    turn = optional_module("scipy.spatial.transform").Rotation.from_matrix(back @ truth[:, :3, :3]).as_rotvec()
    return np.concatenate((shift[..., 0], -turn), axis=1)


# ------------------------------------------------------------------------------------------------------ calibration


def fit_model(sequences: Sequence[EvaluatedSequence]) -> ErrorModel:
    """Maximum-likelihood coefficients for these errors, which are taken as normally distributed.

    Every suite has the same weight. Raises InputError if there is no sequence.
    """
    if not sequences:
        raise InputError("no sequence to calibrate with")
    models = []
    for kind, settles in (("poses", True), ("steps", False)):
        errors, weights = _concatenated([getattr(one, kind) for one in sequences]), _weights(sequences, kind)
        models += [_fit_group(errors, errors.values[:, axes], weights, settles) for axes in (_FIRST, _LAST)]
    return ErrorModel(*models)


def round_model(model: ErrorModel, digits: int = SIGNIFICANT_DIGITS) -> ErrorModel:
    """The model with coefficients of `digits` significant digits."""

    def rounded(value: float) -> float:
        return float(f"{value:.{digits}g}")

    groups = {}
    for name in GROUPS:
        values = dataclasses.asdict(getattr(model, name))
        axes = tuple(rounded(axis) for axis in values.pop("axes"))
        groups[name] = VarianceModel(axes=axes, **{key: rounded(value) for key, value in values.items()})
    return ErrorModel(**groups)


_FIRST, _LAST = slice(0, 3), slice(3, 6)  # of six numbers: metres, radians
# Initial value and limits of the search, all logarithms: start, creep, power, axes y and z relative to x, settled,
# reach.
_SIZE, _RATIO = (-3.0, np.log(SMALLEST), np.log(10.0)), (0.0, -3.0, 3.0)
_LOGS = (_SIZE, _SIZE, (-1.0, -5.0, 1.0), _RATIO, _RATIO, _SIZE, (0.0, -3.0, 3.0))


def _fit_group(errors: Errors, values: np.ndarray, weights: np.ndarray, settles: bool) -> VarianceModel:
    """The maximum-likelihood model of values (N, 3) of one group."""

    def negative_log_likelihood(logs: np.ndarray) -> float:
        """Up to a constant."""
        variances = _model_from_logs(logs).variances(errors.confidence, errors.travel)
        return float(weights @ (np.log(variances) + squares / variances).sum(axis=1)) / 2

    squares = np.square(values)
    logs = _LOGS if settles else _LOGS[:5]
    found = optional_module("scipy.optimize").minimize(
        negative_log_likelihood,
        [start for start, _, _ in logs],
        method="L-BFGS-B",
        bounds=[limits for _, *limits in logs],
    )
    return _model_from_logs(found.x)


def _model_from_logs(logs: np.ndarray) -> VarianceModel:
    """The model with coefficients in the order of _LOGS."""
    start, creep, power, y, z, *settling = np.exp(logs).tolist()
    size = np.sqrt((1 + y * y + z * z) / 3)
    return VarianceModel(start, creep, power, (1 / size, y / size, z / size), *settling)


def _concatenated(errors: Sequence[Errors]) -> Errors:
    names = [field.name for field in dataclasses.fields(Errors)]
    return Errors(*(np.concatenate([getattr(part, name) for part in errors]) for name in names))


def _weights(sequences: Sequence[EvaluatedSequence], kind: str) -> np.ndarray:
    """(N,) weights of all errors of a kind, with the same total for every suite. Their sum is 1."""
    counts = [len(getattr(one, kind).values) for one in sequences]
    suites = [one.suite for one in sequences]
    total = {suite: sum(n for n, of in zip(counts, suites, strict=True) if of == suite) for suite in suites}
    return np.repeat([1 / total[suite] / len(total) for suite in suites], counts)


# ---------------------------------------------------------------------------------------------------------- evaluation

VarianceFunction = Callable[[Errors], np.ndarray]  # (N, 6) variances of errors


@dataclass(frozen=True)
class CovarianceReport:
    """Result of `report`."""

    text: str
    model: ErrorModel  # fitted, with SIGNIFICANT_DIGITS


def report(sequences: Sequence[EvaluatedSequence], published: ErrorModel = DEFAULT) -> CovarianceReport:
    """Fit a model to every second sequence of each suite and evaluate it on the others.

    It is compared with simpler covariances and with `published`, the model that the node uses for these weights.
    Raises InputError if a suite has a single sequence.
    """
    fitted_on, evaluated = [], []
    for suite in dict.fromkeys(one.suite for one in sequences):
        of_suite = [one for one in sequences if one.suite == suite]
        if len(of_suite) < 2:
            raise InputError(f"{suite} has a single sequence; needed: one to calibrate with and one to evaluate")
        fitted_on += of_suite[::2]
        evaluated += of_suite[1::2]
    model = fit_model(fitted_on)
    pose, step = constant_variances(fitted_on)
    methods: dict[str, tuple[VarianceFunction, VarianceFunction]] = {
        # The difference of two independent poses.
        "rule of thumb": (rule_of_thumb, lambda errors: 2 * rule_of_thumb(errors)),
        "constant": (
            lambda errors: np.broadcast_to(pose, errors.values.shape),
            lambda errors: np.broadcast_to(step, errors.values.shape),
        ),
        "of the node": _variance_functions(published),
        "fitted": _variance_functions(model),
    }
    model_to_store = round_model(model)
    text = "\n\n".join(
        (
            "Errors within 1 and 2 standard deviations (ideal: 68 %, 95 %); their mean square (ideal: 1), with its "
            f"95 % bootstrap interval. {len(evaluated)} sequences, none of the {len(fitted_on)} that were fitted.",
            format_spreads(evaluated, methods),
            format_persistence(evaluated),
            f"fitted model:\n{model_to_store.to_json()}",
        )
    )
    return CovarianceReport(text, model_to_store)


def _variance_functions(model: ErrorModel) -> tuple[VarianceFunction, VarianceFunction]:
    return (
        lambda errors: model.pose_variances(errors.confidence, errors.travel),
        lambda errors: model.step_variances(errors.confidence, errors.travel),
    )


@dataclass(frozen=True)
class NormalizedErrors:
    """Statistics of errors divided by their standard deviations; normal errors give 68.3 %, 95.4 % and 1."""

    within_one: float  # share
    within_two: float
    squared: float  # mean square per axis (NEES by its degrees of freedom)


def normalized_errors(errors: np.ndarray, variances: np.ndarray) -> NormalizedErrors:
    """Statistics of errors (N, k) relative to their variances (N, k), over all axes."""
    squares = np.square(errors) / variances
    return NormalizedErrors(float((squares <= 1).mean()), float((squares <= 4).mean()), float(squares.mean()))


def rule_of_thumb(errors: Errors) -> np.ndarray:
    """(N, 6) variances of poses without any measurement, for comparison.

    Points are assumed to be off by the share u = 0.1 / confidence of their distance, and the camera by u * depth
    metres and u radians, regardless of the travel.
    """
    share = 0.1 / np.maximum(errors.confidence, 1.0)
    return np.repeat(np.stack((share * errors.depth, share), axis=1) ** 2, 3, axis=1)


def constant_variances(sequences: Sequence[EvaluatedSequence]) -> tuple[np.ndarray, np.ndarray]:
    """(6,) mean squared errors of poses and of steps, one value for all axes of a group: the best fixed covariance."""
    found = []
    for kind in ("poses", "steps"):
        errors = _concatenated([getattr(one, kind) for one in sequences])
        squares = _weights(sequences, kind) @ np.square(errors.values)
        found.append(np.repeat(squares.reshape(2, 3).mean(axis=1), 3))
    return found[0], found[1]


def format_spreads(
    sequences: Sequence[EvaluatedSequence], methods: dict[str, tuple[VarianceFunction, VarianceFunction]]
) -> str:
    """A Markdown table per group: a row per suite, a column per method (variances of poses and of steps)."""
    pieces = []
    for place, group in enumerate(GROUPS):
        axes = _LAST if place % 2 else _FIRST
        lines = [[group, *methods]]
        suites = dict.fromkeys(one.suite for one in sequences)
        for suite in (*suites, "all"):
            chosen = [one for one in sequences if suite in ("all", one.suite)]
            cells = []
            for method in methods.values():
                kind, variances = ("poses", method[0]) if place < 2 else ("steps", method[1])
                parts = [getattr(one, kind) for one in chosen]
                cells.append(
                    _cell([normalized_errors(part.values[:, axes], variances(part)[:, axes]) for part in parts])
                )
            lines.append([f"{suite} ({len(chosen)})", *cells])
        pieces.append(markdown_table(lines))
    return "\n\n".join(pieces)


def _cell(scores: list[NormalizedErrors]) -> str:
    """Means over sequences, the mean square with its 95 % interval."""
    one, two = (100 * np.mean([getattr(score, name) for score in scores]) for name in ("within_one", "within_two"))
    squared = bootstrap_mean(np.array([score.squared for score in scores]))
    interval = "" if np.isnan(squared.low) else f" ({squared.low:.2f}, {squared.high:.2f})"
    return f"{one:.0f} %, {two:.0f} %; {squared.mean:.2f}{interval}"


def format_persistence(sequences: Sequence[EvaluatedSequence]) -> str:
    """One line: correlation of an error with the previous frame's error (1: equal, 0: independent)."""
    pieces = []
    for place, group in enumerate(GROUPS):
        axes = _LAST if place % 2 else _FIRST
        values = [(one.poses if place < 2 else one.steps).values[:, axes] for one in sequences]
        shares = [np.vdot(v[1:], v[:-1]) / np.vdot(v, v) for v in values if len(v) > 1]
        pieces.append(f"{group} {np.mean(shares):.2f}")
    return f"correlation of an error with the previous frame's error: {', '.join(pieces)}"
