"""`raymap3r composite`: write the held-out part of a recording, with rendered movers and exact masks."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import path, size
from raymap3r_ros.errors import OptionError
from raymap3r_ros.output_files import check_outputs
from raymap3r_ros.synthetic.export import FORMATS, check_target, export_sequence
from raymap3r_ros.text import printable
from raymap3r_ros.training.composites import composited_sequences
from raymap3r_ros.training.recording import HELD_OUT, read_recording

MOST = 100  # sequences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r composite`."""
    parser.description = (
        f"Write the last 1/{HELD_OUT} of a recording, on which `raymap3r train one_office` never trains, with "
        "rendered movers: images, exact masks, recorded depth and poses, for `raymap3r evaluate tum_folder` (see "
        "docs/synthetic.md)."
    )
    parser.add_argument(
        "recording", metavar="RECORDING", type=path, help="folder of the recording, in the TUM RGB-D layout"
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder for the sequences' folders")
    parser.add_argument(
        "--movers",
        type=int,
        default=4,
        metavar="N",
        help="N sequences with movers, all different; 0: one sequence as recorded (default: %(default)s)",
    )
    parser.add_argument("--size", type=size, default=(240, 320), metavar="WxH", help="pixels (default: 320x240)")
    parser.add_argument("--format", choices=FORMATS, default="tum", help="what to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing sequences")


def run(args: argparse.Namespace) -> int:
    """Write the sequences; return the exit status."""
    if not 0 <= args.movers <= MOST:
        raise OptionError(f"movers is {args.movers}; allowed range: 0 to {MOST}")
    sequences = composited_sequences(read_recording(args.recording, args.size), args.size, args.movers)
    targets = [args.out / sequence.name for sequence in sequences]
    check_outputs(targets, [args.recording], "folder")
    for target in targets:
        check_target(target, args.overwrite)
    for sequence in sequences:
        print(printable(export_sequence(sequence, args.out, args.format, overwrite=args.overwrite)))
    return 0
