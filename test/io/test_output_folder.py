"""Output folders: only files that an earlier run listed in its manifest are deleted."""

import fcntl
import os
import re
import subprocess
import sys
import tempfile

import pytest

from raymap3r_ros.errors import InputError
from raymap3r_ros.io.output_folder import MANIFEST, claim, clear_folder, locked_folder, written_files
from raymap3r_ros.offline.result_folder import prepare_folder
from raymap3r_ros.output_files import whole_file

# As on some network shares: only files in the folder of temporary files can be locked.
NO_LOCKS = """
import errno, fcntl, os
flock = fcntl.flock
def refuse(descriptor, operation):
    if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(os.environ["TMPDIR"]):
        raise OSError(errno.ENOLCK, "No locks available")
    flock(descriptor, operation)
fcntl.flock = refuse
"""
RESULTS = re.compile(r"trajectory\.txt|depth/\d{6}\.png")


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def write(folder, *names, ours=True):
    folder.mkdir(exist_ok=True)
    for name in names:
        path = claim(folder, name) if ours else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_listed_files_are_deleted_and_others_stay(tmp_path):
    write(tmp_path, "trajectory.txt", "depth/000000.png")
    write(tmp_path, "notes.md", "depth/mine.png", ours=False)
    with pytest.raises(InputError, match="holds files already"):
        clear_folder(tmp_path, RESULTS)
    clear_folder(tmp_path, RESULTS, overwrite=True)
    assert files_in(tmp_path) == ["depth/mine.png", "notes.md"]


def test_a_file_with_the_name_of_a_result_is_in_the_way(tmp_path):
    folder = tmp_path / "out"
    write(folder, "depth/000000.png")
    names = ["trajectory.txt", *(f"depth/{index:06d}.png" for index in range(1, 8))]
    write(folder, *names, ours=False)
    (folder / "summary.json").mkdir()
    before = files_in(folder)
    results = re.compile(rf"{RESULTS.pattern}|summary\.json")
    with pytest.raises(
        InputError, match=r"out: depth/ with 7 files, summary\.json/, trajectory\.txt in the way: not written"
    ):
        clear_folder(folder, results, overwrite=True)
    assert files_in(folder) == before


def test_what_a_folder_holds_is_named(tmp_path):
    folder = tmp_path / "out"
    write(folder, "notes.md", "depth/1.png", "depth/2.png", "masks/mine.png", *"abcd", ours=False)
    (folder / "gone").symlink_to("nowhere")
    text = r"files already \(a, b, c, d, depth/ with 2 files and 3 more\); name another folder, or allow it"
    with pytest.raises(InputError, match=text):
        clear_folder(folder, RESULTS)
    for name in "abcd":
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"\(depth/ with 2 files, gone, masks/mine\.png, notes\.md\)"):
        clear_folder(folder, RESULTS)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["in/out", "in/a/b", "in/../in/out", "link/out"])
def test_results_in_an_input_folder_are_refused_at_once(tmp_path, name, overwrite):
    write(tmp_path / "in", "000000.png", ours=False)
    (tmp_path / "link").symlink_to("in")
    folder = tmp_path / name
    with (
        pytest.raises(InputError, match=r"is in the input .*; name a folder outside it"),
        locked_folder(folder),
    ):
        clear_folder(folder, RESULTS, overwrite, inputs=[tmp_path / "in"])
    assert files_in(tmp_path / "in") == ["000000.png"] and len([*(tmp_path / "in").iterdir()]) == 1
    clear_folder(tmp_path / "in-out", RESULTS, overwrite, inputs=[tmp_path / "in"])
    clear_folder(tmp_path / "in2", RESULTS, overwrite, inputs=[tmp_path / "in" / "000000.png"])


def test_the_input_is_never_deleted(tmp_path):
    out = tmp_path / "out"
    write(out, "depth/000000.png", "trajectory.txt")
    (tmp_path / "link").symlink_to(out / "depth")
    for source in (out / "depth", tmp_path / "link", out / "trajectory.txt"):
        with pytest.raises(InputError, match=r"of the input .* would be deleted"):
            clear_folder(out, RESULTS, overwrite=True, inputs=[source])
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.png").symlink_to(out / "depth" / "000000.png")
    with pytest.raises(InputError, match=r"depth/000000\.png of the input"):
        clear_folder(out, RESULTS, overwrite=True, inputs=[links])
    with pytest.raises(InputError, match="is the input"):
        clear_folder(out, RESULTS, overwrite=True, inputs=[tmp_path / "out" / ".." / "out"])
    assert len(written_files(out)) == 2


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "depth/../../outside", "linked/outside"])
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path)
    (tmp_path / "outside").touch()
    claim(folder, name)
    assert written_files(folder) == set()
    clear_folder(folder, RESULTS, overwrite=True)
    assert (tmp_path / "outside").exists()


def test_a_result_behind_a_link_is_in_the_way(tmp_path):
    sensor = tmp_path / "sensor"
    write(sensor, "000000.png", ours=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "depth").symlink_to(sensor)
    with pytest.raises(InputError, match="depth: is a link to another folder, whose files are never deleted; replace"):
        clear_folder(out, RESULTS, overwrite=True)
    assert files_in(sensor) == ["000000.png"]


@pytest.mark.parametrize("share", [False, True])
def test_two_writers_at_once_are_refused(tmp_path, monkeypatch, share):
    """Also on a share whose file system has no locks: there by a file in the folder of temporary files."""
    folder, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    if share:
        monkeypatch.setattr(fcntl, "flock", fcntl.flock)
        exec(NO_LOCKS, {})
    program = (
        NO_LOCKS * share + "import sys, pathlib; from raymap3r_ros.io.output_folder import locked_folder\n"
        f"with locked_folder(pathlib.Path({str(folder)!r})): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another run is writing to this folder"), locked_folder(folder):
            pass
        other.kill()
    with locked_folder(folder), pytest.raises(InputError, match="another run"), locked_folder(folder):
        pass
    assert len(list(temporary.iterdir())) == share
    with whole_file(tmp_path / "a.txt") as partial:  # no file there for each output
        partial.touch()
    assert len(list(temporary.iterdir())) == share


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    with locked_folder(tmp_path / "out"):
        pass
    assert files_in(tmp_path) == [] and not (tmp_path / "out").exists()
    with locked_folder(tmp_path / "out"):
        claim(tmp_path / "out", "trajectory.txt").touch()
    assert files_in(tmp_path / "out") == [MANIFEST, "trajectory.txt"]


def test_links_that_form_a_loop_are_no_obstacle(tmp_path):
    (tmp_path / "in").mkdir()
    for folder in (tmp_path / "in", tmp_path / "out"):
        write(folder, "mine.txt", ours=False)
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "up").symlink_to("..")
    write(tmp_path / "out", "trajectory.txt")
    clear_folder(tmp_path / "out", RESULTS, overwrite=True, inputs=[tmp_path / "in"])
    assert not (tmp_path / "out" / "trajectory.txt").exists()
    assert (tmp_path / "in" / "mine.txt").read_text() == "mine.txt"
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("self", "gone"):
        with pytest.raises(InputError, match="a link that leads nowhere"), locked_folder(tmp_path / name):
            pass


@pytest.mark.parametrize(
    "line",
    ["x" * 5000, "y/" * 3000, "a\0b", "\udcff\udcfe", "# version 99", '{"files": ["mine"]}'],
    ids=["long", "deep", "null", "not-utf8", "version", "json"],
)
def test_a_damaged_manifest_deletes_nothing_and_is_no_obstacle(tmp_path, line):
    write(tmp_path, "mine", ours=False)
    write(tmp_path, "trajectory.txt")
    with (tmp_path / MANIFEST).open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    clear_folder(tmp_path, RESULTS, overwrite=True)
    assert files_in(tmp_path) == ["mine"]


@pytest.mark.parametrize("kind", ["pipe", "link", "loop", "folder"])
def test_a_manifest_that_is_no_file_is_refused(tmp_path, kind):
    write(tmp_path, "trajectory.txt", ours=False)
    manifest = tmp_path / MANIFEST
    (tmp_path / "list").write_text("trajectory.txt\n")
    make = {
        "pipe": lambda: os.mkfifo(manifest),
        "link": lambda: manifest.symlink_to("list"),
        "loop": lambda: manifest.symlink_to(MANIFEST),
        "folder": manifest.mkdir,
    }
    make[kind]()
    with pytest.raises(InputError, match="not a regular file, so not a manifest"):
        clear_folder(tmp_path, RESULTS, overwrite=True)
    assert (tmp_path / "trajectory.txt").exists()


def test_a_folder_with_the_name_of_a_result_is_in_the_way(tmp_path):
    (tmp_path / "trajectory.txt").mkdir()
    with pytest.raises(InputError, match=r"trajectory\.txt/ in the way"):
        clear_folder(tmp_path, RESULTS, overwrite=True)


def test_a_file_in_place_of_a_subfolder_is_refused_before_anything_is_deleted(tmp_path):
    write(tmp_path, "trajectory.txt")
    write(tmp_path, "depth", ours=False)
    with pytest.raises(InputError, match="depth: is a file; the results need a folder"):
        prepare_folder(tmp_path, overwrite=True)
    assert (tmp_path / "trajectory.txt").exists()
