"""True evaluations of R geometries on W spawned workers with one thread each.

Workers are spawned, never forked (a fork after a calculation deadlocks in the maths
libraries), and each sees OMP_NUM_THREADS=1: two threads per true call are many times slower
than one.  Replica r always goes to worker r mod W, so a backend's SCF guess of a replica
stays where that replica is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
import traceback
from dataclasses import dataclass, field, replace

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.processes import THREAD_VARIABLES, exit_with_parent, physical_cores  # noqa: F401 (others take it from here)
from kstep.restraints import Bias


@dataclass(frozen=True)
class Truth:
    """What the true potential said of r geometries, restraints of the spec added.

    energy (r,) kJ/mol; forces (r,N,3) kJ/mol/nm, NaN where they were not asked for; failed (r,) bool: the SCF did not
    converge or the geometry was refused, and every number of that row is NaN; extra {name: (r,...)}: what the backend
    says besides (`Physics.extra`), empty where no row succeeded; bare: energy and forces without the
    restraints, which labels are made of.
    """

    energy: np.ndarray
    forces: np.ndarray
    failed: np.ndarray
    messages: tuple[str, ...] = ()  # (r,) why each row failed, "" where it did not
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    bare: tuple[np.ndarray, np.ndarray] = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.bare is None:
            object.__setattr__(self, "bare", (self.energy, self.forces))


def _evaluate_rows(physics, positions, rows, want_forces):
    energy = np.full(len(rows), np.nan)
    forces = np.full(positions.shape, np.nan)
    messages, extra = [""] * len(rows), {}
    for i, row in enumerate(rows):
        try:
            if want_forces:
                energy[i], forces[i] = physics.energy_and_forces(positions[i], slot=int(row))
            else:
                energy[i] = physics.energy(positions[i], slot=int(row))
            _put(extra, physics.extra(), i, len(rows))
        except PhysicsError as error:
            messages[i] = str(error)
    return energy, forces, messages, extra


def _put(extra: dict, answers: dict, rows, n_rows: int) -> None:
    """Write `answers` of some of n_rows rows into `extra`, where what nobody answered is NaN."""
    for name, values in answers.items():
        if name not in extra:
            extra[name] = np.full((n_rows, *np.shape(values)[np.ndim(rows):]), np.nan)
        extra[name][rows] = values


def _worker(connection, spec: PhysicsSpec) -> None:
    exit_with_parent()
    try:
        physics = spec.build()
        connection.send(("ready", None))
    except Exception as error:  # reported to the parent, which raises it
        connection.send(("error", error if isinstance(error, UserError) else RuntimeError(traceback.format_exc())))
        return
    tasks = queue.SimpleQueue()

    def listen():
        # A thread of its own, so that a task sent while an answer is being written blocks neither side.
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            tasks.put(("stop",))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            task, *payload = tasks.get()
        except KeyboardInterrupt:
            return
        try:
            if task == "evaluate":
                connection.send(("truth", _evaluate_rows(physics, *payload), physics.true_calls, time.process_time()))
            elif task == "forget":
                physics.forget()
                connection.send(("ready", None))
            else:
                return
        except KeyboardInterrupt:
            return
        except Exception:
            connection.send(("error", RuntimeError(traceback.format_exc())))


class EvaluationPool:
    """Evaluate R geometries at once; with one worker, in this process.

    Use as a context manager.  `true_calls` is the sum of the backends' own counters.
    """

    def __init__(self, spec: PhysicsSpec, n_workers: int = 1):
        if n_workers < 1:
            raise UserError(f"{n_workers} workers cannot evaluate anything; use --num-workers 1 or more")
        self.numbers, self.masses = spec.numbers, spec.masses
        self.n_workers = n_workers
        self._bias = Bias(spec.restraints) if spec.restraints else None
        self._local = spec.build() if n_workers == 1 else None
        self._calls = [0] * n_workers
        self._cpu_s = [0.0] * n_workers
        self.failures: list[str] = []  # one sentence per true call that gave no number
        self._pipes, self._processes = [], []
        if self._local is None:
            self._start(spec)

    def _start(self, spec) -> None:
        context = multiprocessing.get_context("spawn")
        saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        try:
            for _ in range(self.n_workers):
                here, there = context.Pipe()
                process = context.Process(target=_worker, args=(there, spec), daemon=True)
                process.start()
                there.close()
                self._pipes.append(here)
                self._processes.append(process)
        finally:
            for name, value in saved.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        for worker in range(self.n_workers):
            self._receive(worker)

    def _receive(self, worker: int):
        try:
            kind, *payload = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            code = self._processes[worker].exitcode
            raise PhysicsError(f"a worker of the true physics died (exit code {code}); see the lines above") from None
        if kind == "error":
            self.close()
            raise payload[0]
        return payload

    @property
    def true_calls(self) -> int:
        """True calls of all workers so far, failures included."""
        return self._local.true_calls if self._local is not None else sum(self._calls)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers (0 with one worker: that is this process)."""
        return sum(self._cpu_s)

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool = True):
        """Start evaluating positions (r,N,3) of the replicas `rows` (r,); `collect` waits for it."""
        positions = np.asarray(positions, dtype=np.float64)
        rows = np.arange(len(positions)) if rows is None else np.asarray(rows)
        if self._local is not None:
            return positions, [(np.arange(len(rows)), _evaluate_rows(self._local, positions, rows, want_forces))]
        parts = []
        for worker in range(self.n_workers):
            mine = np.flatnonzero(rows % self.n_workers == worker)
            if len(mine):
                self._pipes[worker].send(("evaluate", positions[mine], rows[mine], want_forces))
                parts.append((mine, worker))
        return positions, parts

    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""
        positions, parts = ticket
        energy = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        messages, extra = np.full(len(positions), "", dtype=object), {}
        for mine, answer in parts:
            if isinstance(answer, int):
                worker = answer
                answer, self._calls[worker], self._cpu_s[worker] = self._receive(worker)
            energy[mine], forces[mine] = answer[:2]
            messages[mine] = answer[2]
            _put(extra, answer[3], mine, len(positions))
        self.failures += [message for message in messages if message]
        truth = Truth(energy, forces, np.isnan(energy), tuple(messages), extra)
        if self._bias is None:
            return truth
        bias, bias_forces = self._bias.energy_and_forces(positions)
        return replace(truth, energy=energy + bias, forces=forces + bias_forces)

    def evaluate(self, positions: np.ndarray, rows: np.ndarray | None = None) -> Truth:
        """Energy and forces of positions (r,N,3) nm; `rows` (r,) names the replicas."""
        return self.collect(self.submit(positions, rows))

    def forget(self) -> None:
        """Drop SCF guesses everywhere."""
        if self._local is not None:
            self._local.forget()
            return
        for pipe in self._pipes:
            pipe.send(("forget",))
        for worker in range(self.n_workers):
            self._receive(worker)

    def close(self) -> None:
        """Stop the workers."""
        for pipe, process in zip(self._pipes, self._processes):
            with contextlib.suppress(OSError):  # the worker is gone already, which is what we want
                pipe.send(("stop",))
            process.join(timeout=2)
            if process.is_alive():
                process.terminate()
            pipe.close()
        self._pipes, self._processes = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
