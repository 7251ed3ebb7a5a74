#!/usr/bin/env python3
"""Measure time and memory per frame, against the public way of running the same weights (naive mode), in one run.

    python benchmarks/engine.py [--preset P ...] [--device D] [--load N] [--json FILE] [--csv FILE]

One row for each combination of the given sizes, precisions and other options; without options, a default list for the
device. A frame is timed from an image in host memory to results in host memory. All rows of one size take turns of
several frames. Each row has a baseline (`naive.py`), which works as a public implementation does:

| row | baseline |
|---|---|
| runs the ray branch | RayMap3R |
| rule reads attention, no ray branch | TTT3R |
| other rules, no ray branch | CUT3R |

The last column is frames/s divided by the frames/s of the baseline. A baseline runs one stream at a time, so rows of
several streams also gain from batching. The column before is the share of the machine's own rate (a product of two
large float32 matrices) that the row reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from common import Candidate, Latency, Machine
from load import load
from naive import NaiveStream
from torch.utils.flop_counter import FlopCounterMode

from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, Network, choose_device, choose_threads, load_network
from raymap3r_ros.streaming import RULES, StreamOptions
from raymap3r_ros.streaming.recordings import long_running
from raymap3r_ros.streaming.stream_options import KeyframeOptions

MOTION = ("on", "off", "auto")
VARIED = ("size", "precision", "rule", "motion", "ray_interval", "execution", "streams")  # options of a row


@dataclass(frozen=True)
class Setting:
    """Settings of one row."""

    network: str
    size: int  # long edge, pixels
    precision: str = "float32"
    rule: str = "raymap3r"
    motion: str = "on"  # or "off": no dynamic map, and the ray branch runs only if the rule needs it
    ray_interval: int = 1  # the ray branch runs in every N-th frame
    execution: str = StreamOptions.execution
    streams: int = 1
    mode: str = "engine"  # or "naive"

    @property
    def variant(self) -> common.Variant:
        """The variant of the network that it needs."""
        return common.variant(self.precision, self.execution)

    @property
    def runs_ray_branch(self) -> bool:
        """Whether the ray branch runs, in all frames or in some."""
        return self.motion == "on" or RULES[self.rule].needs_motion

    def baseline(self) -> Setting:
        """Settings of the naive mode of the public implementation that does the same work."""
        motion = "on" if self.runs_ray_branch else "off"
        rule = "raymap3r" if self.runs_ray_branch else "ttt3r" if RULES[self.rule].needs_attention else "cut3r"
        return Setting(self.network, self.size, rule=rule, motion=motion, execution="plain", mode="naive")


@dataclass(frozen=True)
class Row:
    """Measurements of one setting."""

    setting: Setting
    pixels: str  # WxH of the network's input
    latency: Latency
    frames: int  # timed, of each stream
    memory_mb: float  # highest, see `common.memory_kind`
    share: float  # operations per second divided by those of the machine, see `common.sgemm_rate`
    ratio: float  # frames/s divided by the frames/s of the baseline
    stages: dict[str, float]  # median milliseconds

    def flat(self, machine: Machine, memory: str) -> dict[str, Any]:
        """All values in one dictionary, for JSON and CSV. `memory` describes what `memory_mb` measures."""
        return {
            **dataclasses.asdict(self.setting),
            "pixels": self.pixels,
            "frames": self.frames,
            **dataclasses.asdict(self.latency),
            "memory_mb": self.memory_mb,
            "memory": memory,
            "share_of_sgemm": self.share,
            "ratio_to_naive": self.ratio,
            **{f"stage_{name}_ms": value for name, value in self.stages.items()},
            **dataclasses.asdict(machine),
        }


def combinations(base: Setting, varied: dict[str, Sequence[Any]]) -> list[Setting]:
    """All combinations of the values in `varied`, the rest as in `base`. Motion `auto` becomes `on` or `off`."""
    settings = []
    for values in itertools.product(*varied.values()):
        setting = dataclasses.replace(base, **dict(zip(varied, values, strict=True)))
        if setting.motion == "auto":
            setting = dataclasses.replace(setting, motion="on" if RULES[setting.rule].needs_motion else "off")
        settings.append(setting)
    return list(dict.fromkeys(settings))


def default_settings(base: Setting, network: Network, device: torch.device) -> list[Setting]:
    """The rows of a run without options.

    On a CPU: the default settings, and those with the least work, operation by operation and, for networks that a node
    records, traced and as ONNX graphs. On a GPU: the same in bfloat16, and the default settings with each option
    changed alone.
    """
    least = dataclasses.replace(base, rule="filt3r", motion="off")
    if device.type == "cpu":
        recorded = long_running(network, _options(base)).execution
        executions = {"auto": ("plain",), "trace": ("plain", "trace"), "onnx": ("plain", "trace", "onnx")}[recorded]
        return [dataclasses.replace(one, execution=name) for one in (base, least) for name in executions]
    base, least = (dataclasses.replace(one, precision="bfloat16") for one in (base, least))
    patch = network.config.patch_size
    changes: list[dict[str, Any]] = [{"precision": name} for name in common.PRECISIONS]
    changes += [{"rule": name} for name in RULES]
    changes += [{"execution": name} for name in ("plain", "compile")]
    changes += [{"streams": count} for count in (2, 4, 8)]
    changes += [{"size": round(base.size * share / patch) * patch} for share in (0.75, 0.5)]
    settings = [base, least, *(dataclasses.replace(base, **change) for change in changes)]
    return list(dict.fromkeys(settings))


def measure(
    network: Network, device: torch.device, settings: Sequence[Setting], frames: int, warmup: int
) -> list[Row]:
    """Measure settings of one network (float32, on the CPU) and one size; the rows of their baselines come first."""
    settings = [*dict.fromkeys(setting.baseline() for setting in settings), *settings]
    if any(setting.execution in ("trace", "onnx") for setting in settings):
        warmup = max(warmup, common.GPU_WARMUP)  # recorded frames begin as late as on a GPU
    networks = common.variants_of(network, device, (setting.variant for setting in settings))
    size = common.image_size(network.config, settings[0].size)
    candidates = [Candidate(_builder(networks[setting.variant], setting, size)) for setting in settings]
    common.take_turns(candidates, frames, warmup, device)
    machine_rate = common.sgemm_rate(device)
    latencies = {
        setting: Latency.of(candidate.latencies, setting.streams)
        for setting, candidate in zip(settings, candidates, strict=True)
    }
    rows = []
    for setting, candidate in zip(settings, candidates, strict=True):
        base = latencies[setting if setting.mode == "naive" else setting.baseline()]
        foreign = sum(common.weight_bytes(other) for key, other in networks.items() if key != setting.variant)
        rows.append(
            Row(
                setting=setting,
                pixels=f"{size[1]}x{size[0]}",
                latency=latencies[setting],
                frames=frames,
                memory_mb=(candidate.peak - (foreign if device.type == "cuda" else 0)) / 1e6,
                share=_operations(candidate, setting) * latencies[setting].frames_per_second / machine_rate,
                ratio=latencies[setting].frames_per_second / base.frames_per_second,
                stages=candidate.stage_medians(),
            )
        )
    return rows


def _builder(network: Network, setting: Setting, size: tuple[int, int]) -> Callable[[], common.Step]:
    def build_naive() -> common.Step:
        stream, images = NaiveStream(network, setting.rule, setting.size), common.moving_images(size)
        return lambda index: stream.step(images[index % len(images)][0])

    def build_engine() -> common.Step:
        options = _options(setting)
        return common.engine_step(network, options, size, setting.streams, setting.motion == "on")

    return build_naive if setting.mode == "naive" else build_engine


def _operations(candidate: Candidate, setting: Setting) -> float:
    """Floating-point operations of a frame of one stream: matrix products, convolutions and attention."""
    step = candidate.build()
    for index in range(common.MIN_WARMUP):
        step(index)
    with FlopCounterMode(display=False) as counter:
        for index in range(setting.ray_interval):
            step(common.MIN_WARMUP + index)
    return counter.get_total_flops() / setting.ray_interval / setting.streams


def _options(setting: Setting) -> StreamOptions:
    return StreamOptions(
        execution=setting.execution,
        image_size=setting.size,
        precision=setting.precision,
        ray_interval=setting.ray_interval,
        update_rule=setting.rule,
        keyframes=KeyframeOptions(size=0),  # the baselines have none
    )


def report(rows: Sequence[Row]) -> None:
    """Print two tables: the rows, and their time per stage."""
    names = [_name(row.setting) for row in rows]
    print()
    common.print_table(
        (
            "network",
            "pixels",
            "mode",
            "streams",
            "median ms",
            "p95",
            "p99",
            "frames/s",
            "memory MB",
            "of sgemm",
            "x naive",
        ),
        [
            (
                row.setting.network,
                row.pixels,
                name,
                row.setting.streams,
                row.latency.median_ms,
                row.latency.p95_ms,
                row.latency.p99_ms,
                row.latency.frames_per_second,
                row.memory_mb,
                f"{row.share:.0%}",
                row.ratio,
            )
            for name, row in zip(names, rows, strict=True)
        ],
    )
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    stages.append(stages.pop(stages.index("rest")))
    print()
    common.print_table(
        ("stages, median ms", "streams", *stages),
        [
            (name, row.setting.streams, *(row.stages.get(stage, 0.0) for stage in stages))
            for name, row in zip(names, rows, strict=True)
        ],
    )


def _name(setting: Setting) -> str:
    if setting.mode == "naive":
        return f"naive {setting.rule}"
    mask = "" if setting.motion == "on" else ", no mask"
    rays = "" if setting.ray_interval == 1 else f", rays 1 in {setting.ray_interval}"
    return f"{setting.rule} {setting.precision} {setting.execution}{mask}{rays}"


def run(args: argparse.Namespace) -> None:
    """Measure each network and size, print the tables and write the files."""
    device = choose_device(args.device)
    common.check_targets(args.json, args.csv)
    warmup = common.warmup_frames(args.warmup, device)
    varied = {name: tuple(dict.fromkeys(values)) for name in VARIED if (values := getattr(args, name))}
    # A turn has one untimed and 4 or 20 timed frames, enough to include frames in which an infrequent ray branch runs.
    frames = args.frames or (40 if device.type == "cpu" else 200)
    default = [DEFAULT_CHECKPOINT] if device.type == "cpu" else [DEFAULT_CHECKPOINT, "cut3r_512_dpt"]
    memory = common.memory_kind(device)
    rows: list[dict[str, Any]] = []
    for checkpoint in args.preset or ([args.checkpoint] if args.checkpoint else default):
        network = load_network(checkpoint)
        choose_threads(network)
        machine = common.machine(device, args.load)
        print(
            f"{machine.device}, CPU threads: {machine.threads} (waiting: {machine.waiting}), torch {machine.torch}, "
            f"{args.load} other processes; memory: {memory}"
        )
        base = Setting(Path(checkpoint).stem, network.config.image_size)
        settings = combinations(base, varied) if varied else default_settings(base, network, device)
        for setting in settings:
            _options(setting)  # raises OptionError before anything is measured
        for size in dict.fromkeys(setting.size for setting in settings):
            with load(args.load):
                group = measure(network, device, [one for one in settings if one.size == size], frames, warmup)
            report(group)
            rows += [row.flat(machine, memory) for row in group]
            common.save({"rows": rows}, args.json, args.csv)
            common.free_memory(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    presets = f"untrained weights: {', '.join(PRESETS)}"
    which.add_argument("--preset", nargs="+", choices=PRESETS, metavar="P", help=presets)
    which.add_argument("--checkpoint", metavar="F", help=f"weights (default: {DEFAULT_CHECKPOINT})")
    common.add_common_arguments(parser)
    common.add_load_argument(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to this file")
    parser.add_argument("--size", nargs="+", type=common.positive, metavar="N", help="long edges, pixels")
    for name, choices, note in (
        ("precision", common.PRECISIONS, ""),
        ("rule", RULES, ""),
        ("motion", MOTION, " (on for rules that need the ray branch)"),
        ("execution", common.EXECUTIONS, ""),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, metavar="X", help=", ".join(choices) + note)
    parser.add_argument(
        "--ray-interval", nargs="+", type=common.positive, metavar="N", help="run the ray branch in every N-th frame"
    )
    parser.add_argument("--streams", nargs="+", type=common.positive, metavar="N", help="cameras in one batch")
    parser.add_argument(
        "--frames", type=common.positive, metavar="N", help="timed frames of each row (default: 40; GPU: 200)"
    )
    common.add_warmup_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("engine.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
