"""Sources of training images.

A source is a function `(seed, count, length, size, device) -> Rendering` that returns `count` sequences of `length`
frames of H x W pixels on a device. Every sequence has one camera matrix, one world frame and one static scene. The
result depends only on the arguments.

- Seeds from `EVALUATION_SEEDS` on are for validation: a source that draws from recorded images must return images
  that lower seeds never return.
- A depth of 0 is unknown. Such pixels have no part in the losses.
- `moving` marks the pixels of moving objects; there, `static_depth` is the depth of what they hide.

The trainer draws batches from a set of sequences: windows of consecutive frames, in random order. To add a source,
add it to `SOURCES`: its name is then a value of the option `world`. A recording is a source that needs files.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from raymap3r_ros.errors import OptionError
from raymap3r_ros.synthetic import WORLDS, Recipe, Rendering, random_scenes, render
from raymap3r_ros.training.recording import read_recording

_LONGEST_TIME = 60.0  # seconds; latest start of a sequence
_STRIDES = (0.1, 8.0)  # seconds between frames

Source = Callable[[int, int, int, tuple[int, int], torch.device], Rendering]


def rendered_scenes(
    world: str, seed: int, count: int, length: int, size: tuple[int, int], device: torch.device
) -> Rendering:
    """Sequences of random scenes of a rendered world."""
    generator = torch.Generator().manual_seed(seed)
    # Half of the sequences have few movers or none, the other half has many.
    recipes = (Recipe(world, presence=0.35), Recipe(world, presence=0.8, follow=0.7, size=1.4, nearness=(0.8, 2.2)))
    return concatenate(
        [
            _render(recipe, generator, share, length, size, device)
            for recipe, share in zip(recipes, (count - count // 2, count // 2), strict=True)
            if share
        ]
    )


def concatenate(parts: list[Rendering]) -> Rendering:
    """The sequences of several renderings of equal length and size."""
    names = [field.name for field in dataclasses.fields(Rendering)]
    return Rendering(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _render(
    recipe: Recipe, generator: torch.Generator, count: int, length: int, size: tuple[int, int], device: torch.device
) -> Rendering:
    scenes = random_scenes(generator, count, recipe)
    begin = torch.rand(count, 1, generator=generator) * _LONGEST_TIME
    low, high = _STRIDES
    stride = low * (high / low) ** torch.rand(count, 1, generator=generator)
    time = begin + stride * torch.arange(length)
    noise = torch.Generator(device).manual_seed(int(torch.randint(1 << 40, (), generator=generator)))
    return render(scenes.to(device), time.to(device), size, noise)


RECORDING = "recording"  # the world of a recording
SOURCES: dict[str, Source] = {world: functools.partial(rendered_scenes, world) for world in WORLDS}


def find_source(world: str, data: str | os.PathLike | None, size: tuple[int, int]) -> Source:
    """The source of this world for images of H x W pixels; `data`: the folder of a recording, or None."""
    if (world == RECORDING) != (data is not None):
        raise OptionError(
            f"world is {world!r}, folder of the recording: {data}; {RECORDING!r} needs one, other worlds have none"
        )
    return SOURCES[world] if data is None else read_recording(Path(data), size).sequences
