#!/usr/bin/env python3
"""Play a rendered clip into the node for as long as you like, and fail where anything grows, slows down or is lost.

    python benchmarks/soak.py [--frames N] [--seconds S] [--size N] [--checkpoint F] [--device D] [--out DIR]

Three processes: a camera (this one), the node in every-frame mode, and a listener that subscribes to every output.
The camera keeps two frames on their way, so that the node is never idle and nothing may be dropped. The clip goes to
and fro with stamps that go on at 30 Hz. Every few seconds: resident memory of the node's process, its GPU memory, the
median latency from an image's publication to its pose, frames dropped and lost, errors.

Writes soak.csv and soak.png. The exit status is 1 where the judge finds a trend (see `judge`), an error in the
diagnostics, or a frame without its pose, odometry or transform.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import signal
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import Popen

import common
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from scipy.stats import theilslopes
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.clients.demo import rendered_room
from raymap3r_ros.clients.processes import answer, camera_node, check_running, listening, running_node, stop
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.dds_profile import profile_environment
from raymap3r_ros.node.map_publisher import MAP_TOPICS
from raymap3r_ros.node.publishers import RELIABLE, TOPICS

NAMESPACE = "/raymap3r_soak"
NODE = f"{NAMESPACE}/raymap3r"
CAMERA_FRAME = "soak_camera"
START = 1_700_000_000  # seconds; the first stamp
RATE = 30  # Hz of the stamps
IMAGES = 48  # different ones
MAP_POINTS = 100_000  # at most: full within the warm-up, so that what the map lets go is watched as well
WINDOW = 2  # frames on their way
STUCK = 60.0  # seconds without a pose after which the node is given up
DEPTH = 200  # messages that may wait: the listener must not be what loses them
WARM_UP = 0.25  # share of the samples that do not count: caches and maps fill up
EVERY_FRAME = ("pose", "odometry", "tf")  # reliable outputs, of which each frame has one

# What the judge lets pass. The trajectories (200 bytes a frame, up to 200,000 frames) and a map that still finds new
# places grow by design, and an allocator wanders; a single message that is forgotten weighs kilobytes.
MEMORY_ALLOWANCE = 16.0  # MiB, and ...
MEMORY_PER_FRAME = 512 / 2**20  # ... MiB for each frame that counts
LATENCY_GROWTH = 0.5  # of the median: other work on the machine comes and goes


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment."""

    seconds: float  # since the first frame
    frames: int  # poses received
    resident_mib: float  # memory of the node's process
    gpu_mib: float  # NaN without a GPU
    latency_ms: float  # median since the last sample, publication to pose
    dropped: int  # so far, by the node's own count
    lost: int


@dataclass
class Told:
    """What diagnostics said."""

    values: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # distinct


# --------------------------------------------------------------------------------------------------------- the judge


def judge(samples: Sequence[Sample]) -> list[str]:
    """What is wrong with a run, in words; empty where nothing is.

    A trend is the Theil-Sen slope (median of the slopes between all pairs) of the samples after the warm-up, times
    the frames that they span.
    """
    steady = samples[int(len(samples) * WARM_UP) :]
    if len(steady) < 6:
        return [f"{len(steady)} samples after the warm-up are too few to judge: more frames, or a shorter --interval"]
    problems = []
    frames = steady[-1].frames - steady[0].frames
    allowed = MEMORY_ALLOWANCE + MEMORY_PER_FRAME * frames
    for name, what in (("resident_mib", "resident memory"), ("gpu_mib", "GPU memory")):
        growth = _trend(steady, name)
        if growth > allowed:
            problems.append(f"{what} grew by {growth:.1f} MiB over {frames} frames; allowed: {allowed:.1f}")
    latency = statistics.median(sample.latency_ms for sample in steady)
    growth = _trend(steady, "latency_ms")
    if growth > LATENCY_GROWTH * latency:
        problems.append(
            f"latency grew by {growth:.1f} ms over {frames} frames, from a median of {latency:.1f} ms; "
            f"allowed: {LATENCY_GROWTH:.0%}"
        )
    for name in ("dropped", "lost"):
        if count := getattr(samples[-1], name):
            problems.append(f"{count} frames were {name}")
    return problems


def _trend(samples: Sequence[Sample], name: str) -> float:
    """Growth of a figure over all samples; NaN where there is none (no GPU)."""
    values = np.array([getattr(sample, name) for sample in samples])
    frames = np.array([sample.frames for sample in samples], float)
    if not np.isfinite(values).all():
        return float("nan")
    # At most 500 samples: their pairs are counted in squares.
    every = slice(None, None, -(-len(values) // 500))
    return float(theilslopes(values[every], frames[every])[0]) * (frames[-1] - frames[0])


# ------------------------------------------------------------------------------------------------------ the listener


def listen(pipe: Connection) -> None:
    """Count the messages of every output. Says something once the node serves all; answers whatever it is sent with
    the counts by topic."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("listener", namespace=NAMESPACE)
    counts: Counter[str] = Counter()
    told = Told()
    wanted = {**TOPICS, "static_map": MAP_TOPICS["static_map"], "tf": (TFMessage, RELIABLE)}

    def count(topic: str, message: bytes) -> None:
        # Others of this ROS domain have transforms too.
        if topic != "tf" or CAMERA_FRAME.encode() in message:
            counts[topic] += 1

    for topic, (kind, qos) in wanted.items():
        own = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=qos.reliability)
        name = "/tf" if topic == "tf" else f"{NODE}/{topic}"
        node.create_subscription(kind, name, partial(count, topic), own, raw=True)
    node.create_subscription(DiagnosticArray, "/diagnostics", partial(_take_diagnostics, told), 10)
    try:
        while not _served(told, set(wanted)):
            rclpy.spin_once(node, timeout_sec=0.1)
            if pipe.poll():  # nobody says anything yet: the other end is closed
                return
        pipe.send(None)
        while True:
            while not pipe.poll():
                rclpy.spin_once(node, timeout_sec=0.1)
            pipe.recv()
            pipe.send(counts)
    except (EOFError, BrokenPipeError):
        pass  # the soak has ended
    finally:
        rclpy.shutdown()


def _served(told: Told, outputs: set[str]) -> bool:
    """Whether the node itself knows of the camera and of these subscriptions."""
    known = set(told.values.get("subscribed outputs", "").split(", "))
    return int(told.values.get(f"publishers of {NAMESPACE}/image", 0)) > 0 and known >= outputs


def _take_diagnostics(told: Told, message: DiagnosticArray) -> None:
    for status in message.status:
        if status.name == f"{NODE}: stream":
            told.values = {item.key: item.value for item in status.values}
            if status.level == DiagnosticStatus.ERROR and status.message not in told.errors:
                told.errors.append(status.message)


# -------------------------------------------------------------------------------------------------------- the camera


class Camera:
    """Sends images, and knows which of them have come back as poses."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.told = Told()
        self.received = 0
        self.latencies: list[float] = []  # seconds, since they were last taken
        self._waiting: deque[tuple[int, float]] = deque()  # stamp in nanoseconds, and when it was published
        every = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._publisher = node.create_publisher(Image, "image", every)
        node.create_subscription(PoseStamped, f"{NODE}/pose", self._take_pose, every)
        node.create_subscription(DiagnosticArray, "/diagnostics", partial(_take_diagnostics, self.told), 10)

    def send(self, message: Image, index: int) -> None:
        """Publish image number `index` of the soak."""
        nanoseconds = index * 1_000_000_000 // RATE
        message.header.stamp = Time(sec=START + nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
        self._waiting.append((START * 10**9 + nanoseconds, time.monotonic()))
        self._publisher.publish(message)

    def wait(self, process: Popen, on_their_way: int) -> None:
        """Wait until no more frames than that are on their way. Raises Raymap3rError where the node has ended, or is
        stuck."""
        while len(self._waiting) > on_their_way:
            rclpy.spin_once(self.node, timeout_sec=1.0)
            if self._waiting and time.monotonic() - self._waiting[0][1] > STUCK:
                raise Raymap3rError(f"no pose for {STUCK:.0f} s: the node is stuck, or has lost a frame")
            check_running(process)

    def _take_pose(self, message: PoseStamped) -> None:
        now = time.monotonic()
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        # A frame whose pose never comes stays in front, and `wait` tells.
        if self._waiting and self._waiting[0][0] == stamp:
            self.latencies.append(now - self._waiting.popleft()[1])
            self.received += 1


def _sample(camera: Camera, process: Popen, start: float) -> Sample:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    values = camera.told.values
    latencies, camera.latencies = camera.latencies, []
    return Sample(
        seconds=round(time.monotonic() - start, 2),
        frames=camera.received,
        resident_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        gpu_mib=float(values.get("GPU memory (MiB)", "nan")),
        latency_ms=round(statistics.median(latencies) * 1e3, 3) if latencies else float("nan"),
        dropped=int(values.get("frames dropped", 0)),
        lost=int(values.get("frames lost", 0)),
    )


def soak(args: argparse.Namespace) -> tuple[list[Sample], list[str]]:
    """Play and watch; the samples, and what was wrong besides trends. Raises Raymap3rError."""
    parameters = {
        "checkpoint": args.checkpoint,
        "device": args.device,
        "image_size": args.size,
        "ray_interval": args.ray_interval,
        "every_frame": True,
        "static_map.max_points": MAP_POINTS,
    }
    images = rendered_room(args.images)
    messages = [image_message(Header(frame_id=CAMERA_FRAME), image, "rgb8") for image in images]
    to_and_fro = itertools.cycle([*messages, *messages[-2:0:-1]])
    samples: list[Sample] = []
    with (
        running_node(NAMESPACE, parameters, "--log-level", "warn") as process,
        camera_node(NAMESPACE) as node,
        listening(listen) as pipe,
    ):
        camera = Camera(node)
        answer(pipe, process, "the node", "the listener")
        start = due = time.monotonic()
        sent = 0
        for message in to_and_fro:
            now = time.monotonic()
            if now >= due and camera.latencies:
                due = now + args.interval
                samples.append(_sample(camera, process, start))
                _tell(samples[-1], args)
            if sent == args.frames or (args.seconds and now - start > args.seconds):
                break
            camera.send(message, sent)
            sent += 1
            camera.wait(process, WINDOW - 1)
        camera.wait(process, 0)
        if camera.latencies:
            samples.append(_sample(camera, process, start))
            _tell(samples[-1], args)
        counts = _all_counted(pipe, process, sent)
        problems = [f"{sent - counts[topic]} of {sent} frames came without {topic}" for topic in EVERY_FRAME
                    if counts[topic] != sent]  # fmt: skip
        problems += [f"error in the diagnostics: {text}" for text in camera.told.errors]
        if status := stop(process):
            problems.append(f"the node ended with status {status}")
    return samples, problems


def _all_counted(pipe: Connection, process: Popen, sent: int) -> Counter[str]:
    """What the listener has counted, once all is there or nothing more comes."""
    counts: Counter[str] = Counter()
    for _ in range(20):
        pipe.send(None)
        counts = answer(pipe, process, "the node", "the listener")
        if all(counts[topic] >= sent for topic in EVERY_FRAME):
            break
        time.sleep(0.1)
    return counts


def _tell(sample: Sample, args: argparse.Namespace) -> None:
    rate = sample.frames / sample.seconds if sample.seconds else 0.0
    print(
        f"{sample.seconds:8.0f} s  {sample.frames:7d} of {args.frames} frames  {rate:6.1f} Hz  "
        f"{sample.resident_mib:8.1f} MiB  {sample.latency_ms:7.1f} ms",
        file=sys.stderr,
        flush=True,
    )


# ------------------------------------------------------------------------------------------------------------- output


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Memory, latency, speed and losses over the frames."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    frames = np.array([sample.frames for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    figure, axes = pyplot.subplots(4, 1, figsize=(9, 9), sharex=True, layout="constrained")
    axes[0].plot(frames, [sample.resident_mib for sample in samples], label="resident, node")
    gpu = [sample.gpu_mib for sample in samples]
    if np.isfinite(gpu).any():
        axes[0].plot(frames, gpu, label="GPU")
    axes[0].legend()
    axes[0].set_ylabel("memory (MiB)")
    axes[1].plot(frames, [sample.latency_ms for sample in samples])
    axes[1].set_ylabel("latency, median (ms)")
    axes[1].set_ylim(bottom=0)
    axes[2].plot(frames[1:], np.diff(frames) / np.maximum(np.diff(seconds), 1e-9))
    axes[2].set_ylabel("frames per second")
    axes[2].set_ylim(bottom=0)
    axes[3].plot(frames, [sample.dropped for sample in samples], label="dropped")
    axes[3].plot(frames, [sample.lost for sample in samples], label="lost")
    axes[3].legend()
    axes[3].set_ylabel("frames so far")
    axes[3].set_xlabel("frames")
    for axis in axes:
        axis.axvspan(0, frames[int(len(frames) * WARM_UP)], color="0.92")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run(args: argparse.Namespace) -> int:
    """Soak, judge, write; 0 where nothing is wrong. Raises Raymap3rError."""
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(profile_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the other processes would live on
    samples, problems = soak(args)
    common.write_csv(args.out / "soak.csv", [dataclasses.asdict(sample) for sample in samples])
    draw(args.out / "soak.png", samples)
    problems = [*judge(samples), *problems]
    last = samples[-1]
    print(f"{last.frames} frames in {last.seconds:.0f} s; {args.out / 'soak.csv'}, {args.out / 'soak.png'}")
    steady = samples[int(len(samples) * WARM_UP) :]
    if len(steady) > 1:
        print(
            f"after the warm-up: resident memory {steady[0].resident_mib:.1f} -> {last.resident_mib:.1f} MiB, trend "
            f"{_trend(steady, 'resident_mib'):+.1f}; latency {steady[0].latency_ms:.1f} -> {last.latency_ms:.1f} ms, "
            f"trend {_trend(steady, 'latency_ms'):+.1f}; dropped {last.dropped}, lost {last.lost}"
        )
    for problem in problems:
        print(f"FAIL  {problem}")
    if not problems:
        print("ok    no trend, no error, no frame missing")
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--frames", type=common.positive, default=100_000, help="play so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so many seconds (default: 0, never)")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument(
        "--images", type=common.positive, default=IMAGES, help="images in the clip (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F", help="weights (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="long edge that the network sees (default: %(default)s)")
    parser.add_argument(
        "--ray-interval",
        type=common.positive,
        default=1,
        metavar="N",
        help="ask what moves in every n-th frame only, to be done sooner (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder (default: %(default)s)")
    return parser


def main() -> int:
    """Run the soak."""
    status = 0

    def work() -> None:
        nonlocal status
        status = run(_parser().parse_args())

    return common.exit_status("soak", work) or status


if __name__ == "__main__":
    sys.exit(main())
