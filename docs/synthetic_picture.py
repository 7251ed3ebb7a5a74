#!/usr/bin/env python3
"""Draw docs/synthetic.png: one frame of each suite, as `raymap3r render` writes them.

python docs/synthetic_picture.py
"""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.preview import BACKGROUND, FAINT_TEXT, GAP, TEXT, DepthRange, color_depth, overlay_mask
from raymap3r_ros.synthetic import SUITES, suite_sequence

SIZE = (120, 160)  # height, width of a panel
INDEX = 7  # sequence that is shown
FRAMES = 30  # candidates; the one whose moving share is closest to the mean is shown
TITLES = ("image", "depth", "static_depth", "mask")
TITLE_HEIGHT = 22


def row(suite: str) -> tuple[str, np.ndarray]:
    """Return a line of text and the panels (h, w, 3) of one suite."""
    sequence = suite_sequence(suite, INDEX, size=SIZE)
    frames = list(islice(sequence.frames(), FRAMES))
    shares = np.array([frame.moving.mean() for frame in frames])
    frame = frames[int(np.abs(shares - shares.mean()).argmin())]
    span = DepthRange().update(frame.depth)
    panels = (
        frame.image,
        color_depth(frame.depth, *span),
        color_depth(frame.static_depth, *span),
        overlay_mask(frame.image // 2, frame.moving),
    )
    gap = np.full((SIZE[0], GAP, 3), BACKGROUND, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    text = (
        f"{suite}: {SUITES[suite].help}  |  {sequence.name}, {frame.stamp:.1f} s, depth {span[0]:.1f} to "
        f"{span[1]:.1f} m, {100 * frame.moving.mean():.1f} % moving"
    )
    return text, np.concatenate(parts, axis=1)


def main() -> None:
    # The longer suites look like `long`.
    shown = [name for name, suite in SUITES.items() if suite.sequences > INDEX and not suite.kidnapped]
    rows = [row(suite) for suite in shown]
    step = TITLE_HEIGHT + SIZE[0] + GAP
    width = rows[0][1].shape[1]
    canvas = Image.new("RGB", (width, TITLE_HEIGHT + step * len(rows)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for position, title in enumerate(TITLES):
        draw.text((6 + position * (SIZE[1] + GAP), 4), title, TEXT)
    for number, (text, panels) in enumerate(rows):
        top = TITLE_HEIGHT + number * step
        draw.text((6, top + 5), text, FAINT_TEXT)
        canvas.paste(Image.fromarray(panels), (0, top + TITLE_HEIGHT))
    write_image(Path(__file__).with_name("synthetic.png"), np.asarray(canvas))


if __name__ == "__main__":
    main()
