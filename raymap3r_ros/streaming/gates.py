"""Update rules: s_t = s_{t-1} + g (candidate - s_{t-1}), with a gate g for each state token.

To add a rule, write one function from `Evidence` to the gate (B, S, 1) and decorate it with `update_rule`. The rule
then appears in the options, on the command line, among the ROS parameters, in tables and in benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.network import Decoded
from raymap3r_ros.streaming.method import METHOD, Method


@dataclass(frozen=True)
class Evidence:
    """What one frame shows about each state token. Fields that the rule does not need are None."""

    attention: Tensor | None  # (B, S, 1) 0..1: how much the token attends to the frame (`attention_gate`)
    staticness: Tensor  # (B, S, 1) 0..1, smoothed over time; 1 until it is known
    change: Tensor | None = None  # (B, S, 1) length of the candidate's change since the last frame
    novelty: Tensor | None = None  # (B, S, 1) strongest attention to what is new in the image (`novelty`)
    variance: Tensor | None = None  # (B, S, 1) of the token before this frame, in measurement variances
    noise: Tensor | None = None  # (B, S, 1) variance of this measurement, for rules with a variance


Gate = Callable[[Evidence, Method], Tensor]
NEEDS = ("attention", "staticness", "change", "novelty", "variance")


@dataclass(frozen=True)
class Rule:
    """One update rule: its gate, and what must be computed for it."""

    gate: Gate  # Evidence -> (B, S, 1)
    needs: frozenset[str] = frozenset()  # fields of Evidence that the gate reads, out of NEEDS
    # Filters: variance of a measurement (B, S, 1) from token staticness. Without it, all measurements have variance 1.
    noise: Callable[[Tensor, Method], Tensor] | None = None
    # Token staticness is 1 - the dynamic share of what the token attends to, by the dynamic mask, instead of the
    # published one, which is relative to the other tokens.
    absolute_staticness: bool = False

    @property
    def needs_motion(self) -> bool:
        """Whether the ray branch must run."""
        return "staticness" in self.needs

    @property
    def needs_attention(self) -> bool:
        """Whether queries and keys of the decoder's state side must be kept."""
        return not self.needs.isdisjoint(("attention", "staticness", "novelty"))


RULES: dict[str, Rule] = {}  # in the order of `StepResult.rule_index`


def update_rule(*needs: str, **settings: object) -> Callable[[Gate], Gate]:
    """Register the decorated gate as an update rule under its own name.

    `needs` are names out of NEEDS: fields of Evidence that the gate reads. `settings` are other fields of `Rule`.
    Raises ValueError for an unknown need and for a name that is already registered.
    """

    def register(gate: Gate) -> Gate:
        name = gate.__name__
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"update rule {name} needs {', '.join(sorted(unknown))}; allowed: {', '.join(NEEDS)}")
        if name in RULES:
            raise ValueError(f"update rule {name} is already registered; choose another name")
        RULES[name] = Rule(gate, frozenset(needs), **settings)
        return gate

    return register


def rule_index(name: str) -> int:
    """Position of a rule in RULES."""
    return list(RULES).index(name)


def rule_name(index: int) -> str:
    """The reverse of `rule_index`."""
    return list(RULES)[index]


def motion_noise(staticness: Tensor, method: Method = METHOD) -> Tensor:
    """Variance of a measurement (B, S, 1), 1 in a static scene.

    A token that reads the share m = 1 - staticness from moving objects measures the static scene plus m times an
    independent value. The variances add up, the second one with the factor m squared.
    """
    return 1 + method.motion_variance * (1 - staticness).square()


@update_rule("attention", "staticness")
def raymap3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """TTT3R, reduced for tokens that attend to dynamic pixels (RayMap3R, arXiv 2603.20588)."""
    return evidence.attention * motion_gate(evidence.staticness, method)


@update_rule("attention")
def ttt3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """How much the token attends to the frame (TTT3R, arXiv 2509.26645)."""
    return evidence.attention


@update_rule()
def cut3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """Always 1 (CUT3R, arXiv 2501.12387)."""
    return torch.ones_like(evidence.staticness)


@update_rule("change", "novelty")
def ttsa3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """More for tokens whose candidate changes and that attend to new content (TTSA3R, arXiv 2601.22615)."""
    relative = evidence.change / evidence.change.mean(1, keepdim=True).clamp_min(1e-6)
    return torch.sigmoid(relative - method.time_gate_change) * torch.sigmoid(evidence.novelty)


@update_rule("variance")
def filt3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """The gain of a scalar Kalman filter for each token (FILT3R, arXiv 2603.18493)."""
    return kalman_gain(evidence.variance, evidence.noise, method)


@update_rule("variance", "staticness", noise=motion_noise, absolute_staticness=True)
def motion_filter(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """FILT3R with motion as measurement noise (ours); equal to FILT3R in a static scene."""
    return kalman_gain(evidence.variance, evidence.noise, method)


@dataclass
class GateMemory:
    """What the update rules keep from a segment's earlier frames, for B streams."""

    tokens: Tensor  # (B, N, C_e) image tokens of the last frame
    candidate: Tensor  # (B, S, C_d) candidate of the last frame
    mean_change: Tensor  # (B, 1, 1) `Evidence.change`, mean over tokens and smoothed over time
    variance: Tensor  # (B, S, 1) of each state token, in measurement variances

    @classmethod
    def empty(cls, state: Tensor, image_tokens: int, encoder_width: int, method: Method = METHOD) -> GateMemory:
        """Before the first frame, for an initial state (B, S, C_d)."""
        return cls(
            state.new_zeros(len(state), image_tokens, encoder_width),
            torch.zeros_like(state),
            state.new_full((len(state), 1, 1), method.first_change),
            torch.full_like(state[..., :1], method.filter_start),
        )


def decide(
    rule: Rule,
    memory: GateMemory,
    fresh: Tensor,
    tokens: Tensor,
    decoded: Decoded,
    staticness: Tensor,
    method: Method = METHOD,
) -> tuple[Tensor, GateMemory]:
    """The gate (B, S, 1) of a rule for one frame, and the memory after it.

    `memory` is from the segment's earlier frames and means nothing for streams that are `fresh` (B,). `tokens`
    (B, N, C_e) are the image's; `staticness` (B, S, 1) is smoothed over time. Only what the rule needs is computed.
    """
    needs = rule.needs
    attention = change = seen_new = variance = noise = None
    mean_change, posterior = memory.mean_change, memory.variance
    if "attention" in needs:
        attention = attention_gate(decoded.attention)
    if "change" in needs or "variance" in needs:
        change = (decoded.state - memory.candidate).norm(dim=-1, keepdim=True)
        change = torch.where(fresh[:, None, None], method.first_change, change)
    if "novelty" in needs:
        seen_new = novelty(decoded.attention, tokens, memory.tokens)
    if "variance" in needs:
        keep = method.filter_change_memory
        mean_change = keep * mean_change + (1 - keep) * change.mean(1, keepdim=True)
        mean_change = mean_change.clamp_min(method.filter_change_floor)
        variance = memory.variance + process_noise(change / mean_change, method)
        noise = torch.ones_like(variance) if rule.noise is None else rule.noise(staticness, method)
    gate = rule.gate(Evidence(attention, staticness, change, seen_new, variance, noise), method)
    if variance is not None:
        posterior = posterior_variance(variance, gate, noise)
    return gate, GateMemory(tokens, decoded.state, mean_change, posterior)


def attention_gate(attention: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sigmoid of the mean attention logit over layers, heads and all keys, pose token included: (B, S, 1).

    The mean of q . k over the keys is q . mean(k), so no attention matrix is needed.
    """
    total = 0.0
    for q, k in attention:
        scale = q.shape[-1] ** -0.5
        total = total + (q.float() @ k.float().mean(2, keepdim=True).mT * scale).mean(1)
    return torch.sigmoid(total / len(attention))


def novelty(attention: list[tuple[Tensor, Tensor]], tokens: Tensor, last_tokens: Tensor) -> Tensor:
    """How new the image is where each state token attends to it: (B, S, 1).

    The largest value over image tokens of |mean attention logit over layers and heads| x (1 - cosine to the same
    token (B, N, C_e) of the last frame). The mean over heads is one product of all heads side by side, so only one
    (S, N) matrix exists.
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
    """Token staticness (B, S, 1) smoothed over time; only the new one where none is `known` (B,) yet."""
    keep = method.staticness_memory
    return torch.where(known[:, None, None], keep * before + (1 - keep) * new, new)


def motion_gate(staticness: Tensor, method: Method = METHOD) -> Tensor:
    """Gate times eta, from smoothed token staticness (B, S, 1): keeps moving objects out of the state."""
    cover = (1 - staticness).mean(1, keepdim=True)
    damping = 1 - method.cover_damping * cover
    strength = (method.gate_strength * damping).clamp(0, 1)
    gate = ((1 - strength) + strength * staticness).clamp_min(method.gate_floor)
    return gate * damping.clamp(method.eta_floor, 1)


def process_noise(relative_change: Tensor, method: Method = METHOD) -> Tensor:
    """Variance added to a token since the last frame, from its candidate's change relative to the mean change."""
    jump = torch.sigmoid(method.filter_sharpness * (relative_change - method.filter_jump))
    return method.filter_noise_low + (method.filter_noise_high - method.filter_noise_low) * jump


def kalman_gain(variance: Tensor, noise: Tensor, method: Method = METHOD) -> Tensor:
    """The gain of a filter with this prior variance for a measurement with variance `noise`."""
    return (variance / (variance + noise)).clamp(method.filter_gain_low, method.filter_gain_high)


def posterior_variance(variance: Tensor, gain: Tensor, noise: Tensor) -> Tensor:
    """Variance after an update with this gain: Joseph's form, which holds for any gain."""
    return (1 - gain).square() * variance + gain.square() * noise
