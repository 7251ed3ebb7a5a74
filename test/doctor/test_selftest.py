"""The self-test names the part that is broken."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raymap3r_ros.doctor import golden, selftest
from raymap3r_ros.doctor.comparison import error_of, largest_difference
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Target
from raymap3r_ros.streaming import Stream, StreamOptions, recordings
from raymap3r_ros.streaming.result import Estimate
from raymap3r_ros.streaming.tensors import tensors_of

CPU = torch.device("cpu")


@pytest.fixture
def numbers():
    return golden.read_golden()


@pytest.fixture
def network():
    return golden.golden_network()


def one_run(precision, numbers):
    """The line of one run in a precision."""
    (line,) = selftest.check_precision(CPU, precision, numbers, (selftest.MAIN,))
    return line


def test_a_good_device_passes_every_part():
    lines = {line.name: line for line in selftest.check(Target("one_room", StreamOptions(), CPU), (selftest.MAIN,))}
    parts = [
        "numbers",
        "float32",
        "bfloat16",
        "float16",
        "trace",
        "graph, compile",
        "batch",
        "out of memory",
        "resize",
    ]
    assert list(lines) == parts
    assert {line.state for line in lines.values()} == {OK}, lines
    assert lines["float32"].values["error"] < lines["float16"].values["error"] < lines["bfloat16"].values["error"]


def test_wrong_golden_value(numbers):
    numbers["raymap3r/depth"][3] *= 1.001
    line = one_run("float32", numbers)
    assert line.state == FAIL and "in raymap3r/depth" in line.found and "install another torch" in line.remedy


def test_wrong_weights(numbers):
    numbers["weights"] = np.array("0" * 64)
    (line,) = selftest._check_inputs(numbers)
    assert (line.name, line.state) == ("numbers", FAIL) and "install numpy" in line.remedy


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_wrong_kernel(precision, numbers, monkeypatch):
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: attention(q, k.flip(2), v))
    assert one_run(precision, numbers).state == FAIL


def test_slightly_wrong_kernel_in_float32(numbers, monkeypatch):
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: gelu(x, approximate="tanh"))
    assert one_run("float32", numbers).state == FAIL


def test_precision_that_gives_nan(numbers, monkeypatch):
    attention = F.scaled_dot_product_attention

    def overflow(q, k, v):
        return attention(q, k, v) * (float("nan") if q.dtype == torch.float16 else 1.0)

    monkeypatch.setattr(F, "scaled_dot_product_attention", overflow)
    line = one_run("float16", numbers)
    assert line.state == FAIL and line.found.startswith("1 runs, plain: not finite in raymap3r/")
    assert line.values["error"] == "nan"


def to_tf32(x):
    """Float32 numbers rounded to the ten bits of TF32."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_convolutions_in_tf32(numbers, network, monkeypatch):
    """They pass as what a GPU computes by default, but not as float32."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight.data = to_tf32(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (to_tf32(inputs[0]),))
    monkeypatch.setattr(selftest, "golden_network", lambda device: network)
    (line,) = selftest._check_tf32(CPU, numbers)
    assert (line.name, line.state) == ("TF32", OK) and line.values["error"] > 1e-4
    assert one_run("float32", numbers).state == FAIL


def changed(trace, *arguments):
    """`trace` with a graph whose depth is a little too large."""
    run = trace(*arguments)

    def wrong(inputs, state):
        outputs, after = run(inputs, state)
        if isinstance(outputs, Estimate):
            outputs = dataclasses.replace(outputs, depth=outputs.depth * 1.001)
        return outputs, after

    return wrong


def plainly(network, frame, inputs, state):
    """Stands in for the recording of a graph: the frame itself."""
    return frame


def test_graph_that_differs_from_plain(numbers, monkeypatch):
    monkeypatch.setattr(recordings, "trace", partial(changed, plainly))
    (line,) = selftest.check_execution(CPU, "trace", numbers)
    assert (line.name, line.state) == ("trace", FAIL) and "in raymap3r/depth" in line.found


def test_graph_that_cannot_be_recorded(numbers, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(recordings, "trace", refuse)
    warning, result = selftest.check_execution(CPU, "trace", numbers)
    assert (
        warning.state == WARNING and "no kernel image" in warning.found and "operation by operation" in warning.remedy
    )
    assert result.state == OK


class Rerun:
    """Stands in for the recording of a CUDA graph: runs the function again, into the same memory."""

    recorded = 0

    def __call__(self, body):
        Rerun.recorded += 1
        outputs = body()

        def replay():
            for tensor, new in zip(tensors_of(outputs), tensors_of(body()), strict=True):
                tensor.copy_(new)

        return replay, outputs


def test_cuda_graphs_as_far_as_a_cpu_can_run_them(numbers, monkeypatch):
    monkeypatch.setattr(
        selftest, "golden_numbers", partial(golden.golden_numbers, stream=partial(Stream, capture=Rerun()))
    )
    (line,) = selftest.check_execution(CPU, "graph", numbers)
    assert (line.name, line.state) == ("graph", OK) and Rerun.recorded == 2  # frames, and keyframes


def test_compile_without_triton(numbers, monkeypatch):
    monkeypatch.setattr(selftest.importlib.util, "find_spec", lambda name: None)
    (line,) = selftest.check_execution(CPU, "compile", numbers)
    assert line.state == WARNING and "triton" in line.found


def test_compiler_that_fails(numbers, monkeypatch):
    def fail(*_, **__):
        raise ValueError("gcc was not found")

    monkeypatch.setattr(selftest.importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(selftest, "golden_numbers", fail)
    (line,) = selftest.check_execution(CPU, "compile", numbers)
    assert line.state == WARNING and "gcc was not found" in line.found and "graph" in line.remedy
    with pytest.raises(ValueError):
        list(selftest.check_execution(CPU, "trace", numbers))


def test_streams_that_are_mixed_up_in_a_batch(numbers, network, monkeypatch):
    encode = network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda planes: encode(planes).flip(0))
    (line,) = selftest._check_batch(network, numbers)
    assert (line.name, line.state) == ("batch", FAIL) and "camera" in line.found


def test_state_that_a_frame_without_memory_damages(numbers, network, monkeypatch):
    advance = Stream.advance

    def damage(stream, frame, *more):
        try:
            return advance(stream, frame, *more)
        except torch.cuda.OutOfMemoryError:
            with torch.inference_mode():
                frame.before.state.copy_(frame.before.state.flip(1))
            raise

    monkeypatch.setattr(Stream, "advance", damage)
    (line,) = selftest.check_recovery(network, numbers)
    assert (line.name, line.state) == ("out of memory", FAIL) and "raymap3r/" in line.found


def test_missing_memory_without_an_error(numbers, network, monkeypatch):
    handle = network.register_forward_hook(lambda *_: None)
    monkeypatch.setattr(network.decoder, "register_forward_pre_hook", lambda hook: handle)
    (line,) = selftest.check_recovery(network, numbers)
    assert line.state == FAIL and "ended without an error" in line.found


def test_wrong_resize(monkeypatch):
    resize = selftest.apply_framing_on_device
    monkeypatch.setattr(selftest, "apply_framing_on_device", lambda *arguments: resize(*arguments).flip(2))
    (line,) = selftest._check_resize(CPU)
    assert (line.name, line.state) == ("resize", FAIL)


def test_a_part_that_raises_does_not_stop_the_others(monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    for name in ("check_precision", "check_execution", "_check_batch", "check_recovery"):
        monkeypatch.setattr(selftest, name, fail)
    lines = {line.name: line for line in selftest.check(Target("one_room", StreamOptions(), CPU))}
    for name in ("float32", "trace", "batch", "out of memory"):
        assert lines[name].state == FAIL and "RuntimeError: CUDA error: an illegal" in lines[name].found
        assert "CONTRIBUTING" in lines[name].remedy
    assert lines["numbers"].state == lines["resize"].state == OK


def test_settings_of_tf32_are_restored():
    before = torch.backends.cudnn.allow_tf32
    with selftest.without_tf32():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_comparison_misses_nothing():
    ones = {"run/depth": np.ones(4, np.float32)}
    assert largest_difference(ones, ones, "float32").is_allowed
    for wrong in (np.ones(3), np.array([1, 1, 1, np.nan]), np.array([1, 1, 1, np.inf]), np.array([1, 1, 1, 1.001])):
        assert not largest_difference({"run/depth": wrong}, ones, "float32").is_allowed
    assert not largest_difference({}, ones, "bfloat16").is_allowed
    with pytest.raises(ValueError):
        largest_difference(ones, {}, "float32")
    assert error_of(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx((0.125 / (29.25 / 2)) ** 0.5)
