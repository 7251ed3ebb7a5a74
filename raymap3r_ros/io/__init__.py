"""Recordings in, files out. One file per format; formats of recordings (`formats/`) are found by themselves.

Does not need ROS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymap3r_ros.io.live import open_input
    from raymap3r_ros.io.recording import Frame, Recording, open_recording

__all__ = ["Frame", "Recording", "open_input", "open_recording"]


def __getattr__(name: str) -> Any:
    """Import on first use: the child process that reads bags starts without NumPy and OpenCV."""
    if name in __all__:
        module = "live" if name == "open_input" else "recording"
        return getattr(importlib.import_module(f"raymap3r_ros.io.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
