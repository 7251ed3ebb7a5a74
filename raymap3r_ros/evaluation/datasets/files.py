"""Reading the files of data sets. All functions raise InputError with the path if a file is not as expected."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.encoded import JPEG_SIGNATURE, PNG_SIGNATURE, checked_image
from raymap3r_ros.io.files import natural_key, read_text
from raymap3r_ros.known_files import known_file
from raymap3r_ros.output_files import kind_of

log = logging.getLogger(__name__)

MILLIMETRES = 1000  # values of a depth PNG per metre


def standard_folders(folder: Path, names: list[str] | tuple[str, ...]) -> list[Path]:
    """The existing folders among `names` in `folder`; warns about the others. Raises InputError without any."""
    present = [folder / name for name in names if (folder / name).is_dir()]
    if not present:
        expected = f"folders {names[0]} to {names[-1]}" if names else "a folder for each sequence"
        raise InputError(f"{folder}: none of the data set's sequences is here; expected {expected}")
    if len(present) < len(names):
        missing = ", ".join(name for name in names if folder / name not in present)
        log.warning("%s: %d of %d sequences; missing: %s", folder, len(present), len(names), missing)
    return present


def numbered_files(folder: Path, pattern: str) -> list[Path]:
    """Files in natural order of their names. Raises InputError without any."""
    found = (file for file in folder.glob(pattern) if not file.name.startswith("."))  # as macOS leaves them
    files = sorted(found, key=lambda path: natural_key(path.name))
    if not files:
        raise InputError(f"{folder}: no files {pattern} here")
    return files


def warn_of_unposed(folder: Path, unposed: int, images: int) -> None:
    """Warn about images of a sequence without a pose, which are left out."""
    if unposed:
        log.warning(
            "%s: %d of %d images have no pose in the ground truth and are left out%s",
            folder, unposed, images, "; one pose is no trajectory" if images - unposed == 1 else "",
        )  # fmt: skip


def existing_file(path: Path) -> Path:
    """The path, if it is a file, and not one that only stands for another."""
    if not path.is_file():
        what = kind_of(path)
        raise InputError(f"{path}: is {what}; expected a file" if what else f"{path}: there is no such file")
    if what := known_file(path):
        raise InputError(f"{path}: is {what}")
    return path


def read_image(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB."""
    image = _decode(path, cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path}: is no image that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode(path: Path, flags: int) -> np.ndarray | None:
    # Not by the name: OpenCV ends the process on one that is not UTF-8.
    data = np.fromfile(existing_file(path), np.uint8)
    try:
        if bytes(data[:8]).startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            checked_image(data.tobytes())
        return cv2.imdecode(data, flags) if data.size else None
    except (InputError, cv2.error) as error:
        raise InputError(f"{path}: {error}") from error


def read_grey(path: Path) -> np.ndarray:
    """(h, w) as stored, 8 or 16 bit."""
    values = _decode(path, cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        raise InputError(f"{path}: is no grey image that can be decoded")
    return values


def read_labels(path: Path) -> np.ndarray:
    """(h, w) values as stored; the indices of a palette image, which OpenCV would convert to colours."""
    labels = np.asarray(_open_image(path))
    if labels.ndim != 2:
        raise InputError(f"{path}: an image of shape {labels.shape}; expected labels, one value per pixel")
    return labels


def read_mask(path: Path) -> np.ndarray:
    """(h, w) bool, where the image is not black. Raises InputError if it has values other than 0 and one more.

    Masks are stored as 0 and 255, as 0 and 1, or with colours.
    """
    picture = _open_image(path)
    values = np.asarray(picture.convert("RGB") if picture.mode in ("P", "PA", "LA", "RGBA") else picture)
    if values.ndim == 3:
        values = values.max(axis=2)
    found = np.unique(values)
    if np.count_nonzero(found) > 1 or len(found) > 2:
        raise InputError(
            f"{path}: a mask with {len(found)} values, {found[0]} to {found[-1]}; expected 0 where nothing moves and "
            "one other value where something moves: select one by a threshold"
        )
    return values > 0


def _open_image(path: Path) -> Image.Image:
    data = existing_file(path).read_bytes()
    try:
        if data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            checked_image(data)
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: is no image that can be decoded: {error}") from error
    return picture


def read_depth(path: Path, unit: int, *, invalid: int = 0) -> np.ndarray:
    """Depth (h, w) float32 metres from a 16-bit PNG with `unit` values per metre; 0 where it is 0 or `invalid`."""
    values = read_grey(path)
    if values.dtype != np.uint16:
        raise InputError(f"{path}: a depth map with {values.dtype} values; expected a 16-bit PNG")
    return np.where(values == invalid, 0, values).astype(np.float32) / np.float32(unit)


def same_size(values: np.ndarray, image: np.ndarray, path: Path) -> np.ndarray:
    """The map `values` (h, w) from `path`, if it has the size of `image`."""
    if values.shape != image.shape[:2]:
        raise InputError(f"{path}: a map of shape {values.shape} for an image of {image.shape[:2]}; expected the same")
    return values


def read_matrix(path: Path, shape: tuple[int, int], line: str = "") -> np.ndarray:
    """A matrix of `shape` from a text file; it may hold infinities. `line`: what a line contains, for errors."""
    lines = "one line" if shape[0] == 1 else f"{shape[0]} lines"
    expected = f"expected {lines}{f' `{line}`' if line else ''} of {shape[1]} numbers"
    rows = []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        fields = text.partition("#")[0].replace(",", " ").split()
        try:
            row = [float(field) for field in fields]
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; {expected}: {text.strip()[:80]!r}") from error
        if row and len(row) != shape[1]:
            raise InputError(f"{path}, line {number}: {len(row)} numbers; {expected}: {text.strip()[:80]!r}")
        rows += [row] if row else []
    if len(rows) != shape[0]:
        raise InputError(f"{path}: {len(rows)} lines of numbers; {expected}")
    return np.array(rows)


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """(3, 3) intrinsics, pixels."""
    return np.array(((fx, 0, cx), (0, fy, cy), (0, 0, 1)), np.float64)
