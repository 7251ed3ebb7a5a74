"""What `~/save` writes: a new folder, which is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from raymap3r_ros.io.ply import write_ply
from raymap3r_ros.io.tum import write_tum

DEFAULT_FOLDER = "~/.ros/raymap3r"


@dataclass(frozen=True)
class Saved:
    """All that is written, in the world frame and in metres."""

    trajectories: dict[str, tuple[np.ndarray, np.ndarray]]  # by name: stamps (n,) nanoseconds, poses (n, 7), see below
    points: np.ndarray | None  # (n, 3) of the static map; None where none was made
    colors: np.ndarray | None  # (n, 3) uint8 RGB
    settings: str  # YAML, a parameter file of the node


def save(output_dir: str, saved: Saved) -> Path:
    """Write into a new folder of `output_dir`, named by the time of day; the folder.

    Poses are x y z and a quaternion x y z w. Raises OSError where it cannot be written; nothing is left over then,
    and whoever is killed half-way leaves a folder whose name begins with a dot.
    """
    try:
        parent = Path(output_dir).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise OSError(f"{output_dir}: {error}") from error
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".partial-{os.getpid()}-{time.monotonic_ns()}"
    partial.mkdir()
    try:
        for name, (stamps, poses) in saved.trajectories.items():
            write_tum(partial / f"{name}.txt", stamps, poses)
        if saved.points is not None:
            write_ply(partial / "static_map.ply", saved.points, saved.colors)
        (partial / "settings.yaml").write_text(saved.settings)
        for file in partial.iterdir():
            _flush(file)
        return _rename(partial, parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(file: Path) -> None:
    """Have a file on the disk before its folder gets its name, or a loss of power could leave it empty."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _rename(partial: Path, wished: Path) -> Path:
    """Give a folder its name, or a numbered one where two are saved in one second."""
    for number in range(1, 1000):
        folder = wished if number == 1 else wished.with_name(f"{wished.name}_{number}")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        else:
            return folder
    raise FileExistsError(f"{wished}: there are a thousand folders of this name")
