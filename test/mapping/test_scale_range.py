"""Metric scale from a range sensor: beams, dropouts, readings without an echo, and sensors that point elsewhere."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
from scale_worlds import BEAM, FRAMES, HIDDEN, OPTICAL, PERIOD, SIZE, as_seen, depth_noise, point_map, wall

from raymap3r_ros.errors import InputError
from raymap3r_ros.mapping.scale import MetricScale, RangeReading, ScaleOptions
from raymap3r_ros.mapping.scale.method import MIN_BEAM
from raymap3r_ros.mapping.scale.sources.range_sensor import RangeSource, distance_ahead

OPTIONS = ScaleOptions(source="range")


def ahead(points, beam=BEAM, confidence=None, moving=None):
    seen = as_seen(points, moving)
    return distance_ahead(points, seen.confidence if confidence is None else confidence, seen.dynamic_mask, beam, 1.5)


@pytest.mark.parametrize("size", [SIZE, (288, 512), (512, 384), (37, 53)])
@pytest.mark.parametrize("beam", [0.0, BEAM, 1.2])
def test_distance_to_a_wall(size, beam):
    """The axis is the shortest ray; the median ray in the cone is longer by a factor below 1 / cos(beam / 2)."""
    distance, uncertainty = ahead(wall(2.0, size, focal=0.8 * max(size)), beam).tolist()
    assert distance == pytest.approx(2.0, rel=0.01)
    assert 0 <= uncertainty <= 1 / math.cos(max(beam, MIN_BEAM) / 2) - 1


def test_the_nearest_surface_of_the_beam_counts():
    pole, behind = wall(1.0), wall(3.0)
    points = behind.clone()
    points[:, 38:43] = pole[:, 38:43]
    assert ahead(points)[0] == pytest.approx(1.0, abs=0.03)
    points[:, 38:43] = behind[:, 38:43]
    points[:, 60:] = pole[:, 60:]  # out of the beam
    assert ahead(points)[0] == pytest.approx(3.0, abs=0.05)


def test_no_distance_where_the_beam_is_moving_or_unknown():
    points = wall(2.0)
    moving = torch.zeros(SIZE, dtype=torch.bool)
    moving[:, 37:43] = True
    assert ahead(points, moving=moving).isnan().all()
    moving[:, 37:43], moving[:, 66:] = False, True
    assert ahead(points, moving=moving).isfinite().all()
    assert ahead(points, confidence=torch.ones(SIZE)).isnan().all()
    assert ahead(torch.full_like(points, torch.nan)).isnan().all()


@pytest.mark.parametrize("distance", [math.inf, -math.inf, math.nan, 0.1, 4.0, -1.0])
def test_invalid_readings_are_left_out(distance):
    source = RangeSource()
    source.add(RangeReading(1.0, distance, 0.1, 4.0, BEAM))
    assert source.observe(1.0, np.eye(4), np.array((2.0, 0.01)), OPTIONS) == []


def test_readings_are_matched_to_the_time_of_the_image():
    source = RangeSource()
    source.add(RangeReading(1.0, 2.0, 0.1, 4.0, BEAM))
    assert (
        source.observe(1.04, np.eye(4), np.array((1.0, 0.01)), OPTIONS) == []
    )  # the next reading may be nearer in time
    source.add(RangeReading(1.05, 3.0, 0.1, 4.0, BEAM))
    (found,) = source.observe(1.5, np.eye(4), np.array((1.0, 0.01)), OPTIONS)
    assert (found.stamp, found.log_scale) == (1.04, pytest.approx(math.log(3.0)))
    source.add(RangeReading(2.0, 2.0, 0.1, 4.0, BEAM))
    assert source.observe(2.0, np.eye(4), np.array((1.0, 0.01)), OPTIONS)[0].stamp == 2.0  # no reading near 1.5


def ranger(z, degrees=0.0):
    """Pose of a sensor in the camera's optical frame: `z` metres ahead, rotated to the right by `degrees`."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix() @ OPTICAL.T
    pose[:3, 3] = 0.1, 0.05, z
    return pose


def test_range_sensor_with_an_offset():
    """A wall 4 m from the camera, which is 2 network units; closed form."""
    for z in (-0.5, 0.0, 1.0):
        metric = MetricScale(ScaleOptions(source="range"))
        metric.mount_ranger(ranger(z))
        for second in range(20):
            metric.add_range(RangeReading(float(second), 4.0 - z, 0.1, 10.0, 0.05))
            seen = metric.look(as_seen(wall(2.0, SIZE, 60.0)), 1.5).numpy()
            estimate = metric.update(float(second), np.eye(4), seen)
        assert estimate.known and estimate.factor == pytest.approx(2.0, rel=1e-3)


def test_range_sensor_that_points_elsewhere():
    metric = MetricScale(ScaleOptions(source="range"))
    metric.add_range(RangeReading(0.0, 4.0, 0.1, 10.0, 0.05))
    seen = as_seen(wall(2.0, SIZE, 60.0))
    with pytest.raises(InputError, match=r"points 90 degrees away .*; allowed: up to 10"):
        metric.mount_ranger(ranger(0.0, 90.0))
    assert metric.look(seen, 1.5) is None
    metric.mount_ranger(ranger(0.0, -9.0))
    assert metric.look(seen, 1.5) is not None
    with pytest.raises(InputError, match=r"not a \(4, 4\) pose"):
        metric.mount_ranger(np.full((4, 4), np.nan))


def true_range(depth, intrinsics, beam):
    """The shortest of all rays in the beam, from exact depths."""
    points = point_map(depth, intrinsics).double().numpy().reshape(-1, 3)
    length = np.linalg.norm(points, axis=1)
    return length[points[:, 2] > math.cos(beam / 2) * length].min()


@pytest.mark.parametrize(("beam", "tolerance"), [(BEAM, 0.08), (0.06, 0.06)])
def test_range_sensor_finds_the_scale(worlds, beam, tolerance):
    """In all worlds: dropouts, readings without an echo, and 30 % outliers among the others."""
    _, seen = worlds
    generator = np.random.default_rng(4)
    errors = []
    for world in range(6):
        noise = depth_noise(torch.Generator().manual_seed(world), FRAMES)
        metric = MetricScale(ScaleOptions(source="range"))
        for frame in range(FRAMES):
            stamp, depth = 100 + PERIOD * frame, seen.depth[world, frame]
            reading = true_range(depth, seen.intrinsics[world], beam) * generator.normal(1, 0.01)
            if generator.random() < 0.3:
                reading *= generator.uniform(0.2, 1.2)
            if generator.random() < 0.2:
                reading = math.inf
            metric.add_range(RangeReading(stamp + 0.02, reading, 0.02, 20.0, beam))
            points = point_map(depth * noise[frame], seen.intrinsics[world]) / HIDDEN
            numbers = metric.look(as_seen(points, seen.moving[world, frame]), 1.5)
            estimate = metric.update(stamp, np.eye(4), numbers.numpy())
        errors.append(estimate.factor / HIDDEN - 1 if estimate.known else math.nan)
    errors = np.array(errors)
    print(f"\nrange, beam of {beam} rad: errors {np.round(errors, 3)}")
    assert np.isfinite(errors).sum() >= 4
    assert np.nanmax(np.abs(errors)) < tolerance
