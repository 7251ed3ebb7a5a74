"""The static scenes of a run: one cloud for each world."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.io.ply import write_ply
from raymap3r_ros.mapping import StaticMap
from raymap3r_ros.mapping.static_map import REACH
from raymap3r_ros.offline.cloud import CloudOptions
from raymap3r_ros.offline.final_files import FinalFiles
from raymap3r_ros.offline.result_folder import CLOUD
from raymap3r_ros.offline.run_worlds import RunWorlds
from raymap3r_ros.streaming import StepResult

log = logging.getLogger(__name__)


@dataclass
class RunClouds:
    """Builds the clouds, and writes each when its world has ended."""

    folder: Path
    options: CloudOptions
    worlds: RunWorlds
    written: bool  # False: no files
    _clouds: dict[int, StaticMap] = field(default_factory=dict)  # of worlds that may get more frames, by their number

    @property
    def last(self) -> StaticMap | None:
        """The cloud of the world of the last written frame."""
        return self._clouds.get(self.worlds.of_frames[-1]) if self.worlds.of_frames else None

    def add(self, result: StepResult) -> None:
        """Add a written frame to the cloud of its world; write the clouds of worlds that have ended."""
        for number in self._clouds.keys() - self.worlds.unfinished(result):
            if self.written:
                self._write(number)
            del self._clouds[number]
        options, number = self.options, self.worlds.of_frames[-1]
        if number not in self._clouds:
            self._clouds[number] = StaticMap(options.voxel_size, options.max_points, whole_scene=True)
        self._clouds[number].integrate(
            result.points, result.image, result.confidence, result.dynamic_mask, result.intrinsics, result.pose,
            options,
        )  # fmt: skip

    def write_rest(self, files: FinalFiles) -> None:
        """Write the clouds of all worlds that have not ended before."""
        for number in self._clouds if self.written else ():
            with files.keeping_errors():
                self._write(number)

    def _write(self, number: int) -> None:
        name = self.worlds.name(CLOUD, number)
        cloud = self._clouds[number]
        points, colors = cloud.arrays()
        if cloud.beyond:
            reach, size = REACH * cloud.voxel_size, cloud.voxel_size
            log.warning(
                "%s lacks %d points that are more than %.4g m from the start, the reach of --voxel-size %.4g",
                name, cloud.beyond, reach, size,
            )  # fmt: skip
        elif not len(points):
            log.warning(
                "%s has no points: in all frames the confidence is below --confidence-threshold, the depth changes "
                "faster than --max-slope, or everything moves",
                name,
            )
        write_ply(claim(self.folder, name), points, colors)
