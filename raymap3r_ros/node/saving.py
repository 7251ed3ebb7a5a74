"""Save trajectories, static map, keyframes and settings to a new folder, completely or not at all."""

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
from raymap3r_ros.network import Network
from raymap3r_ros.node.memory import STATIC_MAP, WORLD
from raymap3r_ros.stamps import rising
from raymap3r_ros.streaming.world_files import SavedWorld, save_world
from raymap3r_ros.text import counted

DEFAULT_FOLDER = "~/.ros/raymap3r"


@dataclass(frozen=True)
class Saved:
    """The content of a saved folder, in the world frame and in metres."""

    # By name: stamps (n,) in nanoseconds, and poses (n, 7), x y z and quaternion x y z w.
    trajectories: dict[str, tuple[np.ndarray, np.ndarray]]
    points: np.ndarray | None  # (n, 3) of the static map; None without a map
    colors: np.ndarray | None  # (n, 3) uint8 RGB
    settings: str  # YAML, a parameter file of the node
    no_map: str = ""  # why there is no map
    world: tuple[Network, SavedWorld] | None = None  # the keyframes, and the weights that read them; None without any

    def contents(self) -> str:
        """A summary in one line."""
        stamps = self.trajectories["trajectory"][0]
        poses = len(rising(stamps))
        late = f" ({counted(len(stamps) - poses, 'late image')} left out)" if poses < len(stamps) else ""
        cloud = f"no static map ({self.no_map})"
        if self.points is not None:
            cloud = f"{counted(len(self.points), 'point')} of the static map"
        keyframes = "no keyframes"
        if self.world is not None:
            keyframes = counted(int((self.world[1].keyframes.number >= 0).sum()), "keyframe")
        return f"{counted(poses, 'pose')}{late}, {cloud}, {keyframes}, settings"


def save(output_dir: str, saved: Saved) -> Path:
    """Write to a new folder in `output_dir`, named by date and time, and return the folder.

    Raises OSError if it cannot be written; nothing is left over then. A process that is killed while it writes leaves
    a folder whose name begins with a dot.
    """
    try:
        parent = Path(output_dir).expanduser()
    except RuntimeError as error:  # ~user, without such a user
        raise OSError(f"{output_dir}: {error}") from error
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".partial-{os.getpid()}-{time.monotonic_ns()}"
    partial.mkdir()
    try:
        for name, (stamps, poses) in saved.trajectories.items():
            written = rising(stamps)  # without late images
            write_tum(partial / f"{name}.txt", stamps[written], poses[written])
        if saved.points is not None:
            write_ply(partial / STATIC_MAP, saved.points, saved.colors)
        if saved.world is not None:
            save_world(partial / WORLD, *saved.world)
        (partial / "settings.yaml").write_text(saved.settings)
        for file in partial.iterdir():
            _flush(file)
        return _rename(partial, parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(file: Path) -> None:
    """Write a file through to the disk, so that a power failure does not leave it empty in a folder with a name."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _rename(partial: Path, target: Path) -> Path:
    """Rename a folder to `target`, or to a numbered name if two are saved in the same second."""
    for number in range(1, 1000):
        folder = target if number == 1 else target.with_name(f"{target.name}_{number}")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        else:
            return folder
    raise FileExistsError(f"{target}: 1000 folders with this name exist")
