"""The TUM RGB-D layout (Sturm et al. 2012): TUM's own sequences, Bonn's (Palazzolo et al. 2019), and rendered ones."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    pinhole,
    read_depth,
    read_image,
    read_mask,
    read_matrix,
    read_text,
    same_size,
    standard_folders,
    warn_of_unposed,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence
from raymap3r_ros.io.files import natural_key
from raymap3r_ros.io.tum import TOLERANCE, read_tum, unit_hint
from raymap3r_ros.text import counted

log = logging.getLogger(__name__)

CAMERA_LINE = "fx fy cx cy"  # of camera.txt
DEPTH_UNIT = 5000  # values of a depth PNG per metre
UNIT_HINT = (
    "the depth maps are probably in millimetres, 1000 values per metre, as those of RealSense; this layout has "
    f"{DEPTH_UNIT}: multiply their values by 5"
)

TUM_SEQUENCES = tuple(
    f"rgbd_dataset_freiburg3_{who}_{how}"
    for who in ("sitting", "walking")
    for how in ("static", "xyz", "halfsphere", "rpy")
)
TUM_CAMERA = (535.4, 539.2, 320.1, 247.6)  # fx fy cx cy of freiburg3, pixels; from the data set's page

BONN_SEQUENCES = tuple(
    f"rgbd_bonn_{name}" for name in ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
)
BONN_CAMERA = (542.822841, 542.576870, 315.593520, 237.756098)  # from the data set's page, its distortion left out
# The trajectory belongs to the markers on the camera, in another convention. The page of the data set gives:
# camera = T_ros trajectory T_ros T_m.
BONN_ROS = np.array(((-1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1)), np.float64)
BONN_MARKERS = np.array(
    (
        (1.0157, 0.1828, -0.2389, 0.0113),
        (0.0009, -0.8431, -0.6413, -0.0098),
        (-0.3009, 0.6147, -0.8085, 0.0111),
        (0, 0, 0, 1),
    )
)


def load_tum(root: Path) -> list[PosedSequence]:
    """The eight freiburg3 sequences with people: every 3rd frame with a pose, the first 90."""
    return _dynamics(root, slice(0, 270, 3))


def load_tum_long(root: Path) -> list[PosedSequence]:
    """As `load_tum`, every frame, at most 1000."""
    return _dynamics(root, slice(1000))


def load_tum_folder(root: Path) -> list[PosedSequence]:
    """Any sequence in the TUM RGB-D layout, or a folder of them, all frames; also the output of `raymap3r render`.

    Optional lists of the same form are static_depth.txt (depth without moving objects) and mask.txt (not
    0 = moving). camera.txt, one line `fx fy cx cy`, has the intrinsics.
    """
    found = [root] if (root / "rgb.txt").is_file() else [path.parent for path in root.glob("*/rgb.txt")]
    if not found:
        raise InputError(f"{root}: no rgb.txt here or one folder below; expected the TUM RGB-D layout")
    return [_sequence(folder) for folder in sorted(found, key=lambda path: natural_key(path.name))]


def load_bonn(root: Path) -> list[PosedSequence]:
    """The five sequences of the video depth tables, images 30 to 139."""

    def to_camera(poses: np.ndarray) -> np.ndarray:
        markers = BONN_MARKERS.copy()
        markers[:3, :3] /= np.cbrt(np.linalg.det(markers[:3, :3]))  # it has a scale of 1.06; a pose has none
        return BONN_ROS @ poses @ BONN_ROS @ markers

    return [
        _sequence(folder, listed=slice(30, 140), camera=BONN_CAMERA, to_camera=to_camera)
        for folder in standard_folders(root, BONN_SEQUENCES)
    ]


def _dynamics(root: Path, chosen: slice) -> list[PosedSequence]:
    return [_sequence(folder, chosen=chosen, camera=TUM_CAMERA) for folder in standard_folders(root, TUM_SEQUENCES)]


def _sequence(
    folder: Path,
    *,
    listed: slice = slice(None),
    chosen: slice = slice(None),
    camera: tuple[float, float, float, float] | None = None,
    to_camera: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PosedSequence:
    """`listed` selects from rgb.txt, then `chosen` from the frames with a pose; `to_camera` converts the poses."""
    stamps, images = read_list(folder / "rgb.txt")
    if not len(stamps[listed]):
        first = listed.start or 0
        used = f"; the images from number {first} on are used, counted from 0: tum_folder uses all" if first else ""
        raise InputError(f"{folder / 'rgb.txt'} lists {counted(len(stamps), 'image')}{used}")
    stamps, images = stamps[listed], images[listed]
    pose_stamps, poses = read_tum(folder / "groundtruth.txt")
    nearest = nearest_stamps(stamps, pose_stamps)
    posed = np.flatnonzero(nearest >= 0)[chosen]
    if not len(posed):
        raise InputError(
            f"{folder}: none of {len(stamps)} images of rgb.txt lies within {TOLERANCE} s of a pose of "
            f"{len(pose_stamps)} in groundtruth.txt{_ranges(stamps, pose_stamps)}"
        )
    tried = nearest if chosen == slice(None) else nearest[: posed[-1] + 1]
    unposed = int((tried < 0).sum())
    warn_of_unposed(folder, unposed, len(tried))
    stamps, images, poses = stamps[posed], images[posed], poses[nearest[posed]]
    if to_camera is not None:
        poses = to_camera(poses)
    depths, static_depths, masks = (_matching(folder, name, stamps) for name in ("depth", "static_depth", "mask"))
    if (folder / "camera.txt").is_file():
        camera = tuple(read_matrix(folder / "camera.txt", (1, 4), CAMERA_LINE)[0])
    intrinsics = None if camera is None else pinhole(*camera)

    def frames() -> Iterator[Frame]:
        for index, stamp in enumerate(stamps):
            image = read_image(folder / images[index])
            yield Frame(
                image,
                float(stamp),
                _depth(depths[index], image),
                _depth(static_depths[index], image),
                _mask(masks[index], image),
                poses[index],
                intrinsics,
            )

    return PosedSequence(folder.name, len(stamps), frames, unposed, unit_hint=UNIT_HINT)


def _ranges(stamps: np.ndarray, others: np.ndarray) -> str:
    """Both ranges of time, and the likely cause, for an error."""
    if not (len(stamps) and len(others)):
        return ""
    cause = unit_hint(np.sort(others)) or "the clocks differ: shift the stamps of one"
    images, poses = (f"{values[0]:.3f} to {values[-1]:.3f}" for values in (stamps, others))
    return f": the images are from {images} s, the poses from {poses}; {cause}"


def read_list(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stamps (n,) in increasing order and file names (n,) from a list with lines `timestamp filename`.

    A comma may separate the two. Of several files with one stamp, the first is used, with a warning.
    """
    files: dict[float, str] = {}
    repeated = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([-+\d.eE]+)(?:\s*,\s*|\s+)(\S.*?)\s*", line)
        try:
            stamp = float(match[1]) if match else math.nan
        except ValueError:
            stamp = math.nan
        if not math.isfinite(stamp):
            raise InputError(f"{path}, line {number}: expected `timestamp filename`: {line[:80]!r}")
        if stamp in files:
            repeated.append(number)
        else:
            files[stamp] = match[2]
    if repeated:
        log.warning("%s: %d lines repeat a stamp, the first is line %d: left out", path, len(repeated), repeated[0])
    stamps = sorted(files)
    return np.array(stamps), np.array([files[stamp] for stamp in stamps])


def _matching(folder: Path, name: str, stamps: np.ndarray) -> list[Path | None]:
    """The file of the list `name`.txt for each stamp; None if there is none."""
    if not (folder / f"{name}.txt").is_file():
        return [None] * len(stamps)
    others, files = read_list(folder / f"{name}.txt")
    return [folder / files[index] if index >= 0 else None for index in nearest_stamps(stamps, others)]


def nearest_stamps(stamps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each stamp (n,) the index of the nearest of `others` (m,), -1 if none is within the tolerance."""
    if not len(others):
        return np.full(len(stamps), -1)
    nearest = np.array([np.abs(others - stamp).argmin() for stamp in stamps], int)
    return np.where(np.abs(others[nearest] - stamps) <= TOLERANCE, nearest, -1)


def _depth(path: Path | None, image: np.ndarray) -> np.ndarray | None:
    return None if path is None else same_size(read_depth(path, DEPTH_UNIT), image, path)


def _mask(path: Path | None, image: np.ndarray) -> np.ndarray | None:
    return None if path is None else same_size(read_mask(path), image, path)


TUM = Dataset(
    "tum",
    "TUM RGB-D: rgbd_dataset_freiburg3_{sitting,walking}_{static,xyz,halfsphere,rpy}",
    load_tum,
    has_depth=True,
    has_pose=True,
    load_long=load_tum_long,
)


TUM_FOLDER = Dataset(
    "tum_folder",
    "a folder in the TUM RGB-D layout, or one of such folders: what `raymap3r render` writes",
    load_tum_folder,
    has_depth=True,
    has_pose=True,
    has_mask=True,
)


BONN = Dataset(
    "bonn",
    "Bonn RGB-D Dynamic: rgbd_bonn_{balloon2,crowd2,crowd3,person_tracking2,synchronous}",
    load_bonn,
    depth_cap=70.0,
    has_depth=True,
    has_pose=True,
)
