"""Training of the shipped weights on rendered sequences: a small version of the training of CUT3R."""

from raymap3r_ros.training.train_options import RECIPES, TrainOptions
from raymap3r_ros.training.trainer import train

__all__ = ["RECIPES", "TrainOptions", "train"]
