"""Frames recorded as TorchScript graphs, and as ONNX graphs."""

import dataclasses
import importlib.util
import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from batching_tools import METHOD_SOON, at_once, needs_onnx

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network, load_network
from raymap3r_ros.network.attention import grid_rotary_table, rotate
from raymap3r_ros.streaming import RULES, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler, warm_up
from raymap3r_ros.streaming.mask import window_reduce
from raymap3r_ros.streaming.onnx_graphs import PACKAGES, REPLACED
from raymap3r_ros.streaming.recordings import long_running
from raymap3r_ros.streaming.result import StepResult
from raymap3r_ros.streaming.tensors import tensors_of

INTRINSICS = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
TRACE = StreamOptions(execution="trace")
ONNX = StreamOptions(execution="onnx")

both = pytest.mark.parametrize("options", [TRACE, pytest.param(ONNX, marks=needs_onnx)], ids=("trace", "onnx"))


@pytest.fixture(scope="module")
def images():
    """A textured wall that moves a little from frame to frame: the network's answer is not degenerate."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 12, 16))).float()
    wall = torch.nn.functional.interpolate(coarse, (60, 80), mode="bilinear")[0].movedim(0, -1).byte().numpy()
    return [np.ascontiguousarray(wall[index // 2 : index // 2 + 48, index : index + 64]) for index in range(16)]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    """The number of traces so far, in a list."""
    count = [0]
    trace = torch.jit.trace

    def counted(*args, **kwargs):
        count[0] += 1
        return trace(*args, **kwargs)

    monkeypatch.setattr(torch.jit, "trace", counted)
    return count


def assert_close(ours: StepResult, expected: StepResult) -> None:
    """Numbers agree to 1e-5 of their array's largest, and the masks except for pixels at the threshold."""
    for name in ("pose", "pose_raw", "depth", "points", "confidence", "staticness", "intrinsics", "gate", "scale"):
        one, other = getattr(ours, name), getattr(expected, name)
        assert (one - other).abs().max() <= 1e-5 * other.abs().max(), name
    assert (ours.dynamic_mask != expected.dynamic_mask).float().mean() < 0.002
    for name in ("frame", "segment", "reset", "reset_reason", "motion", "world_change", "rule_index", "healthy"):
        assert getattr(ours, name) == getattr(expected, name), name


def test_a_traced_frame_gives_the_same_results(images: list[np.ndarray], traced: list):
    """Starts, resets, with and without motion and intrinsics, with trained weights."""
    network = load_network("one_room")
    options = StreamOptions(reset_interval=11, router="adaptive")
    plain = Stream(network, options, METHOD_SOON)
    stream = Stream(network, dataclasses.replace(options, execution="trace"), METHOD_SOON)
    for index, image in enumerate([*images, *images[::-1]]):
        given = {"motion": index % 4 != 3, "intrinsics": INTRINSICS if index > 15 else None}
        assert_close(stream.step(image, **given), plain.step(image, **given))
    assert traced == [5]  # with and without motion, each with and without intrinsics; and keyframes


def test_every_rule_and_option_can_be_traced(network: Network, images: list[np.ndarray], traced: list):
    extras = [{"smoothing": "published"}, {"smoothing": "off"}, {"token_pooling": "raster"}, {"ray_interval": 2}]
    extras += [{"mask": dataclasses.replace(TRACE.mask, kind="published")}]
    settings = [{"update_rule": rule, **extra} for rule, extra in itertools.zip_longest(RULES, extras, fillvalue={})]
    settings += [{"router": "published", "reset_alignment": "published"}]
    for setting in settings:
        options = dataclasses.replace(TRACE, **setting)
        stream = Stream(network, options, METHOD_SOON)
        plain = Stream(network, dataclasses.replace(options, execution="plain"), METHOD_SOON)
        before = traced[0]
        for image in images[:8]:
            assert_close(stream.step(image), plain.step(image))
        assert traced[0] - before == (2 if stream.options.ray_interval == 2 else 1), setting


@needs_onnx
def test_an_onnx_frame_gives_the_same_results(images: list[np.ndarray], caplog: pytest.LogCaptureFixture):
    network = load_network("one_room")
    options = StreamOptions(reset_interval=11, router="adaptive")
    plain = Stream(network, options, METHOD_SOON)
    stream = Stream(network, dataclasses.replace(options, execution="onnx"), METHOD_SOON)
    for image in [*images, *images[::-1]]:
        assert_close(stream.step(image), plain.step(image))
    assert not caplog.records  # no other execution was used instead


@needs_onnx
def test_rules_and_options_can_be_exported(
    network: Network, images: list[np.ndarray], caplog: pytest.LogCaptureFixture
):
    published = {"router": "published", "smoothing": "published", "token_pooling": "raster"}
    settings = [
        {"update_rule": "ttsa3r", "smoothing": "off"},
        {"update_rule": "motion_filter"},
        {"mask": dataclasses.replace(TRACE.mask, kind="published"), **published},
    ]
    for setting in settings:
        options = dataclasses.replace(ONNX, **setting)
        stream = Stream(network, options, METHOD_SOON)
        plain = Stream(network, dataclasses.replace(options, execution="plain"), METHOD_SOON)
        for image in images[:8]:
            assert_close(stream.step(image, intrinsics=INTRINSICS), plain.step(image, intrinsics=INTRINSICS))
    assert not caplog.records


def test_operations_for_onnx_give_the_same_results():
    def assert_same(function, *arguments):
        expected, result = function(*arguments), REPLACED[function](*arguments)
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0 if function is not rotate else 1e-6)

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 6, 9, 16, generator=generator) for _ in range(2))
    bits = x > 0, y > 0, x > y
    assert_same(torch.where, *bits)
    assert_same(torch.where, bits[0], x, y)
    assert_same(torch.where, bits[0], x, 0.0)
    assert_same(torch.maximum, x, y)
    assert_same(torch.maximum, *bits[:2])
    assert_same(torch.isfinite, torch.tensor([0.0, 3e38, torch.inf, -torch.inf, torch.nan]))
    assert_same(torch.Tensor.expm1, torch.tensor([0.0, 1e-8, 1e-4, 0.1, 1.0, 5.0]))
    assert_same(torch.rad2deg, x)
    assert_same(torch.Tensor.movedim, x, -1, 1)
    assert_same(torch.Tensor.movedim, x, 1, -1)
    assert_same(torch.Tensor.mT.__get__, x)
    assert_same(torch.Tensor.chunk, x, 4, -1)
    assert_same(torch.Tensor.unflatten, x, -1, (4, -1))
    assert_same(torch.Tensor.unflatten, x, 1, (2, 3))
    assert_same(torch.Tensor.expand_as, x[:, :1], x)
    assert_same(torch.Tensor.view_as, x, x.flatten())
    assert_same(rotate, x, grid_rotary_table(3, 3, False, 16, 100.0, x.device))
    for size in (1, 3, 5):
        assert_same(window_reduce, x[0].abs(), size, torch.maximum)
        assert_same(window_reduce, x[0] > 1, size, torch.maximum)
        assert_same(window_reduce, x[0], size, torch.add)
    attention, expected = REPLACED[F.scaled_dot_product_attention](x, y, x), F.scaled_dot_product_attention(x, y, x)
    torch.testing.assert_close(attention, expected)


@both
def test_a_snapshot_continues_exactly(network: Network, images: list[np.ndarray], options: StreamOptions):
    stream = Stream(network, options, METHOD_SOON)
    for image in images[:8]:
        stream.step(image)
    snapshot = stream.snapshot()
    first = [stream.step(image) for image in images[8:]]
    copies = [[tensor.clone() for tensor in tensors_of(result)] for result in first]
    other = Stream(network, options, METHOD_SOON)
    other.restore(snapshot)
    stream.restore(snapshot)
    for image, expected, copy in zip(images[8:], first, copies, strict=True):
        # Bit by bit, from the same recordings and from others, and a result is not overwritten by the next frame.
        for again in (stream.step(image), other.step(image), expected):
            assert all(torch.equal(*pair) for pair in zip(tensors_of(again), copy, strict=True))


@both
def test_recorded_batches_give_the_results_of_separate_streams(
    network: Network, images: list[np.ndarray], options: StreamOptions
):
    scheduler = BatchScheduler(network)
    streams = [Stream(network, options, METHOD_SOON) for _ in range(2)]
    alone = [Stream(network, method=METHOD_SOON) for _ in range(2)]
    for index in range(10):
        pair = images[index], images[-1 - index]
        calls = [partial(scheduler.step, stream, image) for stream, image in zip(streams, pair, strict=True)]
        for future, stream, image in zip(at_once(scheduler, *calls), alone, pair, strict=True):
            assert_close(future.result(), stream.step(image))


def test_after_the_warm_up_nothing_is_left_to_trace(network: Network, images: list[np.ndarray], traced: list):
    stream = Stream(network, TRACE, METHOD_SOON)
    warm_up(stream)
    assert traced == [5]
    for index, image in enumerate(images):
        stream.step(image, intrinsics=INTRINSICS if index % 2 else None, motion=index % 3 > 0)
    assert traced == [5]


def test_frames_that_cannot_be_traced_run_operation_by_operation(
    network: Network, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*args, **kwargs):
        raise RuntimeError("unsupported operation")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    stream, plain = Stream(network, TRACE, METHOD_SOON), Stream(network, method=METHOD_SOON)
    for image in images[:8]:
        assert torch.equal(stream.step(image).depth, plain.step(image).depth)
    assert [record.message for record in caplog.records] == [
        "no frame can be recorded, frames run operation by operation: unsupported operation"
    ]


@needs_onnx
def test_frames_that_cannot_be_exported_are_traced(
    network: Network,
    images: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def export(model, args, f):
        """An exporter without the option `dynamo`, as a future one."""

    monkeypatch.setattr(torch.onnx, "export", export)
    monkeypatch.setenv("RAYMAP3R_HOME", str(tmp_path))  # not the graphs of other tests
    stream, trace = Stream(network, ONNX, METHOD_SOON), Stream(network, TRACE, METHOD_SOON)
    for index, image in enumerate(images[:8]):
        assert torch.equal(*(one.step(image, motion=index != 6).depth for one in (stream, trace)))
    (record,) = caplog.records
    assert record.message.startswith("no frame can be recorded, frames are traced instead: export from PyTorch ")


def test_without_onnx_frames_are_traced(network: Network, monkeypatch: pytest.MonkeyPatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in PACKAGES else find_spec(name))
    assert long_running(network, StreamOptions()) == TRACE
    with pytest.raises(OptionError, match=r"execution is onnx, but onnx and onnxruntime cannot be imported: run `pip"):
        Stream(network, ONNX)


@pytest.mark.parametrize("options", [TRACE, ONNX], ids=("trace", "onnx"))
def test_recordings_on_a_cpu_need_float32(options: StreamOptions):
    with pytest.raises(OptionError, match=f"execution is {options.execution}, which needs precision float32; it is"):
        Stream(load_network("mini"), dataclasses.replace(options, precision="bfloat16"))


@needs_onnx
def test_long_streams_of_small_networks_use_onnx(network: Network):
    assert long_running(network, StreamOptions()) == ONNX
    for options in (StreamOptions(execution="plain"), StreamOptions(precision="bfloat16")):
        assert long_running(network, options) is options
    with torch.device("meta"):
        large = Network(dataclasses.replace(network.config, decoder_width=1536, decoder_depth=12))
    large.first_pose_token = torch.nn.Parameter(torch.zeros(1, 1, 1536, device="cpu"))
    assert long_running(large, StreamOptions()).execution == "auto"
