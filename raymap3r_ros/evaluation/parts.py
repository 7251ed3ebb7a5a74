"""The sequences that an evaluation runs on, and the runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from raymap3r_ros.evaluation.baselines import map_controls
from raymap3r_ros.evaluation.datasets import open_dataset
from raymap3r_ros.evaluation.plan import EvaluationPlan, Variant
from raymap3r_ros.evaluation.run import batch_tasks, run_sequences, sequence_length
from raymap3r_ros.evaluation.scorer import SequenceRun
from raymap3r_ros.evaluation.sequences import PosedSequence, synthetic_sequence
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.synthetic import SUITES

# Suites that run only if they are named: thresholds are chosen on the first, two are long, the last has other tables.
ON_REQUEST = ("tune", "revisit", "endurance", "kidnap", "session")
DEFAULT_SEQUENCES = 12  # of a suite, but ...
DEFAULT_FRAMES = 4000  # ... only as many as have this number of frames, for suites of long sequences
WORKERS = 4  # maximum number of parallel batches on a CPU: each holds the maps of its sequences

# Calls functions of a network in other processes, which load it themselves; yields the results in order.
Spread = Callable[[list[Callable[..., list[SequenceRun]]]], Iterator[list[SequenceRun]]]


@dataclass(frozen=True)
class Part:
    """The sequences of one suite or data set."""

    suite: str
    world: str
    sequences: list[PosedSequence]


def synthetic_parts(
    suites: Sequence[str],
    worlds: Sequence[str],
    *,
    size: tuple[int, int],
    device: str,
    sequences: int | None = None,
    frames: int = 0,
) -> list[Part]:
    """Return rendered sequences of each suite and world, spread over the suite.

    `size`: height and width; `sequences`: number per suite; `frames`: those that will be run of each, 0 for all.
    """
    parts = []
    for world in worlds:
        for name in dict.fromkeys(suites):
            suite = SUITES[name]
            length = min(suite.frames, frames or suite.frames)
            count = sequences or min(DEFAULT_SEQUENCES, max(2, DEFAULT_FRAMES // length))
            parts.append(Part(name, world, suite_sequences(name, world, count, size=size, device=device)))
    return parts


def suite_sequences(suite: str, world: str, count: int, *, size: tuple[int, int], device: str) -> list[PosedSequence]:
    """Return at most `count` sequences of a suite, spread evenly.

    A suite is ordered by the share of moving pixels, so its first sequences do not represent it.
    """
    available = SUITES[suite].sequences
    chosen = np.linspace(0, available - 1, min(count, available)).round().astype(int).tolist()
    return [synthetic_sequence(suite, index, world=world, size=size, device=device) for index in chosen]


def recorded_parts(dataset: str, root: Path, *, long: bool = False, sequences: int | None = None) -> list[Part]:
    """Return the first sequences of a data set; see `open_dataset`."""
    return [Part(f"{dataset} long" if long else dataset, "", open_dataset(dataset, root, long=long)[:sequences])]


def input_size(network: Network, options: StreamOptions) -> tuple[int, int]:
    """Return height and width of the network's input for a 4:3 image; images of that size are not resampled."""
    long_edge = options.image_size or network.config.image_size
    return frame_image(4 * long_edge, 3 * long_edge, long_edge, network.config.patch_size).size


def run_parts(
    network: Network,
    parts: list[Part],
    variants: list[Variant],
    plan: EvaluationPlan,
    options: StreamOptions,
    spread: Spread | None = None,
) -> list[SequenceRun]:
    """Run all sequences of all parts, with a progress bar; add the values of the controls to those of the variants.

    `spread`: runs the batches elsewhere, by default in threads.
    """
    total = sum(sequence_length(sequence, plan) for part in parts for sequence in part.sequences)
    runs = []
    with tqdm(total=total, unit=" frames", disable=None, dynamic_ncols=True) as bar, cores_for(plan.workers):
        elsewhere = spread and spread([task for part in parts for task in _tasks(part, variants, plan)])
        for part in parts:
            bar.set_description(" ".join(name for name in (part.world, part.suite) if name))
            if elsewhere is None:
                done = list(
                    run_sequences(
                        network, part.sequences, variants, plan, suite=part.suite, world=part.world,
                        on_frame=bar.update,
                    )
                )  # fmt: skip
            else:
                done = [run for _ in _tasks(part, variants, plan) for run in next(elsewhere)]
                bar.update(sum(run.frames for run in done))
            for sequence, controls in zip(done, map_controls(done, options.mask), strict=True):
                sequence.values.update(controls)
            runs += done
    return runs


def _tasks(part: Part, variants: list[Variant], plan: EvaluationPlan) -> list[Callable[..., list[SequenceRun]]]:
    return batch_tasks(part.sequences, variants, plan, suite=part.suite, world=part.world)


def worker_count(device: torch.device) -> int:
    """Return the number of parallel batches: on a CPU, single-threaded batches are faster than threads in one."""
    return min(WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1


@contextmanager
def cores_for(workers: int) -> Iterator[None]:
    """Divide the cores among `workers`, instead of using them for the threads within one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
