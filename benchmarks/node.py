#!/usr/bin/env python3
"""Measure the node over DDS: from a camera's image to the transform, and to the last output of the frame.

    python benchmarks/node.py [--checkpoint F] [--device D] [--size N] [--rates HZ ...] [--frames N] [--json FILE]

Three processes, as on a robot: a camera (this one), the node, and a listener that notes when each message arrives.
Once with all outputs subscribed to and once with the transform alone; a node of its own for each, that sees the rates
one after the other. Latencies run from the image's stamp, taken right before the camera publishes it, to the arrival
at the listener, which takes one message after the other. A frame's last output is the last of those that come with
every frame: of all but the trajectories. The node works live: while it is at work on a frame, newer ones replace the
waiting one, which counts as dropped, as does an image that never reaches the node.
The second table is from the node's diagnostics: medians, over its latest 200 frames, of each part of its work on one.
The node's own share is all that the stream itself does not spend: conversion of the image, the copies to host memory,
the messages.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import common
import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from raymap3r_ros.clients.demo import rendered_room
from raymap3r_ros.clients.processes import answer, camera_node, listening, running_node
from raymap3r_ros.network import DEFAULT_CHECKPOINT, choose_device
from raymap3r_ros.node.conversions import image_message
from raymap3r_ros.node.dds_profile import profile_environment
from raymap3r_ros.node.publishers import RELIABLE, TOPICS
from raymap3r_ros.streaming import METHOD

NAMESPACE = "/raymap3r_benchmark"
NODE = f"{NAMESPACE}/raymap3r"
# Those that come once in a while, and their ends whenever a timer looks after them.
SOMETIMES = frozenset({"trajectory", "trajectory_raw"})
OUTPUTS = {"all": (*TOPICS, "tf"), "tf": ("tf",)}
RATES = (10.0, 30.0, 60.0)  # Hz
# Frames before those that count: the first ones ask no rays, and only then are they all alike for a GPU.
WARM_UP = METHOD.router_last_frame + 5
IMAGES = 16  # different ones, shown to and fro
QUIET = 3.0  # seconds without an output after which a frame's missing ones are given up
DEPTH = 100  # messages that may wait: the listener must not be what loses them
STAGES = {"convert": "convert", "publish": "publish", "node": "node", "whole frame": "frame"}  # told as, called here


@dataclass(frozen=True)
class Heard:
    """What the listener knows."""

    arrivals: dict[str, dict[int, int]]  # by topic: stamp of the image -> time of arrival, both nanoseconds
    told: dict[str, str]  # the node's last diagnostics


@dataclass(frozen=True)
class Run:
    """One rate."""

    subscribed: str
    asked_hz: float
    sent_hz: float
    sent: int  # frames that count
    out: int  # of them came a transform
    dropped: int  # none came
    incomplete: int  # the transform came, but not every output
    tf_ms: tuple[float, ...]  # p50, p95, p99; NaN where no frame came
    last_ms: tuple[float, ...]  # of the frames that came in full


@dataclass(frozen=True)
class Parts:
    """Median milliseconds of what the node does for a frame."""

    subscribed: str
    convert: float  # message to RGB array
    publish: float  # messages from what is known, and handing them to DDS
    node: float  # all that is not the stream's: the two, and a glance at the result
    frame: float  # all of it

    @property
    def share(self) -> float:
        """Of the frame's time, the node's own."""
        return self.node / self.frame


# ------------------------------------------------------------------------------------------------------- the listener


def listen(pipe: Connection, subscribed: str) -> None:
    """Note when the messages of these outputs arrive. Says something once the node serves them all; then answers each
    stamp that it is sent with what it has Heard, as soon as all of that image's outputs are there."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    listener = _Listener(rclpy.create_node("listener", namespace=NAMESPACE), OUTPUTS[subscribed])
    try:
        while not listener.served():
            listener.spin()
            if pipe.poll():  # nobody says anything yet: the other end is closed
                return
        pipe.send(None)
        while True:
            while not pipe.poll():
                listener.spin()
            pipe.send(listener.hear_out(pipe.recv()))
    except (EOFError, BrokenPipeError):
        pass  # the benchmark has ended
    finally:
        rclpy.shutdown()


class _Listener:
    def __init__(self, node: Node, outputs: Sequence[str]) -> None:
        self._node = node
        self._arrivals: dict[str, dict[int, int]] = {topic: {} for topic in outputs}
        self._told: dict[str, str] = {}
        self._reports = 0
        self._last_heard = time.monotonic()
        for topic in outputs:
            kind, name, qos = TFMessage, "/tf", RELIABLE
            if topic != "tf":
                kind, qos = TOPICS[topic]
                name = f"{NODE}/{topic}"
            own = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=qos.reliability)
            # As bytes: to make Python objects of them would take longer than to wait for the next message.
            node.create_subscription(kind, name, partial(self._note, topic), own, raw=True)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, 10)

    def spin(self) -> None:
        rclpy.spin_once(self._node, timeout_sec=0.1)

    def served(self) -> bool:
        """Whether the node itself knows of the camera and of these subscriptions, and of no others."""
        outputs = set(self._told.get("subscribed outputs", "").split(", "))
        heard = int(self._told.get(f"publishers of {NAMESPACE}/image", 0))
        return heard > 0 and outputs == self._arrivals.keys()

    def hear_out(self, last: int) -> Heard:
        """Wait for all of the image with this stamp, and for diagnostics that count it."""
        awaited = self._arrivals.keys() - SOMETIMES
        self._last_heard = time.monotonic()
        while not all(last in self._arrivals[topic] for topic in awaited):
            if time.monotonic() - self._last_heard > QUIET:
                break
            self.spin()
        # The first may have been on its way already.
        told = self._reports + 2
        while self._reports < told:
            self.spin()
        return Heard(self._arrivals, self._told)

    def _note(self, topic: str, message: bytes) -> None:
        now = time.time_ns()
        self._last_heard = time.monotonic()
        # Four bytes say how the rest is serialised (CDR, little-endian); TFMessage begins with the length of its list.
        seconds, nanoseconds = struct.unpack_from("<iI", message, 8 if topic == "tf" else 4)
        self._arrivals[topic].setdefault(seconds * 1_000_000_000 + nanoseconds, now)

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{NODE}: stream":
                self._told = {item.key: item.value for item in status.values}
                self._reports += 1


# ---------------------------------------------------------------------------------------------------------- measuring


def camera_messages(width: int, height: int) -> list[Image]:
    """What the camera sends, without stamps."""
    images = [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in rendered_room(IMAGES)]
    return [image_message(Header(frame_id="benchmark_camera"), image, "rgb8") for image in images]


def measure(subscribed: str, messages: list[Image], args: argparse.Namespace) -> tuple[list[Run], Parts]:
    """All rates, with these outputs subscribed to. Raises Raymap3rError where a process ends early."""
    parameters = {"checkpoint": args.checkpoint, "device": args.device, "image_size": args.size}
    more = [argument for parameter in args.parameter for argument in ("-p", parameter)]
    with (
        running_node(NAMESPACE, parameters, *more, "--log-level", "warn") as node,
        camera_node(NAMESPACE) as camera,
        listening(listen, subscribed) as pipe,
    ):
        publisher = camera.create_publisher(Image, "image", qos_profile_sensor_data)
        answer(pipe, node, "the node", "the listener")
        runs = []
        for rate in args.rates:
            stamps = _play(camera, publisher, messages, rate, args.frames)
            pipe.send(stamps[-1])
            heard = answer(pipe, node, "the node", "the listener")
            runs.append(evaluate(subscribed, rate, stamps[WARM_UP:], heard.arrivals))
        told = {name: float(heard.told.get(f"stage {stage} (ms)", "nan")) for stage, name in STAGES.items()}
        return runs, Parts(subscribed, **told)


def _play(camera: Node, publisher: Any, messages: list[Image], rate: float, frames: int) -> list[int]:
    """Send so many frames, and some before them that do not count; their stamps in nanoseconds."""
    to_and_fro = itertools.cycle([*messages, *messages[-2:0:-1]])
    stamps = []
    due = time.monotonic()
    for message in itertools.islice(to_and_fro, WARM_UP + frames):
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / rate
        now = camera.get_clock().now()
        message.header.stamp = now.to_msg()
        publisher.publish(message)
        stamps.append(now.nanoseconds)
    return stamps


def evaluate(subscribed: str, rate: float, stamps: Sequence[int], arrivals: dict[str, dict[int, int]]) -> Run:
    """From the stamps (nanoseconds) of the images sent at `rate`, and what arrived, by topic."""
    awaited = [came for topic, came in arrivals.items() if topic not in SOMETIMES]
    out = [stamp for stamp in stamps if stamp in arrivals["tf"]]
    whole = [stamp for stamp in out if all(stamp in came for came in awaited)]
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
        last_ms=_percentiles([max(came[stamp] for came in awaited) - stamp for stamp in whole]),
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
    machine = common.machine(device)
    # Before the first participant of this process. A domain of its own, where the user has not chosen one: /tf and
    # /diagnostics are everybody's.
    os.environ.update(profile_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the other processes would live on

    width, height = args.camera
    size = f"a long edge of {args.size}" if args.size else "the size of its training"
    print(f"{args.checkpoint} on {machine.device}, torch {machine.torch}; camera {width}x{height}, network at {size}")
    for parameter in args.parameter:
        print(f"with {parameter}")
    messages = camera_messages(width, height)
    runs: list[Run] = []
    parts: list[Parts] = []
    for subscribed in OUTPUTS:
        print(f"subscribed to {subscribed} ...", file=sys.stderr, flush=True)
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
    parser.add_argument(
        "--size", type=int, default=0, metavar="N", help="long edge that the network sees (default: as trained)"
    )
    parser.add_argument(
        "--camera", type=_pixels, default=(640, 480), metavar="WxH", help="size of the images (default: 640x480)"
    )
    parser.add_argument("--rates", nargs="+", type=_rate, default=RATES, metavar="HZ", help="(default: 10 30 60)")
    parser.add_argument(
        "--frames", type=common.positive, default=300, metavar="N", help="that count, per rate (default: %(default)s)"
    )
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME:=VALUE", help="of the node, as for ros2 run"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("node.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
