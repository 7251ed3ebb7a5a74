"""The fixed scenes of the evaluation. Their seeds are never used in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from raymap3r_ros.errors import OptionError
from raymap3r_ros.synthetic.paths import Stay, kidnapped_frames, kidnapping, returning
from raymap3r_ros.synthetic.raycast import surface_distance
from raymap3r_ros.synthetic.render import intrinsics_of, render
from raymap3r_ros.synthetic.worlds import WORLDS, Recipe, Scenes, random_scenes, static_solids

RATE = 10.0  # frames per second
KIDNAPS = 6  # in a sequence of the suite kidnap
EVALUATION_SEEDS = 1 << 40  # seeds from here on belong to the suites; training stays below
_CHUNK_PIXELS = 400_000  # rendered together
_TRIES = 100  # scenes among which one with the wanted share of moving pixels is selected


@dataclass(frozen=True)
class Suite:
    """A named set of sequences."""

    help: str
    seed: int  # the seeds of its sequences start at EVALUATION_SEEDS + seed * 1e6
    share: tuple[float, float]  # wanted mean share of moving pixels
    recipe: Recipe = field(default_factory=Recipe)
    sequences: int = 24
    frames: int = 60
    returns: bool = False  # the camera leaves its place and is at its first pose again in the last frame
    kidnapped: int = 0  # how often the camera is carried away and back, see `kidnapping`; this determines the frames
    sessions: bool = False  # each stay is a session of its own, which begins with the saved world of the first one


SUITES = {
    "static": Suite("nothing moves but the camera", 1, (0.0, 0.0), Recipe(presence=0.0)),
    "light": Suite("movers cover less than a tenth of the image", 2, (0.01, 0.1), Recipe(presence=0.5, follow=0.2)),
    "heavy": Suite(
        "movers cover three tenths and more",
        3,
        (0.3, 0.7),
        Recipe(presence=0.9, follow=0.8, size=1.5, nearness=(0.8, 1.6)),
    ),
    "long": Suite("a hundred seconds, long enough for resets", 4, (0.03, 0.4), Recipe(follow=0.4), frames=1000),
    "stopgo": Suite("one mover stops, one starts", 5, (0.01, 0.5), Recipe(presence=1.0, stopgo=True)),
    "revisit": Suite(
        "the camera leaves a place and comes back to it",
        7,
        (0.03, 0.4),
        Recipe(follow=0.4),
        sequences=12,
        frames=2000,
        returns=True,
    ),
    "endurance": Suite(
        "a thousand seconds in one place", 8, (0.03, 0.4), Recipe(follow=0.4), sequences=2, frames=10_000
    ),
    "kidnap": Suite(
        "the camera is carried elsewhere and back, several times",
        9,
        (0.03, 0.4),
        Recipe(follow=0.4),
        frames=kidnapped_frames(KIDNAPS),
        kidnapped=KIDNAPS,
    ),
    "session": Suite(
        "the first place is saved; each later stay, elsewhere or there, is a session that begins with the saved world",
        10,
        (0.03, 0.4),
        Recipe(follow=0.4),
        frames=kidnapped_frames(KIDNAPS),
        kidnapped=KIDNAPS,
        sessions=True,
    ),
    "tune": Suite("for choosing thresholds, never reported", 6, (0.0, 0.7), Recipe(follow=0.4, size=1.2)),
}


@dataclass(frozen=True)
class Frame:
    """One frame of a sequence. World frame: z up; camera frame: optical (x right, y down, z forward); metres."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 along z
    static_depth: np.ndarray  # (H, W) float32 of the world without movable objects
    moving: np.ndarray  # (H, W) bool: moving at this time
    pose: np.ndarray  # (4, 4) float64 c2w
    intrinsics: np.ndarray  # (3, 3) float64, pixels, pixel centres integer
    stamp: float  # seconds
    room: int = 0  # poses are in the world frame of a room; 0 is the first one
    jumps: int = 0  # how often the camera has been carried to another place before


@dataclass(frozen=True)
class SyntheticSequence:
    """One sequence of a suite. Each call of `frames` renders it again, with equal bits on one device."""

    name: str
    length: int  # frames
    rate: float  # frames per second
    size: tuple[int, int]  # H, W
    intrinsics: np.ndarray  # (3, 3) float64
    scenes: Scenes  # a single scene, the first one
    seed: int
    stays: tuple[Stay, ...]  # between them the camera is carried to another place

    def frames(self) -> Iterator[Frame]:
        """All frames in order, rendered a few at a time."""
        device = self.scenes.room.device
        noise = torch.Generator(device).manual_seed(self.seed)
        chunk = max(1, _CHUNK_PIXELS // (self.size[0] * self.size[1]))
        left = self.length
        for jumps, stay in enumerate(self.stays):
            count = left if stay is self.stays[-1] else min(stay.frames, left)  # `length` may be replaced
            left -= count
            for start in range(0, count, chunk):
                stamps = torch.arange(start, min(start + chunk, count), dtype=torch.float64) / self.rate
                stamps += stay.start
                seen = render(stay.scenes, stamps.float().to(device)[None], self.size, noise)
                columns = (seen.image, seen.depth, seen.static_depth, seen.moving, seen.pose.double())
                arrays = [column[0].cpu().numpy() for column in columns]
                for *values, stamp in zip(*arrays, stamps.tolist(), strict=True):
                    yield Frame(*values, self.intrinsics, stamp, stay.room, jumps)

    def surface_distance(self, points: np.ndarray) -> np.ndarray:
        """Distance (N,) of points (N, 3) in the first room from its nearest static surface, metres."""
        solids = static_solids(self.scenes.to("cpu"))
        return surface_distance(solids, torch.from_numpy(points)[None])[0].numpy()


def suite_sequence(
    suite: str,
    index: int,
    *,
    world: str = "varied",
    size: tuple[int, int] = (120, 160),
    device: torch.device | str = "cpu",
) -> SyntheticSequence:
    """Sequence `index` of a suite in a world, at H x W pixels. Raises OptionError if it does not exist."""
    if suite not in SUITES:
        raise OptionError(f"there is no suite {suite!r}; allowed: {', '.join(SUITES)}")
    chosen = SUITES[suite]
    if not 0 <= index < chosen.sequences:
        raise OptionError(f"suite {suite} has no sequence {index}; it has 0 to {chosen.sequences - 1}")
    recipe = dataclasses.replace(chosen.recipe, world=world)
    seed = EVALUATION_SEEDS + chosen.seed * 1_000_000 + WORLDS.index(world) * 1000 + index
    scenes = _find_scene(recipe, chosen, seed, index).to(device)
    stays = (Stay(scenes, 0, 0.0, chosen.frames),)
    if chosen.kidnapped:
        stays = kidnapping(scenes, world, chosen.kidnapped, torch.Generator().manual_seed(seed + 500_000), RATE)
    return SyntheticSequence(
        name=sequence_name(suite, index, world),
        length=chosen.frames,
        rate=RATE,
        size=size,
        intrinsics=intrinsics_of(scenes, size)[0].double().numpy(),
        scenes=scenes,
        seed=seed,
        stays=stays,
    )


def sequence_name(suite: str, index: int, world: str) -> str:
    """The name of a sequence, and of the folder that it is exported to."""
    return f"{world}-{suite}-{index:02d}"


def _find_scene(recipe: Recipe, suite: Suite, seed: int, index: int) -> Scenes:
    """The first scene of this seed whose mean share of moving pixels fits; the wanted shares are evenly spaced."""
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(generator, 1 if suite.share[1] == 0 else _TRIES, recipe)
    if suite.returns:
        scenes = returning(scenes, (suite.frames - 1) / RATE, centred=recipe.world == "one_room")
    if suite.share[1] == 0:
        return scenes
    time = torch.linspace(0, suite.frames / RATE, 8).expand(_TRIES, -1)
    seen = render(scenes, time, (12, 16), generator, with_images=False)
    share = seen.moving.float().mean((1, 2, 3))
    low, high = suite.share
    wanted = low + (high - low) * (index + 0.5) / suite.sequences
    outside = ((share < low) | (share > high)).float()
    return scenes[((share - wanted).abs() + outside).argmin()[None]]
