"""`raymap3r export`: write the results of a run in the format of another program."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import path
from raymap3r_ros.offline.export import export_format, export_formats, export_results
from raymap3r_ros.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r export`."""
    parser.description = (
        "Write the results of `raymap3r run` in the format of another program. docs/formats.md lists axes, units and "
        "pixels of each format."
    )
    parser.add_argument("results", metavar="RESULTS", type=path, help="folder of the results, --out of the run")
    parser.add_argument(
        "format",
        metavar="FORMAT",
        help="; ".join(f"{name}: {one.help}" for name, one in export_formats().items()),
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="folder for the export (default: RESULTS_FORMAT, beside the results)"
    )
    parser.add_argument(
        "--input", type=path, metavar="RECORDING", help="input of the run (default: where it was during the run)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")


def run(args: argparse.Namespace) -> int:
    """Write one export; return the exit status."""
    name = export_format(args.format).name
    print(printable(export_results(args.results, name, args.out, args.input, args.overwrite)))
    return 0
