#!/usr/bin/env python3
"""Measure what the static map costs per frame, at several image and voxel sizes.

    python benchmarks/static_map.py [--sizes WxH ...] [--voxels M ...] [--frames N] [--json FILE]

Frames of a rendered world with true depth, poses and masks are integrated one after the other; the map starts empty
and grows. Carving is part of it. Making the points and the grid that are published is timed once at the end.
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
from common import Contestant, Latency

from raymap3r_ros.geometry.cameras import back_project
from raymap3r_ros.mapping import OccupancyOptions, StaticMap, occupancy_grid
from raymap3r_ros.network import choose_device
from raymap3r_ros.synthetic import suite_sequence

SIZES = ("64x48", "224x176", "512x384")
VOXELS = (0.0, 0.05)  # metres; 0: as the map chooses it
SUITE = "light"
IMAGES = 60  # different frames, looked at in turn
WARMUP = 3


@dataclass(frozen=True)
class Integrated:
    """A map after one more frame; it has no stages."""

    timings: dict[str, float]


@dataclass(frozen=True)
class Row:
    """What was measured at one image size and voxel size."""

    image_size: str
    voxel_mm: float
    points: int  # in the map at the end
    latency: Latency  # of one frame
    arrays_ms: float  # points and colours to host memory
    grid_ms: float  # occupancy grid from these

    def flat(self) -> dict[str, Any]:
        """Everything in one dictionary, for JSON."""
        values = dataclasses.asdict(self)
        return {**values.pop("latency"), **values}


def views(size: tuple[int, int], count: int, device: torch.device) -> list[tuple[torch.Tensor, ...]]:
    """The arguments of `StaticMap.integrate` for so many frames of H x W pixels."""
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


def measure(name: str, voxel_size: float, frames: int, device: torch.device) -> Row:
    """Integrate so many frames of an image size such as 64x48."""
    width, height = (int(side) for side in name.split("x"))
    inputs = views((height, width), min(frames + WARMUP, IMAGES), device)
    static_map = StaticMap(voxel_size)

    def step(index: int) -> Integrated:
        static_map.integrate(*inputs[index % len(inputs)])
        return Integrated({})

    contestant = Contestant(lambda: step)
    common.take_turns([contestant], frames, WARMUP, device)
    start = time.perf_counter()
    points, _ = static_map.arrays()
    copied = time.perf_counter()
    occupancy_grid(points, static_map.voxel_size, np.eye(4), OccupancyOptions(), floor=0.0)
    gridded = time.perf_counter()
    return Row(
        name,
        1e3 * static_map.voxel_size,
        len(static_map),
        Latency.of(contestant.latencies),
        1e3 * (copied - start),
        1e3 * (gridded - copied),
    )


def run(args: argparse.Namespace) -> None:
    """Measure what is asked, print and write it."""
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


def _size(text: str) -> str:
    width, _, height = text.partition("x")
    common.positive(width), common.positive(height)
    return text


def _voxel(text: str) -> float:
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in metres, or 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_common_arguments(parser)
    sizes = f"images (default: {' '.join(SIZES)})"
    parser.add_argument("--sizes", nargs="+", type=_size, default=SIZES, metavar="WxH", help=sizes)
    voxels = f"metres; 0: as the map chooses (default: {' '.join(map(str, VOXELS))})"
    parser.add_argument("--voxels", nargs="+", type=_voxel, default=VOXELS, metavar="M", help=voxels)
    parser.add_argument("--frames", type=common.positive, default=60, metavar="N", help="of each (default: 60)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("static_map.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
