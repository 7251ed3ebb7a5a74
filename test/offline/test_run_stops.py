"""Stop signals while a run writes its last files, and while a command cleans up after one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raymap3r_ros import cli, output_files
from raymap3r_ros.commands import render
from raymap3r_ros.signals import interrupted_once, on_stop_signals
from raymap3r_ros.synthetic import export

SMALL = ("--checkpoint", "mini", "--size", "48", "--device", "cpu")
LAST = ["preview.mp4", "trajectory.txt", "intrinsics.txt", "static_scene.ply", "preview.png", "summary.json"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a process started in a terminal: jobs in the background ignore SIGINT, those of nohup SIGHUP."""
    usual = {number: signal.SIG_DFL for number in SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield usual
    assert {number: signal.getsignal(number) for number in SIGNALS} == usual
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def at_end_of(monkeypatch):
    """Makes signals arrive when a file is complete under its temporary name."""

    def arrange(name, *numbers):
        def arrive(partial, path):
            if os.path.basename(path) == name:
                for number in numbers:
                    signal.raise_signal(number)
            replace(partial, path)

        replace = os.replace
        monkeypatch.setattr(os, "replace", arrive)

    return arrange


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", LAST)
def test_one_signal_while_the_last_files_are_written_loses_none(images, tmp_path, at_end_of, capfd, name, number):
    at_end_of(name, number)
    out = tmp_path / "out"
    assert cli.main(["run", str(images), "--out", str(out), "--max-frames", "2", *SMALL]) == 0
    assert {item.name for item in out.iterdir()} >= set(LAST)
    assert not [item for item in out.iterdir() if "partial" in item.name]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and summary["frames"] == 2 and set(LAST) <= set(summary["files"])
    assert "completing the files; repeat to stop at once" in capfd.readouterr().err


@pytest.mark.parametrize("name", LAST)
def test_a_repeated_signal_stops_at_once_and_names_what_is_missing(images, tmp_path, at_end_of, capfd, name):
    at_end_of(name, signal.SIGINT, signal.SIGTERM)
    out = tmp_path / "out"
    assert cli.main(["run", str(images), "--out", str(out), "--max-frames", "2", *SMALL]) == 130
    error = capfd.readouterr().err
    missing = error.partition("stopped at once; not written: ")[2].splitlines()[0].split(", ")
    assert set(missing) == set(LAST[LAST.index(name) :]) and "Traceback" not in error
    assert {item.name for item in out.iterdir()} & set(LAST) == set(LAST[: LAST.index(name)])
    assert not [item for item in out.iterdir() if "partial" in item.name]


def test_a_closed_terminal_sends_several_signals(images, tmp_path, at_end_of):
    at_end_of("trajectory.txt", signal.SIGHUP, signal.SIGHUP, signal.SIGHUP)
    assert cli.main(["run", str(images), "--out", str(tmp_path), "--max-frames", "2", *SMALL]) == 0
    assert (tmp_path / "summary.json").exists()


def test_nohup_is_obeyed(images, tmp_path, at_end_of, capfd):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_end_of("trajectory.txt", signal.SIGHUP)
    try:
        assert cli.main(["run", str(images), "--out", str(tmp_path), "--max-frames", "2", *SMALL]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert "completing" not in capfd.readouterr().err


@pytest.mark.parametrize("repeated", SIGNALS)
@pytest.mark.parametrize("number", SIGNALS)
def test_render_leaves_nothing_if_a_signal_is_repeated_while_it_cleans_up(tmp_path, monkeypatch, number, repeated):
    written = []

    def write_png(path, image):
        written.append(path)
        path.write_bytes(b"")
        if len(written) == 6:
            signal.raise_signal(number)

    def remove_written(folder):
        if written:
            signal.raise_signal(repeated)
        remove(folder)
        removed.append(folder)

    removed, remove = [], export.remove_written
    monkeypatch.setattr(export, "write_png", write_png)
    monkeypatch.setattr(export, "remove_written", remove_written)
    arguments = ["static", "--sequences", "1", "--frames", "3", "--size", "64x48", "--format", "tum"]
    assert cli.main(["render", *arguments, "--out", str(tmp_path / "out")]) == 130
    assert written and removed and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_file_that_is_cleaned_up_is_not_left_by_a_repeated_signal(tmp_path, monkeypatch, number):
    """Every output file of every command is written by `whole_file`."""

    def close(descriptor):
        signal.raise_signal(number)
        close_file(descriptor)
        closed.append(descriptor)

    closed, close_file = [], os.close
    monkeypatch.setattr(output_files, "os", SimpleNamespace(**{**vars(os), "close": close}))

    def run(_):
        with output_files.whole_file(tmp_path / "table.csv") as partial:
            partial.write_text("half")
            signal.raise_signal(number)

    monkeypatch.setattr(render, "run", run)
    assert cli.main(["render", "static", "--out", "x"]) == 130
    assert closed and list(tmp_path.iterdir()) == []


def test_an_interruption_that_python_drops_is_repeated(capfd):
    """KeyboardInterrupt in a `__del__`, as of a progress bar, is printed and otherwise ignored."""

    class Bar:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with interrupted_once(), pytest.raises(KeyboardInterrupt):
        bar = Bar()
        del bar
        signal.sigtimedwait([], 20)  # until a signal
    assert capfd.readouterr().err == ""


def test_stop_signals_of_different_kinds_count_as_repeated():
    received = []
    with pytest.raises(KeyboardInterrupt), interrupted_once(), on_stop_signals(received.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert received == ["SIGTERM"]


FLUSHED = """
import os, signal, sys
from raymap3r_ros import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

class Output:
    def __getattr__(self, name):
        return getattr(sys.__stdout__, name)

    def flush(self):
        os.kill(os.getpid(), signal.{name})
        sys.__stdout__.flush()

sys.stdout = Output()
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("arguments", "status"), [(["weights", "list"], 0), (["convert", "/no.pth", "/no/out"], 2)])
def test_a_signal_after_the_work_does_not_change_the_status(arguments, status, name):
    code = FLUSHED.format(name=name)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr


@pytest.mark.parametrize("renamed", [".made.replaced", "made"])
def test_a_signal_while_a_folder_is_replaced_leaves_one_whole_sequence(tmp_path, monkeypatch, renamed):
    folder = tmp_path / "made"
    folder.mkdir()
    rename = Path.rename

    def interrupted(self, target):
        result = rename(self, target)
        if target.name == renamed:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), export._whole_folder(folder) as partial:
        (partial / "new").touch()
    assert [item.name for item in tmp_path.rglob("*")] == ["made", "new"]
