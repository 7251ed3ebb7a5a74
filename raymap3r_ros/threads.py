"""CPU threads of PyTorch."""

from __future__ import annotations

import os

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # each sets how threads of OpenMP wait


def wait_passively() -> None:
    """Let PyTorch's threads sleep while they wait for each other, unless the user has chosen how they wait.

    By default they first compute in a loop for milliseconds. Beside other programs, those that a thread waits for may
    not be running meanwhile. Has an effect only before PyTorch is imported.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
