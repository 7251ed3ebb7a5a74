"""`raymap3r replay`: play a bag into the node and report."""

from __future__ import annotations

import argparse
from operator import attrgetter
from pathlib import Path

from raymap3r_ros.clients import replay
from raymap3r_ros.clients.bag import ReplayOptions
from raymap3r_ros.commands.arguments import add_options, add_stream_options, path, read_options, read_stream_options
from raymap3r_ros.errors import Raymap3rError
from raymap3r_ros.io.output_folder import locked_folder
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.options import option_fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r replay`."""
    parser.description = (
        "Play every image of a ROS 2 bag into a node in its own process over DDS, with /clock, and report frames, "
        "losses, speed, trajectory, and errors against the bag's ground truth. Ctrl-C ends early and reports the "
        "frames so far. The exit status is 1 if frames are missing, or if the node refused all of them."
    )
    parser.add_argument("bag", metavar="BAG", type=path, help=".mcap, .db3, or the folder of a bag")
    parser.add_argument(
        "--out",
        type=path,
        default=Path("replay_out"),
        metavar="DIR",
        help="folder of the report (default: replay_out)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the report of an earlier replay in DIR")
    parser.add_argument(
        "--node",
        default="",
        metavar="NAME",
        help="full name of a running stream node to play into, with every_frame and use_sim_time set (default: start "
        "a node)",
    )
    # Set by replay.launch.py: error messages name its arguments.
    parser.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--global-topics",
        action=argparse.BooleanOptionalAction,
        help="exchange /tf, /tf_static, /clock and /diagnostics with all nodes of the ROS domain, for RViz; the node "
        "is then called /raymap3r (default: all topics are in the namespace /raymap3r_replay; with --node: global, "
        "unless other nodes publish transforms or a clock)",
    )
    add_options(parser.add_argument_group("playing"), ReplayOptions)
    # The bag determines the others, and the preset is applied here.
    leave_out = ("every_frame", "image_transport", "preset")
    add_options(parser.add_argument_group("parameters of the node"), NodeOptions, leave_out=leave_out)
    add_stream_options(parser.add_argument_group("method"))


def run(args: argparse.Namespace) -> int:
    """Replay a bag; return the exit status."""
    # Without `preset`: the node cannot distinguish a given value from the default.
    parameters = {
        name: value
        for options in (read_options(args, NodeOptions), read_stream_options(args))
        for name, item in option_fields(type(options))
        if (value := attrgetter(name)(options)) != item.default and name != "preset"
    }
    try:
        with locked_folder(args.out):
            return replay.run(
                args.bag, read_options(args, ReplayOptions), args.out, node=args.node, parameters=parameters,
                overwrite=args.overwrite, global_topics=args.global_topics,
            )  # fmt: skip
    except Raymap3rError as error:
        raise Raymap3rError(replay.launch_words(str(error))) if args.launched else error from None
