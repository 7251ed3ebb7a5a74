"""The trajectory as KITTI has it: one line of 12 numbers per frame, the rows of a 3x4 matrix."""

from __future__ import annotations

from raymap3r_ros.io.tum import seconds_text
from raymap3r_ros.offline.export import ExportFormat, NewFile
from raymap3r_ros.offline.results import Results
from raymap3r_ros.output_files import whole_file


def _write(results: Results, new_file: NewFile) -> None:
    (world,) = results.worlds
    rows = [" ".join(map(repr, row)) for row in world.poses[:, :3].reshape(-1, 12).tolist()]
    for name, lines in (("poses.txt", rows), ("times.txt", map(seconds_text, world.stamps))):
        with whole_file(new_file(name)) as partial:
            partial.write_text("\n".join([*lines, ""]))


FORMAT = ExportFormat("kitti", "poses.txt, 3x4 matrices camera to world, and times.txt", _write, needs_images=False)
