"""The device that the network runs on, and the CPU's threads."""

from __future__ import annotations

import os

import torch
from torch import nn

from raymap3r_ros.errors import OptionError

_SMALL = 50_000_000  # parameters


def choose_device(name: str) -> torch.device:
    """The device with this name: auto (a GPU if available), cpu, cuda or cuda:N.

    Raises OptionError with the available devices.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    allowed = ["auto", "cpu", *(["cuda", *gpus] if gpus else [])]
    if name not in allowed:
        raise OptionError(f"device is {name!r}; on this machine there are: {', '.join(allowed)}")
    return torch.device(name)


def is_small(network: nn.Module) -> bool:
    """Whether operations are so short that the cost of starting each of them counts on a CPU."""
    return sum(parameter.numel() for parameter in network.parameters()) <= _SMALL


def choose_threads(network: nn.Module, spare: int = 0) -> None:
    """Set the number of threads of each operation on a CPU, unless the user has set it with OMP_NUM_THREADS.

    A small network gets one: its operations end before a second thread is awake. Others get all cores but `spare`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if is_small(network) else max(1, len(os.sched_getaffinity(0)) - spare))
