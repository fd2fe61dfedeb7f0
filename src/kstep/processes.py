"""Cores, memory, and worker processes that never outlive the program that started them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
from multiprocessing.connection import wait

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def physical_cores() -> int:
    """Cores this process may use; where the system does not say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_thread() -> None:
    """One thread per true call: two are many times slower on a shared machine; BLAS reads this once, when loaded."""
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")


def most_memory_MB() -> float:
    """The most memory this process has held, MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def exit_with_parent() -> None:
    """End this spawned process as soon as its parent is gone, however that died.

    A worker in the middle of a long calculation would not notice; as an orphan it would go on
    using a core, and writing into files that a new run believes to be its own.
    """
    parent = multiprocessing.parent_process()

    def watch():
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
