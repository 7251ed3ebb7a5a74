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
from raymap3r_ros.io.files import read_text
from raymap3r_ros.output_files import whole_file

log = logging.getLogger(__name__)

_COLUMNS = "`timestamp tx ty tz qx qy qz qw`"
TOLERANCE = 0.02  # seconds between an image and the nearest pose of a trajectory
# Seconds between an image and each of the two poses of a file that are interpolated for it. With TOLERANCE, the two
# are up to 0.06 s apart. At 3 m/s^2, the acceleration of a hand-held camera, the error is up to 3 / 8 0.06^2 m =
# 1.4 mm, as small as the noise of motion capture: such poses are inputs of the network. Those of a bag, which only
# score, may be further apart: `clients.ground_truth.LONGEST_STEP`.
LONGEST_REACH = 2 * TOLERANCE
# Seconds between two stamps that are the same, but rounded: to three decimals or more. At 1 m/s an error of 1 mm.
SAME = 1e-3
REPEATED = 1e-6  # metres, and elements of a rotation: poses that differ by less are the same


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


def matrices(poses: np.ndarray) -> np.ndarray:
    """(n, 4, 4) float64 of poses (n, 7): metres and a quaternion x y z w, as in a TUM trajectory."""
    return pose_matrix(torch.from_numpy(poses[:, [0, 1, 2, 6, 3, 4, 5]])).numpy()  # w first


def seconds_text(stamp: int) -> str:
    """Return a stamp in nanoseconds as seconds, with all digits."""
    seconds, nanoseconds = divmod(int(stamp), 1_000_000_000)
    return f"{seconds}.{nanoseconds:09d}"


def read_tum(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stamps (n,) and poses (n, 4, 4) from a file in TUM format, in the file's order.

    Numbers may be separated by spaces, tabs, commas or semicolons; comments start with # or %; a line of column names
    may come first, also as a comment, and then determines their order. Rows that a motion-capture system marks as
    lost, with NaN or a zero quaternion, are left out with a warning.

    Raises InputError if the file is missing or has another format, with the line and its value.
    """
    rows, lost, order = [], [], None
    for number, line in enumerate(read_text(path, "a TUM trajectory").splitlines(), 1):
        text, *comment = re.split(r"[#%]", line, maxsplit=1)
        fields = text.replace(",", " ").replace(";", " ").split()
        values = [_number(field) for field in fields]
        is_header = bool(fields) and all(value is None for value in values)
        if not (rows or lost) and (is_header or not fields):
            named = _column_order(text if is_header else "".join(comment))
            if is_header and (named is None or order not in (None, named)):
                raise InputError(f"{path}, line {number}: column names other than {_COLUMNS}: {line.strip()[:80]!r}")
            order = named or order
            continue
        if not fields:
            continue
        if order and len(values) == len(order):
            fields, values = [fields[index] for index in order], [values[index] for index in order]
        problem = _row_problem(fields, values)
        if problem:
            raise InputError(f"{path}, line {number}: {problem}; expected {_COLUMNS}: {line.strip()[:80]!r}")
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
        raise InputError(f"{path}: contains no pose; expected lines {_COLUMNS}")
    table = np.array(rows)
    table[:, 4:] /= np.abs(table[:, 4:]).max(axis=1, keepdims=True)  # so that no square is 0 or infinite
    return table[:, 0], matrices(table[:, 1:])


def _column_order(header: str) -> list[int] | None:
    """Return for each column of the TUM format its index among the named columns; None if they are not those eight.

    Names as in TUM files (`tx`, `qw`), of ROS messages (`pose.orientation.w`), of EuRoC (`p_RS_R_x [m]`, `q_RS_w []`).
    """
    columns = []
    for name in re.split(r"[,;]", header) if re.search(r"[,;]", header) else header.split():
        word = re.sub(r"[\[(].*", "", name).strip().lower()
        if re.fullmatch(r"t|secs?|seconds|(time|stamp)\w*|\w*[._](time|stamp|timestamp)", word):
            columns.append("t")
        elif match := re.fullmatch(r"(?:(q|\w*quat|[\w.]*orientation|[\w.]*rotation)[\w.]*?|[\w.]*?)([wxyz])", word):
            columns.append(("q" if match[1] else "") + match[2])
        else:
            return None
    wanted = ["t", "x", "y", "z", "qx", "qy", "qz", "qw"]
    return [columns.index(name) for name in wanted] if sorted(columns) == sorted(wanted) else None


def unit_hint(stamps: np.ndarray) -> str:
    """Return the unit that rising stamps (n,) of poses probably have, and what to do; "" if they may be seconds.

    Poses are used if they are at most a fraction of a second apart.
    """
    step = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
    for factor, unit in ((1e9, "nanoseconds"), (1e6, "microseconds"), (1e3, "milliseconds")):
        if step >= 1e-3 * factor:
            return f"the poses are probably stamped in {unit}: divide their stamps by {factor:.0e}"
    return ""


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
        """The poses of a file in TUM format, sorted by time. Raises InputError, also for fewer than two poses.

        Of several poses with one stamp the first is used, with a warning if they differ.
        """
        stamps, poses = read_tum(path)
        kept, place = np.unique(stamps, return_index=True, return_inverse=True)[1:]
        differ = np.abs(poses - poses[kept[place.ravel()]]).max((1, 2), initial=0) > REPEATED
        if differ.any():
            log.warning("%s: %d poses have the stamp of another one, which comes first: left out", path, differ.sum())
        stamps, poses = stamps[kept], poses[kept]
        if len(stamps) < 2:
            raise InputError(f"{path}: {len(stamps)} poses; needed: at least 2")
        return cls(path, stamps, poses)

    def at(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (k, 4, 4) interpolated at the stamps (k,), and whether the trajectory has a pose there (k,).

        It has one if the nearest pose is within the tolerance, and either has the same stamp up to rounding, or none
        of the two around the stamp is further than LONGEST_REACH. Outside the trajectory, its first or last pose
        counts within the tolerance.
        """
        known, encoding = self.stamps, pose_encoding(torch.from_numpy(self.poses)).numpy()
        before = np.clip(np.searchsorted(known, stamps, side="right") - 1, 0, len(known) - 2)
        share = ((stamps - known[before]) / np.maximum(known[before + 1] - known[before], 1e-9)).clip(0, 1)[:, None]
        gaps = np.stack((np.abs(stamps - known[before]), np.abs(known[before + 1] - stamps)))
        distance, apart = gaps.min(0), gaps.max(0) > LONGEST_REACH
        share = np.where(apart[:, None], share.round(), share)  # the nearest one itself, not a mixture
        one, other = encoding[before], encoding[before + 1]
        # Both signs of a quaternion are the same rotation; the shorter way is interpolated.
        sign = np.where((one[:, 3:] * other[:, 3:]).sum(-1, keepdims=True) < 0, -1.0, 1.0)
        mixed = (1 - share) * one + share * np.concatenate((other[:, :3], sign * other[:, 3:]), axis=1)
        inside = (stamps > known[0]) & (stamps < known[-1])
        has_pose = (distance <= TOLERANCE) & ((distance <= SAME) | ~inside | ~apart)
        return pose_matrix(torch.from_numpy(mixed)).numpy(), has_pose

    def pose_at(self, stamp: float) -> np.ndarray | None:
        """(4, 4) interpolated at one stamp, or None."""
        after = int(np.searchsorted(self.stamps, stamp))
        nearby = slice(max(after - 2, 0), after + 2)  # all that `at` needs of a long file
        poses, known = KnownTrajectory(self.path, self.stamps[nearby], self.poses[nearby]).at(np.array([stamp]))
        return poses[0] if known[0] else None
