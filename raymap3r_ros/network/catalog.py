"""Weights by name: those of this package, the public ones, and the cache that holds what was fetched or imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from raymap3r_ros.errors import CheckpointError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of weights in the cache; also the stem of their file
_SHIPPED = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True)
class PublicWeights:
    """A file of weights that others publish, identified by its content."""

    name: str
    file: str  # name of the file at its sources
    bytes: int
    sha256: str
    drive: str  # id on Google Drive, where the authors publish it
    mirror: str  # repository on Hugging Face
    revision: str
    licence: str
    notice: str  # terms of the licence
    unsupported: str = ""  # why this package cannot use the file


_CUT3R = {
    "mirror": "liguang0115/cut3r",
    "revision": "main",  # no commit is known to this package; size and SHA-256 pin the content instead
    "licence": "CC BY-NC-SA 4.0, non-commercial",
    "notice": (
        "Weights of CUT3R, by the CUT3R authors (https://github.com/CUT3R/CUT3R), licensed under Creative Commons "
        "Attribution-NonCommercial-ShareAlike 4.0 International: "
        "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode\n"
        "NonCommercial: you may not use the weights for commercial advantage or monetary compensation.\n"
        "Attribution: name the CUT3R authors and this licence when you share the weights.\n"
        "ShareAlike: share adapted weights only under the same licence.\n"
        "The weights come without any warranty. This package only converts them; it does not license them to you."
    ),
}

# By name. Sizes and hashes are those of the files that the authors link.
PUBLIC_WEIGHTS: dict[str, PublicWeights] = {
    weights.name: weights
    for weights in (
        PublicWeights(
            name="cut3r_512",
            file="cut3r_512_dpt_4_64.pth",
            bytes=3_173_761_006,
            sha256="45f7e98a0a64dbeb54901ae2b878cd8cd125f20a4497316483f0bd6f109f8103",
            drive="1Asz-ZB3FfpzZYwunhQvNPZEUA8XUNAYD",
            **_CUT3R,
        ),
        PublicWeights(
            name="cut3r_224",
            file="cut3r_224_linear_4.pth",
            bytes=2_994_205_002,
            sha256="7a7d83e47f822e040980c8f5aff4c15aa94366d469d3ceae51fa30cc2f62327d",
            drive="11dAgFkWHpaOHsR6iuitlB_v4NFFBrWjy",
            **_CUT3R,
            unsupported="its linear heads differ from those of this package, see docs/weights.md; use cut3r_512",
        ),
    )
}


def shipped_weights() -> dict[str, Path]:
    """Name and file of the weights that come with the package; docs/weights.md describes them."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}


def cache_folder(kind: str = "weights") -> Path:
    """The folder of weights that were fetched or imported, or of another kind of files; it may not exist yet.

    It is in $RAYMAP3R_HOME, else in the folder raymap3r_ros of the XDG cache. Raises CheckpointError without a home.
    """
    try:
        if home := os.environ.get("RAYMAP3R_HOME"):
            return Path(home).expanduser().absolute() / kind
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification requires that relative paths are ignored.
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "raymap3r_ros" / kind
    except RuntimeError as error:
        raise CheckpointError(f"the cache of {kind} has no place: {error} Set RAYMAP3R_HOME to a folder") from error


def cached_weights() -> dict[str, Path]:
    """Name and file of the weights in the cache. Raises CheckpointError without a home."""
    paths = sorted(cache_folder().glob("*.safetensors"))
    return {path.stem: path for path in paths if NAME.fullmatch(path.stem)}


def named_weights(name: str) -> Path | None:
    """The file of weights of the package or the cache; None if `name` is not such a name.

    Raises CheckpointError for public weights that are not in the cache.
    """
    shipped = shipped_weights()
    if name in shipped or not NAME.fullmatch(name):
        return shipped.get(name)
    path = cache_folder() / f"{name}.safetensors"
    if os.path.isfile(path):  # not Path.is_file, which raises for a folder that may not be read
        return path
    if name in PUBLIC_WEIGHTS:
        unsupported = PUBLIC_WEIGHTS[name].unsupported
        raise CheckpointError(
            f"checkpoint {name} is not supported: {unsupported}"
            if unsupported
            else f"checkpoint {name} is not in {path.parent}; fetch it with: raymap3r weights fetch {name}"
        )
    return None
