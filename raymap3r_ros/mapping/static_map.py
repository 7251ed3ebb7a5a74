"""A voxel map of the static scene. Frames add voxels, and remove voxels that they see through."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.options import check_options, option
from raymap3r_ros.streaming.mask import window_reduce
from raymap3r_ros.streaming.result import to_host

FRAME_PIXELS = 60_000  # maximum number used per frame: adjacent frames show the same surfaces
# Evidence of a voxel: plus one for each frame with a surface in it, minus one for each frame that sees through it. The
# limit lets an object that was static for a long time disappear as quickly as any other (clamping as in OctoMap,
# Hornung et al. 2013). At 0 the voxel is removed.
MAX_EVIDENCE = 10
# Distance of a surface behind a voxel from which a frame sees through the voxel (free-space test of Keller et al.
# 2013): depth noise grows with depth, and points of a voxel may be half its size in front of their mean.
DEPTH_TOLERANCE = 0.03  # share of the depth
VOXEL_TOLERANCE = 1.0  # voxels
SAVED_EVIDENCE = MAX_EVIDENCE // 2  # of the points of a saved map, whose own evidence is not in its file
EVICTION = 0.05  # share of the voxels removed when there are too many: many at once instead of some in every frame
GROWTH = 2**0.5  # of the voxel size: halves the number of voxels on a surface
REACH = 1 << 20  # voxels to each side of the origin: three coordinates fit a 64-bit key; points beyond are dropped
SMALLEST_VOXEL = 1e-4  # metres: reaches 105 m
VOXEL_HELP = (
    "edge of the cubes in which points are merged, metres; 0 = a pixel at the first frame's median depth. Points "
    "farther than 1,048,576 edges from the start are left out"
)


@dataclass(frozen=True)
class StaticMapOptions:
    """The map of the static scene."""

    voxel_size: float = option(
        0.0,
        VOXEL_HELP,
        low=SMALLEST_VOXEL,
        high=100.0,
        or_zero=True,
    )
    max_points: int = option(
        500_000,
        "maximum number of points; above it, those seen longest ago and farthest from the camera are removed",
        low=1000,
        high=10_000_000,
        live=True,
    )
    rate: float = option(1.0, "rate at which the map is published, Hz", low=0.01, high=30.0, live=True)
    always: bool = option(
        False, "build the map even without subscribers, so that late subscribers and ~/save get all of it", live=True
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class PixelOptions:
    """Which pixels show the static scene."""

    confidence_threshold: float = option(
        1.5, "pixels with a lower confidence are left out (1 = keep all)", low=1.0, high=1000.0
    )
    max_slope: float = option(
        8.0,
        "surfaces steeper than this, metres of depth per metre across, are regarded as the gap between two objects",
        low=0.1,
        high=10_000.0,
    )
    mask_margin: float = option(
        0.01, "margin around moving objects in which pixels are left out, share of the image width", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        check_options(self)


def depth_slope(depth: Tensor, focal: Tensor | float) -> Tensor:
    """Return (H, W), the steepest change of depth to one of the four neighbours, metres of depth per metre across.

    The slope of a slanted plane does not depend on the resolution; at the border of an object it grows
    with it. `depth`: (H, W) metres, above 0; `focal`: pixels.
    """
    slope = torch.zeros_like(depth)
    for axis in (0, 1):
        length = depth.shape[axis] - 1
        before, after = depth.narrow(axis, 0, length), depth.narrow(axis, 1, length)
        step = (before - after).abs() * focal / torch.minimum(before, after)
        for start in (0, 1):
            part = slope.narrow(axis, start, length)
            torch.maximum(part, step, out=part)
    return slope


def static_pixels(
    depth: Tensor, confidence: Tensor, dynamic_mask: Tensor, focal: Tensor | float, options: PixelOptions
) -> Tensor:
    """Return (H, W) bool: pixels that are static, confident, and not in the gap between two objects.

    `depth` (H, W) metres, `confidence` (H, W) at least 1, `dynamic_mask` (H, W) bool, `focal` in pixels.
    """
    known = depth.isfinite() & (depth > 0)
    # Beside an unknown pixel, depth may be discontinuous: the tiny value makes the slope large.
    keep = known & (depth_slope(torch.where(known, depth, 1e-6), focal) <= options.max_slope)
    keep &= confidence >= options.confidence_threshold
    margin = math.ceil(options.mask_margin * depth.shape[1])
    return keep & ~window_reduce(dynamic_mask, 2 * margin + 1, torch.logical_or)


@dataclass(frozen=True)
class _Voxels:
    """Voxels in ascending order of their keys."""

    keys: Tensor  # (n,) int64, see `_keys`
    means: Tensor  # (n, 6) float32: position (metres, world) and colour (0..255)
    weight: Tensor  # (n,) float32: points behind the mean
    evidence: Tensor  # (n,) int32: see MAX_EVIDENCE
    seen: Tensor  # (n,) int32: the last frame with a surface in the voxel

    @classmethod
    def none(cls, device: torch.device | str) -> _Voxels:
        whole = torch.empty(0, dtype=torch.int32, device=device)
        return cls(whole.long(), whole.new_empty((0, 6), dtype=torch.float32), whole.float(), whole, whole)

    def select(self, index: Tensor) -> _Voxels:
        return _Voxels(*(column.index_select(0, index) for column in self.columns()))

    def columns(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


class StaticMap:
    """Voxels of the static scene, each the mean of its points, in the world and units of the poses.

    Memory is bounded: above `max_points` voxels, those last seen longest ago and those farthest from the camera are
    removed; with `whole_scene` all voxels grow instead, so that the whole scene stays covered.

    `voxel_size` is the current size in metres; 0 until the first frame if it is automatic. `max_points` may be changed
    at any time. Works on the device of the given tensors. On a GPU it synchronises a few times per frame, because the
    number of voxels is known only there. Not thread-safe.
    """

    def __init__(self, voxel_size: float = 0.0, max_points: int = 500_000, *, whole_scene: bool = False) -> None:
        self.voxel_size = voxel_size
        self.beyond: int  # points of all frames that are beyond REACH, and not in the map
        self.max_points = max_points
        self._automatic = voxel_size == 0
        self._whole_scene = whole_scene
        self.clear()

    @classmethod
    @torch.inference_mode()
    def of_points(cls, points: Tensor, colors: Tensor, voxel_size: float) -> StaticMap:
        """A map that begins with the `points` (n, 3) and `colors` (n, 3) uint8 of a saved one."""
        made = cls(voxel_size)
        voxels, made.beyond = _voxels_of(points.float(), colors.float(), voxel_size, made._frame)
        made._voxels = dataclasses.replace(voxels, evidence=torch.full_like(voxels.evidence, SAVED_EVIDENCE))
        return made

    def __len__(self) -> int:
        """Number of points."""
        return len(self._voxels.keys)

    def clear(self) -> None:
        """Remove all voxels. An automatic voxel size is determined again from the next frame."""
        if self._automatic:
            self.voxel_size = 0.0
        self.beyond = 0
        self._frame = 0
        self._voxels = _Voxels.none("cpu")

    @torch.inference_mode()
    def integrate(
        self,
        points: Tensor,
        image: Tensor,
        confidence: Tensor,
        dynamic_mask: Tensor,
        intrinsics: Tensor,
        pose: Tensor,
        pixels: PixelOptions | None = None,
    ) -> None:
        """Add one frame: its static pixels are merged into the voxels, and voxels that it sees through lose evidence.

        `points` (H, W, 3) metres, camera frame; `image` (H, W, 3) uint8; `confidence` (H, W) at least 1;
        `dynamic_mask` (H, W) bool; `intrinsics` (3, 3) pixels; `pose` (4, 4) c2w. Of a large image every N-th row and
        column is used, with a different offset in each frame.
        """
        step = math.ceil(math.sqrt(points.shape[0] * points.shape[1] / FRAME_PIXELS))
        start = self._frame % step
        self._frame += 1
        every = slice(start, None, step)
        points, image, confidence, dynamic_mask = (
            array[every, every] for array in (points.float(), image, confidence, dynamic_mask)
        )
        camera = intrinsics.float().clone()
        camera[:2, 2] -= start
        camera[:2] /= step
        depth = points[..., 2]
        keep = static_pixels(depth, confidence, dynamic_mask, camera[0, 0], pixels or PixelOptions())
        kept = keep.flatten().nonzero()[:, 0]
        if len(kept) == 0:
            return  # nothing to merge, and no surface behind any voxel
        if self.voxel_size == 0:
            self.voxel_size = float(depth.flatten()[kept].median() / camera[0, 0])
        pose = pose.float()
        rotation, position = pose[:3, :3], pose[:3, 3:]
        # As few rows and many columns, which is faster on a CPU than the transpose.
        world = (rotation @ points.flatten(0, 1).index_select(0, kept).mT + position).mT
        found, beyond = _voxels_of(world, image.flatten(0, 1).index_select(0, kept), self.voxel_size, self._frame)
        self.beyond += beyond

        voxels = self._voxels if len(self) else _Voxels.none(points.device)
        new = _join(voxels, found)
        projection = camera @ torch.cat((rotation.mT, -rotation.mT @ position), dim=1)
        _carve(voxels, torch.where(keep, depth, 0.0), projection, self.voxel_size, self._frame)
        self._voxels = _renewed(voxels, new)
        if len(self) > self.max_points:
            self._grow() if self._whole_scene else self._evict(position[:, 0])

    @torch.inference_mode()
    def resize(self, voxel_size: float) -> None:
        """Change the voxel size. Voxels that fall into the same new one are merged; none is split."""
        self.voxel_size = voxel_size
        before = self._voxels
        keys, _ = _keys(before.means[:, :3], voxel_size)
        keys, group, means, weight = _averages(keys, before.means, before.weight)
        evidence, seen = (
            torch.zeros_like(keys, dtype=torch.int32).scatter_reduce_(0, group, column, "amax")
            for column in (before.evidence, before.seen)
        )
        self._voxels = _Voxels(keys, means, weight, evidence, seen)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return points (n, 3) float32 metres and colors (n, 3) uint8 in host memory, in one copy from a GPU.

        Later frames do not change the returned arrays.
        """
        means = self._voxels.means
        points, colors = to_host([means[:, :3].clone(), means[:, 3:].round().to(torch.uint8)])
        return points, colors

    def evidence(self) -> np.ndarray:
        """Return the evidence (n,) int32 of each point in `arrays`, 1 to MAX_EVIDENCE."""
        return self._voxels.evidence.cpu().numpy()

    def _evict(self, position: Tensor) -> None:
        """Remove old and distant voxels, by age and distance relative to the oldest and the farthest."""
        age = (self._frame - self._voxels.seen).float()
        distance = (self._voxels.means[:, :3] - position).norm(dim=1)
        badness = age / age.amax().clamp_min(1) + distance / distance.amax().clamp_min(1e-9)
        count = len(self) - math.floor((1 - EVICTION) * self.max_points)
        stays = torch.ones_like(badness, dtype=torch.bool)
        stays[badness.topk(count).indices] = False
        self._voxels = self._voxels.select(stays.nonzero()[:, 0])

    def _grow(self) -> None:
        """Enlarge the voxels until there are few enough."""
        while len(self) > self.max_points:
            self.resize(self.voxel_size * GROWTH)


def _keys(points: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Return keys (n,) int64 of the voxels of points (n, 3), and whether (n,) they are within REACH."""
    cells = (points / voxel_size).floor()
    inside = (cells.abs() < REACH).all(dim=1)
    cells = cells.nan_to_num().clamp(-REACH, REACH - 1).long() + REACH
    x, y, z = cells.unbind(1)
    return (x << 42) | (y << 21) | z, inside


def _voxels_of(points: Tensor, colors: Tensor, voxel_size: float, frame: int) -> tuple[_Voxels, int]:
    """Return points (n, 3), world, with colors (n, 3), of one frame, as voxels; and how many are beyond REACH."""
    keys, inside = _keys(points, voxel_size)
    inside = inside.nonzero()[:, 0]
    means = torch.cat((points, colors), dim=1).index_select(0, inside)
    keys, _, means, weight = _averages(keys.index_select(0, inside), means, torch.ones_like(means[:, 0]))
    one = torch.ones_like(keys, dtype=torch.int32)
    return _Voxels(keys, means, weight, one, one * frame), len(points) - len(inside)


def _averages(keys: Tensor, means: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the unique keys (m,), ascending, the index (n,) of each given key, and the means and weights per key."""
    keys, group = keys.unique(return_inverse=True)
    total = weight.new_zeros(len(keys)).index_add_(0, group, weight)
    sums = means.new_zeros(len(keys), means.shape[1]).index_add_(0, group, means * weight[:, None])
    return keys, group, sums / total[:, None], total


def _join(voxels: _Voxels, found: _Voxels) -> _Voxels:
    """Add the voxels of a frame to the existing ones, in place; return those that do not exist yet."""
    if len(voxels.keys) == 0:
        return found
    place = torch.searchsorted(voxels.keys, found.keys).clamp_max(len(voxels.keys) - 1)
    known = voxels.keys[place] == found.keys
    is_again = known.nonzero()[:, 0]
    again, place = found.select(is_again), place.index_select(0, is_again)
    before = voxels.select(place)
    weight = before.weight + again.weight
    means = before.means + (again.means - before.means) * (again.weight / weight)[:, None]
    voxels.means.index_copy_(0, place, means)
    voxels.weight.index_copy_(0, place, weight)
    voxels.evidence.index_copy_(0, place, (before.evidence + 1).clamp_max(MAX_EVIDENCE))
    voxels.seen.index_copy_(0, place, again.seen)
    return found.select((~known).nonzero()[:, 0])


def _carve(voxels: _Voxels, surface: Tensor, projection: Tensor, voxel_size: float, frame: int) -> None:
    """Reduce, in place, the evidence of voxels that a frame sees through.

    `surface` (h, w): depth of the static scene, 0 where unknown; `projection` (3, 4): world to column, row and 1, all
    times depth. A frame sees through a voxel if all four pixels around it show a surface behind it: on a slanted
    surface they enclose its depth, and at a border they are excluded by `static_pixels`.
    """
    nearest = torch.minimum(surface[:-1], surface[1:])
    nearest = torch.minimum(nearest[:, :-1], nearest[:, 1:])
    x, y, z = projection[:, :3] @ voxels.means[:, :3].mT + projection[:, 3:]
    height, width = nearest.shape
    if height == 0 or width == 0:
        return
    column, row = (x / z).floor(), (y / z).floor()
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = torch.where(inside, row * width + column, 0.0).long()
    behind = nearest.flatten().index_select(0, pixel)
    through = inside & (behind * (1 - DEPTH_TOLERANCE) - VOXEL_TOLERANCE * voxel_size > z)
    # If the frame also has a surface in the voxel, noise or a border is the more likely reason.
    voxels.evidence.sub_((through & (voxels.seen != frame)).int())


def _renewed(voxels: _Voxels, new: _Voxels) -> _Voxels:
    """Return the voxels without those that have no evidence left, merged with new ones of other keys."""
    count, added = len(voxels.keys), len(new.keys)
    index = torch.arange(count + added, device=new.keys.device)
    place = torch.searchsorted(voxels.keys, new.keys) + index[:added]
    is_new = torch.zeros_like(index, dtype=torch.bool).index_fill_(0, place, True)
    new_so_far = is_new.cumsum(0)
    order = torch.where(is_new, count - 1 + new_so_far, index - new_so_far)
    both = _Voxels(*map(torch.cat, zip(voxels.columns(), new.columns(), strict=True)))
    alive = (both.evidence.index_select(0, order) > 0).nonzero()[:, 0]
    return both.select(order.index_select(0, alive))
