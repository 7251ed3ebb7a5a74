#!/usr/bin/env python3
"""Measure the node over DDS: from a camera's image to the transform, and to the last output of the frame.

    python benchmarks/node.py [--checkpoint F] [--device D] [--size N] [--rates HZ ...] [--frames N] [--load N]
                              [--json FILE]

Three processes, as on a robot: a camera (this one), the node, and a subscriber that records when each message arrives.
The node runs twice, once with subscriptions to all outputs and once to the transform alone. Each run covers all rates,
one after another. Latencies are measured from the image's stamp, taken just before the camera publishes it, to the
arrival at the subscriber, which handles messages one at a time. The last output of a frame is the last of all outputs
except the trajectories, which are not published for every frame. The node runs live: while it processes a frame, a
newer image replaces the waiting one. Replaced images, and images that never reach the node, count as dropped.

The second table is from the node's diagnostics: median times of the parts of its work over the latest 200 frames. The
node's own share is everything outside the stream: conversion of the image, copies to host memory, messages.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import cv2
import numpy as np
from load import load
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from raymap3r_ros.clients.clips import rendered_room
from raymap3r_ros.clients.harness import (
    Harness,
    OutputSubscriber,
    back_and_forth,
    paced,
    running_harness,
    set_up_dds,
)
from raymap3r_ros.network import DEFAULT_CHECKPOINT, choose_device
from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.publishers import TOPICS
from raymap3r_ros.streaming import METHOD

NAMESPACE = "/raymap3r_benchmark"
NODE = f"{NAMESPACE}/raymap3r"
NOT_EVERY_FRAME = frozenset({"trajectory", "trajectory_raw"})  # published by a timer, too
OUTPUTS = {"all": (*TOPICS, "tf"), "tf": ("tf",)}
RATES = (10.0, 30.0, 60.0)  # Hz
# Frames before the measured ones. The first frames skip the ray branch, and a GPU reaches a steady state only later.
WARM_UP = METHOD.router_last_frame + 5
IMAGES = 16  # different images
IDLE_LIMIT = 3.0  # seconds without an output after which the wait for missing outputs ends
STAGES = {"convert": "convert", "publish": "publish", "node": "node", "whole frame": "frame"}  # diagnostics -> field


@dataclass(frozen=True)
class Received:
    """Messages that the subscriber has received."""

    arrivals: dict[str, dict[int, int]]  # by topic: stamp of the image -> time of arrival, both nanoseconds
    diagnostics: dict[str, str]  # values of the last message


@dataclass(frozen=True)
class Run:
    """Figures of one rate."""

    subscribed: str
    asked_hz: float
    sent_hz: float
    sent: int  # measured frames
    out: int  # frames with a transform
    dropped: int  # frames without one
    incomplete: int  # frames with a transform but without another output
    tf_ms: tuple[float, ...]  # p50, p95, p99; NaN without frames
    last_ms: tuple[float, ...]  # of the frames with all outputs


@dataclass(frozen=True)
class Parts:
    """Median milliseconds of the parts of the node's work on a frame."""

    subscribed: str
    convert: float  # message to RGB array
    publish: float  # creating messages and passing them to DDS
    node: float  # everything outside the stream: the two, and the copy of the pose to host memory
    frame: float  # total

    @property
    def share(self) -> float:
        """The node's own share of the total time."""
        return self.node / self.frame


# ----------------------------------------------------------------------------------------------------- the subscriber


class ArrivalRecorder(OutputSubscriber):
    """Records arrival times. Replies to a request, the stamp of an image, once all its outputs have arrived."""

    def __init__(self, node: Node, subscribed: str) -> None:
        outputs = OUTPUTS[subscribed]
        self._arrivals: dict[str, dict[int, int]] = {topic: {} for topic in outputs}
        self._last_message = time.monotonic()
        # Raw, because deserializing in Python would delay the next message.
        super().__init__(node, NODE, outputs, f"{NAMESPACE}/image", raw=True)

    def is_connected(self) -> bool:
        """As in the base class. In addition, no other outputs have subscribers."""
        return super().is_connected() and self.diagnostics.subscribed_outputs == self.outputs

    def receive(self, topic: str, message: bytes) -> None:
        """Record the arrival of a message."""
        now = time.time_ns()
        self._last_message = time.monotonic()
        # CDR, little-endian: 4 bytes of encapsulation header; TFMessage begins with the length of its list.
        seconds, nanoseconds = struct.unpack_from("<iI", message, 8 if topic == "tf" else 4)
        self._arrivals[topic].setdefault(seconds * 1_000_000_000 + nanoseconds, now)

    def reply(self, request: int) -> Received:
        """Wait for all outputs of the image with this stamp, and for diagnostics that include it."""
        awaited = self._arrivals.keys() - NOT_EVERY_FRAME
        self._last_message = time.monotonic()
        while not all(request in self._arrivals[topic] for topic in awaited):
            if time.monotonic() - self._last_message > IDLE_LIMIT:
                break
            self.spin()
        # The first message may have been sent before the last output.
        target = self.diagnostics.count + 2
        while self.diagnostics.count < target:
            self.spin()
        return Received(self._arrivals, self.diagnostics.values)


# ---------------------------------------------------------------------------------------------------------- measuring


def camera_messages(width: int, height: int) -> list[Image]:
    """The camera's messages, without stamps."""
    images = [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in rendered_room(IMAGES)]
    return [image_message(Header(frame_id="benchmark_camera"), image, "rgb8") for image in images]


def measure(subscribed: str, messages: list[Image], args: argparse.Namespace) -> tuple[list[Run], Parts]:
    """Measure all rates, with subscriptions to these outputs. Raises Raymap3rError if a process ends early."""
    parameters = {"checkpoint": args.checkpoint, "device": args.device, "image_size": args.size}
    more = [argument for parameter in args.parameter for argument in ("-p", parameter)]
    recorder = partial(ArrivalRecorder, subscribed=subscribed)
    with running_harness(NAMESPACE, parameters, recorder, *more, "--log-level", "warn") as harness:
        publisher = harness.camera.create_publisher(Image, "image", qos_profile_sensor_data)
        harness.wait_until_connected()
        runs = []
        for rate in args.rates:
            stamps = _send(harness, publisher, messages, rate, args.frames)
            received = harness.request(stamps[-1])
            runs.append(evaluate(subscribed, rate, stamps[WARM_UP:], received.arrivals))
        values = {
            name: float(received.diagnostics.get(f"stage {stage} (ms)", "nan")) for stage, name in STAGES.items()
        }
        return runs, Parts(subscribed, **values)


def _send(harness: Harness, publisher: Any, messages: list[Image], rate: float, frames: int) -> list[int]:
    """Send the warm-up and then `frames` images. Return the stamps in nanoseconds."""
    stamps = []
    for message in paced(itertools.islice(back_and_forth(messages), WARM_UP + frames), rate):
        now = harness.camera.get_clock().now()
        message.header.stamp = now.to_msg()
        publisher.publish(message)
        stamps.append(now.nanoseconds)
    return stamps


def evaluate(subscribed: str, rate: float, stamps: Sequence[int], arrivals: dict[str, dict[int, int]]) -> Run:
    """Figures from the stamps (nanoseconds) of the images sent at `rate` and the arrivals by topic."""
    awaited = [arrived for topic, arrived in arrivals.items() if topic not in NOT_EVERY_FRAME]
    out = [stamp for stamp in stamps if stamp in arrivals["tf"]]
    whole = [stamp for stamp in out if all(stamp in arrived for arrived in awaited)]
    span = stamps[-1] - stamps[0]
    return Run(
        subscribed=subscribed,
        asked_hz=rate,
        sent_hz=(len(stamps) - 1) / span * 1e9 if span else rate,
        sent=len(stamps),
        out=len(out),
        dropped=len(stamps) - len(out),
        incomplete=len(out) - len(whole),
        tf_ms=_percentiles([arrivals["tf"][stamp] - stamp for stamp in out]),
        last_ms=_percentiles([max(arrived[stamp] for arrived in awaited) - stamp for stamp in whole]),
    )


def _percentiles(nanoseconds: Sequence[int]) -> tuple[float, ...]:
    if not nanoseconds:
        return (float("nan"),) * 3
    return tuple(float(value) * 1e-6 for value in np.percentile(nanoseconds, (50, 95, 99)))


# ------------------------------------------------------------------------------------------------------------- output


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the file. Raises Raymap3rError."""
    common.check_targets(args.json)
    device = choose_device(args.device)
    machine = common.machine(device, args.load)
    set_up_dds(own_domain=True)
    width, height = args.camera
    size = f"a long edge of {args.size}" if args.size else "the size used in training"
    print(f"{args.checkpoint} on {machine.device}, torch {machine.torch}; camera {width}x{height}, network at {size}")
    for parameter in args.parameter:
        print(f"with {parameter}")
    if args.load:
        print(f"beside {args.load} other processes")
    messages = camera_messages(width, height)
    runs: list[Run] = []
    parts: list[Parts] = []
    for subscribed in OUTPUTS:
        print(f"subscribed to {subscribed} ...", file=sys.stderr, flush=True)
        with load(args.load):
            more, part = measure(subscribed, messages, args)
        runs += more
        parts.append(part)

    percentiles = [f"{what} p{share}" for what in ("tf", "last") for share in (50, 95, 99)]
    print()
    common.print_table(
        ("subscribed", "Hz", "sent Hz", "sent", "out", "dropped", "incomplete", *percentiles),
        [
            (r.subscribed, r.asked_hz, r.sent_hz, r.sent, r.out, r.dropped, r.incomplete, *r.tf_ms, *r.last_ms)
            for r in runs
        ],
    )
    print()
    common.print_table(
        ("subscribed", *STAGES.values(), "node's share"),
        [(p.subscribed, p.convert, p.publish, p.node, p.frame, f"{p.share:.1%}") for p in parts],
    )
    print("\nmilliseconds; tf, last: from the image's stamp to the arrival of the transform, of the last output")

    setting = {
        "checkpoint": args.checkpoint,
        "size": args.size,
        "camera": f"{width}x{height}",
        "parameters": " ".join(args.parameter),
        "device": machine.device,
        "torch": machine.torch,
        "load": machine.load,
        "package": machine.package,
    }
    common.save({"rows": [{**setting, **_flat(r)} for r in runs], "parts": [_flat(p) for p in parts]}, args.json)


def _flat(row: Run | Parts) -> dict[str, Any]:
    """The fields, percentiles by name."""
    values = dataclasses.asdict(row)
    if isinstance(row, Parts):
        return {**values, "share": row.share}
    for name in ("tf_ms", "last_ms"):
        numbers = values.pop(name)
        values.update({f"{name}_p{share}": value for share, value in zip((50, 95, 99), numbers, strict=True)})
    return values


# ---------------------------------------------------------------------------------------------------------- arguments


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames per second from 0.1 to 1000")
    return rate


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and 0 < int(width) <= 8192 and 0 < int(height) <= 8192):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x480")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", default=DEFAULT_CHECKPOINT, metavar="F", help="weights or preset (default: %(default)s)"
    )
    common.add_common_arguments(parser)
    common.add_load_argument(parser)
    parser.add_argument(
        "--size", type=int, default=0, metavar="N", help="long edge of the network's input (default: as trained)"
    )
    parser.add_argument(
        "--camera", type=_pixels, default=(640, 480), metavar="WxH", help="size of the images (default: 640x480)"
    )
    parser.add_argument(
        "--rates", nargs="+", type=_rate, default=RATES, metavar="HZ", help="rates of the images (default: 10 30 60)"
    )
    parser.add_argument(
        "--frames",
        type=common.positive,
        default=300,
        metavar="N",
        help="measured frames per rate (default: %(default)s)",
    )
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="parameter of the node, as for ros2 run",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("node.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
