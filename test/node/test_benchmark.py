"""The node benchmark: its arithmetic, and one short run over DDS. No test asserts a time."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 240.0  # seconds


@pytest.fixture(scope="module")
def benchmark_node(benchmark_script):
    return benchmark_script("node")


def start(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "benchmarks" / "node.py"), *map(str, arguments)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, env=dict(os.environ)
    )


def test_frames_are_counted_and_latencies_computed(benchmark_node):
    ms = 1_000_000
    stamps = [index * 100 * ms for index in range(6)]
    arrivals = {
        # The second and the last frame were dropped; one frame is from before the run.
        "tf": {
            stamp: stamp + delay * ms for stamp, delay in zip((*stamps[::2], stamps[3]), (10, 20, 30, 40), strict=True)
        },
        "depth": {stamps[0]: stamps[0] + 15 * ms, stamps[2]: stamps[2] + 12 * ms, stamps[3]: stamps[3] + 90 * ms},
        "trajectory": {stamps[0]: stamps[0] + 5000 * ms},
    }
    arrivals["tf"][-100 * ms] = 7000 * ms
    run = benchmark_node.evaluate("all", 12.0, stamps, arrivals)
    assert (run.sent, run.out, run.dropped, run.incomplete) == (6, 4, 2, 1)
    assert run.sent_hz == pytest.approx(10.0) and run.asked_hz == 12.0
    assert run.tf_ms == pytest.approx((25.0, 38.5, 39.7))
    # 15, 20 and 90: the transform may be the last output. The frame without a depth has no value; a trajectory does
    # not count.
    assert run.last_ms == pytest.approx((20.0, 83.0, 88.6))


def test_without_outputs_there_is_no_latency(benchmark_node):
    run = benchmark_node.evaluate("tf", 10.0, [0, 100], {"tf": {}})
    assert (run.out, run.dropped, run.incomplete) == (0, 2, 0)
    assert all(math.isnan(value) for value in (*run.tf_ms, *run.last_ms))


def test_a_short_run(root: Path, tmp_path: Path):
    file = tmp_path / "node.json"
    options = ("--camera", "64x48", "--size", 64, "-p", "execution:=plain")
    done = start(root, "--rates", 30, "--frames", 12, *options, "--json", file)
    assert done.returncode == 0, done.stdout
    assert "node's share" in done.stdout and "Traceback" not in done.stdout
    written = json.loads(file.read_text())
    rows, parts = written["rows"], written["parts"]
    assert [(row["subscribed"], row["asked_hz"]) for row in rows] == [("all", 30), ("tf", 30)]
    for row in rows:
        assert row["sent"] == 12 == row["out"] + row["dropped"] and row["out"] > 0
        assert row["incomplete"] < row["out"]
        assert 0 < row["tf_ms_p50"] <= row["tf_ms_p95"] <= row["tf_ms_p99"]
        assert row["last_ms_p50"] >= row["tf_ms_p50"] or row["incomplete"]
        if row["subscribed"] == "tf":
            assert row["last_ms_p99"] == row["tf_ms_p99"]
    assert [part["subscribed"] for part in parts] == ["all", "tf"]
    for part in parts:
        # In every frame a part takes less time than the whole, so the medians do too.
        assert 0 < part["convert"] <= part["node"] and 0 < part["publish"] <= part["node"] < part["frame"]
        assert part["share"] == part["node"] / part["frame"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rates", "0"], "'0' is not a number of frames per second from 0.1 to 1000"),
        (["--camera", "wide"], "'wide' is not a size such as 640x480"),
        (["--device", "abacus"], "abacus"),
        (["--json", "/nowhere/node.json"], "/nowhere/node.json: cannot be written"),
    ],
)
def test_unusable_arguments_are_refused(benchmark_node, capsys, arguments, text):
    try:
        status = benchmark_node.main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert text in capsys.readouterr().err
