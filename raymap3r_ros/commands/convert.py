"""`raymap3r convert`: convert a checkpoint to safetensors."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import path
from raymap3r_ros.errors import InputError
from raymap3r_ros.network import STORED_DTYPES, convert_checkpoint
from raymap3r_ros.output_files import check_output_file, check_outputs
from raymap3r_ros.text import printable, size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r convert`."""
    parser.description = (
        "Convert the public CUT3R checkpoint (.pth) to this package's safetensors format, which contains no code."
    )
    parser.add_argument("input", metavar="IN", type=path, help="the public .pth, or a .safetensors of this package")
    parser.add_argument("output", metavar="OUT", type=path, help="the .safetensors to write")
    parser.add_argument(
        "--dtype",
        choices=STORED_DTYPES,
        default="float32",
        help="float16 halves the file; mixed is 3 %% larger than float16 and keeps the weights that affect accuracy "
        "most in float32; docs/weights.md compares them (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert a checkpoint; return the exit status."""
    if args.output.suffix != ".safetensors":
        raise InputError(f"{args.output}: must end in .safetensors, by which the format is recognised")
    check_output_file(args.output)
    check_outputs([args.output], [args.input])
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output}: exists already; name another file, or allow it with --overwrite")
    result = convert_checkpoint(args.input, args.output, args.dtype, progress=True)
    size = f"{result.parameters / 1e6:.1f} M parameters as {args.dtype}, {size_text(result.bytes)}"
    print(f"{printable(args.output)}: {size}")
    if any(result.rounding.values()):
        errors = ", ".join(f"{part} {error:.1e}" for part, error in result.rounding.items())
        print(f"relative rounding error of the weights: {errors}")
    return 0
