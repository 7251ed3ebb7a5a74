"""Rows and tables against means and probabilities computed by hand."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from raymap3r_ros.evaluation import tables
from raymap3r_ros.evaluation.plan import Variant, rule_variants
from raymap3r_ros.evaluation.scorer import SequenceRun
from raymap3r_ros.evaluation.statistics import bootstrap_mean
from raymap3r_ros.streaming import METHOD, StreamOptions
from raymap3r_ros.streaming.method import Method

pytest.importorskip("scipy", reason="the evaluation needs scipy")

NAN = float("nan")
VARIANTS = rule_variants(StreamOptions(), ("raymap3r", "cut3r"))
KEYS = {variant.name: tables.settings_key(variant.settings()) for variant in VARIANTS}


def sequence(number: int, suite: str = "light", world: str = "room", **values: dict[str, float]) -> SequenceRun:
    """A sequence whose variants and controls have these values."""
    return SequenceRun(suite, world, f"{suite}-{number}", 10, np.empty((0, 4, 4)), {}, values, [])


@pytest.fixture
def runs():
    return [
        sequence(
            number,
            raymap3r={"ate": 1.0 + number, "mask_iou": 0.5 + number / 10, "moving_share": 0.1 + number / 100},
            cut3r={"ate": 1.5 + number, "mask_iou": 0.4, "moving_share": 0.1 + number / 100, "false_alarm": NAN},
            **{"random walk": {"ate": 7.0}},
        )
        for number in range(4)
    ]


def row_of(rows: list[tables.Row], rule: str, metric: str, suite: str = "light") -> tables.Row:
    (row,) = [row for row in rows if (row.rule, row.metric, row.suite) == (rule, metric, suite)]
    return row


def test_a_row_is_the_mean_over_sequences_with_its_interval(runs):
    row = row_of(tables.make_rows(runs, VARIANTS, KEYS), "raymap3r", "ate")
    assert (row.world, row.kind, row.unit, row.n, row.settings) == ("room", "rule", "m", 4, KEYS["raymap3r"])
    assert row.value == 2.5 and 1 <= row.low < 2 < 3 < row.high <= 4
    interval = bootstrap_mean(np.arange(1.0, 5.0))
    assert (row.low, row.high) == (interval.low, interval.high)


def test_better_is_a_probability_against_the_baseline(runs):
    rows = tables.make_rows(runs, VARIANTS, KEYS)
    assert row_of(rows, "raymap3r", "ate").better == 1  # half a metre less in every sequence
    assert row_of(rows, "raymap3r", "ate").baseline == "cut3r"
    assert row_of(rows, "raymap3r", "mask_iou").better == 1  # for this metric, more is better
    for rule, metric in (("cut3r", "ate"), ("random walk", "ate"), ("raymap3r", "moving_share")):
        row = row_of(rows, rule, metric)
        assert math.isnan(row.better) and row.baseline == ""
    swapped = [
        dataclasses.replace(run, values={"raymap3r": run.values["cut3r"], "cut3r": run.values["raymap3r"]})
        for run in runs
    ]
    assert row_of(tables.make_rows(swapped, VARIANTS, KEYS), "raymap3r", "ate").better == 0


def test_other_names_than_variants_are_controls(runs):
    row = row_of(tables.make_rows(runs, VARIANTS, KEYS), "random walk", "ate")
    assert (row.kind, row.value, row.settings) == ("control", 7, "")


def test_metrics_without_values_have_no_row(runs):
    rows = tables.make_rows(runs, VARIANTS, KEYS)
    assert not [row for row in rows if row.metric == "false_alarm"]
    runs[0].values["raymap3r"]["false_alarm"] = 0.25
    row = row_of(tables.make_rows(runs, VARIANTS, KEYS), "raymap3r", "false_alarm")
    assert (row.value, row.n) == (0.25, 1) and math.isnan(row.low)


def test_depth_is_weighted_by_pixels():
    values = ((0.1, 100.0), (0.4, 300.0), (NAN, 0.0))
    runs = [sequence(n, cut3r={"abs_rel": v, "depth_pixels": w}) for n, (v, w) in enumerate(values)]
    row = row_of(tables.make_rows(runs, VARIANTS, KEYS), "cut3r", "abs_rel")
    assert row.n == 2 and row.value == pytest.approx((0.1 * 100 + 0.4 * 300) / 400)
    rng = np.random.default_rng(0)
    error, pixels = rng.uniform(0, 1, 200), rng.uniform(1, 9, 200)
    runs = [sequence(n, cut3r={"abs_rel": error[n], "depth_pixels": pixels[n]}) for n in range(200)]
    row = row_of(tables.make_rows(runs, VARIANTS, KEYS), "cut3r", "abs_rel")
    # The bootstrap of the weighted mean itself.
    drawn = rng.integers(200, size=(4000, 200))
    means = (error * pixels)[drawn].sum(1) / pixels[drawn].sum(1)
    assert (row.low, row.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)


def test_correlation_is_over_moving_sequences_of_all_suites():
    runs = [
        sequence(n, suite, raymap3r={"mask_iou": iou, "moving_share": share})
        for suite, pairs in {
            "static": [(0.9, 0.0), (NAN, 0.0), (NAN, 0.0)],
            "light": [(0.1, 0.02), (0.2, 0.03), (0.3, 0.05)],
            "heavy": [(0.6, 0.4), (0.5, 0.5), (0.7, 0.6)],
        }.items()
        for n, (iou, share) in enumerate(pairs)
    ]
    rows = [row for row in tables.make_rows(runs, VARIANTS, KEYS) if row.metric == "iou_share_rho"]
    assert {(row.suite, row.n): round(row.value, 6) for row in rows} == {
        ("light", 3): 1,
        ("heavy", 3): 0.5,
        (tables.ALL_SUITES, 6): round(1 - 6 * (1 + 1) / (6 * 35), 6),  # Spearman's formula: two ranks swapped
    }
    assert all(-1 <= row.low <= row.value <= row.high <= 1 for row in rows if row.n == 6)


def test_the_terminal_table_marks_the_best_value_and_has_a_title(runs):
    for run in runs:
        run.values["random walk"]["end_drift"] = 0.5
    text = tables.format_tables(tables.make_rows(runs, VARIANTS, KEYS), runs)
    trajectory, motion = text.split("\n\n" + "room light: motion")
    lines = trajectory.splitlines()
    assert lines[0] == "room light: trajectory (4 sequences, 40 frames, 11.5 % of pixels move)"
    assert lines[1].split()[:4] == ["ATE", "Sim(3)", "↓", "m"] and "better in ATE Sim(3)" in lines[1]
    cells = {line.split("  ")[0]: line for line in lines[2:] if line}
    assert "2.500* (" in cells["raymap3r"] and cells["raymap3r"].endswith("100 % than cut3r")
    assert "3.000  (" in cells["cut3r"] and cells["cut3r"].rstrip().endswith("-")
    assert "7.000  (7.000, 7.000)" in cells["random walk"] and "*" not in cells["random walk"]
    assert "0.650*" in motion and "0.400 " in motion
    # Columns are aligned in all lines of a table.
    start = lines[1].index("ATE")
    assert all(line[start - 1] == " " and line[start].isdigit() for line in lines[2:] if line)


def test_csv_and_json_contain_the_same_rows(runs, tmp_path):
    rows = tables.make_rows(runs, VARIANTS, KEYS)
    tables.write_csv(tmp_path / "a.csv", rows)
    tables.write_tables(tmp_path / "a.json", {"command": "x"}, rows, runs)
    with (tmp_path / "a.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["settings"] == {"command": "x"}
    assert len(read) == len(written["rows"]) == len(rows)
    for line, entry, row in zip(read, written["rows"], rows, strict=True):
        assert {name: "" if value is None else str(value) for name, value in entry.items()} == line
        for name, value in dataclasses.asdict(row).items():
            missing = isinstance(value, float) and math.isnan(value)
            assert entry[name] == (None if missing else value)
    assert any(entry["better"] is None for entry in written["rows"])
    first = written["sequences"][0]
    assert (first["sequence"], first["rule"], first["values"]["ate"]) == ("light-0", "raymap3r", 1.0)
    assert {entry["rule"] for entry in written["sequences"]} == {"raymap3r", "cut3r", "random walk"}
    assert written["sequences"][1]["values"]["false_alarm"] is None


def test_the_key_of_settings_follows_the_options():
    def key(method: Method = METHOD, **changes: str) -> str:
        return tables.settings_key(Variant("one", "rule", StreamOptions(**changes), "", method=method).settings())

    assert key() == key()
    assert len({key(), key(smoothing="off"), key(dataclasses.replace(METHOD, rehearsed_keyframes=4))}) == 3


def test_every_column_is_a_metric():
    assert {metric for columns in tables.TABLES.values() for metric in columns} <= tables.METRICS.keys()
    assert {metric.weight for metric in tables.METRICS.values() if metric.weight} <= tables.METRICS.keys()
