"""Rendered sequences: consistent geometry over views, ground truth that fits the images, documented suites."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from raymap3r_ros.errors import OptionError
from raymap3r_ros.synthetic import SUITES, WORLDS, Recipe, random_scenes, render, suite_sequence

SIZE = (36, 48)


def rendered(recipe: Recipe, count: int = 4, frames: int = 5, spacing: float = 0.3, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(generator, count, recipe)
    return scenes, render(scenes, torch.arange(frames).expand(count, -1) * spacing, SIZE, generator)


def world_points(seen, depth):
    height, width = SIZE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack((columns, rows, torch.ones_like(rows)), dim=-1).float()
    rays = pixels @ torch.linalg.inv(seen.intrinsics)[:, None].mT
    own = rays[:, None] * depth[..., None]
    return own @ seen.pose[..., None, :3, :3].mT + seen.pose[..., None, None, :3, 3]


@pytest.mark.parametrize("world", WORLDS)
def test_all_views_show_one_static_world(world: str):
    """Points of frame 0, projected into frame 2: their pixel has the same depth or a smaller one."""
    _, seen = rendered(Recipe(world, presence=0.8))
    points = world_points(seen, seen.static_depth)[:, 0].flatten(1, 2)
    pose = seen.pose[:, 2]
    own = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    pixel = own @ seen.intrinsics.mT
    column, row = ((pixel[..., i] / pixel[..., 2]).round().long() for i in (0, 1))
    inside = (own[..., 2] > 0.1) & (column >= 0) & (column < SIZE[1]) & (row >= 0) & (row < SIZE[0])
    assert inside.float().mean() > 0.3
    there = seen.static_depth[:, 2].flatten(1).gather(1, (row * SIZE[1] + column).clamp(0, SIZE[0] * SIZE[1] - 1))
    ratio = (there / own[..., 2])[inside]
    assert (ratio - 1).abs().median() < 0.01
    assert (ratio > 1.15).float().mean() < 0.05  # surfaces are opaque, except at edges


def test_moving_objects_are_in_front_and_match_the_mask():
    _, seen = rendered(Recipe(presence=1.0, follow=1.0))
    assert 0.05 < seen.moving.float().mean() < 0.7
    assert (seen.depth <= seen.static_depth).all()
    assert (seen.moving == (seen.depth < seen.static_depth)).all()
    assert torch.isfinite(seen.depth).all() and (seen.depth > 0.05).all()
    # Static points do not change over time, points of moving objects do: compare pixels over a short time.
    _, alone = rendered(Recipe(presence=0.0))
    assert not alone.moving.any()
    assert torch.equal(alone.depth, alone.static_depth)


def test_poses_are_rigid_and_cameras_are_level():
    _, seen = rendered(Recipe(), count=32, frames=8)
    rotation = seen.pose[..., :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(rotation.shape[:2]), atol=1e-5)
    down = rotation[..., 1]
    assert (down[..., 2] < -0.5).all()  # the image's y axis points to the floor
    assert (seen.pose[..., 2, 3] > 0.2).all()


def test_moving_objects_have_the_appearance_of_the_world():
    """Brightness and saturation do not identify moving objects: their means over many scenes differ little."""
    generator = torch.Generator().manual_seed(5)
    scenes = random_scenes(generator, 150, Recipe(presence=0.9, follow=0.8))
    seen = render(scenes, torch.tensor([[0.0]]).expand(150, 1), SIZE, generator)
    image = seen.image.float() / 255
    saturation = image.amax(-1) - image.amin(-1)
    for value in (image.mean(-1), saturation):
        moving = torch.stack([v[m].mean() for v, m in zip(value, seen.moving, strict=True) if m.sum() > 50])
        static = torch.stack([v[~m].mean() for v, m in zip(value, seen.moving, strict=True) if m.sum() > 50])
        gap = (moving.mean() - static.mean()).abs()
        assert gap < 0.5 * static.std(), (moving.mean(), static.mean(), static.std())


def test_images_have_texture():
    _, seen = rendered(Recipe("one_room", presence=0.0), count=16, frames=1)
    grey = seen.image.float().mean(-1)
    assert grey.flatten(2).std(-1).min() > 8  # of 255 levels
    assert (grey.flatten(2).mean(-1) > 20).all()


def test_moving_objects_of_the_one_room_have_constant_sizes():
    """For any recipe, an object has the same size in all scenes of the room; in varied worlds, sizes differ."""
    generator = torch.Generator().manual_seed(0)
    for world, same in (("one_room", True), ("varied", False)):
        small, large = (random_scenes(generator, 20, Recipe(world, presence=0.9, size=size)) for size in (0.8, 1.6))
        box = torch.cat((small.mover_half[:, 0], large.mover_half[:, 0]))
        box = box[box[:, 0] > 0]
        assert len(box) > 20 and bool((box.std(0) < 1e-6).all()) is same


def test_one_room_is_one_place_and_varied_is_not():
    for world, same in (("one_room", True), ("varied", False)):
        scenes, _ = rendered(Recipe(world), count=3, frames=1)
        assert torch.equal(scenes.room[0], scenes.room[1]) is same
        assert torch.equal(scenes.static["box"][1][0], scenes.static["box"][1][2]) is same
        assert not torch.equal(scenes.camera_heading[0], scenes.camera_heading[1])
        assert not torch.equal(scenes.mover_half[0], scenes.mover_half[1])


def test_any_frame_can_be_rendered_alone():
    generator = torch.Generator().manual_seed(0)
    scenes = random_scenes(generator, 2, Recipe(presence=1.0))
    time = torch.tensor([[0.0, 0.7, 3.1]]).expand(2, -1)
    together = render(scenes, time, SIZE, generator, with_images=False)
    alone = render(scenes[torch.tensor([1])], time[1:, 2:], SIZE, generator, with_images=False)
    assert torch.allclose(alone.depth[0, 0], together.depth[1, 2], atol=1e-4)
    assert torch.allclose(alone.pose[0, 0], together.pose[1, 2], atol=1e-6)


@pytest.mark.parametrize(
    "suite", [name for name in SUITES if name not in ("revisit", "endurance", "kidnap", "session")]
)
def test_a_suite_keeps_its_share_of_moving_pixels(suite: str):
    low, high = SUITES[suite].share
    assert SUITES[suite].sequences >= 20 and SUITES[suite].frames >= 60
    for world, index in itertools.product(WORLDS, (0, SUITES[suite].sequences - 1)):
        sequence = suite_sequence(suite, index, world=world, size=(24, 32))
        frames = list(itertools.islice(dataclasses.replace(sequence, length=60).frames(), 0, 60, 6))
        share = np.mean([frame.moving.mean() for frame in frames])
        slack = 0.15 if suite == "long" else 0.05  # the sequences are selected by 8 frames over the whole length
        assert low - slack <= share <= high + slack, (world, index, share)


def test_a_sequence_is_the_same_each_time_and_different_from_all_others():
    sequence = dataclasses.replace(suite_sequence("light", 2, world="one_room", size=SIZE), length=13)
    first, again = list(sequence.frames()), list(sequence.frames())
    assert len(first) == 13 and [frame.stamp for frame in first] == pytest.approx([i / 10 for i in range(13)])
    for one, other in zip(first, again, strict=True):
        for field in dataclasses.fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name
    shorter = dataclasses.replace(sequence, length=5)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(shorter.frames(), first[:5], strict=True))
    other = next(iter(suite_sequence("light", 3, world="one_room", size=SIZE).frames()))
    assert not np.array_equal(other.pose, first[0].pose)


def test_stopgo_has_an_object_that_stops_and_one_that_starts():
    generator = torch.Generator().manual_seed(2)
    scenes = random_scenes(generator, 8, Recipe(presence=1.0, stopgo=True))
    seen = render(scenes, torch.tensor([[0.0, 5.5, 6.0]]).expand(8, -1), SIZE, generator, with_images=False)
    visible = seen.depth < seen.static_depth
    assert (visible & ~seen.moving).any()  # an object at rest is not marked, although it is visible
    assert (seen.moving[:, 0].any() and seen.moving[:, 2].any()).item()
    assert torch.isfinite(scenes.stop).sum() == 8 and torch.isfinite(scenes.start).sum() == 8


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="heavy"):
        suite_sequence("crowded", 0)
    with pytest.raises(OptionError, match="0 to 23"):
        suite_sequence("heavy", 24)
    with pytest.raises(OptionError, match="one_room"):
        suite_sequence("heavy", 0, world="moon")
