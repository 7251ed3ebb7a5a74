"""The command `raymap3r`: finds the command's module in `commands/`, and maps errors to exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from raymap3r_ros import __version__
from raymap3r_ros.errors import CheckpointError, Raymap3rError, lacking_memory, reason_of
from raymap3r_ros.signals import INTERRUPTED, ignore_stop_signals, interrupted_once
from raymap3r_ros.standard_streams import SteadyStream, reserve_standard_descriptors
from raymap3r_ros.text import LONGEST_ERROR, PrintableFormatter, RepeatFilter, printable
from raymap3r_ros.threads import wait_passively
from raymap3r_ros.working_directory import working_directory_problem

# Module in `commands/` and help. Modules import PyTorch, those of ROS_COMMANDS also rclpy, so that only the module of
# the command in use is imported.
COMMANDS = {
    "run": "process a video, a folder of images or a ROS 2 bag",
    "batch": "process many recordings, on this machine or on a Ray cluster",
    "export": "write the results of a run for COLMAP, nerfstudio, Foxglove and others",
    "weights": "fetch, import and verify weights by name",
    "convert": "convert the public checkpoint to a safetensors file",
    "render": "write synthetic sequences with ground truth",
    "composite": "write a recording with rendered movers and exact masks",
    "train": "train a network on rendered worlds",
    "evaluate": "compare the update rules with ground truth",
    "demo": "play a clip into the node in ROS 2 and check its outputs",
    "replay": "play a ROS 2 bag into the node and report",
    "doctor": "check this machine, for a bug report too",
}
ROS_COMMANDS = ("demo", "replay")
FAILED = 2  # exit status of every error with a message of this package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. An expected error is printed as one line on stderr.

    Without standard output the command still writes its files. The status is FAILED then, unless the output was closed
    or its reader has ended. `arguments`: None for those of the process, which then is expected to end.
    """
    reserve_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be in another encoding
    out, err = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        interrupted_once(at_end=arguments is None),
    ):
        try:
            return _until_interrupted(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            out.flush()
            if arguments is None:
                gc.freeze()  # otherwise Python searches PyTorch for reference cycles at exit, for half a second
            if out.error is not None and not isinstance(out.error, BrokenPipeError):
                print(f"raymap3r: error: cannot write to standard output: {out.error.strerror}", file=err)
                sys.exit(FAILED)


def _until_interrupted(arguments: list[str]) -> int:
    """Run one command and return the exit status; afterwards stop signals are ignored."""
    try:
        try:
            return _run(arguments)
        finally:
            ignore_stop_signals()
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    """Run one command and return the exit status."""
    wait_passively()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("raymap3r: %(levelname)s: %(message)s"))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.addLevelName(logging.WARNING, "warning")
    args = None
    try:
        if problem := working_directory_problem():
            raise Raymap3rError(problem)
        args = build_parser(arguments).parse_args(arguments)
        return args.run(args)
    except (Raymap3rError, OSError) as error:
        # The keys of a weight file are not options.
        plain = args is None or isinstance(error, CheckpointError)
        text = str(error) if plain else _flag_words(str(error), args)
        if isinstance(error, OSError):
            text = reason_of(error)
        print(f"raymap3r: error: {printable(text, LONGEST_ERROR, lines=True)}", file=sys.stderr)
    except Exception as error:
        reason = lacking_memory(error)
        if not reason:
            raise
        print(f"raymap3r: error: {reason}", file=sys.stderr)
    return FAILED


class _Parser(argparse.ArgumentParser):
    """Prints errors without control characters: arguments may be names of files that a shell's pattern matched."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        super().error(printable(message))


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for `arguments`. Only the command named there gets its own arguments.

    Raises Raymap3rError if that command needs ROS 2 and it is not available.
    """
    parser = _Parser(
        prog="raymap3r", description="Camera pose, depth, moving objects and the static scene from one moving camera."
    )
    parser.add_argument("--version", action="version", version=f"raymap3r {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        if name in arguments[:1]:
            module = _load(name)
            command.set_defaults(run=module.run)
            module.add_arguments(command)
    return parser


def _load(command: str) -> ModuleType:
    try:
        if command in ROS_COMMANDS:
            problem = importlib.import_module("raymap3r_ros.node.dds_profile").rmw_problem(os.environ)
            if problem:
                raise Raymap3rError(problem)
        return importlib.import_module(f"raymap3r_ros.commands.{command}")
    except ModuleNotFoundError as error:
        if command not in ROS_COMMANDS or error.name is None or error.name.startswith("raymap3r_ros"):
            raise
        raise Raymap3rError(
            f"the {command} needs ROS 2 ({error}); source your ROS installation, or see README.md for the one on PyPI"
        ) from error


def _flag_words(text: str, args: argparse.Namespace) -> str:
    """An error message with flags (`--size`) in place of options' names (`image_size`)."""
    # Launch arguments, or parameters of a running node, have no flags.
    if getattr(args, "launched", False) or getattr(args, "node", ""):
        return text
    return importlib.import_module("raymap3r_ros.commands.arguments").flag_words(text, vars(args))


if __name__ == "__main__":
    sys.exit(main())
