"""Recorded frames, as far as they can be tested without a GPU."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent))
from batching_tools import Rerun

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import Network, load_network
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.streaming import METHOD, Stream, StreamOptions, engine
from raymap3r_ros.streaming.batching import warm_up
from raymap3r_ros.streaming.result import Estimate, pack, unpack
from raymap3r_ros.streaming.tensors import tensors_of

METHOD_SOON = dataclasses.replace(METHOD, warmup_frames=2, gate_from_frame=3, router_last_frame=4)


@pytest.fixture(scope="module")
def network():
    return load_network("mini")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)


def recorded_stream(network: Network, options: StreamOptions) -> tuple[Stream, Rerun]:
    capture = Rerun()
    return Stream(network, options, METHOD_SOON, capture=capture), capture


def assert_same(first: Estimate, second: Estimate) -> None:
    for one, other in zip(tensors_of(first), tensors_of(second), strict=True):
        assert torch.equal(one, other)


def test_a_recorded_frame_gives_the_same_results(network: Network, images: np.ndarray):
    """Starts, resets, with and without motion and intrinsics: the same numbers, and results are not overwritten."""
    options = StreamOptions(reset_interval=9)
    plain = Stream(network, options, METHOD_SOON)
    stream, capture = recorded_stream(network, options)
    intrinsics = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    arguments = [{"motion": index % 4 != 3, "intrinsics": intrinsics if index > 11 else None} for index in range(16)]
    kept = [stream.step(image, **given) for image, given in zip(images, arguments, strict=True)]
    # With and without motion, each with and without intrinsics.
    assert capture.recorded == 5
    for image, given, result in zip(images, arguments, kept, strict=True):
        expected = plain.step(image, **given)
        assert_same(result, expected)
        assert (result.frame, result.segment, result.reset) == (expected.frame, expected.segment, expected.reset)


def test_a_snapshot_does_not_share_the_recording(network: Network, images: np.ndarray):
    stream, _ = recorded_stream(network, StreamOptions())
    for image in images[:8]:
        stream.step(image)
    snapshot = stream.snapshot()
    first = [stream.step(image) for image in images[8:12]]
    stream.restore(snapshot)
    for image, expected in zip(images[8:12], first, strict=True):
        assert_same(stream.step(image), expected)


def test_frames_that_cannot_be_recorded_run_operation_by_operation(
    network: Network, images: np.ndarray, caplog: pytest.LogCaptureFixture
):
    def refuse(body):
        raise RuntimeError("operation not permitted when stream is capturing")

    stream, plain = Stream(network, method=METHOD_SOON, capture=refuse), Stream(network, method=METHOD_SOON)
    for image in images[:8]:
        assert_same(stream.step(image), plain.step(image))
    assert [record.message for record in caplog.records] == [
        "no frame can be recorded, frames run operation by operation: operation not permitted when stream is capturing"
    ]


def test_only_a_few_recordings_are_kept(network: Network, images: np.ndarray):
    stream, capture = recorded_stream(network, StreamOptions())
    for image in images[:6]:
        stream.step(image)

    def step(strength: int) -> None:
        mask = dataclasses.replace(stream.options.mask, high=float(strength))
        stream.options = dataclasses.replace(stream.options, mask=mask)
        stream.step(images[7])

    for strength in range(3, 17):
        step(strength)
    assert capture.recorded == 15
    for strength in range(4, 17):  # the last thirteen are kept
        step(strength)
    assert capture.recorded == 15
    step(3)
    assert capture.recorded == 16


@pytest.mark.parametrize("ray_interval", (1, 3))
def test_after_the_warm_up_nothing_is_left_to_record(network: Network, images: np.ndarray, ray_interval: int):
    """All kinds of frames: with and without camera_info and subscribers, in any order."""
    stream, capture = recorded_stream(network, StreamOptions(ray_interval=ray_interval))
    warm_up(stream)
    assert stream.snapshot() is None  # the first image starts a new world
    recorded = capture.recorded
    assert recorded == (7 if ray_interval > 1 else 5)
    intrinsics = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    rng = np.random.default_rng(1)
    for index in range(METHOD_SOON.router_last_frame + 30):
        given = intrinsics if rng.integers(2) else None
        stream.step(images[index % len(images)], intrinsics=given, motion=bool(rng.integers(2)))
    assert capture.recorded == recorded


class HostCopies(TorchDispatchMode):
    """Lists every operation on host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        every = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        if any(tensor.device.type == "cpu" for tensor in every):
            self.found.append(str(function))
        return result


@pytest.fixture(scope="module")
def valueless_network():
    config = dataclasses.replace(PRESETS["mini"], encoder_depth=1, decoder_depth=2)
    with torch.device("meta"):
        return Network(config).eval().requires_grad_(False)


@pytest.mark.parametrize("rule", ["raymap3r", "motion_filter", "ttsa3r"])  # together they cover all operations
def test_no_frame_synchronises_with_the_host(rule: str, valueless_network: Network, monkeypatch: pytest.MonkeyPatch):
    """Tensors on the meta device have no values: reading one on the host fails. Copies are listed."""
    router = "adaptive" if rule == "raymap3r" else "off"
    stream = Stream(valueless_network, StreamOptions(update_rule=rule, router=router))
    with torch.device("meta"):
        pixels = torch.empty(2, 48, 64, 3, dtype=torch.uint8)
        intrinsics, poses = torch.empty(2, 3, 3), torch.empty(2, 4, 4)
    with torch.inference_mode():
        state = engine.initial_state(valueless_network, stream.options, METHOD, 2, (48, 64), (48, 64), "start")
        state = dataclasses.replace(state, frame=150)
        # Without and with a reset, and with known poses.
        kinds = ((150, None, None), (200, intrinsics, None), (150, None, poses), (200, intrinsics, poses))
        for frame, given, pose in kinds:
            plan = stream.plan(frame)
            engine.advance(valueless_network, plan, (pixels, given, pose), state)  # fills cached tables
            with monkeypatch.context() as forbidden, HostCopies() as watch:
                for where, name in (
                    (torch, "tensor"), (torch, "as_tensor"), (torch, "from_numpy"), (torch.Tensor, "new_tensor")
                ):  # fmt: skip
                    forbidden.setattr(where, name, lambda *_, name=name, **__: pytest.fail(f"{name} in a frame"))
                estimate, after = engine.advance(valueless_network, plan, (pixels, given, pose), state)
            assert watch.found == []
            assert estimate.depth.shape == (2, 48, 64) and after.state.shape == state.state.shape


def test_synchronisation_with_the_host_is_detected():
    values = torch.empty(3, device="meta")
    with HostCopies() as watch:
        torch.ones(3).to("meta")
    assert watch.found
    with pytest.raises((RuntimeError, NotImplementedError)):
        values[0].item()


def test_a_graph_needs_a_gpu(network: Network):
    with pytest.raises(OptionError, match="needs a GPU"):
        Stream(network, StreamOptions(execution="graph"))


def test_packing_keeps_every_bit():
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(6, 6, generator=generator)
    given = [
        torch.tensor(True),
        torch.rand(3, 4, 5, generator=generator),
        torch.arange(7),
        whole > 0.5,
        torch.randint(0, 255, (5, 3), dtype=torch.uint8, generator=generator),
        whole.half(),
        whole[::2, ::3],
    ]
    arrays = unpack(pack(given).numpy(), given)
    for tensor, array in zip(given, arrays, strict=True):
        assert array.dtype == tensor.numpy().dtype and np.array_equal(array, tensor.numpy())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_in_lower_precision_equal_autocast(precision: str, images: np.ndarray):
    options = StreamOptions(precision=precision)
    lowered = load_network("mini", precision=precision)
    assert lowered.decoder.image_blocks[0].mlp.fc1.weight.dtype == getattr(torch, precision)
    assert lowered.self_head.conv1.weight.dtype == torch.float32
    first, second = Stream(lowered, options), Stream(load_network("mini"), options)
    for image in images[:8]:
        assert_same(first.step(image), second.step(image))
    with pytest.raises(OptionError, match="weights are"):
        Stream(lowered, StreamOptions())
