"""The training loop: resumable at every step, on a CPU, a GPU, or several processes of either (`torchrun`)."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import raymap3r_ros
from raymap3r_ros.code_digest import code_digest
from raymap3r_ros.errors import CheckpointError, InputError, OptionError
from raymap3r_ros.io.output_folder import check_output_folder
from raymap3r_ros.network import Network
from raymap3r_ros.network.checkpoint import save_network
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.output_files import check_output_file, check_outputs, whole_file
from raymap3r_ros.signals import on_stop_signals
from raymap3r_ros.synthetic import Rendering
from raymap3r_ros.synthetic.suites import EVALUATION_SEEDS
from raymap3r_ros.training.batches import Batch, draw, image_size, make_batch, make_pool
from raymap3r_ros.training.initial import initial_network
from raymap3r_ros.training.losses import Probes, losses, mask_iou, measure
from raymap3r_ros.training.progress import CURVES_FILE, LOG_FILE, Progress
from raymap3r_ros.training.sources import Source, find_source
from raymap3r_ros.training.throughput import count_operations
from raymap3r_ros.training.train_options import RECIPES, TrainOptions

STATE_FILE = "training.pt"
_ROOMS = ("network", "synthetic", "training")  # whose code the weights depend on
_LOG_EVERY = 25  # steps
_MEASURE_EVERY = 200  # steps
_SAVE_EVERY = 300.0  # seconds
_POOL = 4  # batches' worth of images in memory, to draw from
_MEASURED_SEQUENCES = 16
_MEASURED_LENGTH = 8  # frames


@dataclasses.dataclass
class Run:
    """The state of a training run."""

    network: Network
    probes: Probes
    average: Network
    optimizer: torch.optim.Optimizer
    source: Source | None = None
    pool: tuple[int, Rendering] | None = None  # the images in use, and the seed they depend on
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
    """Train until the last step, for `seconds`, or until SIGINT, SIGTERM or SIGHUP; a run in `folder` is resumed.

    A new run starts from the weights file `start`, if given. `data`: folder of the recording, for the world
    "recording".

    Writes `training.pt` (the state of the run), `log.jsonl` (losses and speed), `curves.csv` (validation) and
    NAME.safetensors (averaged weights, half precision) to the folder. The weights do not depend on interruptions.
    Returns the weights file, or None in all but the first of several processes. Raises InputError if the folder has a
    run with other options, or is in the folder `data`.
    """
    folder = Path(folder)
    if seconds is not None and not seconds > 0:
        raise OptionError(f"seconds is {seconds}; allowed: above 0")
    if data is not None:
        check_outputs([folder], [Path(data)], "folder")
    if start is not None:
        check_outputs([folder / file for file in _files(name)], [Path(start)])
    rank, world = _join_processes(device)
    first = rank == 0
    run = _resume(_begin(options, start, device), folder / STATE_FILE, options, device)
    size = image_size(run.network.config.image_size, run.network.config.patch_size)
    run.source = find_source(options.world, data, size)
    progress = None
    if first:
        _open_folder(folder, name)
        millions = sum(parameter.numel() for parameter in run.network.parameters()) / 1e6
        report(f"{name}: {millions:.2f} M parameters, {world} x {options.frames} frames a step, from step {run.step}")
        progress = Progress(folder, device, options.frames, world, report)
        held_out = _held_out(run.source, size, device)
        progress.validated(run.step, run.seconds, _validate(run.average, held_out, options.precision))

    started = saved = time.monotonic()
    earlier, operations = run.seconds, {}
    stopped: list[str] = []
    with on_stop_signals(stopped.append, repeatedly=True):
        while run.step < options.steps:
            length = options.sequence_length(run.step)
            if progress and length not in operations:
                operations[length] = _operations(run, options, _batch(run, options, size, device, rank))
            parts = _step(run, options, size, device, rank, world)
            run.seconds = earlier + time.monotonic() - started
            # All processes must leave at the same step.
            over = bool(stopped) or (seconds is not None and time.monotonic() - started > seconds)
            over = _any(over, device, world) or run.step == options.steps
            if progress:
                progress.add(parts, operations[length])
                if run.step % _LOG_EVERY == 0 or over:
                    progress.log(run.step)
                if run.step % _MEASURE_EVERY == 0 or run.step == options.steps:
                    progress.validated(run.step, run.seconds, _validate(run.average, held_out, options.precision))
                if time.monotonic() - saved > _SAVE_EVERY and not over:
                    _save(run, folder, name, options, world, device)
                    saved = time.monotonic()
            if over:
                break
        return _save(run, folder, name, options, world, device) if first else None


def _open_folder(folder: Path, name: str) -> None:
    """Create the folder of a run. Raises InputError if something in it prevents the run from writing its files."""
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in _files(name):
        check_output_file(folder / file)


def _files(name: str) -> tuple[str, ...]:
    """Return the names of the files of a run."""
    return STATE_FILE, LOG_FILE, CURVES_FILE, f"{name}.safetensors"


def _held_out(source: Source, size: tuple[int, int], device: torch.device) -> tuple[Batch, Batch]:
    """Batches for validation; the second one has movers, whatever the source."""
    first, second = (
        make_batch(source, seed, _MEASURED_SEQUENCES, _MEASURED_LENGTH, size, device)
        for seed in (EVALUATION_SEEDS, EVALUATION_SEEDS + 1)
    )
    return first, second


def _validate(network: Network, held_out: tuple[Batch, Batch], precision: str) -> dict[str, float]:
    images, movers = held_out
    return {**measure(network, images, precision), "iou": mask_iou(network, movers, precision)}


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
    network = initial_network(PRESETS[options.preset], options.seed, start, device)
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
    parts = _losses(run, options, _batch(run, options, size, device, rank))
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


def _losses(run: Run, options: TrainOptions, batch: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + run.step)
    return losses(run.network, run.probes, batch, options, generator, run.step / options.steps)


def _operations(run: Run, options: TrainOptions, batch: Batch) -> int:
    """Floating-point operations of one step, found by a pass whose gradients are discarded."""
    count = count_operations(lambda: sum(_losses(run, options, batch).values()).backward())
    run.optimizer.zero_grad(set_to_none=True)
    return count


def _batch(run: Run, options: TrainOptions, size: tuple[int, int], device: torch.device, rank: int) -> Batch:
    """The batch of this step, which depends only on its number: drawn from images that serve for many steps."""
    index = run.step // (_POOL * options.reuse) * _POOL
    if run.pool is None or run.pool[0] != index:
        run.pool = None  # frees the memory
        seeds = [(options.seed * 1_000_003 + index + part) * 64 + rank for part in range(_POOL)]
        longest = options.longest
        run.pool = index, make_pool(run.source, seeds, options.frames // longest, longest, size, device)
    length = options.sequence_length(run.step)
    generator = torch.Generator().manual_seed((options.seed * 1_000_003 + run.step) * 64 + rank)
    return draw(run.pool[1], options.frames // length, length, generator)


def _learning_rate(options: TrainOptions, step: int) -> float:
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    fall = min(1.0, (options.steps - step) / max(1.0, options.cooldown * options.steps))
    return options.learning_rate * rise * fall


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
        "code": f"{raymap3r_ros.__version__} {code_digest(*_ROOMS)[:12]}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _resume(run: Run, path: Path, options: TrainOptions, device: torch.device) -> Run:
    """The run in the state of an earlier session, if there is one. Only the number of steps may have changed."""
    if not path.is_file():
        return run
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        # An option that is newer than the file had the effect of its default.
        before = {**dataclasses.asdict(TrainOptions()), **json.loads(state["options"])}
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); move it away to start again") from error
    now = dataclasses.asdict(options)
    changed = [f"{key} ({before[key]} -> {now[key]})" for key in now if before[key] != now[key] and key != "steps"]
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
