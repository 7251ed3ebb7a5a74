"""A simple world with exact ground truth, and a network that predicts it.

The camera translates in front of a wall at z = 5 m; a box 2 m in front of the camera moves with it. The network
predicts the true geometry, but after each reset its origin is the first camera and its unit of length changes, as
with a recurrent network.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from raymap3r_ros.network import Decoded

WALL = 5.0  # metres from the first camera
BOX = (slice(16, 32), slice(24, 40))  # rows and columns of the moving box
BOX_DEPTH = 2.0
SIZE = (48, 64)
FOCAL = 60.0
METRES = (1.0, 0.5, 1.6, 0.8)  # unit of length of a segment, by the frame that it starts with


def position(frame: int) -> np.ndarray:
    """Position of the camera at a frame, metres from the first one."""
    return np.array([0.03 * frame, 0.1 * np.sin(0.3 * frame), 0.02 * frame], dtype=np.float32)


def image(frame: int) -> np.ndarray:
    """An image that encodes the index of its frame."""
    return np.full((*SIZE, 3), frame, np.uint8)


class WallNetwork(nn.Module):
    """Replaces the network: same methods, geometry instead of weights."""

    trained, source, precision = True, "a wall", "float32"

    def __init__(self, moving_box: bool = True, lose_frame: int = -1) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=64, patch_size=16, encoder_width=6)
        self.first_pose_token = nn.Parameter(torch.zeros(1, 1, 1))
        self.moving_box = moving_box
        self.lose_frame = lose_frame  # at this frame all outputs are NaN
        self.ray_depths: list[Tensor] = []

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 4, 3)

    def initial_memory(self, batch: int) -> Tensor:
        return torch.zeros(batch, 2, 2)

    def encode_image(self, planes: Tensor) -> Tensor:
        frame = ((planes[:, 0, 0, 0] * 0.5 + 0.5) * 255).round()
        return torch.stack((frame, *torch.zeros(5, len(planes))), dim=-1)[:, None].expand(-1, 12, -1)

    def encode_rays(self, rays: Tensor) -> Tensor:
        return torch.cat((rays[:, :2, :6, :3].flatten(1, 2), torch.ones(len(rays), 12, 3)), dim=-1)

    def read_memory(self, memory: Tensor, tokens: Tensor) -> Tensor:
        return torch.zeros(len(tokens), 1, 1)

    def write_memory(self, memory: Tensor, tokens: Tensor, pose_token: Tensor) -> Tensor:
        return memory

    def decode(self, tokens, grid, pose_token, state, *, want_state=True, want_attention=False) -> Decoded:
        # The state contains 1 + the segment's first frame; 0: initial.
        frame, start = tokens[:, 0, 0], state[:, 0, 0]
        first = torch.where(start > 0, (start - 1).round(), frame)
        candidate = (first + 1)[:, None, None].expand(-1, 4, 3)
        attention = [(torch.zeros(len(tokens), 1, 4, 4), torch.zeros(len(tokens), 1, 13, 4))]
        levels = (tokens, first, tokens, tokens)
        return Decoded(levels, pose_token, candidate if want_state else None, attention, grid)

    def pose(self, decoded: Decoded) -> Tensor:
        centre = (self._where(decoded)[0] - self._origin(decoded)) / self._metre(decoded)
        return torch.cat((centre, torch.tensor((1.0, 0, 0, 0)).expand(len(centre), 4)), dim=-1)

    def self_points(self, decoded: Decoded, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        centre, from_rays = self._where(decoded)
        depth = (WALL - centre[:, 2])[:, None, None].repeat(1, *size)
        if self.moving_box and not from_rays:
            depth[:, BOX[0], BOX[1]] = BOX_DEPTH
        if from_rays:
            self.ray_depths.append(depth[:, 0, 0])
        elif (decoded.levels[0][:, 0, 0] == self.lose_frame).any():
            depth = depth * torch.nan
        row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
        slopes = torch.stack(((column - 32) / FOCAL, (row - 24) / FOCAL, torch.ones(size)), dim=-1)
        points = slopes * (depth / self._metre(decoded)[:, :, None])[..., None]
        return points, torch.full((len(centre), *size), 3.0)

    def _where(self, decoded: Decoded) -> tuple[Tensor, bool]:
        """Camera centres in true metres from the first camera, and whether the input was rays."""
        tokens = decoded.levels[0]
        if tokens[0, 0, 5] == 1:  # rays: their centre is in the segment's world
            return tokens[:, 0, :3] * self._metre(decoded) + self._origin(decoded), True
        return torch.stack([torch.from_numpy(position(int(frame))) for frame in tokens[:, 0, 0]]), False

    def _origin(self, decoded: Decoded) -> Tensor:
        return torch.stack([torch.from_numpy(position(int(first))) for first in decoded.levels[1]])

    def _metre(self, decoded: Decoded) -> Tensor:
        return torch.tensor([[METRES[int(first) // 10 % 4]] for first in decoded.levels[1]])
