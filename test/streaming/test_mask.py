"""The mask: quiet where nothing moves, tight on what does, whatever the noise and the common scale."""

import pytest
import torch

from raymap3r_ros.streaming import MaskOptions
from raymap3r_ros.streaming.mask import moving_mask, shorth

SIZE = (96, 128)


def scene(noise: float, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths (1, H, W) of a slanted room by image and by rays, each with smooth and white relative noise."""
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
    return moving_mask(depth, ray_depth, torch.ones_like(depth, dtype=torch.bool), MaskOptions())


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
def test_quiet_where_nothing_moves(noise: float, scale: float):
    for seed in range(5):
        depth, ray_depth = scene(noise, scale, seed)
        assert decide(depth, ray_depth).float().mean() < 0.005


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
@pytest.mark.parametrize("columns", [12, 40, 64])
def test_tight_on_a_mover_of_any_size(noise: float, scale: float, columns: int):
    depth, ray_depth = scene(noise, scale)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 20:96, 10 : 10 + columns] = True
    depth[truth] *= 0.55
    assert iou(decide(depth, ray_depth), truth) > 0.9


def test_what_is_farther_than_the_memory_says_does_not_move():
    """The place that a thing has left shows the static scene."""
    depth, ray_depth = scene(0.02)
    ray_depth[:, 30:60, 30:60] *= 0.5
    assert not decide(depth, ray_depth)[:, 32:58, 32:58].any()


def test_hysteresis_takes_the_weak_flank_of_a_sure_mover_but_no_weak_region_alone():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 20:40, 20:40] /= 1.5
    depth[:, 20:40, 40:50] /= 1.1  # weak, touching: log(1.1) / 0.02 lies between 3 and 6
    depth[:, 60:80, 80:100] /= 1.1  # weak, alone
    trusted = torch.ones_like(depth, dtype=torch.bool)
    mask = moving_mask(depth, ray_depth, trusted, MaskOptions(high=6.0, low=3.0))
    assert mask[:, 22:38, 22:48].all() and not mask[:, 60:80, 80:100].any()


def test_specks_go_and_holes_close():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 5, 5] = 1.0
    depth[:, 30:60, 30:60] = 1.0
    depth[:, 45, 45] = 2.0
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[:, 30:60, 30:60] = True
    assert torch.equal(decide(depth, ray_depth), truth)


def test_untrusted_and_broken_depths_never_move():
    depth, ray_depth = torch.full((1, *SIZE), 2.0), torch.full((1, *SIZE), 2.0)
    depth[:, 30:60, 30:60] = 1.0
    trusted = torch.ones_like(depth, dtype=torch.bool)
    trusted[:, 25:65, 25:65] = False
    assert not moving_mask(depth, ray_depth, trusted, MaskOptions()).any()
    ray_depth[:] = torch.nan
    assert not decide(depth, ray_depth).any()


def test_the_shortest_interval_finds_the_bulk_beside_a_large_minority():
    generator = torch.Generator().manual_seed(0)
    bulk = 0.3 + 0.05 * torch.randn(1, 5000, generator=generator)
    other = 2 + 0.4 * torch.randn(1, 4000, generator=generator)
    centre, spread = shorth(torch.cat((bulk, other), 1), torch.ones(1, 9000, dtype=torch.bool))
    assert centre.item() == pytest.approx(0.3, abs=0.03)
    assert 0.05 < spread.item() < 0.11  # the share is of all, so of the bulk it is more than its 40 %
