"""`raymap3r evaluate` on the command line."""

import csv
import json
import sys

import cv2
import numpy as np
import pytest

from raymap3r_ros import cli
from raymap3r_ros.commands import evaluate
from raymap3r_ros.evaluation.tables import METRICS
from raymap3r_ros.network import save_network, untrained_network
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.streaming import RULES
from raymap3r_ros.streaming.preprocessing import frame_image, visible_crop
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

pytest.importorskip("evo", reason="the evaluation needs evo")

SHORT = ["--sequences", "2", "--frames", "7", "--device", "cpu"]


def error_of(capsys, *arguments: object) -> str:
    """Run a command that fails; return the line that it prints."""
    assert cli.main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "warning" not in line]
    assert len(lines) == 1 and lines[0].startswith("raymap3r: error: ")
    return lines[0].removeprefix("raymap3r: error: ")


def usage_error_of(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", *map(str, arguments)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_network(untrained_network(PRESETS["mini"]), path, manifest={"steps": "0"})
    return path


def test_tables_of_rendered_suites(weights, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv")}
    arguments = [
        "evaluate", "synthetic", "--suite", "static", "light", *SHORT, "--rules", "raymap3r,cut3r",
        "--checkpoint", weights, "--json", files["json"], "--csv", files["csv"], "--smoothing", "off",
    ]  # fmt: skip
    assert cli.main([str(argument) for argument in arguments]) == 0
    text = capsys.readouterr().out
    assert "one_room static: trajectory (2 sequences, 14 frames, 0.0 % of pixels move)" in text
    assert "one_room light: motion (2 sequences" in text and "random walk" in text and "true background" in text
    assert "small.safetensors, on cpu in" in text and "smoothing off" in text
    assert "one_room light: map (2 sequences" in text and "map thickness" in text
    assert "32 keyframes, 8 rehearsed" in text

    written = json.loads(files["json"].read_text())
    with files["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(written["rows"])
    assert {row["suite"] for row in written["rows"]} == {"static", "light"}
    assert {row["rule"] for row in written["rows"] if row["kind"] == "rule"} == {"raymap3r", "cut3r"}
    assert {entry["sequence"] for entry in written["sequences"]} == {
        f"one_room-{suite}-{number:02d}" for suite in ("static", "light") for number in (0, 23)
    }
    assert {entry["frames"] for entry in written["sequences"]} == {7}
    metrics = {metric for entry in written["sequences"] for metric in entry["values"]}
    assert metrics <= METRICS.keys() and {"ate_se3", "abs_rel_ray", "mask_iou", "map_thickness"} <= metrics
    settings = written["settings"]
    assert settings["manifest"] == {"steps": "0"} and settings["checkpoint"] == "small.safetensors"
    assert {row["settings"] for row in written["rows"] if row["kind"] == "rule"} == set(settings["options"])
    assert {options["smoothing"] for options in settings["options"].values()} == {"off"}
    assert settings["plan"]["known_intrinsics"] is True


def test_the_same_command_gives_the_same_numbers(weights, tmp_path, capsys):
    rows = []
    for name in ("a.json", "b.json"):
        arguments = ["synthetic", "--suite", "static", *SHORT, "--rules", "cut3r", "--json", tmp_path / name]
        assert cli.main(["evaluate", *map(str, arguments), "--checkpoint", str(weights)]) == 0
        rows.append(json.loads((tmp_path / name).read_text())["rows"])
    assert rows[0] == rows[1]


def test_ablations_have_one_line_each(weights, capsys):
    arguments = ["synthetic", "--suite", "static", "--rules", "cut3r", *SHORT, "--sequences", "1", "--ablations"]
    assert cli.main(["evaluate", *arguments, "--checkpoint", str(weights)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("base", "dual branch", "all, no keyframes", "all, 4 rehearsed", "all, raster pooling"):
        assert any(line.startswith(f"{name}  ") for line in lines), name


def test_known_poses_have_a_line_for_exact_and_for_noisy_ones(weights, tmp_path, capsys):
    arguments = ["synthetic", "--suite", "static", "--rules", "cut3r", *SHORT, "--sequences", "1", "--known-poses"]
    arguments += ["--checkpoint", str(weights), "--json", str(tmp_path / "a.json")]
    assert cli.main(["evaluate", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("cut3r", "cut3r, exact poses", "cut3r, noisy poses", "noisy poses alone"):
        assert any(line.startswith(f"{name}  ") for line in lines), name
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    kinds = {row["rule"]: (row["kind"], row["baseline"]) for row in rows}
    assert kinds["cut3r, noisy poses"] == ("poses", "cut3r")
    assert kinds["noisy poses alone"] == ("control", "")
    assert cli.main(["evaluate", *arguments, "--reset-alignment", "off"]) != 0


def test_a_recorded_folder(weights, tmp_path, capsys):
    """A folder in TUM's layout, with masks in the format of `raymap3r render`."""
    folder = tmp_path / "sequence"
    rng = np.random.default_rng(0)
    lists = {"rgb": [], "depth": [], "mask": []}
    poses = []
    for index in range(9):
        stamp = f"{index / 10:.6f}"
        moving = np.zeros((60, 80), np.uint8)
        moving[10:40, 10 + index : 40 + index] = 255
        maps = {
            "rgb": rng.integers(0, 256, (60, 80, 3)).astype(np.uint8),
            "depth": np.full((60, 80), 10_000, np.uint16),
            "mask": moving,
        }
        for name, array in maps.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / name / f"{stamp}.png"), array)
            lists[name].append(f"{stamp} {name}/{stamp}.png")
        poses.append(f"{stamp} {0.1 * index} {0.02 * index**2} 0 0 0 0 1")
    del poses[7:]
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "groundtruth.txt").write_text("\n".join(poses) + "\n")
    arguments = ["tum_folder", folder, "--rules", "cut3r", "--checkpoint", weights, "--device", "cpu"]
    assert cli.main(["evaluate", *map(str, arguments), "--json", str(tmp_path / "a.json")]) == 0
    text = capsys.readouterr().out
    left_out = "2 images without a pose left out"
    assert f"tum_folder: trajectory (1 sequence, 7 frames, {left_out}, 18.8 % of pixels move)" in text
    assert "tum_folder: depth" in text and "intrinsics estimated" in text
    rows = {
        row["metric"]: row for row in json.loads((tmp_path / "a.json").read_text())["rows"] if row["rule"] == "cut3r"
    }
    config = PRESETS["mini"]
    framing = frame_image(80, 60, config.image_size, config.patch_size)
    assert rows["depth_pixels"]["value"] == 7 * visible_crop(np.empty((60, 80)), framing).size
    assert rows["ate_constant"]["value"] == pytest.approx(
        np.sqrt(np.var(0.1 * np.arange(7)) + np.var(0.02 * np.arange(7) ** 2)), rel=1e-6
    )
    assert rows["ate_constant"]["low"] is None  # one sequence has no spread


@pytest.mark.parametrize("kind", ["as specified", "millimetres", "of a smaller place"])
def test_depth_in_millimetres_is_a_warning(tmp_path, caplog, kind):
    sequence = suite_sequence("static", 0, world="one_room", size=(96, 128))
    folder = export_sequence(sequence, tmp_path, "tum", max_frames=24, progress=False)
    for path in (folder / "depth").iterdir() if kind != "as specified" else ():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 5)
    if kind == "of a smaller place":
        rows = np.loadtxt(folder / "groundtruth.txt")
        rows[:, 1:4] /= 5
        np.savetxt(folder / "groundtruth.txt", rows, "%.9f")
    arguments = ["tum_folder", str(folder), "--rules", "cut3r", "--checkpoint", "one_room", "--device", "cpu"]
    assert cli.main(["evaluate", *arguments]) == 0
    lines = [line for line in caplog.messages if "probably in millimetres" in line]
    assert len(lines) == (kind == "millimetres")
    assert all(f"{folder.name}: true depth is 0." in line for line in lines)


def test_long_suites_run_only_if_named(capsys):
    parser = cli.build_parser(["evaluate"])
    assert parser.parse_args(["evaluate", "synthetic"]).suite == ["static", "light", "heavy", "long", "stopgo"]
    assert parser.parse_args(["evaluate", "synthetic", "--suite", "revisit"]).suite == ["revisit"]
    with pytest.raises(SystemExit):
        parser.parse_args(["evaluate", "synthetic", "--help"])
    assert "all but tune, revisit, endurance, kidnap, session" in " ".join(capsys.readouterr().out.split())


def test_kidnapped_cameras_have_a_table_of_their_own(weights, tmp_path, capsys):
    arguments = ["synthetic", "--suite", "kidnap", "--rules", "cut3r", "--sequences", "2", "--frames", "5"]
    arguments += ["--checkpoint", str(weights), "--json", str(tmp_path / "a.json"), "--pictures", str(tmp_path / "p")]
    assert cli.main(["evaluate", *arguments]) == 0
    text = capsys.readouterr().out
    assert "one_room kidnap: kidnap (2 sequences, 10 frames)" in text and "one_room kidnap: trajectory" not in text
    entries = json.loads((tmp_path / "a.json").read_text())["sequences"]
    assert len(entries) == 2 and {*entries[0]["values"]} <= METRICS.keys()


def test_all_rules_run_by_default():
    parser = cli.build_parser(["evaluate"])
    args = parser.parse_args(["evaluate", "synthetic"])
    assert args.rules == tuple(RULES)
    assert "tune" not in args.suite and {"static", "light", "heavy", "long", "stopgo"} <= set(args.suite)
    assert (args.intrinsics, args.batch) == ("given", 8)
    recorded = parser.parse_args(["evaluate", "sintel", "somewhere"])
    assert (recorded.intrinsics, recorded.batch, recorded.depth_cap) == ("estimated", 1, 70)
    assert parser.parse_args(["evaluate", "synthetic"]).intrinsics == "given"  # parsers do not share their defaults


def test_unusable_selections(weights, tmp_path, capsys):
    base = ["synthetic", "--checkpoint", weights, "--device", "cpu"]
    assert "invalid choice: 'sturdy'" in usage_error_of(capsys, *base, "--suite", "sturdy")
    assert "invalid choice: 'mars'" in usage_error_of(capsys, *base, "--world", "mars")
    assert error_of(capsys, *base, "--rules", "slam").startswith("--rules is 'slam'; allowed values: raymap3r")
    assert error_of(capsys, *base, "--rules", "cut3r,cut3r") == "--rules are cut3r,cut3r; each may be named once"
    assert error_of(capsys, *base, "--sequences", "0") == "--sequences is 0; allowed: 1 and more"
    assert error_of(capsys, *base, "--frames", "-1") == "--frames is -1; allowed: 0 and more"
    assert "there is no folder" in error_of(capsys, *base, "--json", tmp_path / "no" / "a.json")
    assert "such as 320x240" in usage_error_of(capsys, *base, "--render-size", "big")


def test_pictures_of_others_are_not_replaced(weights, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    (tmp_path / "iou_and_share.png").write_text("mine")
    arguments = ["synthetic", "--checkpoint", weights, *SHORT, "--pictures", tmp_path]
    assert "iou_and_share.png in the way" in error_of(capsys, *arguments)
    assert (tmp_path / "iou_and_share.png").read_text() == "mine"


def test_pictures_in_the_data_set_are_refused(weights, tmp_path, capsys):
    arguments = ["--checkpoint", weights, "--pictures", tmp_path / "a" / "pictures"]
    assert "pictures: is in the input" in error_of(capsys, "tum", tmp_path, *arguments)
    assert not (tmp_path / "a").exists()


def test_a_missing_data_set(weights, tmp_path, capsys):
    missing = error_of(capsys, "sintel", tmp_path / "no", "--checkpoint", weights)
    assert str(tmp_path / "no") in missing and "no such folder" in missing
    assert str(tmp_path) in error_of(capsys, "davis", tmp_path, "--checkpoint", weights)
    assert "ROOT" in usage_error_of(capsys, "tum")


def test_without_evo_nothing_is_run(weights, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "evo.core.metrics", None)
    monkeypatch.setattr(evaluate, "load_network", lambda *_: pytest.fail("loaded weights"))
    message = error_of(capsys, "synthetic", "--checkpoint", weights)
    assert "evo" in message and "pip install evo scipy matplotlib" in message
