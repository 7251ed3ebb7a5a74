"""Work spread over processes by Ray, on this machine or on a cluster. Needs the extra `batch`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import secrets
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from raymap3r_ros.errors import OptionError, Raymap3rError
from raymap3r_ros.signals import STOP_SIGNALS
from raymap3r_ros.text import printable

HERE = "local"  # address: a Ray of its own on this machine
_POLL = 0.2  # seconds between two checks for a stop
_LONGEST = 40  # characters of a temporary folder: a path of a socket below it has at most 107
_SPARE = 0.95  # share of a GPU's memory that workers may fill
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # workers without a share of a GPU do not see it
    # Other users of this machine can reach its ports, but cannot use them.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all ports are on the loopback address, on Linux, too
}


def batch_module(name: str) -> ModuleType:
    """Import a library of the extra `batch`. Raises Raymap3rError with the command to install it if it is missing."""
    check_batch_modules(name.partition(".")[0])
    return importlib.import_module(name)


def check_batch_modules(*names: str) -> None:
    """Raise Raymap3rError with the command to install them if one of these libraries is missing. Imports none."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise Raymap3rError(
                f"the package {name} is not installed; `raymap3r batch` and --ray need it: pip install "
                "'raymap3r_ros[batch]', or in a checkout: pip install '.[batch]'"
            )


@contextlib.contextmanager
def ray_session(address: str = HERE) -> Iterator[dict[str, float]]:
    """Connect to a Ray cluster, or start Ray on this machine; yield its resources, such as `CPU` and `GPU`.

    `address`: HERE, "auto" or the address of a cluster. A Ray that is started here ends with this process, and is
    reachable neither from other machines nor by other users. Standard output is discarded in the `with` block. Raises
    Raymap3rError if there is no Ray at the address.
    """
    begin: dict[str, Any] = {"address": address}
    with (
        tempfile.TemporaryDirectory(prefix="raymap3r_", dir=_short_folder(), ignore_cleanup_errors=True) as folder,
        # Of the workers: what one that was killed has left is deleted with it.
        tempfile.TemporaryDirectory(prefix="raymap3r_", ignore_cleanup_errors=True) as workplace,
        contextlib.redirect_stdout(io.StringIO()),  # Ray prints the death of each worker there
    ):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == HERE:
            if "ray" not in sys.modules:  # it reads them when it is imported
                os.environ |= _ENVIRONMENT
            # Not `folder` itself: Ray makes its folder accessible to everybody.
            begin |= {"_temp_dir": os.path.join(folder, "ray"), "_node_ip_address": "127.0.0.1"}
            begin |= {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))}
            begin |= {"object_store_memory": 2**28}
        ray = batch_module("ray")
        temporary = os.environ.get("TMPDIR")
        if address == HERE:
            os.environ["TMPDIR"] = workplace
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        try:
            ray.init(**begin, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Raymap3rError(f"Ray at {address!r}: {error}; start it with: ray start --head") from error
        finally:
            _set_handlers(handlers)  # Ray ends the process on SIGTERM
            if temporary is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = temporary
        try:
            yield ray.cluster_resources()
        finally:
            ray.shutdown()
            _set_handlers(handlers)


def _short_folder() -> str | None:
    return None if len(tempfile.gettempdir()) <= _LONGEST else "/tmp"


def _set_handlers(handlers: dict[signal.Signals, Any]) -> None:
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except ValueError:
        pass  # not the main thread, in which nothing has changed


class _Worker:
    """A process that makes its work function once, and calls it for one item at a time."""

    def __init__(self, setup: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = setup()

    def run(self, item: Any) -> Any:
        return self._work(item)


def run_tasks(
    setup: Callable[[], Callable[[Any], Any]],
    items: Iterable[Any],
    workers: int,
    resources: dict[str, float],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with its result, or with the exception that is left after one retry, in the order of their end.

    `setup` is called once in each of the `workers`, processes of Ray with these `resources` (`num_cpus`, `num_gpus`);
    it returns the function that is called with an item. Ray starts a worker that dies again, on another machine if
    necessary, and repeats its task once. While `stop()` is true, no item is begun; those that run are awaited.
    """
    ray = batch_module("ray")
    waiting, busy = deque(items), {}
    actor = ray.remote(_Worker).options(max_restarts=-1, max_task_retries=1, **resources)
    idle = [actor.remote(setup) for _ in range(min(workers, len(waiting)))]
    # One task at a worker at a time: the death of a worker costs only the task that it runs. `ActorPool` of Ray does
    # the same, but does not return which item has failed.
    while True:
        while waiting and idle and not stop():
            worker, item = idle.pop(), waiting.popleft()
            busy[worker.run.options(retry_exceptions=True).remote(item)] = worker, item
        if not busy:
            return
        for done in ray.wait(list(busy), timeout=_POLL)[0]:
            worker, item = busy.pop(done)
            if waiting:  # otherwise Ray ends the worker, whose resources another one may wait for
                idle.append(worker)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                result = cause if isinstance(cause, Exception) else Raymap3rError(_death(error))
            worker = None  # no reference is left
            yield item, result


def _death(error: Exception) -> str:
    return f"its process ended twice: {printable(error, 300)}; if the machine ran out of memory, give fewer workers"


def run_once(function: Callable[[], Any], resources: dict[str, float]) -> Any:
    """Return what `function` returns in a process of Ray with these resources."""
    ray = batch_module("ray")
    try:
        return ray.get(ray.remote(**resources)(function).remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def gpu_share(workers: int | None, gpus: int, needed: int, total: int) -> tuple[int, float]:
    """Return the number of workers and the share of a GPU for each: as many as fit, or the given number.

    `needed`: bytes that a worker takes; `total`: those of one GPU. Raises OptionError if the given number is too high.
    """
    fitting = max(1, int(_SPARE * total / needed))
    on_one = fitting if workers is None else -(-workers // gpus)
    if on_one > fitting:
        raise OptionError(
            f"workers is {workers}; {gpus * fitting} fit: each takes {needed / 2**30:.1f} GiB of the "
            f"{total / 2**30:.1f} GiB of a GPU"
        )
    return workers or gpus * on_one, int(1e4 / on_one) / 1e4  # Ray counts ten-thousandths
