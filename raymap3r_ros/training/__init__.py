"""How the shipped weights were made, repeatable: sequences of rendered worlds, in small what CUT3R was trained on."""

from raymap3r_ros.training.train_options import RECIPES, TrainOptions
from raymap3r_ros.training.trainer import train

__all__ = ["RECIPES", "TrainOptions", "train"]
