"""The static map of rooms with known surfaces: which points are added and removed, and when."""

import itertools
import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
import rooms

from raymap3r_ros.errors import OptionError
from raymap3r_ros.mapping import PixelOptions, StaticMap, StaticMapOptions
from raymap3r_ros.mapping.static_map import EVICTION, FRAME_PIXELS, MAX_EVIDENCE, depth_slope, static_pixels
from raymap3r_ros.offline import CloudOptions
from raymap3r_ros.synthetic import suite_sequence

VOXEL = 0.06
NO_MARGIN = PixelOptions(mask_margin=0.0)
EVERY_PIXEL = PixelOptions(confidence_threshold=1.0, max_slope=10_000.0, mask_margin=0.0)


def mapped(views, voxel_size=VOXEL, **kwargs) -> StaticMap:
    static_map = StaticMap(voxel_size, **kwargs)
    for view in views:
        view.into(static_map)
    return static_map


def positions(static_map: StaticMap) -> np.ndarray:
    return static_map.arrays()[0]


# --- which pixels ----------------------------------------------------------------------------------------------


def depth_of_plane(normal, distance: float) -> torch.Tensor:
    return distance / (rooms.rays() @ torch.tensor(normal))


def keep(depth, confidence=None, mask=None, options=NO_MARGIN) -> torch.Tensor:
    confidence = torch.full(depth.shape, 5.0) if confidence is None else confidence
    mask = torch.zeros(depth.shape, dtype=torch.bool) if mask is None else mask
    return static_pixels(depth, confidence, mask, rooms.FOCAL, options)


@pytest.mark.parametrize(("degrees", "steep"), [(0, 0), (45, 1), (-40, 0.8391)])
def test_slope_of_a_plane_is_the_tangent_of_its_angle(degrees, steep):
    angle = math.radians(degrees)
    depth = depth_of_plane((math.sin(angle), 0.0, math.cos(angle)), 2.0)
    middle = depth_slope(depth, rooms.FOCAL)[rooms.SIZE[0] // 2, rooms.SIZE[1] // 2]
    assert middle == pytest.approx(steep, rel=0.03, abs=1e-4)
    assert keep(depth).float().mean() > 0.97  # also at the image's borders


def test_pixels_between_two_objects_are_left_out():
    depth = torch.full(rooms.SIZE, 4.0)
    depth[:, :40] = 1.0
    depth[:, 40:43] = torch.tensor([1.75, 2.5, 3.25])  # depths that a network predicts between them
    kept = keep(depth)
    assert not kept[:, 39:44].any()
    assert kept[:, :39].all() and kept[:, 44:].all()


def test_invalid_uncertain_and_dynamic_pixels_are_left_out():
    depth = torch.full(rooms.SIZE, 2.0)
    depth[0, 0], depth[0, 10], depth[0, 20] = torch.nan, -1, torch.inf
    confidence = torch.full(depth.shape, 5.0)
    confidence[:, 70:] = 1.2
    mask = torch.zeros(depth.shape, dtype=torch.bool)
    mask[30, 30] = True
    kept = keep(depth, confidence, mask)
    assert not kept[0, [0, 10, 20]].any() and not kept[:, 70:].any() and not kept[30, 30]
    assert kept[30, 31] and kept[1:, 40:70].all()
    wide = keep(depth, confidence, mask, PixelOptions(mask_margin=0.04))  # 4 pixels
    assert not wide[30, 26:35].any() and not wide[26:35, 30].any()
    assert wide[30, [25, 35]].all() and wide[[25, 35], 30].all()
    assert mask.sum() == 1  # the mask itself is unchanged


# --- merging ---------------------------------------------------------------------------------------------------


def points_view(points, colors) -> rooms.View:
    """A frame of arbitrary points in one row of pixels, outside the view of the camera: no points are removed."""
    points = torch.as_tensor(points, dtype=torch.float32)[None]
    return rooms.View(
        points=points,
        image=torch.as_tensor(colors, dtype=torch.uint8)[None],
        confidence=torch.full(points.shape[:2], 5.0),
        dynamic_mask=torch.zeros(points.shape[:2], dtype=torch.bool),
        intrinsics=torch.tensor([[1.0, 0, -1e6], [0, 1.0, -1e6], [0, 0, 1]]),
        pose=torch.eye(4),
    )


def test_voxels_contain_the_mean_of_their_points():
    static_map = StaticMap(1.0)
    points_view([[0.1, 0.2, 0.3], [0.5, 0.4, 0.9], [-0.1, 0.2, 0.3]], [[0, 0, 0], [10, 20, 30], [7, 7, 7]]).into(
        static_map, EVERY_PIXEL
    )
    points_view([[0.3, 0.6, 0.6], [5.5, 5.5, 5.5]], [[20, 40, 60], [1, 2, 3]]).into(static_map, EVERY_PIXEL)
    points, colors = static_map.arrays()
    order = np.argsort(points[:, 0])
    assert np.allclose(points[order], [[-0.1, 0.2, 0.3], [0.3, 0.4, 0.6], [5.5, 5.5, 5.5]])
    assert colors[order].tolist() == [[7, 7, 7], [10, 20, 30], [1, 2, 3]]
    assert points.dtype == np.float32 and colors.dtype == np.uint8 and len(static_map) == 3


def test_many_frames_of_random_points_equal_sums_in_a_dictionary():
    rng = np.random.default_rng(0)
    static_map, truth = StaticMap(0.25), {}
    for _ in range(30):
        points = rng.uniform((-2, -1, 0.01), (2, 1, 1), (200, 3)).astype(np.float32)
        points_view(points, np.zeros((200, 3))).into(static_map, EVERY_PIXEL)
        for point in points:
            truth.setdefault(tuple(np.floor(point / np.float32(0.25))), []).append(point)
    points = positions(static_map)
    found = {tuple(np.floor(point / 0.25)): point for point in points}
    assert found.keys() == truth.keys() and len(points) == len(truth)
    assert max(np.abs(found[key] - np.mean(truth[key], axis=0)).max() for key in truth) < 1e-5


@pytest.mark.parametrize("size", [0.5, 0.4, 0.1])
def test_voxels_of_another_size_equal_sums_in_a_dictionary(size):
    """Voxels are not split: each moves with its mean into a voxel of the new size, which later points extend."""
    rng = np.random.default_rng(0)
    static_map, old_size = StaticMap(0.25), np.float32(0.25)
    size = float(np.float32(size))
    truth = {}  # by voxel: points and colours, and the frames in which it was observed

    def add_frame(frame, voxel_size):
        points = rng.uniform((-2, -1, 0.01), (2, 1, 1), (200, 3)).astype(np.float32)
        colors = rng.integers(0, 256, (200, 3))
        points_view(points, colors).into(static_map, EVERY_PIXEL)
        for point, color in zip(points, colors, strict=True):
            entries, seen = truth.setdefault(tuple(np.floor(point / voxel_size)), ([], set()))
            entries.append((*point, *color))
            seen.add(frame)

    for frame in range(15):
        add_frame(frame, old_size)
    # Merged voxels have the maximum of their evidence.
    evidence = {}
    before, truth = truth, {}
    for entries, seen in before.values():
        key = tuple(np.floor(np.mean(entries, axis=0)[:3] / size))
        truth.setdefault(key, ([], set()))[0].extend(entries)
        evidence[key] = max(evidence.get(key, 0), min(len(seen), MAX_EVIDENCE))
    static_map.resize(size)
    assert static_map.voxel_size == size and len(static_map) == len(truth)
    assert (len(truth) < len(before)) == (size > 0.25)
    found = dict(zip(keys_of(static_map, size), static_map.evidence().tolist(), strict=True))
    assert found == evidence

    for frame in range(15, 20):
        add_frame(frame, np.float32(size))
    points, colors = static_map.arrays()
    assert len(points) == len(truth)
    for key, point, color in zip(keys_of(static_map, size), points, colors, strict=True):
        mean = np.mean(truth[key][0], axis=0)
        assert np.abs(point - mean[:3]).max() < 1e-5 and np.abs(color - mean[3:]).max() < 0.51


def keys_of(static_map, size):
    """Indices of the voxels."""
    return [tuple(np.floor(point / np.float32(size))) for point in positions(static_map)]


def test_returned_points_do_not_change_with_later_frames():
    static_map = StaticMap(1.0)
    points_view([[0.1, 0.2, 0.3]], [[1, 1, 1]]).into(static_map, EVERY_PIXEL)
    points, colors = static_map.arrays()
    points_view([[0.9, 0.9, 0.9]], [[9, 9, 9]]).into(static_map, EVERY_PIXEL)
    assert np.allclose(points, [[0.1, 0.2, 0.3]]) and colors.tolist() == [[1, 1, 1]]
    assert np.allclose(positions(static_map), [[0.5, 0.55, 0.6]])


def test_map_of_a_static_room_is_on_its_surfaces():
    views = [rooms.view(pose, box=True) for pose in rooms.walk(20)]
    static_map = mapped(views, 0.0)
    first_depth = views[0].points[..., 2].median()
    assert static_map.voxel_size == pytest.approx(float(first_depth) / rooms.FOCAL, rel=0.1)
    points, colors = static_map.arrays()
    box, room = rooms.distance_to_box(points), rooms.distance_to_room(points)
    away = np.minimum(box, room)
    assert np.quantile(away, 0.9) < 1e-4  # exact, except for voxels in a corner, which contain two surfaces
    assert away.max() < static_map.voxel_size
    red = colors[:, 0] > colors[:, 1] + 60
    assert red.sum() > 200 and (box[red] < static_map.voxel_size).all()
    # The map is complete: it contains the view of a camera in between.
    seen = rooms.view(rooms.walk(41)[21], box=True).world.numpy()
    missing, _ = cKDTree(points).query(seen)
    assert (missing < 2 * static_map.voxel_size).mean() > 0.98


def test_a_large_image_is_subsampled_but_completed_over_time():
    """A wall straight ahead, with voxels of the size of a pixel, which a single subsampled frame cannot fill."""
    height, width = 400, 600
    step = math.ceil(math.sqrt(height * width / FRAME_PIXELS))
    assert step == 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wall = torch.stack(((columns - 299.5) / 500, (rows - 199.5) / 500, torch.ones(height, width)), dim=-1)
    view = rooms.View(
        points=wall, image=torch.stack((columns % 256, rows % 256, 0 * rows), dim=-1).to(torch.uint8),
        confidence=torch.full((height, width), 5.0), dynamic_mask=torch.zeros(height, width, dtype=torch.bool),
        intrinsics=torch.tensor([[500.0, 0, 299.5], [0, 500, 199.5], [0, 0, 1]]), pose=torch.eye(4),
    )  # fmt: skip
    static_map = StaticMap(1 / 500)
    for frames in (1, 2):
        view.into(static_map)
        assert len(static_map) == pytest.approx(frames * height * width / step**2, rel=0.02)
    points, colors = static_map.arrays()
    assert np.abs(colors[:, 0] - np.rint(points[:, 0] * 500 + 299.5) % 256).max() == 0
    automatic = mapped([view], 0.0)
    assert automatic.voxel_size == pytest.approx(step / 500)


# --- carving ---------------------------------------------------------------------------------------------------


def box_voxels(static_map: StaticMap) -> int:
    points = positions(static_map)
    return int(((rooms.distance_to_box(points) < VOXEL) & (rooms.distance_to_room(points) > VOXEL)).sum())


def test_only_the_points_of_a_removed_box_are_removed():
    poses = rooms.walk(30)
    static_map = mapped(rooms.view(pose, box=True) for pose in poses)
    before = box_voxels(static_map)
    assert before > 400
    room = positions(static_map)[rooms.distance_to_box(positions(static_map)) > VOXEL]
    for pose in poses:
        rooms.view(pose).into(static_map)
    assert box_voxels(static_map) < 0.02 * before
    lost, _ = cKDTree(positions(static_map)).query(room)
    assert (lost < 1e-6 + VOXEL).all()
    # The floor below the box is mapped too.
    points = positions(static_map)
    under = (np.abs(points[:, :2] - rooms.BOX[1][:2]) < 0.25).all(axis=1) & (points[:, 2] < VOXEL)
    assert under.sum() > 0.8 * (0.5 / VOXEL) ** 2


def test_old_points_are_removed_as_fast_as_new_ones_and_not_by_few_frames():
    pose = rooms.walk(1)[0]
    static_map = mapped([rooms.view(pose, box=True)] * (5 * MAX_EVIDENCE))
    before = box_voxels(static_map)
    for _ in range(MAX_EVIDENCE // 2):
        rooms.view(pose).into(static_map)
    assert box_voxels(static_map) == before
    for _ in range(MAX_EVIDENCE):
        rooms.view(pose).into(static_map)
    assert box_voxels(static_map) < 0.06 * before  # the lowest points are within the tolerance of the floor


@pytest.mark.parametrize("case", ["outside", "dynamic", "uncertain"])
def test_points_are_kept_without_certain_free_space(case):
    pose = rooms.walk(1)[0]
    static_map = mapped([rooms.view(pose, box=True)] * 3)
    before = box_voxels(static_map)
    view = {
        "outside": rooms.view(rooms.camera((-1.4, 0, 1.3), (-2, 0, 0.5))),
        "dynamic": rooms.view(pose).but(dynamic_mask=rooms.view(pose, box=True).image[..., 1] < 100),
        "uncertain": rooms.view(pose).but(confidence=torch.full(rooms.SIZE, 1.2)),
    }[case]
    for _ in range(30):
        view.into(static_map)
    assert box_voxels(static_map) == before


def test_a_masked_moving_object_adds_no_points_and_removes_none_behind_it():
    """The box moves in front of a room that is mapped already."""
    pose = rooms.walk(1)[0]
    static_map = mapped([rooms.view(pose)] * 3)
    before = positions(static_map)
    mover = rooms.view(pose, box=True)
    mover = mover.but(dynamic_mask=mover.image[..., 1] < 100)
    for _ in range(30):
        mover.into(static_map)
    points, colors = static_map.arrays()
    moved, _ = cKDTree(points).query(before)  # means shift if the mask covers some pixels of a voxel
    assert len(points) == len(before) and moved.max() < VOXEL / 2
    assert (colors == rooms.GREY).all()


@pytest.mark.parametrize("suite", ["light", "heavy"])
def test_moving_objects_of_a_rendered_world_add_no_points(suite):
    """Compared with the same world rendered without moving objects."""
    sequence = suite_sequence(suite, 3, size=(48, 64))
    matrix = torch.tensor(sequence.intrinsics, dtype=torch.float32)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    rays = torch.stack((columns, rows, torch.ones(48, 64)), dim=-1) @ matrix.inverse().mT
    static_map, covered, moving = StaticMap(0.05), [], 0.0
    for frame in islice(sequence.frames(), 40):
        pose = torch.tensor(frame.pose, dtype=torch.float32)
        static_map.integrate(
            rays * torch.tensor(frame.depth)[..., None], torch.tensor(frame.image), torch.full((48, 64), 5.0),
            torch.tensor(frame.moving), matrix, pose,
        )  # fmt: skip
        truth = rays * torch.tensor(frame.static_depth)[..., None]
        covered.append((truth.flatten(0, 1) @ pose[:3, :3].mT + pose[:3, 3]).numpy())
        moving += frame.moving.mean() / 40
    assert moving > 0.02
    away, _ = cKDTree(np.concatenate(covered)).query(positions(static_map))
    assert len(static_map) > 2000
    assert (away > 0.1).mean() < 0.002


def noisy(view: rooms.View, generator: torch.Generator) -> rooms.View:
    """The view with noise of 2 % of depth, 5 mm and 0.2 degrees."""
    turn = math.radians(0.2) * torch.randn(3, generator=generator)
    skew = torch.zeros(3, 3)
    skew[[2, 0, 1], [1, 2, 0]], skew[[1, 2, 0], [2, 0, 1]] = turn, -turn
    pose = view.pose.clone()
    pose[:3, :3] = pose[:3, :3] @ torch.linalg.matrix_exp(skew)
    pose[:3, 3] += 0.005 * torch.randn(3, generator=generator)
    factor = 1 + 0.02 * torch.randn(rooms.SIZE, generator=generator)
    return view.but(points=view.points * factor[..., None], pose=pose)


def test_noise_does_not_erode_the_room():
    generator = torch.Generator().manual_seed(0)
    poses = rooms.walk(100)
    static_map = mapped(rooms.view(pose, box=True, pole=True) for pose in poses[::10])
    before = positions(static_map)
    pole = rooms.distance_to_pole(before) < VOXEL
    assert pole.sum() > 50
    for pose in poses:
        noisy(rooms.view(pose, box=True, pole=True), generator).into(static_map)
    lost, _ = cKDTree(positions(static_map)).query(before)
    assert (lost < VOXEL).mean() > 0.999
    assert (lost[pole] < VOXEL).mean() > 0.99
    # The points stay on the surfaces, within three standard deviations of the noise at 4 m.
    points = positions(static_map)
    away = np.minimum(rooms.distance_to_room(points), rooms.distance_to_box(points))
    away = np.minimum(away, rooms.distance_to_pole(points))
    assert np.quantile(away, 0.95) < 0.24


# --- bounds ----------------------------------------------------------------------------------------------------


def corridor(step: int, rng: np.random.Generator) -> rooms.View:
    """2000 points around a camera that moves by a metre along x in each step."""
    points = rng.uniform((-0.5, -1, 0.5), (0.5, 1, 2.5), (2000, 3))
    view = points_view(points, np.full((2000, 3), step))
    view.pose[0, 3] = step
    return view


def test_beyond_the_limit_the_oldest_points_are_removed_first():
    rng = np.random.default_rng(0)
    static_map = StaticMap(0.05, max_points=6000)
    for step in range(12):
        corridor(step, rng).into(static_map, EVERY_PIXEL)
        assert len(static_map) <= 6000
    points, colors = static_map.arrays()
    assert len(points) >= (1 - EVICTION) * 6000
    assert np.bincount(colors[:, 0], minlength=12)[:8].sum() == 0  # 2000 points per step: three steps fit
    assert np.bincount(colors[:, 0])[10:].min() > 1800


def test_of_the_same_age_the_farthest_are_removed_first_and_the_limit_may_change():
    rng = np.random.default_rng(0)
    static_map = StaticMap(0.05)
    points = rng.uniform((-3, -3, 0.1), (3, 3, 3), (4000, 3))
    view = points_view(points, np.zeros((4000, 3)))
    view.into(static_map, EVERY_PIXEL)
    everything = positions(static_map)
    static_map.max_points = 1000
    view.into(static_map, EVERY_PIXEL)
    distance = np.sort(np.linalg.norm(everything, axis=1))
    kept = np.linalg.norm(positions(static_map), axis=1)
    assert 0.95 * 1000 - 1 <= len(kept) <= 1000
    assert kept.max() == pytest.approx(distance[len(kept) - 1], rel=1e-3)


def test_a_whole_scene_is_kept_in_larger_voxels():
    rng = np.random.default_rng(1)
    static_map = StaticMap(0.01, max_points=2000, whole_scene=True)
    for step in range(20):
        corridor(step, rng).into(static_map, EVERY_PIXEL)
        assert len(static_map) <= 2000
    points, colors = static_map.arrays()
    assert len(points) > 500
    assert static_map.voxel_size > 0.01
    assert np.histogram(points[:, 0], bins=20, range=(-0.5, 19.5))[0].min() > 0
    assert np.abs(colors[:, 0] - np.rint(points[:, 0])).max() <= 1  # colours stay with their points


# --- odds and ends ---------------------------------------------------------------------------------------------


def test_outliers_and_invalid_points_are_ignored():
    static_map = StaticMap(0.1)
    assert [len(part) for part in static_map.arrays()] == [0, 0]
    points_view([[np.nan, 0, 1], [0, np.inf, 1], [1e30, 0, 1], [1, 2, 3]], np.zeros((4, 3))).into(
        static_map, EVERY_PIXEL
    )
    assert positions(static_map).tolist() == [[1, 2, 3]]
    nothing = points_view(np.full((5, 3), np.nan), np.zeros((5, 3)))
    nothing.into(static_map)
    assert len(static_map) == 1
    automatic = mapped([nothing], 0.0)
    assert len(automatic) == 0 and automatic.voxel_size == 0


def test_clearing_removes_the_points_and_a_voxel_size_derived_from_them():
    view = rooms.view(rooms.walk(1)[0])
    for voxel_size in (0.0, 0.1):
        static_map = mapped([view], voxel_size)
        assert len(static_map) > 100 and static_map.voxel_size > 0
        static_map.clear()
        assert len(static_map) == 0 and static_map.voxel_size == voxel_size
        view.into(static_map)
        assert len(static_map) > 100


def test_a_map_continues_from_saved_points():
    views = [rooms.view(pose) for pose in rooms.walk(6)]
    points, colors = mapped(views[:3]).arrays()
    again = StaticMap.of_points(torch.from_numpy(points), torch.from_numpy(colors), VOXEL)
    for one, other in zip(again.arrays(), (points, colors), strict=True):
        assert np.array_equal(one, other)
    for view in views[3:]:
        view.into(again)
    whole = mapped(views)
    distance, _ = cKDTree(positions(whole)).query(positions(again))
    assert 0.9 < len(again) / len(whole) < 1.1 and np.quantile(distance, 0.95) < VOXEL / 2


def test_saved_points_that_are_gone_are_removed_but_not_by_one_frame():
    lone = torch.tensor([[0.01, 0.02, 1.0]])
    static_map = StaticMap.of_points(lone, torch.tensor([[9, 8, 7]], dtype=torch.uint8), VOXEL)
    depth = torch.full((40, 40), 3.0)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    points = torch.stack(((columns - 20) / 40 * depth, (rows - 20) / 40 * depth, depth), -1)
    camera = torch.tensor([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]])
    left = []
    for _ in range(MAX_EVIDENCE):
        static_map.integrate(
            points, torch.zeros(40, 40, 3, dtype=torch.uint8), torch.full((40, 40), 9.0),
            torch.zeros(40, 40, dtype=torch.bool), camera, torch.eye(4), EVERY_PIXEL,
        )  # fmt: skip
        left.append((positions(static_map)[:, 2] < 2).sum())
    assert left[0] == 1 and left[-1] == 0


def test_two_maps_of_the_same_frames_are_the_same():
    views = [rooms.view(pose, box=True) for pose in rooms.walk(5)]
    first, second = mapped(views).arrays(), mapped(views).arrays()
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [0.0001, 0.001, 100.0])
def test_points_up_to_the_stated_reach_are_in_the_map_and_others_are_counted(size):
    """From the start to a million voxels away, in every direction."""
    reach = 1_048_576 * size
    distances = np.array([0.1, 0.5, 0.99, 1.01, 3.0]) * reach
    static_map = StaticMap(size)
    for axis, sign in itertools.product(range(3), (1, -1)):
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor(Rotation.align_vectors(sign * np.eye(3)[axis], [0, 0, 1])[0].as_matrix())
        points = torch.zeros(1, 5, 3)
        points[..., 2] = torch.tensor(distances)
        static_map.integrate(
            points, torch.zeros(1, 5, 3, dtype=torch.uint8), torch.full((1, 5), 5.0), torch.zeros(1, 5).bool(),
            torch.eye(3), pose, EVERY_PIXEL,
        )  # fmt: skip
    assert static_map.beyond == 12 and len(static_map) == 18
    found = np.sort(np.abs(positions(static_map)).max(axis=1)).reshape(3, 6)
    assert np.allclose(found, distances[:3, None], rtol=1e-5)


@pytest.mark.parametrize("options", [StaticMapOptions, CloudOptions])
def test_voxels_with_a_reach_below_100_metres_are_refused(options):
    assert options(voxel_size=0.0).voxel_size == 0 and options(voxel_size=1e-4).voxel_size == 1e-4
    for size in (1e-6, 9.9e-5, 1e-300, -1e-4):
        with pytest.raises(OptionError, match=r"voxel_size is .*; allowed range: 0\.0, or 0\.0001 to 100\.0"):
            options(voxel_size=size)


def test_options_out_of_range():
    assert StaticMapOptions().rate == 1.0 and not StaticMapOptions().always
    with pytest.raises(OptionError, match="max_points is 1; allowed range: 1000"):
        StaticMapOptions(max_points=1)
    with pytest.raises(OptionError, match=r"confidence_threshold is 0\.5; allowed range: 1"):
        PixelOptions(confidence_threshold=0.5)
