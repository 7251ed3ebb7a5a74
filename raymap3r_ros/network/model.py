"""The CUT3R network (arXiv 2501.12387): tensors in, tensors out, without internal state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from raymap3r_ros.network.attention import grid_rotary_table
from raymap3r_ros.network.blocks import ModulatedBlock
from raymap3r_ros.network.config import NetworkConfig
from raymap3r_ros.network.decoder import Decoded, DualDecoder
from raymap3r_ros.network.encoder import Encoder
from raymap3r_ros.network.heads import PoseHead, decode_points, decode_pose, decode_rgb, dense_head
from raymap3r_ros.network.memory import PoseMemory


class Network(nn.Module):
    """Encoders, dual decoder, pose memory and heads. The caller keeps the state and the pose memory.

    B is a batch of independent streams, H x W the image, N = (H / P)(W / P) its tokens, S the state tokens.
    """

    trained: bool = False  # whether the weights are trained; set by the loader
    source: str = "untrained weights"  # readable origin of the weights; set by the loader
    precision: str = "float32"  # weights of encoders, decoder and pose memory; see `lower_precision`

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.manifest: dict[str, str] = {}  # metadata of the weights file; set by the loader
        self.image_encoder = Encoder(config, 3, config.encoder_depth, config.encoder_heads)
        self.ray_encoder = Encoder(config, 6, config.ray_encoder_depth, config.ray_encoder_heads)
        self.first_pose_token = nn.Parameter(torch.empty(1, 1, config.decoder_width))
        self.decoder = DualDecoder(config)
        self.pose_memory = PoseMemory(config)
        self.pose_head = PoseHead(config)
        self.self_head = dense_head(config, 4)
        self.world_head = dense_head(config, 4)
        self.rgb_head = dense_head(config, 3)
        self.modulation = nn.ModuleList(
            ModulatedBlock(config, config.decoder_width, config.decoder_heads) for _ in range(config.modulation_depth)
        )

    def lower_precision(self, precision: str) -> None:
        """Convert the matrices of encoders, decoder and pose memory to `bfloat16` or `float16`.

        Run the network under autocast of that type, which then does not convert them for every frame. Norms, tokens
        and heads stay float32.
        """
        for part in (self.image_encoder, self.ray_encoder, self.decoder, self.pose_memory):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(getattr(torch, precision))
        self.precision = precision

    def compile_hot_parts(self) -> None:
        """Compile the parts that run for every frame, at the first call with each size."""
        for part in (self.image_encoder, self.ray_encoder, self.decoder, self.self_head):
            part.compile(dynamic=False)

    def initial_state(self, batch: int) -> Tensor:
        """(B, S, C_d): the initial state tokens."""
        return self.decoder.initial_state(batch)

    def initial_memory(self, batch: int) -> Tensor:
        """(B, M, 2 C_d): the initial pose memory."""
        return self.pose_memory.initial.expand(batch, -1, -1)

    def encode_image(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in -1..1 -> tokens (B, N, C_e)."""
        return self.image_encoder(image)

    def encode_rays(self, rays: Tensor) -> Tensor:
        """Ray map (B, H, W, 6) -> tokens (B, N, C_e)."""
        return self.ray_encoder(rays.movedim(-1, 1))

    def read_memory(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """The pose token (B, 1, C_d) for a view with these tokens."""
        return self.pose_memory.read(memory, tokens)

    def write_memory(self, memory: Tensor, tokens: Tensor, pose_token: Tensor) -> Tensor:
        """The pose memory after a view with these tokens and this refined pose token."""
        return self.pose_memory.write(memory, tokens, pose_token)

    def decode(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        pose_token: Tensor,
        state: Tensor,
        *,
        want_state: bool = True,
        want_attention: bool = False,
    ) -> Decoded:
        """Decode image tokens with the state (see `DualDecoder`)."""
        return self.decoder(tokens, grid, pose_token, state, want_state=want_state, want_attention=want_attention)

    def pose(self, decoded: Decoded) -> Tensor:
        """Camera to world (B, 7): translation, quaternion (w, x, y, z)."""
        return decode_pose(self.pose_head(decoded.pose_token))

    def self_points(self, decoded: Decoded, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Points in the camera's own frame (B, H, W, 3) in metres, and confidence (B, H, W)."""
        return decode_points(self.self_head(decoded.levels, decoded.grid, size))

    def world_points(self, decoded: Decoded, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Points in the frame of the stream's first camera (B, H, W, 3), and confidence (B, H, W)."""
        levels = (*decoded.levels[:3], self.modulate(decoded))
        return decode_points(self.world_head(levels, decoded.grid, size))

    def modulate(self, decoded: Decoded) -> Tensor:
        """The last level (B, N, C_d), modulated by the pose token for the world frame."""
        head_dim = self.config.decoder_width // self.config.decoder_heads
        x = decoded.levels[3]
        table = grid_rotary_table(*decoded.grid, False, head_dim, self.config.rope_base, x.device)
        for block in self.modulation:
            x = block(x, decoded.pose_token, table)
        return x

    def rgb(self, decoded: Decoded, size: tuple[int, int]) -> Tensor:
        """Colours (B, H, W, 3) in -1..1."""
        return decode_rgb(self.rgb_head(decoded.levels, decoded.grid, size))


@torch.no_grad()
def initialise(network: Network, seed: int) -> None:
    """Initialise every tensor from the seed.

    Depth starts near one metre and the pose near the identity, so that outputs of an untrained network are finite.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
            else:
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in (
        network.first_pose_token,
        network.decoder.state_tokens,
        network.pose_memory.initial,
        network.pose_memory.mask_token,
    ):
        nn.init.normal_(token, std=0.2, generator=generator)
    for head in (network.self_head, network.world_head):
        if network.config.head_type == "dpt":
            head.conv3.bias[2] = math.log(2.0)
        else:
            head.proj.bias.unflatten(0, (4, -1))[2] = math.log(2.0)
    network.pose_head.mlp.fc2.weight.mul_(0.1)
    network.pose_head.mlp.fc2.bias[3] = 1.0
