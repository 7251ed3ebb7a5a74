"""Worlds with a unit of length that the estimator must find, and the sensors and camera paths in them."""

from types import SimpleNamespace

import numpy as np
import torch

SIZE = (60, 80)
FRAMES, PERIOD = 32, 0.5  # seconds
HIDDEN = 0.4  # metres in one network unit
BEAM = 0.35  # radians, of an ultrasonic sensor
LEVER = np.array([0.3, 0.1, 0.5])  # of the camera from the base, metres
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # camera axes in the base frame
BASE_FROM_CAMERA = np.block([[OPTICAL, LEVER[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])


def point_map(depth, intrinsics):
    rows, columns = torch.meshgrid(torch.arange(depth.shape[0]), torch.arange(depth.shape[1]), indexing="ij")
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    return torch.stack((x, y, torch.ones_like(x)), dim=-1) * depth[..., None]


def as_seen(points, moving=None, motion=True):
    """The maps of a result with high confidence at all points (H, W, 3). `motion`: whether motion was estimated."""
    moving = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device) if moving is None else moving
    confidence = torch.full(points.shape[:2], 5.0, device=points.device)
    return SimpleNamespace(points=points, confidence=confidence, dynamic_mask=moving, motion=motion)


def depth_noise(generator, frames, correlated=0.07, single=0.02):
    """Factors (F, H, W) on depth: one error per region, and one per pixel."""
    coarse = torch.randn(frames, 1, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)[:, 0]
    return torch.exp(correlated * smooth + single * torch.randn(frames, *SIZE, generator=generator))


def wall(distance, size=SIZE, focal=66.0):
    intrinsics = torch.tensor(((focal, 0, size[1] / 2), (0, focal, size[0] / 2), (0, 0, 1)))
    return point_map(torch.full(size, distance), intrinsics)


def drive(speed, turn, rate=50.0):
    """Base poses (T, 4, 4) at `rate` Hz from speeds (T,) m/s and angular velocities (T,) rad/s."""
    yaw = np.cumsum(turn) / rate
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(yaw)
    poses[:, 1, 0] = np.sin(yaw)
    poses[:, 0, 1] = -np.sin(yaw)
    poses[:, 0, 3], poses[:, 1, 3] = np.cumsum(speed * np.cos(yaw)) / rate, np.cumsum(speed * np.sin(yaw)) / rate
    return poses


def ride(metric, truth, odometry, mount=None, jitter=0.005, seed=0):
    """Estimates at 10 Hz, from odometry at 50 Hz that arrives after the images."""
    generator = np.random.default_rng(seed)
    cameras = truth @ BASE_FROM_CAMERA
    start = np.linalg.inv(cameras[0])
    estimates = []
    for index, pose in enumerate(odometry):
        stamp = 5.0 + index / 50
        if index % 5 == 0:
            seen = start @ cameras[index]
            seen[:3, 3] = seen[:3, 3] / HIDDEN + generator.normal(0, jitter / HIDDEN, 3)
            if mount is not None:
                metric.mount_camera(mount)  # for every image, as after a lookup in tf2
            estimates.append(metric.update(stamp, seen, None))
        metric.add_odometry(stamp, pose)
    return estimates
