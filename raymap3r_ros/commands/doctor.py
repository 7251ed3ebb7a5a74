"""`raymap3r doctor`: check this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from raymap3r_ros import __version__
from raymap3r_ros.commands.arguments import add_checkpoint, add_device, add_options, read_options
from raymap3r_ros.doctor.lines import FAIL, OK, Line, worst
from raymap3r_ros.doctor.run import diagnose
from raymap3r_ros.errors import InputError
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.options import option_fields
from raymap3r_ros.output_files import check_output_file, check_outputs
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.text import counted, printable

FAILED = 1  # exit status if a check fails
SHOWN = ("image_size", "precision")  # options of the stream that the checks depend on
WIDTH = 16  # of the column of names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r doctor`."""
    parser.description = (
        "Check whether this machine can run the package: versions, weights, precisions, memory, a numerical self-test "
        "on the device, large messages between processes, and the time of 50 frames with the checkpoint. Takes about "
        "a minute, on a GPU some minutes more for the execution compile. The exit status is 1 if a check fails."
    )
    add_checkpoint(parser)
    add_device(parser)
    add_options(
        parser, StreamOptions, [name for name, _ in option_fields(StreamOptions) if name not in SHOWN], only_given=True
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write the report as JSON; - writes it to standard output, instead of text"
    )


def run(args: argparse.Namespace) -> int:
    """Run all checks; return the exit status."""
    to_output = args.json == "-"
    if args.json and not to_output:
        check_output_file(Path(args.json))
        if not Path(args.json).absolute().parent.is_dir():
            raise InputError(f"{args.json}: there is no such folder; create it, or name another file")
        check_outputs([Path(args.json)], [Path(args.checkpoint)])
    options = read_options(args, StreamOptions)
    began, lines, check = time.monotonic(), [], ""
    for line in diagnose(args.checkpoint, options, args.device):
        lines.append(line)
        if not to_output:
            if line.check != check:
                print(line.check)
            check = line.check
            print(_text(line), flush=True)
    state, seconds = worst(lines), time.monotonic() - began
    report = {
        "raymap3r_ros": __version__,
        "state": state,
        "seconds": round(seconds, 1),
        "checkpoint": args.checkpoint,
        "device": args.device,
        "lines": [line.to_dict() for line in lines],
    }
    if to_output:
        json.dump(report, sys.stdout, indent=2, allow_nan=False)
        print()
    else:
        _print_end(lines, state, seconds)
        if args.json:
            write_json(Path(args.json), report)
    return FAILED if state == FAIL else 0


def _text(line: Line) -> str:
    text = f"  {line.state:7}  {printable(line.name):{WIDTH}}  {printable(line.found)}"
    return f"{text}\n{' ' * 11}-> {printable(line.remedy)}" if line.remedy else text


def _print_end(lines: list[Line], state: str, seconds: float) -> None:
    others = [line for line in lines if line.state != OK]
    failed = sum(line.state == FAIL for line in others)
    text = f"{counted(failed, 'check')} failed, {counted(len(others) - failed, 'warning')}, {len(lines)} lines"
    print(f"\n{state}: {text} in {seconds:.0f} s")
