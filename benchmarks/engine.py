#!/usr/bin/env python3
"""Measure time and memory per frame, next to the public way of running the same weights (naive mode), in one run.

    python benchmarks/engine.py [--preset P ...] [--device D] [--json FILE] [--csv FILE]

One row for every combination of the given sizes, precisions, ...; without any, a list that suits the device. A frame
is timed from an image in host memory to results in host memory. All rows of one size take turns, frames of one after
frames of the other. Each row has a baseline (`naive.py`), which works as a public implementation does:

| row | baseline |
|---|---|
| runs the ray branch | RayMap3R |
| rule reads attention, no ray branch | TTT3R |
| other rules, no ray branch | CUT3R |

The last column is frames/s over those of the baseline. A baseline runs one stream at a time, so rows of several
streams gain from batching too.
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
from common import Contestant, Latency, Machine
from naive import NaiveStream

from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, Network, choose_device, load_network
from raymap3r_ros.streaming import RULES, StreamOptions

MOTION = ("on", "off", "auto")
ASKED = ("size", "precision", "rule", "motion", "ray_interval", "execution", "streams")  # what rows can differ in


@dataclass(frozen=True)
class Setting:
    """What one row runs."""

    network: str
    size: int  # long edge, pixels
    precision: str = "float32"
    rule: str = "raymap3r"
    motion: str = "on"  # or "off": no dynamic map, and the ray branch runs only if the rule needs it
    ray_interval: int = 1  # rays are asked in every n-th frame
    execution: str = StreamOptions.execution
    streams: int = 1
    mode: str = "engine"  # or "naive"

    @property
    def variant(self) -> common.Variant:
        """Which form of the weights it runs on."""
        return common.variant(self.precision, self.execution)

    @property
    def asks_rays(self) -> bool:
        """Whether the second branch runs, in every frame or in some."""
        return self.motion == "on" or RULES[self.rule].needs_motion

    def baseline(self) -> Setting:
        """The naive mode of the public implementation that does this row's work."""
        motion = "on" if self.asks_rays else "off"
        rule = "raymap3r" if self.asks_rays else "ttt3r" if RULES[self.rule].needs_attention else "cut3r"
        return Setting(self.network, self.size, rule=rule, motion=motion, execution="plain", mode="naive")


@dataclass(frozen=True)
class Row:
    """What was measured of one setting."""

    setting: Setting
    pixels: str  # WxH that the network sees
    latency: Latency
    frames: int  # timed, of each stream
    memory_mb: float  # highest, see `common.memory_kind`
    ratio: float  # frames/s over those of the baseline
    stages: dict[str, float]  # median milliseconds

    def flat(self, machine: Machine, memory: str) -> dict[str, Any]:
        """Everything in one dictionary, for JSON and CSV; `memory` says what `memory_mb` is of."""
        return {
            **dataclasses.asdict(self.setting),
            "pixels": self.pixels,
            "frames": self.frames,
            **dataclasses.asdict(self.latency),
            "memory_mb": self.memory_mb,
            "memory": memory,
            "ratio_to_naive": self.ratio,
            **{f"stage_{name}_ms": value for name, value in self.stages.items()},
            **dataclasses.asdict(machine),
        }


def combinations(base: Setting, asked: dict[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the values in `asked`; the rest is as in `base`. Motion `auto` becomes `on` or `off`."""
    settings = []
    for values in itertools.product(*asked.values()):
        setting = dataclasses.replace(base, **dict(zip(asked, values, strict=True)))
        if setting.motion == "auto":
            setting = dataclasses.replace(setting, motion="on" if RULES[setting.rule].needs_motion else "off")
        settings.append(setting)
    return list(dict.fromkeys(settings))


def suited(base: Setting, device: torch.device, patch: int) -> list[Setting]:
    """The rows of a run in which nothing is asked.

    On a CPU the everyday one, and the one with the least work. On a GPU one in half precision, and from there every
    single thing changed.
    """
    least = dataclasses.replace(base, rule="filt3r", motion="off")
    if device.type == "cpu":
        return [base, least]
    base, least = (dataclasses.replace(one, precision="bfloat16") for one in (base, least))
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
    """Rows of settings of one network (float32, on the CPU) and one size, the naive modes that they need first."""
    settings = [*dict.fromkeys(setting.baseline() for setting in settings), *settings]
    networks = common.variants_of(network, device, (setting.variant for setting in settings))
    size = common.image_size(network.config, settings[0].size)
    contestants = [Contestant(_builder(networks[setting.variant], setting, size)) for setting in settings]
    common.take_turns(contestants, frames, warmup, device)
    latencies = {
        setting: Latency.of(contestant.latencies, setting.streams)
        for setting, contestant in zip(settings, contestants, strict=True)
    }
    rows = []
    for setting, contestant in zip(settings, contestants, strict=True):
        base = latencies[setting if setting.mode == "naive" else setting.baseline()]
        foreign = sum(common.weight_bytes(other) for key, other in networks.items() if key != setting.variant)
        rows.append(
            Row(
                setting=setting,
                pixels=f"{size[1]}x{size[0]}",
                latency=latencies[setting],
                frames=frames,
                memory_mb=(contestant.peak - (foreign if device.type == "cuda" else 0)) / 1e6,
                ratio=latencies[setting].frames_per_second / base.frames_per_second,
                stages=contestant.stage_medians(),
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


def _options(setting: Setting) -> StreamOptions:
    return StreamOptions(
        execution=setting.execution,
        image_size=setting.size,
        precision=setting.precision,
        ray_interval=setting.ray_interval,
        update_rule=setting.rule,
    )


def report(rows: Sequence[Row]) -> None:
    """Print two tables: the rows, and where their time goes."""
    names = [_name(row.setting) for row in rows]
    print()
    common.print_table(
        ("network", "pixels", "mode", "streams", "median ms", "p95", "p99", "frames/s", "memory MB", "x naive"),
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
    """Measure what is asked, network by network and size by size, and print and write it."""
    device = choose_device(args.device)
    common.check_targets(args.json, args.csv)
    warmup = common.warmup_frames(args.warmup, device)
    asked = {name: tuple(dict.fromkeys(values)) for name in ASKED if (values := getattr(args, name))}
    # In turns of one untimed and 4 or 20 timed frames, so that rays asked now and then have their share of them.
    frames = args.frames or (40 if device.type == "cpu" else 200)
    default = [DEFAULT_CHECKPOINT] if device.type == "cpu" else [DEFAULT_CHECKPOINT, "cut3r_512_dpt"]
    machine, memory = common.machine(device), common.memory_kind(device)
    print(f"{machine.device}, {machine.threads} CPU threads, torch {machine.torch}; memory: {memory}")
    rows: list[Row] = []
    for checkpoint in args.preset or ([args.checkpoint] if args.checkpoint else default):
        network = load_network(checkpoint)
        base = Setting(Path(checkpoint).stem, network.config.image_size)
        settings = combinations(base, asked) if asked else suited(base, device, network.config.patch_size)
        for setting in settings:
            _options(setting)  # refuses what is not allowed before anything is measured
        for size in dict.fromkeys(setting.size for setting in settings):
            group = measure(network, device, [one for one in settings if one.size == size], frames, warmup)
            report(group)
            rows += group
            common.save({"rows": [row.flat(machine, memory) for row in rows]}, args.json, args.csv)
            common.free_memory(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    presets = f"untrained weights: {', '.join(PRESETS)}"
    which.add_argument("--preset", nargs="+", choices=PRESETS, metavar="P", help=presets)
    which.add_argument("--checkpoint", metavar="F", help=f"weights (default: {DEFAULT_CHECKPOINT})")
    common.add_common_arguments(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--size", nargs="+", type=common.positive, metavar="N", help="long edges, pixels")
    for name, choices, note in (
        ("precision", common.PRECISIONS, ""),
        ("rule", RULES, ""),
        ("motion", MOTION, " (on for rules that need the ray branch)"),
        ("execution", common.EXECUTIONS, ""),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, metavar="X", help=", ".join(choices) + note)
    parser.add_argument(
        "--ray-interval", nargs="+", type=common.positive, metavar="N", help="ask the rays in every n-th frame"
    )
    parser.add_argument("--streams", nargs="+", type=common.positive, metavar="N", help="cameras in one batch")
    parser.add_argument("--frames", type=common.positive, metavar="N", help="timed of each (default: 40; GPU: 200)")
    common.add_warmup_argument(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return common.exit_status("engine.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
