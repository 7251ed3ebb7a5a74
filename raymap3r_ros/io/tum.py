"""Trajectories in the TUM format, and their poses at the times of images."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raymap3r_ros.errors import InputError
from raymap3r_ros.geometry.cameras import pose_encoding, pose_matrix
from raymap3r_ros.geometry.poses import MAX_DISTANCE
from raymap3r_ros.known_files import known_file
from raymap3r_ros.output_files import kind_of, whole_file

log = logging.getLogger(__name__)

TOLERANCE = 0.02  # seconds between an image and the nearest pose of a trajectory


def write_tum(path: Path, stamps: Sequence[int] | np.ndarray, poses: np.ndarray) -> None:
    """Write one line `timestamp tx ty tz qx qy qz qw` per pose, with all digits.

    `stamps`: (n,) nanoseconds; `poses`: (n, 7) metres and a quaternion x y z w.
    """
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("# timestamp tx ty tz qx qy qz qw\n")
        for stamp, pose in zip(stamps, poses.tolist(), strict=True):
            file.write(f"{seconds_text(stamp)} {' '.join(map(repr, pose))}\n")


def write_trajectory(path: Path, stamps: Sequence[int], poses: np.ndarray) -> None:
    """Write `poses` (n, 4, 4), camera to world, metres, at `stamps` in nanoseconds, see `write_tum`."""
    encodings = pose_encoding(torch.from_numpy(np.asarray(poses, np.float64))).numpy()
    write_tum(path, stamps, encodings[:, [0, 1, 2, 4, 5, 6, 3]])


def seconds_text(stamp: int) -> str:
    """Return a stamp in nanoseconds as seconds, with all digits."""
    seconds, nanoseconds = divmod(int(stamp), 1_000_000_000)
    return f"{seconds}.{nanoseconds:09d}"


def read_tum(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stamps (n,) and poses (n, 4, 4) from a file in TUM format, in the file's order.

    Numbers may be separated by spaces, tabs, commas or semicolons; comments start with # or %; a line of column names
    may come first. Rows that a motion-capture system marks as lost, with NaN or a zero quaternion, are left out with a
    warning.

    Raises InputError if the file is missing or has another format, with the line and its value.
    """
    if kind := kind_of(path):
        raise InputError(f"{path}: is {kind}; expected a TUM trajectory, a text file")
    try:
        what = known_file(path)
        lines = path.read_text(encoding="utf-8-sig").splitlines() if not what else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a TUM trajectory: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as a TUM trajectory: it is not text in UTF-8; if it is UTF-16, convert it: "
            "iconv -f utf-16 -t utf-8"
        ) from error
    if what:
        raise InputError(f"{path}: is {what}")
    rows, lost, header = [], [], False
    for number, line in enumerate(lines, 1):
        fields = re.split(r"[#%]", line, maxsplit=1)[0].replace(",", " ").replace(";", " ").split()
        if not fields:
            continue
        values = [_number(field) for field in fields]
        if not (rows or lost or header) and all(value is None for value in values):
            header = True  # names of the columns
            continue
        problem = _row_problem(fields, values)
        if problem:
            raise InputError(
                f"{path}, line {number}: {problem}; expected `timestamp tx ty tz qx qy qz qw`: {line.strip()[:80]!r}"
            )
        is_lost = np.isnan(values[1:]).any() or not any(values[4:])
        (lost if is_lost else rows).append(number if is_lost else values)
    if lost:
        log.warning(
            "%s: %d poses are marked as lost (NaN or a zero quaternion), the first in line %d: left out",
            path,
            len(lost),
            lost[0],
        )
    if not rows:
        raise InputError(f"{path}: contains no pose; expected lines `timestamp tx ty tz qx qy qz qw`")
    table = np.array(rows)
    table[:, 4:] /= np.abs(table[:, 4:]).max(axis=1, keepdims=True)  # so that no square is 0 or infinite
    return table[:, 0], pose_matrix(torch.from_numpy(table[:, [1, 2, 3, 7, 4, 5, 6]])).numpy()  # w first


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _row_problem(fields: list[str], values: list[float | None]) -> str:
    """What is wrong with a row of a TUM file; empty if it is a pose or marked as lost."""
    if None in values:
        return f"{fields[values.index(None)][:80]!r} is not a number"
    if len(values) != 8:
        return f"{len(values)} numbers"
    if not np.isfinite(values[0]):
        return f"the timestamp is {fields[0]}"
    if np.isinf(values).any():
        return f"{fields[int(np.isinf(values).argmax())]} is not finite"
    if max(map(abs, values[1:4])) > MAX_DISTANCE:
        return f"a position beyond {MAX_DISTANCE:g} m"
    return ""


@dataclass(frozen=True)
class KnownTrajectory:
    """Poses of a camera at known times, from a file."""

    path: Path
    stamps: np.ndarray  # (n,) seconds, rising
    poses: np.ndarray  # (n, 4, 4) camera to world

    @classmethod
    def read(cls, path: Path) -> KnownTrajectory:
        """The poses of a file in TUM format, sorted by time. Raises InputError, also for fewer than two poses."""
        stamps, poses = read_tum(path)
        if len(stamps) < 2:
            raise InputError(f"{path}: {len(stamps)} poses; needed: at least 2")
        order = np.argsort(stamps, kind="stable")
        return cls(path, stamps[order], poses[order])

    def at(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (k, 4, 4) interpolated at the stamps (k,), and whether the trajectory has a pose there (k,).

        It has one if the nearest pose is within the tolerance, and none of the two around it is further than twice
        the tolerance. Outside the trajectory, its first or last pose counts within the tolerance.
        """
        known, encoding = self.stamps, pose_encoding(torch.from_numpy(self.poses)).numpy()
        before = np.clip(np.searchsorted(known, stamps, side="right") - 1, 0, len(known) - 2)
        share = ((stamps - known[before]) / np.maximum(known[before + 1] - known[before], 1e-9)).clip(0, 1)[:, None]
        one, other = encoding[before], encoding[before + 1]
        # Both signs of a quaternion are the same rotation; the shorter way is interpolated.
        sign = np.where((one[:, 3:] * other[:, 3:]).sum(-1, keepdims=True) < 0, -1.0, 1.0)
        mixed = (1 - share) * one + share * np.concatenate((other[:, :3], sign * other[:, 3:]), axis=1)
        gaps = np.maximum(stamps - known[before], known[before + 1] - stamps)
        near = np.minimum(np.abs(stamps - known[before]), np.abs(known[before + 1] - stamps)) <= TOLERANCE
        inside = (share[:, 0] > 0) & (share[:, 0] < 1)
        return pose_matrix(torch.from_numpy(mixed)).numpy(), near & (~inside | (gaps <= 2 * TOLERANCE))

    def pose_at(self, stamp: float) -> np.ndarray | None:
        """(4, 4) interpolated at one stamp, or None."""
        nearby = slice(*np.searchsorted(self.stamps, (stamp - 1, stamp + 1)))  # all that `at` needs of a long file
        if nearby.stop - nearby.start < 2:
            return None
        poses, known = KnownTrajectory(self.path, self.stamps[nearby], self.poses[nearby]).at(np.array([stamp]))
        return poses[0] if known[0] else None
