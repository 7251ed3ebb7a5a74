"""Arguments of the subcommands of `raymap3r evaluate` that run update rules."""

from __future__ import annotations

import argparse

from raymap3r_ros.commands.arguments import add_checkpoint, path
from raymap3r_ros.evaluation.plan import EvaluationPlan
from raymap3r_ros.ray_pool import HERE
from raymap3r_ros.streaming import RULES


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
