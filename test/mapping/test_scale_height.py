"""Metric scale from the height above the floor: tilted cameras, tables, walls, furniture and moving objects."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from scale_worlds import FRAMES, HIDDEN, PERIOD, SIZE, as_seen, depth_noise, point_map, wall

from raymap3r_ros.mapping.scale import MetricScale, ScaleOptions
from raymap3r_ros.mapping.scale.sources.height import height_above_floor


def floor_height(points, up=None, confidence=None):
    seen = as_seen(points)
    return height_above_floor(
        points, seen.confidence if confidence is None else confidence, seen.dynamic_mask, 1.5, up
    )


@pytest.mark.parametrize("pitch", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("roll", [0.0, 0.15])
@pytest.mark.parametrize("up_known", [True, False])
def test_height_above_a_bare_floor(pitch, roll, up_known):
    """Closed form: depth of the floor, or of a wall 4 m ahead, for a tilted camera 0.7 m up."""
    rays = wall(1.0)
    turn_x = torch.tensor(((1, 0, 0), (0, math.cos(pitch), -math.sin(pitch)), (0, math.sin(pitch), math.cos(pitch))))
    turn_z = torch.tensor(((math.cos(roll), -math.sin(roll), 0), (math.sin(roll), math.cos(roll), 0), (0, 0, 1)))
    level = rays @ (turn_x.mT @ turn_z).mT  # x right, y down along gravity, z ahead
    depth = torch.minimum(
        torch.where(level[..., 1] > 0, 0.7 / level[..., 1], torch.inf),
        torch.where(level[..., 2] > 0, 4.0 / level[..., 2], torch.inf),
    )
    up = tuple((turn_z.mT @ turn_x @ torch.tensor((0.0, -1.0, 0.0))).tolist())
    height, roughness = floor_height(rays * depth[..., None] / HIDDEN, up if up_known else None).tolist()
    assert height * HIDDEN == pytest.approx(0.7, rel=0.025)  # the lowest rows of the wall are within the floor's band
    assert roughness < 0.02


def test_no_floor_no_height():
    assert floor_height(wall(2.0)).isnan().all()  # only a wall
    assert floor_height(wall(2.0), up=(0.0, -1.0, 0.0)).isnan().all()
    assert floor_height(torch.full((*SIZE, 3), torch.nan)).isnan().all()
    assert floor_height(torch.zeros(*SIZE, 3)).isnan().all()
    rays = wall(1.0)
    ceiling = rays * (1.5 / (-rays[..., 1:2]).clamp_min(1e-2))
    assert floor_height(ceiling).isnan().all()
    ground = rays * (1.5 / rays[..., 1:2].clamp_min(1e-2))
    assert floor_height(ground).isfinite().all()
    assert floor_height(ground, confidence=torch.ones(SIZE)).isnan().all()


def test_a_table_is_not_mistaken_for_the_floor_around_it():
    rays = wall(1.0)
    y = rays[..., 1:2].clamp_min(1e-3)
    floor, table = 1.2 / y, 0.5 / y
    standing = (table * rays[..., 2:] < 3.0) & (rays[..., :1] < 0.2)
    assert (standing & (rays[..., 1:2] > 0)).sum() > (~standing & (rays[..., 1:2] > 0.2)).sum()
    points = rays * torch.where(standing, table, floor)
    assert floor_height(points)[0] == pytest.approx(1.2, rel=0.02)


@pytest.mark.parametrize(("up_known", "tolerance"), [(True, 0.04), (False, 0.1)])
def test_height_finds_the_scale(worlds, up_known, tolerance):
    """In all worlds: furniture, moving objects, noise, and an up direction with an error of a degree or unknown."""
    _, seen = worlds
    errors = []
    for world in range(6):
        generator = torch.Generator().manual_seed(world)
        noise = depth_noise(generator, FRAMES)
        tilt = 0.02 * torch.randn(FRAMES, 3, generator=generator)
        metric = MetricScale(ScaleOptions(source="height", camera_height=1.0))
        for frame in range(0, FRAMES, 2):
            pose = seen.pose[world, frame].double()
            # The cameras of these worlds move up and down, so the unit of length is set to the current height.
            unit = HIDDEN * pose[2, 3].item()
            if up_known:
                metric.source.up = tuple((pose[2, :3] + tilt[frame]).tolist())
            points = point_map(seen.depth[world, frame] * noise[frame], seen.intrinsics[world]) / unit
            numbers = metric.look(as_seen(points, seen.moving[world, frame]), 1.5)
            estimate = metric.update(PERIOD * frame, np.eye(4), numbers.numpy())
        errors.append(estimate.factor / HIDDEN - 1 if estimate.known else math.nan)
    errors = np.array(errors)
    print(f"\nheight, up {'known' if up_known else 'assumed'}: errors {np.round(errors, 3)}")
    assert np.isfinite(errors).sum() >= 3
    assert np.nanmax(np.abs(errors)) < tolerance


def test_no_floor_in_view_leaves_the_scale_unknown():
    metric = MetricScale(ScaleOptions(source="height", camera_height=1.0, value=0.9))
    for frame in range(50):
        points = wall(2.0) * depth_noise(torch.Generator().manual_seed(frame), 1)[0][..., None]
        estimate = metric.update(0.2 * frame, np.eye(4), metric.look(as_seen(points), 1.5).numpy())
    assert (estimate.known, estimate.factor) == (False, 0.9)
    assert estimate.confidence < 0.2
