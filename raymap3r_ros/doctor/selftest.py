"""Numerical self-test: the device computes the golden numbers, in each precision and with each execution."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from raymap3r_ros.doctor.comparison import Difference, largest_difference
from raymap3r_ros.doctor.golden import (
    RUNS,
    SIZE,
    SOON,
    Run,
    golden_images,
    golden_network,
    golden_numbers,
    golden_weights,
    read_golden,
    run_frames,
    weights_hash,
)
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target, guarded
from raymap3r_ros.network import choose_threads
from raymap3r_ros.streaming import Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler
from raymap3r_ros.streaming.preprocessing import apply_framing, apply_framing_on_device, frame_image
from raymap3r_ros.text import printable

NAME = "selftest"
MAIN = RUNS[0]  # its rule, raymap3r, needs everything: ray branch, attention, staticness
STEADY = SOON.router_last_frame + 1  # the first frame that is recorded
WRONG = (
    "this device, its driver or this version of torch computes other numbers: install another torch, or use --device "
    "cpu; report this line (CONTRIBUTING.md)"
)
FULL = "CUDA out of memory (simulated on a CPU)"


def check(target: Target, runs: Sequence[Run] = RUNS) -> Iterator[Line]:
    """Lines about each part; a part that fails does not stop the others. `runs`: those in each precision."""
    device, golden = target.device, read_golden()
    network = golden_network(device)
    if device.type == "cpu":
        choose_threads(network)
    yield from guarded(NAME, "numbers", partial(_check_inputs, golden))
    for precision in ("float32", "bfloat16", "float16"):
        yield from guarded(NAME, precision, partial(check_precision, device, precision, golden, runs))
    if device.type == "cuda":
        yield from guarded(NAME, "TF32", partial(_check_tf32, device, golden))
    executions = ("graph", "compile") if device.type == "cuda" else ("trace",)
    for execution in executions:
        yield from guarded(NAME, execution, partial(check_execution, device, execution, golden))
    if device.type != "cuda":
        yield _not_on_a_cpu()
    yield from guarded(NAME, "batch", partial(_check_batch, network, golden))
    yield from guarded(NAME, "out of memory", partial(check_recovery, network, golden))
    yield from guarded(NAME, "resize", partial(_check_resize, device))


def _check_inputs(golden: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """The weights are those of the golden numbers; without them, all other errors would mean nothing."""
    found = weights_hash(golden_weights())
    if found == str(golden["weights"]):
        yield Line(NAME, "numbers", OK, f"weights and images from a seed, SHA-256 {found[:16]}...")
        return
    yield Line(
        NAME, "numbers", FAIL, f"the weights from the seed have SHA-256 {found}, expected {golden['weights']}",
        "install numpy, or the package, again; the lines below mean nothing until then",
    )  # fmt: skip


def check_precision(
    device: torch.device, precision: str, golden: Mapping[str, np.ndarray], runs: Sequence[Run] = RUNS
) -> Iterator[Line]:
    """All runs, operation by operation, against the golden numbers."""
    network = golden_network(device)
    if precision != "float32":
        network.lower_precision(precision)
    with without_tf32():
        found = golden_numbers(network, partial(_stream, precision=precision), runs)
    yield _line(precision, largest_difference(found, _of(golden, runs), precision), f"{len(runs)} runs, plain")


def _check_tf32(device: torch.device, golden: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """As float32, with the settings that the package runs with: PyTorch's convolutions use TF32 by default."""
    found = golden_numbers(golden_network(device), runs=(MAIN,))
    state = "on" if torch.backends.cudnn.allow_tf32 else "off"
    yield _line("TF32", largest_difference(found, _of(golden, (MAIN,)), "TF32"), f"convolutions with TF32 {state}")


def check_execution(device: torch.device, execution: str, golden: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """Recorded or compiled frames against the golden numbers, which are plain."""
    if execution == "compile" and importlib.util.find_spec("triton") is None:
        remedy = "python3 -m pip install triton, or use execution graph, the default on a GPU"
        yield Line(NAME, execution, WARNING, "not available: the package triton is missing", remedy)
        return
    options = dataclasses.replace(MAIN.options, execution=execution)
    try:
        with without_tf32(), refusals() as refused:
            found = golden_numbers(golden_network(device), runs=(Run(MAIN.name, options),))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise errors of their own
        if execution != "compile":
            raise
        text = printable(f"not available: {type(error).__name__}: {error}", 400)
        yield Line(NAME, execution, WARNING, text, "use execution graph, the default on a GPU")
        return
    if refused:
        remedy = "frames run operation by operation, slower; report this line (CONTRIBUTING.md)"
        yield Line(NAME, execution, WARNING, refused[0], remedy)
    difference = largest_difference(found, _of(golden, (MAIN,)), "float32")
    yield _line(execution, difference, f"frames from {STEADY} on, against plain")


def _not_on_a_cpu() -> Line:
    return Line(
        NAME, "graph, compile", OK,
        "not run on a CPU: it has no CUDA graphs, and execution compile takes minutes there without any gain",
    )  # fmt: skip


def _check_batch(network: nn.Module, golden: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """Two streams as one batch against each of them alone."""
    first, second = golden_images(0), golden_images(1)
    with without_tf32(), torch.inference_mode():
        together = run_frames(_stream(network, MAIN.options, SOON), np.stack((first, second), axis=1))
        alone = run_frames(_stream(network, MAIN.options, SOON), second)
    # Frames lead, except in the state after the last one.
    state = together.pop("state")
    found = {}
    for camera in (0, 1):
        values = {name: values[:, camera] for name, values in together.items()} | {"state": state[camera][None]}
        found |= _named(f"camera {camera}", values)
    expected = _named("camera 0", _values(golden)) | _named("camera 1", alone)
    yield _line("batch", largest_difference(found, expected, "float32"), "two streams in one batch")


def check_recovery(network: nn.Module, golden: Mapping[str, np.ndarray]) -> Iterator[Line]:
    """After a frame without memory, and after a batch without memory, the stream continues as if nothing happened."""
    images = golden_images()
    stream, scheduler = _stream(network, MAIN.options, SOON), BatchScheduler(network)
    raised = False
    with without_tf32(), refusals() as refused:
        frames = [run_frames(stream, images[:STEADY])]
        with _without_memory(network, 1):
            try:
                stream.step(images[STEADY])
            except torch.cuda.OutOfMemoryError:
                raised = True
        _release()
        with _without_memory(network, 2):
            scheduler.warm_up(stream, 2, images[STEADY])
        frames.append(run_frames(stream, images[STEADY:]))
    if not raised or not refused:
        what = "a frame" if not raised else "a batch"
        yield Line(NAME, "out of memory", FAIL, f"{what} without memory ended without an error", WRONG)
        return
    found = {name: np.concatenate([part[name] for part in frames]) for name in frames[0] if name != "state"}
    found["state"] = frames[1]["state"]
    difference = largest_difference(_named(MAIN.name, found), _of(golden, (MAIN,)), "float32")
    kind = "real" if _device(network).type == "cuda" else "simulated on a CPU"
    yield _line("out of memory", difference, f"a frame and a batch without memory ({kind}), then the other frames")


def _check_resize(device: torch.device) -> Iterator[Line]:
    """Resizing on the device, as a GPU does it, against Pillow."""
    image = np.kron(golden_images()[3], np.ones((2, 3, 1), np.uint8))
    framing = frame_image(image.shape[1], image.shape[0], SIZE[1], 16)
    resized = apply_framing_on_device(torch.from_numpy(image)[None].to(device), framing)[0].cpu().numpy()
    levels = int(np.abs(resized.astype(int) - apply_framing(image, framing)).max())
    found = f"on the device and by Pillow: largest difference {levels} of 255 levels, allowed 1"
    yield Line(NAME, "resize", OK if levels <= 1 else FAIL, found, "" if levels <= 1 else WRONG, {"levels": levels})


def _line(name: str, difference: Difference, what: str) -> Line:
    values = {"value": difference.name, "allowed": difference.allowed}
    values["error"] = difference.error if np.isfinite(difference.error) else str(difference.error)
    good = difference.is_allowed
    return Line(NAME, name, OK if good else FAIL, f"{what}: {difference}", "" if good else WRONG, values)


def _stream(network: nn.Module, options: StreamOptions, *more: object, precision: str = "float32") -> Stream:
    return Stream(network, dataclasses.replace(options, precision=precision), *more)


def _of(golden: Mapping[str, np.ndarray], runs: Sequence[Run]) -> dict[str, np.ndarray]:
    names = {run.name for run in runs}
    return {name: values for name, values in golden.items() if name.partition("/")[0] in names}


def _values(golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The golden values of the main run."""
    return {name.partition("/")[2]: values for name, values in _of(golden, (MAIN,)).items()}


def _named(run: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{run}/{name}": value for name, value in values.items()}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _without_memory(network: nn.Module, batch: int) -> Iterator[None]:
    """Batches of this size run out of memory in the decoder: on a GPU they request twice its memory, really."""

    def request(_: nn.Module, inputs: tuple) -> None:
        if len(inputs[0]) != batch:
            return
        device = _device(network)
        if device.type == "cuda":
            torch.empty(2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device)
        raise torch.cuda.OutOfMemoryError(FULL)

    handle = network.decoder.register_forward_pre_hook(request)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and products of a GPU in full float32 in the block."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch have other names, too
        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = False
            yield
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


@contextlib.contextmanager
def refusals() -> Iterator[list[str]]:
    """The warnings of `streaming` in the block, which are not printed: frames that run in another way than chosen."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("raymap3r_ros.streaming")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
