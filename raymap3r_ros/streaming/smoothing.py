"""State-aware smoothing of the position (arXiv 2603.20588): less trust in a jerk while the memory is unsure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.streaming.options import METHOD, Method


@dataclass
class SmootherState:
    """What the smoother remembers, for B streams. Metres, in the world frame."""

    started: Tensor  # (B,) bool
    raw: Tensor  # (B, 3) last predicted position
    raw_step: Tensor  # (B, 3) last predicted step
    step: Tensor  # (B, 3) smoothed step
    position: Tensor  # (B, 3) smoothed position

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> SmootherState:
        """A smoother that has seen nothing."""
        zeros = [torch.zeros(batch, 3, device=device) for _ in range(4)]
        return cls(torch.zeros(batch, dtype=torch.bool, device=device), *zeros)


@dataclass(frozen=True)
class Smoothed:
    """One step of the smoother."""

    state: SmootherState
    trust: Tensor  # (B,) 0..1: beta of the paper, how far the predicted step is believed
    acceleration: Tensor  # (B,) metres per frame squared


def smooth(
    before: SmootherState, position: Tensor, state_change: Tensor, *, tied: bool, method: Method = METHOD
) -> Smoothed:
    """Take in predicted positions (B, 3) and the mean change of the state tokens (B,); see `Smoothed.state`.

    The published smoother sums smoothed steps, so an error once made stays for ever. `tied` also pulls the result
    towards the predicted position, by the same trust but never by less than `method.smoothing_tie`.
    """
    started = before.started[:, None]
    raw_step = torch.where(started, position - before.raw, 0.0)
    acceleration = torch.where(before.started, (raw_step - before.raw_step).norm(dim=-1), 0.0)
    trust = 1 / (1 + method.smoothing_strength * (acceleration * state_change).abs())
    beta = trust[:, None]
    step = torch.where(started, beta * raw_step + (1 - beta) * before.step, raw_step)
    smoothed = before.position + step
    if tied:
        smoothed = smoothed + beta.clamp_min(method.smoothing_tie) * (position - smoothed)
    smoothed = torch.where(started, smoothed, position)
    state = SmootherState(torch.ones_like(before.started), position, raw_step, step, smoothed)
    return Smoothed(state, trust, acceleration)
