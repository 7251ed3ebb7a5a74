"""The decision "this pixel moves".

Staticness is relative: half of every image lies under its median, also where nothing moves. Here the evidence is
absolute. A mover stands in front of the static scene, so its pixels are *nearer* than the ray branch's answer. The
log ratio of the two depths is measured against its own noise: centre and spread come from its shortest half-like
interval (the `shorth`, Rousseeuw and Leroy 1988), which movers of up to about half of the image do not shift, and
which also takes out a common factor between the two branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.streaming.options import MaskOptions

_SHARE = 0.4  # of the pixels in the interval; movers may cover the rest
_HALF_WIDTH = 0.5244  # of that interval on a unit normal distribution
_SAMPLES = 8192  # pixels looked at: more do not change the estimate


def motion_score(depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions) -> tuple[Tensor, Tensor]:
    """How much nearer (B, H, W) each pixel is than the static scene: in noise units, and as a log ratio.

    `trusted` (B, H, W) bool are the pixels whose two depths mean something; the others get 0.
    """
    ratio = (ray_depth.clamp_min(1e-6) / depth.clamp_min(1e-6)).log()
    trusted = trusted & torch.isfinite(ratio)
    ratio = torch.where(trusted, ratio, 0.0)
    centre, spread = shorth(ratio.flatten(1), trusted.flatten(1))
    nearer = torch.where(trusted, ratio - centre[:, None, None], 0.0)
    return nearer / spread.clamp_min(options.noise_floor)[:, None, None], nearer


def shorth(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (B,) and standard deviation (B,) of the bulk of values (B, K), from its shortest interval."""
    stride = max(1, values.shape[1] // _SAMPLES)
    values, valid = values[:, ::stride], valid[:, ::stride]
    ordered = torch.where(valid, values, torch.inf).sort(dim=1).values
    span = (valid.sum(1, keepdim=True) * _SHARE).long().clamp_min(1)
    last = torch.arange(ordered.shape[1], device=values.device) + span
    width = ordered.gather(1, last.clamp(max=ordered.shape[1] - 1)) - ordered
    width = torch.where((last < ordered.shape[1]) & torch.isfinite(width), width, torch.inf)
    best = width.argmin(dim=1, keepdim=True)
    low = ordered.gather(1, best)[:, 0]
    high = ordered.gather(1, (best + span).clamp(max=ordered.shape[1] - 1))[:, 0]
    centre, spread = (low + high) / 2, (high - low) / (2 * _HALF_WIDTH)
    known = torch.isfinite(centre)
    return torch.where(known, centre, 0.0), torch.where(known, spread, 0.0)


def moving_mask(depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions) -> Tensor:
    """(B, H, W) bool: the pixels that move.

    Pixels over `high` noise units are sure and grow through connected ones over `low`, at most `reach` steps of two
    pixels; both must be nearer than the static scene by `min_ratio`. Specks, then holes, under `min_width` go.
    """
    score, nearer = motion_score(depth, ray_depth, trusted, options)
    far_enough = nearer > torch.log1p(nearer.new_tensor(options.min_ratio))
    # Pooling works on float planes: 1 = yes.
    weak = ((score > options.low) & far_enough).float()[:, None]
    mask = ((score > options.high) & far_enough).float()[:, None]
    # A speck must not seed a region, so sure pixels are opened before they grow.
    mask = _open(mask, options.min_width)
    for _ in range(options.reach):
        mask = _dilate(mask, 5) * weak
    mask = _open(mask, options.min_width)
    return _close(mask, options.min_width)[:, 0] > 0


def _dilate(mask: Tensor, size: int) -> Tensor:
    return F.max_pool2d(mask, size, stride=1, padding=size // 2)


def _erode(mask: Tensor, size: int) -> Tensor:
    return 1 - _dilate(1 - mask, size)


def _open(mask: Tensor, size: int) -> Tensor:
    return _dilate(_erode(mask, size), size) if size > 1 else mask


def _close(mask: Tensor, size: int) -> Tensor:
    return _erode(_dilate(mask, size), size) if size > 1 else mask
