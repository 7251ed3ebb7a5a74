"""The dynamic mask: empty in static scenes, tight on moving objects, for any noise and common scale."""

import pytest
import torch

from raymap3r_ros.streaming import MaskOptions
from raymap3r_ros.streaming.mask import (
    dynamic_mask,
    sorted_sample,
    static_centre,
    static_noise,
    static_weight,
    window_reduce,
)

SIZE = (96, 128)


def scene(noise: float, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths (1, H, W) of a slanted room from main and ray branch, each with smooth and white relative noise."""
    generator = torch.Generator().manual_seed(seed)
    room = 3 + 2 * torch.linspace(0, 1, SIZE[1]).expand(SIZE)[None]

    def disturbed(depth: torch.Tensor) -> torch.Tensor:
        coarse = torch.randn(1, 1, 12, 16, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]
        return depth * (noise * (0.8 * smooth + 0.4 * torch.randn(1, *SIZE, generator=generator))).exp()

    return disturbed(room), scale * disturbed(room)


def iou(mask: torch.Tensor, truth: torch.Tensor) -> float:
    return ((mask & truth).sum() / (mask | truth).sum()).item()


def decide(depth: torch.Tensor, ray_depth: torch.Tensor) -> torch.Tensor:
    return dynamic_mask(depth, ray_depth, torch.ones_like(depth, dtype=torch.bool), MaskOptions())


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
def test_empty_in_a_static_scene(noise: float, scale: float):
    alarms = torch.stack([decide(*scene(noise, scale, seed)).float().mean() for seed in range(8)])
    assert alarms.mean() < 0.01 and alarms.max() < 0.02


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
@pytest.mark.parametrize("columns", [12, 40, 64])
def test_tight_on_a_moving_object_of_any_size(noise: float, scale: float, columns: int):
    depth, ray_depth = scene(noise, scale)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 14:96, 10 : 10 + columns] = True
    depth[truth] *= 0.55
    assert iou(decide(depth, ray_depth), truth) > 0.9


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("scale", [0.85, 1.0, 1.4])
def test_a_moving_object_may_cover_most_of_the_image(noise: float, scale: float):
    depth, ray_depth = scene(noise, scale)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 10:, 15:120] = True
    assert truth.float().mean() > 0.7
    depth[truth] *= 0.5
    assert iou(decide(depth, ray_depth), truth) > 0.9


@pytest.mark.parametrize("noise", [0.02, 0.07])
def test_a_smeared_edge_ends_where_its_contrast_is_halved(noise: float):
    """A blurred prediction of the static scene still gives the outline of the moving object."""
    depth, ray_depth = scene(noise)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 30:80, 40:80] = True
    mover = torch.nn.functional.avg_pool2d(truth.float()[None], 9, stride=1, padding=4)[0]
    assert iou(decide(depth * 0.3**mover, ray_depth), truth) > 0.88


def test_the_image_may_have_any_size():
    """Windows grow with the image, so the same scene on four times the pixels has the same mask."""
    depth, ray_depth = scene(0.05)
    depth[:, 30:80, 40:80] *= 0.5
    small = decide(depth, ray_depth)
    large = decide(*(torch.nn.functional.interpolate(d[None], scale_factor=4)[0] for d in (depth, ray_depth)))
    assert iou(large[:, 2::4, 2::4], small) > 0.95


def test_pixels_farther_than_the_static_scene_are_not_dynamic():
    """The place that an object has left shows the static scene."""
    depth, ray_depth = scene(0.02)
    ray_depth[:, 30:60, 30:60] *= 0.5
    assert not decide(depth, ray_depth)[:, 32:58, 32:58].any()


def test_hysteresis_includes_weak_pixels_next_to_a_surely_dynamic_region_only():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 20:40, 20:40] /= 1.16
    depth[:, 20:40, 40:50] /= 1.1  # weak, touching: log(1.1) / 0.02 lies between 3 and 6
    depth[:, 60:80, 80:100] /= 1.1  # weak, alone
    trusted = torch.ones_like(depth, dtype=torch.bool)
    mask = dynamic_mask(depth, ray_depth, trusted, MaskOptions(high=6.0, low=3.0, min_ratio=0.05))
    assert mask[:, 22:38, 22:48].all() and not mask[:, 60:80, 80:100].any()


def test_specks_are_removed_and_holes_filled():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 5, 5] = 1.0
    depth[:, 30:60, 30:60] = 1.0
    depth[:, 45, 45] = 2.0
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 30:60, 30:60] = True
    found = decide(depth, ray_depth)
    assert not found[:, :20].any() and found[:, 45, 45] and iou(found, truth) > 0.98


def test_untrusted_and_invalid_depths_are_never_dynamic():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 30:60, 30:60] = 1.0
    trusted = torch.ones_like(depth, dtype=torch.bool)
    trusted[:, 25:65, 25:65] = False
    assert not dynamic_mask(depth, ray_depth, trusted, MaskOptions()).any()
    ray_depth[:] = torch.nan
    assert not decide(depth, ray_depth).any()


def test_the_static_part_is_found_beside_a_large_majority():
    generator = torch.Generator().manual_seed(0)
    static = 0.1 + 0.05 * torch.randn(1, 3000, generator=generator)
    movers = 0.8 + 0.1 * torch.randn(1, 7000, generator=generator)
    values = torch.cat((static, movers), 1)
    valid = torch.ones_like(values, dtype=torch.bool)
    centre = static_centre(sorted_sample(values, valid))
    assert centre.item() == pytest.approx(0.1, abs=0.02)
    assert static_noise(sorted_sample(values - centre, valid)).item() == pytest.approx(0.05, rel=0.25)
    valid[:] = False
    assert static_centre(sorted_sample(values, valid)) == static_noise(sorted_sample(values, valid)) == 0


@pytest.mark.parametrize("size", [1, 3, 5, 7, 17, 25])
def test_windows_are_those_of_pooling_layers(size: int):
    values = torch.rand(2, 20, 31, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.max_pool2d(values, size, stride=1, padding=size // 2)
    assert torch.equal(window_reduce(values, size, torch.maximum), pooled)
    thin = values > 0.99
    assert torch.equal(window_reduce(thin, size, torch.maximum), pooled > 0.99)
    mean = torch.nn.functional.avg_pool2d(values, size, stride=1, padding=size // 2)
    torch.testing.assert_close(window_reduce(values, size, torch.add) / size**2, mean)


def test_static_weight_is_high_on_the_static_scene_low_on_moving_objects_and_unbiased():
    depth, ray_depth = scene(0.1, 1.2)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 20:, 10:70] = True
    static = depth.clone()
    depth[truth] *= 0.6
    trusted = torch.ones_like(truth)
    trusted[:, :5] = False
    weight = static_weight(depth, ray_depth, trusted, MaskOptions())
    assert weight[truth].mean() < 0.05 * weight[~truth & trusted].mean() and (weight[:, :5] == 0).all()
    # The weighted error of static depths equals the unweighted one.
    room = 3 + 2 * torch.linspace(0, 1, SIZE[1]).expand(SIZE)[None]
    error, use = (static / room).log(), ~truth & trusted
    weighted = (weight * error)[use].sum() / weight[use].sum()
    assert abs(weighted - error[use].mean()) < 0.02
