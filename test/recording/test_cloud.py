"""The static cloud of scenes with known geometry."""

import numpy as np
import pytest

from raymap3r_ros.errors import OptionError
from raymap3r_ros.recording.cloud import CloudOptions, StaticCloud, depth_slope, static_pixels

HEIGHT, WIDTH, FOCAL = 60, 80, 70.0
NO_MARGIN = CloudOptions(mask_margin=0.0)


def rays() -> np.ndarray:
    """(H, W, 3) with z = 1."""
    columns, rows = np.meshgrid(np.arange(WIDTH) - WIDTH // 2, np.arange(HEIGHT) - HEIGHT // 2)
    return np.dstack([columns / FOCAL, rows / FOCAL, np.ones_like(rows)])


def depth_of_plane(normal, distance: float) -> np.ndarray:
    return distance / (rays() @ np.asarray(normal, float))


def keep(depth, confidence=None, mask=None, options=NO_MARGIN) -> np.ndarray:
    confidence = np.full(depth.shape, 5.0) if confidence is None else confidence
    mask = np.zeros(depth.shape, bool) if mask is None else mask
    return static_pixels(depth, confidence, mask, FOCAL, options)


@pytest.mark.parametrize(("degrees", "steep"), [(0, 0), (45, 1), (-50, 1.1918)])
def test_slope_of_a_plane_is_the_tangent_of_its_angle(degrees, steep):
    angle = np.radians(degrees)
    depth = depth_of_plane((np.sin(angle), 0, np.cos(angle)), 2.0)
    middle = depth_slope(depth, FOCAL)[HEIGHT // 2, WIDTH // 2]
    assert middle == pytest.approx(steep, rel=0.03)
    assert keep(depth).mean() > 0.97  # also at the image's borders


def test_pixels_between_two_objects_are_left_out():
    depth = np.full((HEIGHT, WIDTH), 4.0)
    depth[:, :40] = 1.0
    depth[:, 40:43] = 1.75, 2.5, 3.25  # what a network puts between them
    kept = keep(depth)
    assert not kept[:, 39:44].any()
    assert kept[:, :39].all() and kept[:, 44:].all()


def test_unknown_unsure_and_moving_pixels_are_left_out():
    depth = np.full((HEIGHT, WIDTH), 2.0)
    depth[0, 0], depth[0, 10], depth[0, 20] = np.nan, -1, np.inf
    confidence = np.full(depth.shape, 5.0)
    confidence[:, 70:] = 1.2
    mask = np.zeros(depth.shape, bool)
    mask[30, 30] = True
    kept = keep(depth, confidence, mask)
    assert not kept[0, [0, 10, 20]].any() and not kept[:, 70:].any() and not kept[30, 30]
    assert kept[30, 31] and kept[1:, 40:70].all()
    wide = keep(depth, confidence, mask, CloudOptions(mask_margin=0.05))  # 4 pixels
    assert not wide[30, 26:35].any() and wide[30, 25] and wide[30, 35]


def test_voxels_hold_the_mean_of_their_points():
    cloud = StaticCloud(voxel_size=1.0)
    first = np.array([[0.1, 0.2, 0.3], [0.5, 0.4, 0.9], [-0.1, 0.2, 0.3]])
    cloud.add(first, np.array([[0, 0, 0], [10, 20, 30], [7, 7, 7]]))
    cloud.add(np.array([[0.3, 0.6, 0.6], [5.5, 5.5, 5.5]]), np.array([[20, 40, 60], [1, 2, 3]]))
    points, colors = cloud.arrays()
    order = np.argsort(points[:, 0])
    assert np.allclose(points[order], [[-0.1, 0.2, 0.3], [0.3, 0.4, 0.6], [5.5, 5.5, 5.5]])
    assert colors[order].tolist() == [[7, 7, 7], [10, 20, 30], [1, 2, 3]]
    assert points.dtype == np.float32 and colors.dtype == np.uint8


def test_plane_seen_from_many_places_stays_one_plane():
    rng = np.random.default_rng(0)
    cloud = StaticCloud()
    for step in range(10):
        angle, position = 0.05 * step, np.array([0.1 * step, 0, 0.05 * step])
        rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        normal = rotation.T @ (0, 0, 1)  # of the wall z = 3, in the camera's frame
        depth = (3 - position[2]) / (rays() @ normal)
        kept = keep(depth)
        points = (rays() * depth[..., None])[kept] @ rotation.T + position
        cloud.add(points, rng.integers(0, 255, (len(points), 3)), np.median(depth) / FOCAL)
    points, _ = cloud.arrays()
    assert np.abs(points[:, 2] - 3).max() < 1e-5
    assert cloud.voxel_size == pytest.approx(3 / FOCAL, rel=0.05)
    # As many voxels as the plane has: seeing it ten times adds no points where it was seen before.
    spread = (np.ptp(points[:, 0]) * np.ptp(points[:, 1])) / cloud.voxel_size**2
    assert 0.6 * spread < len(points) < 1.3 * spread


def test_number_of_points_is_bounded_and_the_whole_scene_stays(monkeypatch):
    monkeypatch.setattr(StaticCloud, "PENDING", 5000)
    rng = np.random.default_rng(1)
    cloud = StaticCloud(voxel_size=0.01, max_points=2000)
    for step in range(20):  # a corridor of 20 m
        points = rng.uniform((-1, -1, step), (1, 1, step + 1), (2000, 3))
        cloud.add(points, np.full((2000, 3), 10 * step))
    points, colors = cloud.arrays()
    assert 500 < len(points) <= 2000
    assert cloud.voxel_size > 0.01
    assert np.histogram(points[:, 2], bins=20, range=(0, 20))[0].min() > 0
    assert np.abs(colors[:, 0] - 10 * np.floor(points[:, 2])).max() <= 10  # colours stay with their points


def test_stray_points_and_missing_ones_do_no_harm():
    cloud = StaticCloud(voxel_size=0.1)
    assert [len(part) for part in cloud.arrays()] == [0, 0]
    cloud.add(np.array([[np.nan, 0, 0], [np.inf, 0, 0], [1e30, 0, 0], [1, 2, 3]]), np.zeros((4, 3)))
    points, _ = cloud.arrays()
    assert np.allclose(points, [[1, 2, 3]])
    cloud.clear()
    assert len(cloud.arrays()[0]) == 0 and cloud.voxel_size == 0.1
    with pytest.raises(ValueError, match="needs a pixel size above 0"):
        StaticCloud().add(np.zeros((1, 3)), np.zeros((1, 3)))


def test_options_out_of_range():
    with pytest.raises(OptionError, match="max_points is 1; allowed range: 1000"):
        CloudOptions(max_points=1)
