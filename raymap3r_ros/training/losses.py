"""Forward pass and losses of the training (a small version of arXiv 2501.12387, section 3.3)."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymap3r_ros.geometry.cameras import pose_encoding, ray_map, rotation_angle
from raymap3r_ros.network import Decoded, Network
from raymap3r_ros.training.batches import Batch
from raymap3r_ros.training.train_options import TrainOptions

_CONFIDENCE_WEIGHT = 0.2  # alpha of the confidence-weighted regression: weight of the log confidence
_NEARER = 0.85  # ratio of main to ray depth below which `mask_iou` counts a pixel as moving
_KNOWN_FRAMES = 0.8  # share of the frames with a known pose, in sequences that have them
_ROTATION_WEIGHT = 2.0  # weight of a quaternion's error relative to metres


class Probes(nn.Module):
    """Linear maps for auxiliary losses on tokens; used only in training."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        config = network.config
        self.match = nn.Linear(config.encoder_width, 64)
        # In the rendered world: position of each image token; current and first camera, both of which the pose token
        # needs for the relative pose; first camera, which the state must retain.
        self.place = nn.Linear(config.encoder_width, 3)
        self.cameras = nn.Linear(config.decoder_width, 18)
        self.first_camera = nn.Linear(config.decoder_width, 9)


@dataclass(frozen=True)
class Predictions:
    """Output of the network for a batch; K frames also went through the ray branch, in the order of `ray_frames`."""

    tokens: Tensor  # (B, T, N, C_e)
    main: Decoded  # of B * T images
    states: Tensor  # (B, T - 1, C_d) mean state token after each image but the last
    pose: Tensor  # (B, T, 7)
    points: Tensor  # (B, T, H, W, 3)
    confidence: Tensor  # (B, T, H, W)
    ray_frames: list[int]  # frames of the ray branch
    ray: Decoded | None  # of B * K ray maps
    ray_points: Tensor | None  # (B, K, H, W, 3)
    ray_confidence: Tensor | None  # (B, K, H, W)


def predict(
    network: Network, batch: Batch, ray_frames: list[int], precision: str = "float32", known: Tensor | None = None
) -> Predictions:
    """Run each sequence frame by frame; `ray_frames` (without 0) go through the ray branch with the state before them.

    `known` (B, T) bool, false in the first frames: the network also gets the pose of these frames, as camera rays
    whose tokens are added to those of the image. The poses of all rays are known, so the ray branch runs once for all
    frames, after the main branch.
    The state is updated with every frame as in CUT3R; the gates of the update rules are not part of the training.
    """
    count, length = batch.image.shape[:2]
    size = batch.image.shape[-2:]
    patch = network.config.patch_size
    grid = size[0] // patch, size[1] // patch
    with _autocast(batch.image.device, precision):
        tokens = network.encode_image(batch.image.flatten(0, 1)).unflatten(0, (count, length))
        if known is not None:
            tokens = tokens.index_put(
                (known,), _known_rays(network, batch, known, size).to(tokens.dtype), accumulate=True
            )
        if ray_frames:
            poses = batch.pose[:, ray_frames].flatten(0, 1)
            matrices = batch.intrinsics.repeat_interleave(len(ray_frames), dim=0)
            ray_maps = ray_map(poses, matrices, size)
        state, memory = network.initial_state(count), network.initial_memory(count)
        main, before = [], []
        for t in range(length):
            before.append((state, memory))
            seen = tokens[:, t]
            token = network.read_memory(memory, seen) if t else network.first_pose_token.expand(count, -1, -1)
            last = t == length - 1
            decoded = network.decode(seen, grid, token, state, want_state=not last)
            main.append(decoded)
            if not last:
                state, memory = decoded.state, network.write_memory(memory, seen, decoded.pose_token)
        joined = _join(main)
        points, confidence = network.self_points(joined, size)
        ray_joined = ray_points = ray_confidence = None
        if ray_frames:
            ray = _ray_pass(network, ray_maps, grid, [before[t] for t in ray_frames])
            ray_joined = dataclasses.replace(
                ray, levels=tuple(level.float() for level in ray.levels), pose_token=ray.pose_token.float()
            )
            ray_points, ray_confidence = network.self_points(ray_joined, size)
            ray_points = ray_points.unflatten(0, (count, len(ray_frames)))
            ray_confidence = ray_confidence.unflatten(0, (count, len(ray_frames)))
    return Predictions(
        tokens=tokens,
        main=joined,
        states=torch.stack([state.float().mean(1) for state, _ in before[1:]], dim=1),
        pose=network.pose(joined).unflatten(0, (count, length)),
        points=points.unflatten(0, (count, length)),
        confidence=confidence.unflatten(0, (count, length)),
        ray_frames=ray_frames,
        ray=ray_joined,
        ray_points=ray_points,
        ray_confidence=ray_confidence,
    )


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def _known_rays(network: Network, batch: Batch, known: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (K, N, C_e) of the rays of the K frames with a known pose."""
    sequence, _ = known.nonzero(as_tuple=True)
    return network.encode_rays(ray_map(batch.pose[known], batch.intrinsics[sequence], size))


def choose_known(count: int, length: int, share: float, generator: torch.Generator) -> Tensor | None:
    """Which frames (B, T) of a batch come with their pose: none, or most frames of this share of the sequences.

    A robot with a source of poses has one for nearly every frame; the first frame defines the world and needs none.
    """
    if not share:
        return None
    sequences = torch.rand(count, 1, generator=generator) < share
    known = sequences & (torch.rand(count, length, generator=generator) < _KNOWN_FRAMES)
    known[:, 0] = False
    return known if known.any() else None


def _ray_pass(
    network: Network, ray_maps: Tensor, grid: tuple[int, int], before: list[tuple[Tensor, Tensor]]
) -> Decoded:
    """Decode the ray maps (B * K, H, W, 6) of K frames, with the states and memories (B, ...) before each of them."""
    tokens = network.encode_rays(ray_maps)
    state, memory = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*before, strict=True))
    return network.decode(tokens, grid, network.read_memory(memory, tokens), state, want_state=False)


def _join(steps: list[Decoded]) -> Decoded:
    """T passes over B streams as one of B * T, in float32, so that the heads run once."""

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, dim=1).flatten(0, 1).float()

    levels = tuple(stacked([step.levels[i] for step in steps]) for i in range(4))
    return Decoded(levels, stacked([step.pose_token for step in steps]), None, [], steps[0].grid)


def losses(
    network: Network, probes: Probes, batch: Batch, options: TrainOptions, generator: torch.Generator, done: float
) -> dict[str, Tensor]:
    """The weighted parts of the loss. `done` is the completed share of the run; `generator` selects the frames."""
    count, length = batch.image.shape[:2]
    later = torch.randperm(length - 1, generator=generator) + 1
    ray_count = max(1, round(options.ray_share * (length - 1)))
    ray_frames = sorted(later[:ray_count].tolist()) if options.ray_share else []
    known = choose_known(count, length, options.known_share, generator)
    predicted = predict(network, batch, ray_frames, options.precision, known)
    parts = {
        "points": point_loss(predicted.points, predicted.confidence, batch.points),
        "pose": options.pose_weight * pose_loss(predicted.pose, batch.pose),
    }
    if ray_frames:
        parts["ray"] = point_loss(predicted.ray_points, predicted.ray_confidence, batch.static_points[:, ray_frames])
    total = count * length
    some = torch.randperm(total, generator=generator)[: round(options.world_share * total)]
    if len(some):
        parts["world"] = _world_loss(network, predicted, batch, some, options.precision)
    if ray_frames and options.rgb_share:
        total = count * len(ray_frames)
        some = torch.randperm(total, generator=generator)[: max(1, round(options.rgb_share * total))]
        parts["rgb"] = _rgb_loss(network, predicted, batch, some, options.precision)
    if options.place_weight:
        parts["place"] = options.place_weight * _place_loss(probes, predicted, batch)
    fading = options.match_weight * max(0.0, 1 - 2 * done)
    if fading:
        parts["match"] = fading * match_loss(probes.match(predicted.tokens.float()), batch, network.config.patch_size)
    return parts


def point_loss(points: Tensor, confidence: Tensor, target: Tensor, distance: Tensor | None = None) -> Tensor:
    """Confidence-weighted error of points (..., 3), relative to their distance from the camera; 0 if it is unknown."""
    if distance is None:
        distance = _distance(target)
    error = _norm(points - target) / distance.clamp_min(0.1)
    return masked_mean(confidence * error - _CONFIDENCE_WEIGHT * confidence.log(), distance > 0)


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean norm of (..., 3). `Tensor.norm` takes several times as long over a dimension of three."""
    x, y, z = vectors.unbind(-1)
    return (x * x + y * y + z * z).clamp_min(1e-20).sqrt()  # the gradient of a root is not finite at 0


def _distance(points: Tensor) -> Tensor:
    """Distance of points (..., 3) from the camera; 0 if their depth is unknown."""
    return _norm(points) * (points[..., 2] > 0)


def masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the values at which `known` is true; 0 if there are none."""
    return (values * known).sum() / known.sum().clamp_min(1)


def pose_loss(encoding: Tensor, pose: Tensor) -> Tensor:
    """Error of translation and quaternion (..., 7) against c2w (..., 4, 4)."""
    target = pose_encoding(pose)
    # Both signs of a quaternion are the same rotation.
    rotation = torch.minimum(
        (encoding[..., 3:] - target[..., 3:]).norm(dim=-1), (encoding[..., 3:] + target[..., 3:]).norm(dim=-1)
    )
    return ((encoding[..., :3] - target[..., :3]).norm(dim=-1) + _ROTATION_WEIGHT * rotation).mean()


def _world_loss(network: Network, predictions: Predictions, batch: Batch, some: Tensor, precision: str) -> Tensor:
    """Points in the first camera's frame, for some of the B * T frames."""
    chosen = _choose(predictions.main, some)
    with _autocast(batch.image.device, precision):
        points, confidence = network.world_points(chosen, batch.image.shape[-2:])
    own, pose = batch.points.flatten(0, 1)[some], batch.pose.flatten(0, 1)[some]
    target = own @ pose[:, None, :3, :3].mT + pose[:, None, None, :3, 3]
    return point_loss(points, confidence, target, _distance(own))


def _rgb_loss(network: Network, predictions: Predictions, batch: Batch, some: Tensor, precision: str) -> Tensor:
    """Colours of the static world, for some of the B * K frames of the ray branch."""
    chosen = _choose(predictions.ray, some)
    with _autocast(batch.image.device, precision):
        colours = network.rgb(chosen, batch.image.shape[-2:])
    target = batch.image[:, predictions.ray_frames].flatten(0, 1)[some].movedim(1, -1)
    moving = batch.moving[:, predictions.ray_frames].flatten(0, 1)[some]
    return ((colours - target).abs().mean(-1) * ~moving).mean()


def _choose(decoded: Decoded, some: Tensor) -> Decoded:
    return dataclasses.replace(
        decoded, levels=tuple(level[some] for level in decoded.levels), pose_token=decoded.pose_token[some]
    )


def _token_points(batch: Batch, patch: int) -> Tensor:
    """The point (B, T, N, 3) at the centre of each token, in the first camera's frame."""
    return _centres(batch.points, patch) @ batch.pose[..., :3, :3].mT + batch.pose[..., None, :3, 3]


def _centres(points: Tensor, patch: int) -> Tensor:
    """The point (B, T, N, 3) at the centre of each token, in the camera frame."""
    return points[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2, 3)


def _place_loss(probes: Probes, predictions: Predictions, batch: Batch) -> Tensor:
    """Errors of the positions of tokens and cameras in the rendered world, which can be learned for a fixed world."""
    patch = batch.image.shape[-1] // predictions.main.grid[1]
    points = _token_points(batch, patch)
    first = batch.world_pose[:, :1]
    target = points @ first[..., :3, :3].mT + first[..., None, :3, 3]
    known = _centres(batch.points, patch)[..., 2] > 0
    tokens = masked_mean(_norm(probes.place(predictions.tokens.float()) - target), known)
    cameras = batch.world_pose[..., :3, [0, 2, 3]].flatten(-2)  # two axes and the position
    both = torch.cat((cameras, cameras[:, :1].expand_as(cameras)), dim=-1)
    camera_error = (probes.cameras(predictions.main.pose_token[:, 0]).view_as(both) - both).abs().mean()
    state_error = (probes.first_camera(predictions.states) - cameras[:, :1]).abs().mean()
    return tokens + 4 * camera_error + 2 * state_error


def match_loss(features: Tensor, batch: Batch, patch: int, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of the match of each token in the next frame, from features (B, T, N, C) of both frames."""
    points = _token_points(batch, patch)
    features = F.normalize(features, dim=-1)
    similarity = features[:, :-1] @ features[:, 1:].mT / temperature
    depth = _centres(batch.points, patch)[..., 2]
    gap = torch.cdist(points[:, :-1], points[:, 1:]).masked_fill(depth[:, 1:, None] <= 0, torch.inf)
    gap, nearest = gap.min(dim=-1)
    seen = gap < 0.05 * depth[:, :-1]  # within about half a token
    loss = F.cross_entropy(similarity.flatten(0, 2), nearest.flatten(), reduction="none")
    return (loss * seen.flatten()).sum() / seen.sum().clamp_min(1)


@torch.no_grad()
def measure(network: Network, batch: Batch, precision: str = "float32") -> dict[str, float]:
    """Errors of the network on a batch: relative depth errors of both branches, and errors of the pose.

    `position` is the mean position error of the frames after the first, relative to the error of a camera at rest;
    `rotation` is the same for angles. A value of 1 is trivial. `known_depth` and `known_position` are the errors of a
    network that is given the poses of these frames.
    """
    count, length = batch.image.shape[:2]
    predictions = predict(network, batch, list(range(1, length)), precision)
    known = torch.ones(count, length, dtype=torch.bool, device=batch.image.device)
    known[:, 0] = False
    informed = predict(network, batch, [], precision, known)
    true, static = batch.points[..., 2], batch.static_points[:, 1:, ..., 2]
    target = pose_encoding(batch.pose)[:, 1:]
    still = torch.zeros_like(target[..., 3:])
    still[..., 0] = 1
    pose = predictions.pose[:, 1:]
    turned = rotation_angle(pose[..., 3:], target[..., 3:]).mean() / rotation_angle(still, target[..., 3:]).mean()

    def gone(pose: Tensor) -> float:
        return float((pose[..., :3] - target[..., :3]).norm(dim=-1).mean() / target[..., :3].norm(dim=-1).mean())

    return {
        "depth": _relative_error(predictions.points[..., 2], true),
        "ray_depth": _relative_error(predictions.ray_points[..., 2], static),
        "position": gone(pose),
        "rotation": float(turned),
        "known_depth": _relative_error(informed.points[..., 2], true),
        "known_position": gone(informed.pose[:, 1:]),
    }


@torch.no_grad()
def mask_iou(network: Network, batch: Batch, precision: str = "float32") -> float:
    """Overlap of the true motion with the pixels at which the main branch predicts less depth than the ray branch.

    In the frames after the first, over all sequences; NaN if nothing moves and no motion is predicted.
    """
    predictions = predict(network, batch, list(range(1, batch.image.shape[1])), precision)
    nearer = predictions.points[:, 1:, ..., 2] < _NEARER * predictions.ray_points[..., 2]
    moving = batch.moving[:, 1:]
    return float((nearer & moving).sum() / (nearer | moving).sum())


def _relative_error(depth: Tensor, true: Tensor) -> float:
    return float(masked_mean((depth - true).abs() / true.clamp_min(0.01), true > 0))
