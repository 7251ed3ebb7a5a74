"""Intersections against closed forms and against points on the rays."""

import math

import pytest
import torch

from raymap3r_ros.synthetic import raycast
from raymap3r_ros.synthetic.raycast import FAR, Solids

EYE = torch.eye(3).view(1, 1, 1, 3, 3)


def solid(shape: str, half: tuple, centre: tuple, rotation: torch.Tensor = EYE) -> Solids:
    return Solids(shape, torch.tensor(half).view(1, 1, 3), torch.tensor(centre).view(1, 1, 1, 3), rotation)


def cast(solids: Solids, origin: tuple, *directions: tuple, inside: bool = False) -> list[float]:
    rays = torch.tensor(directions, dtype=torch.float32)[None, None]
    depth, _ = raycast.hit(solids, torch.tensor(origin).view(1, 1, 3), rays, inside=inside)
    return depth.flatten().tolist()


def test_known_distances():
    ball = solid("ellipsoid", (1.0, 1.0, 1.0), (0.0, 0.0, 5.0))
    assert cast(ball, (0.0, 0.0, 0.0), (0, 0, 1), (0, 0, -1), (1, 0, 0.1)) == pytest.approx([4.0, FAR, FAR])
    # A ray that hits the ball at 30 degrees from the line to its centre: x^2 + (z - 5)^2 = 1.
    slope = 0.1
    expected = (10 - math.sqrt(100 - 4 * (1 + slope**2) * 24)) / (2 * (1 + slope**2))
    assert cast(ball, (0.0, 0.0, 0.0), (slope, 0, 1)) == pytest.approx([expected], rel=1e-4)

    box = solid("box", (1.0, 2.0, 0.5), (0.0, 0.0, 3.0))
    assert cast(box, (0.0, 0.0, 0.0), (0, 0, 1), (0.39, 0, 1), (0.41, 0, 1)) == pytest.approx([2.5, 2.5, FAR])
    assert cast(box, (0.0, 0.0, 3.0), (0, 0, 2), (1, 0, 0), inside=True) == pytest.approx([0.25, 1.0])

    cylinder = solid("cylinder", (0.5, 0.5, 1.0), (4.0, 0.0, 0.0))
    assert cast(cylinder, (0.0, 0.0, 0.0), (1, 0, 0), (2, 0, 0)) == pytest.approx([3.5, 1.75])
    assert cast(cylinder, (4.0, 0.0, 5.0), (0, 0, -1)) == pytest.approx([4.0])  # onto its cap
    assert cast(cylinder, (0.0, 0.0, 1.01), (1, 0, 0)) == [FAR]  # above it


def test_a_ray_along_a_plane_stays_finite():
    box = solid("box", (1.0, 1.0, 1.0), (0.0, 0.0, 3.0))
    depth = cast(box, (0.0, 1.0, 0.0), (1e-12, 0, 1), (-1e-12, -0.0, 1), (0, 0, -1))
    assert all(math.isfinite(value) and 0 < value <= FAR for value in depth)


@pytest.mark.parametrize("shape", ["box", "ellipsoid", "cylinder"])
def test_the_hit_is_the_first_point_of_the_rotated_solid_on_the_ray(shape: str):
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    if torch.linalg.det(rotation) < 0:
        rotation[:, 0] *= -1
    half, centre = torch.tensor((0.8, 0.5, 1.1)), torch.tensor((0.3, -0.2, 4.0))
    turned = solid(shape, tuple(half.tolist()), tuple(centre.tolist()), rotation.view(1, 1, 1, 3, 3))
    directions = torch.cat((0.3 * torch.randn(400, 2, generator=generator), torch.ones(400, 1)), dim=1)
    depth, _ = raycast.hit(turned, torch.zeros(1, 1, 3), directions[None, None])
    depth = depth[0, 0]

    steps = torch.linspace(0.01, 8, 4000)
    own = (steps[:, None, None] * directions - centre) @ rotation / half
    if shape == "box":
        inside = own.abs().amax(-1) < 1
    elif shape == "ellipsoid":
        inside = own.norm(dim=-1) < 1
    else:
        inside = (own[..., :2].norm(dim=-1) < 1) & (own[..., 2].abs() < 1)
    entered = inside.any(0)
    first = steps[inside.float().argmax(0)]
    grazing = depth.lt(FAR) != entered
    assert grazing.float().mean() < 0.02  # a few rays pass between two samples
    both = entered & ~grazing
    assert both.sum() > 50
    assert (depth - first)[both].abs().max() < 0.003
    p = (depth[both, None] * directions[both] - centre) @ rotation / half
    normal, face = raycast.normal(shape, p)
    # Outward, and towards the origin of the ray.
    towards = ((normal / half) @ rotation.T * directions[both]).sum(-1)
    assert (towards < 1e-4).all()
    assert face.max() == (5 if shape == "box" else 0) or shape == "box"


def test_an_absent_solid_is_never_hit_and_the_nearest_of_many_is():
    half = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    centre = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 9.0], [0.0, 0.0, 5.0]]])[None]
    many = Solids("box", half, centre, EYE.expand(1, 1, 3, 3, 3))
    depth, which = raycast.hit(many, torch.zeros(1, 1, 3), torch.tensor([[[[0.0, 0.0, 1.0]]]]))
    assert depth.item() == pytest.approx(4.0)
    assert which.item() == 2


# --- distance from surfaces -----------------------------------------------------------------------------------------

ROOM = solid("box", (3.0, 2.0, 1.5), (0.0, 0.0, 1.5))


def distance(solids: list[Solids], *points: tuple) -> list[float]:
    return raycast.surface_distance(solids, torch.tensor(points)[None])[0].tolist()


def test_distances_from_known_surfaces():
    assert distance([ROOM], (0, 0, 1.0), (2.9, 0, 1.5), (3.2, 0, 1.5), (3.3, 2.4, 1.5)) == pytest.approx(
        [1.0, 0.1, 0.2, 0.5], abs=1e-6
    )
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).expand(1, 1, 1, 3, 3)
    box = solid("box", (0.5, 0.2, 0.3), (1.0, 0.0, 1.5), quarter)  # 0.2 along x, 0.5 along y
    assert distance([ROOM, box], (0.5, 0, 1.5), (0.5, 0.9, 1.5), (0.9, 0.1, 1.5)) == pytest.approx(
        [0.3, 0.5, 0.1], abs=1e-6
    )
    cylinder = solid("cylinder", (0.4, 0.4, 0.5), (0.0, 0.0, 1.5))
    points = (0.8, 0.6, 1.5), (0.4, 0.3, 2.2), (0.0, 0.0, 2.1), (0.1, 0.0, 1.5), (0.56, 0.42, 2.4)
    assert distance([ROOM, cylinder], *points) == pytest.approx(
        [0.6, math.hypot(0.1, 0.2), 0.1, 0.3, math.hypot(0.3, 0.4)], abs=1e-6
    )
    assert distance([ROOM, solid("box", (0.0, 0.0, 0.0), (0.0, 0.0, 1.5))], (0.0, 0.0, 1.5)) == [1.5]  # absent


def test_the_distance_from_an_ellipsoid_is_the_smallest_of_all_its_points():
    half = torch.tensor((0.3, 0.3, 0.8), dtype=torch.float64)
    azimuth, polar = torch.meshgrid(
        torch.linspace(0, 2 * math.pi, 800, dtype=torch.float64),
        torch.linspace(0, math.pi, 800).double(),
        indexing="ij",
    )
    ball = torch.stack((polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()), dim=-1)
    surface = (ball * half).flatten(0, 1)
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    points = torch.cat(
        (points, points[:20] * half * 0.7, torch.tensor([[0.0, 0, 0], [0, 0, 1], [0.2, 0, 0]]).double())
    )
    expected = torch.stack([(surface - point).norm(dim=-1).min() for point in points])
    room = solid("box", (50.0, 50.0, 50.0), (0.0, 0.0, 0.0))
    ellipsoid = solid("ellipsoid", tuple(half.tolist()), (0.0, 0.0, 0.0))
    measured = raycast.surface_distance([room, ellipsoid], points[None])[0]
    torch.testing.assert_close(measured, expected, atol=1e-4, rtol=0)
    inside = (points / half).norm(dim=-1) < 1
    assert inside.sum() > 20 and (~inside).sum() > 40
