"""Fixtures of the fault tests: a stream node and a probe node over real DDS, and checks for leaks."""

import gc
import importlib.util
import itertools
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="the node needs ROS 2")

_spec = importlib.util.spec_from_file_location("node_bench", Path(__file__).parents[1] / "node" / "conftest.py")
node_bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(node_bench)
node_bench.numbers = itertools.count(1000)  # namespaces must be unique in a process
make_bench, hold = node_bench.make_bench, node_bench.hold

PAGE = os.sysconf("SC_PAGE_SIZE")
POOL = 4  # threads of the node's executor
MAX_GROWTH = 40.0  # MiB of resident memory after the warm-up; allocators do not return all freed memory


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long form of the fault tests, which takes minutes")


@pytest.fixture
def sized(request):
    """Selects the size of a case: the short one in the test suite, the long one in `make faults`."""
    return lambda short, long: long if request.config.getoption("--long", default=False) else short


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@dataclass(frozen=True)
class Usage:
    """Resources held by a process."""

    threads: int  # Python threads, without those of executors, which start on demand
    tasks: int  # all threads
    files: int
    entities: int  # subscriptions, publishers, services, clients, timers, guards of the node
    resident: float  # MiB


def usage(node=None):
    """Resources held by this process, and by a node in it."""
    gc.collect()
    kinds = ("subscriptions", "publishers", "services", "clients", "timers", "guards", "waitables")
    return Usage(
        threads=sum(not one.name.startswith("ThreadPoolExecutor") for one in threading.enumerate()),
        tasks=len(os.listdir("/proc/self/task")),
        files=len(os.listdir("/proc/self/fd")),
        entities=sum(len(list(getattr(node, kind))) for kind in kinds) if node else 0,
        resident=int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
    )


def assert_no_leak(before, now, node=None):
    """Compare with the usage after the warm-up; `now` is called again until DDS has released everything."""
    deadline = time.monotonic() + 10
    after = now(node)
    while time.monotonic() < deadline and (after.threads > before.threads or after.files > before.files):
        threading.Event().wait(0.1)
        after = now(node)
    assert after.threads <= before.threads, f"{before} -> {after}"
    assert after.tasks <= before.tasks + POOL, f"{before} -> {after}"
    assert after.files <= before.files + 2, f"{before} -> {after}"  # a log file, a shared-memory segment of DDS
    assert after.entities == before.entities, f"{before} -> {after}"
    assert after.resident <= before.resident + MAX_GROWTH, f"{before} -> {after}"


def assert_alive(bench):
    """The executors still spin, no unexpected exception was raised, and the node responds."""
    assert all(thread.is_alive() for _, _, thread in bench.spinning), bench.logs
    unexpected = [text for _, text in bench.logs if "Traceback" in text]
    assert not unexpected, unexpected[0]
    assert bench.state()
