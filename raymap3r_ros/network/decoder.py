"""The dual decoder: image tokens and state tokens attend to each other, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymap3r_ros.network.attention import grid_rotary_table, state_rotary_table
from raymap3r_ros.network.blocks import DecoderBlock
from raymap3r_ros.network.config import NetworkConfig


@dataclass(frozen=True)
class Decoded:
    """The output of one pass of the decoder."""

    levels: tuple[Tensor, Tensor, Tensor, Tensor]  # input of the point heads: (B, N, C_e), then three (B, N, C_d)
    pose_token: Tensor  # (B, 1, C_d), refined
    state: Tensor | None  # (B, S, C_d) candidate for the next state; None if it was not requested
    # Queries (B, heads, S, D) and keys (B, heads, 1 + N, D) of the state side's cross-attention, layer by layer;
    # the pose token is the first key. Empty if it was not requested.
    attention: list[tuple[Tensor, Tensor]]
    grid: tuple[int, int]  # token rows and columns


class DualDecoder(nn.Module):
    """Two stacks of decoder blocks; each layer of both sides attends to the other side's *previous* layer."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.image_embed = nn.Linear(config.encoder_width, width)
        self.image_blocks = nn.ModuleList(
            DecoderBlock(config, width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.image_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.state_tokens = nn.Parameter(torch.empty(config.state_tokens, config.encoder_width))
        self.state_embed = nn.Linear(config.encoder_width, width)
        self.state_blocks = nn.ModuleList(
            DecoderBlock(config, width, config.state_heads) for _ in range(config.decoder_depth)
        )
        self.state_norm = nn.LayerNorm(width, eps=config.norm_eps)

    def initial_state(self, batch: int) -> Tensor:
        """(B, S, C_d): the initial state tokens."""
        return self.state_embed(self.state_tokens).expand(batch, -1, -1)

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        pose_token: Tensor,
        state: Tensor,
        *,
        want_state: bool = True,
        want_attention: bool = False,
    ) -> Decoded:
        """Decode tokens (B, N, C_e) on a grid of N = rows x columns, with a pose token (B, 1, C_d) and a state.

        Without `want_state` the last state block does not run, because nothing depends on it.
        """
        heads = self.config.decoder_heads, self.config.state_heads
        image_rope, state_rope = (self._tables(count, grid, tokens.device) for count in heads)
        x = torch.cat((pose_token.to(tokens.dtype), self.image_embed(tokens)), dim=1)
        kept: list[tuple[Tensor, Tensor]] = []
        layers = [tokens]
        last = len(self.image_blocks) - 1
        for index, (image_block, state_block) in enumerate(zip(self.image_blocks, self.state_blocks, strict=True)):
            following = image_block(x, state, image_rope[0], image_rope[1])
            if want_state or index < last:
                state = state_block(state, x, state_rope[1], state_rope[0], kept if want_attention else None)
            x = following
            layers.append(x)
        layers[-1] = self.image_norm(x)
        hooks = self.config.hook_layers
        return Decoded(
            levels=(tokens, *(layers[hook][:, 1:] for hook in hooks[1:])),
            pose_token=layers[-1][:, :1],
            state=self.state_norm(state) if want_state else None,
            attention=kept,
            grid=grid,
        )

    def _tables(self, heads: int, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary tables of image side and state side, for blocks with this number of heads."""
        config = self.config
        head_dim = config.decoder_width // heads
        return (
            grid_rotary_table(*grid, True, head_dim, config.rope_base, device),
            state_rotary_table(config.state_tokens, head_dim, config.rope_base, device),
        )
