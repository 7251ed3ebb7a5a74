"""`raymap3r demo`: play a clip into the node and check its outputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from raymap3r_ros.clients import demo
from raymap3r_ros.clients.clips import CLIPS, DEFAULT_CLIP, SHORT
from raymap3r_ros.commands.arguments import path
from raymap3r_ros.node.node_options import NodeOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r demo`."""
    parser.description = (
        "Start the node as its own process, play a clip into it over DDS as a camera would, record every output with "
        "another process, check the outputs, and write a preview. The exit status is 1 if a check fails."
    )
    played = parser.add_mutually_exclusive_group()
    played.add_argument(
        "--clip",
        choices=CLIPS,
        help="a clip of this package, compared with its ground truth. office: real images of a place that the weights "
        "one_office are trained on, of a part of the recording that they are not trained on; movers: the same images "
        f"with rendered movers; room: a rendered room (default: {DEFAULT_CLIP})",
    )
    played.add_argument(
        "input", nargs="?", type=path, metavar="INPUT", help="a video, a folder of images or a ROS 2 bag instead"
    )
    parser.add_argument("--out", type=path, default=Path("demo_out"), help="folder of the preview (default: demo_out)")
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second (default: 10)")
    parser.add_argument(
        "--frames", type=int, metavar="N", help=f"play at most N frames (default: {SHORT}, or all of the office)"
    )
    parser.add_argument(
        "--every-frame", action="store_true", help="process every frame in order, instead of always the newest"
    )
    defaults = NodeOptions()
    parser.add_argument(
        "--checkpoint", help=f"weights: a file or a name (default: those of the clip, {defaults.checkpoint} for INPUT)"
    )
    parser.add_argument("--device", default=defaults.device, help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return demo.run(args)
