"""Run the network as the public implementations do. These are the baselines of `engine.py`.

| rule | decoder attention | rest of the attention | ray branch |
|---|---|---|---|
| `raymap3r` | explicit, the logits of all layers kept | fused | from the sixth frame |
| `ttt3r` | explicit, the logits of all layers kept | fused | none |
| `cut3r` | fused | fused | none |

"Fused" is `scaled_dot_product_attention`. The rest of the attention is in the encoders, the pose memory and the world
head.

All three run in float32, uncompiled, one stream and one frame at a time. Each branch runs all three dense heads. The
convolutions use the contiguous (NCHW) layout, and the 1x1 convolution of each fusion stage follows the interpolation.
The ray branch computes its new state completely and discards it. The ray map is computed in numpy on the host. Results
are copied from unpinned memory.

The baselines run no router, smoothing or resets, do not round to float16 in the image encoder, and copy to the host
only results that the engine copies too. If the public implementation may do the same work in a slower or a faster way,
the baseline uses the faster way, so that the measured ratio is not too high.

The baselines use the weights of the given network, so the results are the same. The formulas are written out here, so
that an optimisation of the package does not speed up the baseline.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymap3r_ros.network import Decoded, Network
from raymap3r_ros.network.attention import Attention
from raymap3r_ros.network.heads import Fusion
from raymap3r_ros.streaming import METHOD, Method
from raymap3r_ros.streaming.preprocessing import apply_framing, frame_image
from raymap3r_ros.streaming.timing import StageTimer

NAIVE_RULES = ("raymap3r", "ttt3r", "cut3r")
LOGIT_RULES = ("raymap3r", "ttt3r")  # need the decoder's logits, which a fused kernel does not return


@dataclass(frozen=True)
class NaiveResult:
    """The results of one frame, in host memory."""

    pose: np.ndarray  # (4, 4) c2w
    points: np.ndarray  # (H, W, 3) metres, in the camera frame
    confidence: np.ndarray  # (H, W)
    staticness: np.ndarray | None  # (H, W) 0..1; None without the ray branch
    timer: StageTimer

    @property
    def depth(self) -> np.ndarray:
        """(H, W) metres along z."""
        return self.points[..., 2]

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds per stage."""
        return self.timer.milliseconds()


@dataclass(frozen=True)
class _BranchOutputs:
    """Outputs of one branch: the decoder and all heads. B = 1."""

    decoded: Decoded
    logits: dict[Attention, Tensor]  # (1, heads, queries, keys) of each decoder attention; empty for rule cut3r
    encoding: Tensor  # (1, 7) pose
    points: Tensor  # (1, H, W, 3)
    confidence: Tensor  # (1, H, W)
    world_points: Tensor  # (1, H, W, 3)
    world_confidence: Tensor  # (1, H, W)
    rgb: Tensor  # (1, H, W, 3)


class NaiveStream:
    """One stream without router, smoothing and resets. Tokens are pooled in raster order.

    `rule` selects the public implementation (see the module's docstring). All images must have the same size.
    """

    def __init__(self, network: Network, rule: str = "raymap3r", image_size: int = 0, method: Method = METHOD) -> None:
        if rule not in NAIVE_RULES:
            raise ValueError(f"rule is {rule!r}; the naive mode has {', '.join(NAIVE_RULES)}")
        if network.precision != "float32":
            raise ValueError(f"the network's weights are {network.precision}; the naive mode needs float32")
        self.rule = rule
        self.method = method
        self.image_size = image_size or network.config.image_size
        self.device = next(network.parameters()).device
        # Separate modules with the same weights, so that the changes below do not affect `network`.
        with torch.device("meta"):
            self.network = Network(network.config)
        self.network.load_state_dict(network.state_dict(), assign=True)
        self.network.eval().requires_grad_(False)
        self._logits: dict[Attention, Tensor] = {}
        explicit = set(self.network.decoder.modules()) if rule in LOGIT_RULES else set()
        for module in self.network.modules():
            if isinstance(module, Attention):
                attend = self._attend_explicitly if module in explicit else _attend_fused
                module.attend = functools.partial(attend, module)
            elif isinstance(module, Fusion):
                module.forward = functools.partial(_fuse, module)
            elif isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.data = module.weight.data.contiguous()
        with torch.inference_mode():
            self._state = self.network.initial_state(1)
            self._memory = self.network.initial_memory(1)
        self._token_staticness: Tensor | None = None
        self._frame = 0

    @torch.inference_mode()
    def step(self, image: np.ndarray) -> NaiveResult:
        """Process one RGB uint8 image (h, w, 3)."""
        with _public_matmul(self.device):
            return self._step(image)

    def _step(self, image: np.ndarray) -> NaiveResult:
        timer = StageTimer(self.device)
        network, method = self.network, self.method
        height, width = image.shape[:2]
        framing = frame_image(width, height, self.image_size, network.config.patch_size)
        pixels = torch.from_numpy(np.ascontiguousarray(apply_framing(image, framing)))
        planes = (pixels.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        planes = planes.to(self.device)
        timer.mark("preprocess")

        tokens = network.encode_image(planes)
        timer.mark("encode")
        pose_token = network.first_pose_token if self._frame == 0 else network.read_memory(self._memory, tokens)
        main = self._run_branch(tokens, pose_token, framing.size)
        timer.mark("decode")

        pixel_staticness = token_staticness = None
        if self.rule == "raymap3r" and self._frame >= method.warmup_frames:
            rays = self._host_rays(main)
            ray_tokens = network.encode_rays(rays)
            ray = self._run_branch(ray_tokens, network.read_memory(self._memory, ray_tokens), framing.size)
            timer.mark("ray_branch")
            pixel_staticness, token_staticness = self._staticness(main, ray)
            timer.mark("motion")

        gate = self._gate(main, token_staticness)
        self._memory = network.write_memory(self._memory, tokens, main.decoded.pose_token)
        self._state = gate * main.decoded.state + (1 - gate) * self._state
        self._frame += 1
        timer.mark("update")

        result = NaiveResult(
            pose=pose_of(main.encoding[0].cpu().numpy()),
            points=main.points[0].cpu().numpy(),
            confidence=main.confidence[0].cpu().numpy(),
            staticness=None if pixel_staticness is None else pixel_staticness[0].cpu().numpy(),
            timer=timer,
        )
        timer.mark("copy")
        self._logits = {}
        return result

    def _attend_explicitly(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`Attention.attend` with an explicit matrix, which keeps the logits."""
        # Scaling the queries is cheaper than a pass over the matrix.
        logits = self._logits[attention] = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return attention.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    def _run_branch(self, tokens: Tensor, pose_token: Tensor, size: tuple[int, int]) -> _BranchOutputs:
        """Decode tokens (1, N, C_e) with the state, and run all heads."""
        network = self.network
        patch = network.config.patch_size
        self._logits = {}
        decoded = network.decode(tokens, (size[0] // patch, size[1] // patch), pose_token, self._state)
        return _BranchOutputs(
            decoded,
            self._logits,
            network.pose(decoded),
            *network.self_points(decoded, size),
            *network.world_points(decoded, size),
            network.rgb(decoded, size),
        )

    def _host_rays(self, main: _BranchOutputs) -> Tensor:
        """The ray map (1, H, W, 6) of this frame's camera, computed on the host."""
        size = main.points.shape[1:3]
        pose = pose_of(main.encoding[0].cpu().numpy())
        # Untrained weights may predict a mirrored scene, which has no focal length. Use the image's diagonal instead.
        focal = focal_of(main.points[0], self.method.focal_iterations) or float(np.hypot(*size))
        return torch.from_numpy(rays_of(pose, focal, size))[None].to(self.device)

    def _staticness(self, main: _BranchOutputs, ray: _BranchOutputs) -> tuple[Tensor, Tensor]:
        """Staticness of pixels (1, H, W) and of state tokens (1, S, 1)."""
        method = self.method
        depth, ray_depth = main.points[..., 2], ray.points[..., 2]
        delta = (depth - ray_depth).abs() / depth.abs().clamp_min(1e-6)
        delta = torch.where(torch.isfinite(delta) & (ray.confidence >= method.min_ray_confidence), delta, 0.0)
        weight = torch.minimum(main.confidence, ray.confidence).log()
        weight = (weight - weight.min()) / (weight.max() - weight.min() + 1e-6)
        pixel = _relative(delta.flatten(), method.pixel_sharpness).view_as(delta) * (0.5 + 0.5 * weight)
        pixel = F.avg_pool2d(pixel[:, None], 3, stride=1, padding=1)[:, 0]

        tokens = main.decoded.grid[0] * main.decoded.grid[1]
        pooled, total = (F.adaptive_avg_pool1d(x.flatten(1), tokens)[0] for x in (weight * delta, weight))
        # Layer by layer: at full size, copying all layers into one tensor first is slower.
        attention = torch.zeros((), device=self.device)
        for logits in self._state_logits(main):
            share = logits[0].softmax(dim=-1)[..., 1:]
            attention = attention + (share / share.sum(dim=-1, keepdim=True)).mean(dim=0)  # (S, N)
        projection = attention @ (pooled / total.clamp_min(1e-6)) / attention.sum(dim=1)
        return pixel, _relative(projection, method.token_sharpness)[None, :, None]

    def _gate(self, main: _BranchOutputs, token_staticness: Tensor | None) -> Tensor | float:
        """The gate of each state token (1, S, 1), or 1 for all."""
        method = self.method
        if token_staticness is not None and self._frame >= method.gate_from_frame:
            keep, before = method.staticness_memory, self._token_staticness
            self._token_staticness = (
                token_staticness if before is None else keep * before + (1 - keep) * token_staticness
            )
        if self._frame == 0 or self.rule == "cut3r":
            return 1.0
        layers = [logits.mean(dim=(0, 1, 3)) for logits in self._state_logits(main)]
        gate = torch.stack(layers).mean(dim=0).sigmoid()[None, :, None]
        if self._token_staticness is not None:
            damping = 1 - method.cover_damping * (1 - self._token_staticness).mean()
            strength = (method.gate_strength * damping).clamp(0, 1)
            motion = (1 - strength + strength * self._token_staticness).clamp_min(method.gate_floor)
            gate = gate * motion * damping.clamp(method.eta_floor, 1)
        return gate

    def _state_logits(self, branch: _BranchOutputs) -> list[Tensor]:
        """Cross-attention logits of the state side: (1, heads, S, 1 + N) for each layer."""
        return [branch.logits[block.cross_attn] for block in self.network.decoder.state_blocks]


def _attend_fused(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`Attention.attend` with PyTorch's fused kernel."""
    return attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _fuse(fusion: Fusion, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """`Fusion.forward` with the last convolution after the interpolation."""
    if skip is not None:
        x = x[..., : skip.shape[-2], : skip.shape[-1]] + fusion.skip_unit(skip)
    return fusion.out(F.interpolate(fusion.unit(x), scale_factor=2, mode="bilinear", align_corners=True))


@contextlib.contextmanager
def _public_matmul(device: torch.device) -> Iterator[None]:
    """Enable TF32 for matrix products on a GPU, as the public code does."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _relative(values: Tensor, sharpness: float) -> Tensor:
    """(K,) -> sigmoid of the distance of each value below the median, in interquartile ranges."""
    low, middle, high = torch.quantile(values, values.new_tensor((0.25, 0.5, 0.75)))
    return torch.sigmoid(sharpness / (high - low).clamp_min(1e-6) * (middle - values))


def pose_of(encoding: np.ndarray) -> np.ndarray:
    """Translation and quaternion (w, x, y, z) (7,) -> c2w (4, 4)."""
    w, x, y, z = encoding[3:] / np.linalg.norm(encoding[3:])
    pose = np.eye(4, dtype=encoding.dtype)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = encoding[:3]
    return pose


def focal_of(points: Tensor, iterations: int) -> float:
    """Focal length in pixels of a point map (H, W, 3), by Weiszfeld iterations from the least-squares value.

    0 if the best value is negative. Computed on the device of the points.
    """
    height, width = points.shape[:2]
    column = torch.arange(width, device=points.device, dtype=points.dtype) - width // 2
    row = torch.arange(height, device=points.device, dtype=points.dtype) - height // 2
    offset = torch.stack(torch.meshgrid(column, row, indexing="xy"), dim=-1)
    slope = torch.nan_to_num(points[..., :2] / points[..., 2:], nan=0.0, posinf=0.0, neginf=0.0)
    along, square = (slope * offset).sum(dim=-1), (slope * slope).sum(dim=-1)
    focal = along.sum() / square.sum()
    for _ in range(iterations):
        weight = 1 / (offset - focal * slope).norm(dim=-1).clamp_min(1e-8)
        focal = (weight * along).sum() / (weight * square).sum()
    return max(0.0, float(focal))


def rays_of(pose: np.ndarray, focal: float, size: tuple[int, int]) -> np.ndarray:
    """The ray map (H, W, 6) float32 of a camera at `pose` (4, 4) c2w, principal point (W // 2, H // 2)."""
    height, width = size
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    matrix = np.array([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1]])
    directions = np.stack((column, row, np.ones_like(row)), axis=-1) @ np.linalg.inv(matrix).T
    # The translation is added before normalising, as in the training of the weights.
    directions = directions @ pose[:3, :3].T + pose[:3, 3]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True) + 1e-8
    centre = np.broadcast_to(pose[:3, 3], directions.shape)
    return np.concatenate((centre, directions), axis=-1).astype(np.float32)
