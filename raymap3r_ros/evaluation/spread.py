"""The batches of an evaluation in processes of Ray. Needs the extra `batch`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from raymap3r_ros.evaluation.parts import Spread
from raymap3r_ros.network import load_network
from raymap3r_ros.ray_pool import check_batch_modules, ray_session, run_tasks


@contextmanager
def over_ray(
    address: str | None, checkpoint: str, device: torch.device, precision: str, workers: int
) -> Iterator[Spread | None]:
    """Yield a function for `run_parts` that runs batches on a Ray cluster; None without an address.

    `workers`: those of the plan, which divide the cores of this machine in a serial run: the number of threads changes
    the last bits of results, so that each process of Ray has as many. Raises Raymap3rError if there is no Ray.
    """
    if address is None:
        yield None
        return
    check_batch_modules("ray")
    setup = functools.partial(
        _make_worker, checkpoint, device.type, precision, max(1, torch.get_num_threads() // workers)
    )
    with ray_session(address) as available:
        gpu = device.type == "cuda"
        count = max(1, int(available.get("GPU" if gpu else "CPU", 1)))

        def spread(tasks: list[Callable[..., Any]]) -> Iterator[Any]:
            results, wanted = {}, 0
            resources = {"num_cpus": 1, "num_gpus": int(gpu)}
            for (index, _), result in run_tasks(setup, list(enumerate(tasks)), count, resources):
                if isinstance(result, Exception):
                    raise result
                results[index] = result
                while wanted in results:
                    yield results.pop(wanted)
                    wanted += 1

        yield spread


def _make_worker(checkpoint: str, device: str, precision: str, threads: int) -> Callable[[Any], Any]:
    torch.set_num_threads(threads)
    network = load_network(checkpoint, device, precision)
    return lambda item: item[1](network)
