"""The pose memory: a small matrix that associates views with poses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymap3r_ros.network.blocks import DecoderBlock
from raymap3r_ros.network.config import NetworkConfig


class PoseMemory(nn.Module):
    """Keys | values (B, M, 2 C_d), read with a mean image token and written with it and its pose token."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = 2 * config.decoder_width
        self.initial = nn.Parameter(torch.empty(1, config.memory_slots, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder_width))
        self.embed = nn.Linear(config.encoder_width, config.decoder_width)
        self.read_blocks = nn.ModuleList(
            DecoderBlock(config, width, config.memory_heads) for _ in range(config.memory_depth)
        )
        self.write_blocks = nn.ModuleList(
            DecoderBlock(config, width, config.memory_heads) for _ in range(config.memory_depth)
        )

    def read(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """The pose token (B, 1, C_d) from the memory (B, M, 2 C_d) for a view with tokens (B, N, C_e)."""
        key = self.embed(tokens.mean(dim=1, keepdim=True))
        x = torch.cat((key, self.mask_token.to(key.dtype).expand_as(key)), dim=-1)
        for block in self.read_blocks:
            x = block(x, memory)
        return x.chunk(2, dim=-1)[1]

    def write(self, memory: Tensor, tokens: Tensor, pose_token: Tensor) -> Tensor:
        """The memory after a view with tokens (B, N, C_e) and refined pose token (B, 1, C_d)."""
        key = self.embed(tokens.mean(dim=1, keepdim=True))
        entry = torch.cat((key, pose_token.to(key.dtype)), dim=-1)
        for block in self.write_blocks:
            memory = block(memory, entry)
        return memory
