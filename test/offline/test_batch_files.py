"""Which recordings a batch has, the names of their results, what identifies them, and messages of the command."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymap3r_ros import cli
from raymap3r_ros.commands import batch
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.ray_pool import gpu_share

pytest.importorskip("fsspec", reason="fsspec is not installed")
sys.path.insert(0, str(Path(__file__).parent))
import fsspec
from batch_recordings import make_job

from raymap3r_ros.io import open_recording
from raymap3r_ros.io.output_folder import locked_folder
from raymap3r_ros.network import untrained_network
from raymap3r_ros.offline.batch import _process
from raymap3r_ros.offline.batch_files import (
    BatchItem,
    content_id,
    find_items,
    local_recording,
    recordings_in,
    result_folder,
    result_name,
)
from raymap3r_ros.offline.batch_report import DONE


def test_recordings_in_a_folder():
    names = [
        "day/clip10.mp4", "day/clip2.MOV", "day/notes.txt", "day/cover.jpg",  # videos, beside a picture
        "bag/metadata.yaml", "bag/bag_0.mcap", "bag/bag_1.mcap",  # a bag of two files
        "loose/one.mcap", "loose/two.db3", "loose/three.bag",  # three bags
        "images/1.png", "images/2.png", "images/metadata.yaml",
        "out/clip-12345678/batch.json", "out/clip-12345678/preview.mp4", "out/clip-12345678/depth/000000.png",
        "run/.raymap3r_files", "run/summary.json", "run/preview.mp4", "run/depth/000000.png",
        "run_nerfstudio/.raymap3r_files", "run_nerfstudio/images/000000.png", "run_mcap/bag/metadata.yaml",
        "run_mcap/bag/bag_0.mcap", "run_home/clip.mp4",
        ".hidden/clip.mp4", "empty/readme.md", "images/._1.png",
    ]  # fmt: skip
    assert recordings_in(names) == [
        "bag", "day/clip2.MOV", "day/clip10.mp4", "images", "loose/one.mcap", "loose/three.bag", "loose/two.db3",
        "run_home/clip.mp4",
    ]  # fmt: skip
    assert recordings_in(["metadata.yaml", "bag_0.mcap"]) == [""]
    assert recordings_in(["readme.md"]) == []


def test_images_beside_recordings_are_named_unless_they_may_be_thumbnails(caplog):
    day = [*(f"S01/img_{index}.jpg" for index in range(30)), "S01/quicklook.avi", "S01/odometry.csv"]
    assert recordings_in(day) == ["S01/quicklook.avi"]
    (line,) = caplog.messages
    assert line.startswith("S01: 30 images are left out, because there are recordings beside them: quicklook.avi")
    caplog.clear()
    assert recordings_in(["a/clip1.mp4", "a/clip1.jpg", "a/clip2.mp4", "a/clip2.jpg"]) == [
        "a/clip1.mp4",
        "a/clip2.mp4",
    ]
    assert not caplog.messages


def test_links_to_folders_elsewhere_are_named(tmp_path, caplog):
    for folder in ("day/one", "store/two"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "clip.mp4").touch()
    (tmp_path / "day" / "latest").symlink_to("one")
    (tmp_path / "day" / "itself").symlink_to(".")
    (tmp_path / "day" / "linked.mp4").symlink_to("../store/two/clip.mp4")
    assert [item.source for item in find_items(tmp_path / "day")] == [
        str(tmp_path / "day" / name) for name in ("linked.mp4", "one/clip.mp4")
    ]
    assert not caplog.records
    (tmp_path / "day" / "two").symlink_to("../store/two")
    assert len(find_items(tmp_path / "day")) == 2
    (record,) = caplog.records
    assert "links to folders elsewhere are not followed: two; to process" in record.getMessage()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "day").symlink_to("../day")
    with pytest.raises(InputError, match="folder; links to folders are not followed: day"):
        find_items(tmp_path / "bare")


def test_result_folders_have_unique_names_that_do_not_depend_on_other_recordings(tmp_path):
    for name in ("a/clip.mp4", "b/clip.mp4", "c/ü ..mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    folders = [item.folder for item in find_items(str(tmp_path))]
    assert len(set(folders)) == 3 and all(name.startswith("clip.mp4-") for name in folders[:2])
    assert all(name.isascii() and "/" not in name for name in folders)
    (tmp_path / "a" / "clip.mp4").unlink()
    assert [item.folder for item in find_items(str(tmp_path))] == folders[1:]
    assert result_name("x" * 300 + "..") != result_name("x" * 300)


def test_a_list_names_paths_beside_it_and_urls(tmp_path):
    (tmp_path / "list.txt").write_text("# first\nclip.mp4\n\ns3://bucket/bag/\n/data/bag\nclip.mp4\n")
    sources = [item.source for item in find_items(str(tmp_path / "list.txt"))]
    assert sources == [str(tmp_path / "clip.mp4"), "s3://bucket/bag", "/data/bag"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file or folder"),
        (b"# none\n", "names no recording"),
        (b"\xff\xfe", "not text in UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_items(str(tmp_path / "list.txt"))


def test_the_content_identifies_a_recording(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"one")
        os.symlink("nowhere", tmp_path / folder / "link")
        os.mkfifo(tmp_path / folder / "pipe")
    before = content_id(str(tmp_path / "a"))
    assert content_id(str(tmp_path / "b")) == before
    (tmp_path / "b" / "1.png").write_bytes(b"two")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert len({before, content_id(str(tmp_path / "a")), content_id(str(tmp_path / "b"))}) == 3


def test_results_appear_as_a_whole_and_replace_only_results(tmp_path):
    def write(text):
        with result_folder(str(tmp_path), "name") as (folder, marker):
            folder.mkdir()
            (folder / ".raymap3r_files").write_text("trajectory.txt\n")
            (folder / "trajectory.txt").write_text(text)
            marker["text"] = text
            assert sorted(path.name for path in tmp_path.iterdir() if path.name == "name") == before

    before = []
    write("first")
    before = ["name"]
    write("second")
    with pytest.raises(ZeroDivisionError), result_folder(str(tmp_path), "name") as (folder, _):
        folder.mkdir()
        raise ZeroDivisionError
    assert (tmp_path / "name" / "trajectory.txt").read_text() == "second"
    (tmp_path / "name" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt in the way"):
        write("third")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_the_share_of_a_gpu_is_what_fits():
    gib = 2**30
    assert gpu_share(None, 1, 10 * gib, 80 * gib) == (7, 0.1428)
    assert gpu_share(None, 2, 30 * gib, 80 * gib) == (4, 0.5)
    assert gpu_share(3, 2, 10 * gib, 80 * gib) == (3, 0.5)
    assert gpu_share(None, 1, 100 * gib, 80 * gib) == (1, 1.0)  # whatever the measurement, one worker is tried
    with pytest.raises(OptionError, match=r"workers is 8; 7 fit: each takes 10\.0 GiB of the 80\.0 GiB"):
        gpu_share(8, 1, 10 * gib, 80 * gib)


@pytest.mark.parametrize("name", ["ray", "pyarrow", "fsspec"])
def test_a_missing_library_is_named_with_the_extra(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == name else "found")
    assert cli.main(["batch", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"the package {name} is not installed" in error and "pip install 'raymap3r_ros[batch]'" in error


def test_the_package_does_not_import_the_extra():
    code = (
        "import sys; import raymap3r_ros.commands.batch, raymap3r_ros.commands.evaluate, raymap3r_ros.offline.batch; "
        "found = {'ray', 'pyarrow', 's3fs', 'gcsfs', 'moto'} & sys.modules.keys(); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _BrokenStorage(fsspec.AbstractFileSystem):
    """Fails as the libraries of object storage do, with errors of their own."""

    protocol = "broken"

    def info(self, path, **_):
        raise LookupError("no credentials")


fsspec.register_implementation("broken", _BrokenStorage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "--out", "FOLDER/out"], "is in the input"),
        (["FOLDER", "--out", "OUT"], "no video, bag or folder of images below this folder"),
        (["FOLDER", "--out", "OUT", "--workers", "0"], "--workers is 0; allowed: 1 and more"),
        (["FOLDER", "--out", "OUT", "--end", "0"], "--end is 0.0; allowed: above the start"),
        (["FOLDER", "--out", ""], "--out is empty"),
        (["xyz://a/b", "--out", "OUT"], "xyz"),
        (["s3://fleet/day", "--out", "s3://fleet/day/out"], "s3://fleet/day/out: is in the input s3://fleet/day;"),
        (["broken://fleet", "--out", "OUT"], "broken://fleet: no credentials; is the storage reachable"),
    ],
)
def test_arguments_that_are_refused(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(batch, "check_batch_modules", lambda *names: None)  # refused before they are used
    places = {"FOLDER": str(tmp_path), "OUT": str(tmp_path.parent / "batch_out")}
    arguments = [text.replace("FOLDER", places["FOLDER"]).replace("OUT", places["OUT"]) for text in arguments]
    assert cli.main(["batch", *arguments, "--checkpoint", "mini"]) == 2
    assert message in capsys.readouterr().err


def test_a_topic_is_that_of_the_bags(tmp_path, tiny_config):
    """In a folder of mixed recordings."""
    network = untrained_network(tiny_config)
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.resize(np.uint8([60 * index + 60, 60 * index + 120]), (32, 48, 3))).save(
            tmp_path / "images" / f"{index}.png"
        )
    job = make_job(tmp_path / "out", "mini", topic="/camera/image_raw")
    row = _process(job, lambda: network, BatchItem(str(tmp_path / "images"), "images-1"))
    assert (row.state, row.frames) == (DONE, 3)
    (tmp_path / "a.mcap").write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(InputError, match=r"a\.mcap"):
        _process(job, lambda: network, BatchItem(str(tmp_path / "a.mcap"), "a-1"))


def test_a_broken_remote_recording_is_named_by_its_address():
    files = fsspec.filesystem("memory")
    files.pipe_file("/fleet/broken.mcap", b"no bag")
    with pytest.raises(InputError) as caught, local_recording("memory://fleet/broken.mcap") as path:
        open_recording(path)
    assert str(caught.value).startswith("memory://fleet/broken.mcap: ") and str(path) not in str(caught.value)


def test_two_batches_do_not_write_to_one_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "check_batch_modules", lambda *names: None)  # refused before they are used
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").touch()
    with locked_folder(tmp_path / "out"):
        assert cli.main(["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--checkpoint", "mini"]) == 2
    assert "another run is writing to this folder" in capsys.readouterr().err
