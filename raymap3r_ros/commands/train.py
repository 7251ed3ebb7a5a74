"""`raymap3r train`: train a network on rendered worlds or on a recording."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import add_device, add_options, path, read_options
from raymap3r_ros.network import choose_device
from raymap3r_ros.text import printable, size_text
from raymap3r_ros.training import RECIPES, RECORDING, TrainOptions, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r train`."""
    parser.description = (
        "Train a network on rendered worlds or on a recording of a real place. Ctrl-C stops and saves; the same "
        "command then continues. To use several processes, of one GPU or one CPU core each: torchrun "
        "--nproc-per-node N --no-python raymap3r train ..."
    )
    recipes = parser.add_subparsers(required=True, metavar="RECIPE")
    for name, (help_text, options) in RECIPES.items():
        what = f"for {help_text}"
        recipe = recipes.add_parser(name, help=what, description=f"Train `{name}`, {what}.")
        recipe.set_defaults(recipe=name)
        recipe.add_argument("--out", metavar="DIR", type=path, required=True, help="folder of the run")
        if options.world == RECORDING:
            what = "folder of the recording, in the TUM RGB-D layout"
            recipe.add_argument("--data", metavar="DIR", type=path, required=True, help=what)
        recipe.add_argument("--weights", metavar="FILE", type=path, help="weights (.safetensors) to start from")
        recipe.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
        add_device(recipe)
        add_options(recipe.add_argument_group("options"), TrainOptions, defaults=options)


def run(args: argparse.Namespace) -> int:
    """Train a network; return the exit status."""
    weights = train(
        read_options(args, TrainOptions), args.out, args.recipe, choose_device(args.device), start=args.weights,
        data=getattr(args, "data", None), seconds=args.seconds,
    )  # fmt: skip
    if weights is not None:
        print(f"{printable(weights)}: {size_text(weights.stat().st_size)}")
    return 0
