"""The results of a run in a window of OpenCV."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from raymap3r_ros.errors import Raymap3rError

TITLE = "raymap3r (q: quit)"
_QUIT_KEYS = {ord("q"), ord("Q"), 27}  # Escape
_HINT = "show the results with --view, or write the preview and look at that"


class Window:
    """Shows a row of panels per frame. Used in a `with` block.

    Raises Raymap3rError if this OpenCV cannot open windows, or without a display.
    """

    def __init__(self) -> None:
        self.quit = False  # the user has pressed q or closed the window
        # The window systems of OpenCV end the process without a display, so it is checked before.
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise Raymap3rError(f"--window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set; {_HINT}")
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise Raymap3rError(
                f"--window: OpenCV {cv2.__version__} was built without windows; {_HINT}, or replace "
                "opencv-python-headless by opencv-python"
            ) from error

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def show(self, row: np.ndarray) -> None:
        """Show a picture (h, w, 3) uint8 RGB, and react to keys."""
        cv2.imshow(TITLE, cv2.cvtColor(row, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.quit = self.quit or key in _QUIT_KEYS or closed
