"""`raymap3r composite`: its files, and their way into `raymap3r evaluate`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros import cli
from raymap3r_ros.synthetic import suite_sequence
from raymap3r_ros.synthetic.export import export_sequence

pytest.importorskip("evo", reason="the evaluation needs evo")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sequence = suite_sequence("static", 0, world="one_room", size=(48, 64))
    return export_sequence(sequence, tmp_path_factory.mktemp("tum"), "tum", max_frames=56, progress=False)


def composite(recording: Path, out: Path, *arguments: str) -> int:
    return cli.main(["composite", str(recording), "--out", str(out), "--size", "64x48", *arguments])


def files(folder: Path, name: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted((folder / name).iterdir())]


def test_files_contain_masks_and_recorded_depth(recording, tmp_path, capsys):
    assert composite(recording, tmp_path, "--movers", "2") == 0
    folders = [tmp_path / "movers-00", tmp_path / "movers-01"]
    assert capsys.readouterr().out.split() == [str(folder) for folder in folders]
    images, depths = files(recording, "rgb")[-8:], files(recording, "depth")[-8:]
    for folder, order in zip(folders, (1, -1), strict=True):
        masks, static = files(folder, "mask"), files(folder, "static_depth")
        assert len(masks) == 8 and 0 < np.mean(masks) < 255 and np.isin(masks, (0, 255)).all()
        for image, before, mask in zip(files(folder, "rgb"), images[::order], masks, strict=True):
            assert np.array_equal(image[mask == 0], before[mask == 0])
        assert np.abs(np.array(static) / np.array(depths[::order]) - 1).max() < 1e-3
        moved = np.array(files(folder, "depth")) != static
        assert np.array_equal(moved, np.array(masks) > 0)


def test_masks_and_controls_are_evaluated(recording, tmp_path, capsys):
    assert composite(recording, tmp_path / "data", "--movers", "2") == 0
    results = tmp_path / "results.json"
    arguments = ["--checkpoint", "one_room", "--rules", "raymap3r", "--device", "cpu", "--json", str(results)]
    assert cli.main(["evaluate", "tum_folder", str(tmp_path / "data"), *arguments]) == 0
    table = capsys.readouterr().out
    for line in ("raymap3r", "another sequence's rays", "best constant background", "true background"):
        assert line in table
    text = json.dumps(json.loads(results.read_text()))
    assert "mask_iou" in text and "false_alarm" in text


def test_zero_movers_are_the_images_as_recorded(recording, tmp_path):
    assert composite(recording, tmp_path, "--movers", "0", "--format", "both") == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert folder.name == "recorded-00" and (folder / "bag" / "bag.mcap").is_file()
    assert np.array_equal(files(folder, "rgb"), files(recording, "rgb")[-8:])
    assert not np.any(files(folder, "mask"))


def test_unusable_arguments_are_refused(recording, tmp_path, capsys):
    def error(*arguments: object) -> str:
        assert composite(*arguments) == 2
        return capsys.readouterr().err

    assert "--movers is -1; allowed range: 0 to 100" in error(recording, tmp_path / "out", "--movers", "-1")
    assert "rgb.txt" in error(tmp_path, tmp_path / "out")
    assert "is in the input" in error(recording, recording / "out", "--movers", "0")
    assert not (tmp_path / "out").exists() and not (recording / "out").exists()


def test_existing_sequences_are_kept_and_the_input_is_never_replaced(recording, tmp_path, capsys):
    assert composite(recording, tmp_path, "--movers", "0") == 0
    assert composite(recording, tmp_path, "--movers", "0") == 2
    assert "recorded-00: exists already" in capsys.readouterr().err
    assert composite(recording, tmp_path, "--movers", "0", "--overwrite") == 0
    # The result is a recording too.
    assert composite(tmp_path / "recorded-00", tmp_path, "--movers", "0", "--overwrite") == 2
    assert "is the input" in capsys.readouterr().err
    assert len(files(tmp_path / "recorded-00", "rgb")) == 8
