"""The weights that come with the package, and the chosen checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target
from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.file_hash import sha256_of
from raymap3r_ros.network import PRESETS, checkpoint_config, checkpoint_path, shipped_weights
from raymap3r_ros.text import size_text

NAME = "weights"
SHIPPED = {
    "one_office": "cce31ae06fa8686c8431e533bbe4da022034959c4f16c6ebac7f32471cc24666",
    "one_room": "78f4fe356e8d4a830209e9e30848a53a17805a00dc9c2dc7480bd4e7d672534b",
}
AGAIN = "install the package again; in a checkout, `git checkout raymap3r_ros/weights`"


def check(target: Target) -> Iterator[Line]:
    """Lines about files, their hashes, and whether they contain a network."""
    files = shipped_weights()
    for name, expected in SHIPPED.items():
        if name not in files:
            yield Line(NAME, name, FAIL, "the file is missing in the package", AGAIN)
            continue
        found = sha256_of(files[name], progress=False)
        text = f"SHA-256 {found}, {size_text(files[name].stat().st_size)}"
        if found == expected:
            yield Line(NAME, name, OK, text, values={"sha256": found})
        else:
            yield Line(NAME, name, FAIL, f"{text}; expected {expected}", AGAIN, {"sha256": found})
    if target.checkpoint not in SHIPPED:
        yield _chosen(target.checkpoint)


def _chosen(checkpoint: str) -> Line:
    if checkpoint in PRESETS:
        return Line(
            NAME, checkpoint, WARNING, "untrained: as fast as trained weights, but the geometry means nothing",
            "for real images choose the public weights or your own: README.md, Weights",
        )  # fmt: skip
    try:
        config, path = checkpoint_config(checkpoint), checkpoint_path(checkpoint)
    except CheckpointError as error:
        return Line(NAME, checkpoint, FAIL, str(error), "choose another --checkpoint: README.md, Weights")
    found = sha256_of(path, progress=False)
    text = f"SHA-256 {found}, {size_text(path.stat().st_size)}, images of {config.image_size} pixels"
    return Line(NAME, checkpoint, OK, text, values={"sha256": found, "config": config.to_dict()})
