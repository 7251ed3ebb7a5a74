#!/usr/bin/env python3
"""Measure the time of the static map per frame, at several image and voxel sizes.

    python benchmarks/static_map.py [--sizes WxH ...] [--voxels M ...] [--frames N] [--json FILE]

Integrates frames of a rendered world with true depth, poses and masks into a map that starts empty. Removal of points
is included. The conversion to the published points and grid is timed once at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import common
import numpy as np
import torch
from common import Candidate, Latency

from raymap3r_ros.commands.arguments import size as image_size
from raymap3r_ros.geometry.cameras import back_project
from raymap3r_ros.mapping import OccupancyOptions, StaticMap, occupancy_grid
from raymap3r_ros.network import choose_device
from raymap3r_ros.synthetic import suite_sequence

SIZES = ((48, 64), (176, 224), (384, 512))  # height, width
VOXELS = (0.0, 0.05)  # metres; 0: chosen by the map
SUITE = "light"
IMAGES = 60  # different frames, repeated in order
WARMUP = 3


@dataclass(frozen=True)
class Integrated:
    """The result of integrating one frame. It has no stages."""

    timings: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Measurements at one image size and voxel size."""

    image_size: str
    voxel_mm: float
    points: int  # in the map at the end
    latency: Latency  # per frame
    arrays_ms: float  # copying points and colours to host memory
    grid_ms: float  # computing the occupancy grid

    def flat(self) -> dict[str, Any]:
        """All values in one dictionary, for JSON."""
        values = dataclasses.asdict(self)
        return {**values.pop("latency"), **values}


def views(size: tuple[int, int], count: int, device: torch.device) -> list[tuple[torch.Tensor, ...]]:
    """The arguments of `StaticMap.integrate` for `count` frames. `size`: height and width in pixels."""
    sequence = suite_sequence(SUITE, 0, size=size, device=device)
    matrix = torch.tensor(sequence.intrinsics, dtype=torch.float32, device=device)
    confidence = torch.full(size, 5.0, device=device)
    return [
        (
            back_project(torch.tensor(frame.depth, device=device)[None], matrix[None])[0],
            torch.tensor(frame.image, device=device),
            confidence,
            torch.tensor(frame.moving, device=device),
            matrix,
            torch.tensor(frame.pose, dtype=torch.float32, device=device),
        )
        for frame in islice(sequence.frames(), count)
    ]


def measure(size: tuple[int, int], voxel_size: float, frames: int, device: torch.device) -> Row:
    """Measure the integration of `frames` images. `size`: height and width in pixels."""
    inputs = views(size, min(frames + WARMUP, IMAGES), device)
    static_map = StaticMap(voxel_size)

    def step(index: int) -> Integrated:
        static_map.integrate(*inputs[index % len(inputs)])
        return Integrated({})

    candidate = Candidate(lambda: step)
    common.take_turns([candidate], frames, WARMUP, device)
    start = time.perf_counter()
    points, _ = static_map.arrays()
    copied = time.perf_counter()
    occupancy_grid(points, static_map.voxel_size, np.eye(4), OccupancyOptions(), floor=0.0)
    gridded = time.perf_counter()
    return Row(
        f"{size[1]}x{size[0]}",
        1e3 * static_map.voxel_size,
        len(static_map),
        Latency.of(candidate.latencies),
        1e3 * (copied - start),
        1e3 * (gridded - copied),
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the file."""
    device = choose_device(args.device)
    common.check_targets(args.json)
    machine = common.machine(device)
    print(f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}; {args.frames} frames each")
    rows = [measure(size, voxel, args.frames, device) for size in args.sizes for voxel in args.voxels]
    common.print_table(
        ("image", "voxel mm", "points", "median ms", "p95", "p99", "to host ms", "grid ms"),
        [
            (
                row.image_size,
                row.voxel_mm,
                row.points,
                row.latency.median_ms,
                row.latency.p95_ms,
                row.latency.p99_ms,
                row.arrays_ms,
                row.grid_ms,
            )
            for row in rows
        ],
    )
    common.save({"rows": [{**row.flat(), **dataclasses.asdict(machine)} for row in rows]}, args.json)


def _voxel(text: str) -> float:
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in metres from 0 to 100")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_common_arguments(parser)
    sizes = f"sizes of the images (default: {' '.join(f'{width}x{height}' for height, width in SIZES)})"
    parser.add_argument("--sizes", nargs="+", type=image_size, default=SIZES, metavar="WxH", help=sizes)
    voxels = f"metres; 0: chosen by the map (default: {' '.join(map(str, VOXELS))})"
    parser.add_argument("--voxels", nargs="+", type=_voxel, default=VOXELS, metavar="M", help=voxels)
    parser.add_argument(
        "--frames", type=common.positive, default=60, metavar="N", help="timed frames of each row (default: 60)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("static_map.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
