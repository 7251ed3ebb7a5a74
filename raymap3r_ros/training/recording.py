"""A source of training images: a recording of a real place in the TUM RGB-D layout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.datasets.files import pinhole, read_depth, read_image, read_matrix
from raymap3r_ros.evaluation.datasets.tum import (
    CAMERA_LINE,
    DEPTH_UNIT,
    TOLERANCE,
    UNIT_HINT,
    nearest_stamps,
    read_list,
)
from raymap3r_ros.geometry.calibration import Calibration
from raymap3r_ros.geometry.cameras import back_project, pixel_rays
from raymap3r_ros.io.tum import KnownTrajectory
from raymap3r_ros.synthetic import Rendering
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training.augmentation import change_colours, random_views
from raymap3r_ros.training.compositing import add_movers

log = logging.getLogger(__name__)

# TUM's freiburg1: fx fy cx cy in pixels of 640x480, and plumb_bob coefficients; from the data set's page.
FREIBURG1_SIZE = (640, 480)
FREIBURG1_CAMERA = (517.3, 516.5, 318.6, 255.3)
FREIBURG1_DISTORTION = (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)

HELD_OUT = 7  # the last 1 / HELD_OUT of the recording is never trained on
_STORED = 2  # pixels kept in memory for each pixel of a batch, along one axis
_SHORTEST_STRIDE = 3  # mean frames of the recording between frames of a sequence, at least
_SAME_SURFACE = 0.05  # relative difference of depth between neighbours that are interpolated
_NEAREST = 0.05  # metres from a camera to a surface, at least
_NEAR_MEDIAN = 0.5  # metres; a nearer median of depth is probably of another unit
_FAR = 1e4  # metres; a distance at which the camera's place does not matter
_STEPS = 5  # from a place to another, until a ray meets a surface
_MET = 0.02  # relative error of depth at which it does
_NO_DEPTH = 10.0  # metres; fill of a frame without any depth
_TOGETHER = 16  # frames of a long sequence that are sampled at once; a limit of the memory


@dataclass(frozen=True)
class Recording:
    """N frames of a static place, rectified and small. World frame of the recorded poses, z up; metres."""

    images: Tensor  # (N, 3, h, w) uint8 RGB
    depth: Tensor  # (N, 1, h', w') float16 along z; negative: unknown, minus the nearest known depth
    pose: Tensor  # (N, 4, 4) c2w
    stamp: Tensor  # (N,) seconds after the first frame
    camera: Tensor  # (4,) fx, fy, cx, cy as shares of width and height, from the upper left corner
    floor: float  # z of the lowest surface

    @property
    def trained(self) -> int:
        """Number of frames, from the first one, that training batches are made of."""
        return len(self.images) - len(self.images) // HELD_OUT

    def sequences(self, seed: int, count: int, length: int, size: tuple[int, int], device: torch.device) -> Rendering:
        """A source of training images (see `sources.py`).

        Seeds from `EVALUATION_SEEDS` on give the held-out frames as recorded; odd ones, with movers.
        """
        generator = torch.Generator().manual_seed(seed)
        held_out = seed >= EVALUATION_SEEDS
        frames = self._choose(generator, count, length, held_out)
        camera, motion = random_views(generator, self.camera, count, length, augmented=not held_out)
        image, depth, pose, intrinsics = self.look(frames, camera, motion, size)
        depth, static, moving = depth, depth, torch.zeros_like(depth, dtype=torch.bool)
        if not held_out or seed % 2:
            image, depth, moving = add_movers(
                generator, image, static, pose, intrinsics, self.stamp[frames], self.images[: self.trained], self.floor
            )
        if not held_out:
            image = change_colours(generator, image)
        return _rendering(image, depth, static, moving, pose, intrinsics, device)

    @torch.no_grad()
    def in_order(
        self, size: tuple[int, int], *, first: int | None = None, movers: int | None = None, many: bool = False
    ) -> Rendering:
        """The held-out frames in order, all of them, as one sequence of H x W pixels seen by the recorded camera.

        `first`: begin with this frame instead. `movers`: seed of movers, which are `many` or few; None: no movers.
        Depth of 0 is unknown.
        """
        frames = torch.arange(self.trained if first is None else first, len(self.images))
        parts = [
            self.look(part[None], self.camera[None], torch.eye(4).repeat(1, len(part), 1, 1), size)
            for part in frames.split(_TOGETHER)
        ]
        image, static, pose = (torch.cat([part[column] for part in parts], dim=1) for column in range(3))
        intrinsics = parts[0][3]
        depth, moving = static, torch.zeros_like(static, dtype=torch.bool)
        if movers is not None:
            image, depth, moving = add_movers(
                torch.Generator().manual_seed(movers), image, static, pose, intrinsics, self.stamp[frames][None],
                self.images[: self.trained], self.floor, many=torch.tensor([many]),
            )  # fmt: skip
        return _rendering(image, depth, static, moving, pose, intrinsics, torch.device("cpu"))

    def look(
        self, frames: Tensor, camera: Tensor, motion: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames (B, F) as other cameras near their places see them, at H x W pixels.

        `camera` (B, 4), as the field of this name; `motion` (B, F, 4, 4) is their pose in the recorded camera's frame.
        Returns the image (B, F, 3, H, W) in 0..1, depth (B, F, H, W), negative where it is unknown or the recorded
        camera did not see the surface, c2w (B, F, 4, 4) and intrinsics.
        """
        scale = torch.tensor((size[1], size[0], size[1], size[0]))
        fx, fy, cx, cy = (camera * scale).unbind(-1)
        intrinsics = torch.eye(3).repeat(len(camera), 1, 1)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2] = fx, fy, cx - 0.5, cy - 0.5
        rays = pixel_rays(intrinsics, size)[:, None] @ motion[..., None, :3, :3].mT
        rays, place = rays.flatten(0, 1), motion[..., None, None, :3, 3].flatten(0, 1)
        flat = frames.flatten()
        recorded = self.depth[flat].float()
        depth, where = self._meet(recorded, rays, place)
        image = F.grid_sample(self.images[flat].float() / 255, where, padding_mode="border", align_corners=False)
        shape = tuple(frames.shape)
        return image.unflatten(0, shape), depth.unflatten(0, shape), self.pose[frames] @ motion, intrinsics

    def _meet(self, recorded: Tensor, rays: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Where rays (M, H, W, 3) from a place (M, 1, 1, 3) meet recorded depth (M, 1, h, w), in that camera's frame.

        Returns the factor on each ray, negative where the surface is unknown, and positions as in `grid_sample`.
        """

        def project(length: Tensor) -> tuple[Tensor, Tensor]:
            points = rays * length[..., None] + place
            share = points[..., :2] / points[..., 2:].clamp_min(_NEAREST) * self.camera[:2] + self.camera[2:]
            return 2 * share - 1, points[..., 2]

        where, _ = project(torch.full(rays.shape[:-1], _FAR))
        for _ in range(_STEPS):
            depth = sample_depth(recorded, where)[:, 0].abs()
            length = ((depth - place[..., 2]) / rays[..., 2]).clamp_min(_NEAREST)
            where, reached = project(length)
        depth = sample_depth(recorded, where)[:, 0]
        met = (depth > 0) & ((reached - depth).abs() < _MET * depth)
        return torch.where(met, length, -length), where

    def _choose(self, generator: torch.Generator, count: int, length: int, held_out: bool) -> Tensor:
        """Indices of frames (B, F) in increasing order, from the whole recording or from a short part of it."""
        first, total = (self.trained, len(self.images) - self.trained) if held_out else (0, self.trained)
        shortest = min(_SHORTEST_STRIDE * length, total)
        part = shortest * (total / shortest) ** torch.rand(count, 1, generator=generator)
        begin = (total - part) * torch.rand(count, 1, generator=generator)
        steps = (torch.arange(length) + torch.rand(count, length, generator=generator)) / length
        return first + (begin + part * steps).long().clamp(max=total - 1)


def _rendering(
    image: Tensor,
    depth: Tensor,
    static: Tensor,
    moving: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    device: torch.device,
) -> Rendering:
    """Images (B, F, 3, H, W) in 0..1, depth, negative where it is unknown, and the rest as a `Rendering`."""
    return Rendering(
        image=(image * 255).round().to(torch.uint8).movedim(2, -1).to(device),
        depth=depth.clamp_min(0).to(device),
        static_depth=static.clamp_min(0).to(device),
        moving=moving.to(device),
        pose=pose.to(device),
        intrinsics=intrinsics.to(device),
    )


def sample_depth(depth: Tensor, where: Tensor) -> Tensor:
    """Depth (M, 1, h, w), negative where unknown, at positions (M, H, W, 2) as in `grid_sample`: (M, 1, H, W).

    The inverse of depth is interpolated, which is exact on planes; across edges the nearest value is used.
    """

    def sample(values: Tensor, mode: str) -> Tensor:
        return F.grid_sample(values, where, mode=mode, padding_mode="border", align_corners=False)

    nearest = sample(depth, "nearest")
    smooth = 1 / sample(1 / depth.abs(), "bilinear")
    all_known = sample((depth > 0).float(), "bilinear") > 0.999
    same = all_known & ((smooth - nearest).abs() < _SAME_SURFACE * nearest)
    depth = torch.where(same, smooth, nearest)
    inside = (where.abs() <= 1).all(-1)[:, None]
    return torch.where(inside, depth, -depth.abs())


# --------------------------------------------------------------------------------------------------------- reading


def read_recording(folder: Path, size: tuple[int, int]) -> Recording:
    """Read a recording in the TUM RGB-D layout for batches of H x W pixels.

    camera.txt, one line `fx fy cx cy`, has the intrinsics of images without distortion; without it, the camera is
    TUM's freiburg1. Depth maps that are smaller than 640x480 or than such images have every s-th of their pixels.
    Frames without depth or pose are left out. Raises InputError for files that are missing or not as expected, and
    for a recording of less than `HELD_OUT` frames.
    """
    if not (folder / "rgb.txt").is_file():
        raise InputError(f"{folder}: no rgb.txt here; expected rgb.txt, depth.txt, groundtruth.txt of TUM RGB-D")
    stamps, images = read_list(folder / "rgb.txt")
    depth_stamps, depths = read_list(folder / "depth.txt")
    poses, posed = KnownTrajectory.read(folder / "groundtruth.txt").at(stamps)
    nearest = nearest_stamps(stamps, depth_stamps)
    used = np.flatnonzero(posed & (nearest >= 0))
    if len(used) < HELD_OUT:
        raise InputError(
            f"{folder}: {len(used)} of {len(stamps)} images have a depth map and a pose within {TOLERANCE} s; needed: "
            f"at least {HELD_OUT}"
        )
    first = read_image(folder / images[used[0]])
    height, width = first.shape[:2]
    matrix, raw_size, distortion = _lens(folder / "camera.txt", (width, height))
    calibration = Calibration(matrix, raw_size, distortion, report=_fail_at(folder))
    _, intrinsics = calibration.rectify(first)
    scale = np.array((width, height, width, height))
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    camera = np.array((fx, fy, cx + 0.5, cy + 0.5)) / scale

    stored = tuple(min(_STORED * wanted, have) for wanted, have in zip(size, first.shape[:2], strict=True))
    small, maps = [], []
    for index in used:
        image = read_image(folder / images[index])
        if image.shape != first.shape:
            raise InputError(f"{folder / images[index]}: an image of shape {image.shape}; expected {first.shape}")
        image, _ = calibration.rectify(image)
        small.append(torch.from_numpy(cv2.resize(image, stored[::-1], interpolation=cv2.INTER_AREA)).permute(2, 0, 1))
        path = folder / depths[nearest[index]]
        raw = torch.from_numpy(_filled(read_depth(path, DEPTH_UNIT)))[None, None]
        if not maps:
            shape = tuple(min(_STORED * wanted, have) for wanted, have in zip(size, raw.shape[2:], strict=True))
            pixels = _raw_pixels(camera, shape, matrix, distortion)
            where, raw_shape = _depth_positions(pixels, raw_size, raw.shape[2:]), raw.shape
        if raw.shape != raw_shape:
            raise InputError(f"{path}: a depth map of shape {raw.shape[2:]}; expected {raw_shape[2:]}")
        maps.append(sample_depth(raw, where)[0].half())
    if not any((depth > 0).any() for depth in maps):
        raise InputError(f"{folder}: no depth map has a known value; values are 0 where depth is unknown")
    _check_unit(folder, torch.cat([depth[depth > 0].float() for depth in maps]))
    pose = torch.from_numpy(poses[used]).float()
    recording = Recording(
        torch.stack(small), torch.stack(maps), pose, torch.from_numpy(stamps[used] - stamps[used[0]]).float(),
        torch.from_numpy(camera).float(), 0.0,
    )  # fmt: skip
    return Recording(**{**vars(recording), "floor": _floor(recording)})


def _check_unit(folder: Path, depth: Tensor) -> None:
    """Warn if known depth (N,) is nearer than RGB-D cameras measure."""
    if (middle := float(depth.median())) < _NEAR_MEDIAN:
        log.warning("%s: the median depth is %.2f m, nearer than RGB-D cameras measure: %s", folder, middle, UNIT_HINT)


def _lens(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Intrinsics (3, 3), the width and height that they belong to, and the coefficients of the distortion."""
    if path.is_file():
        return pinhole(*read_matrix(path, (1, 4), CAMERA_LINE)[0]), size, np.zeros(5)
    return pinhole(*FREIBURG1_CAMERA), FREIBURG1_SIZE, np.array(FREIBURG1_DISTORTION)


def _fail_at(folder: Path) -> Callable[[str], None]:
    def fail(message: str) -> None:
        raise InputError(f"{folder}: {message}")

    return fail


def _raw_pixels(camera: np.ndarray, size: tuple[int, int], matrix: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 2) of the distorted image with these intrinsics that the pixels of a rectified one come from."""
    height, width = size
    columns, rows = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    rays = np.stack(((columns - camera[2]) / camera[0], (rows - camera[3]) / camera[1], np.ones_like(rows)), axis=-1)
    pixels, _ = cv2.projectPoints(rays.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), matrix, distortion)
    return pixels.reshape(height, width, 2)


def _depth_positions(pixels: np.ndarray, full: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Positions (1, H, W, 2), as in `grid_sample`, in depth maps (h, w) with every s-th pixel of `full`."""
    few = np.array(size[::-1])
    every = np.array(full) / few
    index = (pixels - (every - 1) // 2) / every
    return torch.from_numpy((2 * index + 1) / few - 1)[None].float()


def _filled(depth: np.ndarray) -> np.ndarray:
    """Depth (h, w) whose unknown values, 0, are minus the nearest known one."""
    unknown = (depth <= 0).astype(np.uint8)
    if unknown.all():
        return np.full_like(depth, -_NO_DEPTH)
    _, labels = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(labels.max() + 1, np.float32)
    table[labels[unknown == 0]] = depth[unknown == 0]
    return np.where(unknown, -table[labels], depth)


def _floor(recording: Recording) -> float:
    """The height below which there is hardly anything, in the world."""
    some = torch.arange(0, len(recording.images), max(1, len(recording.images) // 50))
    still = torch.eye(4).repeat(1, len(some), 1, 1)
    _, depth, pose, intrinsics = recording.look(some[None], recording.camera[None], still, (24, 32))
    points = back_project(depth, intrinsics) @ pose[..., None, :3, :3].mT + pose[..., None, None, :3, 3]
    return float(points[..., 2][depth > 0].quantile(0.01))
