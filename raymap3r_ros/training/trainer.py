"""The training loop: resumable at every step, on a CPU, a GPU, or several processes of either (`torchrun`)."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import raymap3r_ros
from raymap3r_ros.errors import CheckpointError, InputError, OptionError
from raymap3r_ros.io.output_folder import check_output_folder
from raymap3r_ros.network import Network
from raymap3r_ros.network.checkpoint import load_network, save_network, untrained_network
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.output_files import check_output_file, whole_file
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training.batches import Batch, image_size, make_batch
from raymap3r_ros.training.losses import Probes, losses, mask_iou, measure
from raymap3r_ros.training.recording import read_recording
from raymap3r_ros.training.train_options import RECIPES, RECORDING, TrainOptions

STATE_FILE = "training.pt"
LOG_FILE = "log.jsonl"
_LOG_EVERY = 50  # steps
_MEASURE_EVERY = 500  # steps
_SAVE_EVERY = 300.0  # seconds
_MEASURED_SEQUENCES = 16
_MEASURED_LENGTH = 8  # frames


@dataclasses.dataclass
class Run:
    """The state of a training run."""

    network: Network
    probes: Probes
    average: Network
    optimizer: torch.optim.Optimizer
    source: Callable[..., Batch] | None = None  # batches from seed, count, length, size and device
    rendered: tuple[tuple[int, ...], Batch] | None = None  # the batch in use, and the seed and length it depends on
    step: int = 0
    seconds: float = 0.0  # of training, over all sessions

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.probes.parameters()]


def train(
    options: TrainOptions,
    folder: str | os.PathLike,
    name: str,
    device: torch.device,
    *,
    start: str | os.PathLike | None = None,
    data: str | os.PathLike | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> Path | None:
    """Train until the last step, for `seconds`, or until SIGINT or SIGTERM; a run in `folder` is resumed.

    A new run starts from the weights file `start`, if given. `data`: folder of the recording, for the world
    "recording".

    Writes `training.pt` (the state of the run), `log.jsonl` and NAME.safetensors (averaged weights, half precision) to
    the folder. The result does not depend on interruptions. Returns the weights file, or None in all but the first of
    several processes. Raises InputError if the folder has a run with other options.
    """
    folder = Path(folder)
    rank, world = _join_processes(device)
    first = rank == 0
    run = _resume(_begin(options, start, device), folder / STATE_FILE, options, device)
    size = image_size(run.network.config.image_size, run.network.config.patch_size)
    run.source = batch_source(options.world, data, size)
    held_out, moving = (
        run.source(seed, _MEASURED_SEQUENCES, _MEASURED_LENGTH, size, device)
        for seed in (EVALUATION_SEEDS, EVALUATION_SEEDS + 1)
    )
    if first:
        check_output_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / STATE_FILE, folder / LOG_FILE, folder / f"{name}.safetensors"):
            check_output_file(path)
        millions = sum(parameter.numel() for parameter in run.network.parameters()) / 1e6
        report(f"{name}: {millions:.2f} M parameters, {world} x {options.frames} frames a step, from step {run.step}")

    stopped: list[int] = []
    before = {sign: signal.signal(sign, lambda number, _: stopped.append(number)) for sign in _SIGNALS}
    started, logged, saved, sums, steps = time.monotonic(), time.monotonic(), time.monotonic(), {}, 0
    earlier = run.seconds
    try:
        while run.step < options.steps:
            for key, value in _step(run, options, size, device, rank, world).items():
                sums[key] = sums.get(key, 0.0) + value
            steps += 1
            run.seconds = earlier + time.monotonic() - started
            last = run.step == options.steps
            if first and (run.step % _LOG_EVERY == 0 or last):
                now = time.monotonic()
                entry = {key: float(value) / steps for key, value in sums.items()}
                entry = {"step": run.step, "frames_per_s": world * options.frames * steps / (now - logged), **entry}
                if run.step % _MEASURE_EVERY == 0 or last:
                    entry.update(measure(run.average, held_out, options.precision))
                    entry["iou"] = mask_iou(run.average, moving, options.precision)
                logged, sums, steps = time.monotonic(), {}, 0
                _log(entry, folder / LOG_FILE, report)
            # All processes must leave at the same step.
            over = bool(stopped) or (seconds is not None and time.monotonic() - started > seconds)
            if _any(over, device, world):
                break
            if first and time.monotonic() - saved > _SAVE_EVERY:
                _save(run, folder, name, options, world, device)
                saved = time.monotonic()
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    return _save(run, folder, name, options, world, device) if first else None


def batch_source(world: str, data: str | os.PathLike | None, size: tuple[int, int]) -> Callable[..., Batch]:
    """The function that returns batches of H x W pixels of this world from seed, count, length, size and device."""
    if (world == RECORDING) != (data is not None):
        raise OptionError(
            f"world is {world!r}, folder of the recording: {data}; {RECORDING!r} needs one, other worlds have none"
        )
    if data is None:
        return functools.partial(make_batch, world)
    return read_recording(Path(data), size).make_batch


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _join_processes(device: torch.device) -> tuple[int, int]:
    """Rank of this process and number of processes, as set by torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return int(os.environ.get("RANK", "0")), world


def _any(value: bool, device: torch.device, world: int) -> bool:
    if world == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _begin(options: TrainOptions, start: str | os.PathLike | None, device: torch.device) -> Run:
    network = untrained_network(PRESETS[options.preset], options.seed).to(device)
    if start is not None:
        given = load_network(start, device)
        if given.config != network.config:
            raise InputError(f"{start} has another shape than the preset {options.preset}")
        network.load_state_dict(given.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        probes = Probes(network).to(device)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    matrices, others = [], []
    for parameter in [*network.parameters(), *probes.parameters()]:
        (matrices if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), foreach=True)
    return Run(network, probes, average, optimizer)


def _step(
    run: Run, options: TrainOptions, size: tuple[int, int], device: torch.device, rank: int, world: int
) -> dict[str, Tensor]:
    """One step of the optimiser; its random numbers depend only on the step and the rank."""
    length = options.sequence_length(run.step)
    batch = _batch(run, options, length, size, device, rank)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + run.step)
    parts = losses(run.network, run.probes, batch, options, generator, run.step / options.steps)
    sum(parts.values()).backward()
    gradients = [parameter.grad for parameter in run.parameters if parameter.grad is not None]
    if world > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    norm = torch.nn.utils.clip_grad_norm_(run.parameters, 1.0, foreach=True)
    for group in run.optimizer.param_groups:
        group["lr"] = _learning_rate(options, run.step)
    if torch.isfinite(norm):  # a single bad batch must not end a long run
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    # A smaller decay at first, so that the average forgets the initial weights.
    decay = min(options.average, run.step / (run.step + 10))
    torch._foreach_lerp_(list(run.average.parameters()), list(run.network.parameters()), 1 - decay)
    return {**{key: value.detach() for key, value in parts.items()}, "gradient": norm.detach()}


def _batch(
    run: Run, options: TrainOptions, length: int, size: tuple[int, int], device: torch.device, rank: int
) -> Batch:
    """The batch of this step, which depends only on its number; images are rendered once for several steps."""
    seed = (options.seed * 1_000_003 + run.step // options.reuse) * 64 + rank
    key = seed, length
    if run.rendered is None or run.rendered[0] != key:
        run.rendered = key, run.source(seed, options.frames // length, length, size, device)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed * 1000 + run.step % options.reuse))
    return run.rendered[1].in_order(order)


def _learning_rate(options: TrainOptions, step: int) -> float:
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    fall = min(1.0, (options.steps - step) / max(1.0, options.cooldown * options.steps))
    return options.learning_rate * rise * fall


def _log(entry: dict[str, float], path: Path, report: Callable[[str], None]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    report("  ".join(f"{key} {value:.4g}" for key, value in entry.items()))


def _save(run: Run, folder: Path, name: str, options: TrainOptions, world: int, device: torch.device) -> Path:
    """Save the state of the run and the averaged weights; each file gets its name when it is complete."""
    state = {
        "step": run.step,
        "seconds": run.seconds,
        "options": json.dumps(dataclasses.asdict(options)),
        "network": run.network.state_dict(),
        "probes": run.probes.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    with whole_file(folder / STATE_FILE) as partial:
        torch.save(state, partial)
    target = folder / f"{name}.safetensors"
    save_network(run.average, target, torch.float16, manifest(run, name, options, world, device))
    return target


def manifest(run: Run, name: str, options: TrainOptions, world: int, device: torch.device) -> dict[str, str]:
    """The origin of the weights, for the metadata of their file."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "name": name,
        "about": f"trained on {RECIPES[name][0]}" if name in RECIPES else "",
        "options": json.dumps(dataclasses.asdict(options)),
        "steps": str(run.step),
        "frames": str(run.step * options.frames * world),
        "hours": f"{run.seconds / 3600:.2f}",
        "hardware": f"{world} x {hardware}",
        "torch": torch.__version__,
        "code": f"{raymap3r_ros.__version__} {source_digest()}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def source_digest() -> str:
    """Twelve hexadecimal digits that depend on the source of network, scenes and training."""
    root = Path(raymap3r_ros.__file__).parent
    digest = hashlib.sha256()
    for room in ("network", "synthetic", "training"):
        for path in sorted((root / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _resume(run: Run, path: Path, options: TrainOptions, device: torch.device) -> Run:
    """The run in the state of an earlier session, if there is one. Only the number of steps may have changed."""
    if not path.is_file():
        return run
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        before = json.loads(state["options"])
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); move it away to start again") from error
    now = dataclasses.asdict(options)
    changed = [
        f"{key} ({before.get(key)} -> {now[key]})" for key in now if before.get(key) != now[key] and key != "steps"
    ]
    if changed:
        raise InputError(
            f"{path} is a run with other options: {', '.join(changed)}; use another folder or the same options"
        )
    run.step, run.seconds = state["step"], state["seconds"]
    run.network.load_state_dict(state["network"])
    run.probes.load_state_dict(state["probes"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    return run
