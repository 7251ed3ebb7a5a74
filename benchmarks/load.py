#!/usr/bin/env python3
"""Other work for a machine: processes that compute all the time, for measurements on a busy machine.

    python benchmarks/load.py N [--seconds S]

Runs N processes at normal priority until Ctrl-C, or for S seconds. Other benchmarks start them with `--load N`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

# Products of matrices that fit a cache: the caches and vector units are in use as in other image processing.
_PROGRAM = """
import os
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np
matrix = np.eye(256, dtype=np.float32)
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100):
        matrix @ matrix
"""


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep this number of processes computing. They also end with the process that started them."""
    running = [subprocess.Popen([sys.executable, "-c", _PROGRAM]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("processes", type=int, metavar="N", help="number of processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="end after this time")
    args = parser.parse_args(arguments)
    end = time.monotonic() + args.seconds
    with contextlib.suppress(KeyboardInterrupt), load(args.processes):
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 3600))
    return 0


if __name__ == "__main__":
    sys.exit(main())
