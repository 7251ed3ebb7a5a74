"""Batches over a real Ray of two workers: equal results, failures, object storage, interruptions."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

# Not Ray, which reads its settings when it is imported.
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

sys.path.insert(0, str(Path(__file__).parent))
from batch_recordings import (
    COUNT,
    FRAMES,
    OPTIONS,
    WAIT,
    WaitingWorkers,
    kill_and_wait,
    make_deadly,
    make_job,
    results,
    send_this_file,
    write_recordings,
)

from raymap3r_ros import cli
from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network, save_network, untrained_network
from raymap3r_ros.offline import run_recording
from raymap3r_ros.offline.batch import run_batch
from raymap3r_ros.offline.batch_files import MARKER, file_system, find_items
from raymap3r_ros.offline.batch_report import DONE, FAILED, INCOMPLETE, report_text, write_report
from raymap3r_ros.ray_pool import ray_session, run_tasks

TEST = Path(__file__).parent
CLI = ["--size", "32", "--reset-interval", "3", "--device", "cpu", "--no-preview", "--confidence-threshold", "1"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_network(untrained_network(tiny_config), path)
    return path


@pytest.fixture(scope="module")
def serial(recordings, checkpoint, tmp_path_factory):
    """The results of `raymap3r run` in this process, by the name of the recording."""
    folder, network, job = tmp_path_factory.mktemp("serial"), load_network(checkpoint), make_job("", checkpoint)
    for path in sorted(recordings.glob("bag*")):
        run_recording(
            open_recording(path), network, folder / path.name, OPTIONS, outputs=job.outputs,
            cloud_options=job.cloud_options, progress=False,
        )  # fmt: skip
    return {path.name: results(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def storage():
    """An S3 server on the loopback address; its settings are those of the workers, too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def cluster(storage):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    with ray_session() as available:
        yield available | {"CPU": 2.0}


def by_name(rows):
    return {row.folder.rpartition("-")[0]: row for row in rows}


@pytest.fixture(scope="module")
def done(cluster, recordings, checkpoint, tmp_path_factory):
    """A batch of all recordings. The first worker that processes bag05 is killed in the middle of it."""
    out, kills = tmp_path_factory.mktemp("out") / "results", []

    def kill():
        kills.append(workers.next_pid())
        kill_and_wait(kills[0])

    with WaitingWorkers(tmp_path_factory.mktemp("pipes"), {"bag05": 1}) as workers:
        thread = threading.Thread(target=kill)
        thread.start()
        rows, stopped_by = run_batch(find_items(str(recordings)), make_job(out, checkpoint), cluster, 2)
        thread.join()
    assert len(kills) == 1 and not stopped_by
    return out, by_name(rows)


def test_results_equal_those_of_the_serial_run_to_the_bit(done, serial):
    out, rows = done
    complete = {name for name, row in rows.items() if row.state != FAILED}
    assert complete == serial.keys() and len(complete) == COUNT
    for name in complete:
        assert results(out / rows[name].folder) == serial[name], name


def test_failures_cost_a_retry_and_become_rows_and_the_others_go_on(done):
    out, rows = done
    states = {name: row.state for name, row in rows.items() if row.state != DONE}
    assert states == {"bag03": INCOMPLETE, "damaged.mcap": FAILED}
    assert "damaged.mcap: cannot be read as a ROS 2 bag" in rows["damaged.mcap"].reason
    assert "ends in the middle of a record" in rows["bag03"].reason and 0 < rows["bag03"].frames < FRAMES
    assert rows["bag05"].state == DONE and rows["bag05"].frames == FRAMES
    assert {path.name for path in out.iterdir()} == {row.folder for row in rows.values() if row.state != FAILED}


def test_rows_agree_with_the_summaries(done):
    out, rows = done
    for row in rows.values():
        if row.state != FAILED:
            summary = json.loads((out / row.folder / "summary.json").read_text())
            for name in ("frames", "duration", "resets", "moving_share", "path_length", "scale", "worlds"):
                assert getattr(row, name) == summary[name], name
            assert row.seconds > 0 and row.reason == summary["stopped_by"]
    assert rows["bag00"].resets == 1
    assert ["message 5 of /cam/image_raw" in text for text in rows["bag04"].warnings] == [True]
    assert not rows["bag00"].warnings


def test_a_second_batch_only_does_what_is_left(done, cluster, recordings, checkpoint, serial, tmp_path):
    out, before = done
    marks = {row.folder: (out / row.folder / MARKER).stat().st_mtime_ns for row in before.values() if row.frames}
    changed = before["bag01"].folder
    (out / before["bag02"].folder / MARKER).unlink()  # as of a copy that was interrupted
    marker = json.loads((out / changed / MARKER).read_text())
    (out / changed / MARKER).write_text(json.dumps(marker | {"weights": "others"}))
    items = [item for item in find_items(str(recordings)) if "damaged" not in item.folder]
    rows, _ = run_batch(items, make_job(out, checkpoint), cluster, 1)
    after = by_name(rows)
    assert {name for name, row in after.items() if not row.earlier} == {"bag01", "bag02"}
    for name, row in after.items():
        assert results(out / row.folder) == serial[name]
        if row.earlier:
            assert dataclasses.replace(row, earlier=False) == before[name]
            assert (out / row.folder / MARKER).stat().st_mtime_ns == marks[row.folder]


def test_a_task_that_ends_its_worker_twice_costs_only_itself(cluster):
    send_this_file()
    found = dict(run_tasks(make_deadly, range(6), 1, {"num_cpus": 1}))
    death, error = str(found.pop(3)), found.pop(4)
    assert found == {number: 2 * number for number in (0, 1, 2, 5)}
    assert "its process ended twice" in death and "give fewer workers" in death
    assert type(error) is ValueError and str(error) == "four"


def test_recordings_and_results_on_object_storage(cluster, recordings, checkpoint, serial):
    files, _ = file_system("s3://bucket")
    files.mkdir("bucket")
    for name in ("bag00", "bag01"):
        files.put(str(recordings / name), f"bucket/in/{name}", recursive=True)
    out, items = "s3://bucket/out", find_items("s3://bucket/in")
    assert [item.source for item in items] == ["s3://bucket/in/bag00", "s3://bucket/in/bag01"]
    job = make_job(out, checkpoint)
    rows, _ = run_batch(items, job, cluster, 1)
    assert [row.state for row in rows] == [DONE, DONE]
    for name, row in by_name(rows).items():
        stored = {path.partition(row.folder + "/")[2]: path for path in files.find(f"bucket/out/{row.folder}")}
        assert {path: files.cat_file(stored[path]) for path in serial[name]} == serial[name]
        assert json.loads(files.cat_file(stored["summary.json"]))["input"] == row.recording

    # Another content has another ETag; what an interrupted run has left is deleted.
    files.pipe_file("bucket/in/bag00/added.txt", b"x")
    files.pipe_file(f"bucket/out/{rows[0].folder}/depth/000099.png", b"old")
    again, _ = run_batch(items, job, cluster, 1)
    assert [row.earlier for row in again] == [False, True] and again[0].state == DONE
    assert not files.exists(f"bucket/out/{rows[0].folder}/depth/000099.png")
    write_report(out, again)
    assert {path.rpartition("/")[2] for path in files.ls("bucket/out", detail=False)} == {
        "report.csv", "report.parquet", *(row.folder for row in rows)
    }  # fmt: skip


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from batch_recordings import WaitingWorkers
from raymap3r_ros import cli
with WaitingWorkers(Path(sys.argv[2]), {"bag01": 1}):
    status = cli.main(["batch", *sys.argv[3:]])
sys.exit(status)
"""


@pytest.fixture
def start_batch(recordings, checkpoint, tmp_path):
    """Starts `raymap3r batch` for four bags in a process group of its own; one worker stops in the middle of bag01."""
    (tmp_path / "list.txt").write_text("".join(f"{recordings}/bag0{index}\n" for index in (0, 1, 2, 4)))
    out, pipes = tmp_path / "out", WaitingWorkers(tmp_path, {})
    with pipes:
        arguments = [str(tmp_path / "list.txt"), "--out", str(out), "--checkpoint", str(checkpoint), *CLI]

        def start(*more):
            command = [sys.executable, "-c", SCRIPT, str(TEST), str(tmp_path), *arguments, *more]
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )

        yield start, arguments, out, pipes


def test_a_batch_whose_driver_was_killed_continues(start_batch, cluster, checkpoint, serial):
    start, arguments, out, pipes = start_batch
    driver = start("--workers", "1")  # with a Ray of its own
    worker = os.pidfd_open(pipes.next_pid())
    driver.kill()
    assert driver.wait(WAIT) == -signal.SIGKILL
    assert select.select([worker], [], [], WAIT)[0], "the worker does not end with its driver"
    finished = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert [path.name.rpartition("-")[0] for path in finished] == ["bag00"] and (finished[0] / MARKER).exists()

    rows, _ = run_batch(find_items(arguments[0]), make_job(out, checkpoint), cluster, 1)
    assert [row.earlier for row in rows] == [True, False, False, False]
    for name, row in by_name(rows).items():
        assert results(out / row.folder) == serial[name]
    assert {path.name for path in out.iterdir()} == {row.folder for row in rows}


def test_ctrl_c_awaits_the_recordings_that_run_and_the_same_command_continues(
    start_batch, cluster, checkpoint, serial
):
    import ray

    start, arguments, out, pipes = start_batch
    driver = start("--workers", "1", "--ray", ray.get_runtime_context().gcs_address)
    pipes.next_pid()
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.stderr.readline() == "\n" and "repeat to stop at once" in driver.stderr.readline()
    pipes.release()
    text, _ = driver.communicate(timeout=WAIT)
    assert driver.returncode == 130 and "2 recordings: 2 done; 10 frames" in text and "2 not begun" in text
    with (out / "report.csv").open(newline="") as file:
        assert [row["frames"] for row in csv.DictReader(file)] == ["5", "5"]

    rows, _ = run_batch(find_items(arguments[0]), make_job(out, checkpoint), cluster, 1)
    assert [row.earlier for row in rows] == [True, True, False, False]
    for name, row in by_name(rows).items():
        assert results(out / row.folder) == serial[name]


def test_the_report_can_be_queried(done, tmp_path):
    from pyarrow import parquet

    rows = list(done[1].values())
    write_report(str(tmp_path), rows)
    table = parquet.read_table(tmp_path / "report.parquet").to_pylist()
    assert [row["state"] for row in table] == [row.state for row in rows]
    assert [tuple(row["warnings"]) for row in table] == [row.warnings for row in rows]
    with (tmp_path / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, table, strict=True):
        assert float(line["path_length"]) == row["path_length"] and line["reason"] == row["reason"]
    text = report_text(rows)
    assert f"{COUNT + 1} recordings: {COUNT - 1} done, 1 incomplete, 1 failed" in text


def test_tables_of_an_evaluation_over_ray_equal_the_serial_ones(cluster, checkpoint, tmp_path):
    pytest.importorskip("evo", reason="the evaluation needs evo")
    import ray

    evaluate = [
        "evaluate", "synthetic", "--suite", "light", "kidnap", "--sequences", "2", "--frames", "5", "--rules",
        "raymap3r,cut3r", "--checkpoint", str(checkpoint), "--device", "cpu", "--json",
    ]  # fmt: skip
    assert cli.main([*evaluate, str(tmp_path / "serial.json")]) == 0
    there = ["--ray", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-m", "raymap3r_ros.cli", *evaluate, str(tmp_path / "ray.json"), *there]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    serial, over_ray = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("serial", "ray"))
    assert serial["rows"] and serial["settings"]["plan"] == over_ray["settings"]["plan"]
    del serial["settings"], over_ray["settings"]
    assert json.dumps(serial) == json.dumps(over_ray)


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")  # IPv4, and the same as IPv6, as in /proc/net


def test_ports_are_on_the_loopback_address_and_refuse_other_users(cluster):
    import ray

    ours, parents = {os.getpid()}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for _ in range(4):  # generations: Ray's processes, their workers
        ours |= {pid for pid, parent in parents.items() if parent in ours}
    sockets = set()
    for path in (path for pid in ours for path in Path(f"/proc/{pid}/fd").glob("*")):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = {line[1] for line in lines if line[3] == "0A" and line[9] in sockets}
    host, _, port = ray.get_runtime_context().gcs_address.partition(":")
    assert host == "127.0.0.1" and f"{LOOPBACK[1]}:{int(port):04X}" in listening
    assert {line.partition(":")[0] for line in listening} <= {*LOOPBACK}

    code = f"from ray._raylet import GcsClient; GcsClient(address='{host}:{port}')"
    stranger = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, text=True)
    assert done.returncode != 0 and "InvalidAuthToken" in done.stderr
