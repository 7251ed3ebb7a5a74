"""A new update rule is one function with a decorator. Options, command line and tables then include it."""

from collections.abc import Iterator

import pytest
import torch

from raymap3r_ros import cli
from raymap3r_ros.errors import OptionError
from raymap3r_ros.evaluation.plan import rule_variants
from raymap3r_ros.network import load_network
from raymap3r_ros.options import option_fields
from raymap3r_ros.streaming import RULES, Stream, StreamOptions
from raymap3r_ros.streaming.gates import update_rule


@pytest.fixture
def careful() -> Iterator[str]:
    @update_rule("staticness", "change")
    def careful(evidence, method):
        return 0.5 * evidence.staticness * torch.sigmoid(evidence.change)

    yield "careful"
    del RULES["careful"]


@pytest.fixture(scope="module")
def network():
    return load_network("mini")


def test_a_new_rule_runs_in_a_stream(careful: str, network):
    stream = Stream(network, StreamOptions(update_rule=careful, reset_interval=8))
    images = torch.randint(0, 256, (12, 48, 64, 3), dtype=torch.uint8)
    results = [stream.step(image, motion=False) for image in images]
    assert all(result.rule == careful and result.healthy for result in results)
    assert (results[0].gate == 1).all()
    # Its gate is below one half, and follows the staticness from frame 6.
    assert all((result.gate < 0.5).all() for result in results[1:])
    assert results[6].gate.max() < results[5].gate.max()


def test_a_new_rule_is_in_options_command_line_and_tables(careful: str, capsys: pytest.CaptureFixture):
    choices = dict(option_fields(StreamOptions))["update_rule"].metadata["choices"]
    # The position of a rule is public, as `rule_index` of results: a new rule comes after the others.
    assert list(choices)[:3] == ["raymap3r", "ttt3r", "cut3r"] and list(choices)[-1] == careful
    assert [variant.name for variant in rule_variants(StreamOptions())] == list(choices)
    for command in (["run"], ["evaluate", "synthetic"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        assert careful in capsys.readouterr().out
    assert cli.main(["run", "no such file", "--out", "unused", "--rule", careful]) == cli.FAILED
    assert "no such file" in capsys.readouterr().err  # not the rule


def test_an_unregistered_rule_is_refused():
    with pytest.raises(OptionError, match="update_rule is 'careful'; allowed values: raymap3r"):
        StreamOptions(update_rule="careful")


def test_wrong_registrations_are_refused():
    with pytest.raises(ValueError, match="update rule curious needs colour; allowed: attention, staticness"):

        @update_rule("colour")
        def curious(evidence, method):
            return evidence.staticness

    with pytest.raises(ValueError, match="update rule cut3r is already registered"):

        @update_rule()
        def cut3r(evidence, method):
            return evidence.staticness

    assert "curious" not in RULES
