"""Poses, pinhole cameras and the rays through their pixels.

Camera frames are optical (x right, y down, z forward), poses camera to world (c2w), pixel centres integer.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

_CAMERA_NUMBERS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))  # fx, skew, cx, fy, cy


def pose_matrix(encoding: Tensor) -> Tensor:
    """(..., 7) translation and quaternion (w, x, y, z), of any length -> c2w (..., 4, 4)."""
    w, x, y, z = F.normalize(encoding[..., 3:], dim=-1).unbind(-1)
    rotation = torch.stack(
        (
            1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
        ),
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip
    return assemble_pose(rotation, encoding[..., :3])


def assemble_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    """Rotation (..., 3, 3) and translation (..., 3) -> c2w (..., 4, 4)."""
    pose = torch.cat((rotation, translation[..., None]), dim=-1)
    bottom = constant((0.0, 0.0, 0.0, 1.0), pose.device, pose.dtype)
    return torch.cat((pose, bottom.expand(*pose.shape[:-2], 1, 4)), dim=-2)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(K,) numbers on a device, copied there once: each copy would synchronise a GPU."""
    with torch.inference_mode(False):  # cached tensors must also serve under autograd
        return torch.tensor(values, dtype=dtype, device=device)


def pose_encoding(pose: Tensor) -> Tensor:
    """c2w (..., 4, 4) -> (..., 7) translation and unit quaternion (w, x, y, z) with w >= 0."""
    return torch.cat((pose[..., :3, 3], quaternion(pose[..., :3, :3])), dim=-1)


def quaternion(rotation: Tensor) -> Tensor:
    """Rotation (..., 3, 3) -> unit quaternion (w, x, y, z) with w >= 0."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Each column of the 4 x 4 matrix q q^T is the quaternion times one of its components. The column of the largest
    # component is used, because it loses no digits.
    squares = torch.stack((1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz), dim=-1)
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    w2, x2, y2, z2 = squares.unbind(-1)
    columns = torch.stack(
        (
            torch.stack((w2, wx, wy, wz), dim=-1),
            torch.stack((wx, x2, xy, xz), dim=-1),
            torch.stack((wy, xy, y2, yz), dim=-1),
            torch.stack((wz, xz, yz, z2), dim=-1),
        ),
        dim=-2,
    )
    largest = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    q = F.normalize(columns.gather(-2, largest).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in degrees between two unit quaternions (..., 4)."""
    # Half the chord on the unit sphere keeps small angles exact where an arc cosine loses them.
    chord = torch.minimum((first - second).norm(dim=-1), (first + second).norm(dim=-1))
    return torch.rad2deg(4 * torch.asin((chord / 2).clamp(max=1.0)))


def transform_points(pose: Tensor, points: Tensor) -> Tensor:
    """Points (B, ..., 3) transformed by poses (B, 4, 4)."""
    return from_cameras(pose, points.flatten(1, -2)).view_as(points)


def from_cameras(pose: Tensor, points: Tensor) -> Tensor:
    """Points (..., P, 3) in the frames of cameras (..., 4, 4), in their world."""
    return points @ pose[..., :3, :3].mT + pose[..., None, :3, 3]


def mean_rotation(rotations: Tensor, weight: Tensor) -> Tensor:
    """The mean (B, 4) of unit quaternions (B, K, 4) that are less than half a turn apart, with weights (B, K)."""
    same = (rotations @ rotations[:, -1:].mT).sign()  # q and -q are one rotation
    return F.normalize((weight[..., None] * same * rotations).sum(1), dim=-1)


@functools.lru_cache(maxsize=16)
def pixel_grid(size: tuple[int, int], device: torch.device) -> Tensor:
    """(column, row) of every pixel of an H x W image: (H, W, 2), float32. Shared: do not write to it."""
    height, width = size
    with torch.inference_mode(False):
        rows, columns = torch.meshgrid(
            torch.arange(height, device=device, dtype=torch.float32),
            torch.arange(width, device=device, dtype=torch.float32),
            indexing="ij",
        )
        return torch.stack((columns, rows), dim=-1)


def focal_from_points(points: Tensor, iterations: int) -> Tensor:
    """Focal length (B,) in pixels that explains a point map (B, H, W, 3), principal point at (W // 2, H // 2).

    Minimises sum |pixel offset - f (x/z, y/z)| by Weiszfeld iterations from the least-squares value. 0 if the best
    focal length is negative (a mirrored map), or if single points lie in the camera's plane.
    """
    # One plane per coordinate, because sums over a last dimension of two are slow. offset (2, K), slope (B, 2, K).
    offset = _centred_pixels(points).flatten(0, 1).T.contiguous()
    slope = (points[..., :2] / points[..., 2:]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    slope = slope.flatten(1, 2).mT.contiguous()
    along, square = (slope * offset).unbind(1), slope.square().unbind(1)
    terms = torch.stack((along[0] + along[1], square[0] + square[1]), dim=1)
    focal = _quotient(terms)
    for _ in range(iterations):
        miss = torch.addcmul(offset, slope, focal[:, None, None], value=-1).square_()
        weight = (miss[:, :1] + miss[:, 1:]).clamp_min_(1e-16).rsqrt_()  # 1 / distance
        focal = _quotient(terms * weight)
    return focal.clamp_min(0)


def _quotient(terms: Tensor) -> Tensor:
    """Ratio (B,) of the sums of the two terms (B, 2, K)."""
    first, second = terms.sum(2).unbind(1)
    return first / second


def median_focal_from_points(points: Tensor, votes: int) -> Tensor:
    """As `focal_from_points`, by the median over about `votes` pixels: coarser, but robust to single outliers."""
    step = max(1, round((points.shape[1] * points.shape[2] / votes) ** 0.5))
    points, pixels = points[:, ::step, ::step], _centred_pixels(points)[::step, ::step]
    focal = (pixels * points[..., 2:] / points[..., :2]).flatten(1)
    ordered = torch.where(focal.isnan(), torch.inf, focal).sort(dim=1).values
    middle = ((~focal.isnan()).sum(1, keepdim=True) - 1).clamp_min(0) // 2
    return ordered.gather(1, middle)[:, 0].clamp_min(0)


def _centred_pixels(points: Tensor) -> Tensor:
    """(column, row) of every pixel of a point map (B, H, W, 3) from its principal point: (H, W, 2)."""
    height, width = points.shape[1:3]
    return pixel_grid((height, width), points.device) - constant((width // 2, height // 2), points.device)


def pinhole(focal: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,) focal lengths in pixels -> (B, 3, 3), principal point at (W // 2, H // 2) as the rays were trained."""
    matrix = torch.zeros(len(focal), 3, 3, device=focal.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = size[1] // 2, size[0] // 2, 1
    return matrix


@functools.lru_cache(maxsize=16)
def assumed_intrinsics(size: tuple[int, int], device: torch.device) -> Tensor:
    """(3, 3) for an H x W image from an unknown lens: the diagonal as focal length (53 degrees of view)."""
    height, width = size
    diagonal = (height**2 + width**2) ** 0.5
    with torch.inference_mode(False):
        return torch.tensor(
            ((diagonal, 0, (width - 1) / 2), (0, diagonal, (height - 1) / 2), (0, 0, 1)),
            dtype=torch.float32,
            device=device,
        )


def pixel_rays(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """K^-1 (column, row, 1) of every pixel of an H x W image: (B, H, W, 3), z = 1, from K (B, 3, 3).

    K is upper triangular with 1 as its last element, so it needs no solver, which would synchronise a GPU.
    """
    fx, skew, cx, fy, cy = (intrinsics[:, row, column, None, None] for row, column in _CAMERA_NUMBERS)
    columns, rows = pixel_grid(size, intrinsics.device).unbind(-1)
    y = (rows - cy) / fy
    x = (columns - cx - skew * y) / fx
    return torch.stack((x, y, torch.ones_like(x)), dim=-1)


def back_project(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Return points (B, ..., H, W, 3) in the camera frame from depth (B, ..., H, W) along z and K (B, 3, 3)."""
    rays = pixel_rays(intrinsics, (depth.shape[-2], depth.shape[-1]))
    return rays.view(len(rays), *[1] * (depth.ndim - 3), *rays.shape[1:]) * depth[..., None]


def ray_map(pose: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Camera centre and ray through each pixel, in the world: (B, H, W, 6) from c2w (B, 4, 4) and K (B, 3, 3)."""
    directions = pixel_rays(intrinsics, size)
    # The whole pose, including its translation, is applied to the direction before normalising. This is not the
    # geometry of a ray, but the public weights were trained with it.
    directions = transform_points(pose, directions)
    directions = directions / (directions.norm(dim=-1, keepdim=True) + 1e-8)
    centre = pose[:, None, None, :3, 3].expand_as(directions)
    return torch.cat((centre, directions), dim=-1)
