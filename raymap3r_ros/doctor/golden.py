"""Golden numbers: a small network with weights from a seed, its images, and the results that every machine must give.

    python -m raymap3r_ros.doctor.golden

writes `golden.npz` again, after an intended change of the method. Weights and images are integers of NumPy's PCG64,
scaled: its raw stream is the same on every platform and in every version. The numbers of `golden.npz` are computed on
a CPU, in float32, operation by operation. test/doctor/test_golden_numbers.py compares them with the naive mode of
benchmarks/, and benchmarks/check_golden.py compares the code that computes them with the public code.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.network import Network, NetworkConfig
from raymap3r_ros.streaming import METHOD, RULES, MaskOptions, StepResult, Stream, StreamOptions

FILE = Path(__file__).with_name("golden.npz")

CONFIG = NetworkConfig(
    image_size=64,
    encoder_width=128,
    encoder_depth=2,
    encoder_heads=2,
    ray_encoder_depth=1,
    ray_encoder_heads=2,
    decoder_width=128,
    decoder_depth=4,
    decoder_heads=2,
    state_heads=4,
    state_tokens=30,
    memory_slots=8,
    memory_depth=1,
    memory_heads=4,
    modulation_depth=1,
    dpt_width=32,
    dpt_last_width=16,
    dpt_level_widths=(16, 24, 32, 48),
)
SIZE = (48, 64)  # rows and columns of the images, which need no resizing
# The ray branch, the gate, keyframes and the recording of frames start early, so that few frames run everything.
SOON = dataclasses.replace(METHOD, warmup_frames=2, gate_from_frame=3, router_last_frame=4, keyframe_interval=2)
FRAMES = 8
RESET = 6  # index of the frame with a reset: the last one is in a new segment
STEP = 8  # every STEP-th row and column of a map is compared


@dataclass(frozen=True)
class Run:
    """Options whose results are compared."""

    name: str
    options: StreamOptions


# In images with so few details no motion is sure, but the rules that use the mask need some.
SENSITIVE = MaskOptions(high=1.0, low=0.5, min_ratio=0.0, min_width=1)
RUNS = (
    *(
        Run(
            rule,
            StreamOptions(
                execution="plain",
                update_rule=rule,
                reset_interval=RESET,
                mask=SENSITIVE if RULES[rule].absolute_staticness else MaskOptions(),
            ),
        )
        for rule in RULES
    ),
    Run("published", StreamOptions.published(execution="plain", reset_interval=RESET)),
)


def _numbers(name: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1), float64, that depend on the name only."""
    seed = int.from_bytes(hashlib.sha256(f"raymap3r doctor {name}".encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) / 2**52 - 1


@functools.lru_cache(maxsize=1)
def golden_weights() -> dict[str, np.ndarray]:
    """Every tensor of the network, float32. Shared: do not write to it."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Network(CONFIG).state_dict().items()}
    return {key: _weight(key, shape) for key, shape in shapes.items()}


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    numbers = _numbers(key, int(np.prod(shape))).reshape(shape)
    if "token" in key or key == "pose_memory.initial":
        values = numbers
    elif key.endswith("bias"):
        values = 0.1 * numbers
        if key in ("self_head.conv3.bias", "world_head.conv3.bias"):
            values[2] = 1.0  # depth about 2 m
        elif key == "pose_head.mlp.fc2.bias":
            values[3] = 1.0  # rotation near the identity
    elif len(shape) == 1:
        values = 1 + 0.2 * numbers
    else:
        values = numbers * (3 / np.prod(shape[1:])) ** 0.5
        if key == "pose_head.mlp.fc2.weight":
            values *= np.array([0.2] * 3 + [0.03] * 4)[:, None]  # small motions
        elif key in ("self_head.conv3.weight", "world_head.conv3.weight"):
            values *= 0.25  # depth is positive
    return values.astype(np.float32)


def weights_hash(weights: dict[str, np.ndarray]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].astype("<f4").tobytes())
    return digest.hexdigest()


def golden_network(device: torch.device | str = "cpu") -> Network:
    """The network with the golden weights, ready to run."""
    network = Network(CONFIG)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in golden_weights().items()})
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def golden_images(camera: int = 0) -> np.ndarray:
    """(FRAMES, *SIZE, 3) uint8: a textured plane that moves slowly, and a bright square in front that moves faster."""
    columns = SIZE[1]
    cells = _numbers(f"texture {camera}", 6 * 16 * 3).reshape(6, 16, 3)
    texture = np.kron(128 + 90 * cells, np.ones((8, 8, 1))).astype(np.uint8)
    images = np.stack([texture[:, 2 * index : 2 * index + columns] for index in range(FRAMES)])
    for index, image in enumerate(images):
        image[12:28, 5 * index : 5 * index + 14] = (250, 200 - 60 * camera, 40)
    return images


def values_of(result: StepResult) -> dict[str, Tensor]:
    """What is compared of one frame's result, on the network's device."""
    part = np.s_[..., STEP // 2 :: STEP, STEP // 2 :: STEP]
    return {
        "position": result.pose[..., :3, 3],
        "rotation": result.pose[..., :3, :3],
        "scale": result.scale,
        "gate": result.gate,
        "depth": result.depth[part],
        "confidence": result.confidence[part],
        "staticness": result.staticness[part],
        "intrinsics": result.intrinsics,
    }


def run_frames(stream: Stream, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The values of all frames (frames, ...) of a stream, and the state tokens after the last one."""
    frames = [values_of(stream.step(image)) for image in images]
    values = {name: torch.stack([frame[name] for frame in frames]).float().cpu().numpy() for name in frames[0]}
    values["state"] = stream.snapshot().state.cpu().numpy()
    return values


@torch.inference_mode()
def golden_numbers(
    network: Network, stream: Callable[..., Stream] = Stream, runs: Sequence[Run] = RUNS
) -> dict[str, np.ndarray]:
    """The values of the runs, named RUN/VALUE. `stream` is called with the arguments of `Stream`."""
    images = golden_images()
    found = {}
    for run in runs:
        for name, values in run_frames(stream(network, run.options, SOON), images).items():
            found[f"{run.name}/{name}"] = values
    return found


def read_golden(path: Path = FILE) -> dict[str, np.ndarray]:
    """The arrays in the file; `weights` is the hash of the weights."""
    with np.load(path) as file:
        return dict(file)


def write_golden(path: Path = FILE) -> None:
    """Write the file with the numbers of this machine's CPU."""
    numbers = golden_numbers(golden_network())
    np.savez_compressed(path, weights=np.array(weights_hash(golden_weights())), **numbers)


if __name__ == "__main__":
    write_golden()
