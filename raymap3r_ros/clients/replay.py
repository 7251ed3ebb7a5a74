"""`raymap3r replay`: a bag played into the node, every frame of it, and a report of what came out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raymap3r_ros.clients.ground_truth import TruePoses
from raymap3r_ros.clients.player import Bag, Played, ReplayOptions, open_bag, play, scale_topic
from raymap3r_ros.clients.processes import camera_node, running_node
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.evaluation.trajectory import TrajectoryScore, trajectory_metrics
from raymap3r_ros.geometry.cameras import pose_matrix
from raymap3r_ros.io.files import clear_folder, whole_file
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.tum import write_tum
from raymap3r_ros.node.dds_profile import profile_environment
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.offline.summary import Milliseconds
from raymap3r_ros.rates import rate_text, rounded
from raymap3r_ros.signals import INTERRUPTED, on_stop_signals

NODE_NAME = "/raymap3r"  # of the node that is started here, as RViz layouts and other nodes know it
REPORT, REPORT_TEXT = "report.json", "report.txt"
TRAJECTORY = "trajectory{}.txt"  # a number where there are several worlds
_OURS = re.compile(rf"{re.escape(REPORT)}|{re.escape(REPORT_TEXT)}|trajectory(_\d+)?\.txt")


@dataclass(frozen=True)
class WorldReport:
    """The frames from one new world to the next: their poses have one origin."""

    trajectory: str  # file
    frames: int
    start: float  # stamp of its first frame, seconds
    seconds: float  # of stamps
    frames_with_truth: int
    score: dict[str, float | None] | None  # see TrajectoryScore; null where a figure has no meaning
    note: str  # why there is no score


@dataclass(frozen=True)
class ReplayReport:
    """What `report.json` tells of a replay."""

    bag: str
    topic: str
    complete: bool  # False: stopped before the end
    passes: int  # over the bag
    frames_sent: int
    frames_processed: int  # a pose came of them
    frames_refused: int  # by the node: no images, or in an encoding that it does not take
    frames_unreadable: int  # damaged in the bag, never sent
    frames_dropped: int  # a newer one came first: only where the node runs without every_frame
    frames_lost: int  # on their way to the node, or its queue was full
    frames_unanswered: int  # none of these: under way at an early end, or failed in the network
    resets: int  # how often the node's memory started anew after the first time
    seconds: float
    rate: float  # frames processed per second
    latency: Milliseconds | None  # from sending an image to having its pose
    scale_topic: str  # of the bag, that the node's scale comes from; empty where it needs none
    truth: str  # what the trajectory is compared with
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
) -> int:
    """Replay a bag, print and write the report; 0 where every frame of it was processed.

    node: full name of a stream node that is running already; empty: one is started, with `parameters`, and ended.
    Ctrl-C and SIGTERM end early, with the report of what was done (status 130).

    Raises InputError for a bag or folder that cannot be used, OptionError for parameters of a node that runs already,
    Raymap3rError where the node fails.
    """
    if node and parameters:
        raise OptionError(f"{', '.join(parameters)}: the node {node} runs already; set its parameters there")
    bag = open_bag(bag_path, options)
    if not node:  # one that runs already is asked for it
        scale_topic(bag, options, (parameters or {}).get("scale.source", NodeOptions().scale.source))
    prepare_folder(out, overwrite)
    # Before the first participant of this process: it is the publisher of a large message that needs the profile.
    os.environ.update(profile_environment(os.environ))
    name = "/" + (node or NODE_NAME).lstrip("/")
    namespace = name.rpartition("/")[0] or "/"
    stop = threading.Event()
    with on_stop_signals(lambda _: stop.set()), contextlib.ExitStack() as stack:
        process = None
        if not node:
            os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
            process = stack.enter_context(running_node(namespace, node_parameters(bag, parameters or {})))
        camera = stack.enter_context(camera_node(namespace))
        print(f"playing {bag.images} of {bag.path} into {name} ...", flush=True)
        played = play(bag, options, camera, name, process, stop)
    report = write_report(out, bag, played, options.truth)
    print((out / REPORT_TEXT).read_text(), end="")
    print(f"wrote {out}: {', '.join([REPORT, REPORT_TEXT, *(world.trajectory for world in report.worlds)])}")
    if not report.complete:
        return INTERRUPTED
    return 0 if report.frames_processed + report.frames_refused == report.frames_sent else 1


def node_parameters(bag: Bag, parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters with which a node takes every frame of `bag`."""
    return {
        **parameters,
        "every_frame": True,
        "use_sim_time": True,
        "image_transport": "compressed" if bag.compressed else "raw",
    }


def prepare_folder(folder: Path, overwrite: bool = False) -> None:
    """Make the output folder of a replay, see `clear_folder`."""
    clear_folder(folder, _OURS, overwrite)


def write_report(folder: Path, bag: Bag, played: Played, truth: str = "") -> ReplayReport:
    """Evaluate what was played, and write report and trajectories to `folder`.

    `truth`: see ReplayOptions. Trajectories are in TUM format: the camera's optical frame in the world frame of
    REP 103 axes, as ~/pose has it.
    """
    true_poses, note = _true_poses(played, truth)
    worlds = []
    bounds = [*sorted({0, *played.worlds}), len(played.frames)]
    spans = [
        [index for index in range(begin, end) if index in played.poses] for begin, end in itertools.pairwise(bounds)
    ]
    spans = [span for span in spans if span]
    for number, span in enumerate(spans, 1):
        file = TRAJECTORY.format(f"_{number}" if len(spans) > 1 else "")
        worlds.append(_world(folder / file, played, span, true_poses, note))
    processed, sent = len(played.poses), len(played.frames)
    refused, dropped, lost = (played.counts[name] for name in ("bad frames", "frames dropped", "frames lost"))
    report = ReplayReport(
        bag=str(bag.path),
        topic=bag.images,
        complete=not played.stopped,
        passes=played.passes,
        frames_sent=sent,
        frames_processed=processed,
        frames_refused=refused,
        frames_unreadable=played.unreadable,
        frames_dropped=dropped,
        frames_lost=lost,
        frames_unanswered=max(0, sent - processed - refused - dropped - lost),
        resets=played.counts["resets"],
        seconds=round(played.seconds, 3),
        rate=rounded(processed / played.seconds) if played.seconds else 0.0,
        latency=Milliseconds.of([1e3 * value for value in played.latencies.values()]) if played.latencies else None,
        scale_topic=played.scale_topic,
        truth=true_poses.source if true_poses else note,
        worlds=worlds,
        node=played.told,
        parameters=played.parameters,
    )
    write_json(folder / REPORT, dataclasses.asdict(report))
    with whole_file(folder / REPORT_TEXT) as partial:
        partial.write_text("\n".join(_text(report)) + "\n")
    return report


def _true_poses(played: Played, truth: str) -> tuple[TruePoses | None, str]:
    """The truth, or why there is none."""
    stamps = sorted({played.frames[index].stamp for index in played.poses})
    if not stamps:
        return None, "no frame was processed"
    try:
        return played.truth.poses(stamps, truth), ""
    except InputError as error:
        return None, str(error)


def _world(path: Path, played: Played, span: list[int], true_poses: TruePoses | None, note: str) -> WorldReport:
    numbers = torch.tensor([played.poses[index] for index in span], dtype=torch.float64)
    poses = pose_matrix(numbers[:, [0, 1, 2, 6, 3, 4, 5]]).numpy()
    stamps = [played.frames[index].stamp for index in span]
    write_tum(path, stamps, numbers.numpy())
    score, with_truth = None, 0
    if true_poses:
        known = [row for row, stamp in enumerate(stamps) if stamp in true_poses.poses]
        with_truth = len(known)
        truth = np.stack([true_poses.poses[stamps[row]] for row in known]) if known else np.zeros((0, 4, 4))
        # From the first stamp on: seconds since 1970 leave too few digits for a difference.
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
    early = "" if report.complete else " (stopped early)"
    passes = f" in {report.passes} passes" if report.passes > 1 else ""
    yield f"bag        {report.bag}, {report.topic}{passes}{early}"
    yield f"node       {node.get('checkpoint')}, on {node.get('device')}, rule {node.get('update rule')}"
    counts = {
        "sent": report.frames_sent,
        "processed": report.frames_processed,
        "dropped": report.frames_dropped,
        "lost": report.frames_lost,
        "refused by the node": report.frames_refused,
        "unreadable in the bag": report.frames_unreadable,
        "unanswered": report.frames_unanswered,
    }
    always = ("sent", "processed", "dropped", "lost")
    yield "frames     " + "   ".join(f"{what} {count}" for what, count in counts.items() if count or what in always)
    timing = f", latency {latency.median:.0f} ms median, {latency.p95:.0f} ms p95" if latency else ""
    yield f"speed      {rate_text(report.rate)} over {report.seconds:.1f} s{timing}"
    yield f"memory     {report.resets} resets"
    if report.scale_topic:
        yield f"scale      {node.get('scale')}, {report.scale_topic}"
    if node.get("last error"):
        yield f"error      {node['last error']}"
    yield f"truth      {report.truth}"
    for world in report.worlds:
        yield f"{world.trajectory}: {world.frames} frames in {world.seconds:.1f} s{_score_text(world)}"


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
