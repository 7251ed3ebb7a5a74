"""Several cameras on one network: the results equal those of separate streams."""

import dataclasses
import gc
import json
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import wall
from batching_tools import LIMIT, METHOD_SOON, STEADY, at_once, cameras, frames, steady_cameras, stepping

from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.network import Network, save_network, untrained_network
from raymap3r_ros.streaming import StepResult, Stream, StreamOptions
from raymap3r_ros.streaming.batching import BatchScheduler

TENSORS = [field.name for field in dataclasses.fields(StepResult) if field.type in ("Tensor", "Tensor | None")]


def assert_close(first: StepResult, second: StepResult, tolerance: float = 1e-5) -> None:
    for name in TENSORS:
        # These two divide by the spread of a few values, which amplifies rounding errors.
        allowed = 10 * tolerance if name in ("gate", "static_weight") else tolerance
        torch.testing.assert_close(
            getattr(first, name), getattr(second, name), atol=allowed, rtol=allowed, equal_nan=True
        )
    same = ("frame", "segment", "stamp", "motion", "reset", "reset_reason", "rule")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]


# --- the same results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        StreamOptions(reset_interval=6, router="adaptive"),
        StreamOptions(reset_interval=6, update_rule="filt3r"),
        StreamOptions(reset_interval=6, update_rule="ttsa3r", smoothing="published"),
    ],
    ids=lambda options: options.update_rule,
)
def test_each_camera_has_the_results_of_a_separate_stream(
    network: Network, batches: list[int], options: StreamOptions
):
    """With starts and resets at different frames, different image sizes, and intrinsics that start later."""
    images = [frames(14, 1), frames(14, 2), frames(14, 3, (32, 24)), frames(14, 4)]
    starts = (0, 3, 1, 0)
    intrinsics = np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])

    def arguments(camera: int, index: int) -> dict[str, Any]:
        given = intrinsics if camera == 3 and index > 8 else None
        return {"stamp": index / 10, "intrinsics": given, "motion": index % 5 != 4}

    alone = cameras(network, 4, options)
    expected = [
        [stream.step(image, **arguments(camera, index)) for index, image in enumerate(images[camera])]
        for camera, stream in enumerate(alone)
    ]
    batches.clear()
    scheduler, streams = BatchScheduler(network), cameras(network, 4, options)
    for index in range(17):
        here = [camera for camera in range(4) if 0 <= index - starts[camera] < 14]
        results = at_once(
            scheduler,
            *(
                stepping(scheduler, streams[camera], images[camera][index - starts[camera]], **arguments(camera, at))
                for camera in here
                for at in [index - starts[camera]]
            ),
        )
        for camera, result in zip(here, results, strict=True):
            assert_close(result.result(), expected[camera][index - starts[camera]])
    assert sum(batches) == 4 * 14 and {1, 2} <= set(batches)


def test_only_frames_with_equal_plan_and_size_share_a_batch(network: Network, batches: list[int]):
    scheduler = BatchScheduler(network, patience=0)
    streams = steady_cameras(scheduler, 7)
    streams[2].options = StreamOptions(update_rule="cut3r")  # another plan
    streams[3].reset()  # not steady
    images = [frames(1, seed, (32, 24) if seed == 4 else (24, 32))[0] for seed in range(7)]  # one has another size
    for image in frames(STEADY, 4, (32, 24)):
        scheduler.step(streams[4], image)
    how = [{}, {}, {}, {}, {}, {"motion": False}, {"intrinsics": np.diag((30.0, 30.0, 1.0))}]
    batches.clear()
    calls = [stepping(scheduler, *call, **kind) for *call, kind in zip(streams, images, how, strict=True)]
    for result in at_once(scheduler, *calls):
        result.result()
    assert batches == [2, 1, 1, 1, 1, 1]


def test_cameras_with_raw_images_of_different_sizes_keep_their_worlds_in_one_batch(
    network: Network, batches: list[int]
):
    images = [frames(STEADY + 3, seed, size) for seed, size in enumerate([(24, 32), (48, 64)])]
    expected = [[stream.step(image) for image in images[camera]] for camera, stream in enumerate(cameras(network, 2))]
    scheduler, streams = BatchScheduler(network), cameras(network, 2)
    batches.clear()
    for index in range(STEADY + 3):
        calls = [stepping(scheduler, stream, own[index]) for stream, own in zip(streams, images, strict=True)]
        for camera, result in enumerate(at_once(scheduler, *calls)):
            assert_close(result.result(), expected[camera][index])
    assert batches == [1] * 2 * STEADY + [2] * 3


def test_unsynchronised_cameras_have_the_results_of_separate_streams(network: Network, batches: list[int]):
    count, length = 3, 16
    images = [frames(length, seed) for seed in range(count)]
    expected = [
        [stream.step(image) for image in images[camera]] for camera, stream in enumerate(cameras(network, count))
    ]
    batches.clear()
    scheduler, streams, barrier = BatchScheduler(network), cameras(network, count), threading.Barrier(count)

    def run(camera: int) -> list[StepResult]:
        barrier.wait(LIMIT)
        return [scheduler.step(streams[camera], image) for image in images[camera]]

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(run, range(count)))
    for camera_results, camera_expected in zip(results, expected, strict=True):
        for one, other in zip(camera_results, camera_expected, strict=True):
            # The batches differ between runs, and therefore the rounding errors too.
            assert_close(one, other, tolerance=1e-4)
    assert sum(batches) == count * length and max(batches) > 1


class Rerun:
    """Stands in for the recording of a CUDA graph: runs the function again, into the same memory."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, body: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        outputs = body()

        def replay() -> None:
            again = vars(body())
            for name, tensor in vars(outputs).items():
                if tensor is not None:
                    tensor.copy_(again[name])

        return replay, outputs


def test_recorded_batches_do_not_overwrite_results_and_states(network: Network):
    """Batches of varying cameras: the graph of one batch must not overwrite the results of another."""
    images = [frames(12, seed) for seed in range(3)]
    expected = [[stream.step(image) for image in images[camera]] for camera, stream in enumerate(cameras(network, 3))]
    capture = Rerun()
    scheduler, streams = BatchScheduler(network, capture=capture), cameras(network, 3)
    groups = [(0, 1, 2), (0,), (1,), (2,), (1, 2), (0,), (0, 2), (1,)]
    kept: list[list[StepResult]] = [[], [], []]
    while min(map(len, kept)) < 12:
        for group in groups:
            calls = [stepping(scheduler, streams[camera], images[camera][len(kept[camera]) % 12]) for camera in group]
            for camera, result in zip(group, at_once(scheduler, *calls), strict=True):
                kept[camera].append(result.result())
    for camera_results, camera_expected in zip(kept, expected, strict=True):
        for one, other in zip(camera_results, camera_expected, strict=False):
            assert_close(one, other)
    assert capture.recorded == 3  # of one, two and three cameras


def test_warm_up_records_every_batch_and_changes_nothing(network: Network, batches: list[int]):
    capture = Rerun()
    scheduler = BatchScheduler(network, capture=capture)
    (stream,) = steady_cameras(scheduler, 1)
    before = stream.snapshot()
    batches.clear()
    scheduler.warm_up(stream, 4, frames(1, 0)[0])
    assert capture.recorded == 3 and set(batches) == {2, 3, 4}
    after = stream.snapshot()
    assert after.frame == before.frame and torch.equal(after.state, before.state)


# --- errors of one camera do not reach the others -----------------------------------------------------------------


class WallOfMany(wall.WallNetwork):
    """Returns NaN for single images of a batch."""

    def self_points(self, decoded, size):
        points, confidence = super().self_points(decoded, size)
        lost = decoded.levels[0][:, 0, 0] == 64
        return torch.where(lost[:, None, None, None], torch.nan, points), confidence


def test_a_frame_with_nan_affects_neither_the_other_camera_nor_the_next_frame():
    network = WallOfMany()
    scheduler = BatchScheduler(network)
    streams = [Stream(network, StreamOptions(reset_interval=10), METHOD_SOON) for _ in range(2)]
    for frame in range(30):
        shown = frame, 40 + frame
        calls = [stepping(scheduler, stream, wall.image(at)) for stream, at in zip(streams, shown, strict=True)]
        for first, at, future in zip((0, 40), shown, at_once(scheduler, *calls), strict=True):
            result = future.result()
            assert result.healthy.item() == (at != 64)
            if at != 64:
                truth = torch.from_numpy(wall.position(at) - wall.position(first))
                torch.testing.assert_close(result.pose_raw[:3, 3], truth, atol=3e-4, rtol=0)


def test_only_the_caller_of_an_unusable_image_gets_the_error(network: Network):
    scheduler = BatchScheduler(network, patience=0)
    streams = steady_cameras(scheduler, 2)
    alone = Stream(network, method=METHOD_SOON)
    alone.restore(streams[1].snapshot())
    before = streams[0].snapshot()
    good, image = frames(2, 9)
    refused, result = at_once(
        scheduler, stepping(scheduler, streams[0], good.astype(np.float32)), stepping(scheduler, streams[1], image),
        waiting=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="RGB uint8"):
        refused.result()
    assert_close(result.result(), alone.step(image))
    assert streams[0].snapshot().frame == before.frame
    assert scheduler.step(streams[0], good).frame == before.frame


def test_a_batch_without_memory_is_run_one_by_one_and_not_tried_again(
    network: Network, batches: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    scheduler = BatchScheduler(network, patience=0)
    streams, alone = steady_cameras(scheduler, 4), cameras(network, 4)
    for one, other in zip(alone, streams, strict=True):
        one.restore(other.snapshot())
    encode = network.encode_image

    def encode_two(planes: Tensor) -> Tensor:
        encoded = encode(planes)
        if len(planes) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encoded

    monkeypatch.setattr(network, "encode_image", encode_two)
    batches.clear()
    for index in range(2):
        images = [frames(1, 10 * index + seed)[0] for seed in range(4)]
        calls = [stepping(scheduler, stream, image) for stream, image in zip(streams, images, strict=True)]
        results = [future.result() for future in at_once(scheduler, *calls)]
        for stream, image, result in zip(alone, images, results, strict=True):
            assert_close(result, stream.step(image))
    assert batches == [4, 1, 1, 1, 1] + 4 * [1] + [2, 2] + 4 * [1]  # between them, separate streams
    assert [record.getMessage() for record in caplog.records] == [
        "4 cameras could not run as one batch and run one by one: OutOfMemoryError: CUDA out of memory"
    ]


def test_an_error_reaches_its_caller_and_keeps_no_tensors_alive(network: Network, monkeypatch: pytest.MonkeyPatch):
    scheduler = BatchScheduler(network, patience=0)
    streams = steady_cameras(scheduler, 2)
    alone = Stream(network, method=METHOD_SOON)
    alone.restore(streams[1].snapshot())
    image = frames(1, 9)[0]
    encode, seen = network.encode_image, []

    def encode_bright(planes: Tensor) -> Tensor:
        if (planes == -1).flatten(1).all(1).any():
            seen.append(weakref.ref(planes))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode(planes)

    monkeypatch.setattr(network, "encode_image", encode_bright)
    gc.disable()
    try:
        lost, kept = at_once(
            scheduler, stepping(scheduler, streams[0], np.zeros_like(image)), stepping(scheduler, streams[1], image)
        )
        assert_close(kept.result(), alone.step(image))
        with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
            lost.result()
        del lost, caught
        assert len(seen) == 2 and all(tensor() is None for tensor in seen)  # in the batch and separately
    finally:
        gc.enable()
    assert scheduler.step(streams[0], image).frame == STEADY


def test_a_stopped_thread_does_not_stop_the_others(network: Network, monkeypatch: pytest.MonkeyPatch):
    scheduler = BatchScheduler(network, patience=0)
    streams = cameras(network, 3)
    encode = network.encode_image

    def encode_once(planes: Tensor) -> Tensor:
        monkeypatch.setattr(network, "encode_image", encode)
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "encode_image", encode_once)
    images = frames(3, 0)
    calls = [stepping(scheduler, stream, image) for stream, image in zip(streams, images, strict=True)]
    errors = [future.exception(LIMIT) for future in at_once(scheduler, *calls)]
    # The leading thread was processing the first frame: first frames of streams run one by one.
    assert sorted(type(error) for error in errors if error is not None) == [KeyboardInterrupt]
    assert [scheduler.step(stream, image).frame for stream, image in zip(streams, images, strict=True)] == [
        0 if error is not None else 1 for error in errors
    ]


def test_a_stream_with_another_network_is_refused(network: Network):
    other = Stream(untrained_network(network.config).eval(), method=METHOD_SOON)
    with pytest.raises(OptionError, match="another network; create it with the network of this scheduler"):
        BatchScheduler(network).step(other, frames(1, 0)[0])


# --- the benchmark ------------------------------------------------------------------------------------------------


def test_the_benchmark_runs(
    network: Network, benchmark_script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    save_network(network, tmp_path / "tiny.safetensors")
    target = tmp_path / "cameras.json"
    arguments = ["--checkpoint", tmp_path / "tiny.safetensors", "--device", "cpu", "--cameras", 1, 2]
    arguments += ["--frames", 3, "--warmup", 7, "--json", target]
    assert benchmark_script("cameras").main([str(argument) for argument in arguments]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [(row["cameras"], row["mode"]) for row in rows] == [
        (cameras, mode) for cameras in (1, 2) for mode in ("apart", "together")
    ]
    for apart, shared in zip(rows[::2], rows[1::2], strict=True):
        assert apart["ratio_to_apart"] == 1
        assert shared["ratio_to_apart"] == pytest.approx(shared["frames_per_second"] / apart["frames_per_second"])
    assert "x apart" in capsys.readouterr().out
