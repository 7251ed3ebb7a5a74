"""Devices by name."""

import pytest
import torch

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import choose_device


def test_an_available_device_is_used_and_others_are_refused_with_a_list():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match="device is 'cuda:99'; on this machine there are: auto, cpu"):
        choose_device("cuda:99")
    with pytest.raises(OptionError, match="device is 'tpu'"):
        choose_device("tpu")
