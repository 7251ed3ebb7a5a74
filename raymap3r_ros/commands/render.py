"""`raymap3r render`: write synthetic sequences."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import add_device, path, size
from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import choose_device
from raymap3r_ros.synthetic import SUITES, WORLDS, suite_sequence
from raymap3r_ros.synthetic.export import FORMATS, check_target, export_sequence
from raymap3r_ros.synthetic.suites import sequence_name
from raymap3r_ros.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r render`."""
    parser.description = (
        "Render sequences of a suite and write each as a folder in the TUM RGB-D layout with masks, and as a ROS 2 "
        "bag (see docs/synthetic.md)."
    )
    parser.add_argument(
        "suite",
        metavar="SUITE",
        choices=SUITES,
        help="; ".join(f"{name}: {suite.help}" for name, suite in SUITES.items()),
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder for the sequences' folders")
    parser.add_argument("--world", choices=WORLDS, default="varied", help="kind of scenes (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sequences", type=int, metavar="N", help="the first N sequences (default: the whole suite)")
    which.add_argument("--index", type=int, nargs="+", metavar="I", help="these sequences, counted from 0")
    parser.add_argument("--frames", type=int, metavar="N", help="the first N frames of each (default: all)")
    parser.add_argument("--size", type=size, default=(240, 320), metavar="WxH", help="pixels (default: 320x240)")
    parser.add_argument("--format", choices=FORMATS, default="both", help="what to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing sequences")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Render sequences; return the exit status."""
    count = SUITES[args.suite].sequences
    if args.sequences is not None and not 1 <= args.sequences <= count:
        raise OptionError(f"sequences is {args.sequences}; allowed range: 1 to {count}")
    length = SUITES[args.suite].frames
    if args.frames is not None and args.frames > length:
        raise OptionError(f"frames is {args.frames}; allowed: 1 to {length}, the length of the sequences")
    indices = args.index or range(args.sequences or count)
    for index in indices:
        if not 0 <= index < count:
            raise OptionError(f"index is {index}; allowed range: 0 to {count - 1}")
        check_target(args.out / sequence_name(args.suite, index, args.world), args.overwrite)
    if len(set(indices)) < len(indices):
        raise OptionError(f"index is {' '.join(map(str, indices))}; each may be named once")
    device = choose_device(args.device)
    for index in indices:
        sequence = suite_sequence(args.suite, index, world=args.world, size=args.size, device=device)
        folder = export_sequence(sequence, args.out, args.format, max_frames=args.frames, overwrite=args.overwrite)
        print(printable(folder))
    return 0
