"""Rendered worlds with exact depth, poses and motion, for training and evaluation."""

from raymap3r_ros.synthetic.render import Rendering, render
from raymap3r_ros.synthetic.suites import RATE, SUITES, Frame, Suite, SyntheticSequence, suite_sequence
from raymap3r_ros.synthetic.worlds import WORLDS, Recipe, Scenes, random_scenes

__all__ = [
    "RATE", "SUITES", "WORLDS", "Frame", "Recipe", "Rendering", "Scenes", "Suite", "SyntheticSequence",
    "random_scenes", "render", "suite_sequence",
]  # fmt: skip
