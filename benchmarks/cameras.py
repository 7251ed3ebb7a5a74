#!/usr/bin/env python3
"""Measure what several cameras gain by sharing a network, against the same cameras one after another.

    python benchmarks/cameras.py [--cameras N ...] [--checkpoint F | --preset P] [--device D] [--json FILE]

The cameras are triggered at the same time and each has its own thread. The next images arrive when the results of all
cameras are in host memory. `together`: through a `BatchScheduler`, which runs frames that wait at the same time as one
batch. `apart`: one stream per camera, one after another. The last column is frames/s together divided by frames/s
apart; for one camera it is the cost of sharing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import common
import torch
from common import Candidate, Latency

from raymap3r_ros.network import Network, choose_device, choose_threads, load_network
from raymap3r_ros.streaming import METHOD, RULES, StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler


@dataclass(frozen=True)
class Row:
    """Measurements of a number of cameras, together or apart."""

    cameras: int
    mode: str
    latency: Latency  # of one frame of each camera
    ratio: float  # frames/s divided by the frames/s of the same cameras apart

    def flat(self) -> dict[str, Any]:
        """All values in one dictionary, for JSON."""
        return {
            "cameras": self.cameras,
            "mode": self.mode,
            **dataclasses.asdict(self.latency),
            "ratio_to_apart": self.ratio,
        }


def build(network: Network, options: StreamOptions, cameras: int, share: bool) -> common.Step:
    """Return a step that processes one frame of each camera, after all one-time work."""
    size = common.image_size(network.config)
    images = common.moving_images(size, cameras)
    streams = [Stream(network, options) for _ in range(cameras)]
    scheduler = BatchScheduler(network)
    pool = ThreadPoolExecutor(cameras if share else 1)

    def process(camera: int, index: int) -> StepResult:
        stream, image = streams[camera], images[index % len(images)][camera]
        result = scheduler.step(stream, image) if share else stream.step(image)
        result.numpy(*common.PUBLISHED, *common.PUBLISHED_MOTION)
        return result

    def step(index: int) -> StepResult:
        first, *_ = pool.map(process, range(cameras), repeat(index))
        return first

    for index in range(METHOD.router_last_frame + 1):
        step(index)
    if share:
        scheduler.warm_up(streams[0], cameras, images[0][0])
    return step


def measure(
    network: Network, options: StreamOptions, counts: Sequence[int], frames: int, warmup: int, device: torch.device
) -> list[Row]:
    """Return two rows for each number of cameras. All take turns."""
    cases = [(count, share) for count in counts for share in (False, True)]
    candidates = [
        Candidate(lambda count=count, share=share: build(network, options, count, share)) for count, share in cases
    ]
    common.take_turns(candidates, frames, warmup, device)
    latencies = [
        Latency.of(candidate.latencies, count) for candidate, (count, _) in zip(candidates, cases, strict=True)
    ]
    apart = {count: latency for (count, share), latency in zip(cases, latencies, strict=True) if not share}
    return [
        Row(
            count,
            "together" if share else "apart",
            latency,
            latency.frames_per_second / apart[count].frames_per_second,
        )
        for (count, share), latency in zip(cases, latencies, strict=True)
    ]


def report(rows: Sequence[Row]) -> None:
    """Print the table."""
    print()
    common.print_table(
        ("cameras", "mode", "median ms", "p95", "p99", "frames/s", "x apart"),
        [
            (
                row.cameras,
                row.mode,
                row.latency.median_ms,
                row.latency.p95_ms,
                row.latency.p99_ms,
                row.latency.frames_per_second,
                row.ratio,
            )
            for row in rows
        ],
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the file."""
    device = choose_device(args.device)
    common.check_targets(args.json)
    warmup = common.warmup_frames(args.warmup, device)
    frames = args.frames or (20 if device.type == "cpu" else 200)
    options = StreamOptions(precision=args.precision, execution=args.execution, update_rule=args.rule)
    machine, checkpoint = common.machine(device), args.preset or args.checkpoint
    name = Path(checkpoint).stem
    network = load_network(checkpoint, device, args.precision)
    choose_threads(network)
    print(f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}")
    print(f"{name}, {args.rule} {args.precision} {args.execution}")
    rows = measure(network, options, tuple(dict.fromkeys(args.cameras)), frames, warmup, device)
    report(rows)
    same = {"network": name, "rule": args.rule, "precision": args.precision, "execution": args.execution}
    here = {"frames": frames, **dataclasses.asdict(machine)}
    common.save({"rows": [{**same, **row.flat(), **here} for row in rows]}, args.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_network_arguments(parser)
    common.add_common_arguments(parser)
    help_text = "numbers of cameras (default: 1 2 4)"
    parser.add_argument("--cameras", nargs="+", type=common.positive, default=(1, 2, 4), metavar="N", help=help_text)
    for name, choices, default in (
        ("rule", RULES, StreamOptions.update_rule),
        ("precision", common.PRECISIONS, StreamOptions.precision),
        ("execution", common.EXECUTIONS, StreamOptions.execution),
    ):
        help_text = f"{', '.join(choices)} (default: {default})"
        parser.add_argument(f"--{name}", choices=choices, default=default, metavar="X", help=help_text)
    parser.add_argument(
        "--frames", type=common.positive, metavar="N", help="timed frames of each row (default: 20; GPU: 200)"
    )
    common.add_warmup_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("cameras.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
