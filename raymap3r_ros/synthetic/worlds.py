"""Random worlds: a furnished room or open ground, the path of a camera, and moving objects.

Everything is drawn for B scenes at once from one generator. The state of a scene is a closed-form function of time, so
frames can be rendered in any order. World frame: z up, metres; camera frame: optical.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raymap3r_ros.errors import OptionError
from raymap3r_ros.synthetic.raycast import Solids
from raymap3r_ros.synthetic.textures import random_materials

WORLDS = ("varied", "one_room")
_ONE_ROOM_SEED = 20284  # of the one room's walls and furniture

_STATIC = {"box": 10, "ellipsoid": 3, "cylinder": 3}  # slots
_MOVING = {"box": 1, "ellipsoid": 7, "cylinder": 1}  # a ball and the six parts of a walking figure are ellipsoids
MOVERS = 4  # box, cylinder, ball, figure
_BOX, _CYLINDER, _BALL, _FIGURE = range(MOVERS)
_MOVERS_OF_SOLIDS = ([_BOX], [_CYLINDER], [_BALL] + [_FIGURE] * 6)  # of each group of `mover_solids`
_ROOM_FACES = 6
# In the one room the movers always have the same sizes, so that size determines distance. Their appearance differs.
_KNOWN_HALF = ((0.3, 0.2, 0.5), (0.22, 0.22, 0.45), (0.26, 0.26, 0.26), (0.25, 0.25, 0.85))


@dataclass(frozen=True)
class Recipe:
    """Distribution of the scenes to draw."""

    world: str = "varied"
    presence: float = 0.6  # probability of each mover
    follow: float = 0.3  # probability that a mover stays in front of the camera
    size: float = 1.0  # factor on the sizes of movers; not of figures, and not in the one room
    nearness: tuple[float, float] = (1.2, 3.0)  # distance in metres of movers that stay in front of the camera
    stopgo: bool = False  # one mover stops halfway, one starts

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise OptionError(f"world is {self.world!r}; allowed values: {', '.join(WORLDS)}")


@dataclass(frozen=True)
class SumOfSines:
    """A sum of J sines of time: amplitude, frequency (Hz) and phase, each (B, ..., J)."""

    amplitude: Tensor
    frequency: Tensor
    phase: Tensor

    def at(self, time: Tensor) -> Tensor:
        """The sums (B, F, ...) at times (B, F, ...)."""
        angle = 2 * math.pi * self.frequency[:, None] * time[..., None] + self.phase[:, None]
        return (self.amplitude[:, None] * angle.sin()).sum(-1)


@dataclass(frozen=True)
class Scenes:
    """B scenes. Metres, seconds, radians; each mover moves from `start` to `stop`."""

    room: Tensor  # (B, 3) half length, half width, height
    static: dict[str, tuple[Tensor, Tensor, Tensor]]  # shape -> half (B, K, 3), centre (B, K, 3), yaw (B, K)
    materials: Tensor  # (B, M, MATERIAL_WIDTH): room faces, static solids, moving solids
    light: Tensor  # (B, 2, 3) unit directions towards two lights
    brightness: Tensor  # (B, 3) ambient, first light, second light
    exposure: SumOfSines  # (B, J) log gain
    noise: Tensor  # (B,) standard deviation of pixel noise
    field_of_view: Tensor  # (B,) horizontal
    camera_reach: Tensor  # (B, 2) half extent of the camera's zone
    camera_height: Tensor  # (B,)
    camera_place: SumOfSines  # (B, 3, J)
    camera_angle: SumOfSines  # (B, 3, J) yaw, pitch, roll
    camera_heading: Tensor  # (B, 2) mean yaw and pitch
    mover_half: Tensor  # (B, V, 3); 0 = absent
    mover_follows: Tensor  # (B, V) bool
    mover_angle: Tensor  # (B, V) position around the centre of the room, or angle from the camera's axis
    mover_distance: Tensor  # (B, V) from the camera, for those that follow
    mover_ring: Tensor  # (B, V) share of the room's half extent, for the others
    mover_motion: SumOfSines  # (B, V, 4, J) angle, distance, height, own yaw
    mover_base: Tensor  # (B, V) height of its lowest point
    start: Tensor  # (B, V)
    stop: Tensor  # (B, V)

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes on a device."""
        return _map(lambda tensor: tensor.to(device), self)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        """Some of the scenes."""
        return _map(lambda tensor: tensor[rows], self)


def _map(function, item):
    if isinstance(item, Tensor):
        return function(item)
    if isinstance(item, tuple):
        return tuple(_map(function, part) for part in item)
    if isinstance(item, dict):
        return {name: _map(function, part) for name, part in item.items()}
    return dataclasses.replace(
        item, **{field.name: _map(function, getattr(item, field.name)) for field in dataclasses.fields(item)}
    )


def random_scenes(generator: torch.Generator, count: int, recipe: Recipe) -> Scenes:
    """Draw `count` scenes on the CPU."""
    draw = _Draw(generator, count)
    if recipe.world == "one_room":
        place = _random_place(_Draw(torch.Generator().manual_seed(_ONE_ROOM_SEED), 1), outdoors=False)
        place = _map(lambda tensor: tensor.expand(count, *tensor.shape[1:]), place)
    else:
        place = _random_place(draw, outdoors=draw.uniform(0, 1) < 0.3)
    room, static, place_materials, reach = place
    moving_materials = random_materials(generator, (count, sum(_MOVING.values())), torch.tensor(0.6))
    one_room = recipe.world == "one_room"
    camera = _random_cameras(draw, reach, one_room)
    movers = _random_movers(draw, recipe, camera.heading)

    lights = torch.nn.functional.normalize(draw.normal(2, 3) + torch.tensor((0.0, 0.0, 1.2)), dim=-1)
    if one_room:
        lamp = torch.nn.functional.normalize(torch.tensor([[0.4, 0.3, 1.0], [-0.7, 0.2, 0.5]]), dim=-1)
        lights = torch.nn.functional.normalize(lamp + 0.15 * draw.normal(2, 3), dim=-1)
    return Scenes(
        room=room,
        static=static,
        materials=torch.cat((place_materials, moving_materials), dim=1),
        light=lights,
        brightness=torch.stack((draw.uniform(0.4, 0.6), draw.uniform(0.3, 0.6), draw.uniform(0.1, 0.3)), dim=-1),
        exposure=SumOfSines(draw.uniform(0.0, 0.12, 2), draw.uniform(0.03, 0.3, 2), draw.phase(2)),
        noise=draw.uniform(0.0, 0.02),
        field_of_view=draw.uniform(1.35, 1.45) if one_room else draw.uniform(1.0, 1.5),
        camera_reach=reach,
        camera_height=camera.height,
        camera_place=SumOfSines(camera.place_amplitude, camera.frequency, draw.phase(3, 3)),
        camera_angle=SumOfSines(
            camera.angle_amplitude, camera.frequency[:, torch.randperm(3, generator=generator)], draw.phase(3, 3)
        ),
        camera_heading=torch.stack((camera.heading, _pick(camera.kind, draw.uniform(0.0, 0.2), draw.uniform(0.0, 0.1),
                                                   draw.uniform(0.1, 0.35))), dim=-1),
        mover_half=movers.half,
        mover_follows=movers.follows,
        mover_angle=movers.angle,
        mover_distance=draw.uniform(*recipe.nearness, MOVERS),
        mover_ring=draw.uniform(0.62, 0.8, MOVERS),
        mover_motion=SumOfSines(
            movers.swing[..., None] * draw.uniform(0.5, 1.0, MOVERS, 4, 2),
            draw.uniform(0.08, 0.35, MOVERS, 4, 2),
            draw.phase(MOVERS, 4, 2),
        ),
        mover_base=movers.base,
        start=movers.start,
        stop=movers.stop,
    )  # fmt: skip


class _Cameras(NamedTuple):
    kind: Tensor  # (B,) 0: held in a hand, 1: on a robot, 2: on a drone
    height: Tensor  # (B,)
    frequency: Tensor  # (B, 3, J)
    place_amplitude: Tensor  # (B, 3, J)
    angle_amplitude: Tensor  # (B, 3, J)
    heading: Tensor  # (B,)


def _random_cameras(draw: _Draw, reach: Tensor, one_room: bool) -> _Cameras:
    """Cameras and the amplitudes of their motion; `reach` (B, 2) is the half extent of their zones."""
    kind = torch.randint(3, (draw.count,), generator=draw.generator)
    height = _pick(kind, draw.uniform(1.2, 1.7), draw.uniform(0.5, 1.1), draw.uniform(0.9, 1.9))
    shake = _pick(kind, torch.tensor(1.0), torch.tensor(0.2), torch.tensor(0.5))
    rise = _pick(kind, torch.tensor(0.08), torch.tensor(0.0), torch.tensor(0.3))
    nod = _pick(kind, torch.tensor(0.12), torch.tensor(0.02), torch.tensor(0.10))
    roll = _pick(kind, torch.tensor(0.06), torch.tensor(0.01), torch.tensor(0.05))
    # Slow sway, then fast shake.
    frequency = torch.cat((draw.uniform(0.05, 0.14, 3, 2), draw.uniform(0.8, 2.0, 3, 1)), dim=-1)
    sway = draw.uniform(0.4, 1.0, 3, 2) * torch.stack((reach[:, 0], reach[:, 1], rise), dim=-1)[..., None]
    place_amplitude = torch.cat((sway, (0.006 * shake)[:, None, None].expand(-1, 3, 1)), dim=-1)
    turn = draw.uniform(0.3, 1.0, 3, 2) * torch.stack((torch.full((draw.count,), 0.5), nod, roll), dim=-1)[..., None]
    angle_amplitude = torch.cat((turn, (0.006 * shake)[:, None, None].expand(-1, 3, 1)), dim=-1)
    # In the one room all cameras face about the same direction, which halves the number of views to learn.
    heading = draw.uniform(-0.6, 0.6) if one_room else draw.uniform(-math.pi, math.pi)
    return _Cameras(kind, height, frequency, place_amplitude, angle_amplitude, heading)


class _Movers(NamedTuple):
    """The fields of Scenes without `mover_`, and the amplitudes `swing` (B, V, 4) of the motion."""

    half: Tensor
    follows: Tensor
    angle: Tensor
    swing: Tensor
    base: Tensor
    start: Tensor
    stop: Tensor


def _random_movers(draw: _Draw, recipe: Recipe, heading: Tensor) -> _Movers:
    """Movers in the order box, cylinder, ball, figure; `heading` (B,) of the cameras."""
    size = recipe.size * draw.uniform(0.7, 1.3, MOVERS)[..., None]
    wide = draw.uniform(0.12, 0.3, MOVERS, 2)
    half = torch.cat((wide, draw.uniform(0.15, 0.5, MOVERS, 1)), dim=-1) * size
    half[:, _CYLINDER, 1] = half[:, _CYLINDER, 0]
    half[:, _BALL] = half[:, _BALL, :1]
    tall = draw.uniform(0.88, 1.12)
    half[:, _FIGURE] = torch.tensor((0.25, 0.25, 0.85)) * tall[:, None]
    if recipe.world == "one_room":
        half = torch.tensor(_KNOWN_HALF).repeat(draw.count, 1, 1)
    present = draw.uniform(0, 1, MOVERS) < recipe.presence
    half = half * present[..., None]
    follows = draw.uniform(0, 1, MOVERS) < recipe.follow
    floats = (draw.uniform(0, 1, MOVERS) < 0.3) & (torch.arange(MOVERS) != _FIGURE)
    base = torch.where(floats, draw.uniform(0.2, 1.2, MOVERS), 0.0)
    off_axis = draw.uniform(-0.5, 0.5, MOVERS)
    angle = torch.where(follows, off_axis, heading[:, None] + draw.uniform(-1.0, 1.0, MOVERS))
    swing = torch.stack(
        (
            draw.uniform(0.15, 0.5, MOVERS),
            draw.uniform(0.05, 0.12, MOVERS),
            torch.where(base > 0, 0.15, 0.0),
            draw.uniform(0.3, 1.5, MOVERS),
        ),
        dim=-1,
    )
    endless = torch.full((draw.count, MOVERS), math.inf)
    start, stop = -endless, endless.clone()
    if recipe.stopgo:
        # The box or the figure stops, the other starts.
        halfway = draw.uniform(2.0, 4.0, 2)
        first = (draw.uniform(0, 1) < 0.5)[:, None]
        pair = torch.tensor([_BOX, _FIGURE])
        stop[:, pair] = torch.where(torch.cat((first, ~first), 1), halfway, torch.inf)
        start[:, pair] = torch.where(torch.cat((~first, first), 1), halfway, -torch.inf)
        half[:, pair] = torch.where(
            half[:, pair] > 0, half[:, pair], torch.tensor([[0.3, 0.3, 0.5], [0.25, 0.25, 0.85]])
        )
        half[:, [_CYLINDER, _BALL]] = 0
        # A mover that follows the camera would have to avoid it.
        follows = torch.zeros_like(follows)
    return _Movers(half, follows, angle, swing, base, start, stop)


class _Draw:
    """Random numbers for a number of scenes."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self.generator, self.count = generator, count

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)

    def phase(self, *shape: int) -> Tensor:
        return self.uniform(0, 2 * math.pi, *shape)

    def side(self, *shape: int) -> Tensor:
        """-1 or 1."""
        return (torch.rand(self.count, *shape, generator=self.generator) < 0.5) * 2.0 - 1.0


def _pick(kind: Tensor, *values: Tensor) -> Tensor:
    """The value of each scene's kind, (B,)."""
    return torch.stack([value.expand(kind.shape) for value in values]).gather(0, kind[None])[0]


def _random_place(draw: _Draw, outdoors: Tensor | bool) -> tuple[Tensor, dict, Tensor, Tensor]:
    """Room (B, 3), static solids, materials of both, and the half extent of the camera's zone (B, 2)."""
    outdoors = torch.as_tensor(outdoors).expand(draw.count)
    indoor_room = torch.cat((draw.uniform(2.2, 4.0, 2), draw.uniform(2.4, 3.2, 1)), dim=-1)
    ground = torch.cat((draw.uniform(9.0, 18.0, 2), draw.uniform(6.0, 12.0, 1)), dim=-1)
    room = torch.where(outdoors[:, None], ground, indoor_room)
    grown = torch.where(outdoors, 1.5, 1.0)[:, None, None]
    static = {}
    for shape, count in _STATIC.items():
        if shape == "box":
            half = torch.cat(
                (
                    draw.uniform(0.2, 0.6, count, 1),
                    draw.uniform(0.1, 0.3, count, 1),
                    draw.uniform(0.15, 0.9, count, 1),
                ),
                dim=-1,
            )
        else:
            radius = draw.uniform(0.1, 0.3, count, 1)
            tall = draw.uniform(0.15, 0.8, count, 1) if shape == "cylinder" else draw.uniform(0.1, 0.4, count, 1)
            half = torch.cat((radius, radius, tall), dim=-1)
        half = half * grown
        # Along a wall: boxes touch it, round shapes have a gap.
        along_x = draw.uniform(0, 1, count) < 0.5
        side, along = draw.side(count), draw.uniform(-0.8, 0.8, count)
        gap = half[..., 1] + (0.0 if shape == "box" else draw.uniform(0.05, 0.3, count))
        x = torch.where(along_x, along * room[:, :1], side * (room[:, :1] - gap))
        y = torch.where(along_x, side * (room[:, 1:2] - gap), along * room[:, 1:2])
        yaw = torch.where(along_x, 0.0, math.pi / 2)
        # On open ground objects are anywhere around the centre.
        angle, radius = draw.uniform(-math.pi, math.pi, count), draw.uniform(3.0, 9.0, count)
        open_air = outdoors[:, None]
        x, y = torch.where(open_air, radius * angle.cos(), x), torch.where(open_air, radius * angle.sin(), y)
        yaw = torch.where(open_air, angle, yaw)
        hangs = (draw.uniform(0, 1, count) < 0.3) & ~open_air
        bottom = torch.where(hangs, draw.uniform(0, 1, count) * (room[:, 2:] - 2 * half[..., 2]).clamp_min(0), 0.0)
        static[shape] = half, torch.stack((x, y, bottom + half[..., 2]), dim=-1), yaw
    coarseness = torch.where(outdoors, 3.0, 1.0)[:, None]
    materials = torch.cat(
        (
            random_materials(draw.generator, (draw.count, _ROOM_FACES), coarseness),
            random_materials(draw.generator, (draw.count, sum(_STATIC.values())), coarseness.sqrt() * 0.6),
        ),
        dim=1,
    )
    reach = torch.where(outdoors[:, None], torch.full((draw.count, 2), 1.5), 0.42 * room[:, :2])
    return room, static, materials, reach


# ------------------------------------------------------------------------------------------------------- at a time


def camera_poses(scenes: Scenes, time: Tensor) -> Tensor:
    """c2w (B, F, 4, 4) at times (B, F)."""
    offset = scenes.camera_place.at(time[..., None].expand(-1, -1, 3))
    reach = scenes.camera_reach[:, None]
    # Limited to its zone, which is free of objects.
    xy = reach * (offset[..., :2] / reach).tanh()
    z = (scenes.camera_height[:, None] + offset[..., 2]).clamp_min(0.3)
    yaw, pitch, roll = scenes.camera_angle.at(time[..., None].expand(-1, -1, 3)).unbind(-1)
    yaw = yaw + scenes.camera_heading[:, None, 0]
    pitch = pitch + scenes.camera_heading[:, None, 1]  # downwards
    forward = torch.stack((yaw.cos() * pitch.cos(), yaw.sin() * pitch.cos(), -pitch.sin()), dim=-1)
    level = torch.stack((yaw.sin(), -yaw.cos(), torch.zeros_like(yaw)), dim=-1)  # to the right
    down = torch.linalg.cross(forward, level)
    right = roll.cos()[..., None] * level + roll.sin()[..., None] * down
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*time.shape, 4, 4, device=time.device)
    pose[..., :3, :3] = torch.stack((right, down, forward), dim=-1)
    pose[..., :2, 3], pose[..., 2, 3], pose[..., 3, 3] = xy, z, 1
    return pose


def static_solids(scenes: Scenes) -> list[Solids]:
    """The room, seen from inside, then the furniture."""
    centre = torch.cat((torch.zeros_like(scenes.room[:, :2]), scenes.room[:, 2:] / 2), dim=-1)
    half = torch.cat((scenes.room[:, :2], scenes.room[:, 2:] / 2), dim=-1)
    eye = torch.eye(3, device=half.device).expand(len(half), 1, 1, 3, 3)
    solids = [Solids("box", half[:, None], centre[:, None, None], eye)]
    for shape, (half, centre, yaw) in scenes.static.items():
        solids.append(Solids(shape, half, centre[:, None], turn_z(yaw)[:, None]))
    return solids


def moving_solids(scenes: Scenes, time: Tensor) -> tuple[list[Solids], list[Tensor]]:
    """The movable solids at times (B, F), and for each group whether its solids move then (B, F, K) bool."""
    own = time[..., None].clamp(scenes.start[:, None], scenes.stop[:, None])  # (B, F, V)
    active = (time[..., None] >= scenes.start[:, None]) & (time[..., None] < scenes.stop[:, None])
    angle, distance, height, yaw = scenes.mover_motion.at(own[..., None].expand(-1, -1, -1, 4)).unbind(-1)
    pose = camera_poses(scenes, time)
    eye, look = pose[..., None, :2, 3], torch.atan2(pose[..., 1, 2], pose[..., 0, 2])[..., None]
    angle = angle + scenes.mover_angle[:, None]
    ahead = look + 0.6 * angle
    distance = scenes.mover_distance[:, None] * (1 + 2 * distance)
    following = eye + distance[..., None] * torch.stack((ahead.cos(), ahead.sin()), dim=-1)
    room = scenes.room[:, None, None, :2].clamp(max=4.0)
    around = scenes.mover_ring[:, None, :, None] * room * torch.stack((angle.cos(), angle.sin()), dim=-1)
    xy = torch.where(scenes.mover_follows[:, None, :, None], following, around)
    half = scenes.mover_half
    radius = half[..., :2].norm(dim=-1)[:, None]
    # Inside the walls and away from the camera; stopped movers stay in place.
    walls = (scenes.room[:, None, None, :2] - radius[..., None]).clamp_min(0.1)
    xy = torch.maximum(torch.minimum(xy, walls), -walls)
    offset = xy - eye
    gap = offset.norm(dim=-1, keepdim=True).clamp_min(1e-3)
    pushed = eye + offset / gap * torch.maximum(gap, radius[..., None] + 0.35)
    free = torch.isinf(scenes.start) & torch.isinf(scenes.stop)
    xy = torch.where(free[:, None, :, None], pushed, xy)
    bounce = torch.zeros(MOVERS, device=xy.device)
    bounce[_BALL] = 0.5
    z = scenes.mover_base[:, None] + height.abs() + bounce * (2.5 * own).sin().abs() + half[:, None, :, 2]
    centre = torch.cat((xy, z[..., None]), dim=-1)
    rotation = turn_z(yaw + scenes.mover_angle[:, None])
    solids = mover_solids(half, centre, rotation, own[:, :, _FIGURE])
    return solids, [active[:, :, movers] for movers in _MOVERS_OF_SOLIDS]


def mover_solids(half: Tensor, centre: Tensor, rotation: Tensor, clock: Tensor) -> list[Solids]:
    """The solids of the movers: box, cylinder, ball and figure, in this order in the axis V.

    `half` (B, V, 3), `centre` (B, F, V, 3), `rotation` (B, F, V, 3, 3); `clock` (B, F) is the time of the gait. The
    third axis of a mover is the vertical.
    """
    one = {_BOX: "box", _CYLINDER: "cylinder"}
    solids = [Solids(shape, half[:, [v]], centre[:, :, [v]], rotation[:, :, [v]]) for v, shape in one.items()]
    parts = _figure(half[:, _FIGURE], centre[:, :, _FIGURE], rotation[:, :, _FIGURE], clock)
    ball = half[:, [_BALL]], centre[:, :, [_BALL]], rotation[:, :, [_BALL]]
    joined = (torch.cat(pair, dim=axis) for pair, axis in zip(zip(ball, parts, strict=True), (1, 2, 2), strict=True))
    return [*solids, Solids("ellipsoid", *joined)]


# Joint and half size of each part of a figure 1.7 m tall, in metres, x ahead, y left; and its swing (radians).
_PARTS = (
    ((0.0, 0.0, 1.15), (0.13, 0.20, 0.34), 0.0),  # trunk
    ((0.0, 0.0, 1.56), (0.10, 0.09, 0.14), 0.0),  # head
    ((0.0, 0.10, 0.84), (0.09, 0.08, 0.42), 0.45),  # legs hang from the hip
    ((0.0, -0.10, 0.84), (0.09, 0.08, 0.42), -0.45),
    ((0.0, 0.25, 1.42), (0.06, 0.055, 0.33), -0.5),  # arms from the shoulder
    ((0.0, -0.25, 1.42), (0.06, 0.055, 0.33), 0.5),
)
_GAIT = 2 * math.pi * 0.9  # radians per second


def _figure(half: Tensor, centre: Tensor, rotation: Tensor, clock: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Six ellipsoids of a walking figure: half (B, 6, 3), centre (B, F, 6, 3), rotation (B, F, 6, 3, 3)."""
    joints, sizes, swings = (torch.tensor(column, device=half.device) for column in zip(*_PARTS, strict=True))
    tall = half[:, 2] / 0.85
    angle = swings * (_GAIT * clock)[..., None].sin()  # (B, F, 6)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    swing = torch.stack((cos, zero, sin, zero, one, zero, -sin, zero, cos), dim=-1).unflatten(-1, (3, 3))
    hang = torch.zeros_like(joints)
    hang[2:, 2] = -sizes[2:, 2]
    offset = (joints + (swing @ hang[..., None])[..., 0]) * tall[:, None, None, None]
    foot = centre.clone()
    foot[..., 2] -= half[:, None, 2]
    place = foot[:, :, None] + (rotation[:, :, None] @ offset[..., None])[..., 0]
    return sizes * tall[:, None, None], place, rotation[:, :, None] @ swing


def turn_z(yaw: Tensor) -> Tensor:
    """Rotation (..., 3, 3) about the vertical."""
    cos, sin, zero, one = yaw.cos(), yaw.sin(), torch.zeros_like(yaw), torch.ones_like(yaw)
    return torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), dim=-1).unflatten(-1, (3, 3))
