"""The device that the network runs on."""

from __future__ import annotations

import torch

from raymap3r_ros.errors import OptionError


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
