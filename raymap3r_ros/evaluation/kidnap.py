"""Scores of a stream whose camera is carried elsewhere and back: whether it is found again, and where.

Also of sessions, which begin in other places or in the first one, with the saved world of the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WITHIN = 10  # frames after a return in which the camera counts as found
FAR, TURNED = 1.0, 25.0  # metres and degrees; a camera that is found with a larger error is found in a wrong place


@dataclass(frozen=True)
class TrackedFrame:
    """The pose of one frame, predicted and true."""

    jumps: int  # how often the camera has been carried before; after an even number it is in its first place
    offset: int  # frames since the last jump
    room: int  # that the true pose is in
    truth: np.ndarray  # (4, 4) camera to the room
    world: int  # that the predicted pose is in
    pose: np.ndarray  # (4, 4) camera to this world
    found: bool  # the first frame after the camera was found in an earlier world


def kidnap_values(frames: Sequence[TrackedFrame], length: int) -> dict[str, float]:
    """Metric -> value of a sequence of `length` frames; NaN if it is undefined. `frames`: the healthy ones, in order.

    Each world is placed in its room by the frames before the camera was carried away from it. The camera is found in
    a wrong place if that is another room, or if its first pose is wrong.
    """
    places = {frame.world: _Place(frame.world, frames) for frame in frames}
    finds = [frame for frame in frames if frame.found]
    right = [frame for frame in finds if places[frame.world].contains(frame)]
    back = [frame for frame in frames if frame.jumps and frame.jumps % 2 == 0]
    returns = {frame.jumps for frame in back if frame.offset >= WITHIN}  # the last stay may be cut
    first = {frame.jumps: frame.offset for frame in reversed(right) if frame.jumps in returns}
    later = [frame for frame in frames if frame.jumps in first and frame.offset >= first[frame.jumps]]
    before = [frame for frame in frames if not frame.jumps]

    def rmse(chosen: list[TrackedFrame]) -> float:
        errors = [places[frame.world].errors(frame)[0] for frame in chosen if places[frame.world].room == frame.room]
        return float(np.sqrt(np.mean(np.square(errors)))) if errors else np.nan

    soon = sum(offset <= WITHIN for offset in first.values())
    return {
        "returns": float(len(returns)),
        "returns_found": soon / len(returns) if returns else np.nan,
        "found_after": float(np.median([*first.values()])) if first else np.nan,
        "finds": float(len(finds)),
        "wrong_finds": 1 - len(right) / len(finds) if finds else np.nan,
        "found_error": rmse([frame for frame in right if frame.jumps in returns]),
        "ate_returned": rmse(later),
        "ate_first_stay": rmse(before),
        "unhealthy_frames": float(length - len(frames)),
    }


class _Place:
    """Where a world lies in its room, by the frames before the camera was carried away from it."""

    def __init__(self, world: int, frames: Sequence[TrackedFrame]) -> None:
        own = [frame for frame in frames if frame.world == world]
        own = [frame for frame in own if frame.jumps == own[0].jumps]
        self.room = own[0].room
        pose, truth = (np.stack(poses) for poses in ([frame.pose for frame in own], [frame.truth for frame in own]))
        # The mean rotation: positions alone do not determine it where the camera hardly moves.
        u, _, vt = np.linalg.svd((truth[:, :3, :3] @ pose[:, :3, :3].transpose(0, 2, 1)).sum(0))
        self.rotation = u @ np.diag((1, 1, np.linalg.det(u @ vt))) @ vt
        self.translation = (truth[:, :3, 3] - pose[:, :3, 3] @ self.rotation.T).mean(0)

    def errors(self, frame: TrackedFrame) -> tuple[float, float]:
        """The errors of a pose in this world, metres and degrees."""
        position = self.rotation @ frame.pose[:3, 3] + self.translation
        turn = (self.rotation @ frame.pose[:3, :3]).T @ frame.truth[:3, :3]
        angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        return float(np.linalg.norm(position - frame.truth[:3, 3])), float(angle)

    def contains(self, frame: TrackedFrame) -> bool:
        """Whether the frame is in this room, with about the right pose."""
        far, turned = self.errors(frame)
        return self.room == frame.room and far <= FAR and turned <= TURNED
