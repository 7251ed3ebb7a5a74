#!/usr/bin/env python3
"""Measure how results along a stream change with precision and execution mode, against plain float32.

    python benchmarks/parity_precision.py [--checkpoint F | --preset P] [--frames N] [--json FILE]

`stored as mixed` and `stored as float16` are rows for weights in a file that `raymap3r convert --dtype` wrote. If the
weights are float16 values, as the shipped ones are, they first get random digits that rounding to float16 removes.

All modes run the same rendered sequence with the default options (smoothing, a reset every 100 frames). Position
errors are in percent of the path length in plain float32. The last row is plain float32 again, with one pixel of the
first image changed by one level; smaller deviations than in this row have no meaning.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import common
import numpy as np
import torch

from raymap3r_ros.errors import OptionError, Raymap3rError
from raymap3r_ros.evaluation.trajectory import checked_poses
from raymap3r_ros.network import STORED_DTYPES, Network, choose_device, choose_threads, load_network
from raymap3r_ros.network.checkpoint import stored_dtype
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.synthetic import SUITES, suite_sequence

SUITE, WORLD = "long", "one_room"
CONTROL = "one pixel changed"


@dataclass(frozen=True)
class Mode:
    """One way to run the network."""

    precision: str
    execution: str
    changed: bool = False  # one pixel of the first image differs
    stored: str = "float32"  # type of the weights in the file, see `stored_dtype`

    @property
    def name(self) -> str:
        """Name in tables."""
        stored = "" if self.stored == "float32" else f", stored as {self.stored}"
        return f"{self.precision} {self.execution}{stored}" + (f", {CONTROL}" if self.changed else "")


REFERENCE = Mode("float32", "plain")


@dataclass(frozen=True)
class Deviation:
    """Deviation of one mode from the reference, over a stream."""

    drift_worst_percent: float  # position error, relative to the path length; maximum over frames
    drift_final_percent: float  # at the last frame
    rotation_worst_deg: float
    rotation_final_deg: float
    depth_median_percent: float  # median over frames of each frame's median relative error
    depth_worst_percent: float  # of the worst frame
    mask_iou: float  # over all frames together; 1 if neither marks a pixel
    unhealthy_frames: int  # frames that are not finite; they keep the last pose and have no depth or mask error


@dataclass
class Record:
    """Results of one mode over a stream."""

    poses: list[np.ndarray] = field(default_factory=list)
    depth_errors: list[float] = field(default_factory=list)  # median relative error of each frame
    both: int = 0  # pixels that both masks mark
    either: int = 0
    unhealthy: int = 0

    def add(self, result: StepResult, reference: StepResult) -> None:
        """Add the results of the next frame, from this mode and from the reference."""
        own, expected = (one.numpy("pose", "depth", "dynamic_mask", "healthy") for one in (result, reference))
        if not expected["healthy"]:
            raise Raymap3rError(f"frame {reference.frame}: plain float32 is not finite; use other weights")
        if not own["healthy"]:
            self.unhealthy += 1
            self.poses.append(self.poses[-1] if self.poses else np.eye(4))
            return
        self.poses.append(own["pose"])
        depth = expected["depth"]
        self.depth_errors.append(float(np.median(np.abs(own["depth"] - depth) / np.maximum(np.abs(depth), 1e-6))))
        self.both += int(np.count_nonzero(own["dynamic_mask"] & expected["dynamic_mask"]))
        self.either += int(np.count_nonzero(own["dynamic_mask"] | expected["dynamic_mask"]))

    def deviation(self, reference: Record) -> Deviation:
        """Compare with a reference over the same frames. Raises Raymap3rError if its camera does not move."""
        poses, truth = checked_poses(self.poses, "measured"), checked_poses(reference.poses, "reference")
        path = path_length(truth)
        if not path > 0:
            raise Raymap3rError(
                "the camera does not move in plain float32, so there is no path to compare with; use other weights"
            )
        drift = 100 * np.linalg.norm(poses[:, :3, 3] - truth[:, :3, 3], axis=1) / path
        rotation = angles(poses, truth)
        errors = self.depth_errors or [np.nan]
        return Deviation(
            drift_worst_percent=float(drift.max()),
            drift_final_percent=float(drift[-1]),
            rotation_worst_deg=float(rotation.max()),
            rotation_final_deg=float(rotation[-1]),
            depth_median_percent=100 * float(np.median(errors)),
            depth_worst_percent=100 * float(np.max(errors)),
            mask_iou=self.both / self.either if self.either else 1.0,
            unhealthy_frames=self.unhealthy,
        )


def path_length(poses: np.ndarray) -> float:
    """Length of a path (T, 4, 4) in metres."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles (T,) in degrees between the rotations of poses (T, 4, 4)."""
    # From the chord |A - B| = sqrt(8) sin(angle / 2), which keeps small angles exact where an arc cosine loses them.
    chord = np.linalg.norm(first[:, :3, :3] - second[:, :3, :3], axis=(1, 2))
    return np.degrees(2 * np.arcsin(np.clip(chord / np.sqrt(8), 0, 1)))


def compare(
    checkpoint: str, modes: Sequence[Mode], frames: int, long_edge: int, device: torch.device
) -> tuple[dict[Mode, Deviation], float]:
    """Run all modes and the reference. Return the deviations, and the length of the reference's path in metres."""
    keys = {mode: (common.variant(mode.precision, mode.execution), mode.stored) for mode in (REFERENCE, *modes)}
    network = load_network(checkpoint)
    choose_threads(network)
    add_lost_digits(network)
    networks = {}
    for stored in dict.fromkeys(mode.stored for mode in keys):
        wanted = [variant for variant, kind in keys.values() if kind == stored]
        made = common.variants_of(as_stored(network, stored), device, wanted)
        networks |= {(variant, stored): one for variant, one in made.items()}
    size = common.image_size(network.config, long_edge)
    sequence = suite_sequence(SUITE, 0, world=WORLD, size=size, device=device)
    streams, records = {}, {}
    for mode in (REFERENCE, *modes):
        options = StreamOptions(precision=mode.precision, execution=mode.execution, image_size=long_edge)
        streams[mode], records[mode] = Stream(networks[keys[mode]], options), Record()
    for index, frame in enumerate(islice(sequence.frames(), frames)):
        results = {}
        for mode, stream in streams.items():
            image = brighter_pixel(frame.image) if mode.changed and index == 0 else frame.image
            results[mode] = stream.step(image)
        for mode, result in results.items():
            records[mode].add(result, results[REFERENCE])
    reference = records.pop(REFERENCE)
    deviations = {mode: record.deviation(reference) for mode, record in records.items()}
    return deviations, path_length(checked_poses(reference.poses, "reference"))


def add_lost_digits(network: Network) -> None:
    """Add random digits, which rounding to float16 removes, to weights that are all float16 values."""
    weights = [parameter.data for parameter in network.parameters()]
    if not all(torch.equal(weight.half().float(), weight) for weight in weights):
        return
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        step = torch.exp2(torch.floor(torch.log2(weight.abs().clamp_min(2.0**-14))) - 10)  # between float16 values
        finer = weight + step * (torch.rand(weight.shape, generator=generator) - 0.5)
        # Below a power of two, the steps are smaller and half a step may be too large.
        weight.copy_(torch.where(finer.half() == weight, finer, weight))


def as_stored(network: Network, stored: str) -> Network:
    """Return the network as read from a file with weights of type `stored`."""
    if stored == "float32":
        return network
    rounded = copy.deepcopy(network)
    for key, weight in rounded.state_dict().items():
        weight.copy_(weight.to(stored_dtype(key, weight.shape, stored)))
    return rounded


def brighter_pixel(image: np.ndarray) -> np.ndarray:
    """Return a copy with the middle pixel changed by one level."""
    changed = image.copy()
    middle = changed.shape[0] // 2, changed.shape[1] // 2
    changed[middle] = np.where(changed[middle] < 255, changed[middle] + 1, 254)
    return changed


def run(args: argparse.Namespace) -> None:
    """Measure all modes, print the table and write the file."""
    device = choose_device(args.device)
    common.check_targets(args.json)
    if not 2 <= args.frames <= SUITES[SUITE].frames:
        raise OptionError(f"frames is {args.frames}; allowed range: 2 to {SUITES[SUITE].frames}")
    executions = args.execution or (
        ["plain"] if device.type == "cpu" else [name for name in common.EXECUTIONS if name != "auto"]
    )
    modes = [Mode(precision, execution) for precision in args.precision for execution in executions]
    modes += [dataclasses.replace(REFERENCE, stored=stored) for stored in args.stored]
    modes = [mode for mode in dict.fromkeys(modes) if mode != REFERENCE]
    modes.append(dataclasses.replace(REFERENCE, changed=True))
    checkpoint = args.preset or args.checkpoint
    machine = common.machine(device)
    deviations, path = compare(checkpoint, modes, args.frames, args.size, device)
    name = Path(checkpoint).stem
    print(f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}")
    print(f"{name}, {args.frames} frames of {WORLD}-{SUITE}-00, path {path:.2f} m; against plain float32:\n")
    common.print_table(
        (
            "", "drift worst %", "final %", "rotation worst deg", "final deg", "depth median %", "worst frame %",
            "mask IoU", "not finite",
        ),
        [(mode.name, *dataclasses.astuple(deviation)) for mode, deviation in deviations.items()],
    )  # fmt: skip
    rows = [
        {
            "network": name,
            **dataclasses.asdict(mode),
            "frames": args.frames,
            "path_m": path,
            **dataclasses.asdict(deviation),
            **dataclasses.asdict(machine),
        }
        for mode, deviation in deviations.items()
    ]
    common.save({"rows": rows}, args.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    common.add_network_arguments(parser)
    common.add_common_arguments(parser)
    parser.add_argument(
        "--frames", type=common.positive, default=300, metavar="N", help="frames of the stream (default: 300)"
    )
    parser.add_argument(
        "--size", type=common.positive, default=0, metavar="N", help="long edge, pixels (default: as trained)"
    )
    precisions = f"(default: all: {', '.join(common.PRECISIONS)})"
    executions = f"{', '.join(common.EXECUTIONS)} (default: all but auto; on a CPU plain)"
    parser.add_argument(
        "--precision", nargs="+", choices=common.PRECISIONS, default=common.PRECISIONS, metavar="X", help=precisions
    )
    parser.add_argument(
        "--stored", nargs="*", choices=STORED_DTYPES, default=STORED_DTYPES, metavar="X",
        help=f"types of the weights in a file (default: all: {', '.join(STORED_DTYPES)})",
    )  # fmt: skip
    parser.add_argument("--execution", nargs="+", choices=common.EXECUTIONS, metavar="X", help=executions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("parity_precision.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
