"""Attention with two-dimensional rotary positions.

Everything goes through `scaled_dot_product_attention`; the attention matrix exists only where `logits` is called.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_table(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines of RoPE2D for `rotate`: (2, N, 2, head_dim / 4), float32.

    `positions` (N, 2) are (row, column); any number is allowed, -1 too: the angle is position * base^(-j / Q) for
    j < Q = head_dim / 4, the row turns the first half of a head and the column the second.
    """
    quarter = head_dim // 4
    frequency = base ** -(torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter)
    angle = positions.float()[:, :, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys (B, heads, N, D) by their positions; computed in float32, returned in x's type.

    A head is four quarters [u_row | v_row | u_col | v_col]: (u, v) -> (u cos - v sin, v cos + u sin).
    """
    u, v = x.float().unflatten(-1, (2, 2, -1)).unbind(-2)
    cos, sin = table
    return torch.stack((u * cos - v * sin, v * cos + u * sin), dim=-2).flatten(-3).type_as(x)


@functools.lru_cache(maxsize=64)
def grid_rotary_table(
    rows: int, columns: int, with_pose_token: bool, head_dim: int, base: float, device: torch.device
) -> Tensor:
    """`rotary_table` of an image's tokens in row-major order, after the pose token at (-1, -1) if there is one."""
    with torch.inference_mode(False):  # cached tensors must also serve under autograd
        grid = grid_positions(rows, columns, device)
        if with_pose_token:
            grid = torch.cat((grid.new_full((1, 2), -1), grid))
        return rotary_table(grid, head_dim, base)


@functools.lru_cache(maxsize=64)
def state_rotary_table(tokens: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """`rotary_table` of the state tokens (see `state_positions`)."""
    with torch.inference_mode(False):
        return rotary_table(state_positions(tokens, device), head_dim, base)


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of each image token, row-major: (rows * columns, 2)."""
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))


def state_positions(tokens: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of each state token on a grid as wide as the even number at or above floor(sqrt(tokens))."""
    width = int(tokens**0.5)
    width += width % 2
    index = torch.arange(tokens, device=device)
    return torch.stack((index // width, index % width), dim=-1)


class Attention(nn.Module):
    """What self- and cross-attention share: queries, keys and values made by a subclass's `heads`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of (B, heads, N, D) and the output projection: (B, N, C)."""
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def logits(self, *args: Tensor | None) -> Tensor:
        """The scaled attention matrix before softmax (B, heads, queries, keys), for inspection only."""
        q, k, _ = self.heads(*args)
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


class SelfAttention(Attention):
    """Self-attention; queries and keys are turned where a rotary table is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.qkv = nn.Linear(width, 3 * width)

    def heads(self, x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, N, C), each (B, heads, N, D)."""
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, dim=-1))
        return (q, k, v) if table is None else (rotate(q, table), rotate(k, table), v)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        return self.attend(*self.heads(x, table))


class CrossAttention(Attention):
    """Attention from one set of tokens to another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)

    def heads(
        self, x: Tensor, memory: Tensor, table: Tensor | None = None, memory_table: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x (B, N, C), keys and values of memory (B, M, C), each (B, heads, N or M, D)."""
        q, k, v = self.split(self.projq(x)), self.split(self.projk(memory)), self.split(self.projv(memory))
        if table is not None:
            q = rotate(q, table)
        if memory_table is not None:
            k = rotate(k, memory_table)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        table: Tensor | None = None,
        memory_table: Tensor | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """x (B, N, C) asks memory (B, M, C) -> (B, N, C). Queries and keys are appended to `keep` if it is given."""
        q, k, v = self.heads(x, memory, table, memory_table)
        if keep is not None:
            keep.append((q, k))
        return self.attend(q, k, v)
