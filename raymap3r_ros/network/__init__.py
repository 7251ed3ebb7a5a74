"""The frozen network: tensors in, tensors out, independent of streams and ROS."""

from raymap3r_ros.network.catalog import shipped_weights
from raymap3r_ros.network.checkpoint import (
    DEFAULT_CHECKPOINT,
    STORED_DTYPES,
    checkpoint_config,
    checkpoint_path,
    convert_checkpoint,
    load_network,
    save_network,
    untrained_network,
)
from raymap3r_ros.network.config import PRESETS, NetworkConfig
from raymap3r_ros.network.decoder import Decoded
from raymap3r_ros.network.device import choose_device, choose_threads, is_small
from raymap3r_ros.network.model import Network

__all__ = [
    "DEFAULT_CHECKPOINT",
    "PRESETS",
    "STORED_DTYPES",
    "Decoded",
    "Network",
    "NetworkConfig",
    "checkpoint_config",
    "checkpoint_path",
    "choose_device",
    "choose_threads",
    "convert_checkpoint",
    "is_small",
    "load_network",
    "save_network",
    "shipped_weights",
    "untrained_network",
]
