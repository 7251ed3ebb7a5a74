"""The dynamic mask: which pixels move.

Staticness is relative: half of every image lies below its median, also in a static scene. Here the evidence is
absolute. A moving object stands in front of the static scene, so its pixels are *nearer* than the ray branch's
prediction. The contrast, the log ratio of the two depths, is measured against its own noise. Its centre is the densest
interval of the values (after the `shorth`, Rousseeuw and Leroy 1988): moving objects on up to about three quarters of
the image do not shift it, and it removes a common factor between the branches. The noise unit comes only from the
values below the centre, where no moving object is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import wrap_torch_function

from raymap3r_ros.geometry.cameras import constant
from raymap3r_ros.streaming.method import METHOD, Method
from raymap3r_ros.streaming.stream_options import MaskOptions


def contrast(
    depth: Tensor, ray_depth: Tensor, trusted: Tensor, method: Method = METHOD
) -> tuple[Tensor, Tensor, Tensor]:
    """How much nearer than the static scene each pixel is, (B, H, W), and where that is valid, (B, H, W) bool.

    That is log(ray_depth / depth), from the centre of its static part; 0 where it is not valid. `trusted` (B, H, W)
    bool marks the pixels with two meaningful depths. Also returns the `sorted_sample` (B, K) of the contrasts.
    """
    ratio = (ray_depth.clamp_min(1e-6) / depth.clamp_min(1e-6)).log()
    trusted = trusted & (ratio.abs() < torch.inf)
    ordered = sorted_sample(ratio, trusted, method)
    centre = static_centre(ordered, method)
    return torch.where(trusted, ratio - centre[:, None, None], 0.0), trusted, ordered - centre[:, None]


def static_centre(ordered: Tensor, method: Method = METHOD) -> Tensor:
    """Centre (B,) of the static part of a sorted sample (B, K) of contrasts; 0 where none is valid."""
    span = (torch.isfinite(ordered).sum(1, keepdim=True) * method.mask_share).long().clamp_min(1)
    last = torch.arange(ordered.shape[1], device=ordered.device) + span
    high = ordered.gather(1, last.clamp(max=ordered.shape[1] - 1))
    middle = (ordered + high) / 2
    # A large moving object can be denser than the static scene. But it is above it, and mostly further from 0.
    prior = 0.5 * (middle / method.mask_factor_spread).square() + middle / method.mask_nearer
    width = (high - ordered) * torch.exp(prior)
    width = torch.where((last < ordered.shape[1]) & torch.isfinite(high), width, torch.inf)
    centre = middle.gather(1, width.argmin(dim=1, keepdim=True))
    for _ in range(method.mask_shifts):
        near = (ordered - centre).abs() < _spread_below(ordered, centre, method)
        centre = torch.where(near, ordered, 0.0).sum(1, keepdim=True) / near.sum(1, keepdim=True).clamp_min(1)
    return torch.where(torch.isfinite(ordered[:, 0]) & torch.isfinite(centre[:, 0]), centre[:, 0], 0.0)


def static_noise(ordered: Tensor, method: Method = METHOD) -> Tensor:
    """Standard deviation (B,) of the static part of a sorted sample (B, K) of contrasts; 0 where none is valid."""
    spread = _spread_below(ordered, torch.zeros_like(ordered[:, :1]), method)[:, 0]
    return torch.where(torch.isfinite(spread), spread, 0.0)


def sorted_sample(values: Tensor, valid: Tensor, method: Method = METHOD) -> Tensor:
    """A sample of the valid values of each row of (B, ...), ascending, then infinities."""
    values = torch.where(valid, values, torch.inf).flatten(1)
    stride = max(1, values.shape[1] // method.mask_samples)
    return values[:, ::stride].sort(dim=1).values


def _spread_below(ordered: Tensor, centre: Tensor, method: Method) -> Tensor:
    """Standard deviation (B, 1) of ascending values (B, K), only from those below their centre (B, 1)."""
    below = (ordered < centre).sum(1, keepdim=True)
    shares = constant(tuple(1 - share for share in method.mask_quantiles), ordered.device)
    places = (below * shares).long()
    deviations = constant(method.mask_deviations, ordered.device)
    return ((centre - ordered.gather(1, places)) / deviations).amax(1, keepdim=True)


def dynamic_mask(
    depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions, method: Method = METHOD
) -> Tensor:
    """The dynamic mask (B, H, W) bool; arguments as of `contrast`.

    A region is surely dynamic where the mean contrast of a small window is above `high` noise units of such means.
    From there it grows, by at most `reach` steps, through pixels above `low` noise units of single pixels and above
    half of the contrast of the adjacent region, so that smeared edges end where the contrast is halved. Every pixel
    must be nearer than the static scene by `min_ratio`. Specks, then holes, below `min_width` are removed.
    """
    single, trusted, ordered = contrast(depth, ray_depth, trusted, method)
    unit = max(1, round(max(single.shape[1:]) / method.mask_unit))
    patch, step = _odd(method.mask_patch * unit), _odd(method.mask_step * unit)
    total, count = window_reduce(torch.stack((single, trusted.float())), patch, torch.add)
    mean = total / count.clamp_min(1)
    single_noise = _noise_unit(ordered, options, method)
    few = slice(None, None, max(1, patch // 3))  # neighbouring windows overlap
    mean_noise = _noise_unit(sorted_sample(mean[:, few, few], trusted[:, few, few], method), options, method)
    # Untrusted pixels have a contrast of 0 and are not weak.
    weak = single > (options.low * single_noise).clamp_min(math.log1p(options.min_ratio))
    highest = torch.where(weak, single / method.mask_half, 0.0)  # contrast of a region that may include this pixel
    # The contrast of the region that each pixel belongs to; 0 outside.
    region = torch.where(weak & (mean > options.high * mean_noise), mean, 0.0)
    for _ in range(options.reach):
        near = torch.maximum(method.mask_fade * window_reduce(region, step, torch.maximum), region)
        region = near.masked_fill_(near >= highest, 0.0)
    width = _odd((options.min_width - 1) * unit)
    # Opening removes specks, then closing fills holes. The two dilations in between are one of twice the reach.
    core = ~window_reduce(region <= 0, width, torch.maximum)
    return ~window_reduce(~window_reduce(core, 2 * width - 1, torch.maximum), width, torch.maximum)


def static_weight(
    depth: Tensor, ray_depth: Tensor, trusted: Tensor, options: MaskOptions, method: Method = METHOD
) -> Tensor:
    """(B, H, W) 0..1, how surely each pixel is static; arguments as of `contrast`.

    Nearer and farther count alike, so that weighted means of depth are not biased.
    """
    single, trusted, ordered = contrast(depth, ray_depth, trusted, method)
    score = single / (method.mask_static * _noise_unit(ordered, options, method))
    return trusted * torch.exp(-0.5 * score.square())


def _noise_unit(ordered: Tensor, options: MaskOptions, method: Method) -> Tensor:
    """(B, 1, 1) of a sorted sample (B, K) of contrasts, or of their means."""
    return static_noise(ordered, method).clamp_min(options.noise_floor)[:, None, None]


def _odd(length: int) -> int:
    """The odd size of a window that reaches length / 2 to either side."""
    return 2 * (length // 2) + 1


@wrap_torch_function(lambda values, *_: (values,))
def window_reduce(values: Tensor, size: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`combine` (a sum, a maximum) over the size x size window around each pixel of (..., H, W).

    `size` is odd. Pixels beyond the border count as 0 or False.
    """
    half = size // 2
    values = F.pad(values, (half, half, half, half))
    return _reduce_along(_reduce_along(values, size, -2, combine), size, -1, combine)


def _reduce_along(values: Tensor, size: int, dim: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`combine` over `size` neighbours along a dimension, which gets shorter by size - 1.

    By doubling: log2(size) passes over the image, where a pooling layer takes `size`.
    """
    length = values.shape[dim] - size + 1
    result, done, width = None, 0, 1
    while True:  # here values[i] covers i to i + width - 1
        if size & width:
            part = values.narrow(dim, done, length)
            result = part if result is None else combine(result, part)
            done += width
        if done == size:
            return result
        rest = values.shape[dim] - width
        values = combine(values.narrow(dim, 0, rest), values.narrow(dim, width, rest))
        width *= 2
