"""The soak test: detection of problems in synthetic samples, and a short run."""

import dataclasses

import numpy as np
import pytest


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("soak")


@pytest.fixture
def flat(script, rng):
    """100,000 frames without problems: noise, single peaks, growth in the warm-up, and expected growth."""
    samples = []
    for index in range(1000):
        frames = 100 * (index + 1)
        start = 100 * np.exp(-index / 40)
        samples.append(
            script.SoakSample(
                seconds=5.0 * index,
                frames=frames,
                resident_mib=400 - start + rng.normal(0, 4) + 200e-6 * frames + (300 if index % 250 == 7 else 0),
                gpu_mib=2000 + rng.normal(0, 1),
                latency_ms=40 + rng.gamma(2, 5) + 30 * np.sin(index / 60) ** 2 + (500 if index % 100 == 3 else 0),
                dropped=0,
                lost=0,
            )
        )
    return samples


def growing(samples, name, amount):
    """The samples with a field that grows by `amount` over the whole run."""
    span = len(samples) - 1
    return [
        dataclasses.replace(sample, **{name: getattr(sample, name) + amount * index / span})
        for index, sample in enumerate(samples)
    ]


def test_flat_noisy_run_is_clean(script, flat):
    assert script.find_problems(flat) == []
    assert script.find_problems([dataclasses.replace(sample, gpu_mib=float("nan")) for sample in flat]) == []


@pytest.mark.parametrize(
    ("name", "amount", "text"),
    [
        ("resident_mib", 100.0, "resident memory grew by"),  # 1 KiB a frame
        ("gpu_mib", 100.0, "GPU memory grew by"),
        ("latency_ms", 100.0, "latency grew by"),
    ],
)
def test_synthetic_trend_is_found(script, flat, name, amount, text):
    (problem,) = script.find_problems(growing(flat, name, amount))
    assert problem.startswith(text)
    assert script.find_problems(growing(flat, name, -amount)) == []  # shrinking is not a problem
    assert script.find_problems(growing(flat, name, amount / 10)) == []


@pytest.mark.parametrize("name", ["dropped", "lost"])
def test_missing_frames_are_found(script, flat, name):
    flat[-1] = dataclasses.replace(flat[-1], **{name: 3})
    assert script.find_problems(flat) == [f"3 frames were {name}"]


def test_too_few_samples_are_a_problem(script, flat):
    (problem,) = script.find_problems(flat[:5])
    assert "samples after the warm-up are too few" in problem


@pytest.mark.parametrize("vary", ["calibration", "sizes", "frames"])
def test_every_image_differs(script, vary):
    image = np.zeros((120, 160, 3), np.uint8)

    def content(index):
        message, info = script.camera_messages(image, vary, index)
        return message.height, message.width, message.header.frame_id, str(info)

    assert len({content(index) for index in range(1000)}) == 1000
    assert len({script.camera_messages(image, "none", index)[0].header.frame_id for index in range(3)}) == 1


@pytest.mark.parametrize("vary", ["none", "sizes"])
def test_short_soak_of_the_node(script, sized, tmp_path, vary):
    """Three processes over DDS, every output subscribed to; a run of seconds has no meaningful trends."""
    frames = sized(24, 2000)
    args = script._parser().parse_args(
        ["--frames", str(frames), "--interval", "0.2", "--images", "4", "--device", "cpu", "--vary", vary]
    )
    samples, problems = script.soak(args)
    assert problems == []
    assert samples[-1].frames == frames and samples[-1].lost == samples[-1].dropped == 0
    assert [sample.frames for sample in samples] == sorted({sample.frames for sample in samples})
    assert all(50 < sample.resident_mib < 4000 and sample.latency_ms > 0 for sample in samples)
    script.draw(tmp_path / "soak.png", samples)
    assert (tmp_path / "soak.png").stat().st_size > 5000
