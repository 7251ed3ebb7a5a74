"""Patches of an image, or of a ray map, to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from raymap3r_ros.network.attention import grid_rotary_table
from raymap3r_ros.network.blocks import EncoderBlock
from raymap3r_ros.network.config import NetworkConfig


class Encoder(nn.Module):
    """Patch embedding, transformer blocks with rotary positions, final norm."""

    def __init__(self, config: NetworkConfig, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.patch_embed = nn.Conv2d(channels, config.encoder_width, config.patch_size, stride=config.patch_size)
        self.blocks = nn.ModuleList(EncoderBlock(config, config.encoder_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(config.encoder_width, eps=config.norm_eps)

    def forward(self, planes: Tensor) -> Tensor:
        """planes (B, channels, H, W), H and W multiples of the patch -> tokens (B, N, C_e), row-major."""
        patches = self.patch_embed(planes)
        rows, columns = patches.shape[-2:]
        table = grid_rotary_table(
            rows, columns, False, self.config.encoder_width // self.heads, self.config.rope_base, planes.device
        )
        x = patches.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, table)
        return self.norm(x)
