"""How much of its candidate each state token takes in: s_t = s_{t-1} + g (candidate - s_{t-1}).

Each update rule is one function of the same signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.network import Decoded
from raymap3r_ros.streaming.stream_options import METHOD, Method


@dataclass(frozen=True)
class Evidence:
    """What a frame says about each state token; None where the rule in force does not read it."""

    attention: Tensor  # (B, S, 1) 0..1: how much the token attends to the frame (`attention_gate`)
    staticness: Tensor  # (B, S, 1) 0..1, smoothed over time; 1 before anything is known
    change: Tensor | None = None  # (B, S, 1) length of the candidate's change since the last frame
    novelty: Tensor | None = None  # (B, S, 1) strongest attention to what is new in the image (`novelty`)
    variance: Tensor | None = None  # (B, S, 1) of the token before this frame, in units of a measurement's


@dataclass
class GateMemory:
    """What the update rules remember of a segment's earlier frames, for B streams."""

    tokens: Tensor  # (B, N, C_e) image tokens of the last frame
    candidate: Tensor  # (B, S, C_d) candidate of the last frame
    mean_change: Tensor  # (B, 1, 1) `Evidence.change`, mean over tokens and smoothed over time
    variance: Tensor  # (B, S, 1) of each state token, in units of a measurement's

    @classmethod
    def empty(cls, state: Tensor, image_tokens: int, encoder_width: int, method: Method = METHOD) -> GateMemory:
        """For a state (B, S, C_d) that has seen nothing."""
        return cls(
            state.new_zeros(len(state), image_tokens, encoder_width),
            torch.zeros_like(state),
            state.new_ones(len(state), 1, 1),
            torch.full_like(state[..., :1], method.filter_start),
        )


def cut3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """Take everything (CUT3R, arXiv 2501.12387)."""
    return torch.ones_like(evidence.attention)


def ttt3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """As much as the token attends to the frame (TTT3R, arXiv 2509.26645)."""
    return evidence.attention


def raymap3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """TTT3R, less for tokens that see something move (RayMap3R, arXiv 2603.20588)."""
    return evidence.attention * motion_gate(evidence.staticness, method)


def ttsa3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """More for tokens whose candidate changes, and that attend to what is new (TTSA3R, arXiv 2601.22615)."""
    relative = evidence.change / evidence.change.mean(1, keepdim=True).clamp_min(1e-6)
    return torch.sigmoid(relative - method.time_gate_change) * torch.sigmoid(evidence.novelty)


def filt3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """The gain of a scalar Kalman filter for each token (FILT3R, arXiv 2603.18493)."""
    return kalman_gain(evidence.variance, torch.ones_like(evidence.variance), method)


def motion_filter(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """FILT3R with motion as measurement noise (ours): it is FILT3R where nothing moves."""
    return kalman_gain(evidence.variance, motion_noise(evidence.staticness, method), method)


UpdateRule = Callable[[Evidence, Method], Tensor]
RULES: dict[str, UpdateRule] = {
    "raymap3r": raymap3r,
    "ttt3r": ttt3r,
    "cut3r": cut3r,
    "ttsa3r": ttsa3r,
    "filt3r": filt3r,
    "motion_filter": motion_filter,
}
MOTION_RULES = ("raymap3r", "motion_filter")  # need token staticness, so the ray branch
ATTENTION_RULES = (*MOTION_RULES, "ttt3r", "ttsa3r")  # need queries and keys of the state side


def decide(
    rule: str,
    memory: GateMemory,
    fresh: Tensor,
    tokens: Tensor,
    decoded: Decoded,
    staticness: Tensor,
    method: Method = METHOD,
) -> tuple[Tensor, GateMemory]:
    """The gate (B, S, 1) that a rule gives a frame, and what the rules remember from now on.

    `memory` is of the segment's earlier frames, of which there are none for streams that are `fresh` (B,); `tokens`
    (B, N, C_e) are the image's; `staticness` (B, S, 1) is smoothed over time. Only what the rule reads is computed.
    """
    attention = torch.ones_like(staticness)
    change = seen_new = variance = None
    mean_change, posterior = memory.mean_change, memory.variance
    if rule in ("ttt3r", "raymap3r"):
        attention = attention_gate(decoded.attention)
    if rule in ("ttsa3r", "filt3r", "motion_filter"):
        change = (decoded.state - memory.candidate).norm(dim=-1, keepdim=True)
        change = torch.where(fresh[:, None, None], 1.0, change)
    if rule == "ttsa3r":
        seen_new = novelty(decoded.attention, tokens, memory.tokens)
    if rule in ("filt3r", "motion_filter"):
        keep = method.filter_change_memory
        mean_change = (keep * mean_change + (1 - keep) * change.mean(1, keepdim=True)).clamp_min(1e-2)
        variance = memory.variance + process_noise(change / mean_change, method)
    evidence = Evidence(attention, staticness, change, seen_new, variance)
    gate = RULES[rule](evidence, method)
    if variance is not None:
        noise = motion_noise(staticness, method) if rule == "motion_filter" else torch.ones_like(variance)
        posterior = posterior_variance(variance, gate, noise)
    return gate, GateMemory(tokens, decoded.state, mean_change, posterior)


def attention_gate(attention: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sigmoid of the mean attention logit over layers, heads and all keys, pose token too: (B, S, 1).

    The mean of q . k over the keys is q . mean(k): no attention matrix is needed.
    """
    total = 0.0
    for q, k in attention:
        scale = q.shape[-1] ** -0.5
        total = total + (q.float() @ k.float().mean(2, keepdim=True).mT * scale).mean(1)
    return torch.sigmoid(total / len(attention))


def novelty(attention: list[tuple[Tensor, Tensor]], tokens: Tensor, last_tokens: Tensor) -> Tensor:
    """What is new in the image where each state token looks: (B, S, 1), the largest over image tokens of
    |mean attention logit over layers and heads| x (1 - cosine to the same token (B, N, C_e) of the last frame).

    The mean over heads is one product of all heads side by side: one (S, N) matrix exists, for all layers.
    """
    total = 0.0
    for q, k in attention:
        scale = q.shape[-1] ** -0.5 / q.shape[1]
        total = (
            total + q.float().transpose(1, 2).flatten(2) @ k[:, :, 1:].float().transpose(1, 2).flatten(2).mT * scale
        )
    new = 1 - F.cosine_similarity(tokens, last_tokens, dim=-1)
    return ((total / len(attention)).abs() * new[:, None]).amax(-1, keepdim=True)


def accumulate_staticness(before: Tensor, known: Tensor, new: Tensor, method: Method = METHOD) -> Tensor:
    """Token staticness (B, S, 1) smoothed over time; the new one alone where nothing is `known` (B,) yet."""
    keep = method.staticness_memory
    return torch.where(known[:, None, None], keep * before + (1 - keep) * new, new)


def motion_gate(staticness: Tensor, method: Method = METHOD) -> Tensor:
    """Gate times eta, from smoothed token staticness (B, S, 1): what moves is kept out of the memory."""
    cover = (1 - staticness).mean(1, keepdim=True)
    damping = 1 - method.cover_damping * cover
    strength = (method.gate_strength * damping).clamp(0, 1)
    gate = ((1 - strength) + strength * staticness).clamp_min(method.gate_floor)
    return gate * damping.clamp(method.eta_floor, 1)


def process_noise(relative_change: Tensor, method: Method = METHOD) -> Tensor:
    """How much a token may have changed since the last frame, from its candidate's change in mean changes."""
    jump = torch.sigmoid(method.filter_sharpness * (relative_change - method.filter_jump))
    return method.filter_noise_low + (method.filter_noise_high - method.filter_noise_low) * jump


def motion_noise(staticness: Tensor, method: Method = METHOD) -> Tensor:
    """Variance of a measurement (B, S, 1), 1 where nothing moves.

    A token that gets the share m = 1 - staticness of what it reads from movers is measured as what is static plus m
    times something that has nothing to do with it: the variances add up, the mover's with m squared.
    """
    return 1 + method.motion_variance * (1 - staticness).square()


def kalman_gain(variance: Tensor, noise: Tensor, method: Method = METHOD) -> Tensor:
    """Share of a measurement with variance `noise` that a filter with this prior variance takes in."""
    return (variance / (variance + noise)).clamp(method.filter_gain_low, method.filter_gain_high)


def posterior_variance(variance: Tensor, gain: Tensor, noise: Tensor) -> Tensor:
    """Variance after taking in the share `gain` of a measurement: Joseph's form, right for any gain."""
    return (1 - gain).square() * variance + gain.square() * noise
