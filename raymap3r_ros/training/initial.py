"""Weights that a training run starts from."""

from __future__ import annotations

import dataclasses
import os

import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.network import Network
from raymap3r_ros.network.checkpoint import load_network, untrained_network
from raymap3r_ros.network.config import NetworkConfig
from raymap3r_ros.network.encoder import Encoder


def initial_network(
    config: NetworkConfig, seed: int, weights: str | os.PathLike | None, device: torch.device
) -> Network:
    """A network of this shape: random, or with the weights of a file.

    The file may be of a network with a conv stem, half of the image size and half of the patch size. The result then
    predicts from an image, at first, what that network predicts from the image reduced by averages of 2 x 2 pixels.
    Raises InputError if the file has another shape.
    """
    network = untrained_network(config, seed).to(device)
    if weights is None:
        return network
    given = load_network(weights, device)
    if given.config == config:
        network.load_state_dict(given.state_dict())
    elif _is_half(given.config, config):
        _start_from_half(network, given)
    else:
        raise InputError(
            f"{weights} has another shape than the preset: image_size {given.config.image_size}, patch_size "
            f"{given.config.patch_size}, stem {given.config.stem}. A training starts from weights of its own shape, "
            "or of half of its image size and patch size with the same widths and depths and a conv stem"
        )
    return network


def _is_half(given: NetworkConfig, config: NetworkConfig) -> bool:
    doubled = dataclasses.replace(given, image_size=2 * given.image_size, patch_size=2 * given.patch_size)
    return config.stem == "conv" and config.head_type == "dpt" and doubled == config


@torch.no_grad()
def _start_from_half(network: Network, given: Network) -> None:
    """Copy all weights; the first convolution of each stem, which `given` does not have, reduces the image."""
    tensors = {key: value for key, value in given.state_dict().items() if ".patch_embed." not in key}
    network.load_state_dict(tensors, strict=False)
    for encoder, smaller in (
        (network.image_encoder, given.image_encoder),
        (network.ray_encoder, given.ray_encoder),
    ):
        _put_reduction_before(encoder, smaller)


def _put_reduction_before(encoder: Encoder, smaller: Encoder) -> None:
    """Make the first convolution of the stem of `encoder` a mean of 2 x 2 pixels, and the others those of `smaller`.

    gelu(x) - gelu(-x) = x, so that two channels, x and -x, pass the activation between without a change. Further
    channels of the first convolution keep their random weights; the second one ignores them at first.
    """
    first, second = encoder.patch_embed[0], encoder.patch_embed[2]
    old: Tensor = smaller.patch_embed[0].weight
    channels = old.shape[1]
    if first.out_channels < 2 * channels:
        raise InputError(
            f"the stem of this preset begins with {first.out_channels} channels; a start from weights of half of its "
            f"image size needs {2 * channels}"
        )
    mean = torch.zeros(channels, channels, 3, 3, device=old.device)
    mean[range(channels), range(channels), 1:, 1:] = 0.25
    first.weight[: 2 * channels] = torch.cat((mean, -mean))
    first.bias[: 2 * channels] = 0.0
    second.weight.zero_()
    second.weight[:, : 2 * channels] = torch.cat((old, -old), dim=1)
    second.bias.copy_(smaller.patch_embed[0].bias)
    for index in range(2, len(smaller.patch_embed), 2):
        encoder.patch_embed[index + 2].load_state_dict(smaller.patch_embed[index].state_dict())
