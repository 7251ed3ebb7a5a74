"""Staticness: the main branch compared with the ray branch (arXiv 2603.20588, dual-branch section).

Discrepancy is per pixel. Staticness is relative to the rest of the image, per pixel and per state token: near 1 where
the branches agree best, near 0 where they agree least.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.streaming.method import Method


def discrepancy(depth: Tensor, ray_depth: Tensor, ray_confidence: Tensor, method: Method) -> Tensor:
    """|z_main - z_ray| / |z_main| (B, H, W); 0 where the ray branch is not confident, or not finite."""
    delta = (depth - ray_depth).abs() / depth.abs().clamp_min(1e-6)
    return torch.where(torch.isfinite(delta) & (ray_confidence >= method.min_ray_confidence), delta, 0.0)


def confidence_weight(confidence: Tensor, ray_confidence: Tensor) -> Tensor:
    """log of the smaller confidence, from 0 to 1 over each image: (B, H, W)."""
    weight = torch.minimum(confidence, ray_confidence).log()
    low, high = weight.amin((1, 2), keepdim=True), weight.amax((1, 2), keepdim=True)
    return (weight - low) / (high - low + 1e-6)


def relative_staticness(values: Tensor, sharpness: float) -> Tensor:
    """(B, K) -> sigmoid of how far each value lies below the median of its row, in interquartile ranges."""
    ordered = values.sort(dim=1).values
    low, middle, high = (quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    slope = sharpness / (high - low).clamp_min(1e-6)
    return torch.sigmoid(slope[:, None] * (middle[:, None] - values))


def quantile(ordered: Tensor, share: float) -> Tensor:
    """As `torch.quantile` (B,) of ascending rows (B, K), for any K and without a GPU synchronisation."""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)


def pixel_staticness(delta: Tensor, weight: Tensor, method: Method) -> Tensor:
    """(B, H, W) from discrepancy and confidence weight (B, H, W).

    Pixels of low confidence are reduced to a half, then a 3 x 3 mean is taken.
    """
    staticness = relative_staticness(delta.flatten(1), method.pixel_sharpness).view_as(delta)
    least, size = method.uncertain_pixel_staticness, method.pixel_window
    weighted = (staticness * (least + (1 - least) * weight))[:, None]
    return F.avg_pool2d(weighted, size, stride=1, padding=size // 2)[:, 0]


def pool_to_tokens(delta: Tensor, weight: Tensor, grid: tuple[int, int], pooling: str) -> Tensor:
    """Weighted mean discrepancy of each image token: (B, N).

    `patch` pools over the token's own pixels. `raster` pools over the same number of consecutive pixels of the
    flattened image, as the published code does: these are not the pixels that the token's attention refers to.
    """
    planes = torch.stack((weight * delta, weight), dim=1)
    if pooling == "raster":
        pooled = F.adaptive_avg_pool1d(planes.flatten(2), grid[0] * grid[1])
    else:
        pooled = F.adaptive_avg_pool2d(planes, grid).flatten(2)
    return pooled[:, 0] / pooled[:, 1].clamp_min(1e-6)


def project_on_state(attention: list[tuple[Tensor, Tensor]], token_delta: Tensor) -> Tensor:
    """Mean of `token_delta` (B, N) under each state token's attention to the image tokens: (B, S).

    Attention without the pose token, averaged over heads and layers. It is computed as one attention over all layers
    with the discrepancy as its value, so no (S, N) matrix exists.
    """
    q = torch.cat([q for q, _ in attention], dim=1)  # (B, layers x heads, S, D)
    k = torch.cat([k[:, :, 1:] for _, k in attention], dim=1)
    # One column would suffice, but fused kernels need values as wide as keys.
    values = token_delta.to(k.dtype)[:, None, :, None].expand_as(k).contiguous()
    return F.scaled_dot_product_attention(q, k, values)[..., 0].float().mean(1)


def token_staticness(projection: Tensor, method: Method) -> Tensor:
    """(B, S, 1) from the discrepancy that each state token attends to, (B, S)."""
    return relative_staticness(projection, method.token_sharpness)[..., None]


def static_share(attention: list[tuple[Tensor, Tensor]], mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, S, 1) share of each state token's attention on static pixels, from a dynamic mask (B, H, W).

    Unlike `token_staticness` it is absolute: 1 in a static scene.
    """
    dynamic = F.adaptive_avg_pool2d(mask.float()[:, None], grid).flatten(1)
    return 1 - project_on_state(attention, dynamic)[..., None]
