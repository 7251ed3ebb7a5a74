"""Scale from the known height of the camera above the floor."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping.scale.method import (
    ASSUMED_TILT,
    CONTRAST,
    CONTRAST_BAND,
    DEVIATION,
    FLOOR_BAND,
    FLOOR_POINTS,
    HEIGHT_STEP,
    HEIGHTS,
    KNOWN_TILT,
    MIN_FLOOR,
    STIFFNESS,
    TILTS,
)
from raymap3r_ros.mapping.scale.source import Observation, ScaleSource
from raymap3r_ros.streaming import StepResult

if TYPE_CHECKING:  # options are built from the sources
    from raymap3r_ros.mapping.scale.options import ScaleOptions


class HeightSource(ScaleSource):
    """Compares the option `camera_height` with the height above the floor in the frame, see `height_above_floor`."""

    name = "height"
    help = "the height of the camera above the floor"
    uses_maps = True

    def __init__(self) -> None:
        self.up: tuple[float, float, float] | None = None  # upward direction in the camera frame, if known

    @classmethod
    def check(cls, options: ScaleOptions) -> None:
        if options.camera_height == 0:
            raise OptionError(
                "scale.camera_height is 0.0; allowed with scale.source height: the camera's height above the floor, "
                "metres, above 0"
            )

    def mount_camera(self, base_from_camera: np.ndarray) -> None:
        """Set the camera's pose (4, 4) in the base frame, whose z axis points up."""
        self.up = tuple(base_from_camera[2, :3].tolist())

    def measure(self, result: StepResult, min_confidence: float) -> Tensor:
        return height_above_floor(result.points, result.confidence, result.dynamic_mask, min_confidence, self.up)

    def observe(
        self, stamp: float, pose: np.ndarray, measured: np.ndarray | None, options: ScaleOptions
    ) -> list[Observation]:
        if measured is None or not measured[0] > 0:
            return []
        height, roughness = (float(number) for number in measured)
        return [
            Observation(stamp, math.log(options.camera_height) - math.log(height), math.hypot(DEVIATION, roughness))
        ]


@torch.no_grad()
def height_above_floor(
    points: Tensor,
    confidence: Tensor,
    moving: Tensor,
    min_confidence: float,
    up: tuple[float, float, float] | None = None,
) -> Tensor:
    """Return (2,): the camera's height above the floor in network units, and the floor's relative roughness.

    `points` (H, W, 3) camera frame, `confidence` (H, W), `moving` (H, W) bool. `up` is the upward direction in the
    camera frame, accurate to ten degrees; without it, the camera is assumed to be level to 45 degrees. NaN if no
    floor is visible.

    A floor m . p = -1 has its normal along m and lies 1 / |m| below the camera. An error of depth changes m . p by
    the same relative amount at any distance, so a single relative band contains all of the floor. A Hough transform
    over normals about `up` and over heights counts the points near each plane, minus those below it, so that a table
    does not win against the floor that it stands on. Least squares over the points near the best plane refines it.
    """
    step = max(1, math.ceil(max(moving.shape) / FLOOR_POINTS))
    points, confidence, moving = (item[::step, ::step].flatten(0, 1) for item in (points, confidence, moving))
    usable = torch.isfinite(points).all(-1) & (confidence >= min_confidence) & ~moving
    points = torch.where(usable[:, None], points, 0.0)

    tilt, stiffness = (ASSUMED_TILT, 0.0) if up is None else (KNOWN_TILT, STIFFNESS)
    normals = _normals(up or (0.0, -1.0, 0.0), tilt, points.device)
    upward = normals[len(normals) // 2]
    normal, height = _best_plane(points, usable, normals, upward)
    plane = normal / height
    points, upward = points.double(), upward.double()
    across = torch.eye(3, dtype=torch.float64, device=points.device) - upward[:, None] * upward
    for band in FLOOR_BAND:
        error = points @ plane + 1
        floor = usable & (error.abs() < band)
        plane = _fit_plane(points * floor[:, None], stiffness * floor.sum() * height.square() * across)
    error = points @ plane + 1
    roughness = (floor * error.square()).sum().div(floor.sum()).sqrt()
    length = plane.norm()
    on, above = (usable & (abs(error - middle) < CONTRAST_BAND) for middle in (0, 2 * CONTRAST_BAND))
    found = (
        (on.sum() >= MIN_FLOOR * len(points))
        & (on.sum() >= CONTRAST * above.sum())
        & ((usable & (error < -FLOOR_BAND[0])).sum() < on.sum())
        & (plane @ upward >= math.cos(tilt * 1.2) * length)
        & torch.isfinite(length)
        & (length > 0)
    )
    return torch.where(found, torch.stack((1 / length, roughness)), torch.nan).float()


def _best_plane(points: Tensor, usable: Tensor, normals: Tensor, upward: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit normal (3,) and the height () of the plane with the most points near it, in float64.

    `points` (P, 3), `usable` (P,) bool, `normals` (K, 3) to try, `upward` (3,) the middle one of them.
    """
    below = -normals @ points.T  # (K, P) how far below the camera each point is
    low, high = (math.log(height) for height in HEIGHTS)
    bins = math.ceil((high - low) / HEIGHT_STEP)
    place = ((below.clamp(*HEIGHTS).log() - low) / HEIGHT_STEP).long().clamp(max=bins - 1)
    counted = (usable & (below > HEIGHTS[0])).float()
    histogram = torch.zeros(len(normals), bins, device=points.device)
    total = histogram.scatter_add_(1, place, counted).cumsum(1)
    # Four bins are a band of 10 % to either side.
    near = total[:, 4:] - total[:, :-4]
    under = total[:, -1:] - total[:, 4:]
    # Steep planes score less: a wall also has many points near a steep plane through it.
    best = ((near - under) * (normals @ upward).square()[:, None]).flatten().argmax()
    height = torch.exp(low + HEIGHT_STEP * (best % near.shape[1] + 3)).double()
    return normals.gather(0, (best // near.shape[1]).expand(1, 3))[0].double(), height


@functools.lru_cache(maxsize=16)
def _normals(up: tuple[float, float, float], tilt: float, device: torch.device) -> Tensor:
    """Return unit vectors (TILTS^2, 3) tilted from `up` by up to `tilt` about two axes; the middle one is `up`."""
    upward = np.asarray(up, np.float64) / np.linalg.norm(up)
    first = np.cross(upward, np.eye(3)[np.abs(upward).argmin()])
    first /= np.linalg.norm(first)
    slopes = np.tan(np.linspace(-tilt, tilt, TILTS))
    a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(slopes, slopes, indexing="ij"))
    normals = upward + a * first + b * np.cross(upward, first)
    with torch.inference_mode(False):
        unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        return torch.tensor(unit, dtype=torch.float32, device=device)


def _fit_plane(points: Tensor, prior: Tensor) -> Tensor:
    """Return m (3,) that minimises the sum of (m . p + 1)^2 over points (P, 3) other than 0, plus m . prior m.

    Not finite if all points lie in one plane with the camera. Uses Cramer's rule: a solver would synchronise a GPU.
    """
    a, b, c = points.T @ points + prior
    right = -points.sum(0)
    cross = torch.linalg.cross
    inverse = torch.stack((cross(b, c), cross(c, a), cross(a, b)), dim=1)
    return inverse @ right / (a @ cross(b, c))
