#!/usr/bin/env python3
"""Draw docs/overview.png: the predictions of the two branches, and the dynamic map and mask computed from them.

    python docs/overview_picture.py

The scene is ray-cast here: a furnished room with a moving ball and a moving cart. The two predictions are the true
depths with 3 % of smooth noise, not a network's output: main branch with the movers, ray branch without.
"""

from pathlib import Path

import cv2
import numpy as np
import torch

from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.preview import DepthRange, color_depth, draw_panels
from raymap3r_ros.streaming import METHOD, MaskOptions
from raymap3r_ros.streaming.mask import dynamic_mask
from raymap3r_ros.streaming.staticness import confidence_weight, discrepancy, pixel_staticness

SIZE = (240, 320)
FOCAL = 240.0
ROOM = np.array([[-2.5, -1.4, -1.0], [2.5, 1.2, 6.0]])  # metres: x right, y down, z forward
FURNITURE = [
    ((-2.4, 0.3, 3.5), (-1.4, 1.2, 5.5)),
    ((1.5, -0.3, 4.6), (2.4, 1.2, 5.6)),
    ((-0.4, 0.6, 4.8), (0.9, 1.2, 5.4)),
]
CART = ((0.65, 0.55, 2.6), (1.35, 1.15, 3.3))
BALL = (np.array([-0.55, 0.15, 2.8]), 0.42)


def box_depth(rays: np.ndarray, low: tuple, high: tuple, inside: bool) -> np.ndarray:
    """Return the z at which rays (H, W, 3) of unit z from the origin meet a box; infinity if they miss it."""
    with np.errstate(divide="ignore"):
        first, second = np.array(low) / rays, np.array(high) / rays
    near = np.minimum(first, second).max(-1)
    far = np.maximum(first, second).min(-1)
    return far if inside else np.where((near < far) & (near > 0), near, np.inf)


def ball_depth(rays: np.ndarray) -> np.ndarray:
    centre, radius = BALL
    a, b = (rays**2).sum(-1), rays @ centre
    root = b**2 - a * (centre @ centre - radius**2)
    return np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def shade(rays: np.ndarray, depth: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Return checkered surfaces in the colour of their object, shaded by distance and orientation."""
    colors = np.array([(196, 186, 170), (150, 104, 70), (92, 120, 92), (120, 96, 140), (70, 110, 190), (214, 92, 60)])
    points = rays * depth[..., None]
    normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    light = 0.45 + 0.55 * np.abs(normal @ np.array([0.5, 0.7, 0.5]))
    cells = np.floor(points * 2.5 + 1e-3).sum(-1) % 2
    image = colors[thing] * (light * (0.82 + 0.18 * cells) / (1 + 0.05 * depth))[..., None]
    return np.clip(cv2.GaussianBlur(image, (3, 3), 0), 0, 255).astype(np.uint8)


def noisy(depth: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Return the depth as (1, H, W) with smooth relative noise of 3 %."""
    coarse = generator.normal(size=(15, 20)).astype(np.float32)
    noise = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(depth * np.exp(0.03 * noise)).float()[None]


def main() -> None:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    rays = np.stack(((columns - 160) / FOCAL, (rows - 120) / FOCAL, np.ones(SIZE)), axis=-1)
    static = [box_depth(rays, *ROOM, inside=True), *(box_depth(rays, *box, inside=False) for box in FURNITURE)]
    everything = [*static, box_depth(rays, *CART, inside=False), ball_depth(rays)]
    room, scene, thing = np.min(static, axis=0), np.min(everything, axis=0), np.argmin(everything, axis=0)

    generator = np.random.default_rng(7)
    depth, ray_depth = noisy(scene, generator), noisy(room, generator)
    confidence = 1 + 8 / depth
    delta = discrepancy(depth, ray_depth, confidence, METHOD)
    staticness = pixel_staticness(delta, confidence_weight(confidence, confidence), METHOD)[0].numpy()
    mask = dynamic_mask(depth, ray_depth, torch.ones_like(depth, dtype=torch.bool), MaskOptions())[0].numpy()

    image = shade(rays, scene, thing)
    span = DepthRange().update(depth[0].numpy())
    row = draw_panels(
        image, depth[0].numpy(), 1 - staticness, mask,
        "simulated predictions: true depth with 3 % of smooth noise; mask and map by this package", depth_range=span,
    )  # fmt: skip
    inset = cv2.resize(color_depth(ray_depth[0].numpy(), *span), (112, 84), interpolation=cv2.INTER_AREA)
    row = row.copy()
    top, left = 24 + 240 - 84 - 6, 324 + 320 - 112 - 6
    row[top - 2 : top + 86, left - 2 : left + 114] = 255
    row[top : top + 84, left : left + 112] = inset
    cv2.putText(
        row, "from rays", (left + 4, top + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA
    )
    write_image(Path(__file__).with_name("overview.png"), row)


if __name__ == "__main__":
    main()
