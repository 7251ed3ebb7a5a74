"""The command `raymap3r`. Nothing here needs ROS except `demo` and `replay`."""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from raymap3r_ros import __version__
from raymap3r_ros.commands import evaluate as evaluation
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import (
    DEFAULT_CHECKPOINT,
    PRESETS,
    STORED_DTYPES,
    choose_device,
    convert_checkpoint,
    load_network,
    shipped_weights,
)
from raymap3r_ros.offline import CloudOptions, RunOutputs, RunSummary, run_recording
from raymap3r_ros.offline.rerun_view import SUFFIX, RerunView
from raymap3r_ros.options import Options, build_options, option_fields
from raymap3r_ros.rates import rate_text
from raymap3r_ros.signals import INTERRUPTED
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.stream_options import preset_option, preset_options
from raymap3r_ros.synthetic import SUITES, WORLDS, suite_sequence
from raymap3r_ros.synthetic.export import FORMATS, export_sequence
from raymap3r_ros.training import RECIPES, TrainOptions, train

# Options that are typed often get a short name; all others are called as their field is.
SHORT_NAMES = {"update_rule": "rule", "image_size": "size"}
FAILED = 2  # exit status of every error that has a message of its own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors of ours are one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="raymap3r: %(levelname)s: %(message)s")
    logging.addLevelName(logging.WARNING, "warning")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        args = _parser(arguments).parse_args(arguments)
        return args.command(args)
    except torch.cuda.OutOfMemoryError:
        print("raymap3r: error: out of GPU memory; try a smaller --size or --precision bfloat16", file=sys.stderr)
    except (Raymap3rError, OSError) as error:
        print(f"raymap3r: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raymap3r", description="Camera pose, depth, moving objects and the static scene from one moving camera."
    )
    parser.add_argument("--version", action="version", version=f"raymap3r {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_convert(commands)
    _add_render(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_demo(commands, wanted="demo" in arguments[:1])
    _add_replay(commands, wanted="replay" in arguments[:1])
    return parser


# ------------------------------------------------------------------------------------------------------------- run


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="process a video, a folder of images or a ROS 2 bag",
        description="Process a recording and write trajectory.txt (TUM), depth/, masks/, intrinsics.txt, "
        "static_scene.ply, summary.json and a preview into a folder. Ctrl-C ends early and keeps what there is.",
    )
    parser.set_defaults(command=_run)
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        help="a video, a folder of images, or a ROS 2 bag (.mcap, .db3, or its folder)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run in DIR")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="F",
        help=f"weights: a .safetensors or .pth file; {', '.join(shipped_weights())}, which comes with the package; or "
        f"{' or '.join(PRESETS)} for untrained ones, which only show that everything runs (default: %(default)s)",
    )
    _add_device(parser)

    results = parser.add_argument_group("results")
    for name, help_text in (
        ("depth", "do not write depth/"),
        ("masks", "do not write masks/"),
        ("cloud", "do not write static_scene.ply"),
        ("preview", "do not write the preview video and picture"),
        ("motion", "do not estimate motion: no masks, and static_scene.ply contains moving objects"),
    ):
        results.add_argument(f"--no-{name}", dest=name, action="store_false", help=help_text)
    results.add_argument(
        "--view",
        nargs="?",
        type=_view_file,
        const=True,  # the viewer; not a text, which `type` would be asked about
        metavar="FILE.rrd",
        help="show everything in Rerun's viewer while it is computed, or write FILE.rrd for it (see docs/viewing.md)",
    )

    reading = parser.add_argument_group("reading")
    reading.add_argument("--topic", help="image topic of a bag that has several")
    reading.add_argument(
        "--rate", type=float, default=30.0, help="images per second of a folder of images (default: %(default)s)"
    )
    reading.add_argument("--stride", type=int, default=1, help="take only every so-many-th frame")
    reading.add_argument("--max-frames", type=int, help="stop after so many frames")
    reading.add_argument(
        "--intrinsics",
        type=_intrinsics,
        metavar="FX,FY,CX,CY",
        help="of the recorded images, in their pixels (default: a bag's camera_info, else estimated)",
    )
    add_stream_options(parser.add_argument_group("method"))
    add_options(parser.add_argument_group("static scene"), CloudOptions)


def _run(args: argparse.Namespace) -> int:
    options, cloud_options = read_stream_options(args), read_options(args, CloudOptions)
    recording = open_recording(
        args.input, topic=args.topic, rate=args.rate, stride=args.stride, max_frames=args.max_frames,
        intrinsics=args.intrinsics,
    )  # fmt: skip
    outputs = RunOutputs(
        depth=args.depth, masks=args.masks, cloud=args.cloud, preview=args.preview, motion=args.motion,
        view=RerunView(None if args.view is True else args.view, args.overwrite) if args.view else None,
    )  # fmt: skip
    network = load_network(args.checkpoint, choose_device(args.device), options.precision)
    summary = run_recording(
        recording, network, args.out, options, outputs=outputs, cloud_options=cloud_options, overwrite=args.overwrite
    )
    _report(summary, args.out)
    return 0 if summary.complete else INTERRUPTED


def _report(summary: RunSummary, folder: Path) -> None:
    counts = [f"{summary.frames} frames"]
    if summary.frames_skipped:
        counts.append(f"{summary.frames_skipped} not readable")
    if summary.frames_unhealthy:
        counts.append(f"{summary.frames_unhealthy} without finite values")
    print(f"weights: {summary.checkpoint}")
    early = "" if summary.complete else f" (stopped early: {summary.stopped_by})"
    print(
        f"{', '.join(counts)}{early}: {rate_text(summary.engine_rate)}, "
        f"{rate_text(summary.whole_rate)} with reading and writing, on {summary.device}"
    )
    print(f"{folder}: {', '.join(summary.files)}")


def _view_file(text: str) -> Path:
    if not text.endswith(SUFFIX):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {SUFFIX}; INPUT goes before --view")
    return Path(text)


def _intrinsics(text: str) -> np.ndarray:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers fx,fy,cx,cy") from None
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: fx and fy must be above 0")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


# --------------------------------------------------------------------------------------------------------- convert


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn the public checkpoint into a safetensors file",
        description="Turn the public CUT3R checkpoint (.pth) into this package's safetensors format, which can "
        "execute nothing.",
    )
    parser.set_defaults(command=_convert)
    parser.add_argument("input", metavar="IN", type=Path, help="the public .pth, or a .safetensors of ours")
    parser.add_argument("output", metavar="OUT", type=Path, help="the .safetensors to write")
    parser.add_argument(
        "--dtype",
        choices=STORED_DTYPES,
        default="float32",
        help="float16 halves the file; mixed is 3 %% larger than that and keeps in float32 what matters most for "
        "accuracy; docs/weights.md compares them (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def _convert(args: argparse.Namespace) -> int:
    if args.output.suffix != ".safetensors":
        raise InputError(f"{args.output}: must end in .safetensors, by which the format is recognised")
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output}: exists already; name another file, or allow it with --overwrite")
    result = convert_checkpoint(args.input, args.output, args.dtype, progress=True)
    print(f"{args.output}: {result.parameters / 1e6:.1f} M parameters as {args.dtype}, {result.bytes / 1e6:.1f} MB")
    if any(result.rounding.values()):
        errors = ", ".join(f"{part} {error:.1e}" for part, error in result.rounding.items())
        print(f"relative rounding error of the weights: {errors}")
    return 0


# ---------------------------------------------------------------------------------------------------------- render


def _add_render(commands: Any) -> None:
    parser = commands.add_parser(
        "render",
        help="write synthetic sequences with ground truth",
        description="Render sequences of a suite and write each as a folder in the TUM RGB-D layout with masks, and "
        "as a ROS 2 bag (see docs/synthetic.md).",
    )
    parser.set_defaults(command=_render)
    parser.add_argument(
        "suite",
        metavar="SUITE",
        choices=SUITES,
        help="; ".join(f"{name}: {suite.help}" for name, suite in SUITES.items()),
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the sequences' folders")
    parser.add_argument("--world", choices=WORLDS, default="varied", help="kind of scenes (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sequences", type=int, metavar="N", help="the first N sequences (default: the whole suite)")
    which.add_argument("--index", type=int, nargs="+", metavar="I", help="these sequences, counted from 0")
    parser.add_argument("--frames", type=int, metavar="N", help="the first N frames of each (default: all)")
    parser.add_argument("--size", type=_size, default=(240, 320), metavar="WxH", help="pixels (default: 320x240)")
    parser.add_argument("--format", choices=FORMATS, default="both", help="what to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace sequences that exist already")
    _add_device(parser)


def _render(args: argparse.Namespace) -> int:
    count = SUITES[args.suite].sequences
    if args.sequences is not None and not 1 <= args.sequences <= count:
        raise OptionError(f"sequences is {args.sequences}; allowed range: 1 to {count}")
    device = choose_device(args.device)
    for index in args.index or range(args.sequences or count):
        sequence = suite_sequence(args.suite, index, world=args.world, size=args.size, device=device)
        print(export_sequence(sequence, args.out, args.format, max_frames=args.frames, overwrite=args.overwrite))
    return 0


def _size(text: str) -> tuple[int, int]:
    """WxH as (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height in pixels, such as 320x240")
    return int(match[2]), int(match[1])


# ----------------------------------------------------------------------------------------------------------- train


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network of our own on rendered worlds",
        description="Train a network of our own on rendered worlds. Ctrl-C stops and saves; the same command goes on "
        "where it stopped. Several processes, of one GPU each or of one CPU core each: torchrun --nproc-per-node N "
        "--no-python raymap3r train ...",
    )
    recipes = parser.add_subparsers(required=True, metavar="RECIPE")
    for name, (help_text, options) in RECIPES.items():
        knows = f"knows {help_text}"
        one = recipes.add_parser(name, help=knows, description=f"Train `{name}`, which {knows}.")
        one.set_defaults(command=_train, recipe=name)
        one.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the run; its name is free")
        one.add_argument("--weights", metavar="FILE", type=Path, help="weights (.safetensors) to begin with")
        one.add_argument("--seconds", type=float, help="stop after so many seconds")
        _add_device(one)
        add_options(one.add_argument_group("options"), TrainOptions, defaults=options)


def _train(args: argparse.Namespace) -> int:
    weights = train(
        read_options(args, TrainOptions), args.out, args.recipe, choose_device(args.device), start=args.weights,
        seconds=args.seconds,
    )  # fmt: skip
    if weights is not None:
        print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")
    return 0


# -------------------------------------------------------------------------------------------------------- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare the update rules with the truth",
        description="Run all update rules over the same sequences and print tables of what comes out.",
    )
    method = argparse.ArgumentParser(add_help=False)
    _add_device(method)
    # All rules run, and they share computations, which needs execution `plain`.
    add_stream_options(method.add_argument_group("method"), leave_out=("update_rule", "execution"))
    evaluation.add_arguments(parser, [method])
    parser.set_defaults(command=evaluation.run)


# ------------------------------------------------------------------------------------------------------------ demo


def _add_demo(commands: Any, wanted: bool) -> None:
    parser = commands.add_parser("demo", help="see it live in ROS 2")
    if not wanted:
        return  # its arguments live in the room that imports rclpy, which the other commands must not need
    demo = _node_module("demo")
    demo.add_arguments(parser)
    parser.set_defaults(command=demo.run)


def _node_module(command: str) -> ModuleType:
    """The module of a command in the room that imports rclpy. Raises Raymap3rError where there is no ROS."""
    try:
        return importlib.import_module(f"raymap3r_ros.clients.{command}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("raymap3r_ros"):
            raise
        raise Raymap3rError(
            f"the {command} needs ROS 2 ({error}); source your ROS installation, or see README.md for the one on PyPI"
        ) from error


# ---------------------------------------------------------------------------------------------------------- replay


def _add_replay(commands: Any, wanted: bool) -> None:
    parser = commands.add_parser("replay", help="play a ROS 2 bag into the node and report")
    if not wanted:
        return  # as above
    replay = _node_module("replay")
    from raymap3r_ros.node.node_options import NodeOptions

    replay.add_arguments(parser)
    add_options(parser.add_argument_group("playing"), replay.ReplayOptions)
    # The bag determines the others, and the preset is applied here.
    leave_out = ("every_frame", "image_transport", "preset")
    add_options(parser.add_argument_group("parameters of the node"), NodeOptions, leave_out=leave_out)
    add_stream_options(parser.add_argument_group("method"))
    parser.set_defaults(command=_replay, node_options=NodeOptions, module=replay)


def _replay(args: argparse.Namespace) -> int:
    node_options = build_options(args.node_options, lambda name, item: getattr(args, name, item.default))
    # Without `preset`: the node cannot distinguish a given value from the default.
    parameters = {
        name: value
        for options in (node_options, read_stream_options(args))
        for name, item in option_fields(type(options))
        if (value := attrgetter(name)(options)) != item.default and name != "preset"
    }
    return args.module.run(
        args.bag, read_options(args, args.module.ReplayOptions), args.out, node=args.node, parameters=parameters,
        overwrite=args.overwrite,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- common options


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N (default: %(default)s)"
    )


def add_options(
    group: Any, options: type, leave_out: Sequence[str] = (), defaults: Any = None, *, only_given: bool = False
) -> None:
    """An argument for every field made by `option`; a group becomes a prefix (`mask.high`: --mask-high).

    `defaults` may be an instance without groups, whose values are the defaults then. `only_given`: the parsed
    arguments contain only options that were on the command line.
    """
    for name, item in option_fields(options):
        if name in leave_out:
            continue
        meta = item.metadata
        default = item.default if defaults is None else getattr(defaults, name)
        limits = "" if meta["low"] is None else f"; {meta['low']} to {meta['high']}"
        group.add_argument(
            _flag(name),
            dest=name,
            type=_boolean if isinstance(default, bool) else type(default),
            default=argparse.SUPPRESS if only_given else default,
            choices=meta["choices"] or None,
            metavar=None if meta["choices"] else type(default).__name__.upper(),
            help=f"{meta['help']} (default: {default}{limits})".replace("%", "%%"),
        )


def add_stream_options(group: Any, leave_out: Sequence[str] = ()) -> None:
    """Arguments for the options of the stream, and `--preset`; `read_stream_options` reads them."""
    preset = preset_option("single options win").metadata
    group.add_argument("--preset", choices=preset["choices"], default="default", help=preset["help"])
    add_options(group, StreamOptions, leave_out, only_given=True)


def read_stream_options(args: argparse.Namespace) -> StreamOptions:
    """The options of the stream: those on the command line, the others from the preset. Raises OptionError."""
    return preset_options(args.preset, vars(args))


def read_options(args: argparse.Namespace, options: type[Options]) -> Options:
    """The dataclass that `add_options` made arguments for. Raises OptionError where its values are not allowed."""
    return build_options(options, lambda name, _: getattr(args, name))


def _boolean(text: str) -> bool:
    """As YAML has it, and so ROS parameters."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text == "true"


def _flag(name: str) -> str:
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main())
