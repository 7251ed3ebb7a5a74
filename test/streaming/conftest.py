"""Fixtures of the tests of the stream."""

import pytest
from torch import Tensor

from raymap3r_ros.network import Network, NetworkConfig, untrained_network


@pytest.fixture(scope="module")
def network(tiny_config: NetworkConfig):
    return untrained_network(tiny_config, seed=5).eval().requires_grad_(False)


@pytest.fixture
def batches(network: Network, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each call of the network, in order."""
    sizes: list[int] = []
    encode = network.encode_image

    def recorded(planes: Tensor) -> Tensor:
        sizes.append(len(planes))
        return encode(planes)

    monkeypatch.setattr(network, "encode_image", recorded)
    return sizes
