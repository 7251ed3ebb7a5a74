"""Detects images of several cameras on one topic, in a recording and in the node."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from raymap3r_ros.text import listing

WINDOW = 20  # images
CHANGES = 4  # among them; a camera that restarts under another name, or a switch between two, changes less often
NAMED = 3


class CameraMix:
    """Finds images that alternate between several cameras: frame_ids (or sizes) that return. Not thread-safe."""

    def __init__(self) -> None:
        self._cameras: deque[str] = deque(maxlen=WINDOW)

    def add(self, frame: str, size: tuple[int, int] | None = None) -> str:
        """Add an image; return which cameras the last images alternate between, "" if they do not.

        Args:
            frame: its frame_id.
            size: (width, height); None if it is unknown.
        """
        self._cameras.append(f"{frame!r}" + (f" ({size[0]}x{size[1]})" if size else ""))
        changes = sum(one != other for one, other in pairwise(self._cameras))
        names = sorted(set(self._cameras))
        if changes < CHANGES or changes < 2 * (len(names) - 1):
            return ""
        return (
            f"the images alternate between the frame_ids {listing(names, NAMED)}: they come from several cameras, and "
            "poses and depth of all are mixed; use a topic, and a node or a run, for each camera"
        )
