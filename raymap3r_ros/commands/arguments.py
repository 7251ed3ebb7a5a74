"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from raymap3r_ros.network import DEFAULT_CHECKPOINT, PRESETS, shipped_weights
from raymap3r_ros.options import Options, build_options, option_fields

# Short names for options that are typed often; all others have the name of their field.
SHORT_NAMES = {"update_rule": "rule", "image_size": "size"}


def add_options(group: Any, options: type, leave_out: Sequence[str] = (), defaults: Any = None) -> None:
    """Add an argument for every field created by `option`; a group becomes a prefix (`mask.high`: --mask-high).

    `defaults`: an instance without groups whose values replace the default values.
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
            type=boolean if isinstance(default, bool) else type(default),
            default=default,
            choices=meta["choices"] or None,
            metavar=None if meta["choices"] else type(default).__name__.upper(),
            help=f"{meta['help']} (default: {default}{limits})".replace("%", "%%"),
        )


def read_options(args: argparse.Namespace, options: type[Options]) -> Options:
    """Return the dataclass of the arguments that `add_options` added; those left out have their default value.

    Raises OptionError for values that are not allowed.
    """
    return build_options(options, lambda name, item: getattr(args, name, item.default))


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
        help=f"weights: a .safetensors or .pth file; {', '.join(shipped_weights())}, part of this package; or "
        f"{' or '.join(PRESETS)}, untrained, only to test that everything runs (default: %(default)s)",
    )


def boolean(text: str) -> bool:
    """Parse "true" or "false", as in YAML and ROS parameters."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text == "true"


def size(text: str) -> tuple[int, int]:
    """Parse WxH, pixels; return (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height in pixels, such as 320x240")
    return int(match[2]), int(match[1])


def _flag(name: str) -> str:
    return "--" + SHORT_NAMES.get(name, name).replace("_", "-").replace(".", "-")
