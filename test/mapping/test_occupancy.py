"""The occupancy grid of a mapped room with known walls, and of constructed points."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import rooms

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping import OccupancyOptions, StaticMap, floor_height, occupancy_grid
from raymap3r_ros.mapping.occupancy import FREE, MAX_SIDE, OCCUPIED, UNKNOWN

OPTIONS = OccupancyOptions(resolution=0.1)


def cell(grid, x: float, y: float) -> int:
    column, row = np.floor((np.array((x, y)) - grid.origin) / grid.resolution).astype(int)
    return int(grid.cells[row, column])


def centres(grid) -> tuple[np.ndarray, np.ndarray]:
    """x (rows, columns) and y (rows, columns) of the middle of every cell."""
    rows, columns = grid.cells.shape
    return np.meshgrid(
        grid.origin[0] + (np.arange(columns) + 0.5) * grid.resolution,
        grid.origin[1] + (np.arange(rows) + 0.5) * grid.resolution,
    )


def ros_from_first(first: np.ndarray, scale: float) -> np.ndarray:
    """Similarity from the frame of the first camera, in units of `scale` metres, to a level world whose
    origin is that camera and whose axes are the room's."""
    similarity = np.eye(4)
    similarity[:3, :3] = scale * first[:3, :3]
    return similarity


def test_floor_of_a_room_is_free_and_its_walls_are_occupied():
    """Mapped as in a node: in the frame of the first camera, in units other than metres."""
    scale = 2.5
    poses = rooms.walk(24)
    poses += [rooms.camera((0.8, 0.0, 1.3), (0.8 + np.cos(a), np.sin(a), 0.9)) for a in np.linspace(0, 6.3, 24)]
    first = poses[0].double()
    static_map = StaticMap(0.06 / scale)
    for pose in poses:
        view = rooms.view(pose, box=True)
        own = (first.inverse() @ pose.double()).float()
        own[:3, 3] /= scale
        view.but(points=view.points / scale, pose=own).into(static_map)
    points, _ = static_map.arrays()
    grid = occupancy_grid(points, static_map.voxel_size, ros_from_first(first.numpy(), scale), OPTIONS)

    assert grid.resolution == 0.1 and not grid.cropped
    assert grid.cells.dtype == np.int8 and set(np.unique(grid.cells)) == {UNKNOWN, FREE, OCCUPIED}
    assert grid.floor == pytest.approx(-first[2, 3], abs=0.03)
    x, y = centres(grid)
    x, y = x + float(first[0, 3]), y + float(first[1, 3])  # in the room's frame
    half_x, half_y, _ = rooms.HALF
    inside = (np.abs(x) < half_x - 0.15) & (np.abs(y) < half_y - 0.15)
    (box_x, box_y, _), (box_at_x, box_at_y, _) = rooms.BOX
    off = np.maximum(np.abs(x - box_at_x) - box_x, np.abs(y - box_at_y) - box_y)  # metres outside the box
    floor = inside & (off > 0.15)
    assert (grid.cells[floor] == OCCUPIED).mean() < 0.002
    seen = floor & (x > 0)  # the cameras see little of the rest, and not everything behind the box
    assert (grid.cells[seen] == FREE).mean() > 0.95
    assert (grid.cells[off < -0.05] == OCCUPIED).all()
    wall = ((np.abs(np.abs(y) - half_y) < 0.06) & (x > 0) & (x < half_x)) | (
        (np.abs(x - half_x) < 0.06) & (np.abs(y) < half_y)
    )
    assert (grid.cells[wall] == OCCUPIED).mean() > 0.6  # walls lie between two rows of cells, or in one
    assert all((grid.cells[:, column] == OCCUPIED).any() for column in np.flatnonzero((x[0] > 0) & (x[0] < half_x)))


def ground(*things: tuple[float, float, float]) -> np.ndarray:
    """A floor of 4 m x 2 m at z = -1, and additional points."""
    x, y = np.meshgrid(np.arange(-2, 2, 0.05) + 0.025, np.arange(-1, 1, 0.05) + 0.025)
    return np.concatenate((np.stack((x, y, np.full_like(x, -1)), axis=-1).reshape(-1, 3), np.reshape(things, (-1, 3))))


def test_cells_are_classified_by_height():
    things = {-0.95: FREE, -0.8: OCCUPIED, 0.45: OCCUPIED, 0.55: FREE, -1.1: FREE}  # by z, above free ground
    points = ground(*[(0.52 + 0.1 * index, 0.52, z) for index, z in enumerate(things)])
    grid = occupancy_grid(points, 0.05, np.eye(4), OccupancyOptions(resolution=0.05))
    assert grid.floor == pytest.approx(-1)
    assert [cell(grid, 0.52 + 0.1 * index, 0.52) for index in range(len(things))] == list(things.values())
    assert (grid.cells != UNKNOWN).all() and (grid.cells == OCCUPIED).sum() == 2
    # Without ground below, points that are too high or too low are no evidence.
    apart = occupancy_grid(np.array([[0, 0, 0.0], [1, 1, 3], [1, 2, -3], [3, 3, 1]]), 0.05, np.eye(4), OPTIONS, 0.0)
    assert cell(apart, 0, 0) == FREE and (apart.cells == FREE).sum() <= 4 and cell(apart, 3, 3) == OCCUPIED
    assert cell(apart, 1, 1) == UNKNOWN and cell(apart, 1, 2) == UNKNOWN


def test_a_given_floor_is_used():
    points = ground((0.5, 0.5, 0.0))
    grid = occupancy_grid(points, 0.05, np.eye(4), OPTIONS, floor=-2.0)
    assert grid.floor == -2.0 and (grid.cells == OCCUPIED).mean() > 0.99  # the ground is a metre above it


def test_cells_are_never_finer_than_voxels_and_a_floor_has_no_holes():
    """A floor of voxels, rotated against the cells, with points at random positions in the voxels."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(-3, 3, 0.1), np.arange(-3, 3, 0.1))
    points = np.stack((x, y, np.full_like(x, -0.5)), axis=-1).reshape(-1, 3)
    points[:, :2] += rng.uniform(0.03, 0.07, (len(points), 2))
    turn = np.eye(4)
    turn[:2, :2] = [[0.9, -np.sqrt(1 - 0.81)], [np.sqrt(1 - 0.81), 0.9]]
    turn[:3, :3] *= 2
    grid = occupancy_grid(points, 0.1, turn, OccupancyOptions(resolution=0.05))
    assert grid.resolution == pytest.approx(0.2)
    gx, gy = centres(grid)
    deep = np.abs(np.linalg.inv(turn[:2, :2]) @ np.stack((gx.ravel(), gy.ravel()))).max(axis=0) < 2.8
    assert (grid.cells.ravel()[deep] == FREE).all()


def test_an_outlier_does_not_enlarge_the_grid_without_limit():
    points = ground((0.5, 0.5, -0.5), (1e6, -1e6, -0.5), (np.nan, 0, 0))
    grid = occupancy_grid(points, 0.05, np.eye(4), OPTIONS)
    assert grid.cropped and grid.cells.shape == (MAX_SIDE, MAX_SIDE) and grid.resolution == 0.1
    assert cell(grid, 0.5, 0.5) == OCCUPIED and cell(grid, -1.9, -0.9) == FREE
    assert not occupancy_grid(ground(), 0.05, np.eye(4), OPTIONS).cropped


def test_without_points_or_floor_there_is_no_grid():
    assert occupancy_grid(np.empty((0, 3), np.float32), 0.05, np.eye(4), OPTIONS) is None
    assert occupancy_grid(np.array([[0, 0, 1.0]]), 0.05, np.eye(4), OPTIONS) is None
    assert np.isnan(floor_height(np.array([0.5])))


def test_the_floor_is_the_largest_level_below_the_camera():
    rng = np.random.default_rng(0)
    floor, table, ceiling = rng.normal(-1.2, 0.02, 3000), rng.normal(-0.5, 0.01, 900), np.full(5000, 1.3)
    walls = rng.uniform(-1.2, 1.3, 6000)
    assert floor_height(np.concatenate((floor, table, ceiling, walls))) == pytest.approx(-1.2, abs=0.02)


def test_options_out_of_range():
    assert not OccupancyOptions().enabled
    with pytest.raises(OptionError, match=r"min_height is 2\.0; allowed: less than max_height, which is 1\.5"):
        OccupancyOptions(min_height=2.0)
