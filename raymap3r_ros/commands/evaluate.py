"""`raymap3r evaluate`: one command per table."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import logging
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from raymap3r_ros import __version__
from raymap3r_ros.errors import CheckpointError, InputError, OptionError
from raymap3r_ros.evaluation import covariance, noise_study, tables
from raymap3r_ros.evaluation.baselines import map_controls
from raymap3r_ros.evaluation.datasets import DATASETS, open_dataset
from raymap3r_ros.evaluation.pictures import draw_pictures
from raymap3r_ros.evaluation.plan import EvaluationPlan, Variant, ablation_variants, rule_variants
from raymap3r_ros.evaluation.run import run_sequences, sequence_length
from raymap3r_ros.evaluation.scorer import SequenceRun
from raymap3r_ros.evaluation.sequences import PosedSequence, synthetic_sequence
from raymap3r_ros.evaluation.statistics import optional_module
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, ErrorModel
from raymap3r_ros.network import (
    DEFAULT_CHECKPOINT,
    PRESETS,
    Network,
    choose_device,
    load_network,
    shipped_weights,
)
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.offline.run import UNTRAINED_WARNING
from raymap3r_ros.options import build_options
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.streaming.stream_options import UPDATE_RULES
from raymap3r_ros.synthetic import SUITES, WORLDS

log = logging.getLogger(__name__)

NOT_REPORTED = "tune"  # the suite on which thresholds are chosen
SEQUENCES = 12  # of a suite, unless asked for more or less ...
FRAMES = 4000  # ... and as many as make this number of frames, for suites of long sequences
WORKERS = 4  # batches that run at the same time on a CPU, at most: each holds the maps of its sequences
CLOUD_CROP = 224  # pixels; the published reconstruction figures are of the central square of the image
PACKAGES = ("torch", "numpy", "scipy", "evo")  # whose versions stand in the settings


@dataclass(frozen=True)
class Part:
    """The sequences of one suite or data set."""

    suite: str
    world: str
    sequences: list[PosedSequence]


def add_arguments(parser: argparse.ArgumentParser, parents: Sequence[argparse.ArgumentParser]) -> None:
    """The commands under `raymap3r evaluate`; `parents` bring the options of the stream and of the device."""
    whats = parser.add_subparsers(required=True, metavar="WHAT")
    suites = "; ".join(f"{name}: {suite.help}" for name, suite in SUITES.items())
    synthetic = whats.add_parser(
        "synthetic",
        parents=parents,
        help="rendered suites with exact truth",
        description=f"Run all update rules over rendered sequences and compare with the truth. Suites: {suites}.",
    )
    synthetic.add_argument(
        "--suite",
        nargs="+",
        choices=SUITES,
        default=[name for name in SUITES if name != NOT_REPORTED],
        metavar="NAME",
        help=f"suites to run: {', '.join(SUITES)} (default: all but {NOT_REPORTED})",
    )
    synthetic.add_argument(
        "--world", choices=(*WORLDS, "both"), default="one_room", help="kind of scenes (default: %(default)s)"
    )
    synthetic.add_argument(
        "--render-size",
        type=_size,
        metavar="WxH",
        help="pixels of the rendered images (default: what the network sees, so that nothing is resampled)",
    )
    _add_common(synthetic, intrinsics="given", batch=8)
    synthetic.set_defaults(parts=_synthetic_parts, depth_cap=None, cloud_crop=0)
    alone = whats.add_parser(
        "simulated",
        help="mask, gate, reset alignment and smoothing alone, on true geometry with noise",
        description="Judge the parts of the method without any network, on true depths and poses with noise.",
    )
    alone.add_argument("--sequences", type=int, default=12, metavar="N", help="of each suite (default: %(default)s)")
    alone.add_argument("--world", choices=WORLDS, default="varied", help="kind of scenes (default: %(default)s)")
    alone.add_argument("--picture", type=Path, metavar="FILE", help="draw masks at each noise into a PNG")
    alone.set_defaults(command=_run_simulated)
    spread = whats.add_parser(
        "covariance",
        parents=parents,
        help="errors of poses and steps, compared with their published covariance",
        description="Fit the error model of ~/odometry on one half of the rendered sequences, evaluate it on the "
        "other, and print it as JSON.",
    )
    _add_checkpoint(spread)
    spread.add_argument("--world", choices=WORLDS, default="one_room", help="kind of scenes (default: %(default)s)")
    spread.add_argument(
        "--sequences",
        type=int,
        default=16,
        metavar="N",
        help="of each suite, a quarter of them where they are long (default: %(default)s)",
    )
    spread.add_argument("--frames", type=int, default=0, metavar="N", help="the first N frames of each (default: all)")
    spread.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write a copy of the checkpoint (.safetensors) with the fitted model in its metadata",
    )
    spread.set_defaults(command=_run_covariance)
    for name, dataset in DATASETS.items():
        recorded = whats.add_parser(
            name, parents=parents, help=dataset.help, description=f"Run every update rule over {dataset.help}."
        )
        recorded.add_argument("root", metavar="ROOT", type=Path, help="folder that holds the data set")
        if dataset.load_long:
            recorded.add_argument("--long", action="store_true", help="the longer sampling of its sequences")
        # As the published tables are made; images may differ in size from sequence to sequence.
        _add_common(recorded, intrinsics="estimated", batch=1)
        recorded.set_defaults(parts=_recorded_parts, dataset=name, depth_cap=dataset.depth_cap, cloud_crop=CLOUD_CROP)


def _run_simulated(args: argparse.Namespace) -> int:
    print(noise_study.format_rows(noise_study.run_simulated(args.sequences, args.world)))
    if args.picture:
        noise_study.draw_masks(args.picture)
    return 0


def _run_covariance(args: argparse.Namespace) -> int:
    """Fit on every second sequence, evaluate on the others."""
    begin = time.perf_counter()
    if args.sequences < 2:
        raise OptionError(f"sequences is {args.sequences}; allowed: 2 and more, some to calibrate with, some to judge")
    optional_module("scipy.optimize")
    source = _source_to_annotate(args.checkpoint, args.write) if args.write else None
    options = build_options(StreamOptions, lambda name, item: getattr(args, name, item.default))
    device = choose_device(args.device)
    network = load_network(args.checkpoint, device, options.precision)
    if not network.trained:
        log.warning(UNTRAINED_WARNING)
    published = _published_model(network, replace=args.write is not None)
    size = _seen_size(network, options)
    parts = []
    for name, suite in SUITES.items():
        if name == NOT_REPORTED:
            continue
        count = min(args.sequences if suite.frames < 100 else max(2, args.sequences // 4), suite.sequences)
        chosen = _spread(suite.sequences, count)
        parts.append(
            (name, [synthetic_sequence(name, i, world=args.world, size=size, device=str(device)) for i in chosen])
        )
    lengths = [sequence.length for _, sequences in parts for sequence in sequences]
    total = sum(min(length, args.frames or length) for length in lengths)
    workers = min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1
    with _one_thread_each(workers), tqdm(total=total, unit=" frames", disable=None, dynamic_ncols=True) as bar:
        evaluated = covariance.evaluate_sequences(
            network, parts, options, frames=args.frames, workers=workers, on_frame=bar.update
        )
    report = covariance.report(evaluated, published)
    print(f"{report.text}\n")
    print(f"{network.source}, {args.world}, {total} frames, on {device.type} in {time.perf_counter() - begin:.0f} s")
    if source is not None:
        copy_with_metadata(source, args.write, {METADATA_KEY: report.model.to_json()})
        print(f"wrote {args.write}")
    return 0


def _published_model(network: Network, replace: bool) -> ErrorModel:
    """The model that the node uses. Raises CheckpointError if it is malformed, unless it is to be replaced."""
    try:
        return ErrorModel.from_manifest(network.manifest, network.source) or DEFAULT
    except CheckpointError as error:
        if not replace:
            raise
        log.warning("%s", error)
        return DEFAULT


def _source_to_annotate(checkpoint: str, target: Path) -> Path:
    """The file of a checkpoint whose metadata can be changed. Raises OptionError."""
    path = shipped_weights().get(checkpoint, Path(checkpoint).expanduser())
    if path.suffix != ".safetensors":
        raise OptionError(
            f"checkpoint {checkpoint} has no metadata to write to; convert a .pth file with `raymap3r convert` first"
        )
    if target.suffix != ".safetensors":
        raise OptionError(f"--write is {target}; the name of a checkpoint must end in .safetensors")
    return path


def _add_common(parser: argparse.ArgumentParser, *, intrinsics: str, batch: int) -> None:
    _add_checkpoint(parser)
    parser.add_argument(
        "--rules",
        type=lambda text: tuple(text.split(",")),
        default=UPDATE_RULES,
        metavar="A,B",
        help=f"update rules to run (default: {','.join(UPDATE_RULES)})",
    )
    parser.add_argument(
        "--sequences",
        type=int,
        metavar="N",
        help="so many sequences of each suite, spread over it, or the first of a data set",
    )
    parser.add_argument("--frames", type=int, default=0, metavar="N", help="the first N frames of each (default: all)")
    parser.add_argument("--ablations", action="store_true", help="also run the method part by part")
    parser.add_argument("--reconstruction", action="store_true", help="also compare the cloud of what stands still")
    parser.add_argument(
        "--intrinsics",
        choices=("given", "estimated"),
        default=intrinsics,
        help="whether the stream is told the camera's (default: %(default)s)",
    )
    parser.add_argument(
        "--judged-frames",
        type=int,
        default=EvaluationPlan.judged_frames,
        metavar="N",
        help="frames of a sequence, spread evenly, whose depth and masks are judged (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=batch,
        metavar="N",
        help="sequences of one length and image size that run side by side (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, rows and figures of every sequence")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw trajectories, depth strips and masks")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="F",
        help=f"weights: a .safetensors or .pth file, {', '.join(shipped_weights())} of this package, or untrained "
        f"{', '.join(PRESETS)} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run, print the tables and write what was asked for; gives the exit status.

    Raises OptionError and InputError for what cannot be run, before anything is run.
    """
    begin = time.perf_counter()
    options = build_options(StreamOptions, lambda name, item: getattr(args, name, item.default))
    variants = rule_variants(options, args.rules) + (ablation_variants(options) if args.ablations else [])
    device = choose_device(args.device)
    plan = EvaluationPlan(
        frames=args.frames,
        batch=args.batch,
        # Threads of one core each are faster than several cores on one small network.
        workers=min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1,
        known_intrinsics=args.intrinsics == "given",
        judged_frames=args.judged_frames,
        depth_cap=args.depth_cap,
        reconstruction=args.reconstruction,
        cloud_crop=args.cloud_crop,
    )
    _check(args)
    network = load_network(args.checkpoint, device, options.precision)
    if not network.trained:
        log.warning(UNTRAINED_WARNING)
    parts = args.parts(args, network, options)
    with _one_thread_each(plan.workers):
        runs = _run_parts(network, parts, variants, plan, options)
    keys = {variant.name: tables.settings_key(variant.options) for variant in variants}
    rows = tables.make_rows(runs, variants, keys)
    settings = _settings(args, network, variants, plan, keys, time.perf_counter() - begin)
    print(f"{tables.format_tables(rows)}\n\n{_settings_text(settings, options)}")
    if args.csv:
        tables.write_csv(args.csv, rows)
    if args.json:
        tables.write_tables(args.json, settings, rows, runs)
    if args.pictures:
        for path in draw_pictures(args.pictures, runs, args.rules):
            print(path)
    return 0


@contextmanager
def _one_thread_each(workers: int) -> Iterator[None]:
    """Leave the cores to `workers` instead of to the threads within one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(args: argparse.Namespace) -> None:
    """Raise what would otherwise be raised when all is run."""
    optional_module("evo.core.metrics")
    optional_module("scipy.stats")
    if args.pictures:
        optional_module("matplotlib")
        args.pictures.mkdir(parents=True, exist_ok=True)
    for path in (args.json, args.csv):
        if path and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.absolute().parent} to write it into")
    if args.sequences is not None and args.sequences < 1:
        raise OptionError(f"sequences is {args.sequences}; allowed: 1 and more")
    if len(set(args.rules)) < len(args.rules):
        raise OptionError(f"rules are {','.join(args.rules)}; each may be named once")


def _synthetic_parts(args: argparse.Namespace, network: Network, options: StreamOptions) -> list[Part]:
    size = args.render_size or _seen_size(network, options)
    device = str(next(network.parameters()).device)
    parts = []
    for world in WORLDS if args.world == "both" else (args.world,):
        for name in dict.fromkeys(args.suite):
            suite = SUITES[name]
            frames = min(suite.frames, args.frames or suite.frames)
            count = min(args.sequences or min(SEQUENCES, max(2, FRAMES // frames)), suite.sequences)
            chosen = _spread(suite.sequences, count)
            sequences = [synthetic_sequence(name, index, world=world, size=size, device=device) for index in chosen]
            parts.append(Part(name, world, sequences))
    return parts


def _seen_size(network: Network, options: StreamOptions) -> tuple[int, int]:
    """Height and width that the network sees of a 4:3 image, so that nothing is resampled."""
    long_edge = options.image_size or network.config.image_size
    return frame_image(4 * long_edge, 3 * long_edge, long_edge, network.config.patch_size).size


def _spread(available: int, count: int) -> list[int]:
    """So many of a suite's sequences. They stand in the order of their share of moving pixels: a part of them must not
    be the first ones."""
    return np.linspace(0, available - 1, count).round().astype(int).tolist()


def _recorded_parts(args: argparse.Namespace, network: Network, options: StreamOptions) -> list[Part]:
    long = getattr(args, "long", False)
    sequences = open_dataset(args.dataset, args.root, long=long)
    return [Part(f"{args.dataset} long" if long else args.dataset, "", sequences[: args.sequences])]


def _run_parts(
    network: Network, parts: list[Part], variants: list[Variant], plan: EvaluationPlan, options: StreamOptions
) -> list[SequenceRun]:
    """All sequences of all parts, with the controls' figures beside those of the variants."""
    total = sum(sequence_length(sequence, plan) for part in parts for sequence in part.sequences)
    runs = []
    with tqdm(total=total, unit=" frames", disable=None, dynamic_ncols=True) as bar:
        for part in parts:
            bar.set_description(" ".join(name for name in (part.world, part.suite) if name))
            done = list(
                run_sequences(
                    network, part.sequences, variants, plan, suite=part.suite, world=part.world, on_frame=bar.update
                )
            )
            for sequence, controls in zip(done, map_controls(done, options.mask), strict=True):
                sequence.values.update(controls)
            runs += done
    return runs


def _settings(
    args: argparse.Namespace,
    network: Network,
    variants: list[Variant],
    plan: EvaluationPlan,
    keys: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    """All that the figures depend on."""
    device = next(network.parameters()).device
    return {
        "command": shlex.join(["raymap3r", *sys.argv[1:]]),
        "checkpoint": network.source,
        "trained": network.trained,
        "manifest": network.manifest,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "versions": {
            "raymap3r": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "plan": dataclasses.asdict(plan),
        "options": {keys[variant.name]: dataclasses.asdict(variant.options) for variant in variants},
    }


def _settings_text(settings: dict[str, Any], options: StreamOptions) -> str:
    plan = settings["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    return "\n".join(
        (
            f"{settings['checkpoint']}, on {settings['device']} in {settings['seconds']:.0f} s ({versions})",
            f"all rules: router {options.router}, smoothing {options.smoothing}, a reset every "
            f"{options.reset_interval} frames, alignment {options.reset_alignment}, token pooling "
            f"{options.token_pooling}, mask {options.mask.kind}; intrinsics "
            f"{'given' if plan['known_intrinsics'] else 'estimated'}",
            "mean over sequences (95 % interval by bootstrap over sequences); * best of its group",
        )
    )


def _size(text: str) -> tuple[int, int]:
    """WxH as (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height in pixels, such as 160x120")
    return int(match[2]), int(match[1])
