"""The command `raymap3r`: finds the command's module in `commands/`, and maps errors to exit statuses."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import logging
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from raymap3r_ros import __version__
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.signals import INTERRUPTED
from raymap3r_ros.text import LONGEST_ERROR, PrintableFormatter, RepeatFilter, printable

# Module in `commands/` and help. Modules import PyTorch, those of ROS_COMMANDS also rclpy, so that only the module of
# the command in use is imported.
COMMANDS = {
    "run": "process a video, a folder of images or a ROS 2 bag",
    "convert": "convert the public checkpoint to a safetensors file",
    "render": "write synthetic sequences with ground truth",
    "train": "train a network on rendered worlds",
    "evaluate": "compare the update rules with ground truth",
    "demo": "play a clip into the node in ROS 2 and check its outputs",
    "replay": "play a ROS 2 bag into the node and report",
}
ROS_COMMANDS = ("demo", "replay")
FAILED = 2  # exit status of every error with a message of this package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. An expected error is printed as one line on stderr.

    `arguments`: None for those of the process, which is then expected to end with this status.
    """
    try:
        return _run(arguments)
    finally:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would kill the process or change its status
            gc.freeze()  # otherwise Python searches PyTorch for reference cycles at exit: half a second of CPU time


def _run(arguments: Sequence[str] | None) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("raymap3r: %(levelname)s: %(message)s"))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.addLevelName(logging.WARNING, "warning")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be in another encoding
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        args = build_parser(arguments).parse_args(arguments)
        return args.run(args)
    except (Raymap3rError, OSError) as error:
        print(f"raymap3r: error: {printable(error, LONGEST_ERROR, lines=True)}", file=sys.stderr)
    except RuntimeError as error:
        if not _is_out_of_gpu_memory(error):
            raise
        print("raymap3r: error: out of GPU memory; try a smaller --size or --precision bfloat16", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for `arguments`. Only the command named there gets its own arguments.

    Raises Raymap3rError if that command needs ROS 2 and it is not available.
    """
    parser = argparse.ArgumentParser(
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
        return importlib.import_module(f"raymap3r_ros.commands.{command}")
    except ModuleNotFoundError as error:
        if command not in ROS_COMMANDS or error.name is None or error.name.startswith("raymap3r_ros"):
            raise
        raise Raymap3rError(
            f"the {command} needs ROS 2 ({error}); source your ROS installation, or see README.md for the one on PyPI"
        ) from error


def _is_out_of_gpu_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


if __name__ == "__main__":
    sys.exit(main())
