#!/usr/bin/env python3
"""Play a rendered clip into the node for hours, and fail if memory or latency grows or a frame is lost.

    python benchmarks/soak.py [--frames N] [--seconds S] [--size N] [--checkpoint F] [--device D]
                              [--vary none|calibration|sizes|frames|jumps] [--out DIR]

Three processes: a camera (this one), the node in every-frame mode, and a subscriber to every output. The camera keeps
two frames in flight, so that the node is never idle and may not drop any. The clip is played back and forth with
stamps at 30 Hz. Every few seconds the camera samples the resident memory of the node's process, its GPU memory, the
median latency from an image's publication to its pose, frames dropped and lost, and errors. With `--vary`, every image
has another calibration, size or frame_id: nothing that the node keeps by one of these may grow. With `--vary jumps`
the stamps jump every few seconds, so that the camera is searched for in earlier worlds and found there.

Writes soak.csv and soak.png. The exit status is 1 if `find_problems` finds a trend, the diagnostics contain an error,
or a frame has no pose, odometry or transform.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from scipy.stats import theilslopes
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from raymap3r_ros.clients.clips import rendered_room
from raymap3r_ros.clients.harness import (
    Diagnostics,
    Harness,
    OutputSubscriber,
    back_and_forth,
    queue,
    running_harness,
    set_up_dds,
)
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.network import DEFAULT_CHECKPOINT
from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.publishers import TOPICS

NAMESPACE = "/raymap3r_soak"
NODE = f"{NAMESPACE}/raymap3r"
CAMERA_FRAME = "soak_camera"
START = 1_700_000_000  # seconds; the first stamp
RATE = 30  # Hz of the stamps
IMAGES = 48  # different images
MAP_POINTS = 100_000  # reached within the warm-up, so that removal of points is covered as well
IN_FLIGHT = 2  # frames
STALL_LIMIT = 60.0  # seconds without a pose after which the run fails
WARM_UP = 0.25  # share of the samples that is ignored: caches and maps fill up
VARIED = ("none", "calibration", "sizes", "frames", "jumps")  # what differs in every image
JUMP_EVERY, JUMP = 150, 3000  # images between two jumps of the stamps, and the images that one skips
EVERY_FRAME = ("pose", "odometry", "tf")  # reliable outputs, published for each frame

# Limits of `find_problems`. The trajectories (200 bytes a frame, up to 200,000 frames) and the map grow by design, and
# the memory of an allocator varies; a single leaked message takes kilobytes.
MEMORY_ALLOWANCE = 16.0  # MiB, and ...
MEMORY_PER_FRAME = 512 / 2**20  # ... MiB for each frame after the warm-up
LATENCY_GROWTH = 0.5  # of the median; the load of the machine varies


@dataclass(frozen=True)
class SoakSample:
    """State at one moment."""

    seconds: float  # since the first frame
    frames: int  # poses received
    resident_mib: float  # memory of the node's process
    gpu_mib: float  # NaN without a GPU
    latency_ms: float  # median since the last sample, publication to pose
    dropped: int  # so far, as counted by the node
    lost: int


# ---------------------------------------------------------------------------------------------------------- evaluation


def find_problems(samples: Sequence[SoakSample]) -> list[str]:
    """Descriptions of the problems of a run; empty if there are none.

    A trend is the Theil-Sen slope (median of the slopes between all pairs) of the samples after the warm-up, times
    the frames that they span.
    """
    steady = samples[int(len(samples) * WARM_UP) :]
    if len(steady) < 6:
        return [f"{len(steady)} samples after the warm-up are too few: run more frames, or use a shorter --interval"]
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


def _trend(samples: Sequence[SoakSample], name: str) -> float:
    """Growth of a figure over all samples; NaN if a sample has no value (no GPU)."""
    values = np.array([getattr(sample, name) for sample in samples])
    frames = np.array([sample.frames for sample in samples], float)
    if not np.isfinite(values).all():
        return float("nan")
    # At most 500 samples, because the number of pairs grows with the square.
    every = slice(None, None, -(-len(values) // 500))
    return float(theilslopes(values[every], frames[every])[0]) * (frames[-1] - frames[0])


# ----------------------------------------------------------------------------------------------------- the subscriber


class MessageCounter(OutputSubscriber):
    """Subscribes to every output. The reply to any request is the number of messages by topic."""

    def __init__(self, node: Node) -> None:
        self._counts: Counter[str] = Counter()
        super().__init__(node, NODE, (*TOPICS, "static_map", "tf"), f"{NAMESPACE}/image", raw=True)

    def receive(self, topic: str, message: bytes) -> None:
        """Count a message."""
        # Other programs in this ROS domain publish transforms too.
        if topic != "tf" or CAMERA_FRAME.encode() in message:
            self._counts[topic] += 1

    def reply(self, request: object) -> Counter[str]:
        """The counts so far."""
        return self._counts


# ---------------------------------------------------------------------------------------------------------- the camera


def camera_messages(image: np.ndarray, vary: str, index: int) -> tuple[Image, CameraInfo | None]:
    """Messages of image number `index`, (h, w, 3); `vary`: one of VARIED. Neighbours differ, and so do most others."""
    if vary == "sizes":
        image = np.ascontiguousarray(image[index % 31 :, index % 37 :])
    height, width = image.shape[:2]
    frame = f"{CAMERA_FRAME}_{index:0200}" if vary == "frames" else CAMERA_FRAME
    info = None
    if vary == "calibration":
        focal = width * (1 + index % 9973 * 1e-6)
        info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[-0.1, index * 1e-9, 0.0, 0.0])
        info.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
    return image_message(Header(frame_id=frame), image, "rgb8"), info


class Camera:
    """Sends images and records when their poses arrive."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.diagnostics = Diagnostics(node, NODE)
        self.received = 0
        self.latencies: list[float] = []  # seconds, since the last sample
        self._in_flight: deque[tuple[int, float]] = deque()  # stamp in nanoseconds, and time of publication
        self._publisher = node.create_publisher(Image, "image", queue(ReliabilityPolicy.RELIABLE))
        self._infos = node.create_publisher(CameraInfo, "camera_info", queue(ReliabilityPolicy.RELIABLE))
        node.create_subscription(PoseStamped, f"{NODE}/pose", self._receive_pose, queue(ReliabilityPolicy.RELIABLE))

    def send(self, message: Image, info: CameraInfo | None, index: int) -> None:
        """Publish image number `index` of the soak, after its calibration."""
        nanoseconds = index * 1_000_000_000 // RATE
        message.header.stamp = Time(sec=START + nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
        if info is not None:
            info.header = message.header
            self._infos.publish(info)
        self._in_flight.append((START * 10**9 + nanoseconds, time.monotonic()))
        self._publisher.publish(message)

    def wait(self, harness: Harness, limit: int) -> None:
        """Wait until at most `limit` frames are in flight. Raises Raymap3rError if the node has ended or is stuck."""
        while len(self._in_flight) > limit:
            rclpy.spin_once(self.node, timeout_sec=1.0)
            if self._in_flight and time.monotonic() - self._in_flight[0][1] > STALL_LIMIT:
                raise Raymap3rError(f"no pose for {STALL_LIMIT:.0f} s: the node is stuck, or has lost a frame")
            harness.check_running()

    def _receive_pose(self, message: PoseStamped) -> None:
        now = time.monotonic()
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        # A frame that never gets a pose stays at the front, and `wait` raises.
        if self._in_flight and self._in_flight[0][0] == stamp:
            self.latencies.append(now - self._in_flight.popleft()[1])
            self.received += 1


def _sample(camera: Camera, process_id: int, start: float) -> SoakSample:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    latencies, camera.latencies = camera.latencies, []
    return SoakSample(
        seconds=round(time.monotonic() - start, 2),
        frames=camera.received,
        resident_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        gpu_mib=float(camera.diagnostics.values.get("GPU memory (MiB)", "nan")),
        latency_ms=round(statistics.median(latencies) * 1e3, 3) if latencies else float("nan"),
        dropped=camera.diagnostics.integer("frames dropped"),
        lost=camera.diagnostics.integer("frames lost"),
    )


def soak(args: argparse.Namespace) -> tuple[list[SoakSample], list[str]]:
    """Play the clip. Return the samples, and all problems except trends. Raises Raymap3rError."""
    parameters = {
        "checkpoint": args.checkpoint,
        "device": args.device,
        "image_size": args.size,
        "ray_interval": args.ray_interval,
        "every_frame": True,
        # Recording the kinds of frames takes a node seconds.
        "execution": "auto" if args.frames >= 1000 else "plain",
        "static_map.max_points": MAP_POINTS,
    }
    images = rendered_room(args.images)
    with running_harness(NAMESPACE, parameters, MessageCounter, "--log-level", "warn") as harness:
        camera = Camera(harness.camera)
        harness.wait_until_connected()
        samples, sent = _play(camera, harness, images, args)
        counts = _final_counts(harness, sent)
        problems = [f"{sent - counts[topic]} of {sent} frames have no {topic}" for topic in EVERY_FRAME
                    if counts[topic] != sent]  # fmt: skip
        problems += [f"error in the diagnostics: {text}" for text in camera.diagnostics.errors]
        if status := harness.stop_node():
            problems.append(f"the node ended with status {status}")
    return samples, problems


def _play(
    camera: Camera, harness: Harness, images: list[np.ndarray], args: argparse.Namespace
) -> tuple[list[SoakSample], int]:
    """Send images for the frames or seconds in the arguments. Return the samples and the number of images."""
    samples: list[SoakSample] = []
    start = due = time.monotonic()
    sent = 0

    def sample() -> None:
        samples.append(_sample(camera, harness.process.pid, start))
        _print_sample(samples[-1], args)

    for image in back_and_forth(images):
        now = time.monotonic()
        if now >= due and camera.latencies:
            due = now + args.interval
            sample()
        if sent == args.frames or (args.seconds and now - start > args.seconds):
            break
        skipped = sent // JUMP_EVERY * JUMP if args.vary == "jumps" else 0
        camera.send(*camera_messages(image, args.vary, sent), sent + skipped)
        sent += 1
        camera.wait(harness, IN_FLIGHT - 1)
    camera.wait(harness, 0)
    if camera.latencies:
        sample()
    return samples, sent


def _final_counts(harness: Harness, sent: int) -> Counter[str]:
    """Return the subscriber's counts, once they are complete or two seconds have passed."""
    counts: Counter[str] = Counter()
    for _ in range(20):
        counts = harness.request()
        if all(counts[topic] >= sent for topic in EVERY_FRAME):
            break
        time.sleep(0.1)
    return counts


def _print_sample(sample: SoakSample, args: argparse.Namespace) -> None:
    rate = sample.frames / sample.seconds if sample.seconds else 0.0
    print(
        f"{sample.seconds:8.0f} s  {sample.frames:7d} of {args.frames} frames  {rate:6.1f} Hz  "
        f"{sample.resident_mib:8.1f} MiB  {sample.latency_ms:7.1f} ms",
        file=sys.stderr,
        flush=True,
    )


# ------------------------------------------------------------------------------------------------------------- output


def draw(path: Path, samples: Sequence[SoakSample]) -> None:
    """Plot memory, latency, speed and losses over the frames."""
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
    """Run the soak and write the files; 0 if there are no problems. Raises Raymap3rError."""
    args.out.mkdir(parents=True, exist_ok=True)
    set_up_dds(own_domain=True)
    samples, problems = soak(args)
    common.write_csv(args.out / "soak.csv", [dataclasses.asdict(sample) for sample in samples])
    draw(args.out / "soak.png", samples)
    problems = [*find_problems(samples), *problems]
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
    parser.add_argument(
        "--frames", type=common.positive, default=100_000, help="images to play (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.0, metavar="S", help="end after S seconds (default: 0, no limit)"
    )
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument(
        "--images", type=common.positive, default=IMAGES, help="images in the clip (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F", help="weights (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="long edge of the network's input (default: %(default)s)")
    parser.add_argument(
        "--ray-interval",
        type=common.positive,
        default=1,
        metavar="N",
        help="estimate motion in every N-th frame only, which is faster (default: %(default)s)",
    )
    parser.add_argument(
        "--vary", choices=VARIED, default="none", help="what differs in every image (default: %(default)s)"
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
