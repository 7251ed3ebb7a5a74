"""Staticness and gates against explicit matrices, loops and closed forms."""

import pytest
import torch

from raymap3r_ros.streaming import METHOD, gates, staticness


@pytest.fixture
def attention():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 3, 1 + 12, 4, generator=generator))
        for _ in range(3)
    ]


def explicit_logits(attention) -> torch.Tensor:
    return torch.stack([q @ k.mT / 2 for q, k in attention])  # (layers, B, heads, S, 1 + N)


def test_projection_equals_the_explicit_attention_without_the_pose_key(attention):
    delta = torch.linspace(0, 1, 24).view(2, 12)
    weights = explicit_logits(attention).softmax(-1)[..., 1:]
    weights = (weights / weights.sum(-1, keepdim=True)).mean((0, 2))
    expected = (weights * delta[:, None]).sum(-1) / weights.sum(-1)
    torch.testing.assert_close(staticness.project_on_state(attention, delta), expected, atol=1e-6, rtol=1e-5)


def test_attention_gate_is_the_sigmoid_of_the_mean_logit(attention):
    expected = explicit_logits(attention).mean((0, 2, 4)).sigmoid()[..., None]
    torch.testing.assert_close(gates.attention_gate(attention), expected, atol=1e-6, rtol=1e-5)


def test_patch_pooling_averages_the_tokens_own_pixels_and_raster_pooling_does_not():
    delta, weight = torch.linspace(0, 1, 48).expand(1, 32, 48), torch.rand(1, 32, 48)
    patches = staticness.pool_to_tokens(delta, weight, (2, 3), "patch")
    block = (slice(0, 1), slice(16, 32), slice(32, 48))
    expected = (delta[block] * weight[block]).sum() / weight[block].sum()
    torch.testing.assert_close(patches[0, 5], expected)
    raster = staticness.pool_to_tokens(delta, weight, (2, 3), "raster")
    run = slice(5 * 256, 6 * 256)
    flat_delta, flat_weight = delta.flatten()[run], weight.flatten()[run]
    torch.testing.assert_close(raster[0, 5], (flat_delta * flat_weight).sum() / flat_weight.sum())
    assert (patches - raster).abs().max() > 0.01


def test_staticness_is_half_at_the_median_and_falls_with_discrepancy():
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    result = staticness.relative_staticness(values, 3.0)
    # Quartiles 1, 2, 3: the slope is 3 / 2 per unit.
    torch.testing.assert_close(result, torch.sigmoid(1.5 * (2 - values)))


def test_discrepancy_counts_only_where_the_ray_branch_is_confident_and_finite():
    depth = torch.tensor([[[2.0, 2.0, 2.0, 0.0]]])
    ray_depth = torch.tensor([[[3.0, 3.0, float("inf"), 0.0]]])
    confidence = torch.tensor([[[1.0, 0.05, 1.0, 1.0]]])
    assert staticness.discrepancy(depth, ray_depth, confidence, METHOD).tolist() == [[[0.5, 0.0, 0.0, 0.0]]]


def test_staticness_of_uncertain_pixels_is_halved():
    delta, weight = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
    weight[0, :, 5:] = 1
    result = staticness.pixel_staticness(delta, weight, METHOD)
    torch.testing.assert_close(result[0, 4, 2], torch.tensor(0.25))
    torch.testing.assert_close(result[0, 4, 7], torch.tensor(0.5))
    torch.testing.assert_close(result[0, 0, 0], torch.tensor(0.25 * 4 / 9))  # zero padding counts


def test_rules_are_nested():
    attention = torch.rand(2, 7, 1)
    static = gates.Evidence(attention, torch.ones(2, 7, 1))
    assert torch.equal(gates.cut3r(static), torch.ones_like(attention))
    assert torch.equal(gates.ttt3r(static), attention)
    # In a static scene, no token is gated.
    torch.testing.assert_close(gates.raymap3r(static), attention)


def test_the_motion_gate_follows_its_formula():
    alpha = torch.tensor([0.1, 0.4, 0.9, 1.0])[None, :, None]
    cover = (0.9 + 0.6 + 0.1 + 0.0) / 4
    strength = 0.9 * (1 - 0.5 * cover)
    expected = (1 - strength + strength * alpha).clamp_min(0.15) * (1 - 0.5 * cover)
    torch.testing.assert_close(gates.motion_gate(alpha), expected)
    assert gates.motion_gate(torch.zeros(1, 3, 1)).unique().item() == pytest.approx((1 - 0.45) * 0.5)


def test_staticness_is_averaged_with_a_decaying_weight():
    first, second = torch.full((2, 3, 1), 0.2), torch.full((2, 3, 1), 0.7)
    known = torch.tensor([True, False])
    result = gates.accumulate_staticness(first, known, second)
    torch.testing.assert_close(result[0], torch.full((3, 1), 0.8 * 0.2 + 0.2 * 0.7))
    torch.testing.assert_close(result[1], second[1])
