"""How long a run with a large network will take on a CPU, from one of its first frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from raymap3r_ros.network import Network, is_small
from raymap3r_ros.rates import significant
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.text import counted

SHORTEST = 10.0  # seconds; a shorter run gets no estimate
SMALLER_SIZE = 224  # pixels, as the suggestion
RARER_RAYS = 4  # frames


def time_estimate(
    network: Network, options: StreamOptions, image_size: tuple[int, int], frames: int, rays: bool, second: float
) -> str:
    """Lines that state how long `frames` frames will take, and how to be faster; "" if that is short or not known.

    It is known for a large network on a CPU, whose time is proportional to its operations. `image_size`: (width,
    height) of the recording; `rays`: the ray branch runs; `second`: seconds of the second frame, which has no ray
    branch yet.
    """
    if network.first_pose_token.device.type != "cpu" or is_small(network):
        return ""
    counts = {options.image_size: operations(network, options, image_size)}
    each = second / counts[options.image_size][0]

    def seconds(options: StreamOptions) -> float:
        if options.image_size not in counts:
            counts[options.image_size] = operations(network, options, image_size)
        main, ray = counts[options.image_size]
        return frames * each * (main + rays * ray / options.ray_interval)

    now = seconds(options)
    if now < SHORTEST:
        return ""
    faster = []
    if (options.image_size or network.config.image_size) > SMALLER_SIZE:
        smaller = dataclasses.replace(options, image_size=SMALLER_SIZE)
        faster.append(f"--size {SMALLER_SIZE} ({duration_text(seconds(smaller))})")
    if rays and options.ray_interval < RARER_RAYS:
        rarer = dataclasses.replace(options, ray_interval=RARER_RAYS)
        faster.append(f"--ray-interval {RARER_RAYS} ({duration_text(seconds(rarer))})")
    return (
        f"about {duration_text(now)} for {counted(frames, 'frame')} on this CPU, {significant(now / frames)} s a "
        f"frame; faster with {', '.join([*faster, '--stride N', '--max-frames N'])}, or a GPU"
    )


def operations(network: Network, options: StreamOptions, image_size: tuple[int, int]) -> tuple[int, int]:
    """Numbers of floating-point operations of the main and of the ray branch; arguments as of `time_estimate`."""
    config = network.config
    height, width = frame_image(*image_size, options.image_size or config.image_size, config.patch_size).size
    grid = height // config.patch_size, width // config.patch_size
    with torch.device("meta"), torch.inference_mode():
        shapes = Network(config).eval()
        image, rays = torch.empty(1, 3, height, width), torch.empty(1, height, width, 6)
        state, memory = shapes.initial_state(1), shapes.initial_memory(1)

        def branch(encode: Callable[[], torch.Tensor]) -> None:
            tokens = encode()
            pose_token = shapes.read_memory(memory, tokens)
            decoded = shapes.decode(tokens, grid, pose_token, state)
            shapes.self_points(decoded, (height, width))

        main = _count(lambda: branch(lambda: shapes.encode_image(image)))
        ray = _count(lambda: branch(lambda: shapes.encode_rays(rays)))
    return main, ray


def duration_text(seconds: float) -> str:
    """A duration with two significant units: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _count(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
