"""Fixtures of the mapping tests."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from scale_worlds import FRAMES, PERIOD, SIZE

from raymap3r_ros.synthetic import Recipe, random_scenes, render


@pytest.fixture(scope="session")
def worlds():
    """Six rooms and outdoor scenes with furniture and moving objects, for 16 s, from 0.5 to 1.9 m above the floor."""
    generator = torch.Generator().manual_seed(11)
    scenes = random_scenes(generator, 6, Recipe(presence=0.3))
    seen = render(scenes, (torch.arange(FRAMES) * PERIOD).expand(6, -1), SIZE, generator, with_images=False)
    return scenes, seen
