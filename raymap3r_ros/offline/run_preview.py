"""The preview of a run: a video with a row of panels per frame, and a sheet that summarises the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from raymap3r_ros.io import preview
from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.io.png import write_image
from raymap3r_ros.io.recording import Recording
from raymap3r_ros.io.video_file import EvenSample, VideoFile
from raymap3r_ros.offline.result_folder import SHEET, VIDEO
from raymap3r_ros.offline.summary import RunSummary
from raymap3r_ros.rates import rate_text
from raymap3r_ros.streaming import StepResult, Stream
from raymap3r_ros.streaming.preprocessing import frame_image, visible_crop
from raymap3r_ros.text import counted

SHEET_ROWS = 5


class RowPainter:
    """Draws the row of panels of each frame of a run."""

    def __init__(self, recording: Recording, stream: Stream, with_motion: bool) -> None:
        self.with_motion = with_motion
        self.name = recording.short_name
        self.warning = "" if stream.network.trained else preview.UNTRAINED
        self._long_edge = stream.options.image_size or stream.network.config.image_size
        self._patch = stream.network.config.patch_size
        self._range = preview.DepthRange()

    def draw(self, image: np.ndarray, result: StepResult, seconds: float) -> np.ndarray:
        """The row of a frame. `image`: (h, w, 3) uint8 RGB as recorded; `seconds` since the first frame."""
        caption = f"{self.name}    frame {result.frame}    {seconds:.2f} s    rule {result.rule}"
        if result.reset and result.frame:
            caption += "    memory reset"
        maps = result.numpy("depth", *(("dynamic_map", "dynamic_mask") if result.motion else ()))
        height, width = image.shape[:2]
        return preview.draw_panels(
            visible_crop(image, frame_image(width, height, self._long_edge, self._patch)),
            maps["depth"],
            maps.get("dynamic_map"),
            maps.get("dynamic_mask"),
            caption,
            depth_range=self._range.update(maps["depth"]),
            warning=self.warning,
            with_motion=self.with_motion,
        )


class RunPreview:
    """The preview of a run. Used in a `with` block, at the end of which the video is complete."""

    def __init__(self, folder: Path, rate: float, painter: RowPainter) -> None:
        self._folder = folder
        self._painter = painter
        self._rows = EvenSample(4 * SHEET_ROWS)
        self._video = VideoFile(folder, VIDEO, rate)

    @property
    def files(self) -> list[str]:
        """Names of the files that are written."""
        return [SHEET, self._video.path.name]

    def __enter__(self) -> RunPreview:
        self._video.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._video.__exit__(*error)
        if self._video.path.exists():
            claim(self._folder, self._video.path.name)

    def add(self, row: np.ndarray, seconds: float) -> None:
        """Add the row of a frame; `seconds` since the first frame."""
        self._video.write(row, seconds)
        if self._rows.wants_next():
            self._rows.keep(row)

    def write_sheet(self, summary: RunSummary, positions: np.ndarray, points: np.ndarray, colors: np.ndarray) -> None:
        """Write the sheet; `positions` (n, 3), `points` (m, 3) metres, world; `colors` (m, 3) uint8."""
        options = summary.options
        moving, scene = "motion not estimated", "whole scene"
        if summary.moving_share is not None:
            moving, scene = f"{100 * summary.moving_share:.1f} % of pixels move", "static scene"
        lines = [
            f"{counted(summary.frames, 'frame')} over {summary.duration:.1f} s, {_size_text(summary.input_size)} "
            f"resized to {_size_text(summary.image_size)}",
            summary.checkpoint,
            f"rule {options['update_rule']}, router {options['router']}, smoothing {options['smoothing']}, "
            f"{summary.resets} resets",
            f"{rate_text(summary.engine_rate)} on {summary.device}",
            f"{rate_text(summary.whole_rate)} with reading and writing",
            f"{summary.path_length:.2f} m travelled, {moving}",
            f"{summary.static_points:,} points of the {scene}, voxels of {100 * summary.voxel_size:.2g} cm",
        ]
        title = self._painter.name if summary.complete else f"{self._painter.name} (stopped early)"
        # Without the motion panels, rows are twice as high.
        rows = self._rows.spread(SHEET_ROWS if self._painter.with_motion else math.ceil(SHEET_ROWS / 2))
        sheet = preview.draw_sheet(rows, positions, points, colors, title, lines, self._painter.warning)
        write_image(claim(self._folder, SHEET), sheet)


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
