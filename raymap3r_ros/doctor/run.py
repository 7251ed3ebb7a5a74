"""All checks, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from raymap3r_ros.doctor import dds, libraries, machine, memory, precision, selftest, timing, weights
from raymap3r_ros.doctor.lines import FAIL, WARNING, Line, Target, guarded
from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import choose_device
from raymap3r_ros.streaming import StreamOptions

# In the order of the report. Those in NEEDED must not fail, otherwise the timing is not run.
CHECKS: dict[str, Callable[[Target], Iterable[Line]]] = {
    module.NAME: module.check for module in (machine, libraries, weights, precision, memory, selftest, dds, timing)
}
NEEDED = (weights.NAME, memory.NAME)


def diagnose(checkpoint: str, options: StreamOptions, device: str) -> Iterator[Line]:
    """The lines of all checks, as they are found. `device` is a name of `choose_device`."""
    try:
        chosen = choose_device(device)
    except OptionError as error:
        remedy = "the other checks run on the CPU; see the line about the GPU, or choose another --device"
        yield Line(machine.NAME, "device", FAIL, str(error), remedy)
        chosen = torch.device("cpu")
    target = Target(checkpoint, options, chosen)
    failed = set()
    for name, check in CHECKS.items():
        if name == timing.NAME and not failed.isdisjoint(NEEDED):
            what = " and ".join(sorted(failed.intersection(NEEDED)))
            remedy = "mend that first, then run the doctor again"
            yield Line(name, "frames", WARNING, f"not run, because of {what}", remedy)
            continue
        for line in guarded(name, name, partial(check, target)):
            if line.state == FAIL:
                failed.add(name)
            yield line
