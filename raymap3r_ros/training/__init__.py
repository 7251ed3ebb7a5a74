"""Training of small networks on rendered sequences or a recording: a small version of the training of CUT3R."""

from raymap3r_ros.training.train_options import RECIPES, RECORDING, TrainOptions
from raymap3r_ros.training.trainer import train

__all__ = ["RECIPES", "RECORDING", "TrainOptions", "train"]
