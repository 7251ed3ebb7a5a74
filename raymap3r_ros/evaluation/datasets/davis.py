"""DAVIS 2017 (Pont-Tuset et al. 2017): images and masks of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymap3r_ros.evaluation.dataset import Dataset
from raymap3r_ros.evaluation.datasets.files import (
    existing_file,
    numbered_files,
    read_image,
    read_labels,
    read_text,
    same_size,
    standard_folders,
)
from raymap3r_ros.evaluation.sequences import Frame, PosedSequence


def load_davis(root: Path) -> list[PosedSequence]:
    """DAVIS 2017 trainval at 480p, all frames, 24 frames/s; any labelled object counts as moving."""
    lists = [root / "ImageSets" / "2017" / f"{part}.txt" for part in ("train", "val")]
    annotations = root / "Annotations" / "480p"
    if all(path.is_file() for path in lists):
        names = sorted(name for path in lists for name in read_text(path).split())
    else:
        names = sorted(path.name for path in annotations.glob("*") if path.is_dir())
    return [_sequence(root, folder) for folder in standard_folders(annotations, names)]


def _sequence(root: Path, folder: Path) -> PosedSequence:
    masks = numbered_files(folder, "*.png")
    images = [existing_file(root / "JPEGImages" / "480p" / folder.name / f"{path.stem}.jpg") for path in masks]

    def frames() -> Iterator[Frame]:
        for index, (path, mask) in enumerate(zip(images, masks, strict=True)):
            image = read_image(path)
            yield Frame(image, index / 24, moving=same_size(read_labels(mask) > 0, image, mask))

    return PosedSequence(folder.name, len(images), frames)


DAVIS = Dataset("davis", "DAVIS 2017: JPEGImages/480p and Annotations/480p", load_davis, has_mask=True)
