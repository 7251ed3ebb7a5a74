"""Limits of the plausibility check: how they are set, the table, and the command."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.commands import evaluate
from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.plausibility import MeasuredSequence, fit_limits, report, split
from raymap3r_ros.network import load_network, shipped_weights
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.streaming.plausibility import (
    METADATA_KEY,
    MIN_FRAMES,
    WINDOW,
    PlausibilityCheck,
    PlausibilityLimits,
)
from raymap3r_ros.synthetic import SUITES


def sequence(group, level, length=40):
    noise = np.random.default_rng(round(100 * level)).normal(0, 0.01, (length, 3))
    return MeasuredSequence(group, np.array([level, 1.0, 0.5 / level]) + noise)


def test_windows_are_the_means_that_the_check_uses():
    measured = sequence("a", 2.0)
    judged = []
    limits = SimpleNamespace(exceeded=lambda means: judged.append(means))
    check = PlausibilityCheck(limits)
    for values in measured.values:
        check.add(values)
    assert len(measured.windows) == 40 - MIN_FRAMES + 1
    assert np.allclose(measured.windows, judged)
    assert np.allclose(judged[-1], measured.values[-WINDOW:].mean(axis=0))
    assert sequence("a", 2.0, MIN_FRAMES - 1).windows.shape == (0, 3)


def test_limits_lie_beyond_the_worst_window():
    sequences = [sequence("a", level) for level in (1.0, 2.0, 2.0, 2.0)]
    limits = fit_limits(sequences)
    assert limits.confidence == pytest.approx(1.0 - 0.1 * 1.0, abs=0.05)
    assert limits.disagreement == pytest.approx(0.5 + 0.1 * (0.5 - 0.25), abs=0.03)
    assert limits.ray_confidence == pytest.approx(1.0, abs=0.05)
    assert not any(limits.exceeded(window) for one in sequences for window in one.windows)
    with pytest.raises(InputError, match="use longer ones"):
        fit_limits([sequence("a", 2.0, MIN_FRAMES - 1)])


def test_no_sequence_sets_limits_and_is_evaluated():
    several, alone = [sequence("a", level) for level in (1.0, 1.5, 2.0)], sequence("b", 2.5)
    fitted, evaluated = split([*several, alone])
    assert fitted[:2] == [several[0], several[2]] and evaluated[:1] == [several[1]]
    assert np.array_equal(np.concatenate([fitted[2].values, evaluated[1].values]), alone.values)


def test_the_table_counts_false_alarms_and_hits():
    limits = PlausibilityLimits(1.0, 0.5, 0.5)
    text = report(limits, [sequence("room", 2.0), sequence("room", 0.5)], [sequence("street", 0.2)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[2][:3] == ["room", "yes", "2"] and rows[2][-2:] == ["31 of 62 frames", "1 of 2"]
    assert rows[3][:3] == ["street", "no", "1"] and rows[3][-2:] == ["31 of 31 frames", "1 of 1"]


@pytest.fixture
def clip(tmp_path):
    """A video of noise, which no weights fit."""
    writer = cv2.VideoWriter(str(tmp_path / "noise.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for image in np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8):
        writer.write(image)
    writer.release()
    return tmp_path / "noise.avi"


def command(*arguments):
    return cli.main(["evaluate", "plausibility", "--device", "cpu", "--frames", "40", *map(str, arguments)])


def test_command_prints_the_table_and_writes_the_limits(capsys, monkeypatch, tmp_path, clip):
    monkeypatch.setattr(evaluate, "SUITES", {"static": SUITES["static"]})
    monkeypatch.setattr(evaluate, "WORLDS", ("one_room",))
    plain, written = tmp_path / "plain.safetensors", tmp_path / "written.safetensors"
    copy_with_metadata(shipped_weights()["one_room"], plain, {METADATA_KEY: "{}"})
    assert command("--sequences", 2, "--checkpoint", plain, "--foreign", clip, "--write", written) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[2][:3] == ["one_room static", "yes", "1"]
    assert rows[3][:3] == ["noise.avi", "no", "1"] and rows[3][-2:] == ["10 of 10 frames", "1 of 1"]
    found = PlausibilityLimits.from_manifest(load_network(written).manifest)
    assert json.loads(text[text.index("{") : text.index("}") + 1]) == json.loads(found.to_json())
    assert 0 < found.disagreement < 0.5 < found.confidence


def test_command_refuses_unusable_arguments_before_it_runs(capsys, clip, tmp_path):
    for arguments, text in (
        (["--frames", 39], "--frames is 39; allowed: 40 and more"),
        (["--sequences", 1], "--sequences is 1; allowed: 2 and more"),
        (["--write", tmp_path / "a.pth"], "a.pth; the name of a checkpoint must end in .safetensors"),
        (["--foreign", tmp_path / "missing.mp4"], "missing.mp4: there is no such file"),
    ):
        assert command(*arguments) == 2
        assert text in capsys.readouterr().err
