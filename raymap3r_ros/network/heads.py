"""Heads: dense maps from decoder levels (DPT or linear) and the pose from its token. Always float32 in a stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymap3r_ros.network.blocks import Mlp
from raymap3r_ros.network.config import NetworkConfig


def stretch(v: Tensor, dim: int = -1) -> Tensor:
    """v/|v| * expm1(|v|) along `dim`: the parametrisation of points and translations."""
    # Clamped under the root, because the gradient of the norm is not finite at 0.
    norm = v.square().sum(dim, keepdim=True).clamp_min(1e-16).sqrt()
    return v / norm * norm.expm1()


def decode_points(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Raw head output (B, 4, H, W) -> points (B, H, W, 3) in metres and confidence (B, H, W), 1 + exp."""
    # Contiguous planes: all later steps use x, y, z or the confidence separately.
    raw = raw.float().contiguous()
    return stretch(raw[:, :3], dim=1).movedim(1, -1), 1 + raw[:, 3].exp()


def decode_rgb(raw: Tensor) -> Tensor:
    """Raw head output (B, 3, H, W) -> RGB (B, H, W, 3) in (-1, 1)."""
    return 2 * (raw.float().movedim(1, -1).sigmoid() * (1 - 2e-6) + 1e-6) - 1


def decode_pose(raw: Tensor) -> Tensor:
    """Raw pose (B, 7) -> camera to world: translation in metres and unit quaternion (w, x, y, z) with w >= 0."""
    quaternion = F.normalize(raw[..., 3:], dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    return torch.cat((stretch(raw[..., :3]), quaternion), dim=-1)


class PoseHead(nn.Module):
    """From the refined pose token to a raw pose."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.mlp = Mlp(config.decoder_width, 4 * config.decoder_width, 7)

    def forward(self, pose_token: Tensor) -> Tensor:
        """(B, 1, C_d) -> (B, 7): translation and quaternion before `decode_pose`."""
        return self.mlp(pose_token[:, 0])


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


class Level(nn.Module):
    """One decoder level as a feature map at its own scale: 4, 2, 1 or 1/2 times the token grid."""

    def __init__(self, tokens_width: int, width: int, out_width: int, scale: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(tokens_width, width, 1)
        if scale > 1:
            factor = int(scale)
            self.resample = nn.ConvTranspose2d(width, width, factor, stride=factor)
        elif scale < 1:
            self.resample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        else:
            self.resample = nn.Identity()
        self.smooth = nn.Conv2d(width, out_width, 3, padding=1, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.smooth(self.resample(self.project(to_map(tokens, grid))))


class Fusion(nn.Module):
    """A coarser map merged with a level and doubled in size."""

    def __init__(self, width: int, has_skip: bool) -> None:
        super().__init__()
        if has_skip:
            self.skip_unit = ResidualUnit(width)
        self.unit = ResidualUnit(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            # A stride-2 level of an odd grid is one row or column too large after doubling.
            x = x[..., : skip.shape[-2], : skip.shape[-1]] + self.skip_unit(skip)
        # The published order is interpolation, then `out`. A pointwise layer commutes with the interpolation, whose
        # weights sum to 1, and costs a quarter on the small map.
        return F.interpolate(self.out(self.unit(x)), scale_factor=2, mode="bilinear", align_corners=True)


class DptHead(nn.Module):
    """Dense prediction from four levels (Ranftl et al. 2021, arXiv 2103.13413)."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        width, last = config.dpt_width, config.dpt_last_width
        token_widths = (config.encoder_width, *[config.decoder_width] * 3)
        self.levels = nn.ModuleList(
            Level(tokens_width, level_width, width, scale)
            for tokens_width, level_width, scale in zip(
                token_widths, config.dpt_level_widths, (4, 2, 1, 0.5), strict=True
            )
        )
        self.fusion = nn.ModuleList(Fusion(width, has_skip=index < 3) for index in range(4))
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(width // 2, last, 3, padding=1)
        self.conv3 = nn.Conv2d(last, channels, 1)

    def forward(self, levels: tuple[Tensor, ...], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Levels (B, N, C) on a token grid -> (B, channels, H, W) of this size."""
        maps = [level(tokens, grid) for level, tokens in zip(self.levels, levels, strict=True)]
        x = self.fusion[3](maps[3])
        for index in (2, 1, 0):
            x = self.fusion[index](x, maps[index])
        x = F.interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True)
        return self.conv3(F.relu(self.conv2(x), inplace=True))


class LinearHead(nn.Module):
    """Each token's pixels directly from the last level: fast, with blocky edges."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.decoder_width, channels * config.patch_size**2)

    def forward(self, levels: tuple[Tensor, ...], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """As `DptHead.forward`; `size` is always the grid times the patch."""
        return F.pixel_shuffle(to_map(self.proj(levels[-1]), grid), self.patch_size)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Row-major tokens (B, N, C) -> (B, C, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(-1, grid)


def dense_head(config: NetworkConfig, channels: int) -> nn.Module:
    """The dense head that the configuration names."""
    return (DptHead if config.head_type == "dpt" else LinearHead)(config, channels)
