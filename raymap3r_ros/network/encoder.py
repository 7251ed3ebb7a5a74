"""Encoder of an image, or of a ray map, into tokens."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from raymap3r_ros.network.attention import grid_rotary_table
from raymap3r_ros.network.blocks import EncoderBlock
from raymap3r_ros.network.config import NetworkConfig


class ConvStem(nn.Sequential):
    """Convolutions that halve the image until one pixel is one patch (Xiao et al. 2021, arXiv 2106.14881)."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        halvings = patch_size.bit_length() - 1
        widths = [channels, *(max(8, width >> (halvings - 1 - i)) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(width, width, 1))


class Encoder(nn.Module):
    """Patch embedding, transformer blocks with rotary positions, final norm."""

    def __init__(self, config: NetworkConfig, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        width, patch = config.encoder_width, config.patch_size
        if config.stem == "conv":
            self.patch_embed = ConvStem(channels, width, patch)
            # Without it, the image contributes little to the blocks' input at the start of training.
            self.stem_norm = nn.LayerNorm(width, eps=config.norm_eps)
        else:
            self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
            self.stem_norm = nn.Identity()
        self.blocks = nn.ModuleList(EncoderBlock(config, config.encoder_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, planes: Tensor) -> Tensor:
        """planes (B, channels, H, W), H and W multiples of the patch -> tokens (B, N, C_e), row-major."""
        patches = self.patch_embed(planes)
        rows, columns = patches.shape[-2:]
        table = grid_rotary_table(
            rows, columns, False, self.config.encoder_width // self.heads, self.config.rope_base, planes.device
        )
        x = self.stem_norm(patches.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x, table)
        return self.norm(x)
