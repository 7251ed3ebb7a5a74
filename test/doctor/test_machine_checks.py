"""Checks of the machine, its libraries, weights, precisions and memory: what is broken is named, with what to do."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import raymap3r_ros
from raymap3r_ros import cli
from raymap3r_ros.doctor import libraries, machine, memory, precision, timing, weights
from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target, guarded, worst
from raymap3r_ros.geometry import cameras
from raymap3r_ros.network import PRESETS, attention, load_network, save_network, shipped_weights, untrained_network
from raymap3r_ros.streaming import Stream, StreamOptions

TARGET = Target("one_room", StreamOptions(), torch.device("cpu"))


def by_name(lines):
    return {line.name: line for line in lines}


def written(root, **files):
    """Files below `root`; `__` in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --------------------------------------------------------------------------------------------------------- machine


def test_machine(tmp_path):
    root = written(tmp_path, etc__os_release="", proc__cpuinfo="processor: 0\nmodel name\t: Fast 9000\n")
    (root / "etc/os_release").rename(root / "etc/os-release")
    (root / "etc/os-release").write_text('NAME=Ubuntu\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    lines = by_name(machine.check(TARGET, root))
    assert lines["system"].found.startswith("Ubuntu 24.04.1 LTS, ") and "Fast 9000, " in lines["processor"].found
    if not torch.cuda.is_available():
        assert lines["GPU"] == Line("machine", "GPU", OK, "none: networks run on the CPU")


@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        (
            "proc__driver__nvidia__version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n",
            "550.54.15",
        ),
        ("etc__nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1\n", "4.3"),
    ],
)
def test_driver_that_torch_cannot_use(name, text, version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = by_name(machine.check(TARGET, written(tmp_path, **{name: text})))["GPU"]
    assert line.state == WARNING and f"driver {version}" in line.found and "pytorch.org" in line.remedy


def test_gpu_without_kernels(monkeypatch):
    class Properties:
        name, total_memory = "Old", 4 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    for capability, state in (((6, 1), FAIL), ((8, 6), OK)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, found=capability: found)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
        line = by_name(machine.check(TARGET))["GPU 0"]
        assert line.state == state and "Old, 4.00 GB" in line.found
        assert "--device cpu" in line.remedy or state == OK


def test_kernels_of_an_architecture():
    assert machine.has_kernels(["sm_80"], 8, 9) and machine.has_kernels(["compute_80"], 12, 0)
    assert not machine.has_kernels(["sm_90a"], 8, 9) and not machine.has_kernels(["sm_80"], 12, 0)
    assert machine.has_kernels(["sm_120"], 12, 0)


# ------------------------------------------------------------------------------------------------------- libraries


def test_libraries():
    lines = by_name(libraries.check(TARGET))
    assert f"torch {torch.__version__}" in lines["Python"].found and raymap3r_ros.__version__ in lines["Python"].found
    assert f"numpy {np.__version__}" in lines["packages"].found


def test_without_rclpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    line = by_name(libraries.check(TARGET))["ROS 2"]
    assert line.state == WARNING and "ROS 2 not found" in line.found and "source /opt/ros" in line.remedy


def test_missing_package(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else found(name))
    line = by_name(libraries.check(TARGET))["packages"]
    assert line.state == FAIL and line.remedy == "python3 -m pip install opencv-python-headless"


# --------------------------------------------------------------------------------------------------------- weights


def test_hashes_of_all_shipped_weights_are_known():
    assert weights.SHIPPED.keys() == shipped_weights().keys()
    assert all(line.state == OK for line in weights.check(TARGET))


def test_weights_have_the_size_that_the_command_weights_shows(capsys):
    lines = list(weights.check(TARGET))
    assert cli.main(["weights", "list"]) == 0
    printed = capsys.readouterr().out
    for line in lines:
        size = line.found.rpartition(", ")[2]
        assert size.endswith(" MB") and size in printed


def test_changed_or_missing_weights(tmp_path, monkeypatch):
    data = bytearray(shipped_weights()["one_room"].read_bytes())
    data[-1] ^= 1
    (tmp_path / "one_room.safetensors").write_bytes(data)
    files = {**shipped_weights(), "one_room": tmp_path / "one_room.safetensors"}
    monkeypatch.setattr(weights, "shipped_weights", lambda: files)
    office, line = weights.check(TARGET)
    assert (office.name, office.state) == ("one_office", OK)
    assert (line.name, line.state) == ("one_room", FAIL)
    assert f"expected {weights.SHIPPED['one_room']}" in line.found and "install the package again" in line.remedy
    monkeypatch.setattr(weights, "shipped_weights", dict)
    for line in weights.check(TARGET):
        assert line.state == FAIL and "missing" in line.found


def test_chosen_checkpoint(tmp_path, tiny_config):
    path = tmp_path / "mine.safetensors"
    save_network(untrained_network(tiny_config), path)
    line = by_name(weights.check(Target(str(path), StreamOptions(), TARGET.device)))[str(path)]
    assert line.state == OK and line.values["sha256"] == weights.sha256_of(path) in line.found
    path.write_bytes(path.read_bytes()[:-9])
    assert by_name(weights.check(Target(str(path), StreamOptions(), TARGET.device)))[str(path)].state == FAIL
    assert by_name(weights.check(Target("mini", StreamOptions(), TARGET.device)))["mini"].state == WARNING
    line = by_name(weights.check(Target("absent", StreamOptions(), TARGET.device)))["absent"]
    assert line.state == FAIL and "--checkpoint" in line.remedy


# ------------------------------------------------------------------------------------------------------- precision


def test_precisions_of_a_cpu(tmp_path):
    written(tmp_path, proc__cpuinfo="flags\t\t: sse avx512_bf16\n")
    lines = by_name(precision.check(TARGET, tmp_path))
    assert [line.state for line in lines.values()] == [OK] * 3
    native = {name: line.values["native"] for name, line in lines.items()}
    assert native == {"float32": True, "bfloat16": True, "float16": False}
    chosen = Target("one_room", StreamOptions(precision="float16"), TARGET.device)
    line = by_name(precision.check(chosen, tmp_path))["float16"]
    assert line.state == WARNING and "float32" in line.remedy


def test_wrong_products(monkeypatch):
    def wrong(tensor, other):
        return torch.mm(tensor, other) + (tensor.dtype == torch.bfloat16)

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    lines = by_name(precision.check(Target("one_room", StreamOptions(precision="bfloat16"), TARGET.device)))
    assert [line.state for line in lines.values()] == [OK, FAIL, OK] and "wrong" in lines["bfloat16"].found
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: torch.mm(one, other) * float("nan"))
    assert [line.state for line in precision.check(TARGET)] == [FAIL, WARNING, WARNING]


def test_precision_that_is_not_supported(monkeypatch):
    def refuse(*_):
        raise RuntimeError('"addmm_impl_cpu_" not implemented\nmore')

    monkeypatch.setattr(precision, "products_are_right", refuse)
    line = by_name(precision.check(TARGET))["float16"]
    assert (line.state, line.found) == (WARNING, 'not supported: "addmm_impl_cpu_" not implemented')


# ---------------------------------------------------------------------------------------------------------- memory

# With these variables of glibc each tensor is a mapping of its own, and the resident memory is exact.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
PEAK = """
import numpy as np
from raymap3r_ros.doctor.timing import AT_ONCE
from raymap3r_ros.network import load_network
from raymap3r_ros.streaming import Stream, StreamOptions
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
stream = Stream(load_network("mini"), StreamOptions(execution="plain", image_size=256), AT_ONCE)
image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
for _ in range(2):
    stream.step(image)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
stream.step(image)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not reset the peak")
def test_calculated_activations_are_those_that_are_measured():
    need = memory.memory_need(PRESETS["mini"], StreamOptions(image_size=256))
    done = subprocess.run(
        [sys.executable, "-c", PEAK], env={**os.environ, **EXACT}, capture_output=True, text=True, check=True
    )
    measured = int(done.stdout)
    assert 0.9 * measured < need.activations < 1.25 * measured


def test_parameters_and_state_are_counted_exactly():
    network = load_network("one_room")
    need = memory.memory_need(network.config, StreamOptions(precision="bfloat16"))
    assert need.loading == sum(parameter.numel() * 4 for parameter in network.parameters())
    network.lower_precision("bfloat16")
    assert need.parameters == sum(p.numel() * p.element_size() for p in network.parameters())
    # A frame afterwards finds no tensor without data in a cache of tensors.
    for module in (cameras, attention):
        for function in vars(module).values():
            assert not hasattr(function, "cache_info") or function.cache_info().currsize == 0
    result = Stream(load_network("mini"), StreamOptions()).step(np.zeros((48, 64, 3), np.uint8))
    assert type(result.depth) is torch.Tensor


@pytest.fixture
def small_need(monkeypatch):
    """A network that needs 100 MiB, 105 MB, beside the libraries."""
    part = 2**20
    monkeypatch.setattr(memory, "memory_need", lambda *_: memory.Need(50 * part, 60 * part, 10 * part, 32 * part))


@pytest.mark.parametrize(("free", "state"), [(200_000, FAIL), (340_000, WARNING), (900_000, OK)])
def test_free_memory_of_the_machine(free, state, tmp_path, small_need):
    (line,) = memory.check(TARGET, written(tmp_path, proc__meminfo=f"MemTotal: 9 kB\nMemAvailable: {free} kB\n"))
    assert line.state == state and "314.6 MB needed" in line.found
    assert ("--size" in line.remedy) == (state != OK)


@pytest.mark.parametrize(
    ("limit", "state"),
    [
        ({"memory.max": "104857600", "memory.current": "1000"}, FAIL),
        ({"memory.max": "max", "memory.current": "1"}, OK),
    ],
)
def test_free_memory_of_a_container(limit, state, tmp_path, small_need):
    written(
        tmp_path, proc__meminfo="MemAvailable: 9000000 kB\n", **{f"sys__fs__cgroup__{n}": t for n, t in limit.items()}
    )
    (line,) = memory.check(TARGET, tmp_path)
    assert line.state == state


def test_unknown_memory_and_unknown_need(tmp_path, small_need):
    (line,) = memory.check(TARGET, tmp_path)
    assert line.state == WARNING and "unknown" in line.found
    (line,) = memory.check(Target("absent", StreamOptions(), TARGET.device), tmp_path)
    assert line.state == WARNING and "weights" in line.remedy


def test_free_memory_of_a_gpu(tmp_path, small_need, monkeypatch):
    written(tmp_path, proc__meminfo="MemAvailable: 9000000 kB\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 2**30, 8 * 2**30))
    gpu, host = memory.check(Target("one_room", StreamOptions(), torch.device("cuda")), tmp_path)
    assert (gpu.name, gpu.state, host.name, host.state) == ("GPU", OK, "host", OK)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * 2**20, 8 * 2**30))
    gpu, _ = memory.check(Target("one_room", StreamOptions(), torch.device("cuda")), tmp_path)
    assert gpu.state == FAIL


# ---------------------------------------------------------------------------------------------------------- timing


def test_timed_frames(tmp_path, tiny_config):
    path = tmp_path / "mine.safetensors"
    save_network(untrained_network(tiny_config), path)
    lines = by_name(timing.check(Target(str(path), StreamOptions(execution="plain"), TARGET.device), frames=3))
    assert lines["frames"].found.startswith("3 of 3 frames of size 32 on cpu, float32: ")
    assert len(lines["frames"].values["milliseconds"]) == 3
    lines = by_name(
        timing.check(Target(str(path), StreamOptions(execution="plain"), TARGET.device), limit=1e-9, frames=3)
    )
    assert lines["frames"].found.startswith("1 of 3 frames")
    lines = by_name(timing.check(Target(str(tmp_path / "absent"), StreamOptions(), TARGET.device)))
    assert lines["frames"].state == FAIL and "not a file" in lines["frames"].found


def test_slow_frames_and_frames_that_are_not_finite(monkeypatch, tiny_config):
    network = untrained_network(tiny_config).eval().requires_grad_(False)
    stream = Stream(network, StreamOptions(execution="plain"))
    assert timing._line(stream, ([0.5, 0.5, 0.6], 0), 3).state == WARNING
    assert timing._line(stream, ([0.02, 0.02, 0.6], 0), 3).state == OK
    network.pose_head.mlp.fc2.bias[0] = float("nan")
    monkeypatch.setattr(timing, "load_network", lambda *_: network)
    lines = by_name(timing.check(Target("mini", StreamOptions(execution="plain"), TARGET.device), frames=2))
    assert lines["frames"].state == FAIL and "2 are not finite" in lines["frames"].found


# ----------------------------------------------------------------------------------------------------------- lines


def test_exceptions_become_lines():
    def fail(error):
        yield Line("x", "first", OK, "fine")
        raise error

    first, second = guarded("x", "part", lambda: fail(ValueError("bad\x1b[2J")))
    assert first.state == OK and (second.check, second.name, second.state) == ("x", "part", FAIL)
    assert second.found == "ValueError: bad\\x1b[2J"
    _, second = guarded("x", "part", lambda: fail(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    assert "smaller --size" in second.remedy
    assert worst([first, second]) == FAIL and worst([first]) == worst([]) == OK
    json.dumps(second.to_dict())
