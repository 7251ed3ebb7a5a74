"""How far a pose and a step are off (`raymap3r evaluate covariance`): measured on rendered suites, few constants.

The error of a pose is that of the camera in the world of the stream's first camera, in the network's metres: no later
alignment, no fitted scale. The error of a step is that of the motion from one frame to the next. Both are given in
the axes of the camera (x right, y down, z forward), positions in metres, rotations as axis times angle in radians.

Errors grow with *travel*: the metres of the way so far, and TURN_LENGTH for every radian turned on it. A pose is first
as good as the step from the first camera; then it settles, because the network tells it against what it remembers of
the room; what remains is a creep. A network that is less confident is off by more. See docs/odometry.md.
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
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence
from raymap3r_ros.evaluation.statistics import bootstrap_mean, optional_module
from raymap3r_ros.mapping.uncertainty import ONE_ROOM, ErrorModel, VarianceModel, travels
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions

SMALLEST = 1e-3  # metres, radians: nothing is ever believed to be better, also where the fit says so
MEDIAN_STRIDE = 4  # rows and columns of the maps that the medians are taken of, as in the node
GROUPS = ("position", "rotation", "step", "turn")  # of a pose, and of the motion between two frames


# ------------------------------------------------------------------------------------------------------ measurement


@dataclass(frozen=True)
class Errors:
    """N errors of one kind and what was known with them."""

    values: np.ndarray  # (N, 6) metres and radians, in the camera's axes
    travel: np.ndarray  # (N,) so far, or of the step
    confidence: np.ndarray  # (N,) median of the frame
    depth: np.ndarray  # (N,) median of the frame, metres


@dataclass(frozen=True)
class EvaluatedSequence:
    """What a stream said of one sequence, against the truth."""

    suite: str
    name: str
    poses: Errors
    steps: Errors


def run_drives(
    network: Network,
    parts: Sequence[tuple[str, Sequence[PosedSequence]]],
    options: StreamOptions,
    *,
    frames: int = 0,
    batch: int = 6,
    workers: int = 1,
    on_frame: Callable[[int], None] = lambda count: None,
) -> list[EvaluatedSequence]:
    """Stream all sequences of all parts (suite, sequences of one length and size), as many side by side as `batch`.

    Of each the first `frames` (0: all). `on_frame` is told how many frames were done since it was last called. Raises
    InputError where frames have no true pose or intrinsics, or where a sequence has less than two frames that the
    network could use.
    """
    batches = [(suite, all_[at : at + batch]) for suite, all_ in parts for at in range(0, len(all_), batch)]
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda job: _run_batch(network, *job, options, frames or None, on_frame), batches)
        return [drive for drives in done for drive in drives]


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
    for frames in zip(*(islice(sequence.frames(), length) for sequence in sequences), strict=True):
        truth.append(np.stack([_true_pose(frame) for frame in frames]))
        images = np.stack([frame.image for frame in frames])
        columns.append(_look(stream.step(images, intrinsics=_intrinsics(frames), motion=False)))
        on_frame(len(frames))
    true_poses = np.stack(truth, axis=1)
    healthy, poses, confidence, depth = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return [
        make_drive(suite, sequence.name, *(array[at][healthy[at]] for array in (poses, true_poses, confidence, depth)))
        for at, sequence in enumerate(sequences)
    ]


def _true_pose(frame: Frame) -> np.ndarray:
    if frame.pose is None or frame.intrinsics is None:
        raise InputError(f"the frame at {frame.stamp:.3f} s has no true pose or no intrinsics; errors need both")
    return frame.pose


def _intrinsics(frames: Sequence[Frame]) -> np.ndarray:
    return np.stack([frame.intrinsics for frame in frames])


def _look(result: StepResult) -> tuple[np.ndarray, ...]:
    """Health (B,), poses (B, 4, 4), and median confidence and depth (B,) of a frame, as the node sees them."""
    return (
        result.healthy.cpu().numpy(),
        result.pose.double().cpu().numpy(),
        _median(result.confidence),
        _median(result.depth),
    )


def _median(maps: Tensor) -> np.ndarray:
    return maps[:, ::MEDIAN_STRIDE, ::MEDIAN_STRIDE].flatten(1).median(dim=1).values.double().cpu().numpy()


def make_drive(
    suite: str, name: str, poses: np.ndarray, truth: np.ndarray, confidence: np.ndarray, depth: np.ndarray
) -> EvaluatedSequence:
    """Errors of poses (T, 4, 4) against true ones in whatever world; confidence and depth (T,) of their frames.

    Raises InputError for less than two frames.
    """
    if len(poses) < 2:
        raise InputError(f"{name}: {len(poses)} frames that the network could use; errors of steps need two")
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
    """(N, 6) of transforms (N, 4, 4): translation and rotation, in the axes that `found` arrives at."""
    back = found[:, :3, :3].transpose(0, 2, 1)
    shift = back @ (found[:, :3, 3:] - truth[:, :3, 3:])
    turn = optional_module("scipy.spatial.transform").Rotation.from_matrix(back @ truth[:, :3, :3]).as_rotvec()
    return np.concatenate((shift[..., 0], -turn), axis=1)


# ------------------------------------------------------------------------------------------------------ calibration


def fit_model(drives: Sequence[EvaluatedSequence]) -> ErrorModel:
    """The constants under which the errors of these drives are likeliest, taken as normally distributed.

    Every suite counts alike. Raises InputError where there is no drive.
    """
    if not drives:
        raise InputError("no sequence to calibrate with")
    growths = []
    for kind, settles in (("poses", True), ("steps", False)):
        errors, weights = _joined([getattr(drive, kind) for drive in drives]), _weights(drives, kind)
        growths += [_fit_growth(errors, errors.values[:, axes], weights, settles) for axes in (_FIRST, _LAST)]
    return ErrorModel(*growths)


_FIRST, _LAST = slice(0, 3), slice(3, 6)  # of six numbers: metres, radians
# Where the search begins and its limits, all logarithms: start, creep, power, the axes y and z against x; then what
# settles and its reach.
_SIZE, _RATIO = (-3.0, np.log(SMALLEST), np.log(10.0)), (0.0, -3.0, 3.0)
_LOGS = (_SIZE, _SIZE, (-1.0, -5.0, 1.0), _RATIO, _RATIO, _SIZE, (0.0, -3.0, 3.0))


def _fit_growth(errors: Errors, values: np.ndarray, weights: np.ndarray, settles: bool) -> VarianceModel:
    """The likeliest for values (N, 3) of one group."""

    def surprise(logs: np.ndarray) -> float:
        """Negative logarithm of the likelihood, but for a constant."""
        variances = _growth(logs).variances(errors.confidence, errors.travel)
        return float(weights @ (np.log(variances) + squares / variances).sum(axis=1)) / 2

    squares = np.square(values)
    logs = _LOGS if settles else _LOGS[:5]
    found = optional_module("scipy.optimize").minimize(
        surprise, [start for start, _, _ in logs], method="L-BFGS-B", bounds=[limits for _, *limits in logs]
    )
    return _growth(found.x)


def _growth(logs: np.ndarray) -> VarianceModel:
    """From _LOGS."""
    start, creep, power, y, z, *settling = np.exp(logs).tolist()
    size = np.sqrt((1 + y * y + z * z) / 3)
    return VarianceModel(start, creep, power, (1 / size, y / size, z / size), *settling)


def _joined(errors: Sequence[Errors]) -> Errors:
    names = [field.name for field in dataclasses.fields(Errors)]
    return Errors(*(np.concatenate([getattr(part, name) for part in errors]) for name in names))


def _weights(drives: Sequence[EvaluatedSequence], kind: str) -> np.ndarray:
    """(N,) of all errors of a kind: every suite counts alike. Their sum is 1."""
    counts = [len(getattr(drive, kind).values) for drive in drives]
    suites = [drive.suite for drive in drives]
    total = {suite: sum(n for n, of in zip(counts, suites, strict=True) if of == suite) for suite in suites}
    return np.repeat([1 / total[suite] / len(total) for suite in suites], counts)


# ---------------------------------------------------------------------------------------------------------- judgement

Judged = Callable[[Errors], np.ndarray]  # variances (N, 6) of errors


def report(drives: Sequence[EvaluatedSequence]) -> str:
    """Fit on every second sequence of each suite; judge on the others, beside simpler covariances and the node's.

    Raises InputError where a suite has a single sequence.
    """
    fitted_on, judged = [], []
    for suite in dict.fromkeys(drive.suite for drive in drives):
        of_suite = [drive for drive in drives if drive.suite == suite]
        if len(of_suite) < 2:
            raise InputError(f"{suite} has a single sequence; needed: one to calibrate with and one to judge")
        fitted_on += of_suite[::2]
        judged += of_suite[1::2]
    model = fit_model(fitted_on)
    pose, step = constant_variances(fitted_on)
    methods: dict[str, tuple[Judged, Judged]] = {
        # Two poses that are each off by so much, as if independently.
        "rule of thumb": (rule_of_thumb, lambda errors: 2 * rule_of_thumb(errors)),
        "constant": (
            lambda errors: np.broadcast_to(pose, errors.values.shape),
            lambda errors: np.broadcast_to(step, errors.values.shape),
        ),
        "of the node": _methods(ONE_ROOM),
        "fitted": _methods(model),
    }
    return "\n\n".join(
        (
            "Errors within 1 and 2 standard deviations (right: 68 %, 95 %); their mean square (right: 1), with its "
            f"95 % interval by bootstrap. {len(judged)} sequences, none of the {len(fitted_on)} that were fitted.",
            format_spreads(judged, methods),
            format_persistence(judged),
            format_model(model),
        )
    )


def _methods(model: ErrorModel) -> tuple[Judged, Judged]:
    return (
        lambda errors: model.pose_variances(errors.confidence, errors.travel),
        lambda errors: model.step_variances(errors.confidence, errors.travel),
    )


@dataclass(frozen=True)
class Spread:
    """How errors spread, divided by their standard deviations. Of normal ones 68.3 % lie within 1, 95.4 % within 2."""

    within_one: float  # share
    within_two: float
    squared: float  # mean square, per axis (NEES by its degrees of freedom): 1 where the variances are right


def judge(errors: np.ndarray, variances: np.ndarray) -> Spread:
    """Spread of errors (N, k) against their variances (N, k), all axes together."""
    squares = np.square(errors) / variances
    return Spread(float((squares <= 1).mean()), float((squares <= 4).mean()), float(squares.mean()))


def rule_of_thumb(errors: Errors) -> np.ndarray:
    """(N, 6) variances of poses as one would guess them without any measurement, to compare with.

    The network is taken to know its points to the share u = 0.1 / confidence of their distance: a camera is off by
    u * depth metres and by u radians, whatever the way so far.
    """
    share = 0.1 / np.maximum(errors.confidence, 1.0)
    return np.repeat(np.stack((share * errors.depth, share), axis=1) ** 2, 3, axis=1)


def constant_variances(drives: Sequence[EvaluatedSequence]) -> tuple[np.ndarray, np.ndarray]:
    """(6,) mean squared errors of poses and of steps, one for all axes of a group: what a fixed covariance can do."""
    found = []
    for kind in ("poses", "steps"):
        squares = _weights(drives, kind) @ np.square(_joined([getattr(drive, kind) for drive in drives]).values)
        found.append(np.repeat(squares.reshape(2, 3).mean(axis=1), 3))
    return found[0], found[1]


def format_spreads(drives: Sequence[EvaluatedSequence], methods: dict[str, tuple[Judged, Judged]]) -> str:
    """Markdown: per group a table, suites down, methods (variances of poses and of steps) across."""
    pieces = []
    for place, group in enumerate(GROUPS):
        axes = _LAST if place % 2 else _FIRST
        lines = [[group, *methods], ["---"] * (1 + len(methods))]
        suites = dict.fromkeys(drive.suite for drive in drives)
        for suite in (*suites, "all"):
            chosen = [drive for drive in drives if suite in ("all", drive.suite)]
            cells = []
            for method in methods.values():
                kind, variances = ("poses", method[0]) if place < 2 else ("steps", method[1])
                parts = [getattr(drive, kind) for drive in chosen]
                cells.append(_cell([judge(part.values[:, axes], variances(part)[:, axes]) for part in parts]))
            lines.append([f"{suite} ({len(chosen)})", *cells])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        pieces.append(
            "\n".join(
                "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
            )
        )
    return "\n\n".join(pieces)


def _cell(spreads: list[Spread]) -> str:
    """Means over sequences, the mean square with its 95 % interval."""
    one, two = (100 * np.mean([getattr(spread, name) for spread in spreads]) for name in ("within_one", "within_two"))
    squared = bootstrap_mean(np.array([spread.squared for spread in spreads]))
    interval = "" if np.isnan(squared.low) else f" ({squared.low:.2f}, {squared.high:.2f})"
    return f"{one:.0f} %, {two:.0f} %; {squared.mean:.2f}{interval}"


def format_persistence(drives: Sequence[EvaluatedSequence]) -> str:
    """One line: how an error goes together with that of the frame before (1: it is the same, 0: it is a new one)."""
    pieces = []
    for place, group in enumerate(GROUPS):
        axes = _LAST if place % 2 else _FIRST
        values = [(drive.poses if place < 2 else drive.steps).values[:, axes] for drive in drives]
        shares = [np.vdot(v[1:], v[:-1]) / np.vdot(v, v) for v in values if len(v) > 1]
        pieces.append(f"{group} {np.mean(shares):.2f}")
    return f"correlation of an error with that of the frame before: {', '.join(pieces)}"


def format_model(model: ErrorModel) -> str:
    """The model as the source text that makes it."""
    lines = []
    for group in GROUPS:
        growth = getattr(model, group)
        axes = ", ".join(f"{axis:.3g}" for axis in growth.axes)
        settling = f", settled={growth.settled:.3g}, reach={growth.reach:.3g}" if growth.settled else ""
        lines.append(
            f"    {group}=Growth(start={growth.start:.3g}, creep={growth.creep:.3g}, power={growth.power:.3g}, "
            f"axes=({axes}){settling}),"
        )
    return "\n".join(("ErrorModel(", *lines, ")"))
