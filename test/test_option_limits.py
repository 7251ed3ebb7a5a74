"""Every number that an option's help states as a limit is accepted, and the next one beyond it is not."""

import argparse
import dataclasses
import math
import re

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.clients.bag import ReplayOptions
from raymap3r_ros.commands.arguments import add_options
from raymap3r_ros.errors import OptionError
from raymap3r_ros.node.node_options import NodeOptions
from raymap3r_ros.offline import CloudOptions
from raymap3r_ros.options import build_options, option_fields
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.training import TrainOptions

# Values of other options at which the limits of an option are allowed, as its help states.
OTHERS = {
    "mask.low": {"mask.high": 1000.0},
    "mask.high": {"mask.low": 0.0},
    "occupancy.min_height": {"occupancy.max_height": 100.0},
    "occupancy.max_height": {"occupancy.min_height": 0.0},
    "shortest": {"longest": 256, "frames": 256},
    "longest": {"shortest": 2, "frames": 256},
    "frames": {"shortest": 2, "longest": 2},
}
NOT_REACHED = {("occupancy.min_height", 100.0): "less than max_height", ("occupancy.max_height", 0.0): "more than min"}


def stated(kind):
    """Name, type, help, and stated limits (0 or None, low, high) of all options with limits, from --help."""
    parser = argparse.ArgumentParser()
    add_options(parser, kind)
    for action in parser._actions:
        if found := re.search(r"; (?:(\S+), or )?(\S+) to (\S+)\)$", action.help):
            number = type(action.default)
            zero, low, high = (text and number(text) for text in found.groups())
            yield pytest.param(kind, action.dest, number, action.help, zero, low, high, id=action.dest)


def accepts(kind, name, value):
    values = {**OTHERS.get(name, {}), name: value}
    try:
        build_options(kind, lambda name, item: values.get(name, item.default))
    except OptionError as error:
        assert (name, value) in NOT_REACHED or str(error).startswith(f"{name} is {value!r}")
        return False
    return True


KINDS = (NodeOptions, StreamOptions, ReplayOptions, CloudOptions, TrainOptions)


@pytest.mark.parametrize(
    ("kind", "name", "number", "text", "zero", "low", "high"), [case for kind in KINDS for case in stated(kind)]
)
def test_the_stated_limits_are_those_that_count(kind, name, number, text, zero, low, high):
    step = 1 if number is int else 0
    below, above = (low - 1, high + 1) if step else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
    for limit in (low, high):
        if reason := NOT_REACHED.get((name, limit)):
            assert reason in text and not accepts(kind, name, limit)
        else:
            assert accepts(kind, name, limit)
    assert not accepts(kind, name, below) and not accepts(kind, name, above)
    assert zero is None or (accepts(kind, name, zero) and not accepts(kind, name, number(-1)))
    assert number is int or not accepts(kind, name, math.nan)


def test_every_number_states_its_limits():
    for kind in KINDS:
        limited = {case.values[1] for case in stated(kind)}
        numbers = {name for name, item in option_fields(kind) if type(item.default) in (int, float)}
        assert numbers == limited
        assert dataclasses.is_dataclass(kind)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("evaluate simulated --sequences 0", "--sequences is 0; allowed: 1 and more"),
        ("evaluate simulated --sequences -1", "--sequences is -1; allowed: 1 and more"),
        ("evaluate synthetic --sequences 0", "--sequences is 0; allowed: 1 and more"),
        ("evaluate synthetic --frames -1", "--frames is -1; allowed: 0 and more"),
        ("evaluate synthetic --batch 0", "--batch is 0; allowed: 1 and more"),
        ("evaluate synthetic --judged-frames 0", "--judged-frames is 0; allowed: 1 and more"),
        ("evaluate covariance --frames -1", "--frames is -1; allowed: 0 and more"),
        ("evaluate covariance --sequences 1", "--sequences is 1; allowed: 2 and more"),
        ("evaluate plausibility --frames 0", "--frames is 0; allowed: 40 and more"),
        ("train mini --out X --seconds -1", "--seconds is -1.0; allowed: above 0"),
        ("train mini --out X --seconds nan", "--seconds is nan; allowed: above 0"),
        ("render static --out X --frames 0", "--frames is 0; allowed: 1"),
        ("render static --out X --sequences 0", "--sequences is 0; allowed range: 1 to 24"),
        ("run . --out X --stride 0", "--stride is 0; allowed: 1 and more"),
        ("run . --out X --rate nan", "--rate is nan; allowed: 1e-06 to 1e+06"),
        ("run . --out X --max-frames 0", "--max-frames is 0; allowed: 1 and more"),
        ("run . --out X --max-gap 0", "--max-gap is 0.0; allowed: above 0 seconds"),
    ],
)
def test_numbers_that_are_not_options_of_the_method_are_refused_too(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.png").write_bytes(cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1])
    assert cli.main(arguments.split()) == 2
    assert f"raymap3r: error: {text}" in capsys.readouterr().err
    assert not (tmp_path / "X").exists()
