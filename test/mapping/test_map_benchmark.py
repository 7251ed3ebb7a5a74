"""The benchmark of the static map runs and writes its results."""

import json

import pytest


def test_benchmark_prints_and_writes_its_results(benchmark_script, tmp_path, capsys):
    script = benchmark_script("static_map")
    file = tmp_path / "map.json"
    arguments = ["--device", "cpu", "--sizes", "32x24", "--voxels", "0", "0.1", "--frames", "4", "--json", str(file)]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 and len(printed) == 4
    assert rows[1]["voxel_mm"] == pytest.approx(100) and rows[1]["image_size"] == "32x24"
    assert all(row["points"] > 100 and row["median_ms"] > 0 for row in rows)
    assert str(rows[0]["points"]) in printed[2]


@pytest.mark.parametrize("arguments", [["--sizes", "64"], ["--voxels", "-1"], ["--frames", "0"]])
def test_unusable_arguments(benchmark_script, arguments):
    with pytest.raises(SystemExit) as stopped:
        benchmark_script("static_map").main(arguments)
    assert stopped.value.code == 2
