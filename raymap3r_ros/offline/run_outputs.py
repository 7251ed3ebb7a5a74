"""Which results a run has."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.offline.rerun_view import RerunView
from raymap3r_ros.offline.result_folder import DEPTH_FOLDER, MASK_FOLDER
from raymap3r_ros.offline.window import Window


@dataclass(frozen=True)
class RunOutputs:
    """The results of a run beside trajectory, intrinsics and summary, which are always written.

    What no result needs is not computed.
    """

    depth: bool = True
    masks: bool = True  # written only if motion is estimated
    cloud: bool = True
    preview: bool = True
    view: RerunView | None = None
    window: Window | None = None
    memory: bool = False  # the keyframes of the last world, for another run or the node
    motion: bool = True  # False: motion is not estimated, and moving objects are part of the static scene

    @property
    def motion_estimated(self) -> bool:
        """Whether dynamic map and mask are computed: they are allowed, and a result shows or uses them."""
        return self.motion and (self.masks or self.scene_built or self.window is not None)

    @property
    def masks_written(self) -> bool:
        """Whether there is a file for each mask."""
        return self.masks and self.motion_estimated

    @property
    def subfolders(self) -> list[str]:
        """Names of the folders with a file for each frame."""
        return [DEPTH_FOLDER] * self.depth + [MASK_FOLDER] * self.masks_written

    @property
    def scene_built(self) -> bool:
        """Whether frames are merged into a static scene, which preview.png and the view also show."""
        return self.cloud or self.preview or self.view is not None
