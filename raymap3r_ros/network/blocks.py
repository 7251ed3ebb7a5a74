"""Pre-norm transformer blocks: plain, with cross-attention, and modulated by a token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from raymap3r_ros.network.attention import CrossAttention, SelfAttention
from raymap3r_ros.network.config import NetworkConfig


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: NetworkConfig, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp_ratio * width)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), table)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """x += self-attention; x += cross-attention to a memory; x += mlp; each on normalised tokens."""

    def __init__(self, config: NetworkConfig, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm_y = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp_ratio * width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        table: Tensor | None = None,
        memory_table: Tensor | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """x (B, N, C) with memory (B, M, C) -> (B, N, C); `keep` as in `CrossAttention`."""
        x = x + self.attn(self.norm1(x), table)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), table, memory_table, keep)
        return x + self.mlp(self.norm3(x))


class ModulatedNorm(nn.Module):
    """A LayerNorm with scale and shift from a linear function of SiLU(condition)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, C), condition (B, 1, C)."""
        shift, scale = self.linear(F.silu(condition)).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class ModulatedBlock(nn.Module):
    """An encoder block with modulated norms."""

    def __init__(self, config: NetworkConfig, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(width, config.norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = ModulatedNorm(width, config.norm_eps)
        self.mlp = Mlp(width, config.mlp_ratio * width)

    def forward(self, x: Tensor, condition: Tensor, table: Tensor) -> Tensor:
        """x (B, N, C), condition (B, 1, C)."""
        x = x + self.attn(self.norm1(x, condition), table)
        return x + self.mlp(self.norm2(x, condition))
