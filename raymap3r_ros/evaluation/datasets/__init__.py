"""Public data sets in their original layout, with the frames of the published tables.

Each module defines one or more `Dataset` objects, which are found by themselves. A loader returns the sequences in the
folder of a data set. It reads only lists and poses; images and depth are read frame by frame. If some of the standard
sequences are missing, it returns the others with a warning. Missing and unreadable files raise InputError.
"""

from __future__ import annotations

from pathlib import Path

from raymap3r_ros.discovery import find_in_package
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.sequences import PosedSequence


def find_datasets() -> dict[str, Dataset]:
    """Return the data sets of all modules in this package by their names."""
    found = find_in_package(__name__, lambda value: isinstance(value, Dataset))
    return {dataset.name: dataset for dataset in found}


DATASETS = find_datasets()


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
