"""Smoothing of the position.

The published smoother (arXiv 2603.20588) damps accelerations while the state changes a lot. It sums smoothed steps, so
its errors accumulate. Ours (`tied`) follows the predicted position: several constant-velocity trackers with fixed
gains run side by side, and the result is their mean, weighted by how well each has predicted the last positions. If
the network's prediction is steady, the result equals it; the more it jitters, the slower the trackers that predict it
best. This needs no units, no noise level and no threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.geometry.cameras import constant
from raymap3r_ros.streaming.method import METHOD, Method


@dataclass
class SmootherState:
    """What the smoother keeps between frames, for B streams and K trackers. Metres, in the world frame."""

    started: Tensor  # (B,) bool
    raw: Tensor  # (B, 3) last predicted position
    raw_step: Tensor  # (B, 3) last predicted step
    step: Tensor  # (B, 3) last smoothed step
    position: Tensor  # (B, 3) smoothed position
    frames: Tensor  # (B,) number of frames that the trackers have processed
    tracked: Tensor  # (B, K, 3) each tracker's position
    velocity: Tensor  # (B, K, 3) per frame
    innovation: Tensor  # (B, K) mean squared distance of the last positions from the tracker's prediction

    @classmethod
    def empty(cls, batch: int, device: torch.device, method: Method = METHOD) -> SmootherState:
        """Before the first frame."""
        trackers = len(method.tracker_gains)
        points = [torch.zeros(batch, 3, device=device) for _ in range(4)]
        tracks = [torch.zeros(batch, trackers, 3, device=device) for _ in range(2)]
        return cls(
            torch.zeros(batch, dtype=torch.bool, device=device),
            *points,
            torch.zeros(batch, device=device),
            *tracks,
            torch.zeros(batch, trackers, device=device),
        )


@dataclass(frozen=True)
class Smoothed:
    """One step of the smoother."""

    state: SmootherState
    trust: Tensor  # (B,) 0..1, weight of the prediction: beta of the paper, or the mean gain of the trackers
    acceleration: Tensor  # (B,) metres per frame squared


def smooth(
    before: SmootherState, position: Tensor, state_change: Tensor, *, tied: bool, method: Method = METHOD
) -> Smoothed:
    """The smoother after predicted positions (B, 3) and the mean change of the state tokens (B,).

    `Smoothed.state` holds the smoothed position. `tied` is our smoother, which ignores the change of the state;
    otherwise the published one is used.
    """
    started = before.started[:, None]
    raw_step = torch.where(started, position - before.raw, 0.0)
    acceleration = torch.where(before.started, (raw_step - before.raw_step).norm(dim=-1), 0.0)
    if tied:
        frames, tracked, velocity, innovation = _track(before, position, method)
        share = _shares(innovation, method)
        trust = (share * constant(method.tracker_gains, share.device)).sum(1)
        smoothed = torch.where(started, (share[..., None] * tracked).sum(1), position)
        step = torch.where(started, smoothed - before.position, 0.0)
    else:
        frames, tracked, velocity, innovation = before.frames, before.tracked, before.velocity, before.innovation
        trust = 1 / (1 + method.smoothing_strength * (acceleration * state_change).abs())
        beta = trust[:, None]
        step = torch.where(started, beta * raw_step + (1 - beta) * before.step, raw_step)
        smoothed = torch.where(started, before.position + step, position)
    state = SmootherState(
        torch.ones_like(before.started), position, raw_step, step, smoothed, frames, tracked, velocity, innovation
    )
    return Smoothed(state, trust, acceleration)


def _track(before: SmootherState, position: Tensor, method: Method) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, positions, velocities and innovations of the trackers after a predicted position (B, 3)."""
    gain = constant(method.tracker_gains, position.device)
    # The optimum for this gain (Kalata 1984), but never more than the last step itself.
    velocity_gain = (2 * (2 - gain) - 4 * (1 - gain).sqrt()).clamp(max=1)
    # Over the first frames a line is fitted: the same recursion with gains that fall with n.
    n = (before.frames + 1)[:, None]
    gain = torch.maximum(gain, (2 * (2 * n - 1) / (n * (n + 1))).clamp(max=1))
    velocity_gain = torch.maximum(velocity_gain, (6 / (n * (n + 1))).clamp(max=1))
    started = before.started[:, None]
    predicted = before.tracked + before.velocity
    error = position[:, None] - predicted
    tracked = torch.where(started[..., None], predicted + gain[..., None] * error, position[:, None])
    velocity = torch.where(started[..., None], before.velocity + velocity_gain[..., None] * error, 0.0)
    newest = (1 / (n - 1).clamp_min(1)).clamp_min(1 - method.tracker_memory)
    innovation = before.innovation + newest * (error.square().sum(-1) - before.innovation)
    return (
        torch.where(before.started, before.frames + 1, 1.0),
        tracked,
        velocity,
        torch.where(started, innovation, 0.0),
    )


def _shares(innovation: Tensor, method: Method) -> Tensor:
    """Weights (B, K) that sum to 1, by a high power of the inverse innovation: nearly the best tracker alone."""
    relative = (innovation + 1e-12) / (innovation.amin(1, keepdim=True) + 1e-12)
    weight = relative.pow(-method.tracker_exponent)
    return weight / weight.sum(1, keepdim=True)
