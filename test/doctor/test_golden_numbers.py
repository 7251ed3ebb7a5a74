"""The golden numbers that come with the package."""

import itertools

import numpy as np
import pytest
import torch

from raymap3r_ros.doctor import golden
from raymap3r_ros.doctor.comparison import error_of, largest_difference
from raymap3r_ros.streaming import RULES


@pytest.fixture(scope="module")
def shipped():
    return golden.read_golden()


def test_the_file_is_small_and_has_every_rule(shipped):
    assert golden.FILE.stat().st_size <= 300_000
    assert {name.partition("/")[0] for name in shipped} == {*RULES, "published", "weights"}


def test_the_code_that_is_compared_with_the_public_code_computes_them(shipped):
    """benchmarks/check_golden.py, which test_golden.py runs, compares the same network and streams."""
    found = golden.golden_numbers(golden.golden_network())
    difference = largest_difference(found, {n: v for n, v in shipped.items() if n != "weights"}, "float32")
    assert difference.error < 2e-5, difference
    assert found.keys() == shipped.keys() - {"weights"}


@pytest.mark.parametrize("rule", ["cut3r", "ttt3r"])
def test_the_formulas_of_the_public_code_give_them(rule, shipped, benchmark_script):
    """Written out in benchmarks/naive.py, which has neither ray branch nor smoothing for these rules."""
    stream = benchmark_script("naive").NaiveStream(golden.golden_network(), rule, method=golden.SOON)
    part = np.s_[golden.STEP // 2 :: golden.STEP, golden.STEP // 2 :: golden.STEP]
    for index, image in enumerate(golden.golden_images()[: golden.RESET + 1]):
        result = stream.step(image)
        for name, values in (
            ("depth", result.depth[part]),
            ("confidence", result.confidence[part]),
            ("rotation", result.pose[:3, :3]),
        ):
            assert error_of(values, shipped[f"{rule}/{name}"][index]) < 1e-5, (index, name)


def test_every_value_depends_on_what_it_stands_for(shipped):
    """A constant could not fail: values differ between frames, rules and places, and motion is found."""
    frames = shipped["raymap3r/depth"]
    assert all(error_of(one, other) > 1e-2 for one, other in itertools.pairwise(frames))
    assert error_of(shipped["raymap3r/depth"], shipped["cut3r/depth"]) > 1e-3
    assert shipped["raymap3r/staticness"][-1].std() > 0.05
    assert 0.05 < shipped["raymap3r/gate"][-1].min() < shipped["raymap3r/gate"][-1].max() < 0.95
    assert shipped["raymap3r/scale"][-1] != 1 and shipped["raymap3r/scale"][-2] == 1  # a reset with alignment
    gates = [shipped[f"{rule}/gate"] for rule in RULES]
    pairs = [(one, other) for one in gates for other in gates if one is not other]
    assert min(error_of(one, other) for one, other in pairs) > 1e-3


def test_weights_are_the_same_whatever_torch_does(shipped):
    torch.manual_seed(1)
    first = golden.weights_hash(golden.golden_weights())
    np.random.seed(2)
    golden.golden_weights.cache_clear()
    assert first == golden.weights_hash(golden.golden_weights()) == str(shipped["weights"])
