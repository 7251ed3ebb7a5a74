#!/usr/bin/env python3
"""Draw docs/keyframes.png: path and map of a sequence of the suite `revisit` from above, without and with keyframes.

    python docs/keyframes_picture.py

It takes some minutes.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from raymap3r_ros.evaluation.metrics import umeyama
from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.preview import BACKGROUND, FAINT_TEXT, GAP, TEXT
from raymap3r_ros.network import choose_threads, load_network
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.streaming.stream_options import KeyframeOptions
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.suites import Frame

SEQUENCE = 6  # whose errors, without and with keyframes, are the closest to the means over all sequences
SIDE = 440  # pixels of a panel
HEIGHTS = (0.4, 1.6)  # metres above the floor; points in between show walls and furniture
EVERY = 10  # frames of the map
MARGIN = 1.2  # around the true scene
TITLE_HEIGHT = 40
TRUE_PATH, PATH = (70, 200, 110), (235, 70, 60)


def run(frames: list[Frame], keyframes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions (T, 3), points (N, 3) and colours (N, 3) of a stream, in the true world by one SE(3)."""
    network = load_network("one_room")
    choose_threads(network)
    stream = Stream(network, StreamOptions(keyframes=KeyframeOptions(size=keyframes)))
    poses, points, colors = [], [], []
    for index, frame in enumerate(frames):
        result = stream.step(frame.image, intrinsics=frame.intrinsics, motion=index % EVERY == 0)
        pose = result.pose.double().numpy()
        poses.append(pose)
        if index % EVERY == 0:
            static = ~result.dynamic_mask.numpy()
            points.append(result.points.numpy()[static] @ pose[:3, :3].T + pose[:3, 3])
            colors.append(result.image.numpy()[static])
    path = np.stack(poses)[:, :3, 3]
    _, rotation, translation = umeyama(path, np.stack([frame.pose[:3, 3] for frame in frames]), scaled=False)
    return path @ rotation.T + translation, np.concatenate(points) @ rotation.T + translation, np.concatenate(colors)


def draw(title: str, frames: list[Frame], keyframes: int) -> Image.Image:
    """Return one panel."""
    path, points, colors = run(frames, keyframes)
    truth = np.stack([frame.pose[:3, 3] for frame in frames])
    corners = np.array([function(true_points(frames)[:, :2], axis=0) for function in (np.min, np.max)])
    middle, extent = corners.mean(0), np.ptp(corners, axis=0).max() / 2 * MARGIN

    def pixels(world: np.ndarray) -> np.ndarray:
        return ((world[:, :2] - middle) * (1, -1) / extent + 1) / 2 * SIDE

    panel = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    shown = (points[:, 2] > HEIGHTS[0]) & (points[:, 2] < HEIGHTS[1])
    column, row = pixels(points[shown]).astype(int).T
    inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
    panel[row[inside], column[inside]] = colors[shown][inside]
    picture = Image.new("RGB", (SIDE, SIDE + TITLE_HEIGHT), BACKGROUND)
    picture.paste(Image.fromarray(panel), (0, TITLE_HEIGHT))
    pen = ImageDraw.Draw(picture)
    for positions, color in ((truth, TRUE_PATH), (path, PATH)):
        pen.line([(x, y + TITLE_HEIGHT) for x, y in pixels(positions)], fill=color, width=1)
    error = np.sqrt(((path - truth) ** 2).sum(1).mean())
    pen.text((6, 4), title, TEXT)
    pen.text((6, 20), f"ATE {error:.2f} m; green: true path, red: predicted", FAINT_TEXT)
    return picture


def true_points(frames: list[Frame]) -> np.ndarray:
    """Return some points (N, 3) of the true static scene."""
    height, width = frames[0].static_depth.shape
    rays = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    chosen = []
    for frame in frames[:: len(frames) // 50]:
        slopes = (rays - frame.intrinsics[:2, 2]) / frame.intrinsics[[0, 1], [0, 1]]
        local = np.concatenate((slopes, np.ones((len(slopes), 1))), axis=1) * frame.static_depth.reshape(-1, 1)
        chosen.append(local @ frame.pose[:3, :3].T + frame.pose[:3, 3])
    return np.concatenate(chosen)


def main() -> None:
    frames = list(suite_sequence("revisit", SEQUENCE, world="one_room", size=(96, 128)).frames())
    panels = [draw("without keyframes", frames, 0), draw("with keyframes (default)", frames, 32)]
    canvas = Image.new("RGB", (2 * SIDE + GAP, panels[0].height), BACKGROUND)
    for place, panel in enumerate(panels):
        canvas.paste(panel, (place * (SIDE + GAP), 0))
    write_image(Path(__file__).with_name("keyframes.png"), np.asarray(canvas))


if __name__ == "__main__":
    main()
