"""Large messages between processes: shared memory, the Fast DDS profile, and a round trip."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target
from raymap3r_ros.text import printable, size_text

NAME = "dds"
SEGMENT = 64 * 2**20  # bytes of shared memory of each process, see config/fastdds.xml
PROCESSES = 4  # a camera driver, the node, and two subscribers
SHARED_MEMORY = Path("/dev/shm")
FAST_DDS_FILES = ("fastdds_", "fastrtps_")  # names since version 3, and before
LIMIT = 60.0  # seconds for the round trip
ROUND_TRIP = "raymap3r_ros.clients.round_trip"
SLOW = 200.0  # milliseconds there and back of an image of 6 MB
SECTION = "see docs/troubleshooting.md, Large messages"


def check(target: Target) -> Iterator[Line]:
    """Lines about large messages; only a warning without ROS 2."""
    if importlib.util.find_spec("rclpy") is None:
        yield Line(NAME, "round trip", WARNING, "not run: ROS 2 not found", "see the line ROS 2 of libraries")
        return
    from raymap3r_ros.node.dds_profile import discovery_problem, domain_problem

    problem, remedy = domain_problem(os.environ), "set ROS_DOMAIN_ID to one of these, or remove it"
    if not problem:
        problem, _, remedy = discovery_problem(os.environ).partition("; ")
    number = os.environ.get("ROS_DOMAIN_ID", "") or "0"
    yield Line(NAME, "domain", *((FAIL, problem, remedy) if problem else (OK, f"ROS_DOMAIN_ID {number}")))
    if _is_fast_dds(os.environ):
        yield check_shared_memory()
    environment, profile = profile_of(os.environ)
    yield profile
    yield round_trip(environment)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Line:
    """Shared memory, and what the profile takes of it."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Line(NAME, "shared memory", WARNING, f"{folder}: {error.strerror}", "images go through UDP, slower")
    needed = PROCESSES * SEGMENT
    names = [name for name in os.listdir(folder) if name.startswith(FAST_DDS_FILES)]
    found = (
        f"{size_text(usage.free)} of {size_text(usage.total)} free in {folder}; {size_text(needed)} needed by "
        f"{PROCESSES} processes; {len(names)} files of Fast DDS"
    )
    values = {"free": usage.free, "total": usage.total, "needed": needed, "files": len(names)}
    remedy = "in Docker: --shm-size 1g, or --ipc host; elsewhere: `fastdds shm clean` removes files of ended processes"
    if usage.free < 2 * SEGMENT:
        return Line(NAME, "shared memory", FAIL, found, remedy, values)
    return Line(
        NAME, "shared memory", *((OK, found) if usage.free >= needed else (WARNING, found, remedy)), values=values
    )


def profile_of(environment: Mapping[str, str]) -> tuple[dict[str, str], Line]:
    """Variables that the launch files would add, and the line about them."""
    from raymap3r_ros.node.dds_profile import USER_VARIABLES, profile_environment, profile_problem

    added = profile_environment(environment)
    rmw = environment.get("RMW_IMPLEMENTATION", "")
    chosen = {name: environment[name] for name in USER_VARIABLES if environment.get(name)}
    values = {"added": added, "chosen": chosen, "rmw": rmw}
    if not _is_fast_dds(environment):
        found = f"not used by {rmw}: its own settings for large messages count"
        return added, Line(NAME, "profile", OK, found, values=values)
    if problem := profile_problem(environment):
        problem, _, remedy = problem.partition("; ")
        return added, Line(NAME, "profile", FAIL, problem, remedy, values)
    if chosen:
        text = ", ".join(f"{name}={value}" for name, value in chosen.items())
        return added, Line(NAME, "profile", OK, f"of the user: {text}", values=values)
    ((name, path),) = added.items()
    if not Path(path).is_file():
        return added, Line(NAME, "profile", FAIL, f"{path} is missing", "install the package again", values)
    found = f"{name}={path}, set by the launch files; the camera's process needs it too"
    return added, Line(NAME, "profile", OK, found, values=values)


def _is_fast_dds(environment: Mapping[str, str]) -> bool:
    """Whether ROS 2 uses Fast DDS, its default."""
    return "fastrtps" in (environment.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp")


def round_trip(added: Mapping[str, str], limit: float = LIMIT) -> Line:
    """Loss and latency of large images between two processes, in a ROS domain of their own."""
    environment = {**os.environ, **added, **_apart(os.environ)}
    command = [sys.executable, "-m", ROUND_TRIP]
    namespace = f"/raymap3r_doctor_{os.getpid()}"
    with _running([*command, "echo", namespace], environment) as echo:
        try:
            done = subprocess.run(
                [*command, "measure", namespace], env=environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return _failed(f"the measuring process did not end within {limit:.0f} s")
        if done.returncode:
            return _failed(f"the measuring process ended with status {done.returncode}: {_last_line(done.stderr)}")
        report = json.loads(done.stdout.splitlines()[-1])
        if not report["milliseconds"]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                echo.wait(1)  # if it has failed, its message is the reason
        if (status := echo.poll()) is not None:
            return _failed(f"the echoing process ended with status {status}: {_last_line(echo.stderr.read())}")
    return judge(report)


def judge(report: Mapping[str, Any]) -> Line:
    """The line for a report of `clients.round_trip`."""
    times, sent = report["milliseconds"], report["sent"]
    if not sent:
        return _failed(f"two processes with {report['rmw']} did not connect", report)
    found = f"{len(times)} of {sent} images of {size_text(report['bytes'])} came back ({report['rmw']})"
    if not times:
        return _failed(found, report)
    median = statistics.median(times)
    found += f", there and back in {median:.1f} ms (median), at most {max(times):.1f} ms"
    values = {**report, "median_milliseconds": median}
    if len(times) < sent:
        return Line(NAME, "round trip", WARNING, found, f"large messages are lost: {SECTION}", values)
    if median > SLOW:
        return Line(NAME, "round trip", WARNING, found, f"large messages are slow: {SECTION}", values)
    return Line(NAME, "round trip", OK, found, values=values)


def _failed(found: str, values: Mapping[str, Any] | None = None) -> Line:
    from raymap3r_ros.node.dds_profile import to_check

    remedy = (
        f"check that `ros2 topic list` works in this shell, RMW_IMPLEMENTATION, and {to_check(os.environ)}; {SECTION}"
    )
    return Line(NAME, "round trip", FAIL, found, remedy, values or {})


def _apart(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a ROS domain that robots do not use, on this machine only."""
    # 215 to 232 are the domains above 101 whose ports are not ephemeral ones of Linux.
    apart = {
        "ROS_DOMAIN_ID": str(215 + os.getpid() % 18), "ROS_SECURITY_ENABLE": "false", "ROS_DISCOVERY_SERVER": "",
    }  # fmt: skip
    old = environment.get("ROS_DISTRO") == "humble"
    return {**apart, **({"ROS_LOCALHOST_ONLY": "1"} if old else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})}


@contextlib.contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """A process that is killed with the context."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1] if lines else "no message", 300)
