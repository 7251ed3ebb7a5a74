"""TTSA3R, FILT3R and the motion filter against hand-computed values, explicit matrices and simulations."""

import math

import pytest
import torch

from raymap3r_ros.network import Decoded
from raymap3r_ros.streaming import METHOD, gates, staticness

YES, NO = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)


def decoded(candidate: torch.Tensor, attention: list | None = None) -> Decoded:
    return Decoded(levels=(), pose_token=torch.zeros(0), state=candidate, attention=attention or [], grid=(3, 4))


def run(rule: str, candidates: torch.Tensor, moving: float = 0.0) -> list[torch.Tensor]:
    """Gates (S,) of a rule over candidates (T, S, C) that share one staticness."""
    memory = gates.GateMemory.empty(torch.zeros_like(candidates[:1]), 12, 5)
    static, tokens, out = torch.full_like(candidates[:1, :, :1], 1 - moving), torch.zeros(1, 12, 5), []
    for index, candidate in enumerate(candidates):
        gate, memory = gates.decide(
            gates.RULES[rule], memory, NO if index else YES, tokens, decoded(candidate[None]), static
        )
        out.append(gate[0, :, 0])
    return out


def test_filt3r_by_hand():
    candidates = torch.zeros(3, 2, 4)
    candidates[1, 0, 0], candidates[1, 1, 0] = 8.0, 1.0
    candidates[2] = candidates[1]
    first, second, third = run("filt3r", candidates)
    # Frame 0: both changes count as 1, the mean too.
    prior = 1.5 + 0.02 + 0.48 / (1 + math.exp(40))
    gain = prior / (prior + 1)
    torch.testing.assert_close(first, torch.full((2,), gain))
    # With an unlimited gain, the variance equals the gain. Changes 8 and 1, running mean 0.95 + 0.05 x 4.5.
    mean = 0.95 + 0.05 * 4.5
    priors = [gain + 0.02 + 0.48 / (1 + math.exp(-20 * (change / mean - 3))) for change in (8, 1)]
    gains = [prior / (prior + 1) for prior in priors]
    assert gains[0] > gains[1] + 0.1  # the token that jumped has the larger gain
    torch.testing.assert_close(second, torch.tensor(gains))
    quiet = [gain + 0.02 for gain in gains]
    torch.testing.assert_close(third, torch.tensor([prior / (prior + 1) for prior in quiet]))


def test_the_variance_follows_from_the_limited_gain():
    tiny, one = torch.tensor([[[1e-4]]]), torch.ones(1, 1, 1)
    gain = gates.kalman_gain(tiny, one)
    assert gain.item() == pytest.approx(0.01)
    assert gates.posterior_variance(tiny, gain, one).item() == pytest.approx(0.99**2 * 1e-4 + 1e-4)
    assert gates.kalman_gain(torch.full_like(one, 1e6), one).item() == pytest.approx(0.99)


def test_ttsa3r_follows_its_formula_with_explicit_matrices():
    generator = torch.Generator().manual_seed(0)
    attention = [
        (torch.randn(1, 3, 5, 4, generator=generator), torch.randn(1, 3, 1 + 12, 4, generator=generator))
        for _ in range(2)
    ]
    before, now = torch.randn(2, 1, 5, 6, generator=generator)
    tokens_before, tokens = torch.randn(2, 1, 12, 7, generator=generator)
    memory = gates.GateMemory(tokens_before, before, torch.ones(1, 1, 1), torch.ones(1, 5, 1))
    static = torch.ones(1, 5, 1)
    gate, after = gates.decide(gates.RULES["ttsa3r"], memory, NO, tokens, decoded(now, attention), static)
    logits = torch.stack([q @ k.mT / 2 for q, k in attention])[..., 1:].mean((0, 2))
    new = torch.stack([1 - a @ b / (a.norm() * b.norm()) for a, b in zip(tokens[0], tokens_before[0], strict=True)])
    space = torch.sigmoid((logits.abs()[0] * new).amax(-1))
    change = (now - before)[0].norm(dim=-1)
    time = torch.sigmoid(change / change.mean() - 1.5)
    torch.testing.assert_close(gate[0, :, 0], space * time)
    assert torch.equal(after.tokens, tokens) and torch.equal(after.candidate, now)


def test_the_motion_filter_equals_filt3r_in_a_static_scene_and_gates_moving_objects():
    candidates = torch.randn(12, 6, 8, generator=torch.Generator().manual_seed(1))
    plain = run("filt3r", candidates)
    assert all(torch.equal(a, b) for a, b in zip(plain, run("motion_filter", candidates), strict=True))
    half, full = run("motion_filter", candidates, 0.5), run("motion_filter", candidates, 1.0)
    assert all((b < 0.7 * a).all() and (c < 0.8 * b).all() for a, b, c in zip(plain, half, full, strict=True))


def test_static_share_is_the_attention_off_the_mask():
    generator = torch.Generator().manual_seed(0)
    attention = [(torch.randn(1, 2, 3, 4, generator=generator), torch.randn(1, 2, 7, 4, generator=generator))]
    mask = torch.zeros(1, 32, 48, dtype=torch.bool)
    mask[:, 16:, 32:] = True  # all of token 5 ...
    mask[:, :8, :16] = True  # ... and half of token 0
    weights = (attention[0][0] @ attention[0][1][:, :, 1:].mT / 2).softmax(-1).mean(1)
    expected = 1 - weights[..., 5] - 0.5 * weights[..., 0]
    torch.testing.assert_close(staticness.static_share(attention, mask, (2, 3))[..., 0], expected)
    assert (staticness.static_share(attention, mask & False, (2, 3)) == 1).all()


def filtered_error(rule: str, share: torch.Tensor, frames: int = 300) -> torch.Tensor:
    """Mean squared error (S,), and expected variance, of scalar states with FILT3R's process noise of 0.02 per frame.

    Each is measured with variance 1, plus the variance of moving objects, 30 times that, on a share (S,) of it.
    """
    generator = torch.Generator().manual_seed(0)
    count = (4000, len(share))  # runs, tokens
    truth, state = torch.zeros(count), torch.zeros(count)
    variance, noise = torch.full(count, 1.5), gates.motion_noise(1 - share).expand(count)
    error = torch.zeros(len(share))
    for frame in range(frames):
        truth = truth + math.sqrt(0.02) * torch.randn(count, generator=generator)
        measured = truth + noise.sqrt() * torch.randn(count, generator=generator)
        expected = noise if rule == "motion_filter" else torch.ones(count)
        evidence = gates.Evidence(None, (1 - share).expand(count), variance=variance + 0.02, noise=expected)
        gain = gates.RULES[rule].gate(evidence, METHOD)
        variance = gates.posterior_variance(evidence.variance, gain, expected)
        state = state + gain * (measured - state)
        if frame >= 100:
            error += (state - truth).square().mean(0) / (frames - 100)
    return torch.stack((error, variance.mean(0)))


def test_the_filters_estimate_their_own_error_and_motion_noise_reduces_it():
    share = torch.tensor([0.0, 0.3, 1.0])
    plain, plain_expected = filtered_error("filt3r", share)
    ours, expected = filtered_error("motion_filter", share)
    torch.testing.assert_close(expected, ours, rtol=0.03, atol=0)
    assert plain_expected[2] < 0.1 * plain[2]  # FILT3R has no motion noise
    assert ours[0] == plain[0] and ours[1] < 0.9 * plain[1] and ours[2] < 0.5 * plain[2]
