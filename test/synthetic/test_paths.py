"""Suites of long paths: one that comes back, one in a single place."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from raymap3r_ros.synthetic import RATE, SUITES, WORLDS, Recipe, random_scenes, render, suite_sequence
from raymap3r_ros.synthetic.paths import returning
from raymap3r_ros.synthetic.suites import KIDNAPS, Frame, SyntheticSequence
from raymap3r_ros.synthetic.worlds import camera_poses

SIZE = (24, 32)
FRAMES = SUITES["revisit"].frames
STAMPS = torch.arange(FRAMES) / RATE


def seen_share(points: torch.Tensor, pose: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """The share of points (B, N, 3) in the images of cameras (B, F, 4, 4), whatever is in front of them: (B, F)."""
    own = (points[:, None] - pose[..., None, :3, 3]) @ pose[..., :3, :3]
    pixel = own @ intrinsics[:, None].mT
    column, row = (pixel[..., axis] / pixel[..., 2] for axis in (0, 1))
    inside = (own[..., 2] > 0) & (column > -0.5) & (column < SIZE[1] - 0.5) & (row > -0.5) & (row < SIZE[0] - 0.5)
    return inside.float().mean(-1)


@pytest.mark.parametrize("world", WORLDS)
def test_the_camera_leaves_and_comes_back(world: str):
    generator = torch.Generator().manual_seed(4)
    scenes = random_scenes(generator, 12, dataclasses.replace(SUITES["revisit"].recipe, world=world))
    scenes = returning(scenes, (FRAMES - 1) / RATE, centred=world == "one_room")
    pose = camera_poses(scenes, STAMPS.expand(12, -1))
    torch.testing.assert_close(pose[:, -1], pose[:, 0], atol=1e-4, rtol=0)
    first = render(scenes, torch.zeros(12, 1), SIZE, generator, with_images=False)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in SIZE), indexing="ij")
    pixels = torch.stack((columns, rows, torch.ones_like(rows)), dim=-1).float()
    rays = pixels.flatten(0, 1) @ torch.linalg.inv(first.intrinsics).mT
    points = (rays * first.static_depth[:, 0].flatten(1)[..., None]) @ pose[:, 0, :3, :3].mT + pose[:, :1, :3, 3]
    share = seen_share(points, pose, first.intrinsics)
    assert (share[:, 0] == 1).all() and (share[:, -1] > 0.98).all()
    assert (share[:, 800:1200] == 0).all()  # nothing of the first view is in sight
    assert (pose[:, 1:, :3, 3] - pose[:, :-1, :3, 3]).norm(dim=-1).max() < 0.1  # without jumps


@pytest.mark.parametrize(("suite", "frames"), [("revisit", 2000), ("endurance", 10_000)])
def test_long_suites_have_movers_and_few_sequences(suite: str, frames: int):
    sequence = suite_sequence(suite, 1, world="one_room", size=SIZE)
    assert (sequence.length, sequence.name) == (frames, f"one_room-{suite}-01")
    assert SUITES[suite].sequences > 1 and SUITES[suite].sequences * frames < 25_000
    assert SUITES[suite].recipe == SUITES["long"].recipe and SUITES[suite].share == SUITES["long"].share
    time = torch.linspace(0, frames / RATE, 40)[None]
    seen = render(sequence.scenes, time, SIZE, torch.Generator().manual_seed(0), with_images=False)
    low, high = SUITES[suite].share
    assert low - 0.1 < seen.moving.float().mean() < high + 0.1
    ends = camera_poses(sequence.scenes, torch.tensor([[0.0, (frames - 1) / RATE]]))[0]
    assert torch.allclose(ends[0], ends[1], atol=1e-4) is (suite == "revisit")


def test_the_camera_is_carried_elsewhere_and_back():
    sequence = suite_sequence("kidnap", 1, world="one_room", size=SIZE)
    frames = list(sequence.frames())
    assert len(frames) == sequence.length == SUITES["kidnap"].frames
    stays = [list(stay) for _, stay in itertools.groupby(frames, key=lambda frame: frame.jumps)]
    assert [stay[0].jumps for stay in stays] == list(range(1 + 2 * KIDNAPS))
    assert [stay[0].room for stay in stays] == [0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
    assert all(after[0].stamp - before[-1].stamp == pytest.approx(30) for before, after in itertools.pairwise(stays))
    for number, stay in enumerate(stays):
        assert len(stay) > 20 and np.allclose(np.diff([frame.stamp for frame in stay]), 1 / RATE)
        shown = np.stack([frame.pose for frame in stay])
        path = camera_poses(sequence.scenes, torch.tensor([[frame.stamp for frame in stay]]).float())[0].numpy()
        if number % 2 == 0:
            np.testing.assert_allclose(shown, path, atol=1e-5)
        elif stay[0].room == 0:
            assert np.linalg.norm(shown[:, :3, 3] - path[:, :3, 3], axis=1).max() > 0.3
        assert (np.median(distance_from_surfaces(sequence, stay[0])) < 1e-4) == (stay[0].room == 0)


def distance_from_surfaces(sequence: SyntheticSequence, frame: Frame) -> np.ndarray:
    """Distance of the points of a frame from the surfaces of the first room."""
    rows, columns = np.indices(SIZE)
    rays = np.stack((columns, rows, np.ones(SIZE)), axis=-1) @ np.linalg.inv(frame.intrinsics).T
    own = (rays * frame.static_depth[..., None]).reshape(-1, 3)
    return sequence.surface_distance(own @ frame.pose[:3, :3].T + frame.pose[:3, 3])


def test_surfaces_of_a_sequence_are_those_of_its_images():
    """Points of the static depth have no distance, and points at half of it at most half of their depth."""
    sequence = suite_sequence("light", 0, world="one_room", size=SIZE)
    for frame in itertools.islice(sequence.frames(), 0, 12, 4):
        rows, columns = np.indices(SIZE)
        rays = np.stack((columns, rows, np.ones(SIZE)), axis=-1) @ np.linalg.inv(frame.intrinsics).T
        for share in (1.0, 0.5):
            own = (rays * share * frame.static_depth[..., None]).reshape(-1, 3)
            distance = sequence.surface_distance(own @ frame.pose[:3, :3].T + frame.pose[:3, 3])
            if share == 1:
                assert distance.max() < 1e-4
            else:
                assert (distance > 0.01).mean() > 0.95
                assert (distance <= np.linalg.norm(own, axis=1) + 1e-4).all()


def test_suites_keep_their_scenes():
    """The seeds are part of all published numbers."""
    assert {name: suite.seed for name, suite in SUITES.items()} == {
        "static": 1, "light": 2, "heavy": 3, "long": 4, "stopgo": 5, "tune": 6, "revisit": 7, "endurance": 8,
        "kidnap": 9, "session": 10,
    }  # fmt: skip
    scenes = random_scenes(torch.Generator().manual_seed(1), 1, Recipe("one_room"))
    place = camera_poses(scenes, torch.tensor([[1.5]]))[0, 0, :3, 3]
    torch.testing.assert_close(place, torch.tensor((-0.3439, -0.0294, 1.1797)), atol=1e-3, rtol=0)
