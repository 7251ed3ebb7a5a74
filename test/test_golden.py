"""Parity with the public code on golden values of the reference data, and the checker."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raymap3r_ros.streaming.onnx_graphs import missing_packages


@pytest.fixture(scope="module")
def checker(benchmark_script):
    return benchmark_script("check_golden")


def assert_posed_passes(printed: str) -> None:
    """The stream with known poses is compared in full."""
    lines = [line.split() for line in printed.splitlines() if line.startswith("stream_posed ")]
    names = ("ray_map_1", "camera_pose", "pts3d_self", "conf_self", "state_final", "mem_final")
    assert {(line[1], line[-1]) for line in lines} == {(name, "pass") for name in names}


def test_every_comparable_stage_and_stream_agrees(checker, shared: Path, capsys: pytest.CaptureFixture):
    report = checker.check(shared / "golden" / "tiny-dpt")
    printed = capsys.readouterr().out
    assert report.failed == []
    assert report.passed > 500
    for stream in ("a_cut3r", "b_xattn", "c_auto_slow", "c_auto_fast", "d_xattn230", "h_ttt3r", "i_cut3r_orig"):
        assert f"stream_{stream} camera_pose" in printed
    assert_posed_passes(printed)


@pytest.mark.parametrize("execution", ["trace", "onnx"])
def test_the_results_of_recorded_frames_agree(
    execution: str,
    checker,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
):
    """One stream; `benchmarks/check_golden.py --execution` checks all of them, which takes minutes."""
    if execution == "onnx" and missing_packages():
        pytest.skip(f"{' and '.join(missing_packages())} cannot be imported")
    golden, stream = shared / "golden", "stream_c_auto_slow"
    case = tmp_path / "golden" / "tiny-dpt"
    case.mkdir(parents=True)
    shutil.copy(golden / "weightgen.py", case.parent)
    for path in (golden / "tiny-dpt").iterdir():
        if path.stem == stream or not path.name.startswith(("stage_", "stream_")):
            (case / path.name).symlink_to(path)
    if execution == "trace":
        (tmp_path / "golden_posed").symlink_to(shared / "golden_posed")
    report = checker.check(case, execution)
    assert report.failed == []
    printed = capsys.readouterr().out
    assert f"{stream} camera_pose" in printed
    if execution == "trace":
        assert_posed_passes(printed)
    assert not caplog.records  # frames that cannot be recorded would run operation by operation


def test_a_wrong_array_and_an_unknown_one_fail(checker, shared: Path, tmp_path: Path):
    case = shutil.copytree(shared / "golden" / "tiny-dpt", tmp_path / "tiny-dpt")
    shutil.copy(shared / "golden" / "weightgen.py", tmp_path)
    for path in case.glob("st*.npz"):
        if path.stem != "stage_gate":
            path.unlink()
    path = case / "stage_gate.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["const_gate"] = arrays["const_gate"] + 1e-3
    arrays["unknown"] = np.zeros(3)
    path.chmod(0o644)
    np.savez(path, **arrays)
    report = checker.check(case)
    assert report.failed == ["stage_gate const_gate", "stage_gate unknown"]


def test_nan_never_passes(checker):
    report = checker.Report()
    report.compare("x", torch.tensor([1.0, float("nan")]), np.array([1.0, 2.0]), 1e9)
    assert report.failed == ["x"]
