"""Public data sets in their original layout, with the frames of the published tables.

A loader returns the sequences in the folder of a data set. It reads only lists and poses; images and depth are read
frame by frame. If some of the standard sequences are missing, it returns the others with a warning. Missing and
unreadable files raise InputError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.datasets.davis import load_davis
from raymap3r_ros.evaluation.datasets.kitti import load_kitti
from raymap3r_ros.evaluation.datasets.scannet import load_scannet, load_scannet_long
from raymap3r_ros.evaluation.datasets.seven_scenes import load_seven_scenes
from raymap3r_ros.evaluation.datasets.sintel import load_sintel
from raymap3r_ros.evaluation.datasets.tum import load_bonn, load_tum, load_tum_folder, load_tum_long
from raymap3r_ros.evaluation.sequences import PosedSequence


@dataclass(frozen=True)
class Dataset:
    """A data set and the ground truth that its frames can have; single frames may lack some of it."""

    name: str
    help: str
    load: Callable[[Path], list[PosedSequence]]
    depth_cap: float | None = None  # metres; larger depths are ignored in its tables
    has_depth: bool = False
    has_pose: bool = False
    has_mask: bool = False
    load_long: Callable[[Path], list[PosedSequence]] | None = None  # the longer sampling, if its tables have one


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "sintel",
            "MPI Sintel: training/{final,camdata_left,depth}",
            load_sintel,
            depth_cap=70.0,
            has_depth=True,
            has_pose=True,
            has_mask=True,
        ),
        Dataset(
            "tum",
            "TUM RGB-D: rgbd_dataset_freiburg3_{sitting,walking}_{static,xyz,halfsphere,rpy}",
            load_tum,
            has_depth=True,
            has_pose=True,
            load_long=load_tum_long,
        ),
        Dataset(
            "tum_folder",
            "a folder in the TUM RGB-D layout, or one of such folders: what `raymap3r render` writes",
            load_tum_folder,
            has_depth=True,
            has_pose=True,
            has_mask=True,
        ),
        Dataset(
            "bonn",
            "Bonn RGB-D Dynamic: rgbd_bonn_{balloon2,crowd2,crowd3,person_tracking2,synchronous}",
            load_bonn,
            depth_cap=70.0,
            has_depth=True,
            has_pose=True,
        ),
        Dataset(
            "scannet",
            "ScanNet: scene0707_00 to scene0806_00, each with color, depth, pose, intrinsic",
            load_scannet,
            has_depth=True,
            has_pose=True,
            load_long=load_scannet_long,
        ),
        Dataset(
            "kitti",
            "KITTI: val/<drive>_sync/proj_depth/groundtruth/image_02 and <date>/<drive>_sync/image_02/data",
            load_kitti,
            has_depth=True,
        ),
        Dataset(
            "7scenes",
            "7-Scenes: <scene>/TestSplit.txt and <scene>/seq-XX/frame-XXXXXX.{color,depth.proj}.png",
            load_seven_scenes,
            has_depth=True,
            has_pose=True,
        ),
        Dataset("davis", "DAVIS 2017: JPEGImages/480p and Annotations/480p", load_davis, has_mask=True),
    )
}


def open_dataset(name: str, root: Path, *, long: bool = False) -> list[PosedSequence]:
    """The sequences of data set `name` (a key of `DATASETS`) in the folder `root`; `long`: its longer sampling.

    Raises OptionError for an unknown name or a missing long form, and InputError with the missing folder or file and
    what was expected.
    """
    if name not in DATASETS:
        raise OptionError(f"dataset is {name!r}; allowed values: {', '.join(DATASETS)}")
    dataset, root = DATASETS[name], Path(root)
    load = dataset.load_long if long else dataset.load
    if load is None:
        allowed = ", ".join(known.name for known in DATASETS.values() if known.load_long)
        raise OptionError(f"dataset {name!r} has no long form; those that have one: {allowed}")
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; expected the data set {name}, {dataset.help}")
    return load(root)
