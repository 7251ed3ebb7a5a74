"""Camera paths with a wanted property, made from the random ones."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.synthetic.worlds import Recipe, Scenes, SumOfSines, random_scenes

_TURN = 1.0  # radians between the mean direction and the first view, and the farthest one
_SIDEWAYS = 0.5  # the same in position, as a share of the half extent of the camera's zone
_CALM = 0.3  # factor on the random motion, so that it does not bring the first view back into sight
_FIRST, _AWAY, _BACK = 150, 60, 30  # frames before the camera is carried away, in another place, and after a return
_PATH = ("camera_height", "camera_place", "camera_angle", "camera_heading")  # fields of scenes
_GAP = 30.0  # seconds without frames while it is carried


@dataclass(frozen=True)
class Stay:
    """Successive frames in one place."""

    scenes: Scenes  # a single scene
    room: int  # 0 is the first one
    start: float  # stamp of the first frame, seconds
    frames: int


def kidnapped_frames(count: int) -> int:
    """The number of frames of `kidnapping`."""
    return _FIRST + count * (_AWAY + _BACK)


def kidnapping(scenes: Scenes, world: str, count: int, generator: torch.Generator, rate: float) -> tuple[Stay, ...]:
    """A camera in one scene of a `world` that is carried elsewhere and back `count` times.

    Elsewhere is in turn another room or open ground, and another path in the same room. At a return the camera is
    where its path in the first scene would have led it by then.
    """
    device = scenes.room.device
    stays, start = [], 0.0

    def stay(where: Scenes, room: int, frames: int) -> None:
        nonlocal start
        stays.append(Stay(where, room, start, frames))
        start += (frames - 1) / rate + _GAP

    stay(scenes, 0, _FIRST)
    for index in range(count):
        if index % 2:
            drawn = random_scenes(generator, 1, Recipe(world)).to(device)
            stay(dataclasses.replace(scenes, **{name: getattr(drawn, name) for name in _PATH}), 0, _AWAY)
        else:
            drawn = random_scenes(generator, 1, Recipe("varied")).to(device)
            stay(dataclasses.replace(drawn, field_of_view=scenes.field_of_view), 1 + index // 2, _AWAY)
        stay(scenes, 0, _BACK)
    return tuple(stays)


def returning(scenes: Scenes, period: float, *, centred: bool = False) -> Scenes:
    """The same scenes with a path that leaves its place and is at its first pose again after `period` seconds.

    The camera points to the right at first and to the left after half of the period, and moves the same way. Its
    random motion is weaker, and repeats after the period too. Movers do not repeat. With `centred` the mean direction
    is the x axis, which the views of the one room in training are centred on.
    """
    heading = scenes.camera_heading * torch.tensor((0.0 if centred else 1.0, 1.0))
    yaw = heading[:, 0]
    left = torch.stack((-yaw.sin(), yaw.cos(), torch.zeros_like(yaw)), dim=-1)
    reach = torch.cat((scenes.camera_reach, torch.zeros_like(yaw)[:, None]), dim=-1)
    turn = torch.tensor((_TURN, 0.0, 0.0)).expand(len(yaw), 3)
    return dataclasses.replace(
        scenes,
        camera_heading=heading,
        camera_place=_repeating(scenes.camera_place, _SIDEWAYS * reach * left, period),
        camera_angle=_repeating(scenes.camera_angle, turn, period),
    )


def _repeating(sines: SumOfSines, trip: Tensor, period: float) -> SumOfSines:
    """Weaker sines that repeat after `period`, plus the way from -`trip` (B, 3) to `trip` and back."""
    frequency = (sines.frequency * period).round().clamp_min(1) / period
    trip = trip[..., None]
    return SumOfSines(
        torch.cat((_CALM * sines.amplitude, trip), dim=-1),
        torch.cat((frequency, torch.full_like(trip, 1 / period)), dim=-1),
        torch.cat((sines.phase, torch.full_like(trip, -math.pi / 2)), dim=-1),
    )
