"""The decision "this pixel moves".

Staticness is relative: half of every image lies under its median, also where nothing moves. Here the evidence is
absolute. A mover stands in front of the static scene, so its pixels are *nearer* than the ray branch's answer. The
contrast, the log ratio of the two depths, is measured against its own noise: the centre is the densest interval of
its values (after the `shorth`, Rousseeuw and Leroy 1988), which movers of up to some three quarters of the image do
not shift and which takes out a common factor between the branches; the noise unit comes from the values below the
centre alone, where movers never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.geometry.cameras import constant
from raymap3r_ros.streaming.stream_options import MaskOptions

_SAMPLES = 4096  # pixels looked at for centre and noise unit: more do not change the estimate
_SHARE = 0.15  # of the pixels in the densest interval
_FACTOR_SPREAD = 0.4  # standard deviation of the log factor that is expected between the branches
_NEARER = 1.2  # a denser interval this much higher up is worth as much as one e times as wide
_SHIFTS = 2  # steps of the centre to the mean of what is within a standard deviation of it
_SHARES, _WITHIN = (0.683, 0.954), (1.0, 2.0)  # of a normal distribution, within so many standard deviations
_STILL = 0.5  # noise units within which a pixel passes for surely static
_PATCH = 6  # window in which a sure region is sought; like all lengths here in 1/128 of the image's long edge
_STEP = 4  # window of one step of growth
_HALF = 0.5  # a region ends where its contrast falls under this share of that next to it ...
_FADE = 0.92  # ... which counts for less with each step away


def contrast(depth: Tensor, ray_depth: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """How much nearer than the static scene each pixel is (B, H, W): log(ray_depth / depth) from its static part's
    centre; and where it counts. `trusted` (B, H, W) bool are the pixels whose two depths mean something; the others
    get 0.
    """
    ratio = (ray_depth.clamp_min(1e-6) / depth.clamp_min(1e-6)).log()
    trusted = trusted & (ratio.abs() < torch.inf)
    centre = static_centre(torch.where(trusted, ratio, 0.0).flatten(1), trusted.flatten(1))
    return torch.where(trusted, ratio - centre[:, None, None], 0.0), trusted


def static_centre(values: Tensor, valid: Tensor) -> Tensor:
    """Centre (B,) of the static part of contrasts (B, K); 0 where none is `valid`."""
    ordered = _in_order(values, valid)
    span = (torch.isfinite(ordered).sum(1, keepdim=True) * _SHARE).long().clamp_min(1)
    last = torch.arange(ordered.shape[1], device=values.device) + span
    high = ordered.gather(1, last.clamp(max=ordered.shape[1] - 1))
    middle = (ordered + high) / 2
    # A large mover can be denser than the static scene. But it is above it, and mostly further from 0.
    width = (high - ordered) * torch.exp(0.5 * (middle / _FACTOR_SPREAD).square() + middle / _NEARER)
    width = torch.where((last < ordered.shape[1]) & torch.isfinite(high), width, torch.inf)
    centre = middle.gather(1, width.argmin(dim=1, keepdim=True))
    for _ in range(_SHIFTS):
        near = (ordered - centre).abs() < _spread_below(ordered, centre)
        centre = torch.where(near, ordered, 0.0).sum(1, keepdim=True) / near.sum(1, keepdim=True).clamp_min(1)
    return torch.where(valid.any(1) & torch.isfinite(centre[:, 0]), centre[:, 0], 0.0)


def static_noise(values: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation (B,) of the static part of contrasts (B, K) from their centre; 0 where none is `valid`."""
    spread = _spread_below(_in_order(values, valid), torch.zeros_like(values[:, :1]))[:, 0]
    return torch.where(torch.isfinite(spread), spread, 0.0)


def _in_order(values: Tensor, valid: Tensor) -> Tensor:
    """A sample of the valid values of each row of (B, K), ascending, then infinities."""
    stride = max(1, values.shape[1] // _SAMPLES)
    return torch.where(valid, values, torch.inf)[:, ::stride].sort(dim=1).values


def _spread_below(ordered: Tensor, centre: Tensor) -> Tensor:
    """Standard deviation (B, 1) of values (B, K) in ascending order, from those below their centre (B, 1) alone."""
    below = (ordered < centre).sum(1, keepdim=True)
    places = (below * constant(tuple(1 - share for share in _SHARES), ordered.device)).long()
    return ((centre - ordered.gather(1, places)) / constant(_WITHIN, ordered.device)).amax(1, keepdim=True)


def moving_mask(depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions) -> Tensor:
    """(B, H, W) bool: the pixels that move.

    Where the mean contrast of a small window is over `high` noise units of such means, something surely moves. From
    there the region grows, at most `reach` steps, through pixels over `low` noise units of single pixels and over
    half of the contrast of the region next to them: smeared edges end where the contrast is halved. Everything must
    be nearer than the static scene by `min_ratio`. Specks, then holes, under `min_width` go.
    """
    single, trusted = contrast(depth, ray_depth, trusted)
    unit = max(1, round(max(single.shape[1:]) / 128))
    total, count = around(torch.stack((single, trusted.float())), _odd(_PATCH * unit), torch.add)
    mean = total / count.clamp_min(1)
    noise = _noise_unit(torch.cat((single, mean)), torch.cat((trusted, trusted)), options)
    single_noise, mean_noise = noise.chunk(2)
    # What is not trusted has a contrast of 0 and is not weak.
    weak = single > (options.low * single_noise).clamp_min(math.log1p(options.min_ratio))
    highest = torch.where(weak, single / _HALF, 0.0)  # contrast of a region that may take this pixel in
    # The contrast of the region that each pixel belongs to; 0 outside.
    region = torch.where(weak & (mean > options.high * mean_noise), mean, 0.0)
    for _ in range(options.reach):
        near = torch.maximum(_FADE * around(region, _odd(_STEP * unit), torch.maximum), region)
        region = near.masked_fill_(near >= highest, 0.0)
    width = _odd((options.min_width - 1) * unit)
    # Opened, so that specks go, then closed, so that holes go; the two dilations between are one of twice the reach.
    core = ~around(region <= 0, width, torch.maximum)
    return ~around(~around(core, 2 * width - 1, torch.maximum), width, torch.maximum)


def stillness(depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions) -> Tensor:
    """(B, H, W) 0..1: how surely a pixel is static. Nearer and farther count alike, so what is left is not biased."""
    single, trusted = contrast(depth, ray_depth, trusted)
    score = single / (_STILL * _noise_unit(single, trusted, options))
    return trusted * torch.exp(-0.5 * score.square())


def _noise_unit(values: Tensor, trusted: Tensor, options: MaskOptions) -> Tensor:
    """(B, 1, 1) of contrasts (B, H, W), or of their means."""
    noise = static_noise(values.flatten(1), trusted.flatten(1))
    return noise.clamp_min(options.noise_floor)[:, None, None]


def _odd(length: int) -> int:
    """The odd size of a window that reaches length / 2 to either side."""
    return 2 * (length // 2) + 1


def around(values: Tensor, size: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`combine` (a sum, a maximum) of size x size pixels around each of (..., H, W), `size` odd, those beyond the
    border counted as 0 or False."""
    half = size // 2
    values = F.pad(values, (half, half, half, half))
    return _neighbours(_neighbours(values, size, -2, combine), size, -1, combine)


def _neighbours(values: Tensor, size: int, dim: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`combine` of `size` neighbours along a dimension, which gets shorter by size - 1.

    By doubling: log2(size) steps over the image, where a pooling layer takes `size`.
    """
    length = values.shape[dim] - size + 1
    result, done, width = None, 0, 1
    while True:  # here values[i] has i to i + width - 1
        if size & width:
            part = values.narrow(dim, done, length)
            result = part if result is None else combine(result, part)
            done += width
        if done == size:
            return result
        rest = values.shape[dim] - width
        values = combine(values.narrow(dim, 0, rest), values.narrow(dim, width, rest))
        width *= 2
