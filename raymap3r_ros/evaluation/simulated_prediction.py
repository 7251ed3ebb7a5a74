"""Predictions of the network, simulated from exact geometry. `noise_study` describes the errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.synthetic import Rendering

_SPREAD = ((0.25, 40), (0.42, 8), (0.20, 3), (0.13, 1))  # share of the variance, size in pixels
_BLUR, _RAY_BLUR = 1.0, 3.0  # pixels, standard deviation
_GHOST = 0.25  # share of a moving object's log depth in the ray branch
_FACTOR = 0.1  # standard deviation of the log factor between the branches


@dataclass(frozen=True)
class SimulatedPrediction:
    """Simulated output of the network for B frames: main branch and ray branch."""

    depth: Tensor  # (B, H, W) metres
    ray_depth: Tensor  # (B, H, W)
    confidence: Tensor  # (B, H, W) at least 1
    ray_confidence: Tensor  # (B, H, W)


def depth_error(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(count, H, W) errors of unit variance, with parts of several sizes."""
    total = torch.zeros(count, *size)
    for variance, pixels in _SPREAD:
        part = _blobs(count, size, pixels, generator)
        total += math.sqrt(variance) * part / part.std()
    return total


def _blobs(count: int, size: tuple[int, int], pixels: int, generator: torch.Generator) -> Tensor:
    """(count, H, W) random values that vary on a scale of `pixels`."""
    grid = max(1, size[0] // pixels), max(1, size[1] // pixels)
    coarse = torch.randn(count, 1, *grid, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=False)[:, 0]


def _blurred(values: Tensor, sigma: float) -> Tensor:
    """(B, H, W) values blurred by a Gaussian of `sigma` pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(values[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def simulate_prediction(seen: Rendering, noise: float, generator: torch.Generator) -> SimulatedPrediction:
    """Predictions for every frame of B sequences (B, F, H, W), as (B F, H, W), with this relative error of depth."""
    depth, static, moving = (plane.flatten(0, 1) for plane in (seen.depth, seen.static_depth, seen.moving))
    count, size = len(depth), depth.shape[1:]
    error, ray_error = (depth_error(count, size, generator) for _ in range(2))
    factor = _FACTOR * torch.randn(count, 1, 1, generator=generator)
    remembered = static.log() + _GHOST * moving * (depth / static).log()
    # Confidence is correlated with the error, but not completely.
    confidence, ray_confidence = (
        1 + torch.exp(1.5 - 0.5 * e.abs() + 0.5 * _blobs(count, size, 20, generator)) for e in (error, ray_error)
    )
    return SimulatedPrediction(
        depth=(_blurred(depth.log(), _BLUR) + noise * error).exp(),
        ray_depth=(_blurred(remembered, _RAY_BLUR) + noise * ray_error + factor).exp(),
        confidence=confidence,
        ray_confidence=ray_confidence,
    )
