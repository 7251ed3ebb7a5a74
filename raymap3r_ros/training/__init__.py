"""Training of small networks on rendered sequences or a recording: a small version of the training of CUT3R."""

from raymap3r_ros.training.sources import RECORDING
from raymap3r_ros.training.train_options import RECIPES, TrainOptions
from raymap3r_ros.training.trainer import train

__all__ = ["RECIPES", "RECORDING", "TrainOptions", "train"]
