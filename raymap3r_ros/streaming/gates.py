"""How much of its candidate each state token takes in: s_t = s_{t-1} + g (candidate - s_{t-1}).

Each update rule is one function of the same signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.streaming.options import METHOD, Method


@dataclass(frozen=True)
class Evidence:
    """What a frame says about each state token."""

    attention: Tensor  # (B, S, 1) 0..1: how much the token attends to the frame (`attention_gate`)
    staticness: Tensor  # (B, S, 1) 0..1, smoothed over time; 1 before anything is known


def cut3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """Take everything (CUT3R, arXiv 2501.12387)."""
    return torch.ones_like(evidence.attention)


def ttt3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """As much as the token attends to the frame (TTT3R, arXiv 2509.26645)."""
    return evidence.attention


def raymap3r(evidence: Evidence, method: Method = METHOD) -> Tensor:
    """TTT3R, less for tokens that see something move (RayMap3R, arXiv 2603.20588)."""
    return evidence.attention * motion_gate(evidence.staticness, method)


UpdateRule = Callable[[Evidence, Method], Tensor]
RULES: dict[str, UpdateRule] = {"raymap3r": raymap3r, "ttt3r": ttt3r, "cut3r": cut3r}


def attention_gate(attention: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sigmoid of the mean attention logit over layers, heads and all keys, pose token too: (B, S, 1).

    The mean of q . k over the keys is q . mean(k): no attention matrix is needed.
    """
    total = 0.0
    for q, k in attention:
        scale = q.shape[-1] ** -0.5
        total = total + (q.float() @ k.float().mean(2, keepdim=True).mT * scale).mean(1)
    return torch.sigmoid(total / len(attention))


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
