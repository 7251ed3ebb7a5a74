"""The results of a run, read from its folder, with the images of its recording."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.calibration import intrinsics_problem
from raymap3r_ros.io import Recording, open_recording
from raymap3r_ros.io.decoding import decode_image
from raymap3r_ros.io.encoded import MAX_PIXELS
from raymap3r_ros.io.files import read_text
from raymap3r_ros.io.ply import read_ply
from raymap3r_ros.io.recording import BrokenFrame
from raymap3r_ros.io.tum import read_tum
from raymap3r_ros.offline.cloud import MOST_POINTS
from raymap3r_ros.offline.result_folder import (
    CLOUD,
    DEPTH_FOLDER,
    INTRINSICS,
    MASK_FOLDER,
    SUMMARY,
    TRAJECTORY,
    numbered,
)
from raymap3r_ros.streaming.preprocessing import Framing, apply_framing

STAMP_TOLERANCE = 2_000  # nanoseconds: stamps that are floats are rounded to microseconds


@dataclass(frozen=True)
class World:
    """The frames of one world of a run, in the order of their stamps."""

    number: int  # from 1, as in the names of files
    frames: np.ndarray  # (n,) indices among all frames of the run, as in the names of depth maps and masks
    stamps: np.ndarray  # (n,) int64 nanoseconds
    poses: np.ndarray  # (n, 4, 4) camera to world
    intrinsics: np.ndarray  # (n, 3, 3) pixels of the depth maps
    cloud: Path | None  # the static scene
    is_given: bool  # it is the frame of known poses, whose axes are not known

    def scene(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, 3) float32 and colors (m, 3) uint8 of the static scene; none if the run wrote none."""
        if self.cloud is None:
            return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
        return read_ply(self.cloud, MOST_POINTS)


@dataclass(frozen=True)
class Results:
    """The results of a run. Depth maps, masks and images are read when they are needed."""

    folder: Path
    summary: dict[str, Any]
    stamps: np.ndarray  # (n,) int64 nanoseconds, of all frames
    spans: np.ndarray  # (n,) number of the world of each frame
    worlds: Sequence[World]
    size: tuple[int, int]  # width, height of depth maps and masks
    framing: Framing  # of the recorded images
    recording: Recording | None  # None for a live input

    @property
    def has_depth(self) -> bool:
        """Whether there are depth maps."""
        return f"{DEPTH_FOLDER}/*.npz" in self.summary["files"]

    @property
    def has_masks(self) -> bool:
        """Whether there are masks."""
        return f"{MASK_FOLDER}/*.png" in self.summary["files"]

    def only(self, world: World) -> Results:
        """These results with one of their worlds."""
        return dataclasses.replace(self, worlds=[world])

    def depth(self, index: int) -> np.ndarray:
        """(H, W) float32 metres of a frame. Raises InputError."""
        path = self.folder / DEPTH_FOLDER / f"{index:06d}.npz"
        shape = self.size[::-1]
        try:
            # Not np.load, which would make room for an array of any size that the file names.
            with zipfile.ZipFile(path) as archive, archive.open("depth.npy") as file:
                np.lib.format.read_magic(file)
                found, _, kind = np.lib.format.read_array_header_1_0(file)
                if (found, kind) != (shape, np.float32):
                    raise ValueError(f"{kind} of shape {found}, expected float32 of {shape}")
                data = file.read(4 * shape[0] * shape[1])
            return np.frombuffer(data, np.float32).reshape(shape).copy()
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(path, error) from error

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool of a frame, true where something moves. Raises InputError."""
        path = self.folder / MASK_FOLDER / f"{index:06d}.png"
        try:
            mask = decode_image(path)[..., 0] > 127
        except (BrokenFrame, OSError) as error:
            raise _damaged(path, error) from error
        if mask.shape != self.size[::-1]:
            raise _damaged(path, f"has the shape {mask.shape}, expected {self.size[::-1]}")
        return mask

    def images(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of each frame of the worlds, in order, and its image as recorded, (h, w, 3) uint8 RGB.

        Raises InputError if the recording lacks an image.
        """
        wanted = {int(index) for world in self.worlds for index in world.frames}
        for index, image in enumerate(self._recorded(max(wanted) + 1)):
            if index in wanted:
                yield index, image

    def _recorded(self, count: int) -> Iterator[np.ndarray]:
        """Yield the images of the first `count` frames of the run."""
        index, size = 0, tuple(self.summary["input_size"])
        with closing(iter(self.recording)) as recorded, tqdm(total=count, unit=" frames", disable=None) as bar:
            for frame in recorded:
                if abs(frame.nanoseconds - int(self.stamps[index])) > STAMP_TOLERANCE:
                    continue
                if frame.image.shape[1::-1] != size:
                    raise InputError(
                        f"{self.recording.name}: its images are {frame.image.shape[1]}x{frame.image.shape[0]}, those "
                        f"of the run were {size[0]}x{size[1]}; name the recording of the run with --input"
                    )
                yield frame.image
                bar.update()
                index += 1
                if index == count:
                    return
        raise InputError(
            f"{self.recording.name}: has no image at {self.stamps[index] / 1e9:.6f} s, the stamp of frame {index} of "
            f"{self.folder}; name the recording of the run with --input"
        )

    def crop(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3), a recorded image as the network received it: pixels as in depth maps and masks."""
        return apply_framing(image, self.framing)


def read_results(folder: Path, recording: Path | None = None) -> Results:
    """The results in a folder of `raymap3r run`. `recording`: its input, if that has moved.

    Raises InputError if the folder has no results, or they are damaged. The recording is opened by `open_images`.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise InputError(f"{folder}: contains no {SUMMARY}, so no results of `raymap3r run`; name the folder of --out")
    try:
        summary = json.loads(path.read_text())
        if recording is not None:
            summary["input"] = str(recording)
        framing = _framing(summary)
        stamps, intrinsics = _read_intrinsics(folder / INTRINSICS, framing.size[::-1])
        of_frames = np.zeros(len(stamps), np.int64)
        for span in summary["world_spans"]:
            of_frames[span["first"] :][: span["frames"]] = span["world"]
        if summary["worlds"] > len(stamps) or set(of_frames.tolist()) != set(range(1, summary["worlds"] + 1)):
            raise ValueError(f"{INTRINSICS} has {len(stamps)} frames, which do not fit its spans of worlds")
        worlds = [
            _read_world(folder, summary, number, of_frames, stamps, intrinsics)
            for number in range(1, summary["worlds"] + 1)
        ]
        for key in ("files", "input", "input_kind", "reading"):
            summary[key]
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, repr(error) if isinstance(error, KeyError) else error) from error
    return Results(folder, summary, stamps, of_frames, worlds, framing.size[::-1], framing, None)


def open_images(results: Results) -> Results:
    """The results, not of a live input, with their recording. Raises InputError if it is missing."""
    summary = results.summary
    reading, path = summary["reading"], Path(summary["input"])
    if "://" in summary["input"]:
        raise InputError(f"{summary['input']}: the recording is not on this machine; name a copy of it with --input")
    if not path.exists():
        raise InputError(f"{path}: there is no such recording; if it has moved, name it with --input")
    try:
        matrix = reading["intrinsics"]
        options = {key: reading[key] for key in ("topic", "rate", "stride", "max_gap", "start", "end")}
        recording = open_recording(path, intrinsics=None if matrix is None else np.array(matrix, float), **options)
        names = summary.get("input_names")  # results of earlier versions have none
        if names and recording.names and recording.names_hash(names["count"]) != names["sha256"]:
            raise InputError(
                f"{path}: images were added, removed or renamed since the run, so it is not known which belong to the "
                "results; undo that, name a folder with the images of the run with --input, or run again"
            )
    except (KeyError, TypeError) as error:
        raise _damaged(results.folder / SUMMARY, repr(error)) from error
    return dataclasses.replace(results, recording=recording)


def _framing(summary: dict[str, Any]) -> Framing:
    """How the run preprocessed its images. Raises ValueError."""
    (width, height), (input_width, input_height) = summary["image_size"], summary["input_size"]
    # Without a given size the network's own applies, a multiple of its patches: nothing of it is cut off.
    long_edge = summary["options"]["image_size"] or max(width, height)
    factor = long_edge / max(input_width, input_height, 1)
    resized = round(input_width * factor), round(input_height * factor)
    if not (0 < width <= resized[0] and 0 < height <= resized[1] and resized[0] * resized[1] <= MAX_PIXELS):
        raise ValueError(f"maps of {width}x{height} pixels do not fit images of {resized[0]}x{resized[1]}")
    offset = resized[0] // 2 - width // 2, resized[1] // 2 - height // 2
    return Framing(resized, offset, (height, width))


def _read_world(
    folder: Path,
    summary: dict[str, Any],
    number: int,
    of_frames: np.ndarray,
    stamps: np.ndarray,
    intrinsics: np.ndarray,
) -> World:
    trajectory, cloud = (name if summary["worlds"] == 1 else numbered(name, number) for name in (TRAJECTORY, CLOUD))
    frames = np.flatnonzero(of_frames == number)
    _, poses = read_tum(folder / trajectory)
    if len(poses) != len(frames):
        raise ValueError(f"{trajectory} has {len(poses)} poses, {INTRINSICS} {len(frames)} frames of this world")
    scene = folder / cloud if cloud in summary["files"] else None
    return World(number, frames, stamps[frames], poses, intrinsics[frames], scene, number in summary["worlds_given"])


def _read_intrinsics(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Stamps (n,) in nanoseconds and matrices (n, 3, 3) of a file of `write_intrinsics` for depth maps of `size`.

    Raises InputError.
    """
    rows = [line.split() for line in read_text(path, "intrinsics").splitlines() if not line.startswith("#")]
    try:
        if not rows or any(len(row) != 8 for row in rows):
            raise ValueError("expected lines of 8 numbers")
        stamps = [int(row[0].replace(".", "")) for row in rows]  # nanoseconds have nine digits there
        values = np.array([row[1:] for row in rows], float)
    except ValueError as error:
        raise _damaged(path, error) from error
    matrices = np.tile(np.eye(3), (len(rows), 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 0, 2], matrices[:, 1, 2] = values[:, :4].T
    for index, (matrix, row) in enumerate(zip(matrices, values, strict=True)):
        if (problem := intrinsics_problem(matrix, size, cropped=True)) or tuple(row[4:6]) != size:
            raise _damaged(path, f"frame {index}: {problem or f'another size than {size[0]}x{size[1]}'}")
    return np.array(stamps, np.int64), matrices


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path}: is damaged ({reason}); process the recording again")
