"""Batches over a real Ray of two workers: equal results, failures, object storage, interruptions."""

import dataclasses
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path

import pytest

for module in ("ray", "pyarrow", "fsspec", "moto", "s3fs"):  # not imported: Ray reads its settings when it is
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
from batch_recordings import COUNT, FRAMES, OPTIONS, WaitingWorkers, kill_and_wait, make_job, results, write_recordings

from raymap3r_ros.io import open_recording
from raymap3r_ros.network import load_network, save_network, untrained_network
from raymap3r_ros.offline import run_recording
from raymap3r_ros.offline.batch import run_batch
from raymap3r_ros.offline.batch_files import MARKER, find_items
from raymap3r_ros.offline.batch_report import DONE, FAILED, INCOMPLETE
from raymap3r_ros.ray_pool import ray_session

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
    with ray_session() as available:
        yield available | {"CPU": 2.0}


def address():
    import ray

    return ray.get_runtime_context().gcs_address


def by_name(rows):
    return {row.folder.rpartition("-")[0]: row for row in rows}


@pytest.fixture(scope="module")
def done(cluster, recordings, checkpoint, tmp_path_factory):
    """A batch of all recordings. A worker is killed in the middle of bag05, and each one that processes bag07."""
    out, kills = tmp_path_factory.mktemp("out") / "results", []

    def kill():
        for _ in range(3):
            kills.append(workers.next_pid())
            kill_and_wait(kills[-1])

    with WaitingWorkers(tmp_path_factory.mktemp("pipes"), {"bag05": 1, "bag07": 2}) as workers:
        thread = threading.Thread(target=kill)
        thread.start()
        rows, stopped_by = run_batch(find_items(str(recordings)), make_job(out, checkpoint), cluster, 2)
        thread.join()
    assert len(set(kills)) == 3 and not stopped_by
    return out, by_name(rows)


def test_results_equal_those_of_the_serial_run_to_the_bit(done, serial):
    out, rows = done
    complete = {name for name, row in rows.items() if row.state != FAILED}
    assert complete == serial.keys() - {"bag07"} and len(complete) == COUNT - 1
    for name in complete:
        assert results(out / rows[name].folder) == serial[name], name


def test_failures_cost_a_retry_and_become_rows_and_the_others_go_on(done):
    out, rows = done
    states = {name: row.state for name, row in rows.items() if row.state != DONE}
    assert states == {"bag03": INCOMPLETE, "bag07": FAILED, "damaged.mcap": FAILED}
    assert "its process ended twice" in rows["bag07"].reason and "fewer workers" in rows["bag07"].reason
    assert "damaged.mcap: cannot be read as a ROS 2 bag" in rows["damaged.mcap"].reason
    assert "cut off" in rows["bag03"].reason and 0 < rows["bag03"].frames < FRAMES
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
    assert rows["bag00"].resets == 1 and any("UNTRAINED" in text or "cut" in text for text in rows["bag03"].warnings)


def test_a_second_batch_only_does_what_is_left(done, cluster, recordings, checkpoint, serial, tmp_path):
    out, before = done
    marks = {row.folder: (out / row.folder / MARKER).stat().st_mtime_ns for row in before.values() if row.frames}
    changed = before["bag01"].folder
    (out / before["bag02"].folder / MARKER).unlink()  # as of a copy that was interrupted
    marker = json.loads((out / changed / MARKER).read_text())
    (out / changed / MARKER).write_text(json.dumps(marker | {"weights": "others"}))
    items = [item for item in find_items(str(recordings)) if "damaged" not in item.folder]
    rows, _ = run_batch(items, make_job(out, checkpoint), cluster, 2)
    after = by_name(rows)
    assert {name for name, row in after.items() if not row.earlier} == {"bag01", "bag02", "bag07"}
    for name, row in after.items():
        assert results(out / row.folder) == serial[name]
        if row.earlier:
            assert dataclasses.replace(row, earlier=False) == before[name]
            assert (out / row.folder / MARKER).stat().st_mtime_ns == marks[row.folder]
