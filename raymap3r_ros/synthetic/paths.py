"""Camera paths with a wanted property, made from the random ones."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from raymap3r_ros.synthetic.worlds import Scenes, SumOfSines

_TURN = 1.0  # radians between the mean direction and the first view, and the farthest one
_SIDEWAYS = 0.5  # the same in position, as a share of the half extent of the camera's zone
_CALM = 0.3  # factor on the random motion, so that it does not bring the first view back into sight


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
