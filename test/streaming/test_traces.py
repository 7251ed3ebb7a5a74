"""Frames recorded as TorchScript graphs."""

import dataclasses
import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from batching_tools import METHOD_SOON, at_once

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network, load_network
from raymap3r_ros.streaming import RULES, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler, warm_up
from raymap3r_ros.streaming.recordings import long_running
from raymap3r_ros.streaming.result import StepResult
from raymap3r_ros.streaming.tensors import tensors_of

INTRINSICS = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
TRACE = StreamOptions(execution="trace")


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
    assert traced == [4]  # with and without motion, each with and without intrinsics


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


def test_a_snapshot_continues_exactly(network: Network, images: list[np.ndarray]):
    stream = Stream(network, TRACE, METHOD_SOON)
    for image in images[:8]:
        stream.step(image)
    snapshot = stream.snapshot()
    first = [stream.step(image) for image in images[8:]]
    copies = [[tensor.clone() for tensor in tensors_of(result)] for result in first]
    other = Stream(network, TRACE, METHOD_SOON)
    other.restore(snapshot)
    stream.restore(snapshot)
    for image, expected, copy in zip(images[8:], first, copies, strict=True):
        # Bit by bit, from the same traces and from others, and a result is not overwritten by the next frame.
        for again in (stream.step(image), other.step(image), expected):
            assert all(torch.equal(*pair) for pair in zip(tensors_of(again), copy, strict=True))


def test_traced_batches_give_the_results_of_separate_streams(network: Network, images: list[np.ndarray]):
    scheduler = BatchScheduler(network)
    streams = [Stream(network, TRACE, METHOD_SOON) for _ in range(2)]
    alone = [Stream(network, TRACE, METHOD_SOON) for _ in range(2)]
    for index in range(10):
        pair = images[index], images[-1 - index]
        calls = [partial(scheduler.step, stream, image) for stream, image in zip(streams, pair, strict=True)]
        for future, stream, image in zip(at_once(scheduler, *calls), alone, pair, strict=True):
            assert_close(future.result(), stream.step(image))


def test_after_the_warm_up_nothing_is_left_to_trace(network: Network, images: list[np.ndarray], traced: list):
    stream = Stream(network, TRACE, METHOD_SOON)
    warm_up(stream)
    assert traced == [4]
    for index, image in enumerate(images):
        stream.step(image, intrinsics=INTRINSICS if index % 2 else None, motion=index % 3 > 0)
    assert traced == [4]


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


def test_a_trace_needs_float32():
    with pytest.raises(OptionError, match="execution is trace, which needs precision float32; it is bfloat16"):
        Stream(load_network("mini"), StreamOptions(execution="trace", precision="bfloat16"))


def test_long_streams_of_small_networks_are_traced(network: Network):
    assert long_running(network, StreamOptions()) == TRACE
    for options in (StreamOptions(execution="plain"), StreamOptions(precision="bfloat16")):
        assert long_running(network, options) is options
    with torch.device("meta"):
        large = Network(dataclasses.replace(network.config, decoder_width=1536, decoder_depth=12))
    large.first_pose_token = torch.nn.Parameter(torch.zeros(1, 1, 1536, device="cpu"))
    assert long_running(large, StreamOptions()).execution == "auto"
