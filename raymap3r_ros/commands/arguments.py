"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from raymap3r_ros.evaluation.plan import EvaluationPlan
from raymap3r_ros.io.recording import ReadOptions
from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, shipped_weights
from raymap3r_ros.network.catalog import named_weights
from raymap3r_ros.options import Options, build_options, limits_text, option_fields
from raymap3r_ros.ray_pool import HERE
from raymap3r_ros.stamps import MAX_GAP
from raymap3r_ros.streaming import RULES, StreamOptions
from raymap3r_ros.streaming.stream_options import preset_option, preset_options

# Short names for options that are typed often; all others have the name of their field.
SHORT_NAMES = {"update_rule": "rule", "image_size": "size"}


def add_options(
    group: Any, options: type, leave_out: Sequence[str] = (), defaults: Any = None, *, only_given: bool = False
) -> None:
    """Add an argument for every field created by `option`; a group becomes a prefix (`mask.high`: --mask-high).

    `defaults`: an instance without groups whose values replace the default values. `only_given`: the parsed arguments
    contain only options that were on the command line.
    """
    for name, item in option_fields(options):
        if name in leave_out:
            continue
        meta = item.metadata
        default = item.default if defaults is None else getattr(defaults, name)
        limits = f"; {text}" if (text := limits_text(item)) else ""
        group.add_argument(
            *dict.fromkeys((_flag(name), _long_flag(name))),
            dest=name,
            type=boolean if isinstance(default, bool) else type(default),
            default=argparse.SUPPRESS if only_given else default,
            choices=meta["choices"] or None,
            metavar=None if meta["choices"] else type(default).__name__.upper(),
            help=f"{meta['help']} (default: {default}{limits})".replace("%", "%%"),
        )


def read_options(args: argparse.Namespace, options: type[Options]) -> Options:
    """Return the dataclass of the arguments that `add_options` added; those left out have their default value.

    Raises OptionError for values that are not allowed.
    """
    return build_options(options, lambda name, item: getattr(args, name, item.default))


def add_stream_options(group: Any, leave_out: Sequence[str] = ()) -> None:
    """Add the options of the stream, and --preset. `read_stream_options` reads them."""
    preset = preset_option("single options win").metadata
    group.add_argument("--preset", choices=preset["choices"], default="default", help=preset["help"])
    add_options(group, StreamOptions, leave_out, only_given=True)


def read_stream_options(args: argparse.Namespace) -> StreamOptions:
    """Return the options of the stream: those on the command line, the others from the preset. Raises OptionError."""
    return preset_options(args.preset, vars(args))


def add_results(group: Any) -> None:
    """Add which results a run writes. `result_options` reads it."""
    for name, help_text in (
        ("depth", "do not write depth/"),
        ("masks", "do not write masks/"),
        ("cloud", "do not write static_scene.ply"),
        ("preview", "do not write the preview video and picture"),
        ("motion", "do not estimate motion: no masks, and static_scene.ply contains moving objects"),
    ):
        group.add_argument(f"--no-{name}", dest=name, action="store_false", help=help_text)
    group.add_argument(
        "--save-memory",
        action="store_true",
        help="write world.safetensors, the keyframes of the last world, for --memory of another run or the node",
    )


def result_options(args: argparse.Namespace) -> dict[str, bool]:
    """Return what `add_results` added, as arguments of RunOutputs."""
    names = ("depth", "masks", "cloud", "preview", "motion")
    return {name: getattr(args, name) for name in names} | {"memory": args.save_memory}


def add_reading(group: Any) -> None:
    """Add what to read of a recording. `reading_options` reads it."""
    group.add_argument("--topic", help="image topic of a bag that has several")
    group.add_argument(
        "--rate",
        type=float,
        default=30.0,
        help="images per second of a folder of images, and of a video stream without times: H.264, H.265, MJPEG and "
        "others without a container (default: %(default)s)",
    )
    group.add_argument("--stride", type=int, default=1, metavar="N", help="process every N-th frame (default: 1)")
    group.add_argument(
        "--max-gap",
        type=float,
        default=MAX_GAP,
        metavar="S",
        help="longest step between two stamps of a bag or a live input, seconds; a longer one, or one back by more "
        "than 0.1, starts a new world with files of its own (default: %(default)s)",
    )
    for name, which in (("start", "skip the first S seconds"), ("end", "stop S seconds after the start")):
        group.add_argument(
            f"--{name}", type=float, default=getattr(ReadOptions, name), metavar="S", help=f"{which} of the recording"
        )
    group.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    group.add_argument(
        "--intrinsics",
        type=_intrinsics,
        metavar="FX,FY,CX,CY",
        help="camera intrinsics in pixels of the recorded images (default: camera_info of a bag, else estimated)",
    )


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_reading` added, as arguments of `open_recording`."""
    return {item.name: getattr(args, item.name) for item in fields(ReadOptions)}


def add_rules_arguments(parser: argparse.ArgumentParser, *, intrinsics: str, batch: int) -> None:
    """Add the arguments of all subcommands that run update rules."""
    add_checkpoint(parser)
    parser.add_argument(
        "--rules",
        type=lambda text: tuple(text.split(",")),
        default=tuple(RULES),
        metavar="A,B",
        help=f"update rules to run (default: {','.join(RULES)})",
    )
    parser.add_argument(
        "--sequences",
        type=int,
        metavar="N",
        help="N sequences of each suite, spread over it, or the first N of a data set",
    )
    parser.add_argument("--frames", type=int, default=0, metavar="N", help="the first N frames of each (default: all)")
    parser.add_argument("--ablations", action="store_true", help="also run the method with single parts on or off")
    parser.add_argument("--reconstruction", action="store_true", help="also compare the point cloud of static objects")
    parser.add_argument(
        "--intrinsics",
        choices=("given", "estimated"),
        default=intrinsics,
        help="whether the stream gets the true intrinsics (default: %(default)s)",
    )
    parser.add_argument(
        "--judged-frames",
        type=int,
        default=EvaluationPlan.judged_frames,
        metavar="N",
        help="frames of a sequence, spread evenly, whose depth and masks are evaluated (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=batch,
        metavar="N",
        help="sequences of equal length and image size that run side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const=HERE,
        metavar="ADDRESS",
        help="run the batches in processes of Ray, on this machine or a cluster (auto, or its address), with "
        "the same tables",
    )
    parser.add_argument(
        "--json", type=path, metavar="FILE", help="write settings, rows and the values of every sequence"
    )
    parser.add_argument("--csv", type=path, metavar="FILE", help="write the rows")
    parser.add_argument("--pictures", type=path, metavar="DIR", help="draw trajectories, depth strips and masks")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if available), cpu, cuda or cuda:N (default: %(default)s)"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint."""
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="F",
        help=f"weights: a .safetensors or .pth file; {', '.join(shipped_weights())}, part of this package; a name in "
        f"the cache, such as cut3r_512 (`raymap3r weights list`); or {' or '.join(PRESETS)}, untrained, only to test "
        "that everything runs (default: %(default)s)",
    )


def absolute_checkpoint(checkpoint: str) -> str:
    """Return --checkpoint for a process with another working directory: names stay, a path becomes absolute."""
    named = checkpoint in PRESETS or named_weights(checkpoint) is not None
    return checkpoint if named else str(Path(checkpoint).absolute())


def boolean(text: str) -> bool:
    """Parse "true" or "false", as in YAML and ROS parameters."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text == "true"


def path(text: str) -> Path:
    """Parse the path of a file or folder; an empty one, as from a shell variable that is not set, is refused.

    A shell does not expand ~ in quotes: it is the user's folder here too.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def size(text: str) -> tuple[int, int]:
    """Parse WxH, pixels; return (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height in pixels, such as 320x240")
    return int(match[2]), int(match[1])


def flag_words(text: str, given: Collection[str]) -> str:
    """Return an error message with flags (`--size`) in place of the names of options (`image_size`).

    `given`: names of the arguments of the command. Quoted names, which are those in a file, stay as they are.
    """
    flags = {name: _flag(name) for name in (*given, *(name for name, _ in option_fields(StreamOptions)))}
    if "rules" in given:  # several at once
        flags["update_rule"] = "--rules"
    subject = re.match(r"[\w.]+(?= (is|are) )", text)
    if subject and subject[0] in flags:
        text = flags[subject[0]] + text[subject.end() :]
    for name, flag in flags.items():
        if "_" in name or "." in name:  # others may be plain words
            text = re.sub(rf"(?<![\w/.~'-]){re.escape(name)}(?![\w/.:=-])", flag, text)
    return text


def _flag(name: str) -> str:
    return _long_flag(SHORT_NAMES.get(name, name))


def _long_flag(name: str) -> str:
    return "--" + name.replace("_", "-").replace(".", "-")


def _intrinsics(text: str) -> np.ndarray:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers fx,fy,cx,cy") from None
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: fx and fy must be above 0")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
