#!/usr/bin/env python3
"""Draw docs/overview.png: predictions of the shipped weights `one_office` on images that they were not trained on.

    python docs/overview_picture.py

The images are those of `raymap3r demo --clip movers`: of a real office, with rendered movers.
"""

from pathlib import Path

import torch

from raymap3r_ros.clients.clips import movers
from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.preview import DepthRange, draw_panels
from raymap3r_ros.network import load_network
from raymap3r_ros.streaming import Stream, StreamOptions

SHOWN = 30  # frame of the clip


def main() -> None:
    torch.set_grad_enabled(False)
    clip = movers(SHOWN + 1)
    stream, colors = Stream(load_network(clip.checkpoint), StreamOptions()), DepthRange()
    for frame in clip.frames:
        result = stream.step(frame.image, stamp=frame.stamp, intrinsics=clip.intrinsics, motion=True)
        depth, dynamic_map, mask = result.numpy("depth", "dynamic_map", "dynamic_mask").values()
        span = colors.update(depth)
    caption = f"frame {SHOWN}: predictions of {clip.checkpoint}; {clip.note}"
    row = draw_panels(frame.image, depth, dynamic_map, mask, caption, depth_range=span)
    write_image(Path(__file__).with_name("overview.png"), row)


if __name__ == "__main__":
    main()
