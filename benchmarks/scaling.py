#!/usr/bin/env python3
"""Measure how time and memory grow with frames, pixels, state tokens and streams.

    python benchmarks/scaling.py [--over frames ...] [--checkpoint F | --preset P] [--json FILE] [--csv FILE]

Over frames: one long stream with its resets, in tenths; time and memory should stay constant. Over pixels, state
tokens and streams: several sizes in turns, with the default options. Networks with another number of state tokens are
untrained. The slope over frames is fitted to the medians of a hundred equal parts. An exponent is the b of the power
law a x^b, fitted to all sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Candidate, Latency

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network, NetworkConfig, choose_device, choose_threads, load_network, untrained_network
from raymap3r_ros.streaming import StreamOptions

TITLES = {"frames": "frames", "pixels": "pixels", "streams": "streams", "state": "state tokens"}
TENTHS = 10
PARTS = 100  # of a long stream, for the fit of the slope
SIZES = (0.5, 0.75, 1.0, 1.5)  # long edges, relative to the one that the network was trained on
STATES = (0.5, 1, 2, 4)  # state tokens, relative to the network's own number
STREAMS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """Measurements at one size, or in one tenth of a long stream."""

    over: str
    value: int  # last frame of the tenth; pixels, state tokens, streams
    latency: Latency
    memory_mb: float  # highest, see `common.memory_kind`

    def flat(self) -> dict[str, Any]:
        """All values in one dictionary, for JSON and CSV."""
        return {
            "over": self.over,
            "value": self.value,
            **dataclasses.asdict(self.latency),
            "memory_mb": self.memory_mb,
        }


@dataclass(frozen=True)
class Trend:
    """Trend over all points of one kind. Fields that do not apply to the kind are NaN."""

    over: str
    time_exponent: float = np.nan  # of the median
    memory_exponent: float = np.nan
    first_tenth_ms: float = np.nan  # median
    last_tenth_ms: float = np.nan
    slope_ms_per_1000_frames: float = np.nan
    slope_error: float = np.nan  # its standard error
    memory_growth_mb: float = np.nan  # from the second tenth to the last


def over_frames(network: Network, options: StreamOptions, frames: int, warmup: int) -> tuple[list[Point], Trend]:
    """Measure one stream of `frames` frames after a warm-up."""
    device = next(network.parameters()).device
    size = common.image_size(network.config)
    step = common.engine_step(network, options, size, 1, True)
    for index in range(warmup):
        step(index)
    latencies: list[float] = []
    points: list[Point] = []
    for tenth in np.array_split(np.arange(frames), TENTHS):
        common.reset_peak(device)
        step(0)  # untimed: memory is allocated again after `reset_peak`
        for index in tenth:
            latencies.append(common.timed(step, int(index), device)[0])
        latency = Latency.of(latencies[-len(tenth) :])
        points.append(Point("frames", len(latencies), latency, common.peak_memory(device) / 1e6))
    per_frame, error = slope(latencies)
    trend = Trend(
        "frames",
        first_tenth_ms=points[0].latency.median_ms,
        last_tenth_ms=points[-1].latency.median_ms,
        slope_ms_per_1000_frames=1000 * per_frame,
        slope_error=1000 * error,
        # The first tenth may still hold memory of the warm-up.
        memory_growth_mb=points[-1].memory_mb - points[1].memory_mb,
    )
    return points, trend


def slope(latencies: Sequence[float]) -> tuple[float, float]:
    """Growth of the frame time in milliseconds per frame, and its standard error.

    Fitted to the medians of many parts, which single slow frames do not affect.
    """
    parts = np.array_split(np.asarray(latencies), min(PARTS, len(latencies)))
    middles = np.cumsum([len(part) for part in parts]) - [(len(part) + 1) / 2 for part in parts]
    line, covariance = np.polyfit(middles, [np.median(part) for part in parts], 1, cov=True)
    return float(line[0]), float(np.sqrt(covariance[0, 0]))


@dataclass(frozen=True)
class Case:
    """One size to measure."""

    value: int
    build: Callable[[], common.Step]
    streams: int = 1


def pixel_cases(network: Network, options: StreamOptions) -> list[Case]:
    """Cases with images of several sizes."""
    config, cases = network.config, []
    for share in SIZES:
        long_edge = round(config.image_size * share / config.patch_size) * config.patch_size
        size = common.image_size(config, long_edge)
        sized = dataclasses.replace(options, image_size=long_edge)
        cases.append(Case(size[0] * size[1], _builder(lambda: network, sized, size)))
    return cases


def stream_cases(network: Network, options: StreamOptions) -> list[Case]:
    """Cases with batches of several streams."""
    size = common.image_size(network.config)
    return [Case(count, _builder(lambda: network, options, size, count), count) for count in STREAMS]


def state_cases(config: NetworkConfig, options: StreamOptions, device: torch.device) -> list[Case]:
    """Cases with untrained networks of several numbers of state tokens, each created when its case is built."""
    size, cases = common.image_size(config), []
    for share in STATES:
        shaped = dataclasses.replace(config, state_tokens=max(1, round(share * config.state_tokens)))
        cases.append(
            Case(
                shaped.state_tokens,
                _builder(functools.partial(_untrained, shaped, options.precision, device), options, size),
            )
        )
    return cases


def _untrained(config: NetworkConfig, precision: str, device: torch.device) -> Network:
    network = untrained_network(config)
    if precision != "float32":
        network.lower_precision(precision)
    return network.to(device).eval().requires_grad_(False)


def _builder(
    network: Callable[[], Network], options: StreamOptions, size: tuple[int, int], streams: int = 1
) -> Callable[[], common.Step]:
    return lambda: common.engine_step(network(), options, size, streams, True)


def over_cases(
    over: str, cases: Sequence[Case], samples: int, warmup: int, device: torch.device
) -> tuple[list[Point], Trend]:
    """Measure several sizes in turns."""
    candidates = [Candidate(case.build) for case in cases]
    common.take_turns(candidates, samples, warmup, device)
    points = [
        Point(over, case.value, Latency.of(candidate.latencies, case.streams), candidate.peak / 1e6)
        for case, candidate in zip(cases, candidates, strict=True)
    ]
    values = [point.value for point in points]
    return points, Trend(
        over,
        time_exponent=exponent(values, [point.latency.median_ms for point in points]),
        memory_exponent=exponent(values, [point.memory_mb for point in points]),
    )


def exponent(sizes: Sequence[float], figures: Sequence[float]) -> float:
    """The b of the power law a size^b, fitted in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(figures), 1)[0])


def report(points: Sequence[Point], trend: Trend) -> None:
    """Print the table and the trend of one kind."""
    print()
    common.print_table(
        (TITLES[trend.over], "median ms", "p95", "p99", "frames/s", "memory MB"),
        [
            (
                point.value,
                point.latency.median_ms,
                point.latency.p95_ms,
                point.latency.p99_ms,
                point.latency.frames_per_second,
                point.memory_mb,
            )
            for point in points
        ],
    )
    if trend.over == "frames":
        print(
            f"median of the first tenth {trend.first_tenth_ms:.2f} ms, of the last {trend.last_tenth_ms:.2f} ms; "
            f"slope {trend.slope_ms_per_1000_frames:+.3f} +- {trend.slope_error:.3f} ms per 1000 frames; "
            f"memory {trend.memory_growth_mb:+.1f} MB from the second tenth to the last"
        )
    else:
        print(f"time grows with the power {trend.time_exponent:.2f}, memory with {trend.memory_exponent:.2f}")


def run(args: argparse.Namespace) -> None:
    """Measure each kind, print the tables and write the files."""
    device = choose_device(args.device)
    common.check_targets(args.json, args.csv)
    warmup = common.warmup_frames(args.warmup, device)
    slow = device.type == "cpu"
    frames, samples = args.frames or (300 if slow else 10_000), args.samples or (20 if slow else 100)
    if frames < TENTHS:
        raise OptionError(f"frames is {frames}; allowed: {TENTHS} or more")
    options = StreamOptions(precision=args.precision, execution=args.execution)
    machine, memory = common.machine(device), common.memory_kind(device)
    checkpoint = args.preset or args.checkpoint
    name = Path(checkpoint).stem
    print(f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}; memory: {memory}")
    print(f"{name}, {args.precision}, {args.execution}")
    same = {"network": name, "precision": args.precision, "execution": args.execution}
    rows: list[dict[str, Any]] = []
    trends: list[dict[str, Any]] = []
    network: Network | None = load_network(checkpoint, device, args.precision)
    choose_threads(network)
    config = network.config
    for over in (over for over in TITLES if over in args.over):
        if over == "frames":
            points, trend = over_frames(network, options, frames, warmup)
        else:
            if over == "state":
                network = None  # release its memory before the untrained networks are measured
                cases = state_cases(config, options, device)
            else:
                cases = (pixel_cases if over == "pixels" else stream_cases)(network, options)
            points, trend = over_cases(over, cases, samples, warmup, device)
        report(points, trend)
        rows += [{**same, **point.flat(), "memory": memory, **dataclasses.asdict(machine)} for point in points]
        trends.append({**same, **dataclasses.asdict(trend)})
        common.save({"rows": rows, "trends": trends}, args.json, args.csv)
        common.free_memory(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_network_arguments(parser)
    common.add_common_arguments(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the points to this file")
    kinds = f"size to vary (default: all: {', '.join(TITLES)})"
    parser.add_argument("--over", nargs="+", choices=TITLES, default=tuple(TITLES), metavar="X", help=kinds)
    for name, choices, default in (
        ("precision", common.PRECISIONS, "float32"),
        ("execution", common.EXECUTIONS, StreamOptions.execution),
    ):
        help_text = f"{', '.join(choices)} (default: {default})"
        parser.add_argument(f"--{name}", choices=choices, default=default, metavar="X", help=help_text)
    parser.add_argument(
        "--frames", type=common.positive, metavar="N", help="frames of the long stream (default: 300; GPU: 10000)"
    )
    parser.add_argument(
        "--samples", type=common.positive, metavar="N", help="timed frames of each other size (default: 20; GPU: 100)"
    )
    common.add_warmup_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("scaling.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
