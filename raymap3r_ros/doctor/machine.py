"""The machine: operating system, processor, memory, GPU and its driver."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target
from raymap3r_ros.text import size_text

NAME = "machine"
DRIVER_FILES = ("proc/driver/nvidia/version", "etc/nv_tegra_release")  # the second on a Jetson


def check(target: Target, root: Path = Path("/")) -> Iterator[Line]:
    """Lines about the hardware and the system below it. `root` contains proc and etc."""
    yield Line(NAME, "system", OK, f"{_system(root)}, {platform.machine()}, kernel {platform.release()}")
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    values = {"cores": cores, "memory_bytes": memory}
    yield Line(NAME, "processor", OK, f"{_processor(root)}, {cores} cores, {size_text(memory)} memory", values=values)
    driver = driver_version(root)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(index, driver)
    elif driver:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found = f"NVIDIA driver {driver}, but torch {torch.__version__} (built {built}) finds no GPU"
        remedy = (
            "install a torch that is built with CUDA, no newer than the driver supports (pytorch.org, or NVIDIA's own "
            "for a Jetson); in Docker start the container with --gpus all"
        )
        yield Line(NAME, "GPU", WARNING, found, remedy)
    else:
        yield Line(NAME, "GPU", OK, "none: networks run on the CPU")


def _gpu(index: int, driver: str) -> Line:
    properties = torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    kernels = torch.cuda.get_arch_list()
    found = (
        f"{properties.name}, {size_text(properties.total_memory)}, compute capability {major}.{minor}, "
        f"driver {driver or 'of unknown version'}"
    )
    values = {
        "name": properties.name, "memory_bytes": properties.total_memory, "capability": [major, minor],
        "driver": driver, "kernels": kernels,
    }  # fmt: skip
    name = f"GPU {index}"
    if not has_kernels(kernels, major, minor):
        remedy = f"install a torch with kernels for compute capability {major}.{minor}, or use --device cpu"
        return Line(NAME, name, FAIL, f"{found}; torch has kernels for {', '.join(kernels)} only", remedy, values)
    return Line(NAME, name, OK, found, values=values)


def has_kernels(kernels: list[str], major: int, minor: int) -> bool:
    """Whether a GPU can run one of the kernels: sm_XY of its major version, or compute_XY, compiled at the start."""
    for kernel in kernels:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if built <= (major, minor) and (match[1] == "compute" or built[0] == major):
            return True
    return not kernels


def driver_version(root: Path = Path("/")) -> str:
    """Version of NVIDIA's driver, or of a Jetson's system; "" if there is none."""
    for name in DRIVER_FILES:
        try:
            line = (root / name).read_text(errors="replace").partition("\n")[0]
        except OSError:
            continue
        match = re.search(r"\d+\.\d+(\.\d+)?", line)
        return match[0] if match else line.strip("# ")
    return ""


def _system(root: Path) -> str:
    try:
        text = (root / "etc/os-release").read_text(errors="replace")
    except OSError:
        return platform.system()
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.MULTILINE)
    return match[1] if match else platform.system()


def _processor(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()
