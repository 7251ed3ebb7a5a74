"""Exported graphs that are kept for later starts."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from batching_tools import METHOD_SOON, needs_onnx

from raymap3r_ros.network import load_network
from raymap3r_ros.streaming import RULES, Stream, StreamOptions, graph_cache
from raymap3r_ros.streaming.graph_cache import KEPT, graph_path, read_graph, write_graph
from raymap3r_ros.streaming.method import METHOD
from raymap3r_ros.streaming.state import StepPlan

OPTIONS = StreamOptions(execution="onnx", update_rule="cut3r", reset_interval=0)
PLAN = StepPlan(OPTIONS, METHOD, RULES["cut3r"], run_ray_branch=False, motion=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMAP3R_HOME", str(tmp_path))
    return tmp_path / "onnx"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list:
    """The exports so far."""
    done, export = [], torch.onnx.export

    def counted(*args, **kwargs):
        done.append(args)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return done


def depths(network) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    stream = Stream(network, OPTIONS, METHOD_SOON)
    return np.stack([stream.step(image, motion=False).depth.numpy() for image in images])


@needs_onnx
def test_a_kind_of_frame_is_exported_once(folder: Path, exports: list, caplog: pytest.LogCaptureFixture):
    network = load_network("mini")
    first = depths(network)
    (file,) = folder.iterdir()
    assert len(exports) == 1
    assert np.array_equal(depths(network), first) and len(exports) == 1

    # A damaged file, and a whole one that ONNX Runtime cannot load, are replaced.
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert np.array_equal(depths(network), first) and len(exports) == 2 and file.read_bytes() == data
    assert not caplog.records
    write_graph(file, b"no graph")
    assert np.array_equal(depths(network), first) and len(exports) == 3 and file.read_bytes() == data
    assert [record.message.partition(" cannot be used and is exported again: ")[0] for record in caplog.records] == [
        str(file)
    ]


@needs_onnx
def test_whatever_a_graph_depends_on_is_in_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    network, other = load_network("mini"), load_network("mini")
    with torch.no_grad():
        other.first_pose_token[0, 0, 0] += 1e-3
    plan = PLAN
    tensors = [torch.zeros(1, 3)]
    paths = {
        graph_path(network, plan, tensors),
        graph_path(other, plan, tensors),
        graph_path(network, dataclasses.replace(plan, motion=True), tensors),
        graph_path(network, dataclasses.replace(plan, method=METHOD_SOON), tensors),
        graph_path(network, plan, [torch.zeros(2, 3)]),
    }
    monkeypatch.setattr(torch, "__version__", "2.99")
    paths.add(graph_path(network, plan, tensors))
    monkeypatch.setattr(graph_cache, "code_digest", lambda *rooms: "changed")
    paths.add(graph_path(network, plan, tensors))
    assert len(paths) == 7 and {path.parent for path in paths} == {folder}


def test_only_the_graphs_used_last_are_kept(folder: Path):
    paths = [folder / f"{number}.onnx" for number in range(KEPT)]
    for age, path in enumerate(paths):
        write_graph(path, path.name.encode())
        os.utime(path, (1e9 + age, 1e9 + age))
    assert read_graph(paths[0]) == b"0.onnx"  # used, so that it is not the oldest any more
    write_graph(folder / "new.onnx", b"new")
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths[2:]} | {"0.onnx", "new.onnx"}
    assert read_graph(paths[1]) is None


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    write_graph(tmp_path / "file" / "a.onnx", b"graph")
    (record,) = caplog.records
    assert record.message.startswith("exported graphs cannot be kept, the next start exports them again: ")
    assert read_graph(tmp_path / "file" / "a.onnx") is None


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAYMAP3R_HOME", "~no_such_user/x")
    monkeypatch.setattr(graph_cache.importlib.metadata, "version", lambda _: "1")
    assert graph_path(load_network("mini"), PLAN, []) is None


@needs_onnx
def test_the_runtime_reports_nothing_to_its_publisher(tmp_path: Path):
    """Otherwise ONNX Runtime keeps reports in the home of the user until it can send them."""
    code = (
        "import io\n"
        "import torch\n"
        "from raymap3r_ros.streaming import onnx_graphs\n"
        "buffer = io.BytesIO()\n"
        "torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), buffer, dynamo=False)\n"
        "session = onnx_graphs._session(buffer.getvalue())\n"
        "print(len(session.get_inputs()))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip().endswith("1")
    assert not [path for path in tmp_path.rglob("*") if "icrosoft" in str(path) or "onnxruntime" in str(path)]
