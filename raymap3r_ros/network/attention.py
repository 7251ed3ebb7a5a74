"""Attention with two-dimensional rotary positions.

Everything goes through `scaled_dot_product_attention`, but for `logits` and for training in bfloat16 on a CPU.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function


def rotary_table(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Factors for `rotate` at positions (N, 2) of (row, column): (2, N, head_dim), float32.

    RoPE2D: a head is four quarters [u_row | v_row | u_col | v_col] of Q numbers, and the pair (u_j, v_j) turns by
    coordinate * base^(-j / Q). Any coordinate is allowed, including -1.
    """
    quarter = head_dim // 4
    frequency = base ** -(torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter)
    angle = positions.float()[:, :, None] * frequency
    cos = torch.stack((angle.cos(), angle.cos()), dim=2)
    sin = torch.stack((-angle.sin(), angle.sin()), dim=2)
    return torch.stack((cos, sin)).flatten(2)


@wrap_torch_function(lambda x, table: (x,))
def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Queries or keys (B, heads, N, D) rotated by their positions; computed in float32, returned in x's type.

    (u, v) -> (u cos - v sin, v cos + u sin).
    """
    cos, sin = table
    turned = x.float()
    u_row, v_row, u_column, v_column = turned.chunk(4, dim=-1)
    swapped = torch.cat((v_row, u_row, v_column, u_column), dim=-1)
    return torch.addcmul(turned * cos, swapped, sin).type_as(x)


@functools.lru_cache(maxsize=64)
def grid_rotary_table(
    rows: int, columns: int, with_pose_token: bool, head_dim: int, base: float, device: torch.device
) -> Tensor:
    """`rotary_table` of an image's tokens in row-major order, preceded by the pose token at (-1, -1) if requested."""
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


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.requires_grad and q.device.type == "cpu" and q.dtype is torch.bfloat16:
        # The gradient of PyTorch's fused kernel is 5 to 8 times slower there.
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Common part of self- and cross-attention; subclasses compute queries, keys and values in `heads`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of (B, heads, N, D) and the output projection: (B, N, C)."""
        return self.proj(_attention(q, k, v).transpose(1, 2).flatten(2))

    def logits(self, *args: Tensor | None) -> Tensor:
        """The scaled attention matrix before softmax (B, heads, queries, keys), for inspection only."""
        q, k, _ = self.heads(*args)
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5


class SelfAttention(Attention):
    """Self-attention; queries and keys are rotated if a rotary table is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.qkv = nn.Linear(width, 3 * width)

    def heads(self, x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, N, C), each (B, heads, N, D)."""
        # (B, N, 3 C) -> (B, 3 heads, N, D): queries and keys are adjacent and rotated together.
        qkv = self.qkv(x).unflatten(-1, (3 * self.num_heads, -1)).transpose(1, 2)
        q_and_k, v = qkv[:, : 2 * self.num_heads], qkv[:, 2 * self.num_heads :]
        if table is not None:
            q_and_k = rotate(q_and_k, table)
        return *q_and_k.chunk(2, dim=1), v

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
        """x (B, N, C) attends to memory (B, M, C) -> (B, N, C). Queries and keys are appended to `keep`, if given."""
        q, k, v = self.heads(x, memory, table, memory_table)
        if keep is not None:
            keep.append((q, k))
        return self.attend(q, k, v)
