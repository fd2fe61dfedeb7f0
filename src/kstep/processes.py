"""Cores, memory, and worker processes: they never outlive the program that started them, and can be replaced."""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# a terminal and a batch system send them to all processes of a job; SIGUSR1 would end one that does not know it.  Not
# SIGTERM: Python itself sends it to those that are left when a program ends, and waits for them
OF_THE_PARENT = {signal.SIGINT, signal.SIGUSR1}

FEWEST_SECONDS, TIMES_THE_MEDIAN = 60.0, 50.0  # a call may take the larger of both
FIRST_CALL_S = 3600.0  # what the first one may take, while nobody knows what calls cost
START_S = 600.0  # for a process to import its libraries and build what it works with
MOST_PATIENCE = 5.0  # seconds of the clock for each CPU second that a worker may take to end
MOST_LOST = 3  # workers at one place, before what they were to do is given up
SLICE_S = 0.5  # of waiting, between two looks at what else there is
KNOWN_TIMES = 501  # calls behind the median


def physical_cores() -> int:
    """Cores this process may use; where the system does not say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_thread(*, whatever_was_set: bool = False) -> None:
    """One thread per true call: two are many times slower on a shared machine; BLAS reads this once, when loaded.

    whatever_was_set: a number of the shell, meant for another program, does not count.
    """
    for variable in THREAD_VARIABLES:
        if whatever_was_set:
            os.environ[variable] = "1"
        else:
            os.environ.setdefault(variable, "1")


def end_quickly() -> None:
    """Of a program or a worker: when it ends, Python does not look for garbage among all that its libraries have made.

    Which takes half a second after torch.
    """
    atexit.register(gc.freeze)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Inside of it a worker loads libraries, which stay: Python does not look for garbage among them, then or later.

    That would be a fifth of the time that torch takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def threads_here() -> int:
    """Threads of a true call in this process: what a worker was given, one in the program itself."""
    return int(os.environ.get(THREAD_VARIABLES[0], 1)) if multiprocessing.parent_process() is not None else 1


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


@contextlib.contextmanager
def _environment(n_threads: int) -> Iterator[None]:
    """What a process started here inherits: n_threads threads, and deafness to signals that its parent answers."""
    resource_tracker.ensure_running()  # else it starts with the first process, and unblocks SIGINT for it
    saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n_threads)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name, value in saved.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class CallTimes:
    """What calls have cost here, and how long one may take before it counts as hung.

    The limit is given (s), or the larger of a minute and 50 times the median: calls of one molecule differ by a factor
    of a few, by the cycles of their SCF, never by 50.  first_s: the limit while no call is known.
    """

    def __init__(self, limit_s: float | None = None, first_s: float = FIRST_CALL_S):
        self._given, self._first_s, self._seconds = limit_s, first_s, deque[float](maxlen=KNOWN_TIMES)

    def add(self, seconds: float) -> None:
        """One call more."""
        self._seconds.append(seconds)

    @property
    def median_s(self) -> float | None:
        """Of a call, s; None while nobody knows."""
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else None

    def limit_for(self, n_calls: int = 1) -> float:
        """Seconds that so many calls, one after the other, may take."""
        if self._given is not None:
            return n_calls * self._given
        if self.median_s is None:
            return self._first_s
        return max(FEWEST_SECONDS, TIMES_THE_MEDIAN * n_calls * self.median_s)


class WorkerLost(Exception):
    """A worker process has died, or answered nothing for too long."""


def _begin(connection) -> None:
    """Of a worker process: learn what it is to run, and run it."""
    end_quickly()
    try:
        target, arguments = connection.recv()
    except (EOFError, OSError):  # the parent is gone
        return
    target(connection, *arguments)


def _limit_waiting(pipe, seconds: float) -> None:
    """Let a write into the pipe, or the rest of a message that has begun, wait for so long at most."""
    limit = struct.pack("@ll", int(seconds), round(1e6 * (seconds % 1.0)))  # struct timeval; 0 would be no limit
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setblocking(True)  # whatever the default of sockets is in this program
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, direction, limit)


class Worker:
    """A spawned process that runs target(connection, *arguments) and answers what is sent to it.

    What it is to run goes through the pipe, whose waiting has a limit: Python's own way of handing it over waits for
    ever for a process that is stopped, or killed, before it has read more than 64 KiB.
    """

    def __init__(self, target: Callable[..., None], arguments: Sequence[Any], n_threads: int = 1):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self._stuck = ""  # why nothing that it says counts any more
        self._limit(START_S)
        self.process = context.Process(target=_begin, args=(there,), daemon=True)
        with _environment(n_threads):
            self.process.start()
        there.close()
        try:
            self.send((target, tuple(arguments)))
        except BaseException:  # what cannot be pickled; told to end
            self.kill()
            raise

    def send(self, message: Any, limit_s: float | None = None) -> None:
        """Send a message; one to a worker that died, or takes nothing, is lost, which `receive` finds out.

        limit_s: of waiting for it to take some of the message (None: START_S while it loads, then a minute).
        """
        if self._stuck:
            return
        try:
            if limit_s is not None and not self.pipe.closed:
                self._limit(limit_s)
            self.pipe.send(message)
        except BlockingIOError:
            self._stuck = f"took nothing for {self._limited_s:.0f} s"
        except OSError:
            pass

    def receive(self, limit_s: float, attend: Callable[[], None] = lambda: None) -> Any:
        """The next message; WorkerLost says in words why there is none.

        limit_s: of waiting here; while this process itself is stopped no time passes.  attend() is called every half
        second.
        """
        waited, before = 0.0, time.monotonic()
        if self._stuck:
            raise WorkerLost(self._stuck)
        while not self.pipe.poll(SLICE_S):
            now = time.monotonic()
            waited, before = waited + min(now - before, 2 * SLICE_S), now
            attend()
            if waited > limit_s:
                raise WorkerLost(f"answered nothing for {waited:.0f} s")
        try:
            message = self.pipe.recv()
        except BlockingIOError:
            raise WorkerLost(f"stopped in the middle of an answer for {self._limited_s:.0f} s") from None
        except (EOFError, OSError):
            self.process.join(timeout=SLICE_S)
            raise WorkerLost(f"died (exit code {self.process.exitcode})") from None
        if self._limited_s > FEWEST_SECONDS:  # it has loaded what it needs
            self._limit(FEWEST_SECONDS)
        return message

    def _limit(self, seconds: float) -> None:
        self._limited_s = seconds
        _limit_waiting(self.pipe, seconds)

    def kill(self) -> None:
        """End it at once, a stopped one too, which would not heed SIGTERM."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def end_all(workers: Sequence[Worker], farewell: Any, patience_s: float = 2.0) -> None:
    """Say farewell to all, wait for them together, and kill those that are still there.

    patience_s: CPU seconds that each may still take, to write down where it is; where a machine does other work, up to
    MOST_PATIENCE times as long by the clock.
    """
    for worker in workers if patience_s else ():
        worker.send(farewell, patience_s)
    began = time.monotonic()
    spent = [_cpu_s(worker.process.pid) for worker in workers]
    for worker, before in zip(workers, spent):
        while worker.process.is_alive():
            passed, now = time.monotonic() - began, _cpu_s(worker.process.pid)
            used = passed if before is None or now is None else max(now - before, passed / MOST_PATIENCE)
            if used >= patience_s:
                break
            worker.process.join(timeout=min(patience_s - used, SLICE_S))
        worker.kill()


def _cpu_s(pid: int | None) -> float | None:
    """CPU seconds of a process so far, where the system says so (Linux)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            user, system = stat.read().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
