"""Who runs the tasks of a batch: threads of this process, Dask workers of this machine, or those of a Dask scheduler.

A task is a program of its own whoever starts it.  A cluster of this machine is made where several run at a time and
`distributed` is installed (pip install 'kstep[dask]'); without it threads do the same, with no dashboard and no worker
that could be replaced.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import resource_tracker
from typing import Any

import kstep
from kstep.errors import UserError
from kstep.forces.dask_cluster import connect

CONNECT_S = 20
# of a cluster of this machine: a task waits at the scheduler, not behind another one
LOCAL_CONFIG = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": 3,
                "distributed.scheduler.http.routes": ["distributed.http.health"]}


@dataclass(frozen=True)
class Workers:
    """An executor of tasks; everywhere(function, *arguments): call it in every process that runs some of them."""

    executor: Executor
    everywhere: Callable[..., Any]


@contextlib.contextmanager
def workers(n_tasks: int, max_jobs: int, scheduler: str | None) -> Iterator[Workers]:
    """Who runs n_tasks, max_jobs at a time on this machine, or as many as the workers of a scheduler take."""
    if scheduler is not None:
        with _connected(scheduler) as client:
            yield _of(client)
    elif min(n_tasks, max_jobs) > 1 and _can_make_a_cluster():
        with _cluster(min(n_tasks, max_jobs)) as client:
            yield _of(client)
    else:
        executor = ThreadPoolExecutor(max_jobs, thread_name_prefix="task")
        try:
            yield Workers(executor, lambda function, *arguments: function(*arguments))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _can_make_a_cluster() -> bool:
    try:
        return bool(version("distributed") and version("cryptography"))
    except PackageNotFoundError:
        return False


def _of(client) -> Workers:
    # a worker that is gone answers nothing, and has nothing running
    return Workers(client.get_executor(pure=False),
                   lambda function, *arguments: client.run(function, *arguments, on_error="ignore"))


@contextlib.contextmanager
def _cluster(n_workers: int) -> Iterator[Any]:
    """A client of worker processes on this machine, which nobody else can reach: pickles are programs.

    They are deaf to the signals of a terminal and a batch system, which go to all processes: their parent answers.
    """
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it says of workers is in the table
    deaf = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    resource_tracker.ensure_running()  # which lets signals in again, where it is started later
    with dask.config.set(LOCAL_CONFIG):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf)  # threads and processes started here inherit it
        try:
            # memory_limit 0: a worker is not to be killed for a large file that it reads
            cluster = LocalCluster(n_workers=n_workers, threads_per_worker=1, security=True, memory_limit=0,
                                   dashboard_address=":0", silence_logs=logging.CRITICAL)
            client = Client(cluster)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield client
        finally:
            client.close(timeout=CONNECT_S)
            cluster.close(timeout=CONNECT_S)


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    """A client of a scheduler that stands, whose workers have this kstep."""
    client = connect(scheduler)
    try:
        others = set(client.run(_version, on_error="ignore").values()) - {_version()}
        if others:
            raise UserError(f"the workers of {scheduler} have kstep {', '.join(sorted(others))}, and this is "
                            f"{_version()}; start them from the same environment")
        if not client.nthreads():
            print(f"{scheduler} has no workers yet; the jobs wait for them", file=sys.stderr)
        yield client
    finally:
        client.close(timeout=CONNECT_S)


def _version() -> str:
    return kstep.__version__
