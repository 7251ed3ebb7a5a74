"""The router: switches from the `raymap3r` rule to the plain `cut3r` rule while the camera rotates fast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymap3r_ros.geometry.cameras import rotation_angle
from raymap3r_ros.streaming.method import METHOD, Method


@dataclass
class RouterState:
    """What the router keeps between frames, for B streams and a window of W rotations."""

    orientation: Tensor  # (B, 4) last output quaternion
    rotations: Tensor  # (B, W) degrees per frame, newest last
    count: Tensor  # (B,) int: how many of them are filled, at most W
    gated: Tensor  # (B,) bool: the `raymap3r` rule is in force
    decided: Tensor  # (B,) bool: from rotations, not by default

    @classmethod
    def empty(cls, batch: int, device: torch.device, mode: str, method: Method = METHOD) -> RouterState:
        """Before the first frame: until it decides, the `published` router uses `cut3r`, the others `raymap3r`."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        return cls(
            torch.zeros(batch, 4, device=device),
            torch.zeros(batch, method.router_window, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
            torch.full_like(no, mode != "published"),
            no,
        )


def route_published(before: RouterState, orientation: Tensor, frame: int, method: Method) -> RouterState:
    """The published router: decides once, at frame 20, from the median rotation of frames 5 to 20."""
    if not method.router_first_frame <= frame <= method.router_last_frame:
        return before
    # The published code has no earlier pose at its first frame and uses a rotation of zero.
    first = frame == method.router_first_frame
    turn = torch.zeros_like(before.rotations[:, 0]) if first else rotation_angle(before.orientation, orientation)
    after = _append(before, orientation, turn)
    if frame == method.router_last_frame:
        after.gated = torch.quantile(after.rotations, 0.5, dim=1) < method.router_threshold
        after.decided = torch.ones_like(after.decided)
    return after


def route_adaptive(before: RouterState, orientation: Tensor, frame: int, method: Method) -> RouterState:
    """Ours: decides at every frame from the median of the last rotations, with hysteresis around the threshold."""
    if frame == 0:
        return _append(before, orientation, None)
    after = _append(before, orientation, rotation_angle(before.orientation, orientation))
    # Unfilled places sort to the end, and the median is taken over the filled ones only.
    window = after.rotations.shape[1]
    places = torch.arange(window, device=orientation.device)
    filled = torch.where(places >= window - after.count[:, None], after.rotations, torch.inf)
    median = filled.sort(dim=1).values.gather(1, ((after.count - 1) // 2).clamp_min(0)[:, None])[:, 0]
    limit = torch.where(before.gated, 1.0, -1.0) * method.router_margin + method.router_threshold
    after.decided = after.count >= method.router_min_frames
    after.gated = torch.where(after.decided, median < limit, before.gated)
    return after


def _append(before: RouterState, orientation: Tensor, turn: Tensor | None) -> RouterState:
    if turn is None:
        return RouterState(orientation, before.rotations, before.count, before.gated, before.decided)
    rotations = torch.cat((before.rotations[:, 1:], turn[:, None]), dim=1)
    count = (before.count + 1).clamp(max=rotations.shape[1])
    return RouterState(orientation, rotations, count, before.gated, before.decided)
