"""The folder of a run: its files, read back by independent readers."""

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.offline.result_folder import prepare_folder, write_depth_files, write_mask_file


def test_folder_with_files_is_refused_unless_allowed(tmp_path):
    folder = tmp_path / "a" / "out"
    prepare_folder(folder)
    prepare_folder(folder)  # empty subfolders of a run that failed early are accepted
    (folder / "notes.txt").write_text("not ours")
    with pytest.raises(InputError, match=r"holds files already \(notes\.txt\); .* --overwrite"):
        prepare_folder(folder)
    for name in ("depth/000000.png", "depth/000000.npz", "masks/000001.png", "trajectory.txt", "preview.mp4"):
        claim(folder, name).write_text("old result")
    kept = ["notes.txt", "depth/mine.png", "masks/17.png", "preview.txt", "trajectory_txt", "summary.jsonx"]
    kept += ["previewXmp4", "static_scene_ply", "depth/000000_png"]
    for name in kept:
        (folder / name).write_text("not ours")
    prepare_folder(folder, overwrite=True)
    left = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())
    assert left == sorted(kept)
    (folder / "trajectory.txt").write_text("measured")
    with pytest.raises(InputError, match=r"trajectory\.txt in the way"):
        prepare_folder(folder, overwrite=True)
    with pytest.raises(InputError, match="is a file; the output needs a folder"):
        prepare_folder(folder / "notes.txt")


@pytest.mark.parametrize("name", ["depth", "masks"])
@pytest.mark.parametrize("target", ["../elsewhere", "kept"])
def test_results_are_not_written_through_a_link(tmp_path, name, target):
    """The second run could not replace the files of the first."""
    out, elsewhere = tmp_path / "out", tmp_path / "out" / target
    for folder in (out, elsewhere):
        folder.mkdir()
    (out / name).symlink_to(target)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=f"{name}: is a link to another folder, and results are not written"):
            prepare_folder(out, overwrite)
    assert list(elsewhere.iterdir()) == []
    prepare_folder(out, overwrite=True, subfolders={"depth", "masks"} - {name})  # not a result of this run


def test_folder_has_only_the_subfolders_that_are_written_to(tmp_path):
    prepare_folder(tmp_path)
    claim(tmp_path, "masks/000000.png").write_text("old result")
    (tmp_path / "depth" / "mine.png").write_text("not ours")
    prepare_folder(tmp_path, overwrite=True, subfolders=())
    assert [item.relative_to(tmp_path).as_posix() for item in tmp_path.rglob("*")] == ["depth", "depth/mine.png"]


def test_depth_is_in_millimetres_and_zero_if_unknown(tmp_path):
    prepare_folder(tmp_path / "out")
    depth = np.array(
        [[1.0, 0.0004, 0.0006, 65.535], [65.536, 100.0, 0.0, -1.0], [np.nan, np.inf, 1.2344, 1.2346]], np.float32
    )
    write_depth_files(tmp_path / "out", 7, depth)
    with Image.open(tmp_path / "out" / "depth" / "000007.png") as picture:
        assert picture.mode.startswith("I;16") and picture.size == (4, 3)
        values = np.asarray(picture)
    assert values.tolist() == [[1000, 0, 1, 65535], [0, 0, 0, 0], [0, 0, 1234, 1235]]
    stored = np.load(tmp_path / "out" / "depth" / "000007.npz")["depth"]
    assert stored.dtype == np.float32
    assert np.array_equal(stored, depth, equal_nan=True)


def test_mask_is_255_on_dynamic_pixels(tmp_path):
    prepare_folder(tmp_path)
    mask = np.array([[True, False, True], [False, False, True]])
    write_mask_file(tmp_path, 0, mask)
    with Image.open(tmp_path / "masks" / "000000.png") as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), mask * 255)


def test_results_of_a_run_that_was_killed_are_replaced(tmp_path):
    prepare_folder(tmp_path)
    for index in range(3):
        write_mask_file(tmp_path, index, np.zeros((2, 2), bool))
    prepare_folder(tmp_path, overwrite=True)
    assert not list((tmp_path / "masks").iterdir())
