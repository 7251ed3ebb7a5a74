"""`raymap3r replay`: play every frame of a bag into the node, and write a report of its output."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymap3r_ros.clients.bag import Bag, ReplayOptions, open_bag, scale_topic
from raymap3r_ros.clients.graph import check_node_name, private_topics, reserved
from raymap3r_ros.clients.ground_truth import GroundTruth
from raymap3r_ros.clients.harness import BASE_NAME, camera_node, running_node, set_up_dds
from raymap3r_ros.clients.harness import stop as end_node
from raymap3r_ros.clients.player import Playback, play
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.evaluation.trajectory import TrajectoryScore, trajectory_metrics
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.output_folder import claim, clear_folder
from raymap3r_ros.io.tum import matrices, write_tum
from raymap3r_ros.node.namesakes import REPLAY_NAMESPACE
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.offline.summary import Milliseconds
from raymap3r_ros.options import option_fields
from raymap3r_ros.output_files import whole_file
from raymap3r_ros.rates import rate_text, rounded
from raymap3r_ros.signals import INTERRUPTED, on_stop_signals
from raymap3r_ros.stamps import rising
from raymap3r_ros.text import counted, printable

LONG_BAG = 1000  # images
REPORT, REPORT_TEXT = "report.json", "report.txt"
INTERRUPTED_LIMIT = 1.0  # seconds for the node to end after Ctrl-C, in which its frame may not be complete
TRAJECTORY = "trajectory{}.txt"  # with a number if there are several worlds
_RESULTS = re.compile(rf"{re.escape(REPORT)}|{re.escape(REPORT_TEXT)}|trajectory(_\d+)?\.txt")


@dataclass(frozen=True)
class WorldReport:
    """The frames of one world: their poses have one origin."""

    trajectory: str  # file
    frames: int  # in its trajectory: without those whose stamp does not rise
    start: float  # stamp of its first frame, seconds
    seconds: float  # of stamps
    frames_with_truth: int
    score: dict[str, float | None] | None  # see TrajectoryScore; null where a figure is undefined
    note: str  # why there is no score


@dataclass(frozen=True)
class ReplayReport:
    """Contents of `report.json`."""

    bag: str
    topic: str
    complete: bool  # False: stopped before the end, or the bag ended early
    ended: str  # why the bag ended early, by damage or because data are missing
    passes: int  # over the bag
    frames_sent: int
    frames_processed: int  # with a pose
    frames_late: int  # processed, but not in a trajectory: their stamp is not above all before it in their world
    frames_refused: int  # by the node: damaged, or in an encoding that it does not support
    frames_unreadable: int  # damaged in the bag, never sent
    frames_missing: int | None  # in the bag's index, but not in the part that could be read; None: unknown
    frames_outside: int | None  # recorded before `start` or after `duration`, not sent; None: unknown
    frames_dropped: int  # replaced by a newer one; only if the node runs without every_frame
    frames_lost: int  # in transport, or because the node's queue was full
    frames_blank: int  # not processed by the node, because they show nothing
    frames_paused: int  # ignored by the node, which was paused
    frames_without_pose: int  # published without one, because a transform is missing: `missing transform` in `node`
    frames_unanswered: int  # none of these: in flight at an early end, or failed in the network
    resets: int  # of the node's memory, after the first world
    seconds: float
    rate: float  # frames processed per second
    latency: Milliseconds | None  # from sending an image to having its pose
    scale_topic: str  # topic of the bag for scale.source; empty if the source needs none
    truth: str  # ground truth of the trajectory
    worlds: list[WorldReport]
    node: dict[str, str]  # its last diagnostics
    parameters: dict[str, object]  # of the node


def run(
    bag_path: Path,
    options: ReplayOptions,
    out: Path,
    *,
    node: str = "",
    parameters: Mapping[str, object] | None = None,
    overwrite: bool = False,
    global_topics: bool | None = None,
) -> int:
    """Replay a bag, print and write the report.

    Returns 0 if the bag was read to its end and every frame was processed or refused, but not all refused; else 1.

    `node`: full name of a stream node that is already running; empty: one is started with `parameters`, and ended.
    Ctrl-C, SIGTERM and SIGHUP end the replay early, with a report of the frames so far (status 130).

    `global_topics`: whether /tf, /tf_static, /clock and /diagnostics are used, which other nodes receive too, or
    topics in the node's namespace instead. With True, a node that is started is called /raymap3r, and its inputs have
    no namespace. None: only with `node`, and if no other node publishes transforms or a clock.

    Raises InputError for a bag or folder that cannot be used, OptionError for parameters of a node that is already
    running, Raymap3rError if the node fails, or if another node of the same name is running.
    """
    if node and parameters:
        raise OptionError(f"{', '.join(parameters)}: the node {node} is already running; set its parameters there")
    bag = open_bag(bag_path, options)
    if not node:  # otherwise the player reads scale.source from the running node
        scale_topic(bag, options, (parameters or {}).get("scale.source", NodeOptions().scale.source))
    name = "/" + (node or f"{'' if global_topics else REPLAY_NAMESPACE}/{BASE_NAME}").lstrip("/")
    check_node_name(name)
    set_up_dds(localhost=not node, alone=not (node or global_topics))
    prepare_folder(out, overwrite, [bag_path])  # last: it deletes an earlier report
    namespace = name.rpartition("/")[0] or "/"
    private = private_topics(namespace.rstrip("/")) if global_topics is False or not (node or global_topics) else []
    stop = threading.Event()
    # Repeated signals too: ros2 launch sends one to a process that has already got one from the terminal.
    with on_stop_signals(lambda _: stop.set(), repeatedly=True), contextlib.ExitStack() as stack:
        process = None
        if not node:
            stack.enter_context(reserved(name))
        camera = stack.enter_context(camera_node(namespace, *private, unique="" if node else name))
        if not node:
            process = stack.enter_context(running_node(namespace, node_parameters(bag, parameters or {}), *private))
        print(printable(f"playing {bag.images} of {bag.path} into {name} ..."), flush=True)
        playback = play(bag, options, camera, name, process, stop, beside_others=global_topics is not None)
        if playback.stopped and process is not None:
            process.terminate()  # it ends while the report is written
        report = write_report(out, bag, playback, options.truth)
        if playback.stopped and process is not None:
            end_node(process, INTERRUPTED_LIMIT)
    print((out / REPORT_TEXT).read_text(), end="")
    print(
        f"wrote {printable(out)}: {', '.join([REPORT, REPORT_TEXT, *(world.trajectory for world in report.worlds)])}"
    )
    if playback.stopped:
        return INTERRUPTED
    accounted = report.frames_processed + report.frames_refused + report.frames_blank == report.frames_sent
    return 0 if report.complete and accounted and report.frames_processed else 1


def launch_words(text: str) -> str:
    """An error message with arguments of replay.launch.py (`rate:=`) in place of command-line options (`--rate`)."""
    names = [name for name, _ in option_fields(ReplayOptions)]
    for name in (*names, "overwrite", "global_topics"):
        flag = re.escape(f"--{name.replace('_', '-')}")
        text = re.sub(rf"{flag}(?![\w-])", f"{name}:={'true' if name not in names else ''}", text)
    return text


def node_parameters(bag: Bag, parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters with which a node processes every frame of `bag`."""
    # Recording the kinds of frames takes a node seconds, which short bags do not get back.
    quick = {"execution": "plain"} if bag.image_count < LONG_BAG else {}
    return {
        **quick,
        **parameters,
        "every_frame": True,
        "use_sim_time": True,
        "image_transport": "compressed" if bag.compressed else "raw",
    }


def prepare_folder(folder: Path, overwrite: bool = False, inputs: Collection[Path] = ()) -> None:
    """Create the output folder of a replay, see `clear_folder`."""
    clear_folder(folder, _RESULTS, overwrite, inputs)


def write_report(folder: Path, bag: Bag, playback: Playback, truth: str = "") -> ReplayReport:
    """Evaluate the playback, and write report and trajectories to `folder`.

    `truth`: see ReplayOptions. Trajectories are in TUM format: the camera's optical frame in the world frame with
    REP 103 axes, as in ~/pose.
    """
    ground_truth, note = _ground_truth(playback, truth)
    worlds = []
    starts = {0: 0, **playback.worlds}
    by_world: dict[int, list[int]] = {first: [] for first in sorted(starts.values())}
    for begin, end in itertools.pairwise([*sorted(starts), len(playback.frames)]):
        by_world[starts[begin]] += [index for index in range(begin, end) if index in playback.poses]
    spans = [span for span in by_world.values() if span]
    for number, span in enumerate(spans, 1):
        file = TRAJECTORY.format(f"_{number}" if len(spans) > 1 else "")
        written = [span[row] for row in rising([playback.frames[index].stamp for index in span])]
        worlds.append(_world(claim(folder, file), playback, written, ground_truth, note))
    processed, sent = len(playback.poses), len(playback.frames)
    names = "bad frames", "frames dropped", "frames lost", "blank frames", "frames paused", "frames without pose"
    refused, dropped, lost, blank, paused, unplaced = (playback.counts[name] for name in names)
    report = ReplayReport(
        bag=str(bag.path),
        topic=bag.images,
        complete=not (playback.stopped or playback.ended),
        ended=playback.ended,
        passes=playback.passes,
        frames_sent=sent,
        frames_processed=processed,
        frames_late=processed - sum(world.frames for world in worlds),
        frames_refused=refused,
        frames_unreadable=playback.unreadable,
        frames_missing=playback.missing,
        frames_outside=playback.outside,
        frames_dropped=dropped,
        frames_lost=lost,
        frames_blank=blank,
        frames_paused=paused,
        frames_without_pose=unplaced,
        frames_unanswered=max(0, sent - processed - refused - dropped - lost - blank - paused - unplaced),
        resets=playback.counts["resets"],
        seconds=round(playback.seconds, 3),
        rate=rounded(processed / playback.seconds) if playback.seconds else 0.0,
        latency=Milliseconds.of([1e3 * value for value in playback.latencies.values()])
        if playback.latencies
        else None,
        scale_topic=playback.scale_topic,
        truth=ground_truth.source if ground_truth else note,
        worlds=worlds,
        node=playback.diagnostics,
        parameters=playback.parameters,
    )
    write_json(claim(folder, REPORT), dataclasses.asdict(report))
    with whole_file(claim(folder, REPORT_TEXT)) as partial:
        partial.write_text("\n".join(map(printable, _text(report))) + "\n")
    return report


def _ground_truth(playback: Playback, truth: str) -> tuple[GroundTruth | None, str]:
    """The ground truth, or the reason why there is none."""
    stamps = sorted({playback.frames[index].stamp for index in playback.poses})
    if not stamps:
        return None, "no frame was processed"
    try:
        return playback.ground_truth.poses(stamps, truth), ""
    except InputError as error:
        return None, str(error)


def _world(
    path: Path, playback: Playback, span: list[int], ground_truth: GroundTruth | None, note: str
) -> WorldReport:
    numbers = np.array([playback.poses[index] for index in span])
    poses = matrices(numbers)
    stamps = [playback.frames[index].stamp for index in span]
    write_tum(path, stamps, numbers)
    score, with_truth = None, 0
    if ground_truth:
        known = [row for row, stamp in enumerate(stamps) if stamp in ground_truth.poses]
        with_truth = len(known)
        truth = np.stack([ground_truth.poses[stamps[row]] for row in known]) if known else np.zeros((0, 4, 4))
        # Relative to the first stamp: seconds since 1970 leave too few digits for differences.
        seconds = np.array([(stamps[row] - stamps[0]) * 1e-9 for row in known])
        try:
            score = _finite(trajectory_metrics(poses[known], truth, seconds))
        except Raymap3rError as error:
            note = str(error)
    return WorldReport(
        trajectory=path.name,
        frames=len(span),
        start=stamps[0] * 1e-9,
        seconds=(stamps[-1] - stamps[0]) * 1e-9,
        frames_with_truth=with_truth,
        score=score,
        note=note,
    )


def _finite(score: TrajectoryScore) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(score).items()}


def _text(report: ReplayReport) -> Iterator[str]:
    node, latency = report.node, report.latency
    early = "" if report.complete else f" (ended early: {report.ended})" if report.ended else " (stopped early)"
    passes = f" in {report.passes} passes" if report.passes > 1 else ""
    yield f"bag        {report.bag}, {report.topic}{passes}{early}"
    yield f"node       {node.get('checkpoint')}, on {node.get('device')}, rule {node.get('update rule')}"
    counts = {
        "sent": report.frames_sent,
        "processed": report.frames_processed,
        "dropped": report.frames_dropped,
        "lost": report.frames_lost,
        "blank": report.frames_blank,
        "while the node was paused": report.frames_paused,
        "without a pose": report.frames_without_pose,
        "refused by the node": report.frames_refused,
        "unreadable in the bag": report.frames_unreadable,
        "missing in the bag": _known(report.frames_missing),
        "outside start and duration": _known(report.frames_outside),
        "unanswered": report.frames_unanswered,
        "with a stamp that does not rise": report.frames_late,
    }
    always = ("sent", "processed", "dropped", "lost")
    yield "frames     " + "   ".join(f"{what} {count}" for what, count in counts.items() if count or what in always)
    if report.frames_dropped:
        yield "           dropped: newer frames came first; set every_frame of the node to true, or play more slowly"
    timing = f", latency {latency.median:.0f} ms median, {latency.p95:.0f} ms p95" if latency else ""
    yield f"speed      {rate_text(report.rate)} over {report.seconds:.1f} s{timing}"
    yield f"memory     {counted(report.resets, 'reset')}"
    if report.scale_topic:
        yield f"scale      {node.get('scale')}, {report.scale_topic}"
    if report.frames_without_pose:
        yield f"transform  {node.get('missing transform')}"
    if node.get("last error"):
        yield f"error      {node['last error']}"
    yield f"truth      {report.truth}"
    for world in report.worlds:
        yield f"{world.trajectory}: {counted(world.frames, 'frame')} in {world.seconds:.1f} s{_score_text(world)}"


def _known(count: int | None) -> int | str:
    return "an unknown number" if count is None else count


def _score_text(world: WorldReport) -> str:
    score = world.score
    if score is None:
        return f"; no score: {world.note}" if world.frames_with_truth else ""
    scale = "none: one of them does not move" if score["scale"] is None else f"{score['scale']:.3f}"
    return (
        f"; of {world.frames_with_truth} with truth: ATE {score['ate']:.4f} m (scale {scale}), "
        f"{score['ate_se3']:.4f} m without scaling, of a camera at rest {score['ate_constant']:.4f} m; "
        f"RPE {score['rpe_translation']:.4f} m, {score['rpe_rotation']:.3f} deg"
    )
