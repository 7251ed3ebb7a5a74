"""How fast the training computes, as a share of what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

_SIDE = 512  # of the matrices
_SECONDS = 0.2


def busy_seconds(device: torch.device) -> float:
    """A clock of the time spent computing: CPU time of this process, which other programs do not change, or, for a
    GPU, the time until all its work is done.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def sgemm_rate(device: torch.device) -> float:
    """Floating-point operations per second of `busy_seconds` in products of float32 matrices."""
    first, second, product = (torch.ones(_SIDE, _SIDE, device=device) for _ in range(3))
    torch.mm(first, second, out=product)  # the first call prepares the library
    started, count, spent = busy_seconds(device), 0, 0.0
    while spent < _SECONDS:
        torch.mm(first, second, out=product)
        count += 1
        spent = busy_seconds(device) - started
    return count * 2 * _SIDE**3 / spent


def count_operations(function: Callable[[], None]) -> int:
    """Floating-point operations in matrix products, convolutions and attention of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
