"""True evaluations of R geometries: what any pool of them promises, and the pool of this machine.

Workers are spawned, never forked (a fork after a calculation deadlocks in the maths
libraries), and each sees OMP_NUM_THREADS=1: two threads per true call are many times slower
than one.  Replica r always goes to worker r mod W, so a backend's SCF guess of a replica
stays where that replica is.

A worker that dies or hangs is replaced and its geometry asked again, then once more alone; a geometry that costs a
third worker is refused, a failed true call like any other.  So is a number out of any reason (`Reference`).
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.processes import (
    MOST_LOST,
    SLICE_S,
    START_S,
    CallTimes,
    Worker,
    WorkerLost,
    end_all,
    exit_with_parent,
    physical_cores,  # noqa: F401 (others take it from here)
)
from kstep.restraints import Bias

MOST_RELEASED = 1000.0  # kJ/mol and atom: no rearrangement sets more free; C=O, the strongest bond, holds 1072 for two
FIRST_ENERGIES = 101  # behind a reference
# between two looks at a replica's SCF guess, which cost milliseconds: the first, doubled each time, and the longest
FIRST_HISTORY_S, HISTORY_S = 0.1, 5.0

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Truth:
    """What the true potential said of r geometries, restraints of the spec added.

    energy (r,) kJ/mol; forces (r,N,3) kJ/mol/nm, NaN where they were not asked for or there
    are none; failed (r,) bool: the SCF did not
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


@dataclass
class Answers:
    """What one process says of some rows: arrays as in Truth, histories {row: SCF guess after it}, seconds of each."""

    energy: np.ndarray
    forces: np.ndarray
    messages: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    histories: dict[int, np.ndarray] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def refused(cls, shape: tuple[int, ...], message: str) -> Answers:
        """No number for positions of that shape (r,N,3)."""
        return cls(np.full(shape[0], np.nan), np.full(shape, np.nan), [message] * shape[0])

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """Those of several questions, in their order."""
        n, extra, first = sum(len(part.energy) for part in parts), {}, 0
        for part in parts:
            put_answers(extra, part.extra, np.arange(first, first + len(part.energy)), n)
            first += len(part.energy)
        return cls(np.concatenate([part.energy for part in parts]), np.concatenate([part.forces for part in parts]),
                   [message for part in parts for message in part.messages], extra,
                   {row: history for part in parts for row, history in part.histories.items()})


class _Evaluator:
    """A backend at work in one process."""

    def __init__(self, spec: PhysicsSpec):
        self.physics, self._keeps_history = spec.build(), spec.keeps_history
        self._due: dict[int, tuple[float, float]] = {}  # when a row's history is told, and then apart

    def __call__(self, positions: np.ndarray, rows: np.ndarray, want_forces: bool) -> Answers:
        physics, found = self.physics, Answers.refused(positions.shape, "")
        for i, row in enumerate(map(int, rows)):
            began = time.perf_counter()
            found.histories.pop(row, None)  # of an earlier place in the same batch
            try:
                if want_forces:
                    found.energy[i], found.forces[i] = physics.energy_and_forces(positions[i], slot=row)
                else:
                    found.energy[i] = physics.energy(positions[i], slot=row)
                put_answers(found.extra, physics.extra(), i, len(rows))
            except PhysicsError as error:
                found.messages[i] = str(error)
            now = time.perf_counter()
            found.seconds.append(now - began)
            due, apart_s = self._due.get(row, (now, FIRST_HISTORY_S))
            if self._keeps_history and now >= due:
                found.histories[row] = physics.history(row)
                self._due[row] = now + min(apart_s, HISTORY_S), 2 * apart_s
        return found

    def forget(self) -> None:
        self.physics.forget()
        self._due.clear()


def put_answers(extra: dict, answers: dict, rows, n_rows: int) -> None:
    """Write `answers` of `rows`, one or an array of n_rows, into `extra`, where what nobody answered is NaN."""
    for name, values in answers.items():
        if name not in extra:
            extra[name] = np.full((n_rows, *np.shape(values)[np.ndim(rows):]), np.nan)
        extra[name][rows] = values


def _serve(connection, spec: PhysicsSpec) -> None:
    """Of a worker process: answer (number, task, ...) with (number, kind, ...)."""
    exit_with_parent()
    try:
        evaluate = _Evaluator(spec)
    except Exception as error:  # reported to the parent, which raises it
        connection.send((0, "error", error if isinstance(error, UserError) else RuntimeError(traceback.format_exc())))
        return
    try:
        connection.send((0, "ready"))
    except OSError:  # the parent is gone
        return
    tasks: queue.SimpleQueue = queue.SimpleQueue()

    def listen():
        # A thread of its own, so that a task sent while an answer is being written blocks neither side.
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            tasks.put((0, "stop"))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        number, task, *payload = tasks.get()
        try:
            if task == "evaluate":
                answers = evaluate(*payload)
                connection.send((number, "truth", answers, evaluate.physics.true_calls, time.process_time()))
            elif task == "remember":
                evaluate.physics.remember(*payload)
            elif task == "forget":
                evaluate.forget()
                connection.send((number, "ready"))
            else:
                return
        except Exception:
            connection.send((number, "error", RuntimeError(traceback.format_exc())))


class Reference:
    """The energies that a pool begins with; one far below them is no energy of this molecule on this surface.

    An SCF that fell into another state can be 1e6 kJ/mol too low, and a chain that takes it never leaves it.  What a
    geometry may lie below the lower quartile of the first energies (of which some may be such states, and many may be
    clashes) is the number of atoms times what rearranging an atom can set free, 1000 kJ/mol: relative, so that it holds
    for every backend's zero.  Far above is where atoms clash, which every scheme refuses by itself.
    """

    def __init__(self, n_atoms: int):
        self.most_below = MOST_RELEASED * n_atoms
        self._first: list[float] = []
        self._level = np.nan

    def check(self, truth: Truth) -> Truth:
        """The same, rows out of any reason failed."""
        level = self._level
        if len(self._first) < FIRST_ENERGIES and not truth.failed.all():
            self._first += truth.energy[~truth.failed].tolist()
            self._level = float(np.percentile(self._first, 25))
        level = self._level if np.isnan(level) else level  # the first ones have nothing but each other
        with np.errstate(invalid="ignore"):
            low = truth.energy < level - self.most_below
        if not low.any():
            return truth
        messages = [f"the true energy is {level - energy:.3g} kJ/mol below where the run began, more than "
                    f"{self.most_below:g} that its atoms could set free: a wrong electronic state" if wrong else message
                    for energy, wrong, message in zip(truth.energy, low, truth.messages)]
        energy, forces = np.where(low, np.nan, truth.energy), np.where(low[:, None, None], np.nan, truth.forces)
        extra = {name: np.where(low.reshape(-1, *[1] * (values.ndim - 1)), np.nan, values)
                 for name, values in truth.extra.items()}
        return Truth(energy, forces, np.isnan(energy), tuple(messages), extra)


class Pool(ABC):
    """Whoever evaluates R geometries at once: `submit` a question, `collect` its answer; a context manager.

    A maker is a subclass that is built from a PhysicsSpec and says where its workers are.  It counts every answer once,
    failures included (`true_calls`), and asks a row's questions of one worker in their order, so that an SCF guess is
    the one of that row.  attend() is called while it waits, at least twice a second.
    """

    n_workers: int
    wall_s = 0.0  # seconds that an earlier process spent on answers which this one is told
    attend: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, spec: PhysicsSpec):
        self.spec, self.numbers, self.masses = spec, spec.numbers, spec.masses
        self._has_forces = spec.has_forces
        self._bias = Bias(spec.restraints) if spec.restraints else None
        self.failures: list[str] = []  # one sentence per true call that gave no number
        self.histories: dict[int, np.ndarray] = {}  # SCF guesses that the last `collect` was told, by row

    @property
    @abstractmethod
    def true_calls(self) -> int:
        """True calls of all workers that were answered so far, failures included."""

    @property
    @abstractmethod
    def cpu_s(self) -> float:
        """CPU seconds of the workers (0 where that is this process)."""

    @property
    @abstractmethod
    def call_limit_s(self) -> float:
        """Seconds after which a true call counts as hung."""

    @abstractmethod
    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None) -> Any:
        """Start evaluating positions (r,N,3) nm of the replicas `rows` (r,); `collect` waits for the ticket.

        want_forces: see `wants_forces`, which a maker asks.
        """

    def wants_forces(self, want_forces: bool | None) -> bool:
        """Whether a question is about forces too; None: as far as the truth has them, UserError where it has none."""
        if want_forces and not self._has_forces:
            raise UserError(f"{self.spec.method} has no forces to ask for; ask for energies alone")
        return self._has_forces if want_forces is None else want_forces

    @abstractmethod
    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""

    @abstractmethod
    def forget(self) -> None:
        """Drop SCF guesses everywhere."""

    @abstractmethod
    def remember(self, row: int, history: np.ndarray) -> None:
        """Let a row's next SCF begin with what was in `histories`."""

    @abstractmethod
    def close(self, at_once: bool = False) -> None:
        """Stop the workers; at_once: in the middle of their work."""

    def restrained(self, positions: np.ndarray, bare: Truth) -> Truth:
        """What a backend said at positions (r,N,3) nm, the restraints of the spec added."""
        if self._bias is None:
            return bare
        bias, bias_forces = self._bias.energy_and_forces(positions)
        return replace(bare, energy=bare.energy + bias, forces=bare.forces + bias_forces)

    def evaluate(self, positions: np.ndarray, rows: np.ndarray | None = None,
                 want_forces: bool | None = None) -> Truth:
        """Energy and forces of positions (r,N,3) nm; `rows` (r,) names the replicas; want_forces: as `submit`."""
        return self.collect(self.submit(positions, rows, want_forces))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(at_once=kind is not None)


@dataclass(frozen=True)
class _Question:
    """A task of a worker; lost: workers that it has cost so far."""

    number: int
    task: str
    payload: tuple = ()
    lost: int = 0

    @property
    def n_calls(self) -> int:
        return len(self.payload[0]) if self.task == "evaluate" else 1

    def alone(self) -> list[_Question]:
        """The same, geometry by geometry."""
        positions, rows, want_forces = self.payload
        return [replace(self, payload=(positions[i:i + 1], rows[i:i + 1], want_forces)) for i in range(len(rows))]


class EvaluationPool(Pool):
    """The pool of this machine: spawned processes; with one worker, this process.

    A single worker is a process all the same where the spec gives a true call more than one thread or a time limit,
    neither of which this process could keep.
    """

    def __init__(self, spec: PhysicsSpec, n_workers: int = 1):
        if n_workers < 1:
            raise UserError(f"{n_workers} workers cannot evaluate anything; use --num-workers 1 or more")
        super().__init__(spec)
        self.n_workers = n_workers
        in_process = n_workers == 1 and spec.threads == 1 and spec.call_limit_s is None
        self._local = _Evaluator(spec) if in_process else None
        self._calls, self._cpu_s = [0] * n_workers, [0.0] * n_workers
        self._of_earlier = [(0, 0.0)] * n_workers  # true calls and CPU seconds of the workers that each one replaced
        self._reference, self._times = Reference(len(spec.numbers)), CallTimes(spec.call_limit_s)
        self._loads = CallTimes(first_s=START_S)
        self._numbers = itertools.count(1)
        self._waiting: list[deque[_Question]] = [deque() for _ in range(n_workers)]  # sent, and not answered yet
        self._answered: dict[int, list[Answers]] = {}
        self._workers: list[Worker] = []
        if self._local is None:
            try:
                for _ in range(n_workers):
                    self._workers.append(self._start())
                self._await_ready(range(n_workers))
            except BaseException:  # told to end while they load: nobody else knows of them yet
                self.close(at_once=True)
                raise

    def _start(self) -> Worker:
        return Worker(_serve, (self.spec,), self.spec.threads)

    def _await_ready(self, numbers: Iterable[int]) -> None:
        """Wait until workers have loaded what they need; one that is lost on the way is replaced, twice at most."""
        loading, lost, began = dict.fromkeys(numbers, 0.0), Counter[int](), time.monotonic()
        while loading:
            pipes = {number: self._workers[number].pipe for number in loading}
            before = time.monotonic()
            heard = wait(list(pipes.values()), SLICE_S)
            self.attend()
            passed = min(time.monotonic() - before, 2 * SLICE_S)  # while this process is stopped, none passes
            for number, pipe in pipes.items():
                loading[number] += passed
                if pipe not in heard and loading[number] < self._loads.limit_for():
                    continue
                try:
                    _, kind, *payload = self._workers[number].receive(0.0)
                except WorkerLost as why:
                    lost[number] += 1
                    self._workers[number].kill()
                    if lost[number] == MOST_LOST:
                        self.close(at_once=True)
                        raise PhysicsError(f"a worker of the true physics {why} before it could begin, the third one; "
                                           "see the lines above") from None
                    log.warning("a worker of the true physics %s before it could begin; another one takes its place",
                                why if pipe in heard else f"was silent for {loading[number]:.0f} s")
                    self._workers[number], loading[number] = self._start(), 0.0
                    continue
                if kind == "error":
                    self.close(at_once=True)
                    raise payload[0]
                self._loads.add(time.monotonic() - began)
                del loading[number]

    def _ask(self, worker: int, task: str, *payload) -> int:
        question = _Question(next(self._numbers), task, payload)
        self._waiting[worker].append(question)
        self._workers[worker].send((question.number, task, *payload))
        return question.number

    def _answer_of(self, worker: int, number: int) -> Answers:
        """Wait until a worker has answered a question."""
        while any(question.number == number for question in self._waiting[worker]):
            self._take_next(worker)
        return Answers.joined(self._answered.pop(number))

    def _take_next(self, worker: int) -> None:
        """The next message of a worker, which may be that it is lost."""
        question = self._waiting[worker][0]
        try:
            number, kind, *payload = self._workers[worker].receive(
                self._times.limit_for(question.n_calls), self.attend)
        except WorkerLost as why:
            self._replace(worker, str(why))
            return
        if kind == "error":
            self.close(at_once=True)
            raise payload[0]
        assert number == question.number
        self._waiting[worker].popleft()
        answers = Answers.refused((0, *np.shape(self.masses), 3), "")
        if kind == "truth":
            answers, calls, cpu_s = payload
            earlier_calls, earlier_cpu_s = self._of_earlier[worker]
            self._calls[worker], self._cpu_s[worker] = earlier_calls + calls, earlier_cpu_s + cpu_s
            self._note_times(answers)
        self._answered.setdefault(number, []).append(answers)

    def _note_times(self, answers: Answers) -> None:
        for seconds in answers.seconds:
            self._times.add(seconds)

    @property
    def call_limit_s(self) -> float:
        """Seconds after which a true call counts as hung."""
        return self._times.limit_for(1)

    def _replace(self, worker: int, why: str) -> None:
        """A new worker in the place of a lost one, which is asked what the other was, the first question with care."""
        self._workers[worker].kill()
        first, *others = self._waiting[worker]
        first = replace(first, lost=first.lost + 1)
        refused = first.task == "evaluate" and first.lost >= MOST_LOST and first.n_calls == 1
        log.warning("a worker of the true physics %s; %s", why,
                    "the geometry that it was asked about has cost three, and is refused" if refused else
                    "another one takes its place, and is asked the same")
        again = [first]
        if refused:
            self._calls[worker] += 1
            self._answered.setdefault(first.number, []).append(Answers.refused(
                first.payload[0].shape, f"the true physics lost three workers at this geometry, the last one {why}"))
            again = []
        elif first.task == "evaluate" and first.lost == 2:
            again = first.alone()
        self._of_earlier[worker] = self._calls[worker], self._cpu_s[worker]
        self._waiting[worker] = deque([*again, *others])
        self._workers[worker] = self._start()
        self._await_ready([worker])
        for question in self._waiting[worker]:
            self._workers[worker].send((question.number, question.task, *question.payload))

    @property
    def true_calls(self) -> int:
        """True calls of all workers that were answered so far, failures included."""
        return self._local.physics.true_calls if self._local is not None else sum(self._calls)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers (0 with one worker: that is this process)."""
        return sum(self._cpu_s)

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None):
        """Start evaluating positions (r,N,3) of the replicas `rows` (r,); `collect` waits for it."""
        positions, want_forces = np.asarray(positions, dtype=np.float64), self.wants_forces(want_forces)
        rows = np.arange(len(positions)) if rows is None else np.asarray(rows)
        if self._local is not None:
            self.attend()
            answers = self._local(positions, rows, want_forces)
            self._note_times(answers)
            return positions, [(np.arange(len(rows)), -1, answers)]
        parts = []
        for worker in range(self.n_workers):
            mine = np.flatnonzero(rows % self.n_workers == worker)
            if len(mine):
                parts.append((mine, worker, self._ask(worker, "evaluate", positions[mine], rows[mine], want_forces)))
        return positions, parts

    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""
        positions, parts = ticket
        energy = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        messages, extra, self.histories = np.full(len(positions), "", dtype=object), {}, {}
        for mine, worker, answer in parts:
            answers = answer if isinstance(answer, Answers) else self._answer_of(worker, answer)
            energy[mine], forces[mine], messages[mine] = answers.energy, answers.forces, answers.messages
            put_answers(extra, answers.extra, mine, len(positions))
            self.histories |= answers.histories
        truth = self._reference.check(Truth(energy, forces, np.isnan(energy), tuple(messages), extra))
        self.failures += [message for message in truth.messages if message]
        return self.restrained(positions, truth)

    def forget(self) -> None:
        """Drop SCF guesses everywhere."""
        if self._local is not None:
            self._local.forget()
        asked = [(worker, self._ask(worker, "forget")) for worker in range(len(self._workers))]
        for worker, number in asked:
            self._answer_of(worker, number)

    def remember(self, row: int, history: np.ndarray) -> None:
        """Let a row's next SCF begin with what was in `histories`."""
        if self._local is not None:
            self._local.physics.remember(row, history)
        else:
            self._workers[row % self.n_workers].send((0, "remember", row, history))

    def close(self, at_once: bool = False) -> None:
        """Stop the workers; at_once: in the middle of their work."""
        end_all(self._workers, (0, "stop"), patience_s=0.0 if at_once else 2.0)
        self._workers, self._waiting = [], [deque() for _ in range(self.n_workers)]
