"""Weighted median."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted medians (B,) of values (B, N) with weights (B, N) of at least 0.

    The lower of the two middle values where there are two. NaN if all weights are 0.
    """
    ordered, order = values.sort(dim=1)
    share = weight.gather(1, order).cumsum(1)
    total = share[:, -1:]
    middle = (share < total / 2).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
    return torch.where(total > 0, ordered.gather(1, middle), torch.nan)[:, 0]
