"""Values of the static map and the occupancy grid over real DDS, for a scripted stream."""

import math
import time

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scripted import (
    BOX,
    FACING_RIGHT,
    FOCAL,
    HEIGHT,
    MOVER,
    RAYS,
    ROS_FROM_OPTICAL,
    UNSURE,
    WALL,
    WIDTH,
    assert_latched,
    filled,
    paint,
    start,
    wait_for_stamp,
)
from sensor_msgs_py.point_cloud2 import read_points

VOXEL = 0.05
RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def cloud_of(message):
    """Points (n, 3) and colors (n, 3)."""
    points = read_points(message)
    bits = points["rgb"].copy().view(np.uint32)
    return np.stack([points[axis] for axis in "xyz"], -1), np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1)


def static_wall(index):
    """A wall at 1.97 m with one dynamic part and one part of low confidence."""
    return {
        "pose": FACING_RIGHT, "depth": filled(1.97), "confidence": filled(5.0, (UNSURE, 1.4)),
        "dynamic_mask": filled(False, (MOVER, True)),
    }  # fmt: skip


def expected_map(voxel=VOXEL):
    """Points (n, 3) in `map`: the mean of all pixels in each voxel."""
    keep = filled(True, (UNSURE, False), (np.s_[9:21, 19:31], False))  # the dynamic part is dilated by one pixel
    stream = (RAYS * 1.97)[keep] @ FACING_RIGHT[:3, :3].T + FACING_RIGHT[:3, 3]
    voxels = {}
    for key, point in zip(np.floor(stream / voxel).astype(int), stream, strict=True):
        voxels.setdefault(tuple(key), []).append(point)
    return np.array([np.mean(points, axis=0) for points in voxels.values()]) @ ROS_FROM_OPTICAL[:3, :3].T


def test_static_map_contains_static_and_confident_pixels(make_bench):
    bench = start(make_bench, static_wall, "static_map", static_map__voxel_size=VOXEL, static_map__rate=30.0)
    sent = [bench.send(time=index / 5, message=paint((MOVER, RED), (UNSURE, GREEN))) for index in range(3)]
    cloud = wait_for_stamp(bench, "static_map", sent[-1])
    assert cloud.header.frame_id == "map"
    points, colors = cloud_of(cloud)
    expected = expected_map()
    assert 1000 < len(expected) < 2500
    distance, nearest_point = cKDTree(points).query(expected)
    assert distance.max() < 1e-4 and len(set(nearest_point)) == len(points) == len(expected)
    assert (colors >= WALL[0]).all() and (colors <= WALL[1]).all()
    assert_latched(bench, "static_map")


def test_voxel_size_in_metres_is_kept_when_the_scale_changes(make_bench):
    bench = start(make_bench, static_wall, "static_map", static_map__voxel_size=VOXEL, static_map__rate=30.0)
    # Changes up to a tenth are tolerated; at half the scale, two voxels of the stream make one of the requested size.
    for index, (scale, voxel) in enumerate([(1.0, VOXEL), (1.08, VOXEL), (0.93, VOXEL), (0.5, 2 * VOXEL)]):
        assert bench.set_parameter("scale.value", scale).successful
        sent = bench.send(time=index / 5, message=paint((MOVER, RED), (UNSURE, GREEN)))
        points, _ = cloud_of(wait_for_stamp(bench, "static_map", sent))
        expected = scale * expected_map(voxel)
        distance, nearest_point = cKDTree(points).query(expected)
        assert distance.max() < 1e-4 and len(set(nearest_point)) == len(points) == len(expected), scale


def test_static_map_follows_the_scene_and_the_parameters(make_bench):
    def show(index):
        return {"pose": FACING_RIGHT, "depth": filled(1.97, (BOX, 1.2)) if index < 2 else filled(1.97)}

    bench = start(make_bench, show, "static_map", static_map__voxel_size=VOXEL, static_map__rate=2.0)

    def map_after(index):
        sent = bench.send(time=index / 5, message=paint((BOX, BLUE)) if index < 2 else paint())
        return cloud_of(wait_for_stamp(bench, "static_map", sent))

    # A box at y = -(0.3 + 1.2) that was observed twice is removed after the wall behind it was observed twice.
    bench.send(message=paint((BOX, BLUE)))
    points, colors = map_after(1)
    box = (colors == BLUE).all(1)
    assert box.sum() > 30 and (~box).sum() > 1000
    np.testing.assert_allclose(points[:, 1], np.where(box, -1.5, -2.27), atol=1e-4)
    assert bench.set_parameter("static_map.rate", 30.0).successful
    map_after(2)
    before = time.monotonic()
    points, colors = map_after(3)
    assert len(points) > 1000 and (colors >= WALL[0]).all() and (colors <= WALL[1]).all()
    np.testing.assert_allclose(points[:, 1], -2.27, atol=1e-4)
    assert bench.set_parameter("static_map.max_points", 1000).successful
    assert all(900 <= len(map_after(index)[0]) <= 1000 for index in range(4, 8))
    assert bench.set_parameter("static_map.max_points", 2000).successful
    assert all(1000 < len(map_after(index)[0]) <= 2000 for index in range(8, 12))
    assert time.monotonic() - before < 3.0  # at the previous rate of 2 Hz it would have taken 4.5 s


# ----------------------------------------------------------------------------------------------------------- occupancy

WALL_AHEAD, WALL_LEFT, FLOOR = 4.03, 1.03, 1.02  # metres from the camera


def room():
    """Depth image of a level camera in a room that is open to the right, with a board under the ceiling and a kerb."""
    slope_left, slope_up = -RAYS[..., 0], -RAYS[..., 1]
    with np.errstate(divide="ignore"):
        depth = np.full((HEIGHT, WIDTH), WALL_AHEAD)
        depth = np.where(slope_left > 0, np.minimum(depth, WALL_LEFT / slope_left), depth)
        depth = np.where(slope_up < 0, np.minimum(depth, -FLOOR / slope_up), depth)
        kerb = -(FLOOR - 0.1) / slope_up  # 0.1 m high
    y = slope_left * kerb
    depth = np.where((slope_up < 0) & (kerb > 2.6) & (kerb < 3.6) & (y > -0.8) & (y < -0.3), kerb, depth)
    y, z = slope_left * 2.03, slope_up * 2.03
    return np.where((y > -1.1) & (y < -0.5) & (z > 0.6) & (z < 0.9), 2.03, depth)


def test_occupancy_matches_the_room(make_bench):
    depth = room()
    bench = start(
        make_bench, lambda index: {"depth": depth}, "occupancy", occupancy__enabled=True, occupancy__resolution=0.1,
        static_map__voxel_size=VOXEL, static_map__rate=30.0,
    )  # fmt: skip

    def grid_after(index):
        grid = wait_for_stamp(bench, "occupancy", bench.send(time=index / 5))
        cells, origin = np.reshape(grid.data, (grid.info.height, grid.info.width)), grid.info.origin.position

        def cell(x, y):
            return cells[int((y - origin.y) / grid.info.resolution), int((x - origin.x) / grid.info.resolution)]

        return grid, cells, cell

    grid, cells, cell = grid_after(0)
    assert grid.header.frame_id == "map" and grid.info.resolution == pytest.approx(0.1)
    position, turn = grid.info.origin.position, grid.info.origin.orientation
    # From the nearest visible point of the left wall to the wall ahead; from that wall's right end to the left wall.
    nearest, right = WALL_LEFT / (31.5 / FOCAL), -WALL_AHEAD * 31.5 / FOCAL
    assert (position.x, position.y) == pytest.approx((math.floor(nearest * 10) / 10, math.floor(right * 10) / 10))
    assert position.z == pytest.approx(-FLOOR, abs=1e-3) and (turn.x, turn.y, turn.z, turn.w) == (0, 0, 0, 1)
    assert (grid.info.width, grid.info.height) == (25, 37)
    wall_left, wall_ahead = cells[-1], cells[:, -1]
    assert (wall_left == 100).mean() > 0.6 and (wall_ahead == 100).all()
    assert not (cells[:-1, :-1] == 100).any()
    kerb, under_board, hidden = (2.95, -0.55), (2.15, -0.85), (1.75, -2.35)
    assert [cell(*place) for place in (kerb, under_board, (2.55, 0.55), hidden)] == [0, 0, 0, -1]
    assert_latched(bench, "occupancy")

    assert bench.set_parameter("occupancy.min_height", 0.05).successful
    _, cells, cell = grid_after(1)
    assert cell(*kerb) == 100 and cell(2.95, 0.55) == cell(*under_board) == 0
    assert (cells[:-1, :-1] == 100).sum() < 60  # a metre by half a metre
    for name, value in {"min_height": 0.15, "max_height": 2.0, "resolution": 0.2}.items():
        assert bench.set_parameter(f"occupancy.{name}", value).successful
    grid, cells, cell = grid_after(2)
    assert grid.info.resolution == pytest.approx(0.2) and cells.shape == (19, 13)
    assert cell(*kerb) == 0 and cell(2.05, -0.85) == 100
