"""Rotary positions and attention against their definitions."""

import numpy as np
import torch

from raymap3r_ros.network.attention import (
    CrossAttention,
    SelfAttention,
    grid_positions,
    rotary_table,
    rotate,
    state_positions,
)


def rotate_by_definition(x: np.ndarray, position: tuple[int, int], base: float = 100.0) -> np.ndarray:
    """One head vector, rotated pair by pair as complex numbers."""
    quarter = len(x) // 4
    out = np.empty_like(x)
    for half, coordinate in enumerate(position):
        for j in range(quarter):
            u, v = 2 * half * quarter + j, (2 * half + 1) * quarter + j
            turned = (x[u] + 1j * x[v]) * np.exp(1j * coordinate * base ** (-j / quarter))
            out[u], out[v] = turned.real, turned.imag
    return out


def test_rotation_is_the_complex_product_at_every_position_including_minus_one():
    positions = [(-1, -1), (0, 0), (3, 1), (17, 40)]
    x = torch.randn(1, 2, len(positions), 12, dtype=torch.float64).float()
    turned = rotate(x, rotary_table(torch.tensor(positions), 12, 100.0))
    for head in range(2):
        for index, position in enumerate(positions):
            expected = rotate_by_definition(x[0, head, index].double().numpy(), position)
            np.testing.assert_allclose(turned[0, head, index], expected, atol=2e-6)


def test_attention_depends_on_relative_position_only():
    q, k = torch.randn(2, 1, 1, 1, 16)
    products = []
    for shift in (0, 5, 31):
        q_table = rotary_table(torch.tensor([(2 + shift, 7 + shift)]), 16, 100.0)
        k_table = rotary_table(torch.tensor([(4 + shift, 1 + shift)]), 16, 100.0)
        products.append((rotate(q, q_table) * rotate(k, k_table)).sum())
    torch.testing.assert_close(products[1], products[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(products[2], products[0], atol=1e-4, rtol=0)


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(1, 1, 1, 8)
    table = rotary_table(torch.tensor([(500, 900)]), 8, 100.0)
    turned = rotate(x.half(), table)
    assert turned.dtype == torch.float16
    torch.testing.assert_close(turned.float(), rotate(x, table), atol=4e-3, rtol=0)


def test_positions_are_row_and_column():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    # 28 tokens: the root is 5, which is odd, so the grid has 6 columns.
    assert state_positions(28)[[0, 5, 6, 27]].tolist() == [[0, 0], [0, 5], [1, 0], [4, 3]]
    assert state_positions(768)[-1].tolist() == [767 // 28, 767 % 28]


def test_attention_equals_the_explicit_matrix():
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    table, memory_table = (rotary_table(grid_positions(1, n), 4, 100.0) for n in (5, 7))
    for attention, args in (
        (SelfAttention(16, 4), (x, table)),
        (CrossAttention(16, 4), (x, memory, table, memory_table)),
    ):
        _, _, v = attention.heads(*args)
        explicit = attention.logits(*args).softmax(-1) @ v
        expected = attention.proj(explicit.transpose(1, 2).reshape(2, 5, 16))
        torch.testing.assert_close(attention(*args), expected, atol=1e-6, rtol=1e-5)


def test_returned_queries_and_keys_are_those_that_were_used():
    attention, kept = CrossAttention(16, 4), []
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    attention(x, memory, keep=kept)
    q, k = kept[0]
    torch.testing.assert_close(q @ k.mT / 2, attention.logits(x, memory))
