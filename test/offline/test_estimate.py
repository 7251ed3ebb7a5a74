"""The estimate of the time of a run with a large network on a CPU."""

import logging

import pytest

from raymap3r_ros.io import open_recording
from raymap3r_ros.network import PRESETS, untrained_network
from raymap3r_ros.offline import estimate, run_recording
from raymap3r_ros.offline.estimate import duration_text, operations, time_estimate
from raymap3r_ros.streaming import StreamOptions

SIZE = 640, 480


@pytest.fixture
def large(monkeypatch):
    """Makes the networks of the tests count as large."""
    monkeypatch.setattr(estimate, "is_small", lambda _: False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (5399, "90 min"), (5400, "90 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds, text):
    assert duration_text(seconds).replace("1 h 30 min", "90 min") == text


def test_without_rays_the_time_is_that_of_the_timed_frame_times_the_frames(network, large):
    text = time_estimate(network, StreamOptions(), SIZE, 100, False, 9.0)
    assert text.startswith("about 15 min for 100 frames on this CPU, 9.00 s a frame; faster with --stride N")
    assert "--ray-interval" not in text


def test_rays_and_size_change_the_time_by_their_operations(network, large):
    options = StreamOptions(image_size=256)
    main, ray = operations(network, options, SIZE)
    small, small_ray = operations(network, StreamOptions(image_size=224), SIZE)
    assert 0 < ray < main and 1.2 < main / small < 2  # 1.31 times as many pixels; attention grows faster
    text = time_estimate(network, options, SIZE, 1000, True, 10.0)
    assert f"about {duration_text(1e4 * (main + ray) / main)} for 1000 frames" in text
    assert f"--size 224 ({duration_text(1e4 * (small + small_ray) / main)})" in text
    assert f"--ray-interval 4 ({duration_text(1e4 * (main + ray / 4) / main)})" in text


def test_the_public_network_has_the_operations_that_its_layers_have():
    network = untrained_network(PRESETS["mini"])  # only the shape of the public one is used
    network.config = PRESETS["cut3r_512_dpt"]
    main, ray = operations(network, StreamOptions(), SIZE)
    # By hand, of the encoder's products of matrices: 24 layers of width 1024 over 32 x 24 tokens.
    tokens = 32 * 24
    encoder = 24 * (24 * tokens * 1024**2 + 4 * tokens**2 * 1024)
    assert 1.5 * encoder < main < 3 * encoder  # decoder and head are about as large
    # docs/performance.md, measured: 0.144 frames/s without the ray branch, 0.090 with it.
    assert (main + ray) / main == pytest.approx(0.144 / 0.090, rel=0.05)


def test_short_runs_and_small_networks_get_no_estimate(network, monkeypatch):
    assert time_estimate(network, StreamOptions(), SIZE, 100, True, 9.0) == ""
    monkeypatch.setattr(estimate, "is_small", lambda _: False)
    assert time_estimate(network, StreamOptions(), SIZE, 10, False, 0.9) == ""
    assert time_estimate(network, StreamOptions(), SIZE, 10, False, 1.1) != ""


@pytest.mark.parametrize(("frames", "count"), [(8, 1), (2, 0)])
def test_a_run_logs_it_once_after_two_frames(images, network, tmp_path, large, monkeypatch, caplog, frames, count):
    monkeypatch.setattr(estimate, "SHORTEST", 1e-9)
    with caplog.at_level(logging.WARNING):
        recording = open_recording(images, max_frames=frames)
        run_recording(recording, network, tmp_path / "out", StreamOptions(image_size=64), progress=False)
    lines = [record.message for record in caplog.records if record.message.startswith("about ")]
    assert len(lines) == count
    if count:
        assert f"for {frames - 2} frames on this CPU" in lines[0]
