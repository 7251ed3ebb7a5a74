"""Intersection of rays with boxes, ellipsoids and upright cylinders, and the distance of points from them.

For many scenes and frames at once. A solid is a unit shape (box -1..1, ball or cylinder of radius 1) scaled by `half`,
rotated and translated. A ray is origin + t * direction; where directions have a z of 1 in the camera, t is the depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1e4  # metres; no hit
_TINY = 1e-6
_BISECTIONS = 60


@dataclass(frozen=True)
class Solids:
    """K solids of one shape in B scenes at F frames. Metres, world frame."""

    shape: str  # "box", "ellipsoid" or "cylinder" (axis along its own z)
    half: Tensor  # (B, K, 3) half sizes; 0 = absent
    centre: Tensor  # (B, F, K, 3)
    rotation: Tensor  # (B, F, K, 3, 3) own axes to world


def hit(solids: Solids, origin: Tensor, direction: Tensor, *, inside: bool = False) -> tuple[Tensor, Tensor]:
    """Nearest t (B, F, P) along rays with origin (B, F, 3) and direction (B, F, P, 3), and the index of the solid.

    FAR without a hit. With `inside` the far side is hit, as in a room seen from inside.
    """
    best = direction.new_full(direction.shape[:-1], FAR)
    index = torch.zeros_like(best, dtype=torch.long)
    for k in range(solids.half.shape[1]):
        half = solids.half[:, None, k]  # (B, 1, 3)
        present = half[..., :1] > 0
        scale = 1 / torch.where(present, half, 1.0)
        to_unit = solids.rotation[:, :, k].mT * scale[..., None]  # (B, F, 3, 3)
        o = (to_unit @ (origin - solids.centre[:, :, k])[..., None])[..., 0]  # (B, F, 3)
        d = direction @ to_unit.mT
        near, far = _UNIT[solids.shape](o[:, :, None], d)
        t = far if inside else near
        found = (near <= far) & (t > _TINY) & (t < best) & present
        best, index = torch.where(found, t, best), torch.where(found, k, index)
    return best, index


def normal(shape: str, p: Tensor) -> tuple[Tensor, Tensor]:
    """Outward normal (..., 3) of the unit shape at p on its surface, and the face 0..5 of a box (0 elsewhere)."""
    if shape == "ellipsoid":
        return p, torch.zeros(p.shape[:-1], dtype=torch.long, device=p.device)
    if shape == "cylinder":
        side = torch.cat((p[..., :2], torch.zeros_like(p[..., 2:])), dim=-1)
        cap = torch.cat((torch.zeros_like(p[..., :2]), p[..., 2:].sign()), dim=-1)
        on_cap = p[..., 2:].abs() > p[..., :2].norm(dim=-1, keepdim=True)
        return torch.where(on_cap, cap, side), torch.zeros(p.shape[:-1], dtype=torch.long, device=p.device)
    axis = p.abs().argmax(-1)
    positive = p.gather(-1, axis[..., None])[..., 0] > 0
    out = torch.nn.functional.one_hot(axis, 3).to(p) * torch.where(positive, 1.0, -1.0)[..., None]
    return out, 2 * axis + positive.long()


def _keep_away_from_zero(x: Tensor) -> Tensor:
    """x with a magnitude large enough to divide by. The sign comes from a comparison, because sign(0) is 0."""
    return torch.where(x.abs() < _TINY, torch.where(x < 0, -_TINY, _TINY), x)


def _unit_box(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1 / _keep_away_from_zero(d)
    centre, reach = -o * inverse, inverse.abs()
    return (centre - reach).amax(-1), (centre + reach).amin(-1)


def _unit_ball(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return _quadratic(d.square().sum(-1), (o * d).sum(-1), o.square().sum(-1) - 1)


def _unit_cylinder(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    o2, d2 = o[..., :2], d[..., :2]
    near, far = _quadratic(d2.square().sum(-1), (o2 * d2).sum(-1), o2.square().sum(-1) - 1)
    inverse = 1 / _keep_away_from_zero(d[..., 2])
    centre, reach = -o[..., 2] * inverse, inverse.abs()
    return torch.maximum(near, centre - reach), torch.minimum(far, centre + reach)


def _quadratic(a: Tensor, half_b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of a t^2 + 2 half_b t + c; near above far if there is none."""
    a = a.clamp_min(_TINY**2)
    discriminant = half_b.square() - a * c
    root = discriminant.clamp_min(0).sqrt()
    near, far = (-half_b - root) / a, (-half_b + root) / a
    missed = discriminant < 0
    return torch.where(missed, FAR, near), torch.where(missed, -FAR, far)


_UNIT = {"box": _unit_box, "ellipsoid": _unit_ball, "cylinder": _unit_cylinder}


# -------------------------------------------------------------------------------------------------- distance


def surface_distance(solids: list[Solids], points: Tensor) -> Tensor:
    """Distance (B, N) of points (B, N, 3) from the nearest surface of solids at rest, metres.

    The first solid is a room, seen from inside. The distance is exact in the free space. Inside a solid it is the one
    to its own surface, although a part of that may touch a wall.
    """
    points = points.double()
    nearest = torch.full_like(points[..., 0], FAR)
    for number, group in enumerate(solids):
        side = -1.0 if number == 0 else 1.0
        for k in range(group.half.shape[1]):
            half, rotation = group.half[:, k].double(), group.rotation[:, 0, k].double()
            own = (points - group.centre[:, :1, k].double()) @ rotation
            signed = _SIGNED[group.shape](own, half[:, None])
            nearest = torch.minimum(nearest, torch.where((half > 0).all(-1)[:, None], side * signed, FAR))
    return nearest.abs()


def _box_distance(p: Tensor, half: Tensor) -> Tensor:
    """Signed distance (B, N), negative inside, of points (B, N, 3); half sizes (B, 1, 3)."""
    beyond = p.abs() - half
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0)


def _cylinder_distance(p: Tensor, half: Tensor) -> Tensor:
    """The same for a round cylinder: a box in the plane of its axis."""
    flat = torch.stack((p[..., :2].norm(dim=-1), p[..., 2]), dim=-1)
    return _box_distance(flat, half[..., 1:])


def _ellipsoid_distance(p: Tensor, half: Tensor) -> Tensor:
    """The same for an ellipsoid: the foot of the perpendicular by bisection (D. Eberly, Distance to an ellipsoid)."""
    p, square = p.abs().clamp_min(1e-9), half.square()
    least = square.amin(-1)
    low = (half * p - square).amax(-1)
    high = (half * p).norm(dim=-1) - least
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        outside = (half * p / (middle[..., None] + square)).square().sum(-1) > 1
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    foot = square * p / (high[..., None] + square)
    inside = (p / half).square().sum(-1) < 1
    return torch.where(inside, -1.0, 1.0) * (p - foot).norm(dim=-1)


_SIGNED = {"box": _box_distance, "ellipsoid": _ellipsoid_distance, "cylinder": _cylinder_distance}
